//! Ears: what one listener wants to hear, and how far it has come.

use std::collections::VecDeque;
use std::sync::Arc;

use ksi_protocol::Pattern;
use ksi_state::{Query, Record, Seq};
use tokio::sync::Notify;

use crate::event::Event;
use crate::ring::{ARMFUL, HANDFUL, Taken};

/// One listener's filter and place.
#[derive(Default)]
pub(crate) struct Ear {
    /// The first event that it wants and has not been given.
    pub(crate) unread: Option<u64>,
    /// Facts up to this one it has been given, or does not want.
    pub(crate) seen: Seq,
    /// Signals that wait for it.
    pub(crate) signals: u64,
    pub(crate) filters: Vec<Filter>,
    /// Subscriptions so far; no number is used twice.
    pub(crate) subscriptions: u64,
    /// Facts to read from the journal before anything live.
    pub(crate) catch_up: VecDeque<CatchUp>,
    pub(crate) awake: Arc<Notify>,
}

/// One subscription, or one fact that is followed.
#[derive(Debug)]
pub(crate) struct Filter {
    pub(crate) because: Because,
    pub(crate) patterns: Vec<Pattern>,
    /// Only a fact about this, and only once.
    pub(crate) about: Option<String>,
    /// It asked for the facts behind this one.
    pub(crate) from: Seq,
    /// The last fact when it began; it reads earlier ones from the journal.
    pub(crate) joined: Seq,
    /// The place in the ring from which on it listens.
    pub(crate) start: u64,
    /// It was ended while it had facts to deliver, which the subscriptions up to this one, the last
    /// at that time, may have left to it.
    pub(crate) ended: Option<Because>,
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
    pub(crate) after: Seq,
    pub(crate) until: Seq,
    /// The subscription that asked to start early; none when the ring moved on.
    pub(crate) only: Option<Because>,
}

/// Why an event was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Because {
    /// The subscription with the lowest number that matches.
    Subscribed(u64),
    /// The listener's own request led to it.
    Followed,
}

impl Ear {
    /// Notes what the ring no longer holds: the facts to be read from the journal.
    pub(crate) fn fall_behind(
        &mut self,
        events: &VecDeque<Arc<Event>>,
        first: u64,
        last_fact: Seq,
    ) -> Taken {
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
    pub(crate) fn wants(&self, event: &Event, position: u64) -> Option<Because> {
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
    pub(crate) fn missed(&self, record: &Record, only: Option<Because>) -> Option<Because> {
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
    pub(crate) fn forget_ended(&mut self) {
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
    pub(crate) fn query(&self, stretch: &CatchUp) -> Query {
        let asks = |filter: &&Filter| stretch.only.is_none_or(|only| only == filter.because);
        let patterns = self.filters.iter().filter(asks).flat_map(|filter| &filter.patterns);
        let names = patterns.map(Pattern::to_string).collect();
        let page = Query::page(stretch.after, HANDFUL);
        Query { until: Some(stretch.until), names, bytes: ARMFUL, ..page }
    }

    pub(crate) fn notice(&mut self, position: u64, last_fact: Seq, signal: bool) {
        if self.unread.is_none() {
            self.unread = Some(position);
            self.seen = self.seen.max(last_fact);
        }
        self.signals += u64::from(signal);
        self.awake.notify_one();
    }

    /// A followed fact comes once.
    pub(crate) fn given(&mut self, record: &Record) {
        let over = |filter: &Filter| {
            filter.about.is_some()
                && filter.joined < record.seq
                && filter.matches(&record.name, Some(&record.subject))
        };
        self.filters.retain(|filter| !over(filter));
    }
}
