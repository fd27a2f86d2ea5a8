//! Snapshots: plugins' states, so that not everything has to be folded again.

use std::collections::BTreeMap;

use crate::record::{Millis, Seq};

/// One plugin's state as of a fact.
#[derive(Debug, Clone)]
pub struct Section {
    /// The last fact that it holds.
    pub seq: Seq,
    /// When that happened.
    pub at: Millis,
    /// Its shape's version.
    pub version: u16,
    /// The state, as JSON.
    pub state: String,
}

/// States by plugin; each, and the facts behind it, is the plugin's state of now.
pub type Snapshot = BTreeMap<String, Section>;
