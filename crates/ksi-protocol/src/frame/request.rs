use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::fields::{Fields, bad_json, too_deep};
use super::number::too_large;
use crate::{Error, Result, check_event_name};

/// What a client sends: an event and its data.
#[derive(Debug, Clone)]
pub struct Request {
    /// The event's name, `noun:verb`.
    pub event: String,
    /// An object; none stands for `{}`.
    pub data: Option<Box<RawValue>>,
    /// Any JSON; the reply carries it unchanged. Requests without one are answered in order.
    pub correlation_id: Option<Box<RawValue>>,
    /// What else the caller says about this request.
    pub context: Option<Context>,
}

/// What a caller may say about a request besides its data.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Context {
    /// Proves who asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// How long the caller waits, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Two requests with the same key are one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// The caller's trace, in W3C form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Through whom the request came; opaque to clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chain: Option<Box<RawValue>>,
    /// The call that the sender is answering, such as `k7`: the request is made as its caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call: Option<String>,
}

/// A line that is no request, and what could still be read of it, for the answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{error}")]
pub struct Rejected {
    /// What is wrong with the line.
    pub error: Error,
    /// The event's name, though it may be a bad one.
    pub event: Option<String>,
    /// The correlation id.
    pub correlation_id: Option<Box<RawValue>>,
}

impl Request {
    /// Reads one line.
    pub fn parse(line: &[u8]) -> Result<Self, Box<Rejected>> {
        let mut fields = Fields::none(["event", "data", "correlation_id", "context"]);
        read(line, &mut fields).and_then(|()| Self::build(&fields)).map_err(|error| {
            let event = fields.get("event").and_then(|raw| serde_json::from_str(raw.get()).ok());
            let correlation_id = fields.get("correlation_id");
            let echoed = correlation_id.filter(|raw| too_deep(raw.get()).is_none());
            Box::new(Rejected { error, event, correlation_id: echoed.map(ToOwned::to_owned) })
        })
    }

    /// The text of `data`, `{}` when there is none.
    pub fn data(&self) -> &str {
        self.data.as_deref().map_or("{}", RawValue::get)
    }

