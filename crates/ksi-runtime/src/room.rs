//! Room: what is told when the journal's disk is full, and when it is no longer.

use schemars::JsonSchema;
use serde::Serialize;

/// The signal [`Full`].
pub const FULL: &str = "journal:full";

/// The signal [`Recovered`].
pub const RECOVERED: &str = "journal:recovered";

/// The journal's disk is full: reads go on, what would change anything is refused, and effects wait.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Full {}

/// The journal has room again, and what waited goes on.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Recovered {}
