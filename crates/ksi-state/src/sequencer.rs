//! The sequencer: the one place that orders facts.

use std::{cell::Cell, mem, sync::Arc, thread, time::Duration};

use ksi_record::{
    Append, AppendError, Document, Journal, JournalError, Millis, Origin, Record, Seq,
};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::fact::Facts;
use crate::machine::{Changed, Fault, Machine, Out, State, Wants, catch};
use crate::replica::Replica;

/// Which machine, by its place in the list given to [`Sequencer::open`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PluginId(pub usize);

/// On whose behalf a decision is taken.
#[derive(Debug, Clone, Default)]
pub struct By {
    /// Who caused it.
    pub origin: Arc<Origin>,
    /// The effect that reports, as key and epoch; refused once that epoch is no longer wanted.
    pub effect: Option<(String, u64)>,
}

/// Why a decision was not taken, or not kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The plugin's state cannot be trusted.
    #[error("`{plugin}` is degraded: {why}")]
    Degraded {
        /// The plugin's name.
        plugin: &'static str,
        /// What went wrong.
        why: String,
    },
    /// The effect that reports is no longer wanted.
    #[error("this attempt was replaced or stopped")]
    Stale,
    /// A fact of the decision cannot be written as JSON.
    #[error("fact `{fact}` cannot be serialized: {why}")]
    Unserializable {
        /// The fact's name.
        fact: &'static str,
        /// What went wrong.
        why: String,
    },
    /// The sequencer has been closed.
    #[error("the journal is closed")]
    Closed,
    /// There was no room for its facts, or for those it was based on.
    #[error("the journal's disk is full; nothing was kept")]
    Full,
    /// It is gone from memory; whether it is on disk is not known.
    #[error("the outcome is unknown: {0}")]
    Lost(String),
}

/// Called once the facts a decision has read or made are durable, or lost.
pub type Done = Box<dyn FnOnce(Result<(), Refused>) + Send>;

/// The facts of the decisions that are committed together, and what follows from them.
#[derive(Default)]
pub struct Batch {
    /// The facts, in order.
    pub records: Vec<Arc<Record>>,
    /// What each plugin came to want with each of these facts, in order.
    pub wants: Wants,
    /// What they finished.
    documents: Vec<Document>,
    /// Those who wait; also who only read.
    dones: Vec<Done>,
}

/// What the rest of the program learns from the journal's writer.
pub enum Committed {
    /// These facts are durable, and these wants hold.
    Batch(Batch),
    /// There was no room, and memory was rebuilt from the journal: these wants are all there are.
    Full(Wants),
    /// There is room again.
    Room,
    /// The journal cannot go on; the process must end and start again.
    Broken(AppendError),
    /// These are to be told this, in order.
    Settled(Vec<Done>, Result<(), Refused>),
}

/// Takes what is durable, in order, on the writer's thread.
pub type Sink<'a> = &'a dyn Fn(Committed);

#[derive(Default)]
struct Inner {
    live: Replica,
    durable: Seq,
    pending: Batch,
    /// No room is known of, and no fact is taken.
    full: bool,
    closed: bool,
}

/// All folded state behind one lock, and the queue to the journal's writer.
pub struct Sequencer {
    journal: Arc<dyn Journal>,
    epoch: u64,
    inner: Mutex<Inner>,
    ready: Condvar,
}

/// So long the writer waits before it looks again whether there is room.
const PAUSE: Duration = Duration::from_secs(1);

/// So often the writer lets other threads go first before it writes or sleeps.
const TURNS: usize = 10;

impl Sequencer {
    /// Claims the journal and folds all of it; the wants are the complete set.
    ///
    /// No fact is taken before the first commit has found that there is room.
    pub fn open(live: Replica, journal: Arc<dyn Journal>) -> Result<(Self, Wants), JournalError> {
        let epoch = journal.claim()?;
        let mut inner = Inner { live, full: true, ..Inner::default() };
        let wants = inner.rebuild(&*journal)?;
        Ok((Self { journal, epoch, inner: Mutex::new(inner), ready: Condvar::new() }, wants))
    }

