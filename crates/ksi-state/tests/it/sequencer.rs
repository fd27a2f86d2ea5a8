//! One sequencer over a journal in memory.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, mpsc},
    thread,
};

use ksi_state::{
    Append, AppendError, By, Committed, Document, Facts, Journal, JournalError, Machine, Millis,
    Origin, Query, Record, Refused, Replica, Select, Seq, Sequencer, Snapshot, Stamp,
    testing::memory::MemoryJournal,
};

use crate::chat::*;

#[test]
fn memory_order_is_journal_order_is_replay_order() {
    let bench = Bench::new();
    thread::scope(|scope| {
        for name in ["a", "b", "c", "d"] {
            let bench = &bench;
            scope
                .spawn(move || (0..100).for_each(|n| drop(bench.say(name, &format!("{name}{n}")))));
        }
        (0..100).for_each(|_| bench.commit());
    });
    bench.commit();
    let texts = bench.chat().texts;
    assert_eq!(texts.len(), 400);
    assert_eq!(texts, bench.written());
    assert_eq!(texts, Bench::over(bench.journal.clone()).chat().texts);
    let [live, fresh] = bench.sequencer.audit().unwrap();
    assert_eq!(live, fresh);
}

#[test]
fn the_facts_of_one_decision_are_written_and_passed_on_together() {
    let bench = Bench::new();
    let facts = Facts::one(said("a", "1")).and(said("b", "2")).and(said("a", "3"));
    bench.decide(CHAT, &By::default(), 5, |_: &Chat, _| (facts, ())).0.unwrap();
    bench.commit();
    assert_eq!(bench.journal.appended(), 1);
    let news = bench.news.lock().unwrap();
    let [Committed::Batch(batch)] = &news[..] else { panic!("not one batch") };
    let seqs: Vec<_> = batch.records.iter().map(|record| record.seq.0).collect();
    assert_eq!(seqs, [1, 2, 3]);
    drop(news);
    assert_eq!(bench.last_wants(), ["run a", "run b"], "as of the last fact");
}

#[test]
fn decisions_that_wait_are_one_write_and_one_piece_of_news_in_order() {
    let bench = Bench::new();
    for text in ["1", "2", "3"] {
        bench.say("a", text);
    }
    bench.commit();
    let news = bench.news.lock().unwrap();
    let [Committed::Batch(batch)] = &news[..] else { panic!("not one batch") };
    let places: Vec<_> = batch.records.iter().map(|record| record.seq.0).collect();
    assert_eq!((bench.journal.appended(), places), (1, vec![1, 2, 3]));
}

#[test]
fn a_fact_that_cannot_be_serialized_fails_only_its_own_decision() {
    let bench = Bench::new();
    bench.say("a", "before");
    let facts = Facts::one(said("a", "half")).and(Unspeakable);
    let (reply, promise) = bench.decide(CHAT, &By::default(), 5, |_: &Chat, _| (facts, ()));
    let refused = reply.unwrap_err();
    assert!(matches!(&refused, Refused::Unserializable { fact: "chat:unspeakable", .. }));
    assert!(refused.to_string().contains("there are no words"), "{refused}");
    bench.say("a", "after");
    bench.commit();
    assert_eq!(bench.chat().texts, ["before", "after"]);
    assert_eq!(bench.written(), ["before", "after"]);
    assert_eq!(state(&promise), None, "a refused decision promises nothing");
}

#[test]
fn a_fold_that_fails_or_panics_degrades_only_its_plugin_and_stops_its_wants() {
    for word in ["fail", "panic"] {
        let bench = Bench::new();
        bench.say("a", "hello");
        assert_eq!(bench.wants().len(), 2, "both plugins want something");
        bench.commit();
        bench.say("a", word);
        bench.commit();
        assert_eq!(bench.last_wants(), ["run a", "stop echo"], "{word}");
        let degraded = bench.sequencer.degraded();
        let [("echo", why)] = &degraded[..] else { panic!("{degraded:?}") };
        assert!(why.starts_with("fact 2 chat:said: "), "{why}");
        assert!(why.contains("cannot "), "{why}");
        let refused = bench.decide(ECHO, &By::default(), 5, |_: &Echo, _| (Facts::none(), ())).0;
        assert!(matches!(refused, Err(Refused::Degraded { plugin: "echo", .. })));
        bench.say("a", "more");
        assert_eq!(bench.chat().texts, ["hello", word, "more"], "the chat goes on");
        bench.commit();
        let again = Bench::over(bench.journal.clone());
        assert_eq!(again.sequencer.degraded(), degraded, "a restart comes to the same end");
    }
}

