//! Snapshots beside the journal, and what may go once they are there.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use ksi_journal::{
    OpenError as Error, Options, Retention, SnapshotError, SqliteJournal, VerifyError,
};
use ksi_record::{
    Append, Journal, Millis, Origin, Query, Record, Section, Seq, Snapshot,
    testing::journal_suite::append,
};
use rusqlite::Connection;

use crate::Place;

fn up_to(seq: u64, state: &str) -> Snapshot {
    let (seq, at) = (Seq(seq), Millis(1_000 + seq));
    [("state".to_owned(), Section { seq, at, version: 1, state: state.to_owned() })].into()
}

/// A journal of 30 facts, with snapshots up to facts 10, 20 and 30.
fn with_snapshots(place: &Place) -> SqliteJournal {
    let journal = SqliteJournal::open(&place.file()).unwrap();
    let epoch = journal.claim().unwrap();
    for seq in [10, 20, 30] {
        append(&journal, epoch, seq - 10, 10).unwrap();
        journal.keep(&up_to(seq, &format!("{{\"up_to\":{seq}}}"))).unwrap();
    }
    journal
}

fn file(place: &Place, seq: u64) -> PathBuf {
    place.folder.path().join(format!("journal.snapshots/{seq:020}.snapshot"))
}

fn newest(journal: &SqliteJournal) -> u64 {
    let snapshot = journal.snapshot().unwrap();
    snapshot.get("state").map_or(0, |section| section.seq.0)
}

fn places(journal: &SqliteJournal) -> Vec<u64> {
    journal.read(&Query::default()).unwrap().iter().map(|fact| fact.seq.0).collect()
}

#[test]
fn two_snapshots_are_kept_for_nobody_else_to_read() {
    let place = Place::new();
    let journal = with_snapshots(&place);
    assert_eq!([10, 20, 30].map(|seq| file(&place, seq).exists()), [false, true, true]);
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(file(&place, 30)), 0o600);
    assert_eq!(mode(place.folder.path().join("journal.snapshots")), 0o700);
    let kept = journal.snapshots().unwrap();
    let seqs: Vec<_> = kept.iter().map(|kept| kept.header.as_ref().unwrap().seq).collect();
    assert_eq!(seqs, [30, 20]);
}

#[test]
fn a_journal_that_is_gone_is_not_begun_anew_beside_its_snapshots() {
    for empty in [false, true] {
        let place = Place::new();
        drop(with_snapshots(&place));
        fs::remove_file(place.file()).unwrap();
        if empty {
            fs::write(place.file(), "").unwrap();
        }
        let Err(error) = SqliteJournal::open(&place.file()) else { panic!("it was begun anew") };
        assert!(matches!(error, Error::Gone { .. }), "{error}");
        assert_eq!(place.file().exists(), empty, "nothing was made");
        let folder = place.folder.path();
        fs::rename(folder.join("journal.snapshots"), folder.join("away")).unwrap();
        assert_eq!(SqliteJournal::open(&place.file()).unwrap().head().unwrap(), Seq(0));
    }
}

