//! Callers: who asks, and by which means an answer reaches them besides the reply.

use std::sync::Arc;

use ksi_state::{By, Origin};

use crate::listener::Inbox;

/// Who asks, and by which means an answer reaches them besides the reply.
#[derive(Clone, Default)]
pub struct Caller {
    /// Who, and of which chain of requests; stands in every fact that comes of it.
    pub origin: Arc<Origin>,
    /// The caller's own key: the same key again means the same request.
    pub idempotency_key: Option<String>,
    /// The caller's listener.
    pub inbox: Option<Arc<Inbox>>,
    /// The effect that asks, as key and epoch.
    pub effect: Option<(String, u64)>,
}

/// What a caller wants to do with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Send it.
    Send,
    /// See it.
    See,
}

impl Caller {
    /// A caller of this name.
    pub fn new(principal: &str) -> Self {
        let origin = Origin { principal: principal.into(), ..Origin::default() };
        Caller { origin: Arc::new(origin), ..Caller::default() }
    }

    /// The daemon itself.
    pub fn system() -> Self {
        Self::new("system")
    }

    /// The daemon's user: whoever runs as the same user and is no child of the daemon.
    pub fn operator() -> Self {
        Self::new("operator")
    }

    /// Whether it may do everything, so that no guard is asked.
    pub fn is_unbound(&self) -> bool {
        matches!(&*self.origin.principal, "operator" | "system")
    }

    /// On whose behalf its decisions are taken.
    pub fn by(&self) -> By {
        By { origin: self.origin.clone(), effect: self.effect.clone() }
    }
}
