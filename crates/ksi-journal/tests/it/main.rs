//! The SQLite journal against the promises of every journal, against its file, and against
//! kill -9.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

mod crash;
mod file;
mod promises;
mod snapshots;
mod texts;

use std::path::PathBuf;

use tempfile::TempDir;

/// A folder of its own for one test, and the journal's path in it.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("journal.db")
    }
}
