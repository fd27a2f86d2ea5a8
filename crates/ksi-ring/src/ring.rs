//! The ring: one bounded buffer of news, read by everyone at their own pace.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use ksi_protocol::Pattern;
use ksi_state::{Query, Record, Seq};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::ear::{Because, CatchUp, Ear, Filter};
use crate::event::Event;

/// How many bytes of news the ring keeps.
const CAPACITY: usize = 8 << 20;

/// The most events a listener is given at once.
pub(crate) const HANDFUL: usize = 256;

/// It is given no more once their data has so many bytes: it may never be read from again.
pub(crate) const ARMFUL: usize = 64 << 10;

/// The shared buffer of the durable facts and signals that somebody listens to.
#[derive(Clone, Default)]
pub struct Ring(Arc<Mutex<Shelf>>);

/// Positions count events since the start; `first` is that of the oldest one kept.
#[derive(Default)]
struct Shelf {
    events: VecDeque<Arc<Event>>,
    first: u64,
    bytes: usize,
    last_fact: Seq,
    ears: HashMap<u64, Ear>,
    by_namespace: HashMap<String, Vec<u64>>,
    everything: Vec<u64>,
    next_ear: u64,
    closed: bool,
    facts: u64,
    signals: u64,
    /// Signals that listeners were too slow for.
    missed: u64,
}

/// What goes through a ring, and for how many; counted since the daemon's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overview {
    /// Listeners that ask for something.
    pub listeners: usize,
    /// What they ask for.
    pub subscriptions: usize,
    /// Facts that were published.
    pub facts: u64,
    /// Signals that were published.
    pub signals: u64,
    /// Signals that listeners missed because they were too slow; each listener's count.
    pub missed: u64,
    /// Events that the ring holds at present.
    pub kept: usize,
    /// How many bytes these are, about.
    pub bytes: usize,
    /// How many bytes it may hold.
    pub capacity: usize,
}

/// What one look at the ring gives.
pub(crate) enum Taken {
    Events(Vec<(Arc<Event>, Because)>),
    /// Facts must be read from the journal first, and given to [`Ring::sift`].
    CatchUp(CatchUp, Query),
    /// The ring moved on, and so many signals with it.
    Lagged {
        missed: u64,
    },
    Nothing,
    Closed,
}

impl Ring {
    /// Wakes those who asked for these news, and keeps for them what they asked for.
    pub fn publish(&self, events: impl IntoIterator<Item = Event>) {
        let mut shelf = self.shelf();
        for event in events {
            shelf.push(event);
        }
    }

    /// A new listener; it hears nothing until it subscribes.
    pub(crate) fn register(&self) -> (u64, Arc<Notify>) {
        let mut shelf = self.shelf();
        shelf.next_ear += 1;
        let ear = Ear::default();
        let (id, awake) = (shelf.next_ear, ear.awake.clone());
        shelf.ears.insert(id, ear);
        (id, awake)
    }

    pub(crate) fn unregister(&self, id: u64) {
        let mut shelf = self.shelf();
        shelf.ears.remove(&id);
        shelf.reindex();
    }

    /// Adds a subscription to what comes from now on, or from behind an earlier fact.
    ///
    /// Its number, and the fact behind which it begins.
    pub(crate) fn subscribe(
        &self,
        id: u64,
        patterns: Vec<Pattern>,
        since: Option<Seq>,
    ) -> (u64, Seq) {
        let mut shelf = self.shelf();
        let (joined, start) = shelf.end();
        let Some(ear) = shelf.ears.get_mut(&id) else { return (0, joined) };
        ear.subscriptions += 1;
        let (number, because) = (ear.subscriptions, Because::Subscribed(ear.subscriptions));
        let from = since.unwrap_or(joined).min(joined);
        let about = None;
        ear.filters.push(Filter { because, patterns, about, from, joined, start, ended: None });
        if from < joined {
            let stretch = CatchUp { after: from, until: joined, only: Some(because) };
            ear.catch_up.push_back(stretch);
            ear.awake.notify_one();
        }
        shelf.reindex();
        (number, from)
    }

