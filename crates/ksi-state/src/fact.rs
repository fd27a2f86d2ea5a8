//! Facts: what happened, in order.

use std::{any::Any, borrow::Cow, fmt, sync::Arc};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::sequencer::Refused;

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

/// Something that happened: a serializable type with a name in the past tense.
pub trait Fact: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Its name, `noun:participle`.
    const NAME: &'static str;
    /// Its shape's version; a fact of a newer one is refused by older code.
    const VERSION: u16 = 1;

    /// What it is about: the key by which `drive` learns that something changed.
    fn subject(&self) -> Cow<'_, str>;
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

/// Where and when a fact stands, and who caused it: what a fold may know besides its fields.
#[derive(Debug, Clone)]
pub struct Stamp {
    /// Its place.
    pub seq: Seq,
    /// When it happened.
    pub at: Millis,
    /// Who caused it.
    pub origin: Arc<Origin>,
}

impl Record {
    pub(crate) fn stamp(&self) -> Stamp {
        Stamp { seq: self.seq, at: self.at, origin: self.origin.clone() }
    }
}

/// A fact whose type only the folds know.
pub(crate) trait AnyFact: Any + Send {
    fn record(&self, seq: Seq, at: Millis, origin: &Arc<Origin>) -> Result<Record, Refused>;
}

impl<F: Fact> AnyFact for F {
    fn record(&self, seq: Seq, at: Millis, origin: &Arc<Origin>) -> Result<Record, Refused> {
        let (name, version, subject) = (F::NAME.into(), F::VERSION, self.subject().into_owned());
        let data = serde_json::value::to_raw_value(self)
            .map_err(|error| Refused::Unserializable { fact: F::NAME, why: error.to_string() })?;
        Ok(Record { seq, at, name, version, subject, origin: origin.clone(), data })
    }
}

/// The facts of one decision, which happen together or not at all.
#[derive(Default)]
pub struct Facts(pub(crate) Vec<Box<dyn AnyFact>>);

impl Facts {
    /// Nothing happened.
    pub fn none() -> Self {
        Self::default()
    }

    /// One thing happened.
    pub fn one(fact: impl Fact) -> Self {
        Self::none().and(fact)
    }

    /// How many things happened.
    #[cfg(any(test, feature = "testing"))]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// And this happened too.
    pub fn and(mut self, fact: impl Fact) -> Self {
        self.0.push(Box::new(fact));
        self
    }
}
