//! For tests: memory against a fold of the whole journal.

use super::*;
use crate::machine::{Live, Want};
use crate::testing::Snapshot;

impl Sequencer {
    /// Each plugin's state and wants, as they are and as a fold of the whole journal makes them.
    ///
    /// Equal unless a fold is not pure or a drive's many small answers differ from its full one.
    pub fn audit(&self) -> Result<[Vec<Snapshot>; 2], JournalError> {
        self.lock().audit(&*self.journal)
    }

    /// Every run that is wanted, with its epoch.
    pub fn wants(&self) -> Vec<((PluginId, String), u64)> {
        let inner = self.lock();
        let wants = inner.machines.iter().enumerate().flat_map(|(id, machine)| {
            let wanted = machine.live.wanted.values();
            wanted.filter_map(move |want| match want {
                Want::Run { key, epoch, .. } => Some(((PluginId(id), key.clone()), *epoch)),
                Want::Stop { .. } => None,
            })
        });
        wants.collect()
    }
}

impl Inner {
    fn snapshot(&self) -> Vec<Snapshot> {
        self.machines.iter().map(Machine::snapshot).collect()
    }

    /// Compares with a fold from the start, and leaves everything as it was.
    fn audit(&mut self, journal: &dyn Journal) -> Result<[Vec<Snapshot>; 2], JournalError> {
        let live = self.snapshot();
        let places = (self.head, self.durable, self.at);
        let kept: Vec<Live> = self.machines.iter_mut().map(Machine::reset).collect();
        let fresh = self.refold(journal, places.0);
        self.machines.iter_mut().zip(kept).for_each(|(machine, kept)| machine.live = kept);
        (self.head, self.durable, self.at) = places;
        Ok([live, fresh?])
    }

    fn refold(&mut self, journal: &dyn Journal, head: Seq) -> Result<Vec<Snapshot>, JournalError> {
        self.rebuild(journal)?;
        let waiting = self.pending.records.clone();
        if self.head.0 + waiting.len() as u64 != head.0 {
            let message = "an audit must wait until the writer is idle".to_owned();
            return Err(JournalError { message, source: None });
        }
        for machine in &mut self.machines {
            waiting.iter().for_each(|record| machine.apply(None, record, &mut None));
            machine.live.wanted.clear();
            machine.want(Changed::All);
        }
        Ok(self.snapshot())
    }
}
