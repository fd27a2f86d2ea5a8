use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use super::{Client, ConnectError, Options, Subscription};
use crate::{Code, Error, Pattern, Pushed};

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Events over the deaths and restarts of daemons: every fact once, in order.
///
/// It has a connection of its own, and takes no more from it than is read: who reads slowly is
/// caught up from the journal by the daemon and misses signals, never facts. When the connection
/// ends it connects anew, with a pause that doubles up to half a second, and goes on behind the last
/// fact that was taken. Signals of the time between are lost.
#[derive(Debug)]
pub struct Feed {
    socket: PathBuf,
    patterns: Vec<Pattern>,
    /// How long a daemon may be away.
    patience: Duration,
    /// The last fact that was taken, or the one behind which it all began.
    seen: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    Live(Subscription),
    /// Since when, and why.
    Away(Instant, Error),
}

/// What a feed gives.
#[derive(Debug)]
pub enum News {
    /// An event.
    Event(Pushed),
    /// The daemon has gone away; the next call waits until it is back.
    Away(Error),
    /// A daemon is there again.
    Back {
        /// Facts up to this one may be gone: that daemon's journal keeps them no longer.
        pruned: Option<u64>,
    },
}

/// Why there is no feed.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The daemon refuses the subscription.
    #[error(transparent)]
    Refused(#[from] Error),
}

impl Feed {
    /// Begins behind this fact, or with what happens from now on; `patience` is how long a daemon
    /// may be away.
    pub async fn open(
        socket: impl Into<PathBuf>,
        patterns: Vec<Pattern>,
        since: Option<u64>,
        patience: Duration,
    ) -> Result<Feed, FeedError> {
        let socket = socket.into();
        let events = subscribe(&socket, &patterns, since).await?;
        let seen = since.or(events.since()).unwrap_or_default();
        Ok(Feed { socket, patterns, patience, seen, state: State::Live(events) })
    }

    /// The next piece of news; none once no daemon came back in time, or it refuses to go on.
    ///
    /// Cancelling it loses nothing.
    pub async fn next(&mut self) -> Option<News> {
        match &mut self.state {
            State::Live(events) => match events.next().await {
                Some(event) => {
                    self.seen = event.seq.unwrap_or(self.seen);
                    Some(News::Event(event))
                }
                None => {
                    let unknown = || Error::unavailable("the connection to the daemon has ended");
                    let why = events.ended().unwrap_or_else(unknown);
                    self.state = State::Away(Instant::now(), why.clone());
                    Some(News::Away(why))
                }
            },
            State::Away(since, _) => {
                let since = *since;
                let back = tokio::time::timeout_at(since + self.patience, self.comes_back());
                match back.await.ok()? {
                    Ok(events) => {
                        let pruned = events.pruned();
                        self.state = State::Live(events);
                        Some(News::Back { pruned })
                    }
                    Err(why) => {
                        self.state = State::Away(since, why);
                        None
                    }
                }
            }
        }
    }

    /// The last fact that was taken, or the one behind which it began.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Facts up to this one may have gone before the feed began behind an earlier one.
    pub fn pruned(&self) -> Option<u64> {
        match &self.state {
            State::Live(events) => events.pruned(),
            State::Away(..) => None,
        }
    }

    /// Why the daemon is away, or refuses to go on; none while it is there.
    pub fn away(&self) -> Option<&Error> {
        match &self.state {
            State::Live(_) => None,
            State::Away(_, why) => Some(why),
        }
    }

    /// A daemon that is about to end, or was just killed, may still take a connection.
    async fn comes_back(&self) -> Result<Subscription, Error> {
        let mut pause = FIRST_PAUSE;
        loop {
            match subscribe(&self.socket, &self.patterns, Some(self.seen)).await {
                Ok(events) => return Ok(events),
                // Whatever else it answers, it may be on its way up or down.
                Err(FeedError::Refused(why)) if is_final(why.code) => return Err(why),
                Err(_) => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

fn is_final(code: Code) -> bool {
    matches!(code, Code::Forbidden | Code::Unauthenticated | Code::BadParams)
}

/// A subscription with a connection of its own.
async fn subscribe(
    socket: &std::path::Path,
    patterns: &[Pattern],
    since: Option<u64>,
) -> Result<Subscription, FeedError> {
    let options = Options { waits: true, ..Options::default() };
    let client = Client::connect_with(socket, &options).await?;
    Ok(client.subscribe(patterns.to_vec(), since).await?)
}
