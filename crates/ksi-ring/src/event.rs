//! Events as they travel: durable facts and passing signals.

use std::sync::{Arc, OnceLock};

use ksi_protocol::EventLine;
use ksi_state::{Millis, Record, Seq};
use serde_json::value::RawValue;

/// A durable fact or a signal, ready to be delivered.
#[derive(Debug)]
pub struct Event {
    body: Body,
    line: OnceLock<EventLine>,
}

#[derive(Debug)]
enum Body {
    Fact(Arc<Record>),
    Signal { name: String, at: Millis, data: Box<RawValue> },
}

impl Event {
    /// A fact that is on disk.
    pub fn fact(record: Arc<Record>) -> Self {
        Event { body: Body::Fact(record), line: OnceLock::new() }
    }

    /// Passing news.
    pub fn signal(name: impl Into<String>, at: Millis, data: Box<RawValue>) -> Self {
        Event { body: Body::Signal { name: name.into(), at, data }, line: OnceLock::new() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match &self.body {
            Body::Fact(record) => &record.name,
            Body::Signal { name, .. } => name,
        }
    }

    /// Its fields.
    pub fn data(&self) -> &RawValue {
        match &self.body {
            Body::Fact(record) => &record.data,
            Body::Signal { data, .. } => data,
        }
    }

    /// Its fields as a type.
    pub fn parse<'a, T: serde::Deserialize<'a>>(&'a self) -> serde_json::Result<T> {
        serde_json::from_str(self.data().get())
    }

    /// Its place in the journal; none for a signal.
    pub fn seq(&self) -> Option<Seq> {
        self.record().map(|record| record.seq)
    }

    /// When it happened.
    pub fn at(&self) -> Millis {
        match &self.body {
            Body::Fact(record) => record.at,
            Body::Signal { at, .. } => *at,
        }
    }

    /// The fact behind it.
    pub fn record(&self) -> Option<&Arc<Record>> {
        match &self.body {
            Body::Fact(record) => Some(record),
            Body::Signal { .. } => None,
        }
    }

    /// Its serialized form, made once for all who receive it.
    pub fn line(&self) -> &EventLine {
        let seq = self.seq().map(|seq| seq.0);
        self.line.get_or_init(|| EventLine::new(self.name(), self.data(), seq, self.at().0))
    }

    /// About how many bytes it holds.
    pub(crate) fn weight(&self) -> usize {
        self.data().get().len() + 256
    }
}
