//! What the sequencer promises, and machines in a seeded world.

#![allow(clippy::unwrap_used, reason = "a test that unwraps an error has failed")]

mod chat;
mod depot;
mod sequencer;
mod simulation;
