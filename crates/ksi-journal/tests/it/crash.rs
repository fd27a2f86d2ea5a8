//! A writer that is killed, and a log that is cut off anywhere.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Stdio},
};

use ksi_journal::SqliteJournal;
use ksi_record::{
    Journal, Query, Seq,
    testing::journal_suite::{append, record},
};

use crate::Place;

/// Says to this very test, run in a child process, where to write.
const FILE: &str = "KSI_JOURNAL_CRASH_FILE";

/// Bigger batches take longer to write, so that kills find them half written.
fn batch(number: u64) -> u64 {
    1 + number * number % 97
}

/// The journal's heads between batches.
fn heads() -> impl Iterator<Item = u64> {
    (0..).scan(0, |head, number| {
        *head += batch(number);
        Some(*head)
    })
}

#[test]
fn what_was_acknowledged_survives_kill_9_and_batches_stay_whole() {
    if let Some(file) = env::var_os(FILE) {
        return append_until_killed(Path::new(&file));
    }
    for round in 0..20 {
        let place = Place::new();
        let acknowledged = kill_after(&place.file(), 1 + round * 13 % 40);
        let journal = SqliteJournal::open(&place.file()).unwrap();
        let Seq(head) = journal.verify(Seq(0)).unwrap();
        assert!(head >= acknowledged, "{acknowledged} was acknowledged, {head} is there");
        assert!(heads().take_while(|whole| *whole <= head).any(|whole| whole == head), "{head}");
        let facts = journal.read(&Query::default()).unwrap();
        assert_eq!(facts.len() as u64, head);
        for (seq, fact) in (1..).zip(&facts) {
            assert_eq!(format!("{fact:?}"), format!("{:?}", record(seq)));
        }
        let epoch = journal.claim().unwrap();
        append(&journal, epoch, head, 3).unwrap();
    }
}

fn append_until_killed(file: &Path) {
    let journal = SqliteJournal::open(file).unwrap();
    let epoch = journal.claim().unwrap();
    let mut head = 0;
    for number in 0..100_000 {
        append(&journal, epoch, head, batch(number)).unwrap();
        head += batch(number);
        // Not println: the test harness would keep it back.
        writeln!(std::io::stdout().lock(), "ack {head}").unwrap();
    }
    panic!("nobody killed the writer");
}

/// Lets a child write, kills it as soon as it has acknowledged so many batches, and returns the
/// last fact that it has acknowledged.
fn kill_after(file: &Path, batches: usize) -> u64 {
    let mut child = writer(file);
    let mut acks = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .filter_map(|line| line.split_once("ack ")?.1.parse().ok());
    let first: Option<u64> = acks.by_ref().nth(batches - 1);
    child.kill().unwrap();
    let last = acks.last().or(first);
    child.wait().unwrap();
    last.expect("the writer acknowledges batches until it is killed")
}

#[allow(clippy::disallowed_methods, reason = "the child must die alone, at once, and unwatched")]
fn writer(file: &Path) -> Child {
    std::process::Command::new(env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("crash::what_was_acknowledged_survives_kill_9_and_batches_stay_whole")
        .env(FILE, file)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_log_cut_off_anywhere_leaves_whole_batches_from_the_start() {
    const BATCHES: u64 = 12;
    let place = Place::new();
    let journal = SqliteJournal::open(&place.file()).unwrap();
    let epoch = journal.claim().unwrap();
    let mut ends = vec![0];
    for head in heads().take(BATCHES as usize) {
        append(&journal, epoch, ends[ends.len() - 1], head - ends[ends.len() - 1]).unwrap();
        ends.push(head);
    }
    let file = fs::read(place.file()).unwrap();
    let log = fs::read(place.file().with_extension("db-wal")).unwrap();
    // Behind the first transactions, which make the tables and claim the journal.
    let mut found: Vec<u64> = (log.len() / 3..=log.len())
        .step_by(1_999)
        .chain([log.len()])
        .map(|length| recovered(&file, &log[..length]))
        .collect();
    assert!(found.is_sorted(), "{found:?}");
    assert!(found.iter().all(|head| ends.contains(head)), "{found:?} among {ends:?}");
    assert_eq!(found.last(), ends.last());
    found.dedup();
    assert!(found.len() > 3, "the cuts hit too few batches: {found:?}");
}

/// The head of a journal whose machine lost power with this on its disk.
fn recovered(file: &[u8], log: &[u8]) -> u64 {
    let place = Place::new();
    fs::write(place.file(), file).unwrap();
    fs::write(place.file().with_extension("db-wal"), log).unwrap();
    let journal = SqliteJournal::open(&place.file()).unwrap();
    let Seq(head) = journal.verify(Seq(0)).unwrap();
    assert_eq!(journal.read(&Query::default()).unwrap().len() as u64, head);
    head
}
