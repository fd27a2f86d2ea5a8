//! The loop as a process would see it: lines in, events out.

#![allow(clippy::unwrap_used, reason = "a test that unwraps an error has failed")]

mod debate;
mod files;
mod harness;
mod requests;
mod turns;
