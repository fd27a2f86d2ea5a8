//! What runs: turns wants into starts and stops, one run per key, and remembers what is due.

use std::collections::{BTreeMap, BTreeSet};

use ksi_state::{AnyEffect, Millis, PluginId, Want, Wants};

/// A plugin and a key of it: what one run is about.
pub type Place = (PluginId, String);

/// What the owner of the runs must do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Start this effect.
    Start {
        /// What it is about.
        place: Place,
        /// Which attempt.
        epoch: u64,
        /// The work.
        effect: AnyEffect,
    },
    /// Stop what runs there, and say so through [`Runs::ended`].
    Stop(Place),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It was no longer wanted.
    Done,
    /// It is still wanted: it failed without a fact, so often in a row, and runs again then.
    Again {
        /// Failures in a row, this one counted.
        failures: u32,
        /// When it runs again.
        at: Millis,
    },
}

#[derive(Debug, Default)]
struct Run {
    wanted: Option<(u64, Millis, AnyEffect)>,
    running: Option<u64>,
    stopping: bool,
    armed: Option<Millis>,
    failures: u32,
}

/// All runs, pure: time comes in, actions come out.
#[derive(Debug, Default)]
pub struct Runs {
    runs: BTreeMap<Place, Run>,
    due: BTreeSet<(Millis, Place)>,
    /// What comes due waits.
    held: bool,
}

/// The pause before a run that failed without a fact is tried again, doubled each time.
const FIRST_PAUSE_MS: u64 = 500;
const LONGEST_PAUSE_MS: u64 = 60_000;

impl Runs {
    /// Takes wants in the order in which they became durable.
    pub fn apply(&mut self, wants: Wants, now: Millis) -> Vec<Action> {
        let mut actions = Vec::new();
        for (plugin, want) in wants {
            match want {
                Want::Run { key, epoch, at, effect } => {
                    self.want((plugin, key), Some((epoch, at, effect)), now, &mut actions);
                }
                Want::Stop { key } => self.want((plugin, key), None, now, &mut actions),
            }
        }
        actions
    }

    /// Takes the complete set: what runs and is not in it is stopped.
    pub fn replace(&mut self, wants: Wants, now: Millis) -> Vec<Action> {
        let keep: BTreeSet<Place> = wants
            .iter()
            .filter_map(|(plugin, want)| match want {
                Want::Run { key, .. } => Some((*plugin, key.clone())),
                Want::Stop { .. } => None,
            })
            .collect();
        let gone: Vec<_> =
            self.runs.keys().filter(|place| !keep.contains(place)).cloned().collect();
        let mut actions = Vec::new();
        for place in gone {
            self.want(place, None, now, &mut actions);
        }
        actions.extend(self.apply(wants, now));
        actions
    }

    /// Starts nothing until [`Runs::go_on`]; what runs goes on.
    pub fn hold(&mut self) {
        self.held = true;
    }

    /// Whether what comes due waits.
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Starts again what comes due, and what has meanwhile.
    pub fn go_on(&mut self, now: Millis) -> Vec<Action> {
        self.held = false;
        self.due(now)
    }

    /// A run is over, whether it was stopped, succeeded, failed or panicked.
    pub fn ended(&mut self, place: &Place, now: Millis) -> (Ended, Vec<Action>) {
        let Some(run) = self.runs.get_mut(place) else { return (Ended::Done, Vec::new()) };
        let epoch = run.running.take();
        let stopped = std::mem::take(&mut run.stopping);
        let Some(wanted) = run.wanted.clone() else {
            self.runs.remove(place);
            return (Ended::Done, Vec::new());
        };
        if stopped || epoch != Some(wanted.0) {
            let mut actions = Vec::new();
            self.arm(place.clone(), wanted, now, &mut actions);
            return (Ended::Done, actions);
        }
        run.failures += 1;
        let failures = run.failures;
        let pause = FIRST_PAUSE_MS << (failures - 1).min(16);
        let at = now.plus(pause.min(LONGEST_PAUSE_MS));
        run.armed = Some(at);
        self.due.insert((at, place.clone()));
        (Ended::Again { failures, at }, Vec::new())
    }

    /// Starts what has come due.
    pub fn due(&mut self, now: Millis) -> Vec<Action> {
        let mut actions = Vec::new();
        while self.next_due().is_some_and(|at| at <= now) {
            let Some((_, place)) = self.due.pop_first() else { break };
            if let Some((epoch, _, effect)) = self.runs.get(&place).and_then(|r| r.wanted.clone()) {
                self.start(place, epoch, effect, &mut actions);
            }
        }
        actions
    }

    /// When something starts next.
    pub fn next_due(&self) -> Option<Millis> {
        self.due.first().map(|(at, _)| *at).filter(|_| !self.held)
    }

    /// Whether something is wanted there by now.
    pub fn is_due(&self, place: &Place, now: Millis) -> bool {
        let wanted = self.runs.get(place).and_then(|run| run.wanted.as_ref());
        wanted.is_some_and(|(_, at, _)| *at <= now)
    }

    /// Every run that is wanted, with its epoch.
    #[cfg(any(test, feature = "testing"))]
    pub fn wanted(&self) -> Vec<(Place, u64)> {
        let epoch = |run: &Run| run.wanted.as_ref().map(|(epoch, ..)| *epoch);
        self.runs.iter().filter_map(|(place, run)| Some((place.clone(), epoch(run)?))).collect()
    }

    fn want(
        &mut self,
        place: Place,
        wanted: Option<(u64, Millis, AnyEffect)>,
        now: Millis,
        actions: &mut Vec<Action>,
    ) {
        let run = self.runs.entry(place.clone()).or_default();
        if run.wanted.as_ref() == wanted.as_ref() && wanted.is_some() {
            return;
        }
        let epoch = wanted.as_ref().map(|(epoch, ..)| *epoch);
        if run.wanted.as_ref().map(|(epoch, ..)| *epoch) != epoch {
            run.failures = 0;
        }
        run.wanted = wanted.clone();
        if let Some(at) = run.armed.take() {
            self.due.remove(&(at, place.clone()));
        }
        match (run.running, wanted) {
            (Some(running), _) if Some(running) == epoch && !run.stopping => {}
            (Some(_), _) => {
                if !std::mem::replace(&mut run.stopping, true) {
                    actions.push(Action::Stop(place));
                }
            }
            (None, Some(wanted)) => self.arm(place, wanted, now, actions),
            (None, None) => {
                self.runs.remove(&place);
            }
        }
    }

    /// Starts a run now, or remembers it for later.
    fn arm(
        &mut self,
        place: Place,
        (epoch, at, effect): (u64, Millis, AnyEffect),
        now: Millis,
        actions: &mut Vec<Action>,
    ) {
        if at > now || self.held {
            self.runs.entry(place.clone()).or_default().armed = Some(at);
            self.due.insert((at, place));
        } else {
            self.start(place, epoch, effect, actions);
        }
    }

    fn start(&mut self, place: Place, epoch: u64, effect: AnyEffect, actions: &mut Vec<Action>) {
        if let Some(run) = self.runs.get_mut(&place) {
            (run.running, run.armed) = (Some(epoch), None);
            actions.push(Action::Start { place, epoch, effect });
        }
    }
}

#[cfg(test)]
mod tests;