    /// Keeps of a stretch's next page what the listener wants, and moves the stretch on.
    pub(crate) fn sift(
        &self,
        id: u64,
        stretch: CatchUp,
        page: Vec<Record>,
    ) -> Vec<(Arc<Event>, Because)> {
        let mut shelf = self.shelf();
        let Some(ear) = shelf.ears.get_mut(&id) else { return Vec::new() };
        // The subscription that asked for it may have been ended meanwhile.
        let Some(front) = ear.catch_up.front_mut().filter(|front| **front == stretch) else {
            return Vec::new();
        };
        let bytes: usize = page.iter().map(|record| record.data.get().len()).sum();
        let full = page.last().filter(|_| page.len() == HANDFUL || bytes >= ARMFUL);
        front.after = full.map_or(stretch.until, |last| last.seq);
        ear.catch_up.pop_front_if(|front| front.after >= front.until);
        let wanted = page.into_iter().filter_map(|record| {
            let because = ear.missed(&record, stretch.only)?;
            ear.given(&record);
            Some((Arc::new(Event::fact(Arc::new(record))), because))
        });
        wanted.collect()
    }

    /// The journal begins behind this fact: what is older was never in the ring.
    pub fn start_at(&self, seq: Seq) {
        self.shelf().last_fact = seq;
    }

    pub(crate) fn unsubscribe(&self, id: u64, number: u64) -> bool {
        let mut shelf = self.shelf();
        let Some(ear) = shelf.ears.get_mut(&id) else { return false };
        let because = Because::Subscribed(number);
        let mut filters = ear.filters.iter_mut();
        let live = |filter: &&mut Filter| filter.because == because && filter.ended.is_none();
        let Some(filter) = filters.find(live) else { return false };
        filter.ended = Some(Because::Subscribed(ear.subscriptions));
        ear.catch_up.retain(|stretch| stretch.only != Some(because));
        ear.forget_ended();
        shelf.reindex();
        true
    }

    /// Asks for the next fact of this name about this subject.
    pub(crate) fn follow(&self, id: u64, name: &str, subject: &str) {
        let mut shelf = self.shelf();
        let (joined, start) = shelf.end();
        let (Some(ear), Ok(name)) = (shelf.ears.get_mut(&id), Pattern::parse(name)) else { return };
        let (because, patterns, about) = (Because::Followed, vec![name], Some(subject.to_owned()));
        let from = joined;
        ear.filters.push(Filter { because, patterns, about, from, joined, start, ended: None });
        shelf.reindex();
    }

    /// How many listen to exactly this name or to its namespace.
    pub fn listeners(&self, name: &str) -> usize {
        let shelf = self.shelf();
        let namespace = name.split(':').next().unwrap_or_default();
        let ears = shelf.by_namespace.get(namespace).into_iter().flatten();
        let ears = ears.chain(&shelf.everything);
        let matching = |ear: &&Ear| {
            let asks = |filter: &&Filter| filter.about.is_none() && filter.ended.is_none();
            let mut filters = ear.filters.iter().filter(asks);
            let mut patterns = filters.by_ref().flat_map(|filter| &filter.patterns);
            patterns.any(|p| p.namespace().is_some() && p.matches(name))
        };
        ears.filter_map(|id| shelf.ears.get(id)).filter(matching).count()
    }

