//! Random histories of the queue, without a runtime: what holds at every moment, and at the end.

use std::sync::Arc;

use fastrand::Rng;
use ksi_kernel::{Code, Fact, Journal, Query, Result};
use ksi_state::{By, Facts, Machine, PluginId, Replica, Sequencer, testing::memory::MemoryJournal};

use super::*;
use crate::work::{
    archive::{self, Filed, Past},
    facts::ENDINGS,
    provider::{Failure, Outcome, StopReason, Usage},
    retry::{Jitter, Policy},
};

/// The most that any gate of a random history lets through.
const WIDEST: usize = 3;

const WORK: PluginId = PluginId(0);

fn machine() -> Machine {
    let mut machine = Machine::new::<Work>("work");
    machine.fold(Work::queued);
    machine.fold(Work::started);
    machine.fold(Work::retrying);
    machine.fold(Work::completed);
    machine.fold(Work::failed);
    machine.fold(Work::cancelled);
    machine.drive(Work::wanted);
    machine
}

/// A queue over a journal, and the time there.
struct Queue {
    sequencer: Sequencer,
    journal: MemoryJournal,
    now: Millis,
}

impl Queue {
    fn open(journal: &MemoryJournal, now: Millis) -> Self {
        let shared: Arc<dyn Journal> = Arc::new(journal.clone());
        let (sequencer, _) = Sequencer::open(Replica::new(vec![machine()]), shared).unwrap();
        sequencer.try_commit(&|_| ());
        Queue { sequencer, journal: journal.clone(), now }
    }

    /// Decides as an effect of this epoch, or as a client; false if refused.
    fn decide(
        &self,
        effect: Option<(String, u64)>,
        decide: impl FnOnce(&Work, Millis) -> Result<Facts>,
    ) -> bool {
        let by = By { effect, ..By::default() };
        let facts = |work: &Work, now| match decide(work, now) {
            Ok(facts) => (facts, true),
            Err(_) => (Facts::none(), false),
        };
        let done = self.sequencer.decide(WORK, &by, self.now, facts, Box::new(|_| {}));
        self.sequencer.try_commit(&|_| {});
        done.unwrap_or(false)
    }

    fn look<R>(&self, look: impl FnOnce(&Work) -> R) -> R {
        self.sequencer.peek(WORK, look).unwrap()
    }

    fn accept(&self, asked: Queued) -> bool {
        self.decide(None, |work, now| Ok(work.accept(asked, now).0))
    }

    /// As releases did that kept no documents.
    fn accept_as_before(&self, asked: Queued) -> bool {
        self.decide(None, |work, now| match work.accept(asked.clone(), now) {
            (facts, id) if id == asked.request_id => {
                assert_eq!(facts.count(), 1);
                Ok(Facts::one(asked))
            }
            (facts, _) => Ok(facts),
        })
    }

    /// What an attempt finds that was said before.
    fn past(&self, id: &str) -> Past {
        let conversation = self.look(|work| work.conversation_of(id)).unwrap_or_default();
        if let Some(past) = self.look(|work| work.past(&conversation)) {
            return past;
        }
        let (rested, turns) = archive::rested(&self.journal, &conversation).unwrap();
        Past { turns, began: rested.map(|rested| rested.created) }
    }

    /// How a request ended.
    fn ended(&self, id: &str) -> Option<Finished> {
        let in_documents = || {
            let one = |name: &str| archive::one::<Filed>(&self.journal, name, id).unwrap();
            ENDINGS.iter().find_map(|name| one(name)).map(|filed| filed.finished)
        };
        self.look(|work| work.finished.get(id).cloned()).or_else(in_documents)
    }

    fn start(&self, id: &str, epoch: u64) -> bool {
        let effect = Some((id.to_owned(), epoch));
        let past = self.past(id);
        self.decide(effect, |work, now| work.start(id, &past, now).map(|(facts, _)| facts))
    }

    fn report(&self, id: &str, epoch: u64, outcome: Result<Outcome, Failure>) -> bool {
        let effect = Some((id.to_owned(), epoch));
        self.decide(effect, |work, now| work.report(id, outcome, 7, now).map(|(facts, ())| facts))
    }

