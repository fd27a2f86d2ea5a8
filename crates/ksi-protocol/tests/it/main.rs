//! The client against a daemon that the test plays itself, over a real socket.

#![expect(clippy::unwrap_used, reason = "the parts that tests share may fail the test")]

mod calls;
mod connecting;
mod daemon;
mod failures;
mod subscriptions;
