//! The lines that go in and out.

use serde::{Deserialize, Serialize};

/// Asks for one answer.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Request {
    /// Comes back in every event about this request.
    pub id: String,
    /// Requests that share it share what the model has already read; none shares nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation: Option<String>,
    /// The turns so far, oldest first.
    pub messages: Vec<Message>,
    /// The answer has at most this many tokens.
    #[serde(default = "default_max_tokens")]
    pub max_tokens: usize,
    /// The same request with the same seed gets the same answer on the same machine.
    #[serde(default)]
    pub seed: u64,
    /// Texts that are not in `messages` and whose runs of words may not be repeated either.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub avoid: Vec<String>,
    /// How freely the words are chosen.
    #[serde(flatten)]
    pub sampling: Sampling,
}

/// One turn.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; control tokens in it are ordinary text.
    pub content: String,
}

/// Who speaks a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions, at the beginning.
    System,
    /// Somebody the model answers.
    User,
    /// The model.
    Assistant,
}

/// How freely the words of an answer are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Sampling {
    /// 0 takes the likeliest token each time.
    pub temperature: f32,
    /// Only the likeliest tokens that make up this share are considered.
    pub top_p: f32,
    /// Only this many of the likeliest tokens are considered.
    pub top_k: usize,
    /// Above 1, tokens of the answer and of the turn it answers become less likely to come again.
    pub repetition_penalty: f32,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.5, top_p: 0.9, top_k: 40, repetition_penalty: 1.1 }
    }
}

fn default_max_tokens() -> usize {
    120
}

/// What comes out, one per line.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum Event {
    /// The model is loaded; comes once, first.
    Ready {
        /// Which model.
        ready: Ready,
    },
    /// A piece of an answer.
    Token {
        /// The request's.
        id: String,
        /// Whole characters.
        token: String,
    },
    /// The end of an answer.
    Done {
        /// The request's.
        id: String,
        /// How it ended and what it took.
        done: Done,
    },
    /// A request has no answer; without an id, the line or the model could not be read.
    Failed {
        /// The request's, where it could be read.
        #[serde(default)]
        id: Option<String>,
        /// Why.
        error: Failure,
    },
}

/// The loaded model.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Ready {
    /// Its name, without the ending that tells how it is packed.
    pub model: String,
    /// How long it took to load.
    pub load_ms: u64,
}

/// How an answer ended and what it took.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Done {
    /// Why it ended.
    pub stop_reason: StopReason,
    /// Tokens.
    pub usage: Usage,
    /// From the request to the end of the answer.
    pub duration_ms: u64,
    /// How many of the oldest turns did not fit the context and were left out.
    #[serde(default)]
    pub dropped: usize,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// It was complete, or near its limit at the end of a sentence.
    End,
    /// It reached its limit.
    MaxTokens,
}

/// Tokens of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Usage {
    /// Of the prompt.
    pub input: usize,
    /// Of the answer.
    pub output: usize,
    /// Of the prompt, read before and not again.
    pub cached: usize,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Failure {
    /// Stable: `bad_request`, `too_long`, `compute_failed`, `model_not_found`, `model_unusable`.
    pub code: String,
    /// For people.
    pub message: String,
}
