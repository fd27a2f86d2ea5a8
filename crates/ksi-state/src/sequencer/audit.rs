//! For tests: memory against a fold of the whole journal.

use super::*;
use crate::machine::Want;
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
        let wants = inner.live.machines.iter().enumerate().flat_map(|(id, machine)| {
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
    /// Compares with a fold from the start.
    fn audit(&self, journal: &dyn Journal) -> Result<[Vec<Snapshot>; 2], JournalError> {
        let live = self.live.machines.iter().map(Machine::snapshot).collect();
        let fresh = self.refold(self.live.fork(), journal);
        Ok([live, fresh?])
    }

    fn refold(
        &self,
        mut fresh: Replica,
        journal: &dyn Journal,
    ) -> Result<Vec<Snapshot>, JournalError> {
        fresh.rebuild(&Default::default(), journal)?;
        let waiting = &self.pending.records;
        if fresh.head.0 + waiting.len() as u64 != self.live.head.0 {
            let message = "an audit must wait until the writer is idle".to_owned();
            return Err(JournalError { message, source: None });
        }
        for machine in &mut fresh.machines {
            waiting.iter().for_each(|record| machine.apply(None, record, &mut Out::default()));
            machine.want(Changed::All);
        }
        Ok(fresh.machines.iter().map(Machine::snapshot).collect())
    }
}
