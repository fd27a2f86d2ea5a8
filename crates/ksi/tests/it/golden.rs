//! Golden journals: what earlier builds have written is read by this one.
//!
//! `tools/golden-journal` made each, with the daemon of its time. A new kind of fact needs a new
//! one; the old ones stay as they are.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use ksi_journal::SqliteJournal;
use ksi_state::{Query, Seq};
use serde_json::{Value, json};

use crate::daemon::Home;

fn goldens() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> = files.collect();
    files.sort_unstable();
    assert!(files.len() >= 2, "{files:?}");
    files
}

/// A home with this journal in it.
fn home_of(golden: &Path) -> Home {
    let home = Home::new();
    home.ok(&["restore", golden.to_str().unwrap()]);
    home
}

fn emit(home: &Home, event: &str, data: &Value) -> Value {
    home.json(&["-o", "json", "emit", event, &data.to_string()])
}

/// What the journal's maker has seen, told by any later daemon.
fn check(home: &Home) {
    let health = home.json(&["health", "-o", "json"]);
    assert_eq!(health["status"], "healthy", "{health}");
    assert_eq!(emit(home, "state:get", &json!({ "key": "color" }))["value"], "blue");
    assert_eq!(emit(home, "state:get", &json!({ "key": "gone" }))["found"], false);
    let model = &emit(home, "model:list", &json!({}))[0];
    assert!(model["status"] == "failed" || model["status"] == "ready", "{model}");

    let counts = emit(home, "completion:status", &json!({}));
    assert_eq!((&counts["completed"], &counts["failed"]), (&json!(4), &json!(2)), "{counts}");
    assert_eq!((&counts["cancelled"], &counts["queued"]), (&json!(2), &json!(0)), "{counts}");
    let listed = emit(home, "completion:list", &json!({}));
    assert_eq!(listed["count"], 8);
    let ids: BTreeSet<_> = (0..8)
        .map(|n| listed["completions"][n]["request_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), 8, "{listed}");
    for id in ids {
        let status = emit(home, "completion:status", &json!({ "request_id": id }));
        assert!(listed["completions"].as_array().unwrap().contains(&status), "{status}");
    }
    let failed = emit(home, "completion:list", &json!({ "status": "failed" }));
    assert_eq!(failed["count"], 2, "{failed}");
    assert_eq!(failed["completions"][1]["error"]["message"], "it was told to");

    let ada = emit(home, "conversation:get", &json!({ "conversation_id": "ada" }));
    let said = ["hello", "One.", "try again", "at last"];
    assert_eq!(ada["messages"].as_array().unwrap().len(), 4);
    (0..4).for_each(|n| assert_eq!(ada["messages"][n]["content"], said[n], "{ada}"));
    let talks = emit(home, "conversation:list", &json!({ "sort_by": "turns" }));
    assert_eq!(talks["conversations"][0]["conversation_id"], "ada", "{talks}");
    assert_eq!(talks["conversations"][0]["turns"], 2, "{talks}");

    let runs = emit(home, "orchestration:list", &json!({}));
    let ended: Vec<_> = (0..3).map(|n| runs[n]["status"].clone()).collect();
    assert_eq!(ended, ["finished", "failed", "terminated"], "{runs}");
    let id = &runs[0]["orchestration_id"];
    let instance = emit(home, "orchestration:get_instance", &json!({ "orchestration_id": id }));
    assert_eq!(instance["spoken"][1]["text"], "One.", "{instance}");
}

#[test]
fn what_earlier_builds_have_written_is_read_by_this_one() {
    for golden in goldens() {
        let home = home_of(&golden);
        check(&home);
        let checked = home.ok(&["journal", "verify"]);
        assert!(checked.contains("is what was written"), "{checked}");
        home.ok(&["checkpoint", "save"]);
        home.ok(&["stop"]);
        home.ok(&["start"]);
        check(&home);
    }
}

#[test]
fn a_conversation_of_an_earlier_build_goes_on_and_what_had_ended_leaves_memory() {
    for golden in goldens() {
        let home = home_of(&golden);
        let (model, log) = home.script("{log: $LOG, rules: [{answers: [again]}]}");
        let ask = json!({ "prompt": "still there?", "conversation_id": "ada", "model": model });
        emit(&home, "completion:sync", &ask);
        home.ok(&["orchestrate", "x", "--model", &model, "--rounds", "1"]);
        let call = std::fs::read_to_string(log).unwrap();
        let call: Value = serde_json::from_str(call.lines().next().unwrap()).unwrap();
        let said = ["hello", "One.", "try again", "at last", "still there?"];
        (0..5).for_each(|n| assert_eq!(call["messages"][n]["content"], said[n], "{call}"));

        home.ok(&["stop"]);
        let journal = SqliteJournal::open(&home.path().join("state/journal.db")).unwrap();
        let snapshot = ksi_state::Journal::snapshot(&journal).unwrap();
        let state = |plugin: &str| serde_json::from_str::<Value>(&snapshot[plugin].state).unwrap();
        let (work, runs) = (state("work"), state("orchestration"));
        for nothing in [&work["open"], &work["finished"], &work["conversations"], &runs["runs"]] {
            assert_eq!(nothing, &json!({}), "{work} {runs}");
        }
        drop(journal);
        let ada = emit(&home, "conversation:get", &json!({ "conversation_id": "ada" }));
        assert_eq!(ada["turns"].as_array().unwrap().len(), 3, "{ada}");
        let runs = emit(&home, "orchestration:list", &json!({}));
        assert_eq!(
            (&runs[3]["status"], &runs[0]["status"]),
            (&json!("finished"), &json!("finished"))
        );
    }
}

#[test]
fn every_kind_of_fact_is_in_a_golden_journal_and_all_of_them_are_small() {
    let home = Home::new();
    let all = emit(&home, "system:discover", &json!({}));
    let all = all["events"].as_object().unwrap().iter();
    let facts = all.filter(|(_, event)| event["kind"] == "fact").map(|(name, _)| name.clone());
    let facts: BTreeSet<_> = facts.collect();
    assert!(facts.contains("completion:queued"), "{facts:?}");
    let mut written = BTreeSet::new();
    for golden in goldens() {
        let bytes = std::fs::metadata(&golden).unwrap().len();
        assert!(bytes < 300_000, "{} has {bytes} bytes", golden.display());
        let journal = SqliteJournal::open_read_only(&golden).unwrap();
        journal.verify(Seq(0)).unwrap();
        let records = journal.read(&Query::default()).unwrap();
        written.extend(records.into_iter().map(|record| record.name.into_owned()));
    }
    let missing: Vec<_> = facts.difference(&written).collect();
    assert!(missing.is_empty(), "tools/golden-journal should make these facts too: {missing:?}");
}
