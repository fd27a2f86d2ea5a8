//! What happens to an orchestration, in the order in which it can happen.

use std::{borrow::Cow, collections::BTreeMap, ops::AddAssign};

use ksi_kernel::{Code, Fact};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::pattern::Pattern;

/// An orchestration began; all that its turns need is in here
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Started {
    /// Its id.
    pub orchestration_id: String,
    /// The pattern's name.
    pub pattern: String,
    /// The pattern as it was then: a file that changes later does not change the run.
    pub definition: Pattern,
    /// What it is about.
    pub vars: BTreeMap<String, String>,
    /// The model that all speakers use.
    pub model: String,
    /// The caller's key for this request.
    #[serde(default)]
    pub idempotency_key: Option<String>,
    /// From here on what ends is kept in documents: the first after an upgrade says so.
    #[serde(default, skip_serializing_if = "is_false")]
    pub archives: bool,
}

fn is_false(yes: &bool) -> bool {
    !yes
}

/// A speaker said something
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct TurnTaken {
    /// Of which orchestration.
    pub orchestration_id: String,
    /// Which turn, from 1.
    pub turn: u32,
    /// In which round, from 1.
    pub round: u32,
    /// Who spoke.
    pub speaker: String,
    /// What was said.
    pub text: String,
    /// The completion it comes from.
    pub request_id: String,
    /// Tokens.
    pub usage: Usage,
    /// US dollars.
    pub cost_usd: f64,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// The model that answered.
    pub model: String,
}

/// Somebody asked for the end of an orchestration; what runs is being cancelled
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct EndRequested {
    /// Of which orchestration.
    pub orchestration_id: String,
    /// Why.
    pub reason: Option<String>,
}

/// All turns were taken and the transcript is written
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Finished {
    /// Which orchestration.
    pub orchestration_id: String,
    /// What came of it.
    #[serde(flatten)]
    pub totals: Totals,
}

/// A turn failed for good; the turns before it are in the transcript
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Failed {
    /// Which orchestration.
    pub orchestration_id: String,
    /// Which turn, and why.
    pub error: String,
    /// What kind of failure.
    #[serde(default = "unknown")]
    #[schemars(with = "String")]
    pub code: Code,
    /// What to try.
    pub hint: Option<String>,
    /// What came of it.
    #[serde(flatten)]
    pub totals: Totals,
}

fn unknown() -> Code {
    Code::Internal
}

/// An orchestration ended early, as was asked for; its turns are in the transcript
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Terminated {
    /// Which orchestration.
    pub orchestration_id: String,
    /// Why.
    pub reason: Option<String>,
    /// What came of it.
    #[serde(flatten)]
    pub totals: Totals,
}

/// What came of an orchestration
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Totals {
    /// How many turns were taken.
    pub turns: u32,
    /// Tokens of all turns.
    pub usage: Usage,
    /// US dollars for all turns.
    pub cost_usd: f64,
    /// From start to end, in milliseconds.
    pub duration_ms: u64,
    /// The transcript's file; none while it is not written.
    pub transcript: Option<String>,
}

/// Tokens read and written
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Usage {
    /// Tokens read.
    pub input: u64,
    /// Tokens written.
    pub output: u64,
    /// Tokens read from a cache.
    pub cache_read: u64,
    /// Tokens put into a cache.
    pub cache_creation: u64,
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.input += other.input;
        self.output += other.output;
        self.cache_read += other.cache_read;
        self.cache_creation += other.cache_creation;
    }
}

/// The facts with one of which every orchestration ends.
pub(super) const ENDINGS: [&str; 3] = [Finished::NAME, Failed::NAME, Terminated::NAME];

impl Fact for Started {
    const NAME: &'static str = "orchestration:started";

    fn subject(&self) -> Cow<'_, str> {
        (&self.orchestration_id).into()
    }
}

impl Fact for TurnTaken {
    const NAME: &'static str = "orchestration:turn_taken";

    fn subject(&self) -> Cow<'_, str> {
        (&self.orchestration_id).into()
    }
}

impl Fact for EndRequested {
    const NAME: &'static str = "orchestration:end_requested";

    fn subject(&self) -> Cow<'_, str> {
        (&self.orchestration_id).into()
    }
}

impl Fact for Finished {
    const NAME: &'static str = "orchestration:finished";

    fn subject(&self) -> Cow<'_, str> {
        (&self.orchestration_id).into()
    }
}

impl Fact for Failed {
    const NAME: &'static str = "orchestration:failed";

    fn subject(&self) -> Cow<'_, str> {
        (&self.orchestration_id).into()
    }
}

impl Fact for Terminated {
    const NAME: &'static str = "orchestration:terminated";

    fn subject(&self) -> Cow<'_, str> {
        (&self.orchestration_id).into()
    }
}