#[test]
fn opening_checks_what_comes_behind_the_newest_snapshot_and_verify_all() {
    let place = Place::new();
    let journal = SqliteJournal::open(&place.file()).unwrap();
    let epoch = journal.claim().unwrap();
    append(&journal, epoch, 0, 3_000).unwrap();
    journal.keep(&up_to(1_000, "{}")).unwrap();
    drop(journal);
    let change = |seq: u64| {
        let sql = format!("UPDATE journal SET data = '{{}}' WHERE seq = {seq}");
        Connection::open(place.file()).unwrap().execute_batch(&sql).unwrap();
    };
    change(1_000);
    let journal = SqliteJournal::open(&place.file()).unwrap();
    let error = journal.verify(Seq(0)).unwrap_err();
    assert!(matches!(error, VerifyError::Broken { seq: Seq(1_000) }), "{error}");
    assert_eq!(journal.verify(Seq(1_000)).unwrap(), Seq(3_000));
    drop(journal);
    change(1_001);
    let error = SqliteJournal::open(&place.file()).err().unwrap();
    assert!(error.to_string().contains("is damaged: `ksi restore"), "{error}");
    let Error::Damaged { source: VerifyError::Broken { seq }, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(seq, Seq(1_001));
}

#[test]
fn a_damaged_snapshot_is_passed_over_for_the_one_before_it() {
    for damage in [
        |path: PathBuf| fs::write(path, "").unwrap(),
        |path: PathBuf| fs::write(path, "{}\n").unwrap(),
        |path: PathBuf| fs::write(path, [0xff, b'\n']).unwrap(),
        |path: PathBuf| {
            let text = fs::read_to_string(&path).unwrap();
            fs::write(path, text.replace("\"up_to\":30", "\"up_to\":31")).unwrap();
        },
        |path: PathBuf| {
            let text = fs::read_to_string(&path).unwrap();
            fs::write(path, &text[..text.len() - 1]).unwrap();
        },
        |path: PathBuf| {
            let text = fs::read_to_string(&path).unwrap();
            fs::write(path, text.replace("\"bytes\":12", "\"bytes\":99")).unwrap();
        },
    ] {
        let place = Place::new();
        let journal = with_snapshots(&place);
        damage(file(&place, 30));
        assert_eq!(newest(&journal), 20);
        fs::remove_file(file(&place, 20)).unwrap();
        assert!(journal.snapshot().unwrap().is_empty(), "then everything is folded again");
    }
}

#[test]
fn a_snapshot_of_a_later_version_or_of_another_journal_says_so() {
    let (place, other, third) = (Place::new(), Place::new(), Place::new());
    let journal = with_snapshots(&place);
    let text = fs::read_to_string(file(&place, 30)).unwrap();
    fs::write(file(&place, 30), text.replacen("\"ksi_snapshot\":1", "\"ksi_snapshot\":2", 1))
        .unwrap();
    let error = journal.snapshots().unwrap().remove(0).header.unwrap_err();
    let told = "it has shape 2, this program knows 1; use a newer version of it";
    assert_eq!(error.to_string(), told);
    let empty = SqliteJournal::open(&other.file()).unwrap();
    let snapshots = |place: &Place| place.folder.path().join("journal.snapshots");
    drop(with_snapshots(&third));
    fs::rename(snapshots(&third), snapshots(&other)).unwrap();
    let error = empty.snapshots().unwrap().remove(0).header.unwrap_err();
    assert!(matches!(error, SnapshotError::Foreign(Seq(30))), "{error}");
    assert!(empty.snapshot().unwrap().is_empty());
    let error = empty.keep(&up_to(7, "{}")).unwrap_err();
    assert!(error.to_string().contains("none of this journal"), "{error}");
}

/// What a crash in the middle of writing leaves behind is no snapshot.
#[test]
fn half_a_snapshot_is_none() {
    let place = Place::new();
    let journal = with_snapshots(&place);
    fs::write(place.folder.path().join("journal.snapshots/.tmpAbCdEf"), "{\"ksi_sn").unwrap();
    assert_eq!((newest(&journal), journal.snapshots().unwrap().len()), (30, 2));
}

const HOUR: u64 = 60 * 60 * 1_000;

fn hourly(seq: u64) -> Record {
    let (name, subject) = match seq % 4 {
        0 => ("state:changed", format!("global/k{}", seq % 12)),
        _ => ("agent:ended", "bob".to_owned()),
    };
    let data = serde_json::value::to_raw_value(&"x".repeat(300)).unwrap();
    let (at, origin) = (Millis(seq * HOUR), Origin::default().into());
    Record { seq: Seq(seq), at, name: name.into(), version: 1, subject, origin, data }
}

/// A fact an hour, 100 in all, and snapshots up to the facts 60 and 100.
fn hundred_hours(place: &Place, retention: Retention) -> SqliteJournal {
    let options = Options { retention, ..Options::default() };
    let journal = SqliteJournal::open_with(&place.file(), &options).unwrap();
    let epoch = journal.claim().unwrap();
    for (from, to) in [(0, 60), (60, 100)] {
        let records: Vec<_> = (from + 1..=to).map(|seq| hourly(seq).into()).collect();
        let batch = Append { records: &records, documents: &[], expect: Seq(from), epoch };
        journal.append(batch).unwrap();
        let mut snapshot = up_to(to, "{}");
        snapshot.get_mut("state").unwrap().at = Millis(to * HOUR);
        journal.keep(&snapshot).unwrap();
    }
    journal
}

/// The last facts of the keys k0, k4 and k8 below the fact `before`.
fn kept_keys(before: u64) -> Vec<u64> {
    let last = |key: u64| (1..before).filter(|seq| seq % 12 == key).max();
    let mut kept: Vec<_> = [0, 4, 8].into_iter().filter_map(last).collect();
    kept.sort_unstable();
    kept
}

#[test]
fn old_facts_go_below_the_older_snapshot_but_for_the_last_of_each_value() {
    let place = Place::new();
    let journal = hundred_hours(&place, Retention { age_ms: 50 * HOUR, bytes: u64::MAX });
    let expected: Vec<_> =
        kept_keys(60).into_iter().filter(|seq| *seq < 50).chain(50..=100).collect();
    assert_eq!(places(&journal), expected);
    assert_eq!(journal.verify(Seq(0)).unwrap(), Seq(100), "the chain holds over every gap");
    assert_eq!(journal.verify(Seq(50)).unwrap(), Seq(100));
    drop(journal);
    let journal = SqliteJournal::open(&place.file()).unwrap();
    assert_eq!((newest(&journal), journal.head().unwrap()), (100, Seq(100)));
}

#[test]
fn no_fact_goes_that_the_older_snapshot_does_not_hold() {
    let place = Place::new();
    let journal = hundred_hours(&place, Retention { age_ms: 0, bytes: u64::MAX });
    let expected: Vec<_> = kept_keys(60).into_iter().chain(60..=100).collect();
    assert_eq!(places(&journal), expected);
    assert_eq!(journal.verify(Seq(0)).unwrap(), Seq(100));
}

#[test]
fn facts_beyond_the_size_go_oldest_first_until_the_file_is_small_enough() {
    let place = Place::new();
    let retention = Retention { age_ms: u64::MAX, bytes: 1 };
    let journal = hundred_hours(&place, retention);
    assert_eq!(places(&journal).first(), Some(&kept_keys(60)[0]));
    let young = Place::new();
    let retention = Retention { age_ms: u64::MAX, bytes: 1 << 20 };
    assert_eq!(places(&hundred_hours(&young, retention)).len(), 100);
}

#[test]
fn a_change_beside_a_gap_is_found() {
    for change in [
        "UPDATE journal SET data = '{}' WHERE seq = (SELECT min(seq) FROM journal)",
        "DELETE FROM journal WHERE seq = (SELECT min(seq) FROM journal)",
        "DELETE FROM gaps",
        "UPDATE gaps SET \"check\" = zeroblob(16)",
        "DELETE FROM journal WHERE seq = 70",
    ] {
        let place = Place::new();
        let journal = hundred_hours(&place, Retention { age_ms: 0, bytes: u64::MAX });
        Connection::open(place.file()).unwrap().execute_batch(change).unwrap();
        let error = journal.verify(Seq(0)).unwrap_err();
        assert!(matches!(error, VerifyError::Broken { .. }), "{change}: {error}");
    }
}

#[test]
fn without_the_snapshots_that_pruned_facts_are_in_nothing_is_folded() {
    let place = Place::new();
    let journal = hundred_hours(&place, Retention { age_ms: 0, bytes: u64::MAX });
    fs::write(file(&place, 100), "torn").unwrap();
    assert_eq!(newest(&journal), 60);
    fs::remove_file(file(&place, 60)).unwrap();
    let error = journal.snapshot().unwrap_err();
    let told = error.to_string();
    assert!(told.contains("have been pruned, and no snapshot holds what they said"), "{told}");
    assert!(told.contains("`ksi restore`"), "{told}");
}

#[test]
fn an_append_waits_for_no_pruning_and_space_is_used_again() {
    let place = Place::new();
    let journal = hundred_hours(&place, Retention { age_ms: 0, bytes: u64::MAX });
    let before = journal.stats().unwrap();
    assert_eq!((before.first, before.last), (Some(kept_keys(60)[0]), 100));
    assert!(before.free > 0, "{before:?}");
    journal.compact().unwrap();
    let after = journal.stats().unwrap();
    assert!(after.bytes < before.bytes && after.free == 0, "{before:?} {after:?}");
    assert_eq!(journal.verify(Seq(0)).unwrap(), Seq(100));
}

/// The shape of the first release, as its program made it.
#[test]
fn a_journal_of_an_older_shape_is_brought_up_to_date_and_verifies() {
    let place = Place::new();
    drop(with_snapshots(&place));
    let old = "DROP TABLE documents; DROP TABLE gaps; DROP TABLE blobs; DROP TABLE blob_uses;
        ALTER TABLE journal DROP COLUMN texts; PRAGMA user_version = 1";
    Connection::open(place.file()).unwrap().execute_batch(old).unwrap();
    let journal = SqliteJournal::open(&place.file()).unwrap();
    assert_eq!(journal.verify(Seq(0)).unwrap(), Seq(30));
    let epoch = journal.claim().unwrap();
    append(&journal, epoch, 30, 1).unwrap();
    assert_eq!(journal.stats().unwrap().documents, 0);
}
