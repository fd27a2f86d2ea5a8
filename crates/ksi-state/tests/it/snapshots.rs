//! States from a snapshot and the facts behind it, against states from all facts.

use std::collections::BTreeMap;

use ksi_state::{
    By, Document, Fault, Journal, Machine, Millis, Out, Query, Record, Replica, Section, Select,
    Seq, Snapshot, Stamp,
};
use serde::{Deserialize, Serialize};

use crate::chat::*;

/// Makes a snapshot as the daemon does, and keeps it.
fn keep(bench: &Bench, machines: Vec<Machine>) -> Snapshot {
    let (before, journal) = (bench.journal.snapshot().unwrap(), &bench.journal);
    let mut replica = Replica::new(machines);
    replica.rebuild(&before, journal).unwrap();
    let snapshot = replica.snapshot(before);
    journal.keep(&snapshot).unwrap();
    snapshot
}

fn say(bench: &Bench, texts: &[&str]) {
    for text in texts {
        bench.say("ann", text);
        bench.commit();
    }
}

fn degraded(bench: &Bench) -> Vec<(&'static str, String)> {
    let degraded = bench.sequencer.degraded().into_iter();
    degraded.filter(|(name, _)| *name != "journal").collect()
}

#[test]
fn a_start_from_a_snapshot_ends_where_a_start_from_the_first_fact_ends() {
    for kept in 0..=4 {
        let bench = Bench::new();
        let texts = ["a", "b", "c", "d"];
        for (n, text) in texts.iter().enumerate() {
            if n == kept {
                keep(&bench, machines());
            }
            say(&bench, &[text]);
        }
        if kept == 4 {
            keep(&bench, machines());
        }
        let again = Bench::over(bench.journal.clone());
        assert_eq!(again.sequencer.since(), Seq(kept as u64), "only the rest is folded");
        assert_eq!((again.chat(), again.sequencer.position()), (bench.chat(), (Seq(4), Seq(4))));
        assert_eq!(again.sequencer.wants(), bench.sequencer.wants());
        let [live, fresh] = again.sequencer.audit().unwrap();
        assert_eq!(live, fresh, "kept behind {kept}");
        say(&again, &["e"]);
        assert_eq!(again.written(), ["a", "b", "c", "d", "e"]);
    }
}

#[test]
fn a_snapshot_of_a_snapshot_is_the_snapshot_of_everything() {
    let (bench, short) = (Bench::new(), Bench::new());
    for text in ["a", "b", "c", "d", "e"] {
        say(&bench, &[text]);
        say(&short, &[text]);
        keep(&bench, machines());
    }
    let (long, short) = (bench.journal.snapshot().unwrap(), keep(&short, machines()));
    let told = |snapshot: &Snapshot| -> Vec<_> {
        snapshot.iter().map(|(name, of)| (name.clone(), of.seq, of.state.clone())).collect()
    };
    assert_eq!(told(&long), told(&short));
    assert_eq!(long["chat"].seq, Seq(5));
}

