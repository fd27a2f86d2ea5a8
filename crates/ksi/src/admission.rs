//! Whom a connection speaks for: whose process is at its other end.

use std::sync::Arc;

use ksi_kernel::{Caller, Code, Error, Result};
use ksi_process::{Descent, Peer, Shim};
use ksi_socket::{Admit, Guest, another_user};
use tokio::net::UnixStream;

/// Lets in the daemon's user, and what the daemon has started as the one that it speaks for.
pub(crate) fn by(shim: Shim) -> Admit {
    Arc::new(move |stream| admit(&shim, stream))
}

fn admit(shim: &Shim, stream: &UnixStream) -> Result<Guest> {
    let peer = Peer::of(stream).map_err(|_| nobody())?;
    if peer.uid != rustix::process::getuid().as_raw() {
        return Err(another_user());
    }
    match shim.descent(&peer) {
        Descent::Stranger => Ok(Guest::new(Caller::operator())),
        Descent::Under(id) => {
            let identity = shim.identity(id).ok_or_else(nobody)?;
            let caller = Caller::new(&identity.principal);
            Ok(Guest::with_token(caller, move |token| identity.is_proved_by(token)))
        }
        // Other systems do not say which process it is; there all of the user are the operator.
        Descent::Unreadable if cfg!(not(target_os = "linux")) => Ok(Guest::new(Caller::operator())),
        Descent::Ours | Descent::Unreadable => Err(nobody()),
    }
}

fn nobody() -> Error {
    Error::new(Code::Unauthenticated, "it cannot be told whose process is asking")
        .hint("connect from a process that lives on, below the one that the daemon started")
}