    /// Takes what this listener wants next.
    pub(crate) fn take(&self, id: u64) -> Taken {
        let mut shelf = self.shelf();
        let Shelf { events, first, ears, closed, last_fact, missed: all_missed, .. } = &mut *shelf;
        let Some(ear) = ears.get_mut(&id) else { return Taken::Closed };
        if let Some(stretch) = ear.catch_up.front() {
            return Taken::CatchUp(*stretch, ear.query(stretch));
        }
        let Some(from) = ear.unread else {
            return if *closed { Taken::Closed } else { Taken::Nothing };
        };
        if from < *first {
            let lagged = ear.fall_behind(events, *first, *last_fact);
            if let Taken::Lagged { missed } = lagged {
                *all_missed += missed;
            }
            return lagged;
        }
        let (mut taken, mut bytes) = (Vec::new(), 0);
        ear.unread = None;
        for (event, at) in events.iter().skip((from - *first) as usize).zip(from..) {
            let Some(because) = ear.wants(event, at) else { continue };
            if taken.len() == HANDFUL || bytes >= ARMFUL {
                ear.unread = Some(at);
                break;
            }
            match event.seq() {
                Some(seq) if seq <= ear.seen => continue,
                Some(seq) => ear.seen = seq,
                None => ear.signals = ear.signals.saturating_sub(1),
            }
            event.record().into_iter().for_each(|record| ear.given(record));
            bytes += event.data().get().len();
            taken.push((event.clone(), because));
        }
        if ear.unread.is_none() {
            ear.signals = 0;
            ear.forget_ended();
        }
        Taken::Events(taken)
    }

    /// What goes through it at present, and what has since the start.
    pub(crate) fn overview(&self) -> Overview {
        let shelf = self.shelf();
        let live = |ear: &Ear| ear.filters.iter().filter(|filter| filter.ended.is_none()).count();
        let subscriptions: Vec<_> =
            shelf.ears.values().map(live).filter(|live| *live > 0).collect();
        Overview {
            listeners: subscriptions.len(),
            subscriptions: subscriptions.iter().sum(),
            facts: shelf.facts,
            signals: shelf.signals,
            missed: shelf.missed,
            kept: shelf.events.len(),
            bytes: shelf.bytes,
            capacity: CAPACITY,
        }
    }

    /// No news will come any more; listeners end when they have read what is there.
    pub fn close(&self) {
        let mut shelf = self.shelf();
        shelf.closed = true;
        shelf.ears.values().for_each(|ear| ear.awake.notify_one());
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.0.lock()
    }
}

impl Shelf {
    /// The last fact, and the place of the event that comes next.
    fn end(&self) -> (Seq, u64) {
        (self.last_fact, self.first + self.events.len() as u64)
    }

    fn push(&mut self, event: Event) {
        let (last_fact, position) = self.end();
        let namespace = event.name().split(':').next().unwrap_or_default();
        let ears = self.by_namespace.get(namespace).into_iter().flatten();
        let mut wanted = false;
        for id in ears.chain(&self.everything) {
            if let Some(ear) = self.ears.get_mut(id)
                && ear.wants(&event, position).is_some()
            {
                ear.notice(position, last_fact, event.seq().is_none());
                wanted = true;
            }
        }
        self.last_fact = event.seq().unwrap_or(self.last_fact);
        *if event.seq().is_some() { &mut self.facts } else { &mut self.signals } += 1;
        if !wanted {
            // Who subscribes later begins later, or reads what was before from the journal.
            return;
        }
        self.bytes += event.weight();
        self.events.push_back(Arc::new(event));
        while self.bytes > CAPACITY && self.events.len() > 1 {
            self.bytes -= self.events.pop_front().map_or(0, |event| event.weight());
            self.first += 1;
        }
    }

