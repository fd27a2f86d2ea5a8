//! Long texts: kept once each, however many facts and documents say them.
//!
//! A string of more than 4 KiB in a fact's or document's JSON is cut out of it on disk and put
//! back when it is read. Where it stood is told beside the JSON, never in it: no text that somebody
//! sends can be taken for such a place. The chain's checks are of the whole JSON.

use std::borrow::Cow;

use memchr::{memchr, memchr2};
use rusqlite::{Connection, OptionalExtension};
use sha2::{Digest, Sha256};

/// Texts of more bytes than these are kept once.
const LONG: usize = 4 << 10;

/// Half of a SHA-256: nobody finds two texts with the same one.
type Hash = [u8; 16];

/// Where a text was cut out, and which: the offset in what is left, then the hash.
const PLACE: usize = 4 + 16;

/// JSON without its long texts.
pub(crate) struct Cut {
    pub(crate) rest: String,
    /// The places, one behind the other.
    pub(crate) places: Vec<u8>,
}

/// Cuts the long texts out of this JSON and keeps them; none when there are none.
pub(crate) fn keep(connection: &Connection, json: &str) -> rusqlite::Result<Option<Cut>> {
    cut(json, |hash, text| {
        const AGAIN: &str = "UPDATE blob_uses SET uses = uses + 1 WHERE hash = ?";
        const TEXT: &str = "INSERT INTO blobs (data) VALUES (?)";
        const FIRST: &str = "INSERT INTO blob_uses (hash, id, uses) VALUES (?, ?, 1)";
        if connection.prepare_cached(AGAIN)?.execute([hash])? == 0 {
            connection.prepare_cached(TEXT)?.execute([text])?;
            let id = connection.last_insert_rowid();
            connection.prepare_cached(FIRST)?.execute((hash, id))?;
        }
        Ok(())
    })
}

/// The whole JSON; none when a text is not there, or no place of this JSON.
pub(crate) fn whole<'a>(
    connection: &Connection,
    rest: &'a str,
    places: Option<&[u8]>,
) -> rusqlite::Result<Option<Cow<'a, str>>> {
    const TEXT: &str = "SELECT data FROM blobs JOIN blob_uses USING (id) WHERE hash = ?";
    let Some(places) = places else { return Ok(Some(rest.into())) };
    join(rest, places, |hash| {
        connection.prepare_cached(TEXT)?.query_row([hash], |row| row.get(0)).optional()
    })
    .map(|whole| whole.map(Cow::Owned))
}

/// What said these texts goes; who was the last to say one takes it along.
pub(crate) fn release(connection: &Connection, places: &[u8]) -> rusqlite::Result<()> {
    const LESS: &str = "UPDATE blob_uses SET uses = uses - 1 WHERE hash = ? RETURNING uses, id";
    for place in places.chunks_exact(PLACE) {
        let hash = &place[4..];
        let left = connection
            .prepare_cached(LESS)?
            .query_row([hash], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))
            .optional()?;
        let Some((..=0, id)) = left else { continue };
        connection.prepare_cached("DELETE FROM blobs WHERE id = ?")?.execute([id])?;
        connection.prepare_cached("DELETE FROM blob_uses WHERE hash = ?")?.execute([hash])?;
    }
    Ok(())
}

/// Whether every text is what its hash says.
pub(crate) fn verify(connection: &Connection) -> rusqlite::Result<bool> {
    const ALL: &str = "SELECT hash, data FROM blob_uses LEFT JOIN blobs USING (id)";
    let mut statement = connection.prepare(ALL)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (kept, text) = (row.get_ref(0)?.as_blob(), row.get_ref(1)?.as_str());
        let (Ok(kept), Ok(text)) = (kept, text) else { return Ok(false) };
        if kept != hash(text) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn hash(text: &str) -> Hash {
    let mut hash = Hash::default();
    hash.copy_from_slice(&Sha256::digest(text)[..PLACE - 4]);
    hash
}

/// Cuts; each text goes as it stands between its quotation marks.
fn cut(
    json: &str,
    mut keep: impl FnMut(Hash, &str) -> rusqlite::Result<()>,
) -> rusqlite::Result<Option<Cut>> {
    // Offsets have four bytes; who has more to say than that says it uncut.
    if json.len() <= LONG || u32::try_from(json.len()).is_err() {
        return Ok(None);
    }
    let (mut cut, mut copied) = (Cut { rest: String::new(), places: Vec::new() }, 0);
    for (from, to) in strings(json) {
        if to - from <= LONG {
            continue;
        }
        let text = &json[from..to];
        let hash = hash(text);
        keep(hash, text)?;
        cut.rest.push_str(&json[copied..from]);
        cut.places.extend_from_slice(&(cut.rest.len() as u32).to_le_bytes());
        cut.places.extend_from_slice(&hash);
        copied = to;
    }
    cut.rest.push_str(&json[copied..]);
    Ok((copied > 0).then_some(cut))
}

/// From where to where the strings of this JSON are, without their quotation marks.
fn strings(json: &str) -> impl Iterator<Item = (usize, usize)> {
    let bytes = json.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        let from = at + memchr(b'"', &bytes[at..])? + 1;
        let mut to = from;
        loop {
            to += memchr2(b'"', b'\\', &bytes[to..])?;
            if bytes[to] == b'"' {
                break;
            }
            // What is escaped is one byte at least, and no byte of another character.
            to = (to + 2).min(bytes.len());
        }
        at = to + 1;
        Some((from, to))
    })
}

