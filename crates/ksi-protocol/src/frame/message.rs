use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::fields::{Fields, bad_json};
use crate::{Error, Result};

/// What the daemon sends to a client.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Message {
    /// A request was answered.
    Reply(Reply),
    /// A request failed.
    Failure {
        /// Why.
        error: Error,
        /// The request's event, where it could be read.
        event: Option<String>,
        /// The request's correlation id, where it could be read.
        correlation_id: Option<Box<RawValue>>,
    },
    /// Something happened that the client subscribed to, or that concerns it.
    Pushed(Pushed),
}

/// The answer to a request.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The request's event.
    pub event: String,
    /// An object, or an array when there are none or several answers.
    pub data: Box<RawValue>,
    /// How many answers there are.
    pub count: u64,
    /// The request's correlation id.
    pub correlation_id: Option<Box<RawValue>>,
    /// Seconds since 1970.
    pub timestamp: f64,
}

/// An event as a subscriber gets it.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// The event's name.
    pub event: String,
    /// An object.
    pub data: Box<RawValue>,
    /// A fact's place in the journal; signals have none.
    pub seq: Option<u64>,
    /// Seconds since 1970.
    pub timestamp: f64,
    /// The first of the connection's subscriptions that it matched, `sender` when it came unasked.
    pub subscription: String,
}

const NAMES: [&str; 8] =
    ["event", "data", "error", "count", "correlation_id", "seq", "timestamp", "subscription"];

impl Message {
    /// Reads one line.
    pub fn parse(line: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(line).map_err(|error| {
            bad_json(format!("the line is not UTF-8 at line 1 column {}", error.valid_up_to() + 1))
        })?;
        let mut fields = Fields::none(NAMES);
        fields.read(text)?;
        let correlation_id = || fields.get("correlation_id").map(ToOwned::to_owned);
        if fields.get("error").is_some() {
            return Ok(Self::Failure {
                error: required(&fields, "error")?,
                event: optional(&fields, "event")?,
                correlation_id: correlation_id(),
            });
        }
        let event = required(&fields, "event")?;
        let data = fields.get("data").unwrap_or(RawValue::NULL).to_owned();
        let timestamp = required(&fields, "timestamp")?;
        if let Some(subscription) = optional(&fields, "subscription")? {
            let seq = optional(&fields, "seq")?;
            return Ok(Self::Pushed(Pushed { event, data, seq, timestamp, subscription }));
        }
        let count = required(&fields, "count")?;
        let correlation_id = correlation_id();
        Ok(Self::Reply(Reply { event, data, count, correlation_id, timestamp }))
    }
}

fn required<T: DeserializeOwned>(fields: &Fields<'_, 8>, name: &str) -> Result<T> {
    optional(fields, name)?.ok_or_else(|| bad_json(format!("`{name}` is missing")))
}

fn optional<T: DeserializeOwned>(fields: &Fields<'_, 8>, name: &str) -> Result<Option<T>> {
    let Some(raw) = fields.get(name) else { return Ok(None) };
    let value = serde_json::from_str(raw.get());
    value.map(Some).map_err(|error| bad_json(format!("`{name}` cannot be read: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Code;

    fn parse(line: &str) -> Message {
        Message::parse(line.as_bytes()).unwrap()
    }

    #[test]
    fn a_reply_has_a_count() {
        let line =
            r#"{"event":"a:b","data":[{},{}],"count":2,"correlation_id":null,"timestamp":1.5}"#;
        let Message::Reply(reply) = parse(line) else { panic!("not a reply") };
        assert_eq!((reply.event.as_str(), reply.count, reply.timestamp), ("a:b", 2, 1.5));
        assert_eq!(reply.data.get(), "[{},{}]");
        assert!(reply.correlation_id.is_none());
    }

    #[test]
    fn a_failure_has_an_error() {
        let line = r#"{"event":null,"error":{"code":"bad_json","message":"m"},"correlation_id":3}"#;
        let Message::Failure { error, event, correlation_id } = parse(line) else {
            panic!("not a failure");
        };
        assert_eq!((error.code, error.message.as_str()), (Code::BadJson, "m"));
        assert_eq!(event, None);
        assert_eq!(correlation_id.unwrap().get(), "3");
    }

    #[test]
    fn a_pushed_event_has_a_subscription() {
        let line = r#"{"event":"a:b","data":{},"seq":9,"timestamp":1,"subscription":"s1"}"#;
        let Message::Pushed(pushed) = parse(line) else { panic!("not pushed") };
        assert_eq!((pushed.seq, pushed.subscription.as_str()), (Some(9), "s1"));
    }

    #[test]
    fn anything_else_is_an_error() {
        let deep = format!(r#"{{"event":{}"#, "[".repeat(100_000));
        for line in ["", "7", "{}", "{\"call\":\"k7\"}", r#"{"event":"a:b","timestamp":1}"#, &deep]
        {
            assert_eq!(Message::parse(line.as_bytes()).unwrap_err().code, Code::BadJson);
        }
        assert_eq!(Message::parse(b"{\"event\":\"\xff\"}").unwrap_err().code, Code::BadJson);
    }
}
