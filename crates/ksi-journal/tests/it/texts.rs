//! Long texts: kept once, put back whole, and gone with the last who says them.

use std::sync::Arc;

use ksi_journal::{OpenError, Options, Retention, SqliteJournal, VerifyError};
use ksi_record::{
    Append, Document, Journal, Millis, Query, Record, Section, Select, Seq, Snapshot,
};
use rusqlite::Connection;
use serde_json::{Value, json, value::to_raw_value};

use crate::Place;

/// More than is kept with the rest.
fn long(word: &str) -> String {
    word.repeat(10_000 / word.len())
}

fn fact(seq: u64, data: &Value) -> Arc<Record> {
    Arc::new(Record {
        seq: Seq(seq),
        at: Millis(1_000 + seq),
        name: "test:said".into(),
        version: 1,
        subject: "x".into(),
        origin: Arc::default(),
        data: to_raw_value(data).unwrap(),
    })
}

fn document(key: &str, data: &Value) -> Document {
    let (collection, key) = ("said".to_owned(), key.to_owned());
    Document { collection, key, sort: 1, data: to_raw_value(data).unwrap() }
}

/// Appends facts that say this, and these documents.
fn say(journal: &SqliteJournal, data: &[Value], documents: &[Document]) {
    let (epoch, expect) = (journal.claim().unwrap(), journal.head().unwrap());
    let records: Vec<_> = (expect.0 + 1..).zip(data).map(|(seq, data)| fact(seq, data)).collect();
    journal.append(Append { records: &records, documents, expect, epoch }).unwrap();
}

fn said(journal: &SqliteJournal) -> Vec<Value> {
    let facts = journal.read(&Query::default()).unwrap();
    facts.iter().map(|fact| serde_json::from_str(fact.data.get()).unwrap()).collect()
}

fn texts(place: &Place) -> u64 {
    let connection = Connection::open(place.file()).unwrap();
    let number = |sql| connection.query_row(sql, [], |row| row.get::<_, u64>(0)).unwrap();
    assert_eq!(number("SELECT count(*) FROM blobs"), number("SELECT count(*) FROM blob_uses"));
    number("SELECT count(*) FROM blobs")
}

#[test]
fn facts_and_documents_that_say_the_same_share_it_and_are_read_whole() {
    let place = Place::new();
    let journal = SqliteJournal::open(&place.file()).unwrap();
    let (one, other) = (long("one, "), long("é\"\\"));
    let data = [
        json!({ "text": one, "again": [one, { "and": one }] }),
        json!({ "short": "x" }),
        json!({ one.clone(): other }),
    ];
    say(&journal, &data, &[document("a", &json!([other, one]))]);
    assert_eq!(texts(&place), 2);
    assert_eq!(said(&journal), data);
    let found = journal.documents(&Select::one("said", "a")).unwrap().pop().unwrap();
    assert_eq!(found.data.get(), json!([other, one]).to_string());
    assert_eq!(journal.verify_all().unwrap(), Seq(3));
    drop(journal);
    let journal = SqliteJournal::open(&place.file()).unwrap();
    assert_eq!(said(&journal), data);
    let copy = place.folder.path().join("copy.ksi");
    journal.backup(&copy).unwrap();
    let restored = place.folder.path().join("restored.db");
    SqliteJournal::restore(&copy, &restored).unwrap();
    assert_eq!(said(&SqliteJournal::open(&restored).unwrap()), data);
}

#[test]
fn what_somebody_says_is_never_taken_for_a_place() {
    let place = Place::new();
    let journal = SqliteJournal::open(&place.file()).unwrap();
    say(&journal, &[json!({ "text": long("secret ") })], &[]);
    let connection = Connection::open(place.file()).unwrap();
    let row = "SELECT data, hex(texts) FROM journal";
    let (rest, places) = connection
        .query_row(row, [], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))
        .unwrap();
    let sly = json!({ "text": "", "texts": places, "rest": rest, "blob": { "hash": places } });
    say(&journal, &[sly.clone(), json!({ "text": "" })], &[]);
    assert_eq!(said(&journal)[1..], [sly, json!({ "text": "" })]);
}

#[test]
fn a_changed_or_lost_text_is_noticed() {
    for (change, in_fact) in [
        ("UPDATE blobs SET data = replace(data, 'word', 'lord')", true),
        ("UPDATE blobs SET data = replace(data, 'word', 'lord')", false),
        ("DELETE FROM blobs", true),
        ("DELETE FROM blobs", false),
        ("UPDATE journal SET texts = NULL", true),
        ("UPDATE journal SET texts = x'00'", true),
    ] {
        let place = Place::new();
        let journal = SqliteJournal::open(&place.file()).unwrap();
        let text = json!({ "text": long("word ") });
        match in_fact {
            true => say(&journal, &[text], &[]),
            false => say(&journal, &[json!({})], &[document("a", &text)]),
        }
        drop(journal);
        Connection::open(place.file()).unwrap().execute_batch(change).unwrap();
        match (SqliteJournal::open(&place.file()), in_fact) {
            (Err(OpenError::Damaged { .. }), true) => {}
            (Ok(journal), false) => {
                let error = journal.verify_all().unwrap_err();
                assert!(matches!(error, VerifyError::Text), "{change}: {error}");
            }
            _ => panic!("{change} in a {}", if in_fact { "fact" } else { "document" }),
        }
    }
}

#[test]
fn a_text_goes_with_the_last_fact_or_document_that_says_it() {
    let place = Place::new();
    let retention = Retention { age_ms: 0, bytes: 0 };
    let options = Options { retention, ..Options::default() };
    let journal = SqliteJournal::open_with(&place.file(), &options).unwrap();
    let said_by_both = json!({ "text": long("shared ") });
    let facts = [said_by_both.clone(), json!({ "text": long("alone ") }), json!({}), json!({})];
    say(&journal, &facts, &[document("a", &said_by_both)]);
    assert_eq!(texts(&place), 2);
    for seq in [3, 4] {
        let section =
            Section { seq: Seq(seq), at: Millis(9_000), version: 1, state: "{}".to_owned() };
        journal.keep(&Snapshot::from([("state".to_owned(), section)])).unwrap();
    }
    assert!(said(&journal).len() <= 2, "the first facts are gone");
    assert_eq!(texts(&place), 1, "a document says it still");
    let found = journal.documents(&Select::one("said", "a")).unwrap().pop().unwrap();
    assert_eq!(found.data.get(), said_by_both.to_string());
    say(&journal, &[json!({})], &[document("a", &said_by_both)]);
    assert_eq!(texts(&place), 1, "said again in its own place");
    say(&journal, &[json!({})], &[document("a", &json!("short"))]);
    assert_eq!(texts(&place), 0);
    journal.verify_all().unwrap();
}
