//! The journal: the one append-only log of facts.

use std::sync::Arc;

use crate::document::{Document, Select};
use crate::record::{Millis, Record, Seq};
use crate::snapshot::Snapshot;

/// What one append writes; all of it or nothing.
#[derive(Debug, Clone, Copy)]
pub struct Append<'a> {
    /// The facts, in order, without a gap; none to learn whether there would be room for some.
    pub records: &'a [Arc<Record>],
    /// What these facts finished.
    pub documents: &'a [Document],
    /// The last fact that the journal must hold at present.
    pub expect: Seq,
    /// The owner's epoch; a newer owner's claim fences older ones off.
    pub epoch: u64,
}

/// Why an append did not happen, or may not have happened.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Somebody else wrote, or owns the journal by now.
    #[error("the journal has another owner: expected fact {expect} to be its last, found {found}")]
    Conflict {
        /// The last fact that the writer knew.
        expect: Seq,
        /// The last fact that is there.
        found: Seq,
    },
    /// No room; nothing was written.
    #[error("the journal has no room: {0}")]
    Full(String),
    /// Writing failed; what is on disk is unknown.
    #[error(transparent)]
    Io(#[from] JournalError),
}

/// A journal that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("the journal failed: {message}")]
pub struct JournalError {
    /// What failed.
    pub message: String,
    /// The cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Which facts to read, oldest first unless `newest_first`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Query {
    /// Only facts behind this one.
    pub after: Seq,
    /// Only facts up to this one.
    pub until: Option<Seq>,
    /// Only facts that happened at this time or later.
    pub since: Option<Millis>,
    /// Only facts that happened before this time.
    pub before: Option<Millis>,
    /// Only facts with a name among these (`a:b`, `a:*`, `*`); empty means every name.
    pub names: Vec<String>,
    /// Only facts about one of these; empty means about anything.
    pub subjects: Vec<String>,
    /// Only facts of this request.
    pub correlation: Option<String>,
    /// Newest first.
    pub newest_first: bool,
    /// At most so many; 0 means all.
    pub limit: usize,
    /// No more once they hold so many bytes of data; 0 means any number.
    pub bytes: usize,
}

impl Query {
    /// The facts behind this one, at most so many.
    pub fn page(after: Seq, limit: usize) -> Self {
        Self { after, limit, ..Self::default() }
    }

    /// The newest facts, newest first.
    #[cfg(any(test, feature = "testing"))]
    pub fn tail(limit: usize) -> Self {
        Self { newest_first: true, limit, ..Self::default() }
    }

    /// Whether this fact is asked for, `limit` aside.
    #[cfg(any(test, feature = "testing"))]
    pub fn wants(&self, record: &Record) -> bool {
        record.seq > self.after
            && self.until.is_none_or(|until| record.seq <= until)
            && self.since.is_none_or(|since| record.at >= since)
            && self.before.is_none_or(|before| record.at < before)
            && (self.names.is_empty() || self.names.iter().any(|n| name_matches(n, &record.name)))
            && (self.subjects.is_empty() || self.subjects.contains(&record.subject))
            && (self.correlation.is_none() || self.correlation == record.origin.correlation)
    }
}

#[cfg(any(test, feature = "testing"))]
fn name_matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    }
}

/// A log of facts with one owner at a time.
pub trait Journal: Send + Sync + 'static {
    /// Makes the caller the owner: its epoch, which fences every earlier owner off.
    fn claim(&self) -> Result<u64, JournalError>;

    /// The last fact's place; `Seq(0)` when there is none.
    fn head(&self) -> Result<Seq, JournalError>;

    /// Adds facts and returns when they are safe from a crash.
    fn append(&self, batch: Append<'_>) -> Result<(), AppendError>;

    /// Facts up to this one may be gone; `Seq(0)` when none is.
    fn pruned(&self) -> Result<Seq, JournalError>;

    /// The facts that the query asks for.
    fn read(&self, query: &Query) -> Result<Vec<Record>, JournalError>;

    /// The documents that are asked for.
    fn documents(&self, select: &Select) -> Result<Vec<Document>, JournalError>;

    /// The newest snapshot that can be trusted; an empty one when there is none.
    fn snapshot(&self) -> Result<Snapshot, JournalError>;

    /// Keeps a snapshot of what this journal holds; facts that it makes needless may go.
    fn keep(&self, snapshot: &Snapshot) -> Result<(), JournalError>;
}
