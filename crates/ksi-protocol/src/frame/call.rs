//! Calls: what the daemon asks of a plugin in another process, and what that one replies.

use bytes::{BufMut, BytesMut};
use serde_json::value::RawValue;

use super::{
    fields::Fields,
    request::{read, typed},
    write::{put_json, put_raw},
};
use crate::{Error, Result};

/// So long may a plugin have to answer a call, and so much more may it ask for at once: an hour, in
/// milliseconds.
pub const LONGEST_CALL_MS: u64 = 3_600_000;

/// What a plugin says about a call.
#[derive(Debug, Clone)]
pub struct Answered {
    /// The call's number: `k7` is 7.
    pub call: u64,
    /// What it says.
    pub outcome: Outcome,
}

/// How a call went.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// This is the answer.
    Data(Box<RawValue>),
    /// It failed.
    Error(Error),
    /// It will take so long from now, in milliseconds.
    More(u64),
}

impl Answered {
    /// Reads a line that has `reply` and no `event`; none when it is another.
    pub fn parse(line: &[u8]) -> Option<Result<Self>> {
        let mut fields = Fields::none(["reply", "event", "data", "error", "more_ms"]);
        read(line, &mut fields).ok()?;
        let reply = fields.get("reply").filter(|_| fields.get("event").is_none())?;
        Some(Self::build(reply, &fields))
    }

    fn build(reply: &RawValue, fields: &Fields<'_, 5>) -> Result<Self> {
        let expected = "the name of a call, such as \"k7\"";
        let name: String = typed(Some(reply), "reply", expected)?.unwrap_or_default();
        let call = call_number(&name)
            .ok_or_else(|| Error::bad_params(format!("`reply` must be {expected}")))?;
        let (data, error) = (fields.get("data"), fields.get("error"));
        let more = typed(fields.get("more_ms"), "more_ms", "a whole number of milliseconds")?;
        let outcome = match (data, error, more) {
            (Some(data), None, None) => Outcome::Data(data.to_owned()),
            (None, Some(error), None) => {
                let expected = "an object with `code` and `message`";
                let error = typed(Some(error), "error", expected)?;
                Outcome::Error(error.unwrap_or_else(|| Error::internal("no error")))
            }
            (None, None, Some(more)) if more > LONGEST_CALL_MS => {
                let why = format!(
                    "`more_ms` can be at most {LONGEST_CALL_MS}; ask again when it is over"
                );
                return Err(Error::bad_params(why).at("more_ms"));
            }
            (None, None, Some(more)) => Outcome::More(more),
            (None, None, None) => Outcome::Data(RawValue::NULL.to_owned()),
            _ => {
                let why = "a reply has one of `data`, `error` and `more_ms`";
                return Err(Error::bad_params(why));
            }
        };
        Ok(Self { call, outcome })
    }
}

/// The number of a call from its name on the wire.
pub fn call_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix('k')?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// Writes a call: a request to a plugin, on behalf of this principal.
pub fn write_call(buf: &mut BytesMut, call: u64, event: &str, data: &RawValue, principal: &str) {
    buf.put_slice(br#"{"call":"#);
    put_json(buf, &format!("k{call}"));
    buf.put_slice(br#","event":"#);
    put_json(buf, event);
    buf.put_slice(br#","data":"#);
    put_raw(buf, data);
    buf.put_slice(br#","principal":"#);
    put_json(buf, principal);
    buf.put_slice(b"}\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Code;

    fn parse(line: &str) -> Option<Result<Answered>> {
        Answered::parse(line.as_bytes())
    }

    fn answered(line: &str) -> Answered {
        parse(line).expect("a reply").expect(line)
    }

    #[test]
    fn a_reply_has_data_or_an_error_or_asks_for_more_time() {
        let data = answered(r#"{"reply":"k7","data":[1]}"#);
        assert!(
            data.call == 7 && matches!(data.outcome, Outcome::Data(data) if data.get() == "[1]")
        );
        let nothing = answered(r#"{"reply":"k0"}"#).outcome;
        assert!(matches!(nothing, Outcome::Data(data) if data.get() == "null"));
        let line = r#"{"reply":"k1","error":{"code":"not_found","message":"no","new":1}}"#;
        assert!(matches!(answered(line).outcome, Outcome::Error(e) if e.code == Code::NotFound));
        let own = r#"{"reply":"k1","error":{"code":"tea_is_cold","message":"no"}}"#;
        assert!(matches!(answered(own).outcome, Outcome::Error(e) if e.code == Code::Internal));
        let more = answered(r#"{"reply":"k1","more_ms":5000}"#).outcome;
        assert!(matches!(more, Outcome::More(5000)));
    }

    #[test]
    fn what_is_no_reply_is_left_to_others_and_a_wrong_one_says_why() {
        for other in ["{}", "[]", "{", r#"{"event":"a:b","reply":"k1"}"#, r#"{"reply":null}"#] {
            assert!(parse(other).is_none(), "{other}");
        }
        for wrong in [
            r#"{"reply":7}"#,
            r#"{"reply":"7"}"#,
            r#"{"reply":"k-7"}"#,
            r#"{"reply":"k"}"#,
            r#"{"reply":"k99999999999999999999"}"#,
            r#"{"reply":"k7","data":1,"more_ms":1}"#,
            r#"{"reply":"k7","more_ms":-1}"#,
            r#"{"reply":"k7","more_ms":3600001}"#,
            r#"{"reply":"k7","error":"no"}"#,
        ] {
            assert_eq!(parse(wrong).unwrap().unwrap_err().code, Code::BadParams, "{wrong}");
        }
    }

    #[test]
    fn a_call_is_one_line() {
        let mut buf = BytesMut::new();
        let data = RawValue::from_string("{\n\"a\": 1}".to_owned()).unwrap();
        write_call(&mut buf, 7, "my:custom:event", &data, "operator");
        let line =
            r#"{"call":"k7","event":"my:custom:event","data":{ "a": 1},"principal":"operator"}"#;
        assert_eq!(&buf[..], format!("{line}\n").as_bytes());
        assert_eq!(call_number("k7"), Some(7));
    }
}