#[test]
fn a_drive_that_panics_degrades_its_plugin_and_stops_its_wants() {
    let bench = Bench::new();
    bench.say("a", "hello");
    bench.commit();
    bench.say("a", "panic later");
    bench.commit();
    assert_eq!(bench.last_wants(), ["run a", "stop echo"]);
    let degraded = bench.sequencer.degraded();
    assert!(matches!(&degraded[..], [("echo", why)] if why.contains("cannot want it")));
}

#[test]
fn a_fact_newer_than_the_program_degrades_the_plugin_that_folds_it() {
    let bench = Bench::new();
    let later = || SaidLater { by: "a".into(), text: "from tomorrow".into() };
    bench.decide(CHAT, &By::default(), 5, |_: &Chat, _| (Facts::one(later()), ())).0.unwrap();
    bench.commit();
    let again = Bench::over(bench.journal);
    let names: Vec<_> = again.sequencer.degraded().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["chat", "echo"]);
    let why = &again.sequencer.degraded()[0].1;
    assert!(why.contains("version 2 is newer than this program's 1"), "{why}");
    assert_eq!(again.wants(), []);
}

#[test]
fn another_plugin_reads_a_fact_through_its_own_type() {
    let bench = Bench::new();
    bench.say("a", "hello");
    assert_eq!(bench.sequencer.peek(ECHO, Echo::clone).unwrap().0, ["hello"]);
}

#[test]
fn an_effect_whose_epoch_was_replaced_is_refused() {
    let bench = Bench::new();
    let report = |key: &str, epoch| {
        let by = By { effect: Some((key.to_owned(), epoch)), ..By::default() };
        bench.decide(CHAT, &by, 5, |_: &Chat, _| (Facts::one(said("a", "reported")), ())).0
    };
    bench.say("a", "first");
    assert_eq!(report("b", 1), Err(Refused::Stale), "nobody wants it");
    assert_eq!(report("a", 1), Ok(()));
    assert_eq!(report("a", 1), Err(Refused::Stale), "its own fact began the next attempt");
    assert_eq!(report("a", 2), Ok(()));
    assert_eq!(bench.chat().texts, ["first", "reported", "reported"]);
}

#[test]
fn a_reply_waits_until_what_it_saw_is_on_disk() {
    let bench = Bench::new();
    let read = || bench.decide(CHAT, &By::default(), 5, |c: &Chat, _| (Facts::none(), c.clone()));
    let (_, nothing) = read();
    assert_eq!(state(&nothing), Some(Ok(())), "there is nothing to wait for");
    let write = bench.say("a", "hello");
    let (seen, promise) = read();
    assert_eq!(seen.unwrap().texts, ["hello"]);
    assert_eq!((state(&write), state(&promise)), (None, None));
    bench.commit();
    assert_eq!((state(&write), state(&promise)), (Some(Ok(())), Some(Ok(()))));
    assert_eq!(bench.news.lock().unwrap().len(), 1, "a read is no news");
}

#[test]
fn replies_follow_the_news_of_all_that_was_written() {
    let bench = Bench::new();
    let order = Arc::new(Mutex::new(Vec::new()));
    for text in ["1", "2"] {
        let order = order.clone();
        let done = Box::new(move |_| order.lock().unwrap().push(format!("reply {text}")));
        let decide = |_: &Chat, _| (Facts::one(said("a", text)), ());
        bench.sequencer.decide(CHAT, &By::default(), Millis(5), decide, done).unwrap();
    }
    let heard = order.clone();
    bench.sequencer.try_commit(&telling(&move |news| {
        let Committed::Batch(batch) = news else { panic!("not durable") };
        heard.lock().unwrap().push(format!("news of {} facts", batch.records.len()));
    }));
    assert_eq!(*order.lock().unwrap(), ["news of 2 facts", "reply 1", "reply 2"]);
}

#[test]
fn wall_time_never_goes_back_though_the_clock_does() {
    let bench = Bench::new();
    for now in [50, 20, 60, 10] {
        let decide = |_: &Chat, at: Millis| (Facts::one(said("a", &at.0.to_string())), ());
        bench.decide(CHAT, &By::default(), now, decide).0.unwrap();
    }
    bench.commit();
    assert_eq!(bench.written(), ["50", "50", "60", "60"]);
    let again = Bench::over(bench.journal);
    let (at, _) = again.decide(CHAT, &By::default(), 1, |_: &Chat, at| (Facts::none(), at));
    assert_eq!(at, Ok(Millis(60)), "also after a restart");
    let stamps = again.journal.read(&Query::default()).unwrap();
    assert_eq!(stamps.iter().map(|r| r.at.0).collect::<Vec<_>>(), [50, 50, 60, 60]);
}

