//! A nasty sample: jobs of which only the first few run, so that one job's end frees another.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use ksi_runtime::world::{Dice, Running, Script, World};
use ksi_state::{Changed, Fact, Facts, Fault, Machine, Millis, Out, PluginId, Stamp, Want};
use serde::{Deserialize, Serialize};

pub(crate) const DEPOT: PluginId = PluginId(0);
pub(crate) const TALLY: PluginId = PluginId(1);

#[derive(Serialize, Deserialize)]
pub(crate) struct JobAdded {
    pub(crate) id: String,
    pub(crate) at: Millis,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct JobFailed {
    pub(crate) id: String,
    pub(crate) again_at: Millis,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct JobDone {
    pub(crate) id: String,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct JobCancelled {
    pub(crate) id: String,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct LimitSet {
    pub(crate) limit: usize,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct TallySent {
    pub(crate) count: u64,
}

impl Fact for JobAdded {
    const NAME: &'static str = "job:added";
    fn subject(&self) -> Cow<'_, str> {
        (&self.id).into()
    }
}

impl Fact for JobFailed {
    const NAME: &'static str = "job:failed";
    fn subject(&self) -> Cow<'_, str> {
        (&self.id).into()
    }
}

impl Fact for JobDone {
    const NAME: &'static str = "job:done";
    fn subject(&self) -> Cow<'_, str> {
        (&self.id).into()
    }
}

impl Fact for JobCancelled {
    const NAME: &'static str = "job:cancelled";
    fn subject(&self) -> Cow<'_, str> {
        (&self.id).into()
    }
}

impl Fact for LimitSet {
    const NAME: &'static str = "limit:set";
    fn subject(&self) -> Cow<'_, str> {
        "limit".into()
    }
}

impl Fact for TallySent {
    const NAME: &'static str = "tally:sent";
    fn subject(&self) -> Cow<'_, str> {
        "tally".into()
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) attempt: u64,
    pub(crate) at: Millis,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Depot {
    pub(crate) jobs: BTreeMap<String, Job>,
    pub(crate) limit: usize,
}

