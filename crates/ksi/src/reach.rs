//! Whether a daemon runs, and what keeps a command from it.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use ksi_process::lock::{self, Lock};
use ksi_protocol::{Client, Code, ConnectError, Paths};
use serde::Deserialize;
use serde_json::json;

/// A daemon that has not said by then how it is does not work.
const ANSWER: Duration = Duration::from_secs(10);

/// How long a daemon may take to start, or to end: its grace for running work, and some.
pub(crate) const TURNING: Duration = Duration::from_secs(45);

/// Who was killed holds its lock until its memory is given back; a socket is soon made anew.
const MOMENT: Duration = Duration::from_secs(3);

/// Where a daemon stands, as its lock's file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stage {
    Starting,
    /// It listens there.
    Serving(PathBuf),
    Ending,
}

impl Stage {
    pub(crate) fn note(&self, lock: &Lock) {
        let note = match self {
            Stage::Starting => "starting".to_owned(),
            Stage::Serving(socket) => format!("{SERVING}{}", socket.display()),
            Stage::Ending => "ending".to_owned(),
        };
        if let Err(error) = lock.note(&note) {
            tracing::warn!(%error, "the lock's file cannot say what the daemon does");
        }
    }

    fn of(note: &str) -> Option<Stage> {
        match note {
            "starting" => Some(Stage::Starting),
            "ending" => Some(Stage::Ending),
            note => Some(Stage::Serving(note.strip_prefix(SERVING)?.into())),
        }
    }
}

const SERVING: &str = "serving at ";

/// Why a command does not talk to a daemon.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreached {
    /// None runs, or the socket is out of reach.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the daemon (process {0}) is still starting")]
    Starting(u32),
    #[error("the daemon (process {0}) is shutting down")]
    Ending(u32),
    /// It was just killed, or somebody has taken its socket away.
    #[error("the daemon (process {pid}) is not reached at its socket {}", .socket.display())]
    Lost { pid: u32, socket: PathBuf },
    /// It holds the lock, and is not where this command looks for it.
    #[error(
        "the daemon (process {pid}) listens at {}, and nobody at {}",
        .there.display(), .here.display()
    )]
    Elsewhere { pid: u32, there: PathBuf, here: PathBuf },
    /// It says nothing of where it listens.
    #[error("process {pid} holds {} and does not answer on {}", .lock.display(), .socket.display())]
    Unknown { pid: u32, lock: PathBuf, socket: PathBuf },
    /// It takes a connection, and no more.
    #[error("{} has not answered in {ANSWER:?}", silent(*.0))]
    Silent(Option<u32>),
}

fn silent(pid: Option<u32>) -> String {
    match pid {
        Some(pid) => format!("the daemon (process {pid})"),
        None => "what listens on the daemon's socket".to_owned(),
    }
}

impl Unreached {
    /// Whether no daemon runs, and one may be started.
    pub(crate) fn is_free(&self) -> bool {
        match self {
            Unreached::Connect(ConnectError::NotRunning(_) | ConnectError::Refused(_)) => true,
            // Below a file there can be no socket.
            Unreached::Connect(ConnectError::Failed { source, .. }) => {
                source.kind() == ErrorKind::NotADirectory
            }
            _ => false,
        }
    }

    /// Whether there is no daemon to talk to, and not one that is hung or somewhere else.
    pub(crate) fn is_not_serving(&self) -> bool {
        matches!(self, Unreached::Connect(_) | Unreached::Starting(_) | Unreached::Ending(_))
    }

    /// Whether it is likely over at once: who has just taken the lock has not said yet what it does.
    pub(crate) fn is_momentary(&self) -> bool {
        matches!(self, Unreached::Lost { .. } | Unreached::Unknown { .. })
    }

    /// How long it may stay like this until there is a daemon again, or none.
    pub(crate) fn passes_within(&self) -> Option<Duration> {
        match self {
            Unreached::Starting(_) | Unreached::Ending(_) => Some(TURNING),
            why if why.is_momentary() => Some(MOMENT),
            _ => None,
        }
    }

    /// What to try.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Unreached::Connect(error) => error.hint().map(str::to_owned),
            Unreached::Starting(_) => Some("try again in a moment".to_owned()),
            Unreached::Ending(_) => {
                Some("`ksi stop` returns when it is gone; `ksi start` starts the next".to_owned())
            }
            Unreached::Elsewhere { there, .. } => {
                Some(format!("set KSI_SOCKET to {}, as where it was started", there.display()))
            }
            Unreached::Lost { pid, socket } => Some(format!(
                "if {} is in the way, move it; else look at process {pid}",
                socket.display()
            )),
            Unreached::Unknown { pid, .. } => Some(format!("look at process {pid}")),
            Unreached::Silent(Some(pid)) => Some(format!(
                "`kill -CONT {pid}` if it was halted; else `kill -9 {pid}`: the next daemon goes \
                 on where it stood"
            )),
            Unreached::Silent(None) => {
                Some("end what listens there, or set KSI_SOCKET to another path".to_owned())
            }
        }
    }
}

/// What a command looks at in the daemon's health.
#[derive(Deserialize)]
struct Running {
    version: String,
}

/// A client and the daemon's version, if it says one. One that was just killed takes a
/// connection, but no request.
pub(crate) async fn reach(paths: &Paths) -> Result<(Client, Option<String>), Unreached> {
    let client = match Client::connect(&paths.socket).await {
        Ok(client) => client,
        Err(error) => return Err(unless_held(paths, error.into())),
    };
    let refused = || ConnectError::Refused(paths.socket.clone()).into();
    let asked = async { client.call::<Running>("system:health", &json!({})).await };
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(Ok(running)) => Ok((client, Some(running.version))),
        Ok(Err(error)) if matches!(error.code, Code::Unavailable | Code::Shutdown) => {
            Err(unless_held(paths, refused()))
        }
        Ok(Err(_)) => Ok((client, None)),
        Err(_) => Err(Unreached::Silent(lock::holder(&paths.lock).map(|holder| holder.pid))),
    }
}

/// Nobody answers; but somebody may hold the lock.
fn unless_held(paths: &Paths, error: Unreached) -> Unreached {
    let Some(holder) = lock::holder(&paths.lock).filter(|_| error.is_free()) else { return error };
    held(holder, paths)
}

fn held(holder: lock::Holder, paths: &Paths) -> Unreached {
    let lock::Holder { pid, note } = holder;
    let here = paths.socket.clone();
    match note.as_deref().and_then(Stage::of) {
        Some(Stage::Starting) => Unreached::Starting(pid),
        Some(Stage::Ending) => Unreached::Ending(pid),
        Some(Stage::Serving(there)) if is_same(&there, &here) => {
            Unreached::Lost { pid, socket: here }
        }
        Some(Stage::Serving(there)) => Unreached::Elsewhere { pid, there, here },
        None => Unreached::Unknown { pid, lock: paths.lock.clone(), socket: here },
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    let folder = |path: &Path| path.parent().and_then(|folder| folder.canonicalize().ok());
    one == other || (one.file_name() == other.file_name() && folder(one) == folder(other))
}
