//! What an event is: its shape as a schema, and its data as a type.

use std::collections::BTreeMap;

use schemars::{JsonSchema, schema_for};
use serde::{
    Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_json::{Value, value::RawValue};

use crate::did_you_mean;
use crate::error::{Error, Result};

/// An event's `data`, as it stands on the wire.
pub type Raw = Box<RawValue>;

/// What an event is to those who send or receive it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Answered by one plugin.
    Request,
    /// In the journal.
    Fact,
    /// Passing news.
    Signal,
}

/// What `system:discover` says of one event.
#[derive(Debug, Clone)]
pub struct EventDoc {
    /// Its name.
    pub event: &'static str,
    /// Whose it is.
    pub plugin: &'static str,
    /// What it is.
    pub kind: Kind,
    /// One sentence.
    pub summary: String,
    /// The JSON schema of its `data`.
    pub params: Value,
    /// The JSON schema of the reply; null for facts and signals.
    pub reply: Value,
}

impl EventDoc {
    /// An event whose `data` is a `P`; that type's doc comment is the summary.
    pub fn new<P: JsonSchema>(plugin: &'static str, event: &'static str, kind: Kind) -> Self {
        let params = schema_for!(P).to_value();
        let summary = params.get("description").and_then(Value::as_str).unwrap_or_default();
        EventDoc { event, plugin, kind, summary: summary.to_owned(), params, reply: Value::Null }
    }

    /// Its reply is an `R`.
    pub fn replies<R: JsonSchema>(mut self) -> Self {
        self.reply = schema_for!(R).to_value();
        self
    }
}

/// Reads an event's `data`; an error names the path and what was expected there.
pub fn parse_data<P: DeserializeOwned>(data: &RawValue) -> Result<P> {
    // Keeping track of the path costs half as much again: only a wrong one is read so.
    if let Ok(params) = serde_json::from_str(data.get()) {
        return Ok(params);
    }
    let mut json = serde_json::Deserializer::from_str(data.get());
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let why = error.into_inner().to_string();
        let why = why.split(" at line ").next().unwrap_or_default();
        let error = Error::bad_params(why);
        match field(why) {
            Some(name) if path == "." => error.at(name).hint(meant(name, data, why)),
            Some(name) => error.at(format!("{path}.{name}")).hint(SHAPE),
            None => error.at(path).hint(SHAPE),
        }
    })
}

const SHAPE: &str = "`ksi discover EVENT` shows the shape it wants";
const MISSING: &str = "missing field `";

/// The field that is missing, or that stands there twice.
fn field(why: &str) -> Option<&str> {
    let field = why.strip_prefix(MISSING).or_else(|| why.strip_prefix("duplicate field `"))?;
    field.strip_suffix('`')
}

/// What to try: a field that is missing may be there under a mistyped name.
fn meant(name: &str, data: &RawValue, why: &str) -> String {
    let given: BTreeMap<String, IgnoredAny> = serde_json::from_str(data.get()).unwrap_or_default();
    match did_you_mean(name, given.keys().map(String::as_str)) {
        Some(given) if why.starts_with(MISSING) => {
            format!("`{given}` is not known: did you mean `{name}`?")
        }
        _ => SHAPE.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    struct Get {
        #[serde(rename = "key")]
        _key: String,
        #[serde(rename = "of")]
        _of: Option<Box<Get>>,
    }

    #[test]
    fn a_field_that_is_missing_or_there_twice_is_the_path_and_a_mistyped_one_the_hint() {
        for (data, path, hint) in [
            (r#"{}"#, "key", SHAPE),
            (r#"{"kye":"a"}"#, "key", "`kye` is not known: did you mean `key`?"),
            (r#"{"key":"a","key":"b"}"#, "key", SHAPE),
            (r#"{"key":"a","of":{"kye":"b"}}"#, "of.key", SHAPE),
            (r#"{"key":7}"#, "key", SHAPE),
        ] {
            let data: &RawValue = serde_json::from_str(data).unwrap();
            let error = parse_data::<Get>(data).unwrap_err();
            assert_eq!(error.path.as_deref(), Some(path), "{data}");
            assert_eq!(error.hint.as_deref(), Some(hint), "{data}");
        }
    }
}
