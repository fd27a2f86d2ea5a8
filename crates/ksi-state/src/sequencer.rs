//! The sequencer: the one place that orders facts.

use std::{
    any::Any,
    cell::Cell,
    collections::BTreeSet,
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use crate::{
    fact::{Facts, Millis, Origin, Record, Seq},
    journal::{Append, AppendError, Journal, JournalError, Query},
    machine::{Changed, Machine, State, Wants},
    slot::Slot,
};

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

/// Why no decision was taken.
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
}

/// What was decided is gone from memory; whether it is on disk is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Lost(pub String);

/// Called once the facts a decision has read or made are durable, or lost.
pub type Done = Box<dyn FnOnce(Result<(), Lost>) + Send>;

/// The facts of one decision and what follows from them.
#[derive(Default)]
pub struct Batch {
    /// The facts; none for a decision that only read.
    pub records: Vec<Arc<Record>>,
    /// What each plugin wants, as of the last of these facts.
    pub wants: Wants,
    done: Option<Done>,
}

/// What the rest of the program learns from the journal's writer.
pub enum Committed {
    /// These facts are durable, and these wants hold.
    Batch(Batch),
    /// Memory was rebuilt from the journal: these wants are the complete set.
    Rebuilt(Wants),
    /// The journal cannot go on; the process must end and start again.
    Broken(AppendError),
}

/// Takes what is durable, in order, on the writer's thread.
pub trait Sink {
    /// The next piece of news.
    fn committed(&self, news: Committed);
}

impl<F: Fn(Committed)> Sink for F {
    fn committed(&self, news: Committed) {
        self(news);
    }
}

struct Inner {
    slots: Vec<Slot>,
    head: Seq,
    durable: Seq,
    at: Millis,
    pending: Vec<Batch>,
    closed: bool,
}

/// All folded state behind one lock, and the queue to the journal's writer.
pub struct Sequencer {
    journal: Arc<dyn Journal>,
    epoch: u64,
    inner: Mutex<Inner>,
    ready: Condvar,
}

thread_local! {
    static DECIDING: Cell<bool> = const { Cell::new(false) };
}

/// Facts are read back in pages of this many.
const PAGE: usize = 4096;

impl Sequencer {
    /// Claims the journal and folds all of it; the wants are the complete set.
    pub fn open(
        machines: Vec<Machine>,
        journal: Arc<dyn Journal>,
    ) -> Result<(Self, Wants), JournalError> {
        let epoch = journal.claim()?;
        let slots = machines.into_iter().map(Slot::new).collect();
        let (head, at) = (Seq::default(), Millis::default());
        let mut inner =
            Inner { slots, head, durable: head, at, pending: Vec::new(), closed: false };
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
        let at = inner.at.max(now);
        let slot = inner.slot(plugin)?;
        if let Some((key, epoch)) = &by.effect
            && slot.wanted.get(key).is_none_or(|wanted| wanted.epoch != *epoch)
        {
            return Err(Refused::Stale);
        }
        let (facts, reply) = {
            let _deciding = Deciding::enter();
            decide(slot.state()?, at)
        };
        let records = inner.records(&facts, &by.origin, at)?;
        if records.is_empty() && inner.durable == inner.head {
            drop(inner);
            done(Ok(()));
            return Ok(reply);
        }
        let live: Vec<_> = facts.0.iter().map(|fact| Some(fact.as_any())).collect();
        let wants = inner.fold(&records, &live);
        inner.pending.push(Batch { records, wants, done: Some(done) });
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
        let state = inner.slot(plugin)?.state()?;
        let _deciding = Deciding::enter();
        Ok(look(state))
    }

    /// The last fact's place, and the last durable one's.
    pub fn position(&self) -> (Seq, Seq) {
        let inner = self.lock();
        (inner.head, inner.durable)
    }

    /// The plugins whose state cannot be trusted, and why.
    pub fn degraded(&self) -> Vec<(&'static str, String)> {
        let inner = self.lock();
        let degraded = |slot: &Slot| Some((slot.machine.name, slot.degraded.clone()?));
        inner.slots.iter().filter_map(degraded).collect()
    }

