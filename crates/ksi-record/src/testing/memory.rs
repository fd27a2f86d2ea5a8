//! A journal in memory whose writer a test can stop, fail and let go on.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    document::{Document, Select},
    journal::{Append, AppendError, Journal, JournalError, Query},
    record::{Record, Seq},
    snapshot::Snapshot,
};

/// So long may a test wait for the writer to arrive before it is called stuck.
const STUCK: Duration = Duration::from_secs(60);

/// A journal in memory; a clone has the same contents, as a restart has the same file.
#[derive(Debug, Clone, Default)]
pub struct MemoryJournal {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    records: Vec<Record>,
    documents: BTreeMap<(String, String), Document>,
    snapshot: Snapshot,
    epoch: u64,
    appended: usize,
    failures: VecDeque<AppendError>,
    frozen: bool,
    full: bool,
    blocked: usize,
}

impl MemoryJournal {
    /// From now on an append waits, with nothing written, until [`MemoryJournal::thaw`].
    pub fn freeze(&self) {
        self.lock().frozen = true;
    }

    /// Lets the appends that wait go on.
    pub fn thaw(&self) {
        self.lock().frozen = false;
        self.shared.changed.notify_all();
    }

    /// Returns once an append waits; panics when none does for a minute.
    pub fn wait_frozen(&self) {
        let none = |inner: &mut Inner| inner.blocked == 0;
        let waited = self.shared.changed.wait_timeout_while(self.lock(), STUCK, none);
        let (inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(inner.blocked > 0, "no append came while the journal was frozen");
    }

    /// The next append fails with this and writes nothing; several fail in the order given.
    pub fn fail_next(&self, error: AppendError) {
        self.lock().failures.push_back(error);
    }

    /// From now on no append finds room, until [`MemoryJournal::make_room`].
    pub fn fill(&self) {
        self.lock().full = true;
    }

    /// There is room again.
    pub fn make_room(&self) {
        self.lock().full = false;
    }

    /// How many appends have succeeded.
    pub fn appended(&self) -> usize {
        self.lock().appended
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn head(&self) -> Seq {
        Seq(self.records.len() as u64)
    }
}

impl Journal for MemoryJournal {
    fn claim(&self) -> Result<u64, JournalError> {
        let mut inner = self.lock();
        inner.epoch += 1;
        Ok(inner.epoch)
    }

    fn head(&self) -> Result<Seq, JournalError> {
        Ok(self.lock().head())
    }

    fn pruned(&self) -> Result<Seq, JournalError> {
        Ok(Seq(0))
    }

    fn append(&self, batch: Append<'_>) -> Result<(), AppendError> {
        let mut inner = self.lock();
        if inner.frozen {
            inner.blocked += 1;
            self.shared.changed.notify_all();
            let thawed = self.shared.changed.wait_while(inner, |inner| inner.frozen);
            inner = thawed.unwrap_or_else(PoisonError::into_inner);
            inner.blocked -= 1;
        }
        if let Some(error) = inner.failures.pop_front() {
            return Err(error);
        }
        if inner.full {
            return Err(AppendError::Full("the disk is full".into()));
        }
        let found = inner.head();
        if batch.epoch != inner.epoch || batch.expect != found {
            return Err(AppendError::Conflict { expect: batch.expect, found });
        }
        let places = (found.0 + 1)..;
        if !batch.records.iter().map(|record| record.seq.0).eq(places.take(batch.records.len())) {
            let message = format!("the facts to write do not follow fact {found} without a gap");
            return Err(JournalError { message, source: None }.into());
        }
        inner.records.extend(batch.records.iter().map(|record| Record::clone(record)));
        for document in batch.documents {
            let place = (document.collection.clone(), document.key.clone());
            inner.documents.insert(place, document.clone());
        }
        inner.appended += usize::from(!batch.records.is_empty());
        Ok(())
    }

    fn read(&self, query: &Query) -> Result<Vec<Record>, JournalError> {
        let inner = self.lock();
        let all: Box<dyn Iterator<Item = &Record>> = match query.newest_first {
            true => Box::new(inner.records.iter().rev()),
            false => Box::new(inner.records.iter()),
        };
        let limit = if query.limit == 0 { usize::MAX } else { query.limit };
        let mut bytes = 0;
        let has_room = |record: &&Record| {
            let room = query.bytes == 0 || bytes < query.bytes;
            bytes += record.data.get().len();
            room
        };
        let wanted = all.filter(|record| query.wants(record)).take(limit);
        Ok(wanted.take_while(has_room).cloned().collect())
    }

    fn documents(&self, select: &Select) -> Result<Vec<Document>, JournalError> {
        let inner = self.lock();
        let named = |document: &&Document| {
            document.collection == select.collection
                && select.key.as_ref().is_none_or(|key| *key == document.key)
        };
        let mut found: Vec<_> = inner.documents.values().filter(named).cloned().collect();
        found.sort_by(|a, b| (a.sort, &a.key).cmp(&(b.sort, &b.key)));
        if select.last_first {
            found.reverse();
        }
        let limit = if select.limit == 0 { usize::MAX } else { select.limit };
        Ok(found.into_iter().skip(select.offset).take(limit).collect())
    }

    fn snapshot(&self) -> Result<Snapshot, JournalError> {
        Ok(self.lock().snapshot.clone())
    }

    fn keep(&self, snapshot: &Snapshot) -> Result<(), JournalError> {
        self.lock().snapshot = snapshot.clone();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;
    use crate::testing::journal_suite;

    fn open() -> impl Fn() -> Box<dyn Journal> {
        let journal = MemoryJournal::default();
        move || Box::new(journal.clone())
    }

    crate::journal_suite!(open());

    #[test]
    fn a_frozen_append_writes_nothing_until_it_is_thawed() {
        let journal = MemoryJournal::default();
        let epoch = journal.claim().unwrap();
        journal.freeze();
        let (tx, rx) = mpsc::channel();
        let writer = thread::spawn({
            let journal = journal.clone();
            move || tx.send(journal_suite::append(&journal, epoch, 0, 3)).unwrap()
        });
        journal.wait_frozen();
        assert_eq!((journal.head().unwrap(), journal.appended()), (Seq(0), 0));
        assert!(rx.try_recv().is_err(), "the append returned while frozen");
        journal.thaw();
        writer.join().unwrap();
        assert!(rx.recv().unwrap().is_ok());
        assert_eq!((journal.head().unwrap(), journal.appended()), (Seq(3), 1));
    }

    #[test]
    fn an_owner_frozen_in_an_append_is_fenced_off_by_a_restart() {
        let journal = MemoryJournal::default();
        let epoch = journal.claim().unwrap();
        journal.freeze();
        let old = journal.clone();
        let writer = thread::spawn(move || journal_suite::append(&old, epoch, 0, 1));
        journal.wait_frozen();
        journal.claim().unwrap();
        journal.thaw();
        let error = writer.join().unwrap().unwrap_err();
        assert!(matches!(error, AppendError::Conflict { .. }), "{error}");
        assert_eq!(journal.head().unwrap(), Seq(0));
    }

    #[test]
    fn a_full_journal_takes_nothing_until_there_is_room() {
        let journal = MemoryJournal::default();
        let epoch = journal.claim().unwrap();
        journal.fill();
        for count in [0, 1] {
            let error = journal_suite::append(&journal, epoch, 0, count).unwrap_err();
            assert!(matches!(error, AppendError::Full(_)), "{error}");
        }
        journal.make_room();
        journal_suite::append(&journal, epoch, 0, 1).unwrap();
        assert_eq!(journal.head().unwrap(), Seq(1));
    }

    #[test]
    fn a_failure_that_was_asked_for_happens_once_and_writes_nothing() {
        let journal = MemoryJournal::default();
        let epoch = journal.claim().unwrap();
        journal.fail_next(AppendError::Full("the disk is full".into()));
        let error = journal_suite::append(&journal, epoch, 0, 1).unwrap_err();
        assert!(matches!(error, AppendError::Full(_)), "{error}");
        assert_eq!(journal.head().unwrap(), Seq(0));
        journal_suite::append(&journal, epoch, 0, 1).unwrap();
        assert_eq!(journal.appended(), 1);
    }
}
