//! Facts: what happened, in order.

use std::{any::Any, borrow::Cow, sync::Arc};

use ksi_record::{Millis, Origin, Record, Seq};
use serde::{Serialize, de::DeserializeOwned};

use crate::sequencer::Refused;

/// Something that happened: a serializable type with a name in the past tense.
pub trait Fact: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Its name, `noun:participle`.
    const NAME: &'static str;
    /// Its shape's version; a fact of a newer one is refused by older code.
    const VERSION: u16 = 1;

    /// What it is about: the key by which `drive` learns that something changed.
    fn subject(&self) -> Cow<'_, str>;
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

impl Stamp {
    pub(crate) fn of(record: &Record) -> Self {
        Stamp { seq: record.seq, at: record.at, origin: record.origin.clone() }
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
