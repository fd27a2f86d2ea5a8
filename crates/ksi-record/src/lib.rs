//! What is kept: records of facts, documents, snapshots, and the journal they are kept in.
//!
//! A journal can be built with this crate alone: it knows nothing of plugins and their states.
//! In reading order: [`record`], a fact as it is kept; [`document`], what is only
//! read; [`snapshot`], states as of a fact; [`journal`], where all are kept.

pub mod document;
pub mod journal;
pub mod record;
pub mod snapshot;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use document::{Document, Select};
pub use journal::{Append, AppendError, Journal, JournalError, Query};
pub use record::{Millis, Origin, Record, Seq};
pub use snapshot::{Section, Snapshot};
