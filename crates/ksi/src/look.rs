//! `ksi get` and `ksi describe`.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::{
    args::{Kind, Kinds},
    connect::Cx,
    output::{bold, harmless, json, line},
};

/// Lists things of a kind.
pub(crate) async fn get(cx: &Cx, kind: &Kinds) -> anyhow::Result<ExitCode> {
    let (event, columns): (_, &[&str]) = match kind {
        Kinds::Orchestrations => {
            ("orchestration:list", &["orchestration_id", "status", "pattern", "turns", "model"])
        }
        Kinds::Conversations => ("conversation:list", &["conversation_id", "turns", "open"]),
    };
    let reply: Value = cx.client().await?.call(event, &json!({})).await?;
    if cx.json() {
        json(&reply)?;
        return Ok(ExitCode::SUCCESS);
    }
    let items = reply.as_array().or(reply["conversations"].as_array());
    let row = |item: &Value| columns.iter().map(|column| cell(&item[column])).collect();
    let rows: Vec<Vec<String>> = items.into_iter().flatten().map(row).collect();
    table(columns, &rows)?;
    Ok(ExitCode::SUCCESS)
}

/// Shows one thing in full.
pub(crate) async fn describe(cx: &Cx, kind: &Kind) -> anyhow::Result<ExitCode> {
    let client = cx.client().await?;
    let (event, query) = match kind {
        Kind::Orchestration { id } => {
            ("orchestration:get_instance", json!({ "orchestration_id": id }))
        }
        Kind::Conversation { id } => ("conversation:get", json!({ "conversation_id": id })),
    };
    let reply: Value = client.call(event, &query).await?;
    if cx.json() {
        json(&reply)?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(fields) = reply.as_object() else { return Ok(ExitCode::SUCCESS) };
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_array() && !value.is_null()) {
        line(format!("{name:18} {}", cell(value)))?;
    }
    let spoken =
        ["spoken", "turns", "messages"].into_iter().find_map(|name| reply[name].as_array());
    for turn in spoken.into_iter().flatten() {
        let speaker = turn["speaker"].as_str().or(turn["role"].as_str()).unwrap_or_default();
        let text = turn["text"].as_str().or(turn["content"].as_str()).unwrap_or_default();
        line(format!("\n{}\n{}", bold(&harmless(speaker)), harmless(text)))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => harmless(text),
        Value::Array(items) => items.len().to_string(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Prints rows under their columns, each as wide as it must be.
pub(crate) fn table(columns: &[&str], rows: &[Vec<String>]) -> anyhow::Result<()> {
    let width = |i: usize| {
        let cells = rows.iter().map(|row| row[i].chars().count());
        cells.chain([columns[i].len()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns.len()).map(width).collect();
    let print = |cells: &mut dyn Iterator<Item = String>| {
        let padded: Vec<_> =
            cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        line(padded.join("  ").trim_end())
    };
    print(&mut columns.iter().map(|name| name.replace("_id", "").to_uppercase()))?;
    for row in rows {
        print(&mut row.iter().cloned())?;
    }
    Ok(())
}
