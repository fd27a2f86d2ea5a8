//! Documents: what is finished and only read, so that memory need not hold it.

use serde_json::value::RawValue;

/// Something finished, written with the facts that finished it; the same place again replaces it.
#[derive(Debug, Clone)]
pub struct Document {
    /// What it belongs to, such as a conversation.
    pub collection: String,
    /// Its name there.
    pub key: String,
    /// Its place there.
    pub sort: u64,
    /// What it says, as JSON.
    pub data: Box<RawValue>,
}

/// Which documents to read, in their order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Select {
    /// Of this collection.
    pub collection: String,
    /// Only the one of this name.
    pub key: Option<String>,
    /// Last first.
    pub last_first: bool,
    /// Without so many at the beginning.
    pub offset: usize,
    /// At most so many; 0 means all.
    pub limit: usize,
}

impl Select {
    /// All of a collection.
    pub fn all(collection: impl Into<String>) -> Self {
        Self { collection: collection.into(), ..Self::default() }
    }

    /// The one of this name.
    pub fn one(collection: impl Into<String>, key: impl Into<String>) -> Self {
        Self { key: Some(key.into()), ..Self::all(collection) }
    }
}
