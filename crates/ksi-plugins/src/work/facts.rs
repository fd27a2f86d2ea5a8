//! What happens to a request: its facts, and the news that pass while it is answered.

use std::borrow::Cow;

use ksi_kernel::{Code, Error, Fact};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    provider::{Failure, Message, StopReason, Usage},
    retry::Policy,
};

/// A request was accepted: from now on it will be answered, or fail, or be cancelled
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Queued {
    /// Which request.
    pub request_id: String,
    /// Whose turn it is.
    pub conversation_id: String,
    /// The model's full name.
    pub model: String,
    /// The provider's name.
    pub provider: String,
    /// The limit that it shares with others.
    pub gate: String,
    /// How many of those may run at the same time.
    pub concurrency: u32,
    /// The prompt.
    pub messages: Vec<Message>,
    /// What the model should be and do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<String>,
    /// The answer's greatest length in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Makes chance repeatable, where the provider can.
    pub seed: u64,
    /// How freely words are chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Texts whose runs of words must not come again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub avoid_repeats: Vec<String>,
    /// How long all attempts together may take, from the first one on.
    pub timeout_ms: u64,
    /// The hash of the caller's key: the same key again means this request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency: Option<String>,
    /// When a failed attempt is followed by another.
    pub retry: Policy,
    /// The client's own name for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// Whatever the caller wants to stand beside the request.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub metadata: Value,
    /// From here on what ends is kept in documents: the first request after an upgrade says so.
    #[serde(default, skip_serializing_if = "is_false")]
    pub archives: bool,
}

fn is_false(yes: &bool) -> bool {
    !yes
}

/// An attempt began
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Started {
    /// Which request.
    pub request_id: String,
    /// Whose turn it is.
    pub conversation_id: String,
    /// Which attempt, from 1 on; also those count that the daemon's end cut short.
    pub attempt: u32,
    /// How many turns were taken before this one.
    #[serde(default)]
    pub turns: usize,
    /// When the conversation began, in milliseconds since the epoch; absent if with this request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began: Option<u64>,
}

/// An attempt failed and another will follow
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Retrying {
    /// Which request.
    pub request_id: String,
    /// Whose turn it is.
    pub conversation_id: String,
    /// The attempt that failed.
    pub attempt: u32,
    /// The pause before the next one.
    pub delay_ms: u64,
    /// When the next one begins, in milliseconds since the epoch.
    pub at: u64,
    /// Why it failed.
    pub reason: String,
    /// What kind of failure it was.
    #[schemars(with = "String")]
    pub code: Code,
}

/// A request was answered
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Completed {
    /// Which request.
    pub request_id: String,
    /// Whose turn it was.
    pub conversation_id: String,
    /// The provider's name for the conversation.
    pub session_id: String,
    /// The answer.
    pub text: String,
    /// The model that gave it.
    pub model: String,
    /// The provider's name.
    pub provider: String,
    /// Why it ended.
    pub stop_reason: StopReason,
    /// Tokens.
    pub usage: Usage,
    /// What it cost.
    pub cost_usd: f64,
    /// How many attempts it took.
    pub attempts: u32,
    /// How long the last attempt took.
    pub duration_ms: u64,
    /// The same once more, where clients of the first KSI look for it.
    pub result: Enclosed,
}

/// A result as the first KSI shaped it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Enclosed {
    /// What KSI says of it.
    pub ksi: Envelope,
    /// What the provider said.
    pub response: Response,
}

/// What KSI says of a result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Envelope {
    /// The provider's name.
    pub provider: String,
    /// Which request.
    pub request_id: String,
    /// When it was answered.
    pub timestamp: String,
    /// How long the last attempt took.
    pub duration_ms: u64,
    /// The client's own name for itself.
    pub client_id: Option<String>,
}

/// What the provider said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Response {
    /// The answer.
    pub result: String,
    /// The provider's name for the conversation.
    pub session_id: String,
    /// The model that gave it.
    pub model: String,
    /// Why it ended.
    pub stop_reason: StopReason,
    /// What it cost.
    pub total_cost_usd: f64,
    /// Tokens.
    pub usage: Usage,
}

/// A request failed for good
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Failed {
    /// Which request.
    pub request_id: String,
    /// Whose turn it was.
    pub conversation_id: String,
    /// Why the last attempt failed.
    pub error: Reason,
    /// How many attempts there were.
    pub attempts: u32,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reason {
    /// What kind of failure.
    #[schemars(with = "String")]
    pub code: Code,
    /// What failed and why.
    pub message: String,
    /// What to try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl From<Failure> for Reason {
    fn from(failure: Failure) -> Self {
        Reason { code: failure.code, message: failure.message, hint: failure.hint }
    }
}

impl From<Reason> for Error {
    fn from(reason: Reason) -> Self {
        Error { hint: reason.hint, ..Error::new(reason.code, reason.message) }
    }
}

/// A request was cancelled; its answer, if one was under way, is not wanted any more
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Cancelled {
    /// Which request.
    pub request_id: String,
    /// Whose turn it was.
    pub conversation_id: String,
    /// Why, as the caller said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The next piece of an answer; a new attempt begins the answer anew
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Chunk {
    /// Which request.
    pub request_id: String,
    /// Whose turn it is.
    pub conversation_id: String,
    /// Which attempt.
    pub attempt: u32,
    /// How many bytes of the attempt's text, in UTF-8, came before: pieces may be missed.
    pub offset: u64,
    /// The words.
    pub text: String,
}

/// What is being done before an answer begins
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// Which request.
    pub request_id: String,
    /// Whose turn it is.
    pub conversation_id: String,
    /// Which attempt.
    pub attempt: u32,
    /// What, for a person: `loading the model`.
    pub phase: String,
    /// The model's full name.
    pub model: String,
}

/// The signal of [`Chunk`].
pub const CHUNK: &str = "completion:chunk";

/// The signal of [`Progress`].
pub const PROGRESS: &str = "completion:progress";

/// The facts with one of which every request ends.
pub const ENDINGS: [&str; 3] = [Completed::NAME, Failed::NAME, Cancelled::NAME];

impl Fact for Queued {
    const NAME: &'static str = "completion:queued";

    fn subject(&self) -> Cow<'_, str> {
        (&self.request_id).into()
    }
}

impl Fact for Started {
    const NAME: &'static str = "completion:started";

    fn subject(&self) -> Cow<'_, str> {
        (&self.request_id).into()
    }
}

impl Fact for Retrying {
    const NAME: &'static str = "completion:retrying";

    fn subject(&self) -> Cow<'_, str> {
        (&self.request_id).into()
    }
}

impl Fact for Completed {
    const NAME: &'static str = "completion:result";

    fn subject(&self) -> Cow<'_, str> {
        (&self.request_id).into()
    }
}

impl Fact for Failed {
    const NAME: &'static str = "completion:failed";

    fn subject(&self) -> Cow<'_, str> {
        (&self.request_id).into()
    }
}

impl Fact for Cancelled {
    const NAME: &'static str = "completion:cancelled";

    fn subject(&self) -> Cow<'_, str> {
        (&self.request_id).into()
    }
}
