//! What keeps state true: facts, sequencer, fold, drive, the journal trait.
//!
//! Synchronous, without I/O and without a runtime. In reading order: [`fact`], what happened;
//! [`journal`], where it is kept; [`machine`], how facts change a plugin's state and what that
//! state wants to run; [`sequencer`], the one place that orders facts.

pub mod fact;
pub mod journal;
pub mod machine;
pub mod sequencer;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use fact::{Fact, Facts, Millis, Origin, Record, Seq, Stamp};
pub use journal::{Append, AppendError, Journal, JournalError, Query};
pub use machine::{AnyEffect, Changed, Effect, Fault, Machine, Out, State, Want, Wants, catch};
pub use sequencer::{Batch, By, Committed, Done, PluginId, Refused, Sequencer, Sink};
