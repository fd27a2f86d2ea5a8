//! What keeps state true: facts, sequencer, fold, drive.
//!
//! Synchronous, without I/O and without a runtime. In reading order: [`fact`], what happened;
//! [`machine`], how facts change a plugin's state and what that state wants to run; [`replica`],
//! all plugins' states from a snapshot and the journal; [`sequencer`], the one place that orders
//! facts.

pub mod fact;
pub mod machine;
pub mod replica;
pub mod sequencer;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use fact::{Fact, Facts, Stamp};
pub use ksi_record::{
    Append, AppendError, Document, Journal, JournalError, Millis, Origin, Query, Record, Section,
    Select, Seq, Snapshot,
};
pub use machine::{AnyEffect, Changed, Effect, Fault, Machine, Out, State, Want, Wants, catch};
pub use replica::Replica;
pub use sequencer::{Batch, By, Committed, Done, PluginId, Refused, Sequencer, Sink};
