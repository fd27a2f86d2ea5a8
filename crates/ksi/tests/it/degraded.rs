//! A journal that this program can only partly read, or that somebody has changed.

use std::{
    io::{BufRead, BufReader},
    sync::Arc,
};

use ksi_journal::SqliteJournal;
use ksi_state::{Append, Journal, Millis, Query, Record, Seq};
use rusqlite::Connection;
use serde_json::{Value, json, value::to_raw_value};

use crate::daemon::Home;

fn journal(home: &Home) -> SqliteJournal {
    SqliteJournal::open(&home.path().join("state/journal.db")).unwrap()
}

/// Adds a fact as another program, which knows more of facts than this one.
fn add(home: &Home, name: &'static str, version: u16, data: &Value) {
    let journal = journal(home);
    let (epoch, expect) = (journal.claim().unwrap(), journal.head().unwrap());
    let last = journal.read(&Query::page(Seq(expect.0.saturating_sub(1)), 1)).unwrap();
    let record = Record {
        seq: expect.next(),
        at: last.first().map_or(Millis(1), |last| last.at),
        name: name.into(),
        version,
        subject: "x".into(),
        origin: Arc::default(),
        data: to_raw_value(data).unwrap(),
    };
    let records = [Arc::new(record)];
    journal.append(Append { records: &records, documents: &[], expect, epoch }).unwrap();
}

fn stderr(output: std::process::Output) -> String {
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_plugin_whose_fact_is_newer_than_the_program_is_degraded_alone() {
    let home = Home::new();
    home.ok(&["emit", "state:set", "key=color", "value=blue"]);
    home.ok(&["stop"]);
    let before = journal(&home).snapshot().unwrap()["state"].clone();
    add(&home, "state:changed", 99, &json!({ "key": "color", "value": "mauve" }));

    let said = home.ok(&["start"]);
    assert!(said.contains("degraded"), "{said}");
    let why = "state: fact 2 state:changed: version 99 is newer than this program's 1";
    assert!(home.ok(&["status"]).contains(why));
    let health = home.ksi(&["health", "-o", "json"]);
    assert_eq!(health.status.code(), Some(1));
    let health: Value = serde_json::from_slice(&health.stdout).unwrap();
    assert_eq!(health["status"], "degraded");
    assert!(format!("state: {}", health["problems"]["state"].as_str().unwrap()).contains(why));

    let refused = stderr(home.ksi(&["emit", "state:get", "key=color"]));
    assert!(refused.contains("error: ") && refused.contains("newer than this program's"));
    let refused = home.ksi(&["emit", "state:set", "key=color", "value=red", "-o", "json"]);
    let refused: Value = serde_json::from_slice(&refused.stderr).unwrap();
    assert_eq!(refused["error"]["code"], "unavailable", "{refused}");
    home.ok(&["emit", "completion:status"]);

    home.ok(&["checkpoint", "save"]);
    home.ok(&["stop"]);
    let after = journal(&home).snapshot().unwrap();
    assert_eq!((after["state"].seq, &after["state"].state), (before.seq, &before.state));
    assert_eq!(after["work"].seq, Seq(2), "the others go on");
}

#[test]
fn a_plugin_whose_fact_is_none_of_its_shape_is_degraded_alone() {
    let home = Home::new();
    home.ok(&["start"]);
    home.ok(&["stop"]);
    add(
        &home,
        "completion:started",
        1,
        &json!({ "request_id": "never", "conversation_id": "c", "attempt": 1 }),
    );
    home.ok(&["start"]);
    let status = home.ok(&["status"]);
    assert!(
        status.contains("work: fact 1 completion:started: request never is not open"),
        "{status}"
    );
    let refused = stderr(home.ksi(&["emit", "completion:list"]));
    assert!(refused.contains("request never is not open"), "{refused}");
    home.ok(&["emit", "state:set", "key=color", "value=blue"]);
}

#[test]
fn a_changed_byte_behind_the_snapshot_is_refused_at_start_and_before_it_by_verify() {
    let home = Home::new();
    for n in 1..=3 {
        home.ok(&["emit", "state:set", "key=color", &format!("value={n}")]);
        if n == 2 {
            home.ok(&["stop"]);
        }
    }
    let (file, newest) = (home.path().join("state/journal.db"), "00000000000000000003.snapshot");
    home.ok(&["stop"]);
    std::fs::remove_file(home.path().join("state/journal.snapshots").join(newest)).unwrap();
    let change = |seq: u64, from: &str, to: &str| {
        let sql = "UPDATE journal SET data = replace(data, ?, ?) WHERE seq = ?";
        let changed = Connection::open(&file).unwrap().execute(sql, (from, to, seq)).unwrap();
        assert_eq!(changed, 1);
    };
    change(3, "3", "7");
    let refused = home.ksi(&["start"]);
    let told = stderr(refused);
    assert!(told.contains("fact 3 of the journal is not what was written"), "{told}");
    assert!(told.contains("`ksi restore FILE --replace` brings a backup back"), "{told}");

    change(3, "7", "3");
    change(1, "1", "7");
    assert_eq!(home.json(&["emit", "state:get", "key=color"])["value"], 3);
    let told = stderr(home.ksi(&["journal", "verify"]));
    assert!(told.contains("fact 1 of the journal is not what was written"), "{told}");
}

#[tokio::test]
async fn a_daemon_whose_journal_is_taken_away_ends_instead_of_writing_where_nobody_looks() {
    for (from, to) in [
        ("state", "gone"),
        ("state/journal.db", "gone"),
        ("state/copy.db", "state/journal.db"),
        ("", "../gone"),
    ] {
        let folder = Home::new();
        let home = folder.path().join("home");
        let mut command = folder.command(&["start", "--foreground"]);
        let mut daemon = command.env("KSI_HOME", &home).spawn().unwrap();
        let mut lines = BufReader::new(daemon.stderr.take().unwrap()).lines().map(Result::unwrap);
        lines.find(|line| line.contains("ready")).expect("it starts");
        std::fs::copy(home.join("state/journal.db"), home.join("state/copy.db")).unwrap();
        std::fs::rename(home.join(from), home.join(to)).unwrap();
        let noticed = lines.find(|line| line.contains("removed, moved or replaced"));
        noticed.unwrap_or_else(|| panic!("{from:?} is not noticed"));
        assert_eq!(daemon.wait().unwrap().code(), Some(1), "{from:?}");
    }
}
