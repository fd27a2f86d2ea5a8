//! Who is at the other end of a connection, as far as the socket has to know.

use std::{fmt, sync::Arc};

use ksi_kernel::{Caller, Result};
use ksi_protocol::{Code, Error};
use tokio::net::UnixStream;

/// Says of a new connection whose it is, once; its error answers every request.
pub type Admit = Arc<dyn Fn(&UnixStream) -> Result<Guest> + Send + Sync>;

/// Whether a token that a client shows is its own.
type Proof = Box<dyn Fn(&str) -> bool + Send>;

/// Who was let in.
pub struct Guest {
    /// For whom the connection speaks.
    pub caller: Caller,
    proof: Proof,
}

impl Guest {
    /// A guest who has no token.
    pub fn new(caller: Caller) -> Self {
        Self::with_token(caller, |_| false)
    }

    /// A guest who may show a token, which must be its own.
    pub fn with_token(caller: Caller, proof: impl Fn(&str) -> bool + Send + 'static) -> Self {
        Guest { caller, proof: Box::new(proof) }
    }

    /// Whether a request may show this token, or none.
    pub(crate) fn check(&self, token: Option<&str>) -> Result<()> {
        match token.is_none_or(|token| (self.proof)(token)) {
            true => Ok(()),
            false => Err(Error::new(Code::Unauthenticated, "this token is not the sender's own")
                .hint("leave it out: whose process you are is enough")),
        }
    }
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.caller.origin.principal)
    }
}

/// Lets in the daemon's user alone, as the operator, whosever child it is.
pub fn same_user(stream: &UnixStream) -> Result<Guest> {
    let own = rustix::process::getuid().as_raw();
    match stream.peer_cred().is_ok_and(|peer| peer.uid() == own) {
        true => Ok(Guest::new(Caller::operator())),
        false => Err(another_user()),
    }
}

/// The answer to a stranger.
pub fn another_user() -> Error {
    Error::new(Code::Forbidden, "this daemon belongs to another user")
        .hint("start one of your own: `ksi start`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_may_be_left_out_but_must_not_be_anothers() {
        let child = Guest::with_token(Caller::new("agent:a"), |token| token == "own");
        let operator = Guest::new(Caller::operator());
        assert_eq!(child.check(None), Ok(()));
        assert_eq!(child.check(Some("own")), Ok(()));
        assert_eq!(operator.check(None), Ok(()));
        for wrong in [child.check(Some("other")), operator.check(Some("own"))] {
            assert_eq!(wrong.unwrap_err().code, Code::Unauthenticated);
        }
    }
}
