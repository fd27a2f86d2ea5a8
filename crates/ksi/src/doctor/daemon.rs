//! How the daemon is, if one runs.

use ksi_protocol::Client;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Finding;
use crate::{connect::Cx, daemon::VERSION, output::bytes, reach::Unreached};

/// What the daemon says of itself.
#[derive(Debug, Deserialize)]
pub(super) struct Running {
    pub(super) pid: u32,
    version: String,
    uptime: f64,
    #[serde(default)]
    managed: bool,
    #[serde(default)]
    problems: serde_json::Map<String, Value>,
}

pub(super) async fn look(cx: &Cx) -> (Option<Running>, Vec<Finding>) {
    let client = match cx.running().await {
        Ok(client) => client,
        Err(error) => {
            let finding = match &error {
                error if error.is_free() => Finding::note("daemon", "not running"),
                Unreached::Starting(_) | Unreached::Ending(_) => {
                    Finding::note("daemon", error.to_string())
                }
                error => Finding::failed("daemon", error.to_string()),
            };
            let hint = error.hint().unwrap_or_else(|| "set KSI_SOCKET to another path".to_owned());
            return (None, vec![finding.hint(hint)]);
        }
    };
    let running: Running = match client.call("system:health", &json!({})).await {
        Ok(running) => running,
        Err(error) => {
            let finding = Finding::failed("daemon", format!("it does not say how it is: {error}"));
            return (None, vec![finding.hint("`ksi restart`")]);
        }
    };
    let mut findings = vec![daemon(&running)];
    for (plugin, why) in &running.problems {
        let why = why.as_str().unwrap_or_default();
        findings.push(Finding::failed("plugin", format!("{plugin}: {why}")));
    }
    findings.extend([journal(&client).await, snapshots(&client).await]);
    (Some(running), findings)
}

fn daemon(running: &Running) -> Finding {
    let Running { pid, version, uptime, managed, .. } = running;
    let by = if *managed { ", kept by a service manager" } else { "" };
    let what = format!("ksi {version}, process {pid}, up {uptime:.0} s{by}");
    match version == VERSION {
        true => Finding::ok("daemon", what),
        false => Finding::warning("daemon", format!("{what}; this is ksi {VERSION}"))
            .hint("`ksi restart` replaces it"),
    }
}

async fn journal(client: &Client) -> Finding {
    match client.call::<Value>("journal:stats", &json!({})).await {
        Ok(stats) => {
            let size = bytes(stats["bytes"].as_u64().unwrap_or_default());
            Finding::ok("journal", format!("facts: {}, {size}", stats["facts"]))
        }
        Err(error) => Finding::failed("journal", error.to_string()),
    }
}

async fn snapshots(client: &Client) -> Finding {
    let listed = client.call::<Value>("checkpoint:list", &json!({})).await;
    let Ok(Value::Array(listed)) = listed.map(|mut listed| listed["snapshots"].take()) else {
        return Finding::failed("snapshots", "they cannot be listed");
    };
    match listed.iter().find_map(|one| Some((one["path"].as_str()?, one["problem"].as_str()?))) {
        Some((path, problem)) => Finding::warning("snapshots", format!("{path}: {problem}"))
            .hint("`ksi checkpoint save` makes a new one"),
        None => Finding::ok("snapshots", format!("{} kept", listed.len())),
    }
}