    fn cancel(&self, id: &str) -> bool {
        self.decide(None, |work, _| work.cancel(id, None).map(|(facts, _)| facts))
    }

    /// What may run at present.
    fn admitted(&self) -> Vec<(String, u64)> {
        self.look(|work| {
            let admitted = work.open.iter().filter(|(_, open)| open.stage != Stage::Waiting);
            admitted.map(|(id, open)| (id.clone(), u64::from(open.retries))).collect()
        })
    }

    fn audit(&self, seed: u64) {
        let [live, folded] = self.sequencer.audit().unwrap();
        assert_eq!(live, folded, "seed {seed}");
        assert_eq!(live[0].degraded, None, "seed {seed}");
    }
}

fn asked(id: &str, conversation: &str, gate: &str, limit: u32) -> Queued {
    Queued {
        request_id: id.into(),
        conversation_id: conversation.into(),
        model: gate.into(),
        provider: gate.into(),
        gate: gate.into(),
        concurrency: limit,
        messages: vec![Message::user(format!("say {id}"))],
        instructions: None,
        max_tokens: None,
        seed: 1,
        temperature: Some(0.3),
        avoid_repeats: Vec::new(),
        timeout_ms: 1_000_000,
        idempotency: None,
        retry: Policy { max_attempts: 3, jitter: Jitter::None, ..Policy::default() },
        client_id: None,
        metadata: serde_json::Value::Null,
        archives: false,
    }
}

fn answer(text: &str) -> Result<Outcome, Failure> {
    Ok(Outcome {
        text: text.into(),
        session_id: None,
        stop_reason: StopReason::End,
        usage: Usage::default(),
        cost_usd: 0.0,
    })
}

fn queue() -> Queue {
    Queue::open(&MemoryJournal::default(), Millis(1_000))
}

fn ids(queue: &Queue) -> Vec<String> {
    queue.admitted().into_iter().map(|(id, _)| id).collect()
}

#[test]
fn a_conversation_has_one_turn_at_a_time_in_order_of_acceptance() {
    let queue = queue();
    for id in ["a", "b", "c"] {
        queue.accept(asked(id, "talk", "scripted", 9));
    }
    queue.accept(asked("d", "other", "scripted", 9));
    assert_eq!(ids(&queue), ["a", "d"]);
    assert!(queue.start("a", 0) && queue.report("a", 0, answer("yes")));
    assert_eq!(ids(&queue), ["b", "d"]);
    assert!(queue.cancel("c"));
    assert!(queue.start("b", 0) && queue.report("b", 0, answer("no")));
    assert_eq!(ids(&queue), ["d"]);
}

#[test]
fn a_gate_lets_so_many_through_first_come_first_served() {
    let queue = queue();
    for id in ["a", "b", "c", "d"] {
        queue.accept(asked(id, id, "local", 2));
    }
    assert_eq!(ids(&queue), ["a", "b"]);
    assert!(queue.cancel("b"));
    assert_eq!(ids(&queue), ["a", "c"]);
    // A later request may bring a wider gate.
    queue.accept(asked("e", "e", "local", 4));
    assert_eq!(ids(&queue), ["a", "c", "d", "e"]);
}

#[test]
fn a_turn_behind_another_waits_at_the_gate_in_its_own_order() {
    let queue = queue();
    queue.accept(asked("a1", "a", "local", 1));
    queue.accept(asked("a2", "a", "local", 1));
    queue.accept(asked("b1", "b", "local", 1));
    assert!(queue.start("a1", 0) && queue.report("a1", 0, answer("x")));
    assert_eq!(ids(&queue), ["a2"], "it was accepted before b1");
}

#[test]
fn a_retry_has_a_new_epoch_and_the_old_attempt_is_not_heard_any_more() {
    let queue = queue();
    queue.accept(asked("a", "a", "scripted", 1));
    assert!(queue.start("a", 0));
    assert!(queue.report("a", 0, Err(Failure::new(Code::Timeout, "slow"))));
    assert!(!queue.report("a", 0, answer("too late")), "its epoch is stale");
    assert_eq!(queue.admitted(), [("a".to_owned(), 1)]);
    let due = queue.look(|work| work.open["a"].due);
    assert_eq!(due, queue.now.plus(1_000));
    assert!(queue.start("a", 1) && queue.report("a", 1, answer("in time")));
    assert_eq!(queue.ended("a").unwrap().attempts, 2);
}

