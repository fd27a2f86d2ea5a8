//! The socket, spoken to over raw connections.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod daemon;
mod events;
mod files;
mod hostile;
mod plugin;
mod requests;
mod shutdown;
mod slow;
mod transcripts;
