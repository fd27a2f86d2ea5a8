//! Tasks: everything spawned has a name and an owner.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::task::TaskTracker;

/// Owns every task of the daemon.
#[derive(Clone)]
pub struct Tasks(Arc<Owner>);

struct Owner {
    runtime: Handle,
    tracker: TaskTracker,
    /// Some of them have ended: they are swept out when more are spawned.
    named: Mutex<Vec<(String, AbortHandle)>>,
}

/// So many that have ended may stay on the list, and as many as run besides.
const UNSWEPT: usize = 16;

impl Tasks {
    /// Tasks on this runtime; none yet.
    pub fn new(runtime: Handle) -> Self {
        let (tracker, named) = (TaskTracker::new(), Mutex::default());
        Tasks(Arc::new(Owner { runtime, tracker, named }))
    }

    /// Runs a future on the daemon's runtime under this name.
    #[allow(clippy::disallowed_methods, reason = "this is the task owner")]
    pub fn spawn<T: Send + 'static>(
        &self,
        name: impl Into<String>,
        future: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        let handle = self.0.tracker.spawn_on(future, &self.0.runtime);
        let mut named = self.0.named.lock();
        if named.len() > 2 * self.count() + UNSWEPT {
            named.retain(|(_, handle)| !handle.is_finished());
        }
        named.push((name.into(), handle.abort_handle()));
        handle
    }

    /// The names of those that run.
    #[cfg(any(test, feature = "testing"))]
    pub fn names(&self) -> Vec<String> {
        let named = self.0.named.lock();
        let live = named.iter().filter(|(_, handle)| !handle.is_finished());
        live.map(|(name, _)| name.clone()).collect()
    }

    /// How many run.
    pub fn count(&self) -> usize {
        self.0.tracker.len()
    }

    /// Waits until every task has ended, aborts the laggards after a while, and names them.
    pub async fn drain(&self, patience: Duration) -> Vec<String> {
        self.0.tracker.close();
        if tokio::time::timeout(patience, self.0.tracker.wait()).await.is_ok() {
            return Vec::new();
        }
        let laggards: Vec<_> = {
            let named = self.0.named.lock();
            let late = named.iter().filter(|(_, handle)| !handle.is_finished());
            late.inspect(|(_, handle)| handle.abort()).map(|(name, _)| name.clone()).collect()
        };
        let _ = tokio::time::timeout(patience, self.0.tracker.wait()).await;
        laggards
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn laggards_are_named_and_ended_and_the_others_are_waited_for() {
        let tasks = Tasks::new(Handle::current());
        let lasting = |seconds| {
            tokio::time::timeout(Duration::from_secs(seconds), std::future::pending::<()>())
        };
        tasks.spawn("short", lasting(1));
        tasks.spawn("long", lasting(100));
        tasks.spawn("endless", std::future::pending::<()>());
        assert_eq!(tasks.count(), 3);
        assert_eq!(tasks.drain(Duration::from_secs(2)).await, ["long", "endless"]);
        assert_eq!(tasks.count(), 0);
    }

    #[tokio::test]
    async fn a_task_that_panics_is_off_the_list() {
        let tasks = Tasks::new(Handle::current());
        let panicking = tasks.spawn("panics", async { panic!("no") });
        assert!(panicking.await.unwrap_err().is_panic());
        assert_eq!(tasks.count(), 0);
        assert_eq!(tasks.drain(Duration::ZERO).await, [""; 0]);
    }
}
