//! The suite of every journal: closed before each restart, and left as a crash leaves it.

use std::mem::ManuallyDrop;

use ksi_journal::SqliteJournal;
use ksi_record::{
    Append, AppendError, Document, Journal, JournalError, Query, Record, Select, Seq, Snapshot,
};

use crate::Place;

fn open() -> impl Fn() -> Box<dyn Journal> {
    let place = Place::new();
    move || Box::new(SqliteJournal::open(&place.file()).unwrap())
}

ksi_record::journal_suite!(open());

mod without_closing {
    use super::*;

    ksi_record::journal_suite!(open());

    fn open() -> impl Fn() -> Box<dyn Journal> {
        let place = Place::new();
        move || {
            let journal = SqliteJournal::open(&place.file()).unwrap();
            Box::new(NeverClosed(ManuallyDrop::new(journal)))
        }
    }
}

/// A journal whose connections are left open when it goes.
struct NeverClosed(ManuallyDrop<SqliteJournal>);

impl Journal for NeverClosed {
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
        self.0.append(batch)
    }

    fn read(&self, query: &Query) -> Result<Vec<Record>, JournalError> {
        self.0.read(query)
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
}
