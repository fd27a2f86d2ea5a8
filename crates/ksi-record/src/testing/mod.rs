//! For tests: a journal in memory, and the suite that every journal passes.

pub mod journal_suite;
pub mod memory;
