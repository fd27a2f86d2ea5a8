//! Replies: telling those who wait, from outside the runtime, with one wake-up for many.

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::Tasks;

/// Tells those who wait for a `T`.
#[derive(Debug)]
pub struct Replies<T>(mpsc::UnboundedSender<Option<(oneshot::Sender<T>, T)>>);

impl<T: Send + 'static> Replies<T> {
    /// Replies that one task of these passes on, until they are closed.
    pub fn new(tasks: &Tasks) -> Self {
        let (replies, mut waiting) = mpsc::unbounded_channel();
        tasks.spawn("replies", async move {
            while let Some(Some((to, what))) = waiting.recv().await {
                drop(oneshot::Sender::send(to, what));
            }
        });
        Replies(replies)
    }

    /// Tells one who waits: at once on the runtime; else through the task, because waking each
    /// from another thread costs several times as much as waking one who wakes the others.
    pub fn send(&self, to: oneshot::Sender<T>, what: T) {
        match Handle::try_current() {
            Ok(_) => drop(to.send(what)),
            Err(_) => drop(self.0.send(Some((to, what)))),
        }
    }

    /// The task ends when it has passed on what is under way.
    pub fn close(&self) {
        let _ = self.0.send(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_who_wait_are_told_by_another_thread_and_the_task_ends_when_closed() {
        let tasks = Tasks::new(Handle::current());
        let replies = Replies::new(&tasks);
        let (to, waiting): (Vec<_>, Vec<_>) = (0..100).map(|_| oneshot::channel()).unzip();
        let writer = std::thread::spawn(move || {
            to.into_iter().zip(0..).for_each(|(to, what)| replies.send(to, what));
            replies.close();
        });
        for (waiting, what) in waiting.into_iter().zip(0..) {
            assert_eq!(waiting.await, Ok(what));
        }
        writer.join().unwrap();
        assert_eq!(tasks.drain(std::time::Duration::from_secs(10)).await, [""; 0]);
    }

    #[tokio::test]
    async fn on_the_runtime_who_waits_is_told_at_once() {
        let replies = Replies::new(&Tasks::new(Handle::current()));
        let (to, mut waiting) = oneshot::channel();
        replies.send(to, 1);
        assert_eq!(waiting.try_recv(), Ok(1));
    }
}
