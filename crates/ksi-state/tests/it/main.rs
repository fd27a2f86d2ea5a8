//! What the sequencer promises.

#![allow(clippy::unwrap_used, reason = "a test that unwraps an error has failed")]

mod chat;
mod sequencer;
mod snapshots;
