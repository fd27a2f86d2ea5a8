//! A stdout that nobody reads any more.

use std::future::pending;
use std::io;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Returns once nobody can read stdout any more, where that can be known before one writes: of a
/// pipe it can, of a file there is nothing to know. Needs a tokio runtime.
pub async fn unread() {
    // SAFETY: nobody replaces or closes stdout while a program waits for this.
    let stdout = unsafe { AsyncFd::register_with_interest(io::stdout(), Interest::ERROR) };
    let Ok(stdout) = stdout else { return pending().await };
    if stdout.ready(Interest::ERROR).await.is_err() {
        pending().await
    }
}