    /// Lets `decide` look at one plugin's state and say what happens; folds that at once.
    ///
    /// `done` is called when everything the decision saw or made is durable, or lost; not at all
    /// when the decision is refused.
    pub fn decide<S: State, R>(
        &self,
        plugin: PluginId,
        by: &By,
        now: Millis,
        decide: impl FnOnce(&S, Millis) -> (Facts, R),
        done: Done,
    ) -> Result<R, Refused> {
        let mut inner = self.lock();
        let at = inner.live.at.max(now);
        let machine = inner.machine(plugin)?;
        if by.effect.as_ref().is_some_and(|(key, epoch)| !machine.wants(key, *epoch)) {
            return Err(Refused::Stale);
        }
        let (facts, reply) = deciding(|| Ok(decide(machine.state()?, at)))?;
        if facts.0.is_empty() && inner.durable == inner.live.head {
            drop(inner);
            done(Ok(()));
            return Ok(reply);
        }
        if inner.full {
            return Err(Refused::Full);
        }
        inner.take(&facts, &by.origin, at)?;
        inner.pending.dones.push(done);
        drop(inner);
        self.ready.notify_one();
        Ok(reply)
    }

    /// Looks at one plugin's state without waiting for the journal; for health and metrics.
    pub fn peek<S: State, R>(
        &self,
        plugin: PluginId,
        look: impl FnOnce(&S) -> R,
    ) -> Result<R, Refused> {
        let mut inner = self.lock();
        deciding(|| inner.machine(plugin)?.state().map(look))
    }

    /// The snapshot that was begun with holds the facts up to this one.
    pub fn since(&self) -> Seq {
        self.lock().live.since()
    }

    /// The last fact's place, and the last durable one's.
    pub fn position(&self) -> (Seq, Seq) {
        let inner = self.lock();
        (inner.live.head, inner.durable)
    }

    /// What is not well, and why: plugins whose state cannot be trusted, a journal without room.
    pub fn degraded(&self) -> Vec<(&'static str, String)> {
        let inner = self.lock();
        let degraded = |machine: &Machine| Some((machine.name, machine.live.degraded.clone()?));
        let full = inner.full.then(|| ("journal", "its disk is full; make room".to_owned()));
        inner.live.machines.iter().filter_map(degraded).chain(full).collect()
    }

    /// Waits for decisions, makes them durable and passes them on; false once closed and empty.
    ///
    /// Whoever is about to decide goes first: as long as that brings more, it is committed along.
    pub fn commit(&self, sink: Sink<'_>) -> bool {
        let mut inner = self.lock();
        let idle = |inner: &mut Inner| inner.pending.dones.is_empty() && !inner.closed;
        let patience = if inner.full { PAUSE } else { Duration::MAX };
        self.ready.wait_while_for(&mut inner, idle, patience);
        for _ in 0..TURNS {
            let gathered = inner.pending.dones.len();
            MutexGuard::unlocked(&mut inner, thread::yield_now);
            if gathered == inner.pending.dones.len() {
                break;
            }
        }
        let more = !inner.pending.dones.is_empty() || !inner.closed;
        drop(inner);
        self.try_commit(sink);
        more
    }

    /// Makes what is pending durable and passes it on, without waiting for more.
    ///
    /// While there is no room nothing is pending, and what is found out is whether there is now.
    pub fn try_commit(&self, sink: Sink<'_>) {
        let mut inner = self.lock();
        let (durable, full, mut batch) = (inner.durable, inner.full, mem::take(&mut inner.pending));
        drop(inner);
        let dones = mem::take(&mut batch.dones);
        let last = batch.records.last().cloned();
        #[cfg(any(test, feature = "testing"))]
        crate::testing::hold("append", last.as_ref());
        match self.append(&batch, durable, full) {
            Err(AppendError::Full(_)) if full => return,
            Err(error) => return self.roll_back(dones, error, sink),
            Ok(()) if full => {
                self.lock().full = false;
                sink(Committed::Room);
            }
            Ok(()) => {}
        }
        #[cfg(any(test, feature = "testing"))]
        crate::testing::hold("appended", last.as_ref());
        if let Some(last) = last {
            sink(Committed::Batch(batch));
            self.lock().durable = last.seq;
        }
        sink(Committed::Settled(dones, Ok(())));
    }

