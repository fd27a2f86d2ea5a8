//! One plugin's place in the sequencer: its state, what it wants, and whether it can be trusted.

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
};

use crate::{
    fact::{Millis, Record},
    machine::{AnyEffect, Changed, Fault, Machine, State, Want},
    sequencer::Refused,
};

/// A run that is wanted; kept whole, so that a repeated want is told from a new one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) epoch: u64,
    at: Millis,
    effect: AnyEffect,
}

pub(crate) struct Slot {
    pub(crate) machine: Machine,
    pub(crate) degraded: Option<String>,
    pub(crate) wanted: BTreeMap<String, Wanted>,
    state: Box<dyn Any + Send>,
}

impl Slot {
    pub(crate) fn new(machine: Machine) -> Self {
        let state = (machine.init)();
        Self { machine, degraded: None, wanted: BTreeMap::new(), state }
    }

    pub(crate) fn reset(&mut self) {
        self.state = (self.machine.init)();
        self.wanted.clear();
        self.degraded = None;
    }

    pub(crate) fn state<S: State>(&self) -> Result<&S, Refused> {
        let plugin = self.machine.name;
        match &self.degraded {
            Some(why) => Err(Refused::Degraded { plugin, why: why.clone() }),
            None => self.state.downcast_ref().ok_or_else(|| Refused::Degraded {
                plugin,
                why: "asked for a state of another type".into(),
            }),
        }
    }

    /// Folds one fact; true if this plugin folds it.
    pub(crate) fn apply(
        &mut self,
        live: Option<&dyn Any>,
        record: &Record,
        keys: &mut BTreeSet<String>,
    ) -> bool {
        if self.degraded.is_some() {
            return false;
        }
        match self.machine.apply(&mut *self.state, live, record, keys) {
            Ok(folded) => folded,
            Err(Fault(why)) => {
                self.degraded = Some(why);
                true
            }
        }
    }

    /// What the plugin wants now that it did not before, and what it wants no more.
    pub(crate) fn want(&mut self, changed: Changed<'_>) -> Vec<Want<AnyEffect>> {
        if self.degraded.is_none() {
            match self.machine.wants(&*self.state, changed) {
                Ok(wants) => return wants.into_iter().filter(|want| self.note(want)).collect(),
                Err(Fault(why)) => self.degraded = Some(why),
            }
        }
        // Nothing may run for a state that cannot be trusted.
        std::mem::take(&mut self.wanted).into_keys().map(|key| Want::Stop { key }).collect()
    }

    /// Remembers a want; false if it is not news.
    fn note(&mut self, want: &Want<AnyEffect>) -> bool {
        match want {
            Want::Stop { key } => self.wanted.remove(key).is_some(),
            Want::Run { key, epoch, at, effect } => {
                let wanted = Wanted { epoch: *epoch, at: *at, effect: effect.clone() };
                self.wanted.insert(key.clone(), wanted.clone()) != Some(wanted)
            }
        }
    }

    /// The state as JSON and what is wanted, for comparing.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn snapshot(&self) -> crate::testing::Snapshot {
        let wanted = self.wanted.iter().map(|(key, wanted)| format!("{key}: {wanted:?}"));
        crate::testing::Snapshot {
            plugin: self.machine.name,
            degraded: self.degraded.clone(),
            state: self.machine.dump(&*self.state).unwrap_or_default(),
            wanted: wanted.collect(),
        }
    }

    /// Starts afresh and hands out what was there, for an audit.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn set_aside(&mut self) -> Kept {
        let state = std::mem::replace(&mut self.state, (self.machine.init)());
        Kept { state, wanted: std::mem::take(&mut self.wanted), degraded: self.degraded.take() }
    }

    /// Goes on with what was there before an audit.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn put_back(&mut self, kept: Kept) {
        (self.state, self.wanted, self.degraded) = (kept.state, kept.wanted, kept.degraded);
    }
}

/// What a slot holds, while an audit uses the slot.
#[cfg(any(test, feature = "testing"))]
pub(crate) struct Kept {
    state: Box<dyn Any + Send>,
    wanted: BTreeMap<String, Wanted>,
    degraded: Option<String>,
}
