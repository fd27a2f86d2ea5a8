//! `ksi discover`: what the daemon answers and publishes.

use std::{collections::BTreeMap, fmt::Write, process::ExitCode};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    connect::Cx,
    fail::refused,
    output::{bold, harmless, json, line, piece},
};

#[derive(Debug, Serialize, Deserialize)]
struct Discovered {
    events: BTreeMap<String, Described>,
    total: usize,
    namespaces: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Described {
    module: String,
    kind: String,
    summary: String,
    parameters: BTreeMap<String, Parameter>,
    #[serde(default)]
    reply: Value,
    #[serde(default)]
    reply_fields: BTreeMap<String, Parameter>,
    #[serde(default)]
    example: Value,
}

#[derive(Debug, Serialize, Deserialize)]
struct Parameter {
    #[serde(rename = "type")]
    kind: String,
    required: bool,
    default: Value,
    description: String,
}

/// Lists events, or shows the one that is named.
pub(crate) async fn discover(
    cx: &Cx,
    what: Option<&str>,
    markdown: bool,
) -> anyhow::Result<ExitCode> {
    let client = cx.client().await?;
    let query = match what {
        Some(event) if event.contains(':') => json!({ "event": event, "detail": true }),
        Some(namespace) => json!({ "namespace": namespace, "detail": markdown }),
        None => json!({ "detail": markdown }),
    };
    let found: Discovered = client.call("system:discover", &query).await.map_err(refused)?;
    if cx.json() {
        json(&found)?;
    } else if markdown {
        piece(&reference(&found))?;
    } else if what.is_some_and(|what| what.contains(':')) {
        for (name, event) in &found.events {
            show(name, event)?;
        }
    } else {
        let width = found.events.keys().map(String::len).max().unwrap_or(0);
        for (name, event) in &found.events {
            line(format!("{name:width$}  {:7}  {}", event.kind, first_line(&event.summary)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(name: &str, event: &Described) -> anyhow::Result<()> {
    line(format!("{}  ({}, of {})", bold(name), event.kind, harmless(&event.module)))?;
    line(harmless(&event.summary))?;
    for (name, parameter) in &event.parameters {
        let must = if parameter.required { "required" } else { "optional" };
        line(format!(
            "  {}: {} ({must})  {}",
            harmless(name),
            harmless(&parameter.kind),
            first_line(&parameter.description)
        ))?;
    }
    Ok(())
}

fn first_line(text: &str) -> String {
    harmless(text.lines().next().unwrap_or_default())
}

/// The reference of all events, as docs/events.md holds it.
fn reference(found: &Discovered) -> String {
    let mut text = String::from(
        "# Events\n\nMade by `make docs` from what the daemon says of itself; do not edit.\n\
         Requests are answered by one plugin; facts are in the journal; signals are passing news.\n\
         The frames around them, and what can go wrong, are in [api.md](api.md).\n",
    );
    let mut namespace = "";
    for (name, event) in &found.events {
        let of = name.split(':').next().unwrap_or_default();
        if of != namespace {
            namespace = of;
            let _ = write!(text, "\n## {namespace}\n");
        }
        let _ = write!(text, "\n### `{name}`\n\n{} *({})*\n", event.summary, event.kind);
        if !event.example.is_null() {
            let data = &event.example;
            let _ = write!(text, "\n```\n> {{\"event\":\"{name}\",\"data\":{data}}}\n```\n");
        }
        table(&mut text, "field", &event.parameters);
        table(&mut text, "reply", &event.reply_fields);
    }
    text
}

fn table(text: &mut String, what: &str, parameters: &BTreeMap<String, Parameter>) {
    if parameters.is_empty() {
        return;
    }
    let _ = write!(text, "\n| {what} | type | always | meaning |\n|---|---|---|---|\n");
    for (name, parameter) in parameters {
        let must = if parameter.required { "yes" } else { "" };
        let meaning = parameter.description.replace('\n', " ").replace('|', "\\|");
        let kind = parameter.kind.replace('|', "\\|");
        let _ = writeln!(text, "| `{name}` | {kind} | {must} | {meaning} |");
    }
}
