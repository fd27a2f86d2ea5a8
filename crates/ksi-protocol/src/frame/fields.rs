use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::{Code, Error};

/// How deeply a request may nest.
///
/// Parsers give up at 128 levels; what is accepted here must still be readable after it was put
/// into a reply, a fact and an export.
pub const MAX_DEPTH: usize = 100;

/// The values of an object's known keys, not yet looked into; other keys are skipped.
///
/// When the text is broken, it holds what came before the fault.
pub(super) struct Fields<'a, const N: usize> {
    names: [&'static str; N],
    values: [Option<&'a RawValue>; N],
    duplicate: Option<(&'static str, &'a RawValue)>,
}

impl<'a, const N: usize> Fields<'a, N> {
    pub(super) fn none(names: [&'static str; N]) -> Self {
        Self { names, values: [None; N], duplicate: None }
    }

    /// Reads all of the text, which must be one object that names each of its known keys once.
    pub(super) fn read(&mut self, text: &'a str) -> Result<(), Error> {
        match text.bytes().find(|byte| !byte.is_ascii_whitespace()) {
            Some(b'{') => {}
            Some(other) => {
                let found = kind(other);
                return Err(bad_json(format!("the line must be a JSON object, not {found}")));
            }
            None => return Err(bad_json("the line is empty")),
        }
        let mut parser = serde_json::Deserializer::from_str(text);
        (&mut *self).deserialize(&mut parser).map_err(|error| broken(&error))?;
        parser.end().map_err(|error| broken(&error))?;
        let Some((name, value)) = self.duplicate else { return Ok(()) };
        // The value is a piece of the text, so its address is its position.
        let column = value.get().as_ptr().addr() - text.as_ptr().addr() + 1;
        Err(bad_json(format!("`{name}` stands there twice, again at line 1 column {column}")))
    }

    /// The value of a key; `null` counts as missing.
    pub(super) fn get(&self, name: &str) -> Option<&'a RawValue> {
        let index = self.names.iter().position(|known| *known == name)?;
        self.values[index].filter(|value| value.get() != "null")
    }
}

pub(super) fn bad_json(message: impl Into<String>) -> Error {
    Error::new(Code::BadJson, message).hint("send one JSON object per line, in UTF-8")
}

fn broken(error: &serde_json::Error) -> Error {
    bad_json(format!("the line is not valid JSON: {error}"))
}

fn kind(first: u8) -> &'static str {
    match first {
        b'[' => "an array",
        b'"' => "a string",
        b'-' | b'0'..=b'9' => "a number",
        _ => "something else",
    }
}

/// The position of the bracket that opens one level too many.
pub(super) fn too_deep(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    if memchr::memchr2_iter(b'[', b'{', bytes).take(MAX_DEPTH + 1).count() <= MAX_DEPTH {
        return None;
    }
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => at = end_of_string(bytes, at),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Some(at);
        }
        at += 1;
    }
    None
}

fn end_of_string(bytes: &[u8], quote: usize) -> usize {
    let mut at = quote + 1;
    while let Some(found) = bytes.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += found;
        if bytes[at] == b'"' {
            return at;
        }
        at += 2;
    }
    bytes.len()
}

impl<'a, const N: usize> DeserializeSeed<'a> for &mut Fields<'a, N> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, parser: D) -> Result<(), D::Error> {
        parser.deserialize_map(self)
    }
}

impl<'a, const N: usize> Visitor<'a> for &mut Fields<'a, N> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(known) = map.next_key_seed(Key(&self.names))? {
            let Some(index) = known else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let value = map.next_value::<&'a RawValue>()?;
            if self.values[index].is_none() {
                self.values[index] = Some(value);
            } else {
                self.duplicate.get_or_insert((self.names[index], value));
            }
        }
        Ok(())
    }
}

/// Finds a key among the names without copying it.
struct Key<'n>(&'n [&'static str]);

impl<'a> DeserializeSeed<'a> for Key<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'a>>(self, parser: D) -> Result<Self::Value, D::Error> {
        parser.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|name| *name == key))
    }
}
