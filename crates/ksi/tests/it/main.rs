//! The integration tests of the program: one binary, one module per subject.

#![allow(clippy::unwrap_used, reason = "a test that unwraps an error has failed")]

mod children;
mod config;
mod crash;
mod daemon;
mod degraded;
mod doctor;
mod events;
mod feeds;
mod golden;
mod hostile;
mod identity;
mod idle;
mod kills;
mod lifecycle;
mod orchestrate;
mod outside;
mod reach;
mod root;
mod service;
mod start;
mod stop;
mod tidy;
mod transcripts;
mod upkeep;
mod usage;
