//! The journal's file: what is one, what is damaged, what is full, who may look.

use std::{error::Error, fs, path::Path, sync::mpsc, thread};

use ksi_journal::{OpenError, Options, SqliteJournal};
use ksi_record::{AppendError, Journal, Query, Seq, testing::journal_suite::append};
use rusqlite::Connection;

use crate::Place;

fn refused(path: &Path) -> OpenError {
    SqliteJournal::open(path).err().expect("the file is refused")
}

/// A closed journal of so many facts.
fn journal_of(place: &Place, facts: u64) {
    let journal = SqliteJournal::open(&place.file()).unwrap();
    let epoch = journal.claim().unwrap();
    append(&journal, epoch, 0, facts).unwrap();
}

fn execute(place: &Place, sql: &str) {
    Connection::open(place.file()).unwrap().execute_batch(sql).unwrap();
}

#[test]
fn a_missing_folder_is_named() {
    let path = Place::new().folder.path().join("nowhere/journal.db");
    let error = refused(&path);
    assert!(matches!(error, OpenError::NoFolder { .. }), "{error}");
    assert!(
        error.to_string().ends_with(
            "nowhere/journal.db cannot be opened: its folder does not exist; create it first"
        ),
        "{error}"
    );
}

#[test]
fn a_file_that_is_no_database_is_refused_and_stays_as_it_is() {
    let place = Place::new();
    let text = "dear diary, ".repeat(100);
    fs::write(place.file(), &text).unwrap();
    let error = refused(&place.file());
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
    assert_eq!(fs::read_to_string(place.file()).unwrap(), text);
}

#[test]
fn a_database_of_another_program_is_refused_and_stays_as_it_is() {
    for sql in ["CREATE TABLE diary (day TEXT)", "PRAGMA user_version = 1"] {
        let place = Place::new();
        execute(&place, sql);
        let before = fs::read(place.file()).unwrap();
        let error = refused(&place.file());
        assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
        assert_eq!(fs::read(place.file()).unwrap(), before);
        assert_eq!(fs::read_dir(place.folder.path()).unwrap().count(), 1);
    }
}

#[test]
fn a_journal_of_a_later_version_is_refused_with_its_shape() {
    let place = Place::new();
    journal_of(&place, 1);
    execute(&place, "PRAGMA user_version = 7");
    let error = refused(&place.file());
    assert!(matches!(error, OpenError::Newer { found: 7, .. }), "{error}");
    assert!(
        error.to_string().ends_with("has shape 7, this program knows 3; use a newer version of it")
    );
}

#[test]
fn an_untouched_journal_verifies_from_anywhere() {
    let place = Place::new();
    journal_of(&place, 50);
    let journal = SqliteJournal::open_read_only(&place.file()).unwrap();
    for from in [0, 1, 49, 50] {
        assert_eq!(journal.verify(Seq(from)).unwrap(), Seq(50));
    }
}

#[test]
fn every_change_to_a_fact_is_found_at_its_place() {
    for change in [
        "UPDATE journal SET seq = 99 WHERE seq = 7",
        "UPDATE journal SET at = at + 1 WHERE seq = 7",
        "UPDATE journal SET name = 'agent:paid' WHERE seq = 7",
        "UPDATE journal SET v = 9 WHERE seq = 7",
        "UPDATE journal SET subject = subject || 'x' WHERE seq = 7",
        "UPDATE journal SET principal = 'operator:x' WHERE seq = 7",
        "UPDATE journal SET correlation = 'x' WHERE seq = 7",
        "UPDATE journal SET cause = 1 WHERE seq = 7",
        "UPDATE journal SET chain = 'x' WHERE seq = 7",
        "UPDATE journal SET data = '{}' WHERE seq = 7",
        "UPDATE journal SET \"check\" = zeroblob(16) WHERE seq = 7",
        "UPDATE journal SET \"check\" = x'00' WHERE seq = 7",
        "UPDATE journal SET data = CAST(x'ff' AS TEXT) WHERE seq = 7",
        "DELETE FROM journal WHERE seq = 7",
    ] {
        let place = Place::new();
        journal_of(&place, 20);
        execute(&place, change);
        let error = refused(&place.file());
        let source = error.source().expect("a damaged file says why").to_string();
        assert!(matches!(error, OpenError::Damaged { .. }), "{change}: {error}");
        assert!(source.starts_with("fact 7 of the journal is not what was written"), "{source}");
    }
}

#[test]
fn a_fact_that_is_no_json_is_named_when_it_is_read() {
    let place = Place::new();
    let journal = SqliteJournal::open(&place.file()).unwrap();
    let epoch = journal.claim().unwrap();
    append(&journal, epoch, 0, 9).unwrap();
    execute(&place, "UPDATE journal SET data = '{' WHERE seq = 4");
    assert_eq!(journal.read(&Query::page(Seq(4), 9)).unwrap().len(), 5);
    let error = journal.read(&Query::default()).unwrap_err();
    assert_eq!(error.to_string(), "the journal failed: fact 4 is not what was written");
}

