//! The ring: one bounded buffer of news, read by everyone at their own pace.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use ksi_protocol::Pattern;
use ksi_state::{Query, Record, Seq};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::event::Event;

/// How many bytes of news the ring keeps.
const CAPACITY: usize = 8 << 20;

/// The most events a listener is given at once.
pub(crate) const HANDFUL: usize = 256;

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
}

/// One listener's filter and place.
#[derive(Default)]
struct Ear {
    /// The first event that it wants and has not been given.
    unread: Option<u64>,
    /// Facts up to this one it has been given, or does not want.
    seen: Seq,
    /// Signals that wait for it.
    signals: u64,
    filters: Vec<Filter>,
    /// Subscriptions so far; no number is used twice.
    subscriptions: u64,
    /// Facts to read from the journal before anything live.
    catch_up: VecDeque<CatchUp>,
    awake: Arc<Notify>,
}

/// One subscription, or one fact that is followed.
#[derive(Debug)]
struct Filter {
    because: Because,
    patterns: Vec<Pattern>,
    /// Only a fact about this, and only once.
    about: Option<String>,
    /// It asked for the facts behind this one.
    from: Seq,
    /// The last fact when it began; it reads earlier ones from the journal.
    joined: Seq,
    /// The place in the ring from which on it listens.
    start: u64,
    /// It was ended while it had facts to deliver, which the subscriptions up to this one, the last
    /// at that time, may have left to it.
    ended: Option<Because>,
}

impl Filter {
    fn matches(&self, name: &str, subject: Option<&str>) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(name))
            && self.about.as_deref().is_none_or(|about| Some(about) == subject)
    }

    /// Whether it asked for this fact of the past and left it to another, which has ended since.
    fn left(&self, seq: Seq, to: &Filter) -> bool {
        self.from < seq && to.ended.is_some_and(|last| self.because <= last)
    }
}

fn because(filter: &&Filter) -> Because {
    filter.because
}

/// A stretch of the journal that a listener still has to read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct CatchUp {
    after: Seq,
    until: Seq,
    /// The subscription that asked to start early; none when the ring moved on.
    only: Option<Because>,
}

/// Why an event was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Because {
    /// The subscription with the lowest number that matches.
    Subscribed(u64),
    /// The listener's own request led to it.
    Followed,
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
        let full = page.last().filter(|_| page.len() == HANDFUL);
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
        let Shelf { events, first, ears, closed, last_fact, .. } = &mut *shelf;
        let Some(ear) = ears.get_mut(&id) else { return Taken::Closed };
        if let Some(stretch) = ear.catch_up.front() {
            return Taken::CatchUp(*stretch, ear.query(stretch));
        }
        let Some(from) = ear.unread else {
            return if *closed { Taken::Closed } else { Taken::Nothing };
        };
        if from < *first {
            return ear.fall_behind(events, *first, *last_fact);
        }
        let mut taken = Vec::new();
        ear.unread = None;
        for (event, at) in events.iter().skip((from - *first) as usize).zip(from..) {
            let Some(because) = ear.wants(event, at) else { continue };
            if taken.len() == HANDFUL {
                ear.unread = Some(at);
                break;
            }
            match event.seq() {
                Some(seq) if seq <= ear.seen => continue,
                Some(seq) => ear.seen = seq,
                None => ear.signals = ear.signals.saturating_sub(1),
            }
            event.record().into_iter().for_each(|record| ear.given(record));
            taken.push((event.clone(), because));
        }
        if ear.unread.is_none() {
            ear.signals = 0;
            ear.forget_ended();
        }
        Taken::Events(taken)
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

