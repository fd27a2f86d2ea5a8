//! A seeded world: machines and their runs without threads, with crashes and full disks.
//!
//! In reading order: [`Dice`], where chance comes from; [`Script`], what a test brings;
//! [`World`], which plays it and checks after every step what must always hold.

#![allow(clippy::unwrap_used, reason = "only tests use this")]

use std::{
    cell::RefCell,
    collections::BTreeMap,
    mem,
    sync::{Arc, Mutex},
};

use ksi_state::{
    AnyEffect, AppendError, By, Committed, Facts, Journal, Machine, Millis, Origin, PluginId,
    Query, Refused, Replica, Seq, Sequencer, State, Wants, testing::memory::MemoryJournal,
};

use crate::runs::{Action, Ended, Place, Runs};

/// Chance that comes out the same for the same seed.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Dice of this seed.
    pub fn new(seed: u64) -> Self {
        Dice(seed)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below this one.
    pub fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// What a test plays in a world.
pub trait Script {
    /// The machines, the same at every start.
    fn machines(&self) -> Vec<Machine>;

    /// Decides something at random, through [`World::decide`].
    fn decide(&self, world: &mut World, dice: &mut Dice);

    /// A running effect reports something at random, or nothing.
    fn report(&self, world: &mut World, run: &Running, dice: &mut Dice);
}

/// An effect that runs.
#[derive(Debug, Clone)]
pub struct Running {
    /// What it is about.
    pub place: Place,
    /// Which attempt.
    pub epoch: u64,
    /// The work.
    pub effect: AnyEffect,
    stopping: bool,
}

/// What became of each decision that had facts: how many, and whether they were promised or lost.
#[derive(Debug, Default)]
struct Ledger(BTreeMap<String, (usize, Option<Result<(), Refused>>)>);

/// Machines and runs over a journal in memory, all on one thread.
pub struct World {
    journal: MemoryJournal,
    sequencer: Sequencer,
    runs: Runs,
    running: BTreeMap<Place, Running>,
    now: Millis,
    ledger: Arc<Mutex<Ledger>>,
    decisions: u64,
    failures: u64,
}

impl World {
    /// A world over an empty journal.
    pub fn new(script: &impl Script) -> World {
        let journal = MemoryJournal::default();
        let now = Millis(1_000_000);
        let (sequencer, wants) =
            Sequencer::open(Replica::new(script.machines()), Arc::new(journal.clone())).unwrap();
        let mut world = World {
            journal,
            sequencer,
            runs: Runs::default(),
            running: BTreeMap::new(),
            now,
            ledger: Arc::default(),
            decisions: 0,
            failures: 0,
        };
        world.begin(wants, script);
        world
    }

    /// Plays so many random steps, checks after each, and ends with everything on disk.
    pub fn play(script: &impl Script, seed: u64, steps: usize) -> World {
        let (mut world, mut dice) = (World::new(script), Dice::new(seed));
        for step in 0..steps {
            world.step(script, &mut dice);
            world.check(&format!("seed {seed}, step {step}"));
        }
        world.commit(script);
        world.crash(script);
        world.check(&format!("seed {seed}, after the last restart"));
        world
    }

    /// Decides, and keeps book of what was promised.
    pub fn decide<S: State, R>(
        &mut self,
        plugin: PluginId,
        effect: Option<(String, u64)>,
        decide: impl FnOnce(&S, Millis) -> (Facts, R),
    ) -> Result<R, Refused> {
        self.decisions += 1;
        let tag = self.decisions.to_string();
        let origin = Origin { correlation: Some(tag.clone()), ..Origin::default() };
        let by = By { origin: Arc::new(origin), effect };
        let ledger = self.ledger.clone();
        let noted = tag.clone();
        let done = Box::new(move |result| {
            if let Some(entry) = ledger.lock().unwrap().0.get_mut(&noted) {
                entry.1 = Some(result);
            }
        });
        let ledger = self.ledger.clone();
        let counted = |state: &S, now| {
            let (facts, reply) = decide(state, now);
            ledger.lock().unwrap().0.insert(tag, (facts.count(), None));
            (facts, reply)
        };
        self.sequencer.decide(plugin, &by, self.now, counted, done)
    }

    /// The time, which may go back.
    pub fn now(&self) -> Millis {
        self.now
    }

    /// The journal.
    pub fn journal(&self) -> &MemoryJournal {
        &self.journal
    }

    /// How often an effect ended though it was still wanted.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    fn step(&mut self, script: &impl Script, dice: &mut Dice) {
        match dice.below(100) {
            0..30 => script.decide(self, dice),
            30..55 => self.commit(script),
            55..72 => {
                if let Some(run) = self.any_run(dice) {
                    script.report(self, &run, dice);
                }
            }
            72..84 => {
                if let Some(run) = self.any_run(dice) {
                    self.end(&run.place);
                }
            }
            84..92 => self.pass_time(dice),
            92..96 => self.journal.fail_next(AppendError::Full("the disk is full".into())),
            _ => self.crash(script),
        }
    }

    fn any_run(&self, dice: &mut Dice) -> Option<Running> {
        let place = dice.roll() as usize % self.running.len().max(1);
        self.running.values().nth(place).cloned()
    }

    fn pass_time(&mut self, dice: &mut Dice) {
        self.now = match dice.percent(20) {
            true => Millis(self.now.0 - dice.below(500)),
            false => self.now.plus(dice.below(3_000)),
        };
        let actions = self.runs.due(self.now);
        self.act(actions);
    }

    fn commit(&mut self, script: &impl Script) {
        let news = RefCell::new(Vec::new());
        self.sequencer.try_commit(&|piece| news.borrow_mut().push(piece));
        for piece in news.into_inner() {
            match piece {
                Committed::Batch(batch) => {
                    let actions = self.runs.apply(batch.wants, self.now);
                    self.act(actions);
                }
                Committed::Full(wants) => self.hold(wants),
                Committed::Room => {
                    let actions = self.runs.go_on(self.now);
                    self.act(actions);
                }
                Committed::Broken(_) => self.crash(script),
                Committed::Settled(dones, result) => {
                    dones.into_iter().for_each(|done| done(result.clone()));
                }
            }
        }
    }

    fn begin(&mut self, wants: Wants, script: &impl Script) {
        self.hold(wants);
        self.commit(script);
    }

    fn hold(&mut self, wants: Wants) {
        self.runs.hold();
        let actions = self.runs.replace(wants, self.now);
        self.act(actions);
    }

    /// The process dies and starts again over what is on disk.
    fn crash(&mut self, script: &impl Script) {
        let journal = Arc::new(self.journal.clone());
        let (sequencer, wants) = Sequencer::open(Replica::new(script.machines()), journal).unwrap();
        (self.sequencer, self.runs) = (sequencer, Runs::default());
        self.running.clear();
        self.begin(wants, script);
    }

    fn end(&mut self, place: &Place) {
        self.running.remove(place);
        let (ended, actions) = self.runs.ended(place, self.now);
        self.failures += u64::from(matches!(ended, Ended::Again { .. }));
        self.act(actions);
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Stop(place) => {
                    let run = self.running.get_mut(&place).expect("only what runs is stopped");
                    assert!(!mem::replace(&mut run.stopping, true), "stopped twice: {place:?}");
                }
                Action::Start { place, epoch, effect } => {
                    let run = Running { place: place.clone(), epoch, effect, stopping: false };
                    let before = self.running.insert(place, run);
                    assert!(before.is_none(), "two runs of one key: {before:?}");
                }
            }
        }
    }

    /// What must hold after every step.
    fn check(&self, at: &str) {
        let [live, fresh] = self.sequencer.audit().unwrap();
        assert_eq!(live, fresh, "{at}: memory differs from a fold of the whole journal");
        self.check_journal(at);
        let (head, durable) = self.sequencer.position();
        if head != durable {
            return;
        }
        let wants = self.sequencer.wants();
        assert_eq!(self.runs.wanted(), wants, "{at}: other runs than wanted");
        for run in self.running.values().filter(|run| !run.stopping) {
            let wanted = wants.contains(&(run.place.clone(), run.epoch));
            assert!(wanted, "{at}: runs unwanted: {run:?}");
        }
    }

    /// Promised facts are on disk, lost ones are not, and no decision is there by half.
    fn check_journal(&self, at: &str) {
        let mut found: BTreeMap<String, usize> = BTreeMap::new();
        let mut last = (Seq(0), Millis(0));
        for record in self.journal.read(&Query::default()).unwrap() {
            assert_eq!(record.seq, last.0.next(), "{at}: a gap");
            assert!(record.at >= last.1, "{at}: time went back at fact {}", record.seq);
            last = (record.seq, record.at);
            *found.entry(record.origin.correlation.clone().unwrap()).or_default() += 1;
        }
        for (tag, (facts, outcome)) in &self.ledger.lock().unwrap().0 {
            let there = found.get(tag).copied().unwrap_or_default();
            match outcome {
                Some(Ok(())) => assert_eq!(there, *facts, "{at}: promised and gone: {tag}"),
                Some(Err(_)) => assert_eq!(there, 0, "{at}: lost and yet there: {tag}"),
                None => assert!(there == 0 || there == *facts, "{at}: by half: {tag}"),
            }
        }
    }
}
