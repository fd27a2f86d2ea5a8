//! Tasks: everything spawned has a name and an owner.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::Notify,
    task::{AbortHandle, JoinHandle},
};

/// Owns every task of the daemon.
#[derive(Clone)]
pub struct Tasks(Arc<Owner>);

struct Owner {
    runtime: Handle,
    live: Mutex<(u64, BTreeMap<u64, Task>)>,
    ended: Notify,
}

struct Task {
    name: String,
    handle: Option<AbortHandle>,
}

/// Takes the task off the list, however it ended.
struct OnEnd(Arc<Owner>, u64);

impl Drop for OnEnd {
    fn drop(&mut self) {
        self.0.live().1.remove(&self.1);
        self.0.ended.notify_waiters();
    }
}

impl Owner {
    fn live(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Task>)> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tasks {
    pub(crate) fn new(runtime: Handle) -> Self {
        Tasks(Arc::new(Owner { runtime, live: Mutex::default(), ended: Notify::new() }))
    }

    /// Runs a future on the daemon's runtime under this name.
    #[allow(clippy::disallowed_methods, reason = "this is the task owner")]
    pub fn spawn<T: Send + 'static>(
        &self,
        name: impl Into<String>,
        future: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        let id = {
            let mut live = self.0.live();
            live.0 += 1;
            let id = live.0;
            live.1.insert(id, Task { name: name.into(), handle: None });
            id
        };
        let on_end = OnEnd(self.0.clone(), id);
        let handle = self.0.runtime.spawn(async move {
            let _on_end = on_end;
            future.await
        });
        if let Some(task) = self.0.live().1.get_mut(&id) {
            task.handle = Some(handle.abort_handle());
        }
        handle
    }

    /// The names of the tasks that run, and how many.
    pub fn names(&self) -> Vec<String> {
        self.0.live().1.values().map(|task| task.name.clone()).collect()
    }

    /// How many tasks run.
    pub fn count(&self) -> usize {
        self.0.live().1.len()
    }

    /// Waits until every task has ended, aborts the laggards after a while, and names them.
    pub(crate) async fn drain(&self, patience: Duration) -> Vec<String> {
        let _ = tokio::time::timeout(patience, self.ended()).await;
        let laggards = self.names();
        let handles: Vec<_> =
            self.0.live().1.values().filter_map(|task| task.handle.clone()).collect();
        handles.iter().for_each(AbortHandle::abort);
        let _ = tokio::time::timeout(patience, self.ended()).await;
        laggards
    }

    async fn ended(&self) {
        loop {
            let ended = self.0.ended.notified();
            if self.count() == 0 {
                return;
            }
            ended.await;
        }
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
        assert_eq!(tasks.names(), ["short", "long", "endless"]);
        assert_eq!(tasks.drain(Duration::from_secs(2)).await, ["long", "endless"]);
        assert_eq!(tasks.count(), 0);
    }

    #[tokio::test]
    async fn a_task_that_panics_is_off_the_list() {
        let tasks = Tasks::new(Handle::current());
        let panicking = tasks.spawn("panics", async { panic!("no") });
        assert!(panicking.await.unwrap_err().is_panic());
        assert_eq!(tasks.names(), [""; 0]);
    }
}