#[test]
fn a_plugin_that_is_degraded_keeps_its_older_section_and_recovers_when_its_fold_is_mended() {
    let bench = Bench::new();
    say(&bench, &["a"]);
    keep(&bench, machines());
    say(&bench, &["fail", "b"]);
    let snapshot = keep(&bench, machines());
    assert_eq!((snapshot["chat"].seq, snapshot["echo"].seq), (Seq(3), Seq(1)));
    let again = Bench::over(bench.journal.clone());
    assert_eq!(degraded(&again).len(), 1);
    assert_eq!(again.chat(), bench.chat(), "the other plugin skips what its section holds");

    let mut mended = Machine::new::<Echo>("echo");
    mended.fold(|echo: &mut Echo, heard: &Heard, _: &Stamp, _: &mut Out| {
        echo.0.push(heard.text.clone());
        Ok(())
    });
    let snapshot = keep(&bench, vec![mended]);
    assert_eq!(snapshot["echo"].state, r#"["a","fail","b"]"#);
}

#[test]
fn a_plugin_that_is_new_folds_what_came_before_it() {
    let bench = Bench::new();
    say(&bench, &["a", "b"]);
    let chat_alone = || machines().into_iter().take(1).collect();
    keep(&bench, chat_alone());
    let again = Bench::over(bench.journal.clone());
    assert_eq!((again.echo(), again.chat()), (bench.echo(), bench.chat()));
}

#[test]
fn the_section_of_a_plugin_that_is_not_here_stays_as_it_was() {
    let bench = Bench::new();
    say(&bench, &["a"]);
    keep(&bench, machines());
    say(&bench, &["b"]);
    let snapshot = keep(&bench, machines().into_iter().take(1).collect());
    assert_eq!((snapshot["chat"].seq, snapshot["echo"].seq), (Seq(2), Seq(1)));
    assert_eq!(snapshot["echo"].state, r#"["a"]"#);
}

/// As a chat was kept before it counted who spoke.
#[derive(Deserialize)]
struct OldChat {
    texts: Vec<String>,
}

fn version_2() -> Machine {
    let mut chat = Machine::new::<Chat>("chat");
    chat.fold(Chat::said);
    chat.upgrade(2, |version, state| {
        assert_eq!(version, 1);
        let OldChat { texts } = serde_json::from_str(state).map_err(|e| Fault(e.to_string()))?;
        let spoke = BTreeMap::from([("ann".to_owned(), texts.len() as u64)]);
        Ok(Chat { texts, spoke })
    });
    chat
}

fn section(version: u16, state: &str) -> Snapshot {
    let section = Section { seq: Seq(1), at: Millis(7), version, state: state.to_owned() };
    [("chat".to_owned(), section)].into()
}

#[test]
fn a_state_of_an_older_shape_is_brought_up_to_date() {
    let bench = Bench::new();
    say(&bench, &["a", "b"]);
    bench.journal.keep(&section(1, r#"{"texts":["a"]}"#)).unwrap();
    let snapshot = keep(&bench, vec![version_2()]);
    let chat: Chat = serde_json::from_str(&snapshot["chat"].state).unwrap();
    assert_eq!((chat, snapshot["chat"].version), (bench.chat(), 2));
}

#[test]
fn a_state_of_a_newer_shape_or_none_degrades_its_plugin_with_a_sentence() {
    for (version, state, why) in [
        (3, "{}", "chat: its snapshot: version 3 is newer than this program's 1"),
        (1, "[]", "chat: its snapshot: invalid length 0"),
        (1, "{", "chat: its snapshot: EOF while parsing"),
    ] {
        let bench = Bench::new();
        say(&bench, &["a", "b"]);
        bench.journal.keep(&section(version, state)).unwrap();
        let again = Bench::over(bench.journal.clone());
        let told: Vec<_> = degraded(&again).iter().map(|(a, b)| format!("{a}: {b}")).collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with(why), "{told:?}");
        assert_eq!(again.echo(), bench.echo(), "the others are well");
        let snapshot = keep(&again, machines());
        assert_eq!((snapshot["chat"].version, &*snapshot["chat"].state), (version, state));
    }
}

#[derive(Serialize, Deserialize, Default)]
struct Library;

fn library() -> Machine {
    let mut library = Machine::new::<Library>("library");
    library.fold(|_: &mut Library, said: &Said, stamp: &Stamp, out: &mut Out| {
        if said.text == "fail" {
            return Err(Fault("it was not heard".into()));
        }
        let data = serde_json::value::to_raw_value(&said.text).map_err(|e| Fault(e.to_string()))?;
        let (collection, key) = ("said".to_owned(), said.by.clone());
        out.document(Document { collection, key, sort: stamp.seq.0, data });
        Ok(())
    });
    library
}

#[test]
fn documents_are_written_with_the_facts_that_finished_them_and_not_by_a_rebuild() {
    let journal = ksi_state::testing::memory::MemoryJournal::default();
    let open = || {
        let machines = vec![library()];
        ksi_state::Sequencer::open(Replica::new(machines), std::sync::Arc::new(journal.clone()))
            .unwrap()
            .0
    };
    let said = || -> Vec<String> {
        let found = journal.documents(&Select::all("said")).unwrap();
        found.iter().map(|one| format!("{} {} {}", one.key, one.sort, one.data)).collect()
    };
    let sequencer = open();
    sequencer.try_commit(&|_| ());
    for (by, text) in [("ann", "a"), ("bob", "b"), ("ann", "c"), ("bob", "fail"), ("bob", "d")] {
        let said = Said { by: by.into(), text: text.into() };
        let decide = |_: &Library, _| (ksi_state::Facts::one(said), ());
        let (id, by) = (ksi_state::PluginId(0), By::default());
        let decided = sequencer.decide(id, &by, Millis(1), decide, Box::new(|_| {}));
        assert_eq!(decided.is_err(), text == "d", "a degraded plugin decides no more");
        assert!(journal.documents(&Select::all("said")).unwrap().len() <= 2);
        sequencer.try_commit(&|_| ());
    }
    let all = [r#"bob 2 "b""#, r#"ann 3 "c""#];
    assert_eq!(said(), all);
    let facts: Vec<Record> = journal.read(&Query::default()).unwrap();
    assert_eq!(facts.len(), 4);
    open().try_commit(&|_| ());
    assert_eq!(said(), all);
}
