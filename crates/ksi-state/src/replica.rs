//! Replicas: all plugins' states as of some fact of the journal.

use ksi_record::{Journal, JournalError, Millis, Query, Seq, Snapshot};

use crate::machine::{Machine, Out};

/// The machines of all plugins, folded up to the same fact.
#[derive(Default)]
pub struct Replica {
    pub(crate) machines: Vec<Machine>,
    pub(crate) head: Seq,
    pub(crate) at: Millis,
}

/// Facts are read back in pages of this many.
const PAGE: usize = 2048;

impl Replica {
    /// Machines that have folded nothing yet.
    pub fn new(machines: Vec<Machine>) -> Self {
        Replica { machines, ..Replica::default() }
    }

    /// The same machines with nothing folded yet.
    pub fn fork(&self) -> Self {
        Self::new(self.machines.iter().map(Machine::fork).collect())
    }

    /// Forgets everything, folds what the journal holds behind the snapshot, and says how far.
    pub fn rebuild(
        &mut self,
        snapshot: &Snapshot,
        journal: &dyn Journal,
    ) -> Result<Seq, JournalError> {
        let reached = snapshot.values().map(|section| (section.seq, section.at)).max();
        (self.head, self.at) = reached.unwrap_or_default();
        for machine in &mut self.machines {
            machine.reset(snapshot.get(machine.name));
        }
        let mut after = self.since();
        loop {
            let records = journal.read(&Query::page(after, PAGE))?;
            for machine in &mut self.machines {
                let fold = |record| machine.apply(None, record, &mut Out::default());
                records.iter().for_each(fold);
            }
            let Some(last) = records.last() else { return Ok(self.head) };
            after = last.seq;
            (self.head, self.at) = (last.seq, last.at).max((self.head, self.at));
        }
    }

    /// The states of now, and of before where a machine's cannot be trusted.
    pub fn snapshot(&self, mut before: Snapshot) -> Snapshot {
        for machine in &self.machines {
            let section = machine.section(self.head, self.at);
            before.extend(section.map(|section| (machine.name.to_owned(), section)));
        }
        before
    }

    /// The fact from which on the journal was folded.
    pub(crate) fn since(&self) -> Seq {
        let since = self.machines.iter().map(|machine| machine.live.since);
        since.min().unwrap_or_default()
    }
}