fn join(
    rest: &str,
    places: &[u8],
    mut text: impl FnMut(&[u8]) -> rusqlite::Result<Option<String>>,
) -> rusqlite::Result<Option<String>> {
    let (mut whole, mut copied) = (String::new(), 0);
    for place in places.chunks(PLACE) {
        let Some((offset, hash)) = place.split_first_chunk::<4>() else { return Ok(None) };
        let offset = u32::from_le_bytes(*offset) as usize;
        let (Some(before), Some(text)) = (rest.get(copied..offset), text(hash)?) else {
            return Ok(None);
        };
        whole.push_str(before);
        whole.push_str(&text);
        copied = offset;
    }
    whole.push_str(&rest[copied..]);
    Ok(Some(whole))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// The JSON as it is on disk, and the texts beside it.
    fn kept(json: &str) -> (Option<Cut>, HashMap<Vec<u8>, String>) {
        let mut texts = HashMap::new();
        let cut = cut(json, |hash, text| {
            texts.insert(hash.to_vec(), text.to_owned());
            Ok(())
        });
        (cut.unwrap(), texts)
    }

    fn read_back(cut: &Cut, texts: &HashMap<Vec<u8>, String>) -> Option<String> {
        join(&cut.rest, &cut.places, |hash| Ok(texts.get(hash).cloned())).unwrap()
    }

    fn values() -> impl Strategy<Value = Value> {
        let texts = prop_oneof![
            any::<String>(),
            ("[a\"\\\\\n\u{e9}\u{1f600}]{1,9}", LONG - 9..LONG + 9)
                .prop_map(|(text, bytes)| text.repeat(bytes / text.len() + 1)),
        ];
        let leaf =
            prop_oneof![texts.clone().prop_map(Value::from), any::<i64>().prop_map(Value::from)];
        leaf.prop_recursive(3, 12, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(texts.clone(), inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_is_cut_is_put_back_to_the_byte(value in values()) {
            let json = value.to_string();
            let (cut, texts) = kept(&json);
            prop_assert!(texts.values().all(|text| text.len() > LONG));
            match cut {
                Some(cut) => {
                    prop_assert_eq!(read_back(&cut, &texts), Some(json));
                    let short: Value = serde_json::from_str(&cut.rest).unwrap();
                    prop_assert!(kept(&short.to_string()).0.is_none());
                }
                None => prop_assert!(texts.is_empty()),
            }
        }

        #[test]
        fn places_that_are_none_are_refused(
            rest in "[a\u{e9}]{0,9}", places in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            let read = join(&rest, &places, |_| Ok(Some("x".to_owned()))).unwrap();
            let whole = places.is_empty() || places.len() % PLACE == 0;
            prop_assert!(whole || read.is_none() || places.len() % PLACE >= 4);
        }
    }

    #[test]
    fn a_long_text_is_kept_once_and_short_ones_stay() {
        let long = "é\"\\".repeat(LONG);
        let json = json!({ "a": long, "b": [long, "short"], "c": "x".repeat(LONG) }).to_string();
        let (cut, texts) = kept(&json);
        let cut = cut.unwrap();
        assert_eq!((texts.len(), cut.places.len()), (1, 2 * PLACE));
        let short = json!({ "a": "", "b": ["", "short"], "c": "x".repeat(LONG) });
        assert_eq!(cut.rest, short.to_string());
        assert_eq!(read_back(&cut, &texts), Some(json));
        assert_eq!(read_back(&cut, &HashMap::new()), None);
    }
}