#[test]
fn a_full_disk_forgets_what_was_not_written_and_everything_behind_it() {
    let bench = Bench::new();
    bench.say("a", "kept");
    bench.commit();
    bench.journal.fail_next(full());
    let lost = [bench.say("a", "lost"), bench.say("b", "lost too")];
    let read = bench.decide(CHAT, &By::default(), 5, |_: &Chat, _| (Facts::none(), ())).1;
    bench.commit();
    for told in lost.iter().chain([&read]) {
        assert_eq!(state(told), Some(Err(Refused::Full)), "all that saw it are told");
    }
    assert_eq!((bench.chat().texts, bench.written()), (vec!["kept".into()], vec!["kept".into()]));
    assert!(matches!(bench.news.lock().unwrap().last(), Some(Committed::Full(_))));
    assert_eq!(bench.last_wants(), ["run a", "run echo"], "the complete set");
    assert_eq!(bench.wants(), [(0, "a".into(), 1), (1, "echo".into(), 1)]);
    bench.commit();
    let after = bench.say("b", "after");
    bench.commit();
    assert_eq!(state(&after), Some(Ok(())), "it recovers by itself");
    assert_eq!(bench.sequencer.position(), (Seq(2), Seq(2)));
}

#[test]
fn while_there_is_no_room_facts_are_refused_reads_go_on_and_room_is_told_of_once() {
    let bench = Bench::new();
    bench.say("a", "kept");
    bench.commit();
    bench.journal.fill();
    bench.say("a", "lost");
    let told = || {
        let news = std::mem::take(&mut *bench.news.lock().unwrap());
        let name = |news: &Committed| match news {
            Committed::Batch(_) => "batch",
            Committed::Full(_) => "full",
            Committed::Room => "room",
            Committed::Broken(_) => "broken",
            Committed::Settled(..) => "settled",
        };
        news.iter().map(name).collect::<Vec<_>>()
    };
    for _ in 0..3 {
        bench.commit();
        let facts = Facts::one(said("a", "refused"));
        let (refused, promise) = bench.decide(CHAT, &By::default(), 5, |_: &Chat, _| (facts, ()));
        assert_eq!((refused, state(&promise)), (Err(Refused::Full), None));
        let look = |chat: &Chat, _| (Facts::none(), chat.texts.clone());
        let (read, promise) = bench.decide(CHAT, &By::default(), 5, look);
        assert_eq!((read, state(&promise)), (Ok(vec!["kept".to_owned()]), Some(Ok(()))));
    }
    assert_eq!(told(), ["batch", "full"], "nothing more is lost");
    bench.journal.make_room();
    bench.commit();
    bench.commit();
    assert_eq!(told(), ["room"]);
    assert_eq!(bench.sequencer.degraded(), []);
    bench.say("a", "after");
    bench.commit();
    assert_eq!(bench.written(), ["kept", "after"]);
}

#[test]
fn a_journal_without_room_at_the_start_is_read_and_takes_facts_once_there_is_some() {
    let first = Bench::new();
    first.say("a", "kept");
    first.commit();
    first.journal.fill();
    let bench = Bench::over(first.journal);
    assert_eq!(bench.chat().texts, ["kept"]);
    let names: Vec<_> = bench.sequencer.degraded().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["journal"]);
    bench.journal.make_room();
    bench.commit();
    bench.say("a", "after");
    bench.commit();
    assert_eq!(bench.written(), ["kept", "after"]);
}

#[test]
fn the_writer_looks_for_room_by_itself_and_ends_though_there_is_none() {
    let bench = Bench::new();
    bench.journal.fill();
    bench.say("a", "lost");
    let (tx, rx) = mpsc::channel();
    thread::scope(|scope| {
        let sequencer = &bench.sequencer;
        scope.spawn(move || {
            let pass_on = |news| tx.send(matches!(news, Committed::Room)).unwrap();
            while sequencer.commit(&telling(&pass_on)) {}
        });
        assert_eq!(rx.recv(), Ok(false));
        bench.journal.make_room();
        assert_eq!(rx.recv(), Ok(true));
        bench.journal.fill();
        bench.say("a", "lost too");
        assert_eq!(rx.recv(), Ok(false));
        sequencer.close();
    });
}