    /// Waits for decisions, makes them durable and passes them on; false once closed and empty.
    pub fn commit(&self, sink: &dyn Sink) -> bool {
        let mut inner = self.lock();
        while inner.pending.is_empty() {
            if inner.closed {
                return false;
            }
            inner = self.ready.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        drop(inner);
        self.try_commit(sink);
        true
    }

    /// Makes what is pending durable and passes it on, without waiting for more.
    pub fn try_commit(&self, sink: &dyn Sink) {
        let (batches, durable) = {
            let mut inner = self.lock();
            (mem::take(&mut inner.pending), inner.durable)
        };
        let records: Vec<_> = batches.iter().flat_map(|batch| batch.records.clone()).collect();
        hold("append", &records);
        let append = Append { records: &records, expect: durable, epoch: self.epoch };
        let result = if records.is_empty() { Ok(()) } else { self.journal.append(append) };
        match result {
            Ok(()) => {
                hold("appended", &records);
                let durable = records.last().map_or(durable, |record| record.seq);
                let dones = pass_on(batches, sink);
                self.lock().durable = durable;
                dones.into_iter().for_each(|done| done(Ok(())));
            }
            Err(error) => self.roll_back(batches, error, sink),
        }
    }

    /// No decision is taken any more; the writer ends when it has written the last one.
    pub fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_all();
    }

    /// Each plugin's state and wants, as they are and as a fold of the whole journal makes them.
    ///
    /// Equal unless a fold is not pure or a drive's many small answers differ from its full one.
    #[cfg(any(test, feature = "testing"))]
    pub fn audit(&self) -> Result<[Vec<crate::testing::Snapshot>; 2], JournalError> {
        self.lock().audit(&*self.journal)
    }

    /// Every run that is wanted, with its epoch.
    #[cfg(any(test, feature = "testing"))]
    pub fn wants(&self) -> Vec<(crate::runs::Place, u64)> {
        let inner = self.lock();
        let wants = |(id, slot): (usize, &Slot)| {
            let epochs = slot.wanted.iter().map(|(key, wanted)| (key.clone(), wanted.epoch));
            epochs.map(move |(key, epoch)| ((PluginId(id), key), epoch)).collect::<Vec<_>>()
        };
        inner.slots.iter().enumerate().flat_map(wants).collect()
    }