#[test]
fn the_deadline_counts_over_all_attempts_but_not_while_the_daemon_is_down() {
    let journal = MemoryJournal::default();
    let mut queue = Queue::open(&journal, Millis(1_000));
    queue.accept(asked("a", "a", "scripted", 1));
    assert!(queue.start("a", 0));
    queue.now = Millis(2_000);
    assert!(queue.report("a", 0, Err(Failure::new(Code::Timeout, "slow"))));
    let deadline = |queue: &Queue| {
        queue.look(|work| {
            work.start("a", &Past::default(), queue.now)
                .map(|(_, attempt)| attempt.deadline)
                .unwrap()
        })
    };
    assert_eq!(deadline(&queue), Millis(1_001_000));
    assert!(queue.start("a", 1));
    let queue = Queue::open(&journal, Millis(5_000_000));
    assert_eq!(deadline(&queue), Millis(6_000_000));
    assert!(queue.start("a", 1), "an attempt that was cut short is made again");
    assert_eq!(queue.look(|work| work.open["a"].attempts), 3);
}

#[test]
fn no_retry_is_planned_behind_the_deadline() {
    let queue = queue();
    queue.accept(Queued { timeout_ms: 900, ..asked("a", "a", "scripted", 1) });
    assert!(queue.start("a", 0));
    assert!(queue.report("a", 0, Err(Failure::new(Code::Timeout, "slow"))));
    assert!(matches!(queue.ended("a").unwrap().ended, Ended::Failed(_)));
}

#[test]
fn a_key_means_the_same_request_for_a_week() {
    let mut queue = queue();
    let with_key = |id| Queued { idempotency: Some("k".into()), ..asked(id, id, "scripted", 9) };
    for id in ["a", "b"] {
        queue.accept(with_key(id));
    }
    assert_eq!(ids(&queue), ["a"]);
    queue.now = queue.now.plus(WEEK_MS);
    queue.accept(with_key("c"));
    assert_eq!(ids(&queue), ["a", "c"]);
    assert_eq!(queue.look(|work| work.known("k", queue.now).map(str::to_owned)), Some("c".into()));
    assert_eq!(queue.look(|work| work.keys.requests.len() + work.keys.by_age.len()), 2);
}

#[test]
fn history_is_what_was_answered_and_nothing_else() {
    let queue = queue();
    for id in ["a", "b", "c"] {
        queue.accept(asked(id, "talk", "scripted", 9));
    }
    assert!(queue.start("a", 0) && queue.report("a", 0, answer("first")));
    assert!(queue.start("b", 0) && queue.cancel("b"));
    let past = queue.past("c");
    let attempt = queue.look(|work| work.start("c", &past, queue.now).unwrap().1);
    let said: Vec<_> = attempt.request.messages.iter().map(|m| m.content.as_str()).collect();
    assert_eq!(said, ["say a", "first", "say c"]);
    assert_eq!((attempt.request.turn(), attempt.request.prompt()), (1, "say c"));
}

#[test]
fn live_state_equals_a_fold_from_the_start_after_a_thousand_random_histories() {
    let mut ended = 0;
    for seed in 0..1_000 {
        ended += random_history(seed);
    }
    assert!(ended > 5_000, "the histories hardly end anything: {ended}");
}

/// Plays at random, checks what must hold at every moment, and returns how many requests ended.
fn random_history(seed: u64) -> usize {
    let mut dice = Rng::with_seed(seed);
    let journal = MemoryJournal::default();
    let mut queue = Queue::open(&journal, Millis(1));
    // Some journals were begun by a release that kept no documents, and end with it.
    let old = dice.usize(..30);
    let mut accepted = 0;
    for _ in 0..60 {
        queue.now = queue.now.plus(dice.u64(..20_000));
        match dice.u8(..10) {
            0..=3 => {
                accepted += 1;
                let asked = random_request(&mut dice, accepted);
                match accepted > old {
                    true => queue.accept(asked),
                    false => queue.accept_as_before(asked),
                };
            }
            4 => {
                let open = queue.look(|work| work.open.keys().cloned().collect::<Vec<_>>());
                if let Some(id) = dice.choice(&open) {
                    assert!(queue.cancel(id), "seed {seed}");
                }
            }
            5 if dice.u8(..4) == 0 => queue = Queue::open(&journal, queue.now),
            _ => work_on_one(&queue, &mut dice),
        }
        check(&queue, seed);
    }
    queue.audit(seed);
    check_the_past(&queue, seed);
    let counts = queue.look(Work::counts);
    counts.completed + counts.failed + counts.cancelled
}

