//! The journal's writer: a thread of its own, because a commit waits for the disk.

use std::{thread, thread::JoinHandle};

use ksi_state::JournalError;
use parking_lot::Mutex;
use tokio::task::spawn_blocking;

/// The thread, once it runs.
#[derive(Debug, Default)]
pub struct Writer(Mutex<Option<JoinHandle<()>>>);

impl Writer {
    /// Commits until there is nothing more to come.
    pub fn start(
        &self,
        mut commit: impl FnMut() -> bool + Send + 'static,
    ) -> Result<(), JournalError> {
        let write = move || while commit() {};
        let thread = thread::Builder::new().name("journal".to_owned()).spawn(write);
        let thread = thread.map_err(|source| JournalError {
            message: "its writer could not be started".to_owned(),
            source: Some(source.into()),
        })?;
        *self.0.lock() = Some(thread);
        Ok(())
    }

    /// Returns when it has ended; without a bound, because what was decided must reach the disk.
    pub async fn end(&self) {
        let thread = self.0.lock().take();
        if let Some(thread) = thread {
            let _ = spawn_blocking(move || thread.join()).await;
        }
    }
}
