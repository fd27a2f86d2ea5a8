//! Ending: somebody asks for it, and then no request is taken any more.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::join, stream::FuturesUnordered};
use ksi_state::Fault;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::caught;

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

/// Lets plugins finish, one after the other, and then what runs; all within the grace.
///
/// Whoever takes longer than `patience` is named, and the next need not wait for it any more.
pub async fn finish(
    stops: impl Iterator<Item = (&'static str, impl Future<Output = ()>)>,
    running: impl Future<Output = ()>,
    grace: Duration,
    patience: Duration,
) {
    let end = Instant::now() + grace;
    let mut begun = FuturesUnordered::new();
    let mut unfinished = BTreeSet::new();
    for (name, stop) in stops {
        begun.push(caught(stop).map(move |ended| (name, ended)));
        unfinished.insert(name);
        let limit = end.min(Instant::now() + patience);
        // Those that are late go on meanwhile.
        while unfinished.contains(name) {
            match timeout_at(limit, begun.next()).await {
                Ok(Some((finished, ended))) => {
                    note(finished, &ended);
                    unfinished.remove(finished);
                }
                _ => {
                    tracing::warn!(plugin = name, "takes long to finish");
                    break;
                }
            }
        }
    }
    let rest = async {
        while let Some((finished, ended)) = begun.next().await {
            note(finished, &ended);
            unfinished.remove(finished);
        }
    };
    let _ = timeout_at(end, join(running, rest)).await;
    for plugin in unfinished {
        tracing::warn!(plugin, "has not finished and is ended");
    }
}

fn note(plugin: &'static str, ended: &Result<(), Fault>) {
    match ended {
        Ok(()) => tracing::info!(plugin, "has finished"),
        Err(Fault(why)) => tracing::error!(plugin, why, "cannot finish"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::BoxFuture;

    const GRACE: Duration = Duration::from_secs(30);
    const PATIENCE: Duration = Duration::from_secs(2);

    async fn pass(seconds: u64) {
        let end =
            tokio::time::timeout(Duration::from_secs(seconds), std::future::pending::<()>()).await;
        assert!(end.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn plugins_finish_in_turn_and_one_that_hangs_keeps_nobody_but_for_a_while() {
        let (log, begun) = (Arc::new(Mutex::new(Vec::new())), Instant::now());
        let stop = |name: &'static str, seconds: u64| {
            let log = log.clone();
            let stop: BoxFuture<()> = Box::pin(async move {
                pass(seconds).await;
                log.lock().unwrap().push((name, begun.elapsed().as_secs()));
            });
            (name, stop)
        };
        let stops = vec![stop("quick", 1), stop("hangs", 1000), stop("slow", 10), stop("last", 0)];
        finish(stops.into_iter(), pass(20), GRACE, PATIENCE).await;
        assert_eq!(*log.lock().unwrap(), [("quick", 1), ("last", 5), ("slow", 13)]);
        assert_eq!(begun.elapsed(), GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_plugin_that_panics_ends_nothing_but_itself_and_no_grace_asks_everyone_once() {
        let asked = Arc::new(Mutex::new(0));
        let count = asked.clone();
        let counts = Box::pin(async move { *count.lock().unwrap() += 1 });
        let panics = Box::pin(async { panic!("no") });
        let stops: Vec<(_, BoxFuture<()>)> = vec![("panics", panics), ("counts", counts)];
        let begun = Instant::now();
        finish(stops.into_iter(), std::future::pending(), Duration::ZERO, PATIENCE).await;
        assert_eq!((*asked.lock().unwrap(), begun.elapsed()), (1, Duration::ZERO));
    }
}
