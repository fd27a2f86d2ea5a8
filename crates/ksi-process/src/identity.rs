//! Whom a child speaks for, and the token by which it can show it.

use std::fmt;
use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::sync::Arc;

use sha2::{Digest, Sha256};

/// Where a child finds its token: the number of a descriptor to read to its end.
pub(crate) const TOKEN_FD: &str = "KSI_TOKEN_FD";

/// Whom a child speaks for when it, or what it starts, connects to its daemon.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// Who that is, such as `agent:ada`.
    pub principal: Arc<str>,
    /// What is kept of its token; None for a child that was given none.
    token: Option<[u8; 32]>,
}

impl Identity {
    pub(crate) fn without_token(principal: &str) -> Self {
        Self { principal: principal.into(), token: None }
    }

    /// A new token for this one incarnation, to be read once from the pipe.
    pub(crate) fn with_token(principal: &str) -> io::Result<(Self, PipeReader)> {
        let mut random = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let (read, mut write) = io::pipe()?;
        // It is shorter than any pipe, so nobody has to read for this to return.
        write.write_all(token.as_bytes())?;
        let identity = Self { token: Some(digest(&token)), ..Self::without_token(principal) };
        Ok((identity, read))
    }

    /// Whether this is the token that it was given.
    pub fn is_proved_by(&self, token: &str) -> bool {
        self.token == Some(digest(token))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.principal)
    }
}

/// Guessing what it belongs to takes as long as guessing the token, so it may be compared as it is.
fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_proves_its_own_identity_alone_and_is_never_shown() {
        let given = || {
            let (identity, mut pipe) = Identity::with_token("agent:a").unwrap();
            let mut token = String::new();
            pipe.read_to_string(&mut token).unwrap();
            (identity, token)
        };
        let ((one, token), (other, _)) = (given(), given());
        assert_eq!(token.len(), 64);
        assert!(one.is_proved_by(&token) && !other.is_proved_by(&token));
        assert!(!one.is_proved_by("") && !Identity::without_token("agent:a").is_proved_by(""));
        assert_eq!(format!("{one:?}"), "agent:a");
    }
}