/// What has ended is in documents or in the state as the facts say, and only what is open is both
/// in the state and new.
fn check_the_past(queue: &Queue, seed: u64) {
    let facts = |name: &str| {
        let query = Query { names: vec![name.into()], ..Query::default() };
        queue.journal.read(&query).unwrap()
    };
    let mut turns = BTreeMap::<String, Vec<String>>::new();
    for record in ENDINGS.iter().flat_map(|name| facts(name)) {
        let ended = queue.ended(&record.subject).unwrap();
        assert_eq!(ended.seq, record.seq, "seed {seed}");
        if record.name == Completed::NAME {
            turns.entry(ended.conversation_id).or_default().push(record.subject.clone());
        }
    }
    for (conversation, ids) in turns {
        let (rested, mut told) = archive::rested(&queue.journal, &conversation).unwrap();
        let live = queue.look(|work| work.conversations.get(&conversation).cloned());
        let unknown = live.as_ref().is_some_and(|live| live.before.is_none());
        let count = live.as_ref().and_then(|live| live.before).or(rested.map(|r| r.turns));
        assert!(unknown || count == Some(told.len()), "seed {seed}: {count:?}");
        told.extend(live.into_iter().flat_map(|live| live.turns));
        let told: Vec<_> = told.into_iter().map(|turn| turn.request_id).collect();
        assert_eq!(told, ids, "seed {seed}");
    }
    queue.look(|work| {
        let resting = work.conversations.values().any(|one| one.lane.is_empty());
        assert!(!work.archives || (work.finished.is_empty() && !resting), "seed {seed}");
    });
}

fn random_request(dice: &mut Rng, number: usize) -> Queued {
    let gate = ["local", "scripted"][dice.usize(..2)];
    let conversation = format!("talk {}", dice.u8(..4));
    let key = dice.bool().then(|| format!("key {}", dice.u8(..9)));
    let limit = dice.u32(1..=WIDEST as u32);
    Queued { idempotency: key, ..asked(&format!("r{number}"), &conversation, gate, limit) }
}

fn work_on_one(queue: &Queue, dice: &mut Rng) {
    let admitted = queue.admitted();
    let Some((id, epoch)) = dice.choice(&admitted) else { return };
    if dice.u8(..3) == 0 {
        queue.start(id, *epoch);
        return;
    }
    let running = queue.look(|work| matches!(work.open[id].stage, Stage::Running(_)));
    if !running {
        queue.start(id, *epoch);
    }
    let outcome = match dice.u8(..4) {
        0 => Err(Failure::new(Code::RateLimited, "slow down")),
        1 => Err(Failure::permanent(Code::BadParams, "no")),
        _ => answer(&format!("answer to {id}")),
    };
    queue.report(id, *epoch, outcome);
}

/// One turn per conversation; nobody waits though there is room; what is wanted is admitted.
fn check(queue: &Queue, seed: u64) {
    queue.look(|work| {
        for (id, open) in &work.open {
            let first = work.position(open) == 0;
            let gate = &work.gates[&open.asked.gate];
            let admitted = open.stage != Stage::Waiting;
            assert_eq!(admitted, gate.admitted.contains(id), "seed {seed}, {id}");
            assert!(first || !admitted, "seed {seed}, {id} runs beside another turn");
            assert!(gate.admitted.len() <= WIDEST, "seed {seed}, a gate is crowded");
            let room = gate.admitted.len() < gate.limit;
            assert!(admitted || !first || !room, "seed {seed}, {id} waits for nothing");
        }
    });
}