#[test]
fn a_full_disk_writes_nothing_and_room_lets_it_go_on() {
    let place = Place::new();
    let small = Options { max_pages: Some(60), ..Options::default() };
    let journal = SqliteJournal::open_with(&place.file(), &small).unwrap();
    let epoch = journal.claim().unwrap();
    let mut head = 0;
    let error = (0..100)
        .find_map(|_| match append(&journal, epoch, head, 50) {
            Ok(()) => {
                head += 50;
                None
            }
            Err(error) => Some(error),
        })
        .expect("240 KiB are full at some time");
    assert!(matches!(error, AppendError::Full(_)), "{error}");
    assert!(head > 0);
    assert_eq!(journal.head().unwrap(), Seq(head));
    for count in [50, 0] {
        let error = append(&journal, epoch, head, count).unwrap_err();
        assert!(matches!(error, AppendError::Full(_)), "{count}: {error}");
    }
    drop(journal);
    let journal = SqliteJournal::open(&place.file()).unwrap();
    append(&journal, epoch, head, 50).unwrap();
    assert_eq!(journal.verify(Seq(0)).unwrap(), Seq(head + 50));
}

#[test]
fn a_number_beyond_63_bits_is_refused_and_named() {
    let place = Place::new();
    let journal = SqliteJournal::open(&place.file()).unwrap();
    let epoch = journal.claim().unwrap();
    let far = ksi_record::Record {
        at: ksi_record::Millis(u64::MAX),
        ..ksi_record::testing::journal_suite::record(1)
    };
    let records = [far.into()];
    let batch = ksi_record::Append { records: &records, documents: &[], expect: Seq(0), epoch };
    let error = journal.append(batch).unwrap_err();
    assert!(error.to_string().contains("fact 1 holds a number beyond 2^63"), "{error}");
    assert_eq!(journal.head().unwrap(), Seq(0));
}

#[test]
fn a_reader_sees_what_is_appended_meanwhile_and_needs_a_journal() {
    let place = Place::new();
    let missing = SqliteJournal::open_read_only(&place.file()).err().unwrap();
    assert!(matches!(missing, OpenError::Sqlite { .. }), "{missing}");
    assert!(!place.file().exists());
    let journal = SqliteJournal::open(&place.file()).unwrap();
    let reader = SqliteJournal::open_read_only(&place.file()).unwrap();
    let epoch = journal.claim().unwrap();
    append(&journal, epoch, 0, 5).unwrap();
    assert_eq!(reader.head().unwrap(), Seq(5));
    assert_eq!(reader.read(&Query::tail(2)).unwrap().len(), 2);
}

/// An open read transaction is the longest read there can be.
#[test]
fn a_read_that_does_not_end_holds_up_no_append() {
    let place = Place::new();
    journal_of(&place, 5);
    let reading = Connection::open(place.file()).unwrap();
    reading.execute_batch("BEGIN; SELECT count(*) FROM journal").unwrap();
    let journal = SqliteJournal::open(&place.file()).unwrap();
    let epoch = journal.claim().unwrap();
    append(&journal, epoch, 5, 5_000).unwrap();
    assert_eq!(journal.head().unwrap(), Seq(5_005));
    let seen: u64 = reading.query_row("SELECT max(seq) FROM journal", [], |r| r.get(0)).unwrap();
    assert_eq!(seen, 5);
}

#[test]
fn many_threads_read_beside_the_writer_and_see_whole_batches() {
    const BATCH: u64 = 7;
    let place = Place::new();
    let journal = SqliteJournal::open(&place.file()).unwrap();
    let epoch = journal.claim().unwrap();
    let (tx, rx) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..8 {
            let (journal, tx) = (&journal, tx.clone());
            scope.spawn(move || {
                for _ in 0..50 {
                    tx.send(journal.read(&Query::default()).unwrap().len() as u64).unwrap();
                }
            });
        }
        (0..50).for_each(|n| append(&journal, epoch, n * BATCH, BATCH).unwrap());
    });
    drop(tx);
    let lengths: Vec<_> = rx.iter().collect();
    assert_eq!(lengths.len(), 400);
    assert!(lengths.iter().all(|length| length % BATCH == 0), "{lengths:?}");
}

#[test]
fn facts_that_two_threads_read_are_each_there_once_in_order_also_behind_a_gap() {
    const FACTS: u64 = 3_000;
    let place = Place::new();
    journal_of(&place, FACTS);
    let check = |first: u64| {
        let reader = SqliteJournal::open_read_only(&place.file()).unwrap();
        for (after, limit) in [(0, 1_024), (0, 1_025), (1, 2_999), (700, 2_000), (0, 9_999)] {
            let read = reader.read(&Query::page(Seq(after), limit)).unwrap();
            let from = first.max(after + 1);
            let expected: Vec<_> = (from..=FACTS).take(limit).collect();
            let read: Vec<_> = read.iter().map(|fact| fact.seq.0).collect();
            assert!(read == expected, "{limit} after {after}: {} facts", read.len());
        }
    };
    check(1);
    execute(&place, "DELETE FROM journal WHERE seq < 1300");
    check(1_300);
}