#[test]
fn what_is_decided_while_the_failing_write_is_under_way_is_lost_with_it() {
    let bench = Arc::new(Bench::new());
    bench.journal.freeze();
    let first = bench.say("a", "first");
    let writer = thread::spawn({
        let bench = bench.clone();
        move || bench.commit()
    });
    bench.journal.wait_frozen();
    let behind = bench.say("a", "behind");
    bench.journal.fail_next(full());
    bench.journal.thaw();
    writer.join().unwrap();
    assert!(is_lost(&first) && is_lost(&behind));
    assert_eq!(bench.chat(), Chat::default());
}

#[test]
fn a_degraded_plugin_recovers_when_the_fact_it_could_not_bear_is_rolled_back() {
    let bench = Bench::new();
    bench.journal.fail_next(full());
    let names = || bench.sequencer.degraded().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    bench.say("a", "panic");
    assert_eq!(names(), ["echo"]);
    bench.commit();
    assert_eq!(names(), ["journal"], "it had no room; the plugin is well again");
}

#[test]
fn an_unknown_outcome_on_disk_breaks_the_sequencer_for_good() {
    let io = JournalError { message: "no such device".into(), source: None };
    let conflict = AppendError::Conflict { expect: Seq(0), found: Seq(1) };
    for error in [AppendError::Io(io), conflict] {
        let bench = Bench::new();
        let shown = error.to_string();
        bench.journal.fail_next(error);
        let lost = bench.say("a", "lost");
        bench.commit();
        assert_eq!(state(&lost), Some(Err(Refused::Lost(shown))));
        assert!(matches!(bench.news.lock().unwrap().last(), Some(Committed::Broken(_))));
        let (refused, _) = bench.decide(CHAT, &By::default(), 5, |_: &Chat, _| (Facts::none(), ()));
        assert_eq!(refused, Err(Refused::Closed));
        assert!(!bench.sequencer.commit(&telling(&|_| ())), "the writer ends");
    }
}

#[test]
fn of_two_sequencers_on_one_journal_the_first_is_fenced_off() {
    let first = Bench::new();
    first.say("a", "first");
    first.commit();
    let second = Bench::over(first.journal.clone());
    let lost = first.say("a", "too late");
    first.commit();
    assert!(is_lost(&lost));
    assert!(matches!(first.news.lock().unwrap().last(), Some(Committed::Broken(_))));
    let kept = second.say("a", "second");
    second.commit();
    assert_eq!(state(&kept), Some(Ok(())));
    assert_eq!(second.written(), ["first", "second"]);
}

#[test]
fn an_audit_compares_and_changes_nothing() {
    let bench = Bench::new();
    bench.say("a", "on disk");
    bench.commit();
    bench.say("b", "not yet");
    let before = (bench.chat(), bench.wants(), bench.sequencer.position());
    let [live, fresh] = bench.sequencer.audit().unwrap();
    assert_eq!(live, fresh);
    assert_eq!(live[0].state["texts"], serde_json::json!(["on disk", "not yet"]));
    assert_eq!((bench.chat(), bench.wants(), bench.sequencer.position()), before);
    bench.commit();
    assert_eq!(bench.written(), ["on disk", "not yet"]);
}

#[test]
fn an_audit_finds_a_fold_that_is_not_pure() {
    static CALLS: Mutex<u64> = Mutex::new(0);
    let mut machine = Machine::new::<u64>("impure");
    machine.fold(|state: &mut u64, _: &Said, _: &Stamp, _| {
        let mut calls = CALLS.lock().unwrap();
        *calls += 1;
        *state = *calls;
        Ok(())
    });
    let journal = Arc::new(MemoryJournal::default());
    let (sequencer, _) = Sequencer::open(Replica::new(vec![machine]), journal).unwrap();
    sequencer.try_commit(&|_: Committed| ());
    let decide = |_: &u64, _| (Facts::one(said("a", "x")), ());
    sequencer.decide(CHAT, &By::default(), Millis(5), decide, Box::new(|_| ())).unwrap();
    sequencer.try_commit(&|_: Committed| ());
    let [live, fresh] = sequencer.audit().unwrap();
    assert_ne!(live, fresh);
}

