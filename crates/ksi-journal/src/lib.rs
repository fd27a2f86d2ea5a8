//! The journal on SQLite: one file, one writer, readers beside it.
//!
//! In reading order: `open`, how a file becomes a journal; `writer`, how facts get into it;
//! `reader`, how they are found again; `texts`, how a long one is kept once; `chain`, how a
//! changed fact is noticed; `shelf`, where snapshots are; `prune`, which facts go; `upkeep` and
//! `backup`, what people do with a journal.

mod backup;
mod chain;
mod open;
mod prune;
mod query;
mod reader;
mod row;
mod shelf;
mod texts;
mod upkeep;
mod writer;

use std::{path::Path, sync::Mutex};

use ksi_record::{
    Append, AppendError, Document, Journal, JournalError, Query, Record, Select, Seq, Snapshot,
};

pub use backup::{BackupError, Written};
pub use open::{OpenError, Options};
pub use prune::Retention;
pub use reader::{Reader, VerifyError};
pub use shelf::{Entry, Header, SnapshotError};
pub use upkeep::{Kept, Stats};

use shelf::Shelf;
use writer::Writer;

/// So many facts are checked where somebody only looks.
const CHECKED: u64 = 1_000;

/// A journal in an SQLite file.
pub struct SqliteJournal {
    writer: Mutex<Writer>,
    reader: Reader,
    shelf: Shelf,
    retention: Retention,
    /// Held by who changes the snapshots or prunes, and by who needs them to stay as they are.
    upkeep: Mutex<()>,
}

impl SqliteJournal {
    /// Opens the journal in this file, which is made when it is not there; its folder must be.
    ///
    /// The facts behind the newest snapshot are checked, so that a torn or edited file is noticed
    /// before it is used.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_with(path, &Options::default())
    }

    /// Opens a journal with limits of its own.
    pub fn open_with(path: &Path, options: &Options) -> Result<Self, OpenError> {
        let writer = open::for_writing(path, options)?;
        let reader = Reader::open(path)?;
        let shelf = Shelf::beside(reader.path());
        let reader = reader.trusted(|reader| upkeep::newest_seq(reader, &shelf))?;
        let retention = options.retention;
        let (writer, upkeep) = (Mutex::new(Writer::new(writer)), Mutex::default());
        Ok(Self { writer, reader, shelf, retention, upkeep })
    }

    /// Opens a journal that must be there, for tools that only look.
    ///
    /// Of its facts only the newest are checked.
    pub fn open_read_only(path: &Path) -> Result<Reader, OpenError> {
        let newest = |reader: &Reader| Ok(Seq(reader.head()?.0.saturating_sub(CHECKED)));
        Reader::open(path)?.trusted(newest)
    }

    /// Checks every fact behind `from` against the one before it; returns the last one's place.
    pub fn verify(&self, from: Seq) -> Result<Seq, VerifyError> {
        self.reader.verify(from)
    }

    /// Checks every fact, and every text that facts and documents share.
    pub fn verify_all(&self) -> Result<Seq, VerifyError> {
        self.reader.verify_all()
    }

    /// Moves the log into the file, which the next start would have to read and check.
    ///
    /// Facts are as safe without it: what stands in the way, such as a reader, is left in peace.
    pub fn tidy_up(&self) {
        let _ = self.writer().map(|writer| writer.tidy_up());
    }

    /// A panic under it has left whole files behind.
    fn upkeep(&self) -> std::sync::MutexGuard<'_, ()> {
        self.upkeep.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn writer(&self) -> Result<std::sync::MutexGuard<'_, Writer>, JournalError> {
        self.writer.lock().map_err(|_| JournalError {
            message: "its writer panicked; start again".into(),
            source: None,
        })
    }
}

impl Journal for SqliteJournal {
    fn claim(&self) -> Result<u64, JournalError> {
        self.writer()?.claim()
    }

    fn head(&self) -> Result<Seq, JournalError> {
        self.reader.head()
    }

    fn pruned(&self) -> Result<Seq, JournalError> {
        self.reader.pruned()
    }

    fn append(&self, batch: Append<'_>) -> Result<(), AppendError> {
        self.writer()?.append(batch)
    }

    fn read(&self, query: &Query) -> Result<Vec<Record>, JournalError> {
        self.reader.read(query)
    }

    fn documents(&self, select: &Select) -> Result<Vec<Document>, JournalError> {
        self.reader.documents(select)
    }

    fn snapshot(&self) -> Result<Snapshot, JournalError> {
        self.newest_snapshot()
    }

    fn keep(&self, snapshot: &Snapshot) -> Result<(), JournalError> {
        let _upkeep = self.upkeep();
        self.put(snapshot)?;
        self.prune()
    }
}

fn failed(doing: &str) -> impl FnOnce(rusqlite::Error) -> JournalError {
    let message = doing.to_owned();
    move |error| JournalError { message, source: Some(Box::new(error)) }
}
