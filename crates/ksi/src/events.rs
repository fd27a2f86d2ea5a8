//! `ksi emit` and `ksi listen`.

use std::{collections::BTreeMap, io::Read, process::ExitCode};

use ksi_process::unread;
use ksi_protocol::{Code, ConnectError, Error, Feed, News, Pushed, check_event_name};
use serde::de::IgnoredAny;
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};

use crate::{
    connect::{self, Cx},
    fail::Usage,
    output::{bold, harmless, json, json_line, line},
};

/// Sends one event and prints its reply.
pub(crate) async fn emit(cx: &Cx, event: &str, data: &[String]) -> anyhow::Result<ExitCode> {
    check_event_name(event).map_err(Usage)?;
    let sent = parse(data)?;
    let reply = cx.client().await?.call::<Value>(event, &sent).await;
    let reply = reply.map_err(|error| match as_text(&error, data) {
        Some(hint) => error.hint(hint),
        None => error,
    })?;
    json(&reply)?;
    Ok(ExitCode::SUCCESS)
}

/// How to write a text where what was typed is something else in JSON.
fn as_text(error: &Error, data: &[String]) -> Option<String> {
    let path = error.path.as_deref().filter(|_| error.message.contains("expected a string"))?;
    let typed = data.iter().find_map(|field| field.strip_prefix(path)?.strip_prefix('='))?;
    let is_text = typed.starts_with('"') || !is_json(typed);
    (!is_text).then(|| format!("if it is to be a text: {path}='\"{typed}\"'"))
}

/// Prints events as they happen, until Ctrl-C or the daemon's end.
pub(crate) async fn listen(
    cx: &Cx,
    patterns: &[String],
    since: Option<u64>,
) -> anyhow::Result<ExitCode> {
    let patterns = connect::patterns(patterns).map_err(Usage)?;
    drop(cx.client().await?);
    let feed = cx.feed(patterns, since).await?;
    tokio::select! {
        ended = follow(cx, feed) => ended,
        _ = tokio::signal::ctrl_c() => Ok(ExitCode::SUCCESS),
        () = unread() => Ok(ExitCode::SUCCESS),
    }
}

/// Goes on behind the last fact when the daemon comes back: no fact is lost, and none comes twice.
async fn follow(cx: &Cx, mut feed: Feed) -> anyhow::Result<ExitCode> {
    let mut was_stopped = false;
    while let Some(news) = feed.next().await {
        match news {
            News::Event(event) => print(cx, &event)?,
            News::Away(why) => {
                was_stopped = why.code == Code::Shutdown;
                cx.tell_away();
            }
            News::Back { pruned } => drop(cx.tell_back(pruned).await),
        }
    }
    match was_stopped {
        true => Ok(ExitCode::SUCCESS),
        false => Err(ConnectError::Refused(cx.paths.socket.clone()).into()),
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

/// Reads `data` from the command line: a JSON object, `-`, or fields. It goes to the daemon as it
/// stands, so that no digit is lost and what stands there twice is refused.
fn parse(data: &[String]) -> anyhow::Result<Box<RawValue>> {
    let text = match data {
        [] => "{}".to_owned(),
        [dash] if dash == "-" => {
            let mut text = String::new();
            std::io::stdin().lock().read_to_string(&mut text)?;
            text
        }
        [json] if json.trim_start().starts_with('{') || is_json(json) => json.clone(),
        fields => return object(fields),
    };
    let value: Box<RawValue> = serde_json::from_str(&text)
        .map_err(|error| Usage::new(format!("the data is not a JSON object: {error}"), USE))?;
    let found = match value.get().as_bytes().first() {
        Some(b'{') => return Ok(value),
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "true or false",
        Some(b'n') => "null",
        _ => "a number",
    };
    Err(Usage::new(format!("the data must be a JSON object, not {found}"), USE).into())
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

const USE: &str =
    "ksi emit state:set '{\"key\": \"a\", \"value\": 1}', or: ksi emit state:set key=a value=1";

/// Fields such as `key=value`; a value is JSON where it is valid JSON, and text otherwise.
fn object(fields: &[String]) -> anyhow::Result<Box<RawValue>> {
    let mut object = BTreeMap::new();
    for text in fields {
        let Some((key, value)) = text.split_once('=') else {
            return Err(Usage::new(format!("`{text}` is neither JSON nor key=value"), USE).into());
        };
        let value = match serde_json::from_str(value) {
            Ok(value) => value,
            Err(_) => to_raw_value(value)?,
        };
        if object.insert(key, value).is_some() {
            return Err(Usage::new(format!("`{key}` is there twice"), USE).into());
        }
    }
    Ok(to_raw_value(&object)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(data: &[&str]) -> Value {
        let data: Vec<_> = data.iter().map(|text| (*text).to_owned()).collect();
        serde_json::from_str(parse(&data).unwrap().get()).unwrap()
    }

    #[test]
    fn fields_are_json_or_text() {
        let data = parsed(&["key=a b", "value={\"n\":[1]}", "n=1", "empty="]);
        assert_eq!(data, json!({"key": "a b", "value": {"n": [1]}, "n": 1, "empty": ""}));
        assert_eq!(parsed(&[" {\"key\": 1}"]), json!({"key": 1}));
        assert_eq!(parsed(&[]), json!({}));
        let digits = "{\"n\": 123456789012345678901234567890}";
        assert_eq!(parse(&[digits.to_owned()]).unwrap().get(), digits);
        assert!(parse(&["key=1".to_owned(), "key=2".to_owned()]).is_err());
        assert!(parse(&["key".to_owned()]).is_err());
        assert!(parse(&["{\"key\":".to_owned()]).is_err());
    }
}
