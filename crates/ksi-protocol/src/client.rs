mod calls;
mod connection;
mod feed;
mod subscription;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::{RawValue, to_raw_value};
use tokio::net::UnixStream;

use self::calls::After;
use self::connection::Connection;
pub use self::feed::{Feed, FeedError, News};
pub use self::subscription::Subscription;
use crate::{Context, Error, Pattern, Reply, Result};

/// A connection to a daemon.
///
/// Clones share the connection, and any number of calls may be in flight on it. It ends when the
/// last clone and the last subscription are dropped. A call that is dropped is not cancelled: the
/// daemon finishes it.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use ksi_protocol::{Client, Paths, Pattern};
///
/// let client = Client::connect(&Paths::discover()?.socket).await?;
/// let mut turns = client.subscribe(vec![Pattern::parse("completion:*")?], None).await?;
/// let health: serde_json::Value = client.call("system:health", &()).await?;
/// println!("{}", health["status"]);
/// while let Some(turn) = turns.next().await {
///     println!("{} {}", turn.event, turn.data);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    connection: Arc<Connection>,
}

/// How much a client takes from a daemon before it defends itself.
#[derive(Debug, Clone)]
pub struct Options {
    /// The longest line; a longer one ends the connection.
    pub line_limit: usize,
    /// How many events may wait in one subscription; the oldest make room.
    pub queued_events: usize,
    /// How many bytes of events may wait in one subscription; the newest event always stays.
    pub queued_bytes: usize,
    /// A full subscription keeps its events, and nothing is read from the daemon until it has room
    /// again: for a connection that is there for one subscription.
    pub waits: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { line_limit: 256 << 20, queued_events: 4096, queued_bytes: 16 << 20, waits: false }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// There is no socket.
    #[error("no daemon is running: there is no socket at {}", .0.display())]
    NotRunning(PathBuf),
    /// There is a socket, but nobody listens.
    #[error("no daemon is running: nobody listens at {}", .0.display())]
    Refused(PathBuf),
    /// The system does not let this user connect.
    #[error("this user may not connect to {}", .0.display())]
    Denied(PathBuf),
    /// Somebody else listens where this user's daemon should.
    #[error("the daemon at {} belongs to user {uid}", .path.display())]
    OtherUser {
        /// The socket.
        path: PathBuf,
        /// Who listens there.
        uid: u32,
    },
    /// Something else.
    #[error("cannot connect to {}", .path.display())]
    Failed {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

impl ConnectError {
    fn new(socket: &Path, source: std::io::Error) -> Self {
        let path = socket.to_owned();
        match source.kind() {
            ErrorKind::NotFound => Self::NotRunning(path),
            ErrorKind::ConnectionRefused => Self::Refused(path),
            ErrorKind::PermissionDenied => Self::Denied(path),
            _ => Self::Failed { path, source },
        }
    }

    /// What to try.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotRunning(_) | Self::Refused(_) => Some("start it with `ksi start`"),
            Self::Denied(_) | Self::OtherUser { .. } => {
                Some("set KSI_HOME to a folder of your own and start a daemon there")
            }
            Self::Failed { .. } => None,
        }
    }
}

impl Client {
    /// Connects to the daemon that listens on this socket.
    pub async fn connect(socket: &Path) -> Result<Self, ConnectError> {
        Self::connect_with(socket, &Options::default()).await
    }

    /// Connects with limits of one's own.
    pub async fn connect_with(socket: &Path, options: &Options) -> Result<Self, ConnectError> {
        let failed = |error| ConnectError::new(socket, error);
        let stream = UnixStream::connect(socket).await.map_err(failed)?;
        let listener = stream.peer_cred().map_err(failed)?.uid();
        if !is_trusted(listener, rustix::process::geteuid().as_raw()) {
            return Err(ConnectError::OtherUser { path: socket.to_owned(), uid: listener });
        }
        Ok(Self { connection: Arc::new(Connection::new(stream, options)) })
    }

    /// Sends a request and waits for its answer. `&()` as data stands for none.
    pub async fn call<T: DeserializeOwned>(
        &self,
        event: &str,
        data: &(impl Serialize + ?Sized),
    ) -> Result<T> {
        parsed(event, &self.call_raw(event, &raw(event, data)?, None).await?)
    }

    /// Sends a request with a context, and waits for its answer.
    pub async fn call_with<T: DeserializeOwned>(
        &self,
        event: &str,
        data: &(impl Serialize + ?Sized),
        context: &Context,
    ) -> Result<T> {
        parsed(event, &self.call_raw(event, &raw(event, data)?, Some(context)).await?)
    }

    /// Sends a request whose data is JSON already, and hands out the whole reply.
    ///
    /// When the daemon leaves `timeout_ms` of the context unheeded, the client gives up soon after.
    pub async fn call_raw(
        &self,
        event: &str,
        data: &RawValue,
        context: Option<&Context>,
    ) -> Result<Reply> {
        self.connection.call(event, data, context, After::Nothing).await
    }

    /// Sends an event and waits until the daemon has taken it, whatever it answers.
    pub async fn emit(&self, event: &str, data: &(impl Serialize + ?Sized)) -> Result<()> {
        self.call_raw(event, &raw(event, data)?, None).await.map(drop)
    }

    /// Asks for the events that match one of the patterns, from now on or from the first fact
    /// after `since`.
    ///
    /// Who takes its events too slowly loses the oldest, which [`Subscription::lagged`] counts:
    /// calls and other subscriptions never wait for it.
    pub async fn subscribe(
        &self,
        patterns: Vec<Pattern>,
        since: Option<u64>,
    ) -> Result<Subscription> {
        Subscription::start(&self.connection, patterns, since).await
    }

    /// The events that come without a subscription: results of this connection's own completions
    /// that no pattern of its matches, and the daemon's farewell, `system:shutdown_notification`.
    pub fn unasked(&self) -> Subscription {
        Subscription::unasked(&self.connection)
    }
}

/// Whether a daemon of the user `listener` may get what `own` has to say.
fn is_trusted(listener: u32, own: u32) -> bool {
    const ROOT: u32 = 0;
    listener == own || listener == ROOT || own == ROOT
}

fn raw(event: &str, data: &(impl Serialize + ?Sized)) -> Result<Box<RawValue>> {
    to_raw_value(data).map_err(|error| {
        Error::bad_params(format!("the data of `{event}` cannot be written as JSON: {error}"))
    })
}

fn parsed<T: DeserializeOwned>(event: &str, reply: &Reply) -> Result<T> {
    serde_json::from_str(reply.data.get()).map_err(|error| {
        Error::internal(format!("the answer to `{event}` has another shape than expected: {error}"))
            .hint("client and daemon may be of different versions: restart the daemon")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_this_user_may_not_use_is_denied() {
        let error = ConnectError::new(Path::new("/s"), ErrorKind::PermissionDenied.into());
        assert!(
            matches!(&error, ConnectError::Denied(path) if path == Path::new("/s")),
            "{error:?}"
        );
        assert!(error.hint().is_some());
    }

    #[test]
    fn only_the_same_user_and_root_are_trusted() {
        assert!(is_trusted(1000, 1000));
        assert!(is_trusted(0, 1000));
        assert!(is_trusted(1000, 0));
        assert!(!is_trusted(1001, 1000));
    }
}
