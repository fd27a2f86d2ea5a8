//! Time: the wall clock, or one that a test moves by hand.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ksi_state::Millis;
use parking_lot::Mutex;
use tokio::sync::watch;

/// Where time comes from.
#[derive(Debug, Clone)]
pub struct Clock(Option<Arc<Manual>>);

/// The hands of a clock that a test moves.
#[derive(Debug)]
struct Manual {
    now: Mutex<Millis>,
    moved: watch::Sender<()>,
}

impl Clock {
    /// The machine's wall clock.
    pub fn system() -> Self {
        Clock(None)
    }

    /// A clock that stands at this time until it is moved.
    pub fn manual(now: Millis) -> Self {
        Clock(Some(Arc::new(Manual { now: Mutex::new(now), moved: watch::channel(()).0 })))
    }

    /// Moves a manual clock on; the machine's own is left alone.
    pub fn advance(&self, ms: u64) {
        let Some(manual) = &self.0 else { return };
        manual.now.lock().0 += ms;
        manual.moved.send_replace(());
    }

    /// The time.
    #[allow(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn now(&self) -> Millis {
        match &self.0 {
            Some(manual) => *manual.now.lock(),
            None => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Millis(since.as_millis() as u64)
            }
        }
    }

    /// Returns after so long.
    pub async fn sleep(&self, duration: Duration) {
        self.sleep_until(self.now().plus(duration.as_millis() as u64)).await;
    }

    /// Returns at this time, or at once if it has passed.
    pub async fn sleep_until(&self, at: Millis) {
        let Some(manual) = &self.0 else {
            let left = at.0.saturating_sub(self.now().0);
            return tokio::time::sleep(Duration::from_millis(left)).await;
        };
        let mut moved = manual.moved.subscribe();
        while self.now() < at && moved.changed().await.is_ok() {}
    }
}
