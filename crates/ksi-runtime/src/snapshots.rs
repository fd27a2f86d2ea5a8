//! Snapshots: made beside what runs, each by folding the one before and the facts since.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ksi_state::{Journal, JournalError, Replica, Seq};
use parking_lot::Mutex;
use tokio::{sync::Notify, task::spawn_blocking};

use crate::Tasks;

/// Makes snapshots, one at a time, on a thread that blocks nobody.
#[derive(Clone)]
pub struct Snapshots(Arc<Shared>);

struct Shared {
    journal: Arc<dyn Journal>,
    /// Folds nothing but what a snapshot is made of, and is empty in between.
    replica: Mutex<Replica>,
    /// So many facts lie between two of them.
    every: u64,
    /// The fact at which one is due.
    next: AtomicU64,
    due: Notify,
}

impl Snapshots {
    /// One is made whenever so many facts have come since `last`; 0 means only when asked.
    pub fn new(
        replica: Replica,
        journal: Arc<dyn Journal>,
        every: u64,
        last: Seq,
        tasks: &Tasks,
    ) -> Self {
        let next = AtomicU64::new(if every == 0 { u64::MAX } else { last.0.saturating_add(every) });
        let (replica, due) = (Mutex::new(replica), Notify::new());
        let snapshots = Snapshots(Arc::new(Shared { journal, replica, every, next, due }));
        tasks.spawn("snapshots", snapshots.clone().keep_up());
        snapshots
    }

    /// This fact is durable, and all before it.
    pub fn note(&self, last: Seq) {
        if last.0 >= self.0.next.load(Ordering::Relaxed) {
            self.0.due.notify_one();
        }
    }

    /// Makes one now, if there are facts that the last does not hold; returns its last fact.
    pub async fn make(&self) -> Result<Seq, JournalError> {
        let shared = self.0.clone();
        let made = spawn_blocking(move || shared.make()).await;
        made.unwrap_or_else(|error| {
            let message = "making a snapshot panicked".to_owned();
            Err(JournalError { message, source: Some(error.into()) })
        })
    }

    /// Makes the last one; none is made by itself any more.
    pub async fn finish(&self) {
        self.0.next.store(u64::MAX, Ordering::Relaxed);
        self.0.due.notify_one();
        if let Err(error) = self.make().await {
            tracing::warn!(%error, "no snapshot was made; the next start takes longer");
        }
    }

    async fn keep_up(self) {
        loop {
            self.0.due.notified().await;
            if self.0.next.load(Ordering::Relaxed) == u64::MAX {
                return;
            }
            if let Err(error) = self.make().await {
                tracing::error!(%error, "no snapshot was made; the journal itself is well");
            }
        }
    }
}

impl Shared {
    fn make(&self) -> Result<Seq, JournalError> {
        let mut replica = self.replica.lock();
        let made = self.fold_and_keep(&mut replica);
        *replica = replica.fork();
        // When it could not be made it is not due again at once; and what was closed meanwhile
        // stays closed.
        let head = self.journal.head().unwrap_or_default();
        let behind = head.0.saturating_add(self.every);
        let again = |next: u64| (next != u64::MAX).then_some(behind);
        let _ = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, again);
        made
    }

    fn fold_and_keep(&self, replica: &mut Replica) -> Result<Seq, JournalError> {
        let before = self.journal.snapshot()?;
        let last = before.values().map(|section| section.seq).max().unwrap_or_default();
        if last == self.journal.head()? {
            return Ok(last);
        }
        let head = replica.rebuild(&before, &*self.journal)?;
        self.journal.keep(&replica.snapshot(before))?;
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use std::{borrow::Cow, time::Duration};

    use ksi_state::testing::memory::MemoryJournal;
    use ksi_state::{Append, Fact, Machine, Millis, Out, Record, Stamp};
    use serde::{Deserialize, Serialize};
    use tokio::{runtime::Handle, task::yield_now, time::timeout};

    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Counted {}

    impl Fact for Counted {
        const NAME: &'static str = "test:counted";

        fn subject(&self) -> Cow<'_, str> {
            "".into()
        }
    }

    struct Bench {
        journal: MemoryJournal,
        tasks: Tasks,
        snapshots: Snapshots,
        epoch: u64,
    }

    impl Bench {
        /// A snapshot is due every three facts.
        fn new() -> Self {
            let (journal, tasks) = (MemoryJournal::default(), Tasks::new(Handle::current()));
            let epoch = journal.claim().unwrap();
            let mut counter = Machine::new::<u64>("counter");
            counter.fold(|count: &mut u64, _: &Counted, _: &Stamp, _: &mut Out| {
                *count += 1;
                Ok(())
            });
            let shared: Arc<dyn Journal> = Arc::new(journal.clone());
            let replica = Replica::new(vec![counter]);
            let snapshots = Snapshots::new(replica, shared, 3, Seq(0), &tasks);
            Bench { journal, tasks, snapshots, epoch }
        }

        /// One more fact is durable.
        fn count(&self) {
            let expect = self.journal.head().unwrap();
            let record = Record {
                seq: expect.next(),
                at: Millis(1),
                name: Counted::NAME.into(),
                version: 1,
                subject: String::new(),
                origin: Arc::default(),
                data: serde_json::value::to_raw_value(&Counted {}).unwrap(),
            };
            let (records, epoch) = ([Arc::new(record)], self.epoch);
            let batch = Append { records: &records, documents: &[], expect, epoch };
            self.journal.append(batch).unwrap();
            self.snapshots.note(expect.next());
        }

        /// What the newest snapshot holds: up to which fact, and the count.
        fn kept(&self) -> Option<(u64, String)> {
            let section = self.journal.snapshot().unwrap().remove("counter")?;
            Some((section.seq.0, section.state))
        }

        async fn keeps(&self, seq: u64) {
            let kept = async {
                while self.kept() != Some((seq, seq.to_string())) {
                    yield_now().await;
                }
            };
            timeout(Duration::from_secs(60), kept).await.expect("a snapshot is made");
        }
    }

    #[tokio::test]
    async fn one_is_made_whenever_enough_facts_have_come_and_one_at_the_end() {
        let bench = Bench::new();
        bench.count();
        bench.count();
        assert_eq!(bench.snapshots.0.next.load(Ordering::Relaxed), 3);
        assert_eq!(bench.kept(), None);
        bench.count();
        bench.keeps(3).await;
        (0..3).for_each(|_| bench.count());
        bench.keeps(6).await;
        bench.count();
        bench.snapshots.finish().await;
        assert_eq!(bench.kept(), Some((7, "7".to_owned())));
        (0..9).for_each(|_| bench.count());
        assert_eq!(bench.tasks.drain(Duration::from_secs(60)).await, [""; 0]);
        assert_eq!(bench.kept(), Some((7, "7".to_owned())), "after the end none is made");
    }

    #[tokio::test]
    async fn one_that_is_asked_for_holds_all_that_was_durable_and_is_made_once() {
        let bench = Bench::new();
        assert_eq!(bench.snapshots.make().await.unwrap(), Seq(0));
        assert_eq!(bench.kept(), None);
        bench.count();
        assert_eq!(bench.snapshots.make().await.unwrap(), Seq(1));
        let state = "99".to_owned();
        let mut changed = bench.journal.snapshot().unwrap();
        changed.get_mut("counter").unwrap().state = state.clone();
        bench.journal.keep(&changed).unwrap();
        assert_eq!(bench.snapshots.make().await.unwrap(), Seq(1));
        assert_eq!(bench.kept(), Some((1, state)), "without a new fact there is nothing to do");
        bench.snapshots.finish().await;
    }
}