impl Ear {
    /// Notes what the ring no longer holds: the facts to be read from the journal.
    fn fall_behind(&mut self, events: &VecDeque<Arc<Event>>, first: u64, last_fact: Seq) -> Taken {
        let oldest = events.iter().find_map(|event| event.seq());
        let until = oldest.map_or(last_fact, |seq| Seq(seq.0 - 1));
        let after = std::mem::replace(&mut self.seen, until);
        self.unread = Some(first);
        if after < until {
            self.catch_up.push_back(CatchUp { after, until, only: None });
        }
        let signals = events.iter().zip(first..).filter(|(event, _)| event.seq().is_none());
        let kept = signals.filter(|(event, at)| self.wants(event, *at).is_some()).count();
        let missed = self.signals.saturating_sub(kept as u64);
        self.signals -= missed;
        Taken::Lagged { missed }
    }

    /// Why it wants this live event: the lowest subscription that matches.
    fn wants(&self, event: &Event, position: u64) -> Option<Because> {
        let subject = event.record().map(|record| record.subject.as_str());
        let matching =
            || self.filters.iter().filter(|filter| filter.matches(event.name(), subject));
        let first = matching().filter(|filter| filter.start <= position).min_by_key(because)?;
        if first.ended.is_none() {
            return Some(first.because);
        }
        let asks = |filter: &&Filter| {
            let left_it = event.seq().is_some_and(|seq| filter.left(seq, first));
            filter.ended.is_none() && (filter.start <= position || left_it)
        };
        matching().filter(asks).map(|filter| filter.because).min()
    }

    /// Why it wants this fact of the journal, unless a lower subscription delivers it otherwise.
    fn missed(&self, record: &Record, only: Option<Because>) -> Option<Because> {
        let from = |filter: &Filter| if only.is_some() { filter.from } else { filter.joined };
        let matches = |filter: &&Filter| filter.matches(&record.name, Some(&record.subject));
        let matching = || self.filters.iter().filter(matches);
        let asked = |filter: &&Filter| {
            let over = only.is_some_and(|only| filter.ended.is_some_and(|last| last < only));
            from(filter) < record.seq && !over
        };
        let first = matching().filter(asked).min_by_key(because)?;
        if only.is_none() && first.ended.is_some() {
            let asks = |filter: &&Filter| {
                filter.ended.is_none()
                    && (filter.joined < record.seq || filter.left(record.seq, first))
            };
            return matching().filter(asks).map(|filter| filter.because).min();
        }
        only.is_none_or(|only| only == first.because).then_some(first.because)
    }

    /// An ended subscription is kept only while there is something to read that another, which
    /// asked for the past, may have left to it: so there are no more of them than were live at once
    /// when a subscription that still is began.
    fn forget_ended(&mut self) {
        if self.filters.iter().all(|filter| filter.ended.is_none()) {
            return;
        }
        let unread = self.unread.is_some() || self.catch_up.iter().any(|it| it.only.is_none());
        let asks = |filter: &&Filter| filter.ended.is_none() && filter.from < filter.joined;
        let askers: Vec<_> = self.filters.iter().filter(asks).map(|asker| asker.because).collect();
        let left_to = |filter: &Filter, last: Because| {
            askers.iter().any(|asker| filter.because < *asker && *asker <= last)
        };
        self.filters
            .retain(|filter| filter.ended.is_none_or(|last| unread && left_to(filter, last)));
    }

    /// The next page of a stretch.
    fn query(&self, stretch: &CatchUp) -> Query {
        let asks = |filter: &&Filter| stretch.only.is_none_or(|only| only == filter.because);
        let patterns = self.filters.iter().filter(asks).flat_map(|filter| &filter.patterns);
        let names = patterns.map(Pattern::to_string).collect();
        Query { until: Some(stretch.until), names, ..Query::page(stretch.after, HANDFUL) }
    }

    fn notice(&mut self, position: u64, last_fact: Seq, signal: bool) {
        if self.unread.is_none() {
            self.unread = Some(position);
            self.seen = self.seen.max(last_fact);
        }
        self.signals += u64::from(signal);
        self.awake.notify_one();
    }

    /// A followed fact comes once.
    fn given(&mut self, record: &Record) {
        let over = |filter: &Filter| {
            filter.about.is_some()
                && filter.joined < record.seq
                && filter.matches(&record.name, Some(&record.subject))
        };
        self.filters.retain(|filter| !over(filter));
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