    /// No decision is taken any more; the writer ends when it has written the last one.
    pub fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_all();
    }

    /// A journal that panics has failed: the writer must not end without a word.
    fn append(&self, batch: &Batch, expect: Seq, full: bool) -> Result<(), AppendError> {
        let Batch { records, documents, .. } = batch;
        if records.is_empty() && !full {
            return Ok(());
        }
        #[cfg(any(test, feature = "testing"))]
        if crate::testing::is_full() {
            return Err(AppendError::Full("a test has filled it".to_owned()));
        }
        let append = Append { records, documents, expect, epoch: self.epoch };
        catch(|| self.journal.append(append)).unwrap_or_else(|Fault(message)| {
            Err(AppendError::Io(JournalError { message, source: None }))
        })
    }

    /// Forgets what is not on disk, by the same code as at boot.
    fn roll_back(&self, mut lost: Vec<Done>, error: AppendError, sink: Sink<'_>) {
        let mut inner = self.lock();
        lost.append(&mut mem::take(&mut inner.pending).dones);
        inner.full = matches!(error, AppendError::Full(_));
        let why = if inner.full { Refused::Full } else { Refused::Lost(error.to_string()) };
        let rebuilt = match error {
            AppendError::Full(_) => inner.rebuild(&*self.journal).map_err(AppendError::from),
            error => Err(error),
        };
        let news = rebuilt.map_or_else(Committed::Broken, Committed::Full);
        // Under the same lock: nobody may decide on what is lost, or on half a rebuild.
        inner.closed |= matches!(news, Committed::Broken(_));
        drop(inner);
        sink(news);
        sink(Committed::Settled(lost, Err(why)));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        debug_assert!(!DECIDING.get(), "a decision or a peek asked the sequencer again");
        self.inner.lock()
    }
}

impl Inner {
    fn machine(&mut self, plugin: PluginId) -> Result<&mut Machine, Refused> {
        if self.closed { Err(Refused::Closed) } else { Ok(&mut self.live.machines[plugin.0]) }
    }

    /// Folds new facts into every plugin that folds them, then asks each what it wants.
    fn take(&mut self, facts: &Facts, origin: &Arc<Origin>, at: Millis) -> Result<(), Refused> {
        let Inner { live, pending: Batch { records, wants, documents, .. }, .. } = self;
        let old = records.len();
        for (fact, seq) in facts.0.iter().zip((live.head.0 + 1..).map(Seq)) {
            let record = fact.record(seq, at, origin).inspect_err(|_| records.truncate(old))?;
            records.push(Arc::new(record));
        }
        let new = &records[old..];
        if let Some(last) = new.last() {
            (live.head, live.at) = (last.seq, last.at);
        }
        for (id, machine) in live.machines.iter_mut().enumerate() {
            let mut out = Out::default();
            for (fact, record) in facts.0.iter().zip(new) {
                machine.apply(Some(&**fact), record, &mut out);
            }
            documents.append(&mut out.documents);
            if !out.touched.is_empty() {
                let changed = machine.want(Changed::Keys(&out.touched));
                wants.extend(changed.into_iter().map(|want| (PluginId(id), want)));
            }
        }
        Ok(())
    }

    /// Drops all state and folds the journal behind its newest snapshot.
    fn rebuild(&mut self, journal: &dyn Journal) -> Result<Wants, JournalError> {
        self.durable = self.live.rebuild(&journal.snapshot()?, journal)?;
        let all = |(id, machine): (usize, &mut Machine)| {
            machine.want(Changed::All).into_iter().map(move |want| (PluginId(id), want))
        };
        Ok(self.live.machines.iter_mut().enumerate().flat_map(all).collect())
    }
}

thread_local! {
    static DECIDING: Cell<bool> = const { Cell::new(false) };
}

/// Marks this thread as inside a decision, to catch one that asks the sequencer again.
fn deciding<R>(decide: impl FnOnce() -> R) -> R {
    struct Deciding;
    impl Drop for Deciding {
        fn drop(&mut self) {
            DECIDING.set(false);
        }
    }
    DECIDING.set(true);
    let _deciding = Deciding;
    decide()
}

#[cfg(any(test, feature = "testing"))]
mod audit;