    fn build(fields: &Fields<'_, 4>) -> Result<Self> {
        let event = fields.get("event");
        let event = match event.and_then(plain_text) {
            Some(plain) => Some(plain.to_owned()),
            None => typed::<String>(event, "event", "a string")?,
        };
        let Some(event) = event else {
            return Err(Error::bad_params("`event` is missing")
                .hint(r#"send {"event":"system:discover"} to see what there is"#));
        };
        check_event_name(&event)?;
        let data = fields.get("data");
        if data.is_some_and(|data| !data.get().starts_with('{')) {
            return Err(Error::bad_params("`data` must be an object"));
        }
        data.map_or(Ok(()), can_be_read)?;
        Ok(Self {
            event,
            data: data.map(ToOwned::to_owned),
            correlation_id: fields.get("correlation_id").map(ToOwned::to_owned),
            context: fields.get("context").map(Context::parse).transpose()?,
        })
    }
}

impl Context {
    fn parse(raw: &RawValue) -> Result<Self> {
        if !raw.get().starts_with('{') {
            return Err(Error::bad_params("`context` must be an object"));
        }
        let names = ["token", "timeout_ms", "idempotency_key", "traceparent", "chain", "call"];
        let mut fields = Fields::none(names);
        fields.read(raw.get())?;
        let text = |name| typed(fields.get(name), name, "a string");
        let timeout = fields.get("timeout_ms");
        Ok(Self {
            token: text("token")?,
            timeout_ms: typed(timeout, "timeout_ms", "a whole number of milliseconds")?,
            idempotency_key: text("idempotency_key")?,
            traceparent: text("traceparent")?,
            chain: fields.get("chain").map(ToOwned::to_owned),
            call: text("call")?,
        })
    }
}

/// Reads the fields; when it fails, they hold what stands before the fault.
pub(super) fn read<'a, const N: usize>(line: &'a [u8], fields: &mut Fields<'a, N>) -> Result<()> {
    let text = std::str::from_utf8(line).map_err(|error| {
        let valid = error.valid_up_to();
        let before = line.get(..valid).and_then(|before| std::str::from_utf8(before).ok());
        // This is broken JSON, but its first keys may say who is to be told.
        let _ = fields.read(before.unwrap_or_default());
        bad_json(format!("the line is not UTF-8 at line 1 column {}", valid + 1))
    })?;
    fields.read(text)?;
    let Some(at) = too_deep(text) else { return Ok(()) };
    Err(bad_json(format!("the line nests too deeply at line 1 column {}", at + 1)))
}

/// What a string without escapes says, without a parser.
pub fn plain_text(raw: &RawValue) -> Option<&str> {
    let text = raw.get().strip_prefix('"')?.strip_suffix('"')?;
    memchr::memchr(b'\\', text.as_bytes()).is_none().then_some(text)
}

pub(super) fn typed<T: DeserializeOwned>(
    raw: Option<&RawValue>,
    name: &str,
    expected: &str,
) -> Result<Option<T>> {
    let Some(raw) = raw else { return Ok(None) };
    let value = serde_json::from_str(raw.get());
    value.map(Some).map_err(|_| Error::bad_params(format!("`{name}` must be {expected}")))
}

/// Whether everybody who reads these numbers reads the same.
fn can_be_read(data: &RawValue) -> Result<()> {
    let Some(number) = too_large(data.get()) else { return Ok(()) };
    let start: String = number.chars().take(24).collect();
    let ellipsis = if start.len() < number.len() { "…" } else { "" };
    Err(Error::bad_params(format!("the number {start}{ellipsis} is larger than any double"))
        .at("data")
        .hint("send it as a string"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::MAX_DEPTH;
    use super::*;
    use crate::Code;

    fn parse(line: &str) -> Request {
        Request::parse(line.as_bytes()).unwrap()
    }

    fn rejected(line: impl AsRef<[u8]>) -> Rejected {
        *Request::parse(line.as_ref()).unwrap_err()
    }

    fn correlation(rejected: &Rejected) -> Option<&str> {
        rejected.correlation_id.as_deref().map(RawValue::get)
    }

    #[test]
    fn a_request_is_read_whole() {
        let request = parse(
            r#"{"correlation_id":{"a":[1, "x"]},"event":"a:b","data":{"k":1.50},"new":[{}],
            "context":{"token":"t","timeout_ms":5,"idempotency_key":"i","traceparent":"p","chain":[1],"more":2}}"#,
        );
        assert_eq!(request.event, "a:b");
        assert_eq!(request.data(), r#"{"k":1.50}"#);
        assert_eq!(request.correlation_id.unwrap().get(), r#"{"a":[1, "x"]}"#);
        let context = request.context.unwrap();
        assert_eq!(context.token.as_deref(), Some("t"));
        assert_eq!(context.timeout_ms, Some(5));
        assert_eq!(context.idempotency_key.as_deref(), Some("i"));
        assert_eq!(context.traceparent.as_deref(), Some("p"));
        assert_eq!(context.chain.unwrap().get(), "[1]");
    }

    #[test]
    fn data_that_is_missing_or_null_is_an_empty_object() {
        for line in [r#"{"event":"a:b"}"#, r#"{"event":"a:b","data":null,"correlation_id":null}"#] {
            let request = parse(line);
            assert_eq!(request.data(), "{}");
            assert!(request.correlation_id.is_none() && request.context.is_none());
        }
    }

    #[test]
    fn what_is_no_json_object_is_bad_json_with_its_position() {
        let lines: [&[u8]; 11] = [
            b"[]",
            b"5",
            b"1e999",
            b"\"text\"",
            b"null",
            b"{",
            b"{]",
            b"{\"event\":\"a:b\",}",
            b"{\"event\":\"a:b\"} {}",
            b"{\"event\":\"a:\x01b\"}",
            b"\xff\xfe",
        ];
        for line in lines {
            let error = rejected(line).error;
            assert_eq!(error.code, Code::BadJson, "{}", line.escape_ascii());
            let placed = error.message.contains("column") || error.message.contains("must be");
            assert!(placed, "{}: {error}", line.escape_ascii());
        }
    }

    #[test]
    fn the_position_is_that_of_the_fault() {
        assert!(rejected(r#"{"event":x}"#).error.message.ends_with("line 1 column 10"));
        assert!(rejected(b"{\"a\":\"\xff\"}").error.message.ends_with("line 1 column 7"));
        let twice = rejected(r#"{"event":"a:b","event":"c:d"}"#).error;
        assert!(twice.message.ends_with("line 1 column 24"), "{twice}");
    }

    #[test]
    fn what_stands_before_the_fault_is_salvaged() {
        for rest in [r#""data":{"#, r#""data":{"k":[1,}}"#, r#""data":nul}"#] {
            let rejected = rejected(format!(r#"{{"event":"a:b","correlation_id":[7],{rest}"#));
            assert_eq!(rejected.event.as_deref(), Some("a:b"));
            assert_eq!(correlation(&rejected), Some("[7]"));
        }
        let rejected =
            rejected(b"{\"event\":\"a:b\",\"correlation_id\":7,\"data\":{\"k\":\"\xff\"}}");
        assert_eq!(rejected.error.code, Code::BadJson);
        assert_eq!((rejected.event.as_deref(), correlation(&rejected)), (Some("a:b"), Some("7")));
    }

    #[test]
    fn a_key_that_stands_there_twice_is_bad_json_and_the_rest_is_salvaged() {
        let rejected = rejected(r#"{"event":"a:b","\u0065vent":"c:d","correlation_id":7}"#);
        assert_eq!(rejected.error.code, Code::BadJson);
        assert_eq!((rejected.event.as_deref(), correlation(&rejected)), (Some("a:b"), Some("7")));
        let line = r#"{"event":"a:b","context":{"token":"x","token":"y"}}"#;
        assert_eq!(super::tests::rejected(line).error.code, Code::BadJson);
    }

    #[test]
    fn a_field_of_the_wrong_type_is_bad_params_and_names_the_field() {
        let cases = [
            (r#""data":{}"#, "`event` is missing"),
            (r#""event":null"#, "`event` is missing"),
            (r#""event":5"#, "`event` must be a string"),
            (r#""event":"""#, "not an event name"),
            (r#""event":"health""#, "not an event name"),
            (r#""event":"a:*""#, "`*`"),
            (r#""event":"a:b","data":[1]"#, "`data` must be an object"),
            (r#""event":"a:b","data":"x""#, "`data` must be an object"),
            (r#""event":"a:b","context":[]"#, "`context` must be an object"),
            (r#""event":"a:b","context":{"token":1}"#, "`token` must be a string"),
            (r#""event":"a:b","context":{"timeout_ms":-1}"#, "`timeout_ms` must be a whole"),
            (r#""event":"a:b","context":{"timeout_ms":1e999}"#, "`timeout_ms` must be a whole"),
        ];
        for (fields, expected) in cases {
            let rejected = rejected(format!(r#"{{{fields},"correlation_id":7}}"#));
            assert_eq!(rejected.error.code, Code::BadParams, "{fields}");
            assert!(rejected.error.message.contains(expected), "{fields}: {}", rejected.error);
            assert_eq!(correlation(&rejected), Some("7"), "{fields}");
        }
    }

    #[test]
    fn deep_nesting_is_bad_json_wherever_it_stands() {
        let (open, close) = ("[".repeat(100_000), "]".repeat(100_000));
        for text in [open.clone(), format!("{open}{close}"), "{\"a\":".repeat(100_000)] {
            assert_eq!(rejected(&text).error.code, Code::BadJson);
        }
        for key in ["data", "context", "correlation_id", "other"] {
            let line = format!(r#"{{"event":"a:b","{key}":{open}{close}}}"#);
            let rejected = rejected(&line);
            assert_eq!(rejected.error.code, Code::BadJson, "{key}");
            assert!(rejected.error.message.contains("too deeply at line 1 column"), "{key}");
            assert_eq!(rejected.event.as_deref(), Some("a:b"), "{key}");
            assert_eq!(correlation(&rejected), None, "{key}: it would break who reads the answer");
        }
    }

    #[test]
    fn the_allowed_depth_is_exact_and_brackets_in_strings_do_not_count() {
        let nested = |levels: usize| {
            let (open, close) = ("[".repeat(levels), "]".repeat(levels));
            format!(r#"{{"event":"a:b","correlation_id":{open}{close}}}"#)
        };
        assert!(Request::parse(nested(MAX_DEPTH - 1).as_bytes()).is_ok());
        assert!(Request::parse(nested(MAX_DEPTH).as_bytes()).is_err());
        let text = r#"\"[{\\"#.repeat(1000);
        assert!(parse(&format!(r#"{{"event":"a:b","data":{{"k":"{text}"}}}}"#)).data.is_some());
    }

    #[test]
    fn huge_numbers_are_kept_as_they_stand_if_a_double_can_hold_them() {
        let request = parse(
            r#"{"event":"a:b","data":{"n":98765432109876543210},"correlation_id":123456789012345678901234567890}"#,
        );
        assert_eq!(request.data(), r#"{"n":98765432109876543210}"#);
        let error = rejected(r#"{"event":"a:b","data":{"n":[1e999]}}"#).error;
        assert_eq!((error.code, error.path.as_deref()), (Code::BadParams, Some("data")));
        let digits = "9".repeat(400);
        let error = rejected(format!(r#"{{"event":"a:b","data":{{"n":{digits}}}}}"#)).error;
        assert!(error.message.contains("the number 999999999999999999999999… is"), "{error}");
        assert_eq!(request.correlation_id.unwrap().get(), "123456789012345678901234567890");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            // Random bytes are never a request, so each must be an error with a sentence.
            prop_assert!(!rejected(&line).error.message.is_empty());
        }

        #[test]
        fn a_damaged_request_is_answered_or_refused_but_never_misread(
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut line = br#"{"event":"a:b","correlation_id":7,"data":{"k":"v"}}"#.to_vec();
            let at = at.index(line.len());
            line[at] = byte;
            match Request::parse(&line) {
                Ok(request) => prop_assert!(check_event_name(&request.event).is_ok()),
                Err(rejected) => prop_assert!(
                    matches!(rejected.error.code, Code::BadJson | Code::BadParams)
                ),
            }
        }
    }
}
