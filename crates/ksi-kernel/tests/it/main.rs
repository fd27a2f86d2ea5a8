//! What the kernel promises to plugins, callers and listeners.

#![allow(clippy::unwrap_used, reason = "a test that unwraps an error has failed")]

mod bench;
mod durability;
mod effects;
mod lagging;
mod listening;
mod requests;
mod shutdown;
