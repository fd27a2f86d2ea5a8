//! `ksi permission`.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::{
    args::PermissionVerb,
    connect::Cx,
    fail::{FAILED, refused},
    look::table,
    output::{harmless, json, line},
};

/// Shows and changes who may do what.
pub(crate) async fn run(cx: &Cx, verb: &PermissionVerb) -> anyhow::Result<ExitCode> {
    let (event, data) = match verb {
        PermissionVerb::List => ("permission:list_profiles", json!({})),
        PermissionVerb::Show { profile } => ("permission:get_profile", json!({ "level": profile })),
        PermissionVerb::Get { who } => ("permission:get_agent", json!({ "agent_id": who })),
        PermissionVerb::Set { who, profile } => {
            ("permission:set_agent", json!({ "agent_id": who, "level": profile }))
        }
        PermissionVerb::Check { event, who } => {
            ("permission:check", json!({ "event": event, "agent_id": who }))
        }
    };
    let reply: Value = cx.client().await?.call(event, &data).await.map_err(refused)?;
    let may = reply["may_send"] != false;
    if cx.json() {
        json(&reply)?;
    } else {
        show(verb, &reply)?;
    }
    Ok(if may { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn show(verb: &PermissionVerb, reply: &Value) -> anyhow::Result<()> {
    let text = |name: &str| harmless(reply[name].as_str().unwrap_or_default());
    match verb {
        PermissionVerb::List => list(reply)?,
        PermissionVerb::Show { .. } | PermissionVerb::Get { .. } => rights(reply)?,
        PermissionVerb::Set { .. } => {
            line(format!("{} has the profile {} now", text("principal"), text("level")))?;
        }
        PermissionVerb::Check { .. } => {
            let may = |name: &str| if reply[name] == true { "may" } else { "may not" };
            let (send, see) = (may("may_send"), may("may_see"));
            let who = text("principal");
            line(format!("{who} {send} send {} and {see} see it", text("event")))?;
            reply["reason"].as_str().map_or(Ok(()), |reason| line(harmless(reason)))?;
        }
    }
    Ok(())
}

fn list(reply: &Value) -> anyhow::Result<()> {
    let profiles = reply["profiles"].as_array().into_iter().flatten();
    let row = |profile: &Value| {
        let text = |name: &str| profile[name].as_str().map(harmless);
        let summary = text("summary").or_else(|| text("error").map(|why| format!("broken: {why}")));
        let path = text("path").unwrap_or_else(|| "built in".to_owned());
        vec![text("level").unwrap_or_default(), summary.unwrap_or_default(), path]
    };
    table(&["profile", "summary", "file"], &profiles.map(row).collect::<Vec<_>>())
}

fn rights(reply: &Value) -> anyhow::Result<()> {
    for name in ["principal", "level", "parent", "summary"] {
        if let Some(text) = reply[name].as_str() {
            line(format!("{name:10} {}", harmless(text)))?;
        }
    }
    for name in ["send", "never", "see"] {
        let patterns = reply[name].as_array().into_iter().flatten().filter_map(Value::as_str);
        let patterns: Vec<_> = patterns.map(harmless).collect();
        line(format!("{name:10} {}", patterns.join(" ")).trim_end())?;
    }
    Ok(())
}