    /// Forgets what is not on disk, by the same code as at boot.
    fn roll_back(&self, mut lost: Vec<Batch>, error: AppendError, sink: &dyn Sink) {
        let why = Lost(error.to_string());
        let news = {
            let mut inner = self.lock();
            lost.append(&mut inner.pending);
            let news = match error {
                AppendError::Full(_) => match inner.rebuild(&*self.journal) {
                    Ok(wants) => Committed::Rebuilt(wants),
                    Err(unreadable) => Committed::Broken(unreadable.into()),
                },
                error => Committed::Broken(error),
            };
            // Under the same lock: nobody may decide on what is lost, or on half a rebuild.
            inner.closed |= matches!(news, Committed::Broken(_));
            news
        };
        sink.committed(news);
        lost.into_iter().filter_map(|batch| batch.done).for_each(|done| done(Err(why.clone())));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        debug_assert!(!DECIDING.get(), "a decision or a peek asked the sequencer again");
        // A decision that panics has changed nothing, and folds do not panic through.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place where a test may stop the writer for good, to kill the process there.
fn hold(_point: &str, _records: &[Arc<Record>]) {
    #[cfg(any(test, feature = "testing"))]
    if let Some(last) = _records.last() {
        crate::testing::hold(_point, last.seq.0);
    }
}

fn pass_on(batches: Vec<Batch>, sink: &dyn Sink) -> Vec<Done> {
    let mut dones = Vec::with_capacity(batches.len());
    for mut batch in batches {
        dones.extend(batch.done.take());
        if !batch.records.is_empty() {
            sink.committed(Committed::Batch(batch));
        }
    }
    dones
}

impl Inner {
    fn slot(&mut self, plugin: PluginId) -> Result<&mut Slot, Refused> {
        if self.closed { Err(Refused::Closed) } else { Ok(&mut self.slots[plugin.0]) }
    }

    fn records(
        &self,
        facts: &Facts,
        origin: &Arc<Origin>,
        at: Millis,
    ) -> Result<Vec<Arc<Record>>, Refused> {
        let mut seq = self.head;
        let mut records = Vec::with_capacity(facts.0.len());
        for fact in &facts.0 {
            seq = seq.next();
            let record = fact.record(seq, at, origin).map_err(|error| Refused::Unserializable {
                fact: fact.name(),
                why: error.to_string(),
            })?;
            records.push(Arc::new(record));
        }
        Ok(records)
    }

    /// Folds new facts into every plugin that folds them, then asks each what it wants.
    fn fold(&mut self, records: &[Arc<Record>], live: &[Option<&dyn Any>]) -> Wants {
        if let Some(last) = records.last() {
            (self.head, self.at) = (last.seq, last.at);
        }
        let mut wants = Vec::new();
        for (id, slot) in self.slots.iter_mut().enumerate() {
            let mut keys = BTreeSet::new();
            let mut folded = false;
            for (record, fact) in records.iter().zip(live) {
                folded |= slot.apply(*fact, record, &mut keys);
            }
            if folded {
                let new = slot.want(Changed::Keys(&keys));
                wants.extend(new.into_iter().map(|want| (PluginId(id), want)));
            }
        }
        wants
    }

    /// Drops all state and folds the journal from its start.
    fn rebuild(&mut self, journal: &dyn Journal) -> Result<Wants, JournalError> {
        self.slots.iter_mut().for_each(Slot::reset);
        (self.head, self.at) = (Seq::default(), Millis::default());
        loop {
            let records = journal.read(&Query::page(self.head, PAGE))?;
            for slot in &mut self.slots {
                let mut keys = BTreeSet::new();
                for record in &records {
                    slot.apply(None, record, &mut keys);
                }
            }
            let Some(last) = records.last() else { break };
            (self.head, self.at) = (last.seq, last.at);
        }
        self.durable = self.head;
        let all = |(id, slot): (usize, &mut Slot)| {
            slot.want(Changed::All).into_iter().map(move |want| (PluginId(id), want))
        };
        Ok(self.slots.iter_mut().enumerate().flat_map(all).collect())
    }

    #[cfg(any(test, feature = "testing"))]
    fn snapshot(&self) -> Vec<crate::testing::Snapshot> {
        self.slots.iter().map(Slot::snapshot).collect()
    }

    /// Compares with a fold from the start, and leaves everything as it was.
    #[cfg(any(test, feature = "testing"))]
    fn audit(
        &mut self,
        journal: &dyn Journal,
    ) -> Result<[Vec<crate::testing::Snapshot>; 2], JournalError> {
        let live = self.snapshot();
        let places = (self.head, self.durable, self.at);
        let kept: Vec<_> = self.slots.iter_mut().map(Slot::set_aside).collect();
        let fresh = self.refold(journal, places.0);
        self.slots.iter_mut().zip(kept).for_each(|(slot, kept)| slot.put_back(kept));
        (self.head, self.durable, self.at) = places;
        Ok([live, fresh?])
    }

    #[cfg(any(test, feature = "testing"))]
    fn refold(
        &mut self,
        journal: &dyn Journal,
        head: Seq,
    ) -> Result<Vec<crate::testing::Snapshot>, JournalError> {
        self.rebuild(journal)?;
        let waiting: Vec<_> = self.pending.iter().flat_map(|batch| batch.records.clone()).collect();
        if self.head.0 + waiting.len() as u64 != head.0 {
            let message = "an audit must wait until the writer is idle".to_owned();
            return Err(JournalError { message, source: None });
        }
        self.fold(&waiting, &vec![None; waiting.len()]);
        for slot in &mut self.slots {
            slot.wanted.clear();
            slot.want(Changed::All);
        }
        Ok(self.snapshot())
    }
}

/// Marks this thread as inside a decision, to catch one that asks the sequencer again.
struct Deciding;

impl Deciding {
    fn enter() -> Self {
        DECIDING.set(true);
        Deciding
    }
}

impl Drop for Deciding {
    fn drop(&mut self) {
        DECIDING.set(false);
    }
}