    /// Rebuilds the index by namespace, so that a publish wakes only who may want it.
    fn reindex(&mut self) {
        self.by_namespace.clear();
        self.everything.clear();
        for (id, ear) in &self.ears {
            let patterns = ear.filters.iter().flat_map(|filter| &filter.patterns);
            let mut namespaces: Vec<_> = patterns.map(Pattern::namespace).collect();
            if namespaces.contains(&None) {
                self.everything.push(*id);
                continue;
            }
            namespaces.sort_unstable();
            namespaces.dedup();
            for namespace in namespaces.into_iter().flatten() {
                self.by_namespace.entry(namespace.to_owned()).or_default().push(*id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ksi_state::{Millis, Origin};

    use super::*;

    fn signal(name: &str) -> Event {
        Event::signal(name, Millis(1), Box::default())
    }

    fn fact(seq: u64, name: &'static str) -> Event {
        Event::fact(Arc::new(Record {
            seq: Seq(seq),
            at: Millis(1),
            name: name.into(),
            version: 1,
            subject: "x".into(),
            origin: Arc::new(Origin::default()),
            data: Box::default(),
        }))
    }

    #[test]
    fn who_begins_and_ends_subscriptions_without_reading_is_remembered_with_a_few_of_them() {
        let ring = Ring::default();
        let (id, _) = ring.register();
        let pattern = || vec![Pattern::parse("a:*").unwrap()];
        let kept = || ring.shelf().ears[&id].filters.len();
        ring.subscribe(id, pattern(), None);
        ring.publish([fact(1, "a:b")]);
        let mut before = ring.subscribe(id, pattern(), Some(Seq(0))).0;
        for seq in 2..1_000 {
            // Each begins before the one before it ends, which may have to deliver what it left.
            let (next, _) = ring.subscribe(id, pattern(), Some(Seq(0)));
            ring.publish([fact(seq, "a:b")]);
            assert!(ring.unsubscribe(id, before));
            before = next;
            assert!(kept() <= 3, "{} after {seq}", kept());
        }
        for _ in 0..1_000 {
            let (number, _) = ring.subscribe(id, pattern(), None);
            assert!(ring.unsubscribe(id, number));
            assert!(kept() <= 3, "{}", kept());
        }
    }

    #[test]
    fn the_overview_counts_what_went_through_and_what_the_slow_have_missed() {
        let ring = Ring::default();
        let ears: Vec<_> = (0..3).map(|_| ring.register().0).collect();
        let pattern = |text| vec![Pattern::parse(text).unwrap()];
        ring.subscribe(ears[0], pattern("a:*"), None);
        ring.subscribe(ears[1], pattern("a:b"), None);
        let (second, _) = ring.subscribe(ears[1], pattern("*"), None);
        ring.subscribe(ears[2], pattern("a:*"), None);
        ring.unsubscribe(ears[1], second);
        ring.unregister(ears[2]);
        let large = Box::<serde_json::value::RawValue>::default;
        ring.publish([fact(1, "a:b"), signal("x:y")]);
        ring.publish((0..40_000).map(|_| Event::signal("a:b", Millis(1), large())));
        let Taken::Lagged { missed } = ring.take(ears[0]) else { panic!("it was fast enough") };
        let seen = ring.overview();
        assert_eq!((seen.listeners, seen.subscriptions), (2, 2));
        assert_eq!((seen.facts, seen.signals, seen.missed), (1, 40_001, missed));
        assert!(missed > 0 && seen.kept < 40_000 && seen.bytes <= seen.capacity);
    }

    #[test]
    fn what_nobody_listens_to_is_not_kept_and_what_somebody_does_is_heard_once() {
        let ring = Ring::default();
        let (id, _) = ring.register();
        ring.publish([signal("a:b")]);
        assert_eq!(ring.shelf().events.len(), 0);
        ring.subscribe(id, vec![Pattern::parse("a:*").unwrap()], None);
        ring.publish([signal("c:d"), signal("a:c"), signal("c:e")]);
        assert_eq!(ring.shelf().events.len(), 1);
        let Taken::Events(events) = ring.take(id) else { panic!("nothing was heard") };
        let names: Vec<_> = events.iter().map(|(event, _)| event.name()).collect();
        assert_eq!(names, ["a:c"]);
        assert!(matches!(ring.take(id), Taken::Nothing));
    }
}