#[test]
fn a_decision_that_panics_changes_nothing_and_the_next_is_taken() {
    let bench = Bench::new();
    let panicking = || bench.decide::<Chat, ()>(CHAT, &By::default(), 5, |_, _| panic!("no"));
    assert!(catch_unwind(AssertUnwindSafe(panicking)).is_err());
    bench.say("a", "after");
    bench.commit();
    assert_eq!(bench.written(), ["after"]);
}

#[test]
#[cfg(debug_assertions)]
fn a_decision_that_asks_the_sequencer_again_is_caught_instead_of_hanging() {
    let bench = Bench::new();
    let nested =
        || bench.decide(CHAT, &By::default(), 5, |_: &Chat, _| (Facts::none(), bench.chat()));
    assert!(catch_unwind(AssertUnwindSafe(nested)).is_err());
    assert_eq!(bench.chat(), Chat::default(), "and the lock is free");
}

#[test]
fn every_fact_carries_who_caused_it() {
    let bench = Bench::new();
    let origin = Origin {
        principal: "operator".into(),
        correlation: Some("request-1".into()),
        ..Origin::default()
    };
    let by = By { origin: Arc::new(origin.clone()), effect: None };
    bench.decide(CHAT, &by, 5, |_: &Chat, _| (Facts::one(said("a", "x")), ())).0.unwrap();
    bench.commit();
    assert_eq!(*bench.journal.read(&Query::default()).unwrap()[0].origin, origin);
}

#[test]
fn the_writer_waits_for_decisions_and_ends_after_the_last_one() {
    let bench = Arc::new(Bench::new());
    let (tx, rx) = mpsc::channel();
    let writer = thread::spawn({
        let bench = bench.clone();
        move || while bench.sequencer.commit(&telling(&|_| tx.send(()).unwrap())) {}
    });
    bench.say("a", "1");
    rx.recv().unwrap();
    bench.journal.freeze();
    bench.say("a", "2");
    bench.journal.wait_frozen();
    bench.say("a", "3");
    bench.sequencer.close();
    bench.journal.thaw();
    writer.join().unwrap();
    assert_eq!(bench.written(), ["1", "2", "3"]);
}

#[test]
fn a_long_journal_is_read_back_whole() {
    let bench = Bench::new();
    (0..10_000).for_each(|n| drop(bench.say("a", &n.to_string())));
    bench.commit();
    assert_eq!(Bench::over(bench.journal.clone()).chat(), bench.chat());
}

/// A journal that takes no fact.
struct Panicking(MemoryJournal);

impl Journal for Panicking {
    fn claim(&self) -> Result<u64, JournalError> {
        self.0.claim()
    }

    fn head(&self) -> Result<Seq, JournalError> {
        self.0.head()
    }

    fn pruned(&self) -> Result<Seq, JournalError> {
        self.0.pruned()
    }

    fn append(&self, batch: Append<'_>) -> Result<(), AppendError> {
        assert!(batch.records.is_empty(), "no such page");
        self.0.append(batch)
    }

    fn documents(&self, select: &Select) -> Result<Vec<Document>, JournalError> {
        self.0.documents(select)
    }

    fn snapshot(&self) -> Result<Snapshot, JournalError> {
        self.0.snapshot()
    }

    fn keep(&self, snapshot: &Snapshot) -> Result<(), JournalError> {
        self.0.keep(snapshot)
    }

    fn read(&self, query: &Query) -> Result<Vec<Record>, JournalError> {
        self.0.read(query)
    }
}

#[test]
fn a_journal_that_panics_is_broken_and_those_who_wait_are_told() {
    let journal = Arc::new(Panicking(MemoryJournal::default()));
    let (sequencer, _) = Sequencer::open(Replica::new(machines()), journal).unwrap();
    sequencer.try_commit(&|_: Committed| ());
    let promise = Promise::default();
    let kept = promise.clone();
    let done = Box::new(move |result| *kept.lock().unwrap() = Some(result));
    let facts = Facts::one(said("a", "1"));
    sequencer.decide(CHAT, &By::default(), Millis(5), |_: &Chat, _| (facts, ()), done).unwrap();
    let broken = Mutex::new(None);
    sequencer.try_commit(&telling(&|news| *broken.lock().unwrap() = Some(news)));
    let Some(Committed::Broken(error)) = broken.into_inner().unwrap() else { panic!("it goes on") };
    assert!(error.to_string().contains("no such page"), "{error}");
    assert!(is_lost(&promise), "who waits waits for ever");
}
