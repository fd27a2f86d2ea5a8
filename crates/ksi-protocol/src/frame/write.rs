use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserializer, Serialize};
use serde_json::value::RawValue;

use super::request::Context;
use crate::Error;

/// Writes a request.
pub fn write_request(
    buf: &mut BytesMut,
    event: &str,
    data: &RawValue,
    correlation_id: Option<&RawValue>,
    context: Option<&Context>,
) {
    buf.put_slice(br#"{"event":"#);
    put_json(buf, event);
    buf.put_slice(br#","data":"#);
    put_raw(buf, data);
    if let Some(id) = correlation_id {
        buf.put_slice(br#","correlation_id":"#);
        put_raw(buf, id);
    }
    if let Some(context) = context {
        buf.put_slice(br#","context":"#);
        let start = buf.len();
        put_json(buf, context);
        on_one_line(&mut buf[start..]);
    }
    buf.put_slice(b"}\n");
}

/// Writes the answer to a request; `data` is an array when there are none or several answers.
pub fn write_reply(
    buf: &mut BytesMut,
    event: &str,
    data: &RawValue,
    correlation_id: Option<&RawValue>,
    timestamp_ms: u64,
) {
    buf.reserve(event.len() + data.get().len() + 96);
    buf.put_slice(br#"{"event":"#);
    put_json(buf, event);
    buf.put_slice(br#","data":"#);
    put_raw(buf, data);
    buf.put_slice(br#","count":"#);
    put_json(buf, &count(data));
    put_tail(buf, correlation_id, timestamp_ms);
}

/// Writes that a request failed, with as much of the request as could be read.
pub fn write_error(
    buf: &mut BytesMut,
    event: Option<&str>,
    error: &Error,
    correlation_id: Option<&RawValue>,
    timestamp_ms: u64,
) {
    buf.put_slice(br#"{"event":"#);
    put_json(buf, &event);
    buf.put_slice(br#","error":"#);
    put_json(buf, error);
    put_tail(buf, correlation_id, timestamp_ms);
}

/// A pushed event, serialized once for all who get it: only `subscription` is still missing.
#[derive(Debug, Clone)]
pub struct EventLine(Bytes);

impl EventLine {
    /// Serializes an event; facts have a `seq`, signals have none.
    pub fn new(event: &str, data: &RawValue, seq: Option<u64>, timestamp_ms: u64) -> Self {
        let mut buf = BytesMut::with_capacity(event.len() + data.get().len() + 80);
        buf.put_slice(br#"{"event":"#);
        put_json(&mut buf, event);
        buf.put_slice(br#","data":"#);
        put_raw(&mut buf, data);
        if let Some(seq) = seq {
            buf.put_slice(br#","seq":"#);
            put_json(&mut buf, &seq);
        }
        buf.put_slice(br#","timestamp":"#);
        put_timestamp(&mut buf, timestamp_ms);
        Self(buf.freeze())
    }

    /// Writes the whole line for the subscription with this id.
    pub fn write_to(&self, buf: &mut BytesMut, subscription: &str) {
        buf.reserve(self.0.len() + subscription.len() + 24);
        buf.put_slice(&self.0);
        buf.put_slice(br#","subscription":"#);
        put_json(buf, subscription);
        buf.put_slice(b"}\n");
    }

    /// How many bytes it holds.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

fn put_tail(buf: &mut BytesMut, correlation_id: Option<&RawValue>, timestamp_ms: u64) {
    buf.put_slice(br#","correlation_id":"#);
    put_raw(buf, correlation_id.unwrap_or(RawValue::NULL));
    buf.put_slice(br#","timestamp":"#);
    put_timestamp(buf, timestamp_ms);
    buf.put_slice(b"}\n");
}

/// Seconds, with the milliseconds as decimals.
fn put_timestamp(buf: &mut BytesMut, timestamp_ms: u64) {
    put_json(buf, &(timestamp_ms / 1000));
    let [hundreds, tens, ones] = [100, 10, 1].map(|unit| b'0' + (timestamp_ms / unit % 10) as u8);
    buf.put_slice(&[b'.', hundreds, tens, ones]);
}

pub(super) fn put_json(buf: &mut BytesMut, value: &(impl Serialize + ?Sized)) {
    let written = serde_json::to_writer(buf.writer(), value);
    written.expect("a growing buffer takes what serializes, and these shapes always do");
}

pub(super) fn put_raw(buf: &mut BytesMut, raw: &RawValue) {
    let start = buf.len();
    buf.put_slice(raw.get().as_bytes());
    on_one_line(&mut buf[start..]);
}

/// JSON that somebody laid out over several lines would end our line too early. Inside strings
/// newlines are always escaped, so each one found is white space.
fn on_one_line(json: &mut [u8]) {
    let mut rest = json;
    while let Some(at) = memchr::memchr(b'\n', rest) {
        rest[at] = b' ';
        rest = &mut rest[at + 1..];
    }
}

/// How many answers there are.
fn count(data: &RawValue) -> usize {
    if !data.get().starts_with('[') {
        return 1;
    }
    let mut parser = serde_json::Deserializer::from_str(data.get());
    parser.deserialize_seq(Count).unwrap_or(0)
}

struct Count;

impl<'a> Visitor<'a> for Count {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut items: A) -> Result<usize, A::Error> {
        let mut count = 0;
        while items.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::{Message, Request};

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).unwrap()
    }

    fn written(write: impl FnOnce(&mut BytesMut)) -> String {
        let mut buf = BytesMut::new();
        write(&mut buf);
        String::from_utf8(buf.to_vec()).unwrap()
    }

    fn reply(data: &str) -> String {
        written(|buf| write_reply(buf, "a:b", &raw(data), Some(&raw("[1]")), 1_782_864_000_123))
    }

    #[test]
    fn a_reply_has_the_five_keys() {
        assert_eq!(
            reply(r#"{"k":1}"#),
            "{\"event\":\"a:b\",\"data\":{\"k\":1},\"count\":1,\"correlation_id\":[1],\
             \"timestamp\":1782864000.123}\n"
        );
        let without = written(|buf| write_reply(buf, "a:b", &raw("{}"), None, 7));
        assert!(without.ends_with(",\"correlation_id\":null,\"timestamp\":0.007}\n"), "{without}");
    }

    #[test]
    fn the_count_is_the_number_of_answers() {
        for (data, count) in [("{}", 1), ("[]", 0), ("[[1,2]]", 1), (r#"[{},{"a":[1]},"],["]"#, 3)]
        {
            assert!(reply(data).contains(&format!(r#","count":{count},"#)), "{data}");
        }
    }

    #[test]
    fn an_error_says_what_it_answers() {
        let error = Error::not_found("no agent `x`");
        assert_eq!(
            written(|buf| write_error(buf, Some("a:b"), &error, Some(&raw("\"c\"")), 1500)),
            "{\"event\":\"a:b\",\"error\":{\"code\":\"not_found\",\"message\":\"no agent `x`\",\
             \"retryable\":false},\"correlation_id\":\"c\",\"timestamp\":1.500}\n"
        );
        let unknown = written(|buf| write_error(buf, None, &error, None, 0));
        assert!(unknown.starts_with(r#"{"event":null,"error":{"#), "{unknown}");
        assert!(unknown.ends_with("\"correlation_id\":null,\"timestamp\":0.000}\n"), "{unknown}");
    }

    #[test]
    fn a_pushed_event_gets_its_subscription_when_it_is_written() {
        let fact = EventLine::new("a:b", &raw(r#"{"k":1}"#), Some(121), 1000);
        let signal = EventLine::new("a:c", &raw("{}"), None, 1001);
        let lines = written(|buf| {
            fact.write_to(buf, "s1");
            fact.write_to(buf, "s2");
            signal.write_to(buf, "se\"nder");
        });
        assert_eq!(
            lines,
            "{\"event\":\"a:b\",\"data\":{\"k\":1},\"seq\":121,\"timestamp\":1.000,\"subscription\":\"s1\"}\n\
             {\"event\":\"a:b\",\"data\":{\"k\":1},\"seq\":121,\"timestamp\":1.000,\"subscription\":\"s2\"}\n\
             {\"event\":\"a:c\",\"data\":{},\"timestamp\":1.001,\"subscription\":\"se\\\"nder\"}\n"
        );
        assert!(fact.len() > 50 && fact.len() < lines.len() / 3, "{}", fact.len());
    }

    #[test]
    fn json_laid_out_over_lines_stays_on_one() {
        let laid_out = "{\n  \"k\": [\n    \"a\\nb\"\n  ]\n}";
        let line = reply(laid_out);
        assert_eq!(line.matches('\n').count(), 1);
        let Message::Reply(reply) = Message::parse(line.trim_end().as_bytes()).unwrap() else {
            panic!("{line} is no reply");
        };
        let data: serde_json::Value = serde_json::from_str(reply.data.get()).unwrap();
        assert_eq!(data, json!({"k": ["a\nb"]}));
        let context = Context { chain: Some(raw("[\n1]")), ..Context::default() };
        let request = |buf: &mut _| write_request(buf, "a:b", &raw("{\n}"), None, Some(&context));
        assert_eq!(written(request).matches('\n').count(), 1);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            event in "[a-zé\"]{1,5}:[a-z\\\\]{1,5}",
            text in ".*",
            seq in any::<Option<u64>>(),
            ms in 0..4_000_000_000_000_u64,
        ) {
            let data = raw(&json!({ "text": text }).to_string());
            let id = raw(&json!([text]).to_string());
            let line = written(|buf| write_request(buf, &event, &data, Some(&id), None));
            let request = Request::parse(line.trim_end_matches('\n').as_bytes()).unwrap();
            prop_assert_eq!(&request.event, &event);
            prop_assert_eq!(request.data(), data.get());
            let echoed = request.correlation_id.as_deref().map(RawValue::get);
            prop_assert_eq!(echoed, Some(id.get()));

            let line = written(|buf| EventLine::new(&event, &data, seq, ms).write_to(buf, "s1"));
            prop_assert_eq!(line.matches('\n').count(), 1);
            let Message::Pushed(pushed) = Message::parse(line.as_bytes()).unwrap() else {
                return Err(TestCaseError::fail("not a pushed event"));
            };
            prop_assert_eq!((&pushed.event, pushed.seq), (&event, seq));
            prop_assert_eq!(pushed.data.get(), data.get());
            prop_assert_eq!((pushed.timestamp * 1000.0).round() as u64, ms);
        }
    }
}
