//! Records: facts as they are kept.

use std::{borrow::Cow, fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// A fact's place in the journal; the first is 1.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Seq(pub u64);

impl Seq {
    /// The place behind this one.
    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Wall time in milliseconds since the epoch.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Millis(pub u64);

impl Millis {
    /// This time and so many milliseconds.
    pub fn plus(self, ms: u64) -> Millis {
        Millis(self.0.saturating_add(ms))
    }
}

/// Who caused a fact.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Who asked: `operator`, `agent:NAME`, `system`.
    pub principal: Arc<str>,
    /// The caller's own name for its request.
    pub correlation: Option<String>,
    /// The fact that led to this one.
    pub cause: Option<Seq>,
    /// The chain of messages it belongs to.
    pub chain: Option<String>,
}

/// A fact as the journal keeps it.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its place.
    pub seq: Seq,
    /// When it happened; never before the fact before it.
    pub at: Millis,
    /// Its name.
    pub name: Cow<'static, str>,
    /// Its shape's version.
    pub version: u16,
    /// What it is about.
    pub subject: String,
    /// Who caused it.
    pub origin: Arc<Origin>,
    /// Its fields, as JSON.
    pub data: Box<RawValue>,
}
