use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::value::to_raw_value;
use tokio::sync::Notify;

use super::Options;
use super::calls::After;
use super::connection::Connection;
use crate::{Error, Pattern, Pushed, Result};

/// Events as they come in; dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription {
    connection: Arc<Connection>,
    queue: Arc<Queue>,
    last_seq: Option<u64>,
}

/// What a subscription wants, and where it goes.
#[derive(Debug)]
pub(super) struct Interest {
    pub(super) patterns: Vec<Pattern>,
    pub(super) since: Option<u64>,
    /// Subscriptions that were ended before: what still comes for them is of a time that the
    /// journal is read for, and comes again in its place.
    pub(super) ended: Vec<String>,
    pub(super) queue: Arc<Queue>,
}

#[derive(Serialize)]
struct Subscribe<'a> {
    event_patterns: &'a [Pattern],
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<u64>,
}

impl Subscription {
    pub(super) async fn start(
        connection: &Arc<Connection>,
        patterns: Vec<Pattern>,
        since: Option<u64>,
    ) -> Result<Self> {
        let data = to_raw_value(&Subscribe { event_patterns: &patterns, since })
            .map_err(|error| Error::internal(format!("cannot write the patterns: {error}")))?;
        let queue = Arc::new(Queue::new(connection.options()));
        let ended = connection.calls().ended_subscriptions();
        let interest = Interest { patterns, since, ended, queue: queue.clone() };
        // Made before the call: who stops waiting for it in the middle ends the subscription too.
        let this = Self { connection: connection.clone(), queue, last_seq: None };
        connection.call("monitor:subscribe", &data, None, After::Subscribe(interest)).await?;
        Ok(this)
    }

    pub(super) fn unasked(connection: &Arc<Connection>) -> Self {
        let queue = Arc::new(Queue::new(connection.options()));
        connection.calls().listen_unasked(queue.clone());
        Self { connection: connection.clone(), queue, last_seq: None }
    }

    /// The next event; none when the connection has ended and all events that came were taken.
    pub async fn next(&mut self) -> Option<Pushed> {
        loop {
            // Bound before the wait, so that no lock is held over it.
            let taken = self.queue.take();
            match taken {
                Taken::Event(event) => {
                    self.last_seq = event.seq.or(self.last_seq);
                    return Some(event);
                }
                Taken::Ended => return None,
                Taken::Nothing => self.queue.arrived.notified().await,
            }
        }
    }

    /// How many events were lost so far because this subscription was not read fast enough.
    pub fn lagged(&self) -> u64 {
        self.queue.lock().lagged
    }

    /// The last fact that was taken: `since` for a subscription that goes on from here.
    pub fn last_seq(&self) -> Option<u64> {
        self.last_seq
    }

    /// The fact behind which its events come; none for what comes unasked.
    pub fn since(&self) -> Option<u64> {
        self.queue.begun.get()?.since
    }

    /// Facts up to this one may be gone, and those that are do not come: only told when that is
    /// behind the fact that was asked for.
    pub fn pruned(&self) -> Option<u64> {
        self.queue.begun.get()?.pruned
    }

    /// Why no more events come; none while they may.
    pub fn ended(&self) -> Option<Error> {
        self.queue.lock().ended.clone()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut calls = self.connection.calls();
        calls.ignore_unasked(&self.queue);
        self.queue.close();
        // An answer that brings the id later, under this same lock, will find the queue closed.
        let id = self.queue.id().map(ToOwned::to_owned);
        drop(calls);
        if let Some(id) = id {
            self.connection.unsubscribe(id);
        }
    }
}

impl Interest {
    /// Whether an event that came for another subscription belongs here too.
    pub(super) fn covers(&self, event: &Pushed) -> bool {
        let is_late = self.ended.contains(&event.subscription);
        let seen = event.seq.is_some_and(|seq| self.since.is_some_and(|since| seq <= since));
        !is_late && !seen && self.patterns.iter().any(|pattern| pattern.matches(&event.event))
    }
}

/// Events that wait for one subscription. It is bounded: when it is full the oldest go, because the
/// newest say how things stand, and facts can be read again by their `seq`.
#[derive(Debug)]
pub(super) struct Queue {
    /// None before the daemon has answered, and for what comes unasked.
    begun: OnceLock<Begun>,
    waiting: Mutex<Waiting>,
    arrived: Notify,
    taken: Notify,
    max_events: usize,
    max_bytes: usize,
    /// It keeps everything, and whoever fills it waits.
    waits: bool,
}

/// How a subscription began, as the daemon says it.
#[derive(Debug, Deserialize)]
pub(super) struct Begun {
    pub(super) subscription: String,
    /// The fact after which its events come.
    pub(super) since: Option<u64>,
    pruned: Option<u64>,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Pushed>,
    bytes: usize,
    lagged: u64,
    /// Nobody takes events any more.
    closed: bool,
    ended: Option<Error>,
}

enum Taken {
    Event(Pushed),
    Nothing,
    Ended,
}

impl Queue {
    fn new(options: &Options) -> Self {
        Self {
            begun: OnceLock::new(),
            waiting: Mutex::default(),
            arrived: Notify::new(),
            taken: Notify::new(),
            waits: options.waits,
            max_events: options.queued_events,
            max_bytes: options.queued_bytes,
        }
    }

    pub(super) fn push(&self, event: Pushed) {
        let mut waiting = self.lock();
        if waiting.closed {
            return;
        }
        waiting.bytes += size(&event);
        waiting.events.push_back(event);
        while !self.waits && waiting.events.len() > 1 && self.is_over(&waiting) {
            waiting.pop();
            waiting.lagged += 1;
        }
        drop(waiting);
        self.arrived.notify_one();
    }

    fn is_over(&self, waiting: &Waiting) -> bool {
        waiting.events.len() > self.max_events || waiting.bytes > self.max_bytes
    }

    /// Whether whoever fills it is to wait.
    pub(super) fn is_full(&self) -> bool {
        self.waits && self.is_over(&self.lock())
    }

    /// Returns once it is not full.
    pub(super) async fn has_room(&self) {
        while self.is_full() {
            self.taken.notified().await;
        }
    }

    pub(super) fn end(&self, reason: &Error) {
        self.lock().ended = Some(reason.clone());
        self.arrived.notify_one();
    }

    fn take(&self) -> Taken {
        let mut waiting = self.lock();
        match waiting.pop() {
            Some(event) => {
                self.taken.notify_one();
                Taken::Event(event)
            }
            None if waiting.ended.is_some() => Taken::Ended,
            None => Taken::Nothing,
        }
    }

    pub(super) fn id(&self) -> Option<&str> {
        self.begun.get().map(|begun| begun.subscription.as_str())
    }

    pub(super) fn begin(&self, begun: Begun) {
        self.begun.get_or_init(|| begun);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn close(&self) {
        *self.lock() = Waiting { closed: true, ..Waiting::default() };
        self.taken.notify_one();
    }

    /// Nothing here can be left half done by a panic.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn pop(&mut self) -> Option<Pushed> {
        let event = self.events.pop_front()?;
        self.bytes -= size(&event);
        Some(event)
    }
}

fn size(event: &Pushed) -> usize {
    size_of::<Pushed>() + event.event.len() + event.data.get().len() + event.subscription.len()
}
