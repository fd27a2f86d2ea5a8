//! Replies: telling those who wait, with one wake-up for all that one commit settled.

use ksi_state::{Done, Refused};
use tokio::sync::mpsc;

use crate::Tasks;

/// Those who wait, and what they are to be told.
type Settled = (Vec<Done>, Result<(), Refused>);

/// Tells those who wait, on the runtime: waking each from another thread costs several times as
/// much as waking one task that wakes the others.
#[derive(Debug)]
pub struct Replies(mpsc::UnboundedSender<Option<Settled>>);

impl Replies {
    /// Replies that one task of these passes on, until they are closed.
    pub fn new(tasks: &Tasks) -> Self {
        let (replies, mut settled) = mpsc::unbounded_channel::<Option<Settled>>();
        tasks.spawn("replies", async move {
            while let Some(Some((dones, result))) = settled.recv().await {
                let tell = |done: Done| done(Result::clone(&result));
                dones.into_iter().for_each(tell);
            }
        });
        Replies(replies)
    }

    /// Tells these, in order, behind all that were settled before.
    pub fn send(&self, dones: Vec<Done>, result: Result<(), Refused>) {
        if !dones.is_empty() {
            let _ = self.0.send(Some((dones, result)));
        }
    }

    /// The task ends when it has passed on what is under way.
    pub fn close(&self) {
        let _ = self.0.send(None);
    }
}

#[cfg(test)]
mod tests {
    use tokio::{runtime::Handle, sync::oneshot};

    use super::*;

    #[tokio::test]
    async fn all_who_wait_are_told_by_another_thread_and_the_task_ends_when_closed() {
        let tasks = Tasks::new(Handle::current());
        let replies = Replies::new(&tasks);
        let waiter = || {
            let (to, waiting) = oneshot::channel();
            let done: Done = Box::new(move |result| drop(to.send(result)));
            (done, waiting)
        };
        let (well, told): (Vec<_>, Vec<_>) = (0..100).map(|_| waiter()).unzip();
        let (lost, refused) = waiter();
        let writer = std::thread::spawn(move || {
            replies.send(well, Ok(()));
            replies.send(vec![lost], Err(Refused::Full));
            replies.close();
        });
        for told in told {
            assert_eq!(told.await, Ok(Ok(())));
        }
        assert_eq!(refused.await, Ok(Err(Refused::Full)));
        writer.join().unwrap();
        assert_eq!(tasks.drain(std::time::Duration::from_secs(10)).await, [""; 0]);
    }
}
