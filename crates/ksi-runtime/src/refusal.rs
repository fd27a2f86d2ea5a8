//! Refusals: how a decision that was not taken, or a failed read, is told to who asked.

use std::sync::Arc;

use ksi_protocol::{Error, Result};
use ksi_state::{Journal, JournalError, Refused};

/// Reads from the journal on a thread that may wait for the disk.
pub async fn reading<R: Send + 'static>(
    journal: Arc<dyn Journal>,
    read: impl FnOnce(&dyn Journal) -> Result<R, JournalError> + Send + 'static,
) -> Result<R> {
    let read = tokio::task::spawn_blocking(move || read(&*journal)).await;
    let read = read.map_err(|_| Error::internal("reading the journal panicked"))?;
    read.map_err(|error| Error::unavailable(error.to_string()))
}

/// The error for the one who asked.
pub fn refused(refused: &Refused) -> Error {
    let why = refused.to_string();
    match refused {
        Refused::Degraded { .. } => Error::unavailable(why)
            .hint("`ksi health` says what is wrong; the journal itself is kept")
            .retryable(false),
        Refused::Stale => Error::conflict(why),
        Refused::Unserializable { .. } => Error::internal(why),
        Refused::Closed => Error::shutdown(),
        Refused::Full => Error::unavailable(why).hint("make room and try again"),
        Refused::Lost(_) => Error::unavailable(why)
            .hint("ask for the state before you try again, or use an idempotency key"),
    }
}
