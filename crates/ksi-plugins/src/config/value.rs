//! What a setting may be, and how a value is read that somebody typed.

use std::ops::RangeInclusive;

use serde_json::Value;

use super::settings::{Config, schema};

/// A text as a value of this key; else what it must be.
pub(super) fn typed(key: &str, default: &Value, text: &str) -> Result<Value, String> {
    let value = match default.is_number() {
        false => Some(Value::from(text)),
        true => text.trim().parse().ok().map(|number: u64| Value::from(number)),
    };
    value.filter(|value| fits(key, value)).ok_or_else(|| expected(key))
}

/// The first setting that has the right type and makes no sense, and what it must be.
pub(super) fn unfit(config: &Config) -> Option<(String, String)> {
    let (key, _) = config.entries().into_iter().find(|(key, value)| !fits(key, value))?;
    let expected = expected(&key);
    Some((key, expected))
}

fn fits(key: &str, value: &Value) -> bool {
    match value {
        Value::Number(number) => number.as_u64().is_some_and(|number| range(key).contains(&number)),
        Value::String(text) => !text.trim().is_empty(),
        _ => true,
    }
}

fn expected(key: &str) -> String {
    match Config::default().entries().into_iter().find(|(known, _)| known == key) {
        Some((_, Value::Number(_))) => {
            let range = range(key);
            format!("a whole number from {} to {}", range.start(), range.end())
        }
        _ => "a text that is not empty".to_owned(),
    }
}

/// TOML's numbers end where a signed one does.
fn range(key: &str) -> RangeInclusive<u64> {
    let schema = schema(key);
    let most = match schema["format"].as_str() {
        Some("uint32") => u64::from(u32::MAX),
        _ => i64::MAX as u64,
    };
    schema["minimum"].as_u64().unwrap_or(0)..=most
}

/// What a parser says of a type, in words that are not Rust's.
pub(super) fn plain(why: &str) -> String {
    let Some((before, expected)) = why.rsplit_once("expected ") else { return why.to_owned() };
    let word = match expected {
        "u32" | "u64" => "a whole number, 0 or more",
        "a string" => "a text",
        name if name.starts_with("struct ") => "a table",
        _ => return why.to_owned(),
    };
    format!("{before}expected {word}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_cannot_be_is_told_what_it_may_be() {
        let read = |key: &str, text| {
            let entries = Config::default().entries();
            let default = &entries.iter().find(|(known, _)| known == key).unwrap().1;
            typed(key, default, text).map_err(|expected| expected.replace("a whole number ", ""))
        };
        assert_eq!(read("log.keep_files", " 4294967295 "), Ok(Value::from(u32::MAX)));
        for wrong in ["4294967296", "-1", "1.5", "many", "99999999999999999999999"] {
            assert_eq!(read("log.keep_files", wrong), Err("from 0 to 4294967295".to_owned()));
        }
        let most = i64::MAX;
        assert_eq!(read("local.idle_seconds", "0"), Ok(Value::from(0)));
        assert_eq!(read("local.idle_seconds", "x"), Err(format!("from 0 to {most}")));
        assert_eq!(read("log.max_bytes", "0"), Err(format!("from 1 to {most}")));
        assert_eq!(read("checkpoint.snapshot_every", "0"), Err(format!("from 1 to {most}")));
        assert_eq!(read("model", " "), Err("a text that is not empty".to_owned()));
    }

    #[test]
    fn a_parsers_words_are_put_plainly() {
        for (said, plainly) in [
            ("invalid type: string \"x\", expected u64", "a whole number, 0 or more"),
            ("invalid type: integer `5`, expected struct Log", "a table"),
            ("invalid type: integer `5`, expected a string", "a text"),
        ] {
            assert!(plain(said).ends_with(&format!("expected {plainly}")), "{}", plain(said));
        }
        assert_eq!(plain("duplicate key"), "duplicate key");
    }
}