impl Default for Depot {
    fn default() -> Self {
        Depot { jobs: BTreeMap::new(), limit: 2 }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Work {
    pub(crate) id: String,
    pub(crate) attempt: u64,
}

impl Depot {
    fn chosen(&self) -> BTreeSet<String> {
        self.jobs.keys().take(self.limit).cloned().collect()
    }

    /// Changes the jobs and touches each that is chosen now and was not, or the other way round.
    fn change(&mut self, out: &mut Out, change: impl FnOnce(&mut Self)) {
        let before = self.chosen();
        change(self);
        for key in before.symmetric_difference(&self.chosen()) {
            out.touch(key);
        }
    }

    fn wanted(&self, changed: Changed<'_>) -> Vec<Want<Work>> {
        let chosen = self.chosen();
        let run = |key: &String| {
            let job = self.jobs.get(key).filter(|_| chosen.contains(key))?;
            let effect = Work { id: key.clone(), attempt: job.attempt };
            Some(Want::Run { key: key.clone(), epoch: job.attempt, at: job.at, effect })
        };
        match changed {
            Changed::All => chosen.iter().filter_map(run).collect(),
            Changed::Keys(keys) => keys
                .iter()
                .map(|key| run(key).unwrap_or_else(|| Want::Stop { key: key.clone() }))
                .collect(),
        }
    }
}

/// Another plugin, which folds the depot's facts and sends a word after every third job.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub(crate) done: u64,
    pub(crate) sent: u64,
}

impl Tally {
    fn wanted(&self, _: Changed<'_>) -> Vec<Want<u64>> {
        let (key, epoch, at) = ("tally".to_owned(), self.sent + 1, Millis(0));
        match self.done >= 3 * (self.sent + 1) {
            true => vec![Want::Run { key, epoch, at, effect: self.sent + 1 }],
            false => vec![Want::Stop { key }],
        }
    }
}

/// The depot and the tally; a careless one forgets to touch the jobs that another's end frees.
#[derive(Default)]
pub(crate) struct Jobs {
    pub(crate) careless: bool,
}

pub(crate) fn depot(careless: bool) -> Machine {
    let mut machine = Machine::new::<Depot>("depot");
    machine.fold(|depot: &mut Depot, added: &JobAdded, _: &Stamp, out| {
        let job = Job { attempt: 1, at: added.at };
        depot.change(out, |depot| depot.jobs.extend([(added.id.clone(), job)]));
        Ok(())
    });
    machine.fold(|depot: &mut Depot, failed: &JobFailed, _: &Stamp, _| {
        let job = depot.jobs.get_mut(&failed.id).ok_or_else(|| Fault("no such job".into()))?;
        (job.attempt, job.at) = (job.attempt + 1, failed.again_at);
        Ok(())
    });
    machine.fold(move |depot: &mut Depot, done: &JobDone, _: &Stamp, out| {
        let mut unheard = Out::default();
        let out = if careless { &mut unheard } else { out };
        depot.change(out, |depot| depot.jobs.retain(|id, _| *id != done.id));
        Ok(())
    });
    machine.fold(|depot: &mut Depot, cancelled: &JobCancelled, _: &Stamp, out| {
        depot.change(out, |depot| depot.jobs.retain(|id, _| *id != cancelled.id));
        Ok(())
    });
    machine.fold(|depot: &mut Depot, set: &LimitSet, _: &Stamp, out| {
        depot.change(out, |depot| depot.limit = set.limit);
        Ok(())
    });
    machine.drive(Depot::wanted);
    machine
}

fn tally() -> Machine {
    let mut machine = Machine::new::<Tally>("tally");
    machine.fold(|tally: &mut Tally, _: &JobDone, _: &Stamp, out| {
        tally.done += 1;
        out.touch("tally");
        Ok(())
    });
    machine.fold(|tally: &mut Tally, sent: &TallySent, _: &Stamp, _| {
        tally.sent = sent.count;
        Ok(())
    });
    machine.drive(Tally::wanted);
    machine
}

impl Script for Jobs {
    fn machines(&self) -> Vec<Machine> {
        vec![depot(self.careless), tally()]
    }

    fn decide(&self, world: &mut World, dice: &mut Dice) {
        let id = format!("job-{}", dice.below(6));
        let (kind, number) = (dice.below(100), dice.below(3_000));
        let _ = world.decide(DEPOT, None, |depot: &Depot, now| {
            let known = depot.jobs.contains_key(&id);
            let facts = match kind {
                0..10 => Facts::one(LimitSet { limit: number as usize % 4 }),
                10..25 if known => Facts::one(JobCancelled { id }),
                25..35 if known => {
                    let at = now.plus(number);
                    Facts::one(JobCancelled { id: id.clone() }).and(JobAdded { id, at })
                }
                35..90 if !known => {
                    let other = JobAdded { id: format!("{id}-b"), at: now };
                    Facts::one(JobAdded { id, at: now.plus(number % 1_000) }).and(other)
                }
                _ => Facts::none(),
            };
            (facts, ())
        });
    }

    fn report(&self, world: &mut World, run: &Running, dice: &mut Dice) {
        let effect = Some((run.place.1.clone(), run.epoch));
        if let Some(count) = run.effect.get::<u64>().copied() {
            let sent = |_: &Tally, _| (Facts::one(TallySent { count }), ());
            let _ = world.decide(TALLY, effect, sent);
            return;
        }
        let work = run.effect.get::<Work>().expect("the depot's effect").clone();
        let (kind, pause) = (dice.below(100), dice.below(2_000));
        let _ = world.decide(DEPOT, effect, |depot: &Depot, now| {
            let job = depot.jobs.get(&work.id).expect("only a wanted effect may report");
            assert_eq!(job.attempt, work.attempt, "only the present attempt may report");
            let facts = match kind {
                0..50 => Facts::one(JobDone { id: work.id }),
                50..85 => Facts::one(JobFailed { id: work.id, again_at: now.plus(pause) }),
                _ => Facts::none(),
            };
            (facts, ())
        });
    }
}
