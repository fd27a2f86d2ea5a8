//! `ksi emit` and `ksi listen`.

use std::{io::Read, process::ExitCode};

use ksi_protocol::{Code, ConnectError, Pattern, Pushed, Subscription, check_event_name};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json};

use crate::{
    connect::{self, Cx},
    fail::Usage,
    output::{bold, harmless, json, json_line, line},
};

/// Sends one event and prints its reply.
pub(crate) async fn emit(cx: &Cx, event: &str, data: &[String]) -> anyhow::Result<ExitCode> {
    check_event_name(event).map_err(Usage)?;
    let data = parse(data)?;
    let reply: Value = cx.client().await?.call(event, &data).await?;
    json(&reply)?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Deserialize)]
struct Health {
    seq: u64,
}

/// Prints events as they happen, until Ctrl-C or the daemon's end.
pub(crate) async fn listen(
    cx: &Cx,
    patterns: &[String],
    since: Option<u64>,
) -> anyhow::Result<ExitCode> {
    let patterns = connect::patterns(patterns).map_err(Usage)?;
    let client = cx.client().await?;
    let begin = match since {
        Some(since) => Some(since),
        // Where it begins must be known, should the daemon go away before the first fact.
        None => {
            let health = client.call("system:health", &json!({})).await;
            health.ok().map(|Health { seq }| seq)
        }
    };
    let events = client.subscribe(patterns.clone(), begin).await?;
    tokio::select! {
        ended = follow(cx, &patterns, begin, events) => ended,
        _ = tokio::signal::ctrl_c() => Ok(ExitCode::SUCCESS),
    }
}

/// Goes on behind the last fact when the daemon comes back: no fact is lost, and none comes twice.
async fn follow(
    cx: &Cx,
    patterns: &[Pattern],
    mut seen: Option<u64>,
    mut events: Subscription,
) -> anyhow::Result<ExitCode> {
    loop {
        while let Some(event) = events.next().await {
            print(cx, &event)?;
            seen = event.seq.or(seen);
        }
        let was_stopped = events.ended().is_some_and(|why| why.code == Code::Shutdown);
        match cx.resume(patterns, seen).await {
            Some((_, resumed)) => events = resumed,
            None if was_stopped => return Ok(ExitCode::SUCCESS),
            None => return Err(ConnectError::Refused(cx.paths.socket.clone()).into()),
        }
    }
}

fn print(cx: &Cx, event: &Pushed) -> anyhow::Result<()> {
    if cx.json() {
        return json_line(&json!({
            "event": event.event, "data": event.data, "seq": event.seq, "timestamp": event.timestamp,
        }));
    }
    let seq = event.seq.map_or_else(|| "-".to_owned(), |seq| seq.to_string());
    line(format!("{seq:>6}  {}  {}", bold(&event.event), harmless(event.data.get())))?;
    Ok(())
}

/// Reads `data` from the command line: a JSON object, `-`, or fields.
fn parse(data: &[String]) -> anyhow::Result<Value> {
    let text = match data {
        [] => return Ok(json!({})),
        [dash] if dash == "-" => {
            let mut text = String::new();
            std::io::stdin().lock().read_to_string(&mut text)?;
            text
        }
        [json] if json.trim_start().starts_with('{') || is_json(json) => json.clone(),
        fields => return Ok(Value::Object(fields.iter().map(field).collect::<Result<_, _>>()?)),
    };
    let value: Value = serde_json::from_str(&text)
        .map_err(|error| Usage::new(format!("the data is not a JSON object: {error}"), USE))?;
    let found = match value {
        Value::Object(_) => return Ok(value),
        Value::Array(_) => "an array",
        Value::String(_) => "a string",
        Value::Number(_) => "a number",
        Value::Bool(_) => "true or false",
        Value::Null => "null",
    };
    Err(Usage::new(format!("the data must be a JSON object, not {found}"), USE).into())
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

const USE: &str =
    "ksi emit state:set '{\"key\": \"a\", \"value\": 1}', or: ksi emit state:set key=a value=1";

/// One `key=value`; the value is JSON where it is valid JSON, and text otherwise.
fn field(text: &String) -> Result<(String, Value), Usage> {
    let Some((key, value)) = text.split_once('=') else {
        return Err(Usage::new(format!("`{text}` is neither JSON nor key=value"), USE));
    };
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
    Ok((key.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(data: &[&str]) -> Value {
        parse(&data.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn fields_are_json_or_text() {
        let data = parsed(&["key=a b", "value={\"n\":[1]}", "n=1", "empty="]);
        assert_eq!(data, json!({"key": "a b", "value": {"n": [1]}, "n": 1, "empty": ""}));
        assert_eq!(parsed(&[" {\"key\": 1}"]), json!({"key": 1}));
        assert_eq!(parsed(&[]), json!({}));
        assert!(parse(&["key".to_owned()]).is_err());
        assert!(parse(&["{\"key\":".to_owned()]).is_err());
    }
}
