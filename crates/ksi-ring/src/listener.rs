//! Listeners: one reader's view of the news, from the journal first and then live.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use ksi_protocol::{Error, Pattern, Raw, Result};
use ksi_state::{Journal, Origin, Query, Record, Seq};
use tokio::sync::Notify;

use crate::ear::Because;
use crate::event::Event;
use crate::line::{Asked, Call, Line, Reply};
use crate::ring::{Overview, Ring, Taken};

/// What a listener is given.
#[derive(Debug)]
pub enum News {
    /// An event that it asked for.
    Event(Arc<Event>, Because),
    /// It was too slow: so many signals are gone; no fact is.
    Lagged {
        /// How many signals.
        missed: u64,
    },
    /// Something is asked of it.
    Call(Call),
}

/// One reader of events; a connection has one, whatever it subscribes to.
pub struct Listener {
    inbox: Arc<Inbox>,
    journal: Arc<dyn Journal>,
    awake: Arc<Notify>,
    ready: VecDeque<News>,
}

/// The handle by which a listener's owner, and handlers on its behalf, subscribe.
pub struct Inbox {
    ring: Ring,
    id: u64,
    line: Arc<Line>,
}

impl Inbox {
    /// Subscribes to what matches: from now on, or from behind an earlier fact.
    ///
    /// The subscription's number, and the last fact that does not belong to it.
    pub fn subscribe(&self, patterns: Vec<Pattern>, since: Option<Seq>) -> (u64, Seq) {
        self.ring.subscribe(self.id, patterns, since)
    }

    /// What goes through the ring, and for how many.
    pub fn overview(&self) -> Overview {
        self.ring.overview()
    }

    /// Ends a subscription; false if there is none of this number.
    pub fn unsubscribe(&self, number: u64) -> bool {
        self.ring.unsubscribe(self.id, number)
    }

    /// Delivers the next fact of this name about this subject, though no pattern asks for it.
    ///
    /// Follow before the decision that leads to the fact, or inside it: it may come at once.
    pub fn follow(&self, name: &str, subject: &str) {
        self.ring.follow(self.id, name, subject);
    }

    /// Asks something of the listener's owner, who has so long to answer.
    pub fn ask(&self, event: &str, data: Raw, origin: Arc<Origin>, patience: Duration) -> Asked {
        self.line.ask(event, data, origin, patience)
    }

    /// Takes what the owner says about a call; false if no such call waits.
    pub fn reply(&self, call: u64, reply: Reply) -> bool {
        self.line.reply(call, reply)
    }

    /// On whose behalf a call was made that waits for the owner's answer.
    pub fn origin_of(&self, call: u64) -> Option<Arc<Origin>> {
        self.line.origin(call)
    }

    /// How many calls wait for the owner's answer.
    pub fn waiting(&self) -> usize {
        self.line.waiting()
    }

    /// The owner says nothing any more: calls that wait, and later ones, are `unavailable`.
    pub fn hang_up(&self) {
        self.line.hang_up();
    }

    /// Returns once the owner says nothing any more.
    pub async fn gone(&self) {
        self.line.gone().await;
    }
}

impl Listener {
    /// A listener that hears nothing until it subscribes.
    pub fn new(ring: Ring, journal: Arc<dyn Journal>) -> Self {
        let (id, awake) = ring.register();
        let line = Line::new(awake.clone());
        Self { inbox: Arc::new(Inbox { ring, id, line }), journal, awake, ready: VecDeque::new() }
    }

    /// The handle to subscribe with.
    pub fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// The next piece of news; none once the daemon is closing and all has been read.
    ///
    /// Cancelling it loses nothing.
    pub async fn next(&mut self) -> Option<News> {
        loop {
            if let Some(call) = self.inbox.line.next() {
                return Some(News::Call(call));
            }
            if let Some(news) = self.ready.pop_front() {
                return Some(news);
            }
            match self.inbox.ring.take(self.inbox.id) {
                Taken::Events(events) => self.ready(events),
                Taken::CatchUp(stretch, query) => {
                    let page = self.page(query).await;
                    let events = self.inbox.ring.sift(self.inbox.id, stretch, page);
                    self.ready(events);
                }
                Taken::Lagged { missed: 0 } => {}
                Taken::Lagged { missed } => return Some(News::Lagged { missed }),
                Taken::Nothing => self.awake.notified().await,
                Taken::Closed => return None,
            }
        }
    }

    /// The next event, whatever was missed before it.
    pub async fn event(&mut self) -> Option<Arc<Event>> {
        loop {
            if let News::Event(event, _) = self.next().await? {
                return Some(event);
            }
        }
    }

    /// Waits until it hears an event that answers the question.
    pub async fn until<R>(&mut self, mut answer: impl FnMut(&Event) -> Option<R>) -> Result<R> {
        while let Some(event) = self.event().await {
            if let Some(found) = answer(&event) {
                return Ok(found);
            }
        }
        Err(Error::shutdown())
    }

    /// What is at hand already.
    pub fn at_hand(&mut self) -> Option<News> {
        self.ready.pop_front()
    }

    fn ready(&mut self, events: Vec<(Arc<Event>, Because)>) {
        self.ready.extend(events.into_iter().map(|(event, why)| News::Event(event, why)));
    }

    /// Reads one page of the past; what cannot be read is given up with a warning.
    async fn page(&self, query: Query) -> Vec<Record> {
        let journal = self.journal.clone();
        match tokio::task::spawn_blocking(move || journal.read(&query)).await {
            Ok(Ok(records)) => records,
            Ok(Err(error)) => {
                tracing::warn!(%error, "a listener's past events cannot be read");
                Vec::new()
            }
            Err(_) => Vec::new(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.inbox.ring.unregister(self.inbox.id);
        self.inbox.hang_up();
    }
}
