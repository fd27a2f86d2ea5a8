//! Ending: somebody asks for it, and then no request is taken any more.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// How far the daemon is on its way to its end.
#[derive(Debug, Default)]
pub struct Ending {
    asked: watch::Sender<bool>,
    closing: watch::Sender<bool>,
    /// The same as `closing`, for every request to look at.
    closed: AtomicBool,
    failed: AtomicBool,
}

impl Ending {
    /// Asks the daemon to shut down.
    pub fn ask(&self) {
        self.asked.send_replace(true);
    }

    /// Asks because the journal failed, so that only a new start helps.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
        self.ask();
    }

    /// Whether the journal failed.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Returns once somebody has asked.
    pub async fn asked(&self) {
        let _ = self.asked.subscribe().wait_for(|asked| *asked).await;
    }

    /// No new request is taken.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.closing.send_replace(true);
    }

    /// Whether no new request is taken.
    pub fn is_closing(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Returns once no new request is taken.
    pub async fn closing(&self) {
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }
}
