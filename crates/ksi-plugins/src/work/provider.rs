//! Providers: what answers a prompt, whoever is behind it.

use std::{sync::Arc, time::Duration};

pub use ksi_kernel::BoxFuture;
use ksi_kernel::Code;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions.
    System,
    /// Somebody the model answers.
    User,
    /// The model.
    Assistant,
}

/// One thing that was said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Message {
    /// By whom.
    pub role: Role,
    /// The words.
    pub content: String,
}

impl Message {
    /// Said to the model.
    pub fn user(content: impl Into<String>) -> Self {
        Message { role: Role::User, content: content.into() }
    }

    /// Said by the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Message { role: Role::Assistant, content: content.into() }
    }
}

/// One attempt to get one answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Request {
    /// Which request.
    pub request_id: String,
    /// Which attempt at it, from 1 on.
    pub attempt: u32,
    /// Whose history `messages` begins with.
    pub conversation_id: String,
    /// The model's full name.
    pub model: String,
    /// What the model should be and do.
    pub instructions: Option<String>,
    /// The conversation's earlier turns and the new prompt, oldest first.
    pub messages: Vec<Message>,
    /// The answer's greatest length in tokens.
    pub max_tokens: Option<u32>,
    /// Makes chance repeatable, where the provider can.
    pub seed: u64,
    /// How freely words are chosen.
    pub temperature: Option<f32>,
    /// Texts whose runs of words must not come again.
    pub avoid_repeats: Vec<String>,
}

impl Request {
    /// How many answers the conversation holds already.
    pub fn turn(&self) -> usize {
        self.messages.iter().filter(|message| message.role == Role::Assistant).count()
    }

    /// The newest thing said to the model.
    pub fn prompt(&self) -> &str {
        let said = self.messages.iter().rfind(|message| message.role == Role::User);
        said.map_or("", |message| &message.content)
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// It was complete.
    End,
    /// It reached its limit.
    MaxTokens,
}

/// Tokens of one answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Usage {
    /// Of the prompt.
    pub input: u64,
    /// Of the answer.
    pub output: u64,
    /// Of the prompt, read from a cache.
    pub cache_read: u64,
    /// Of the prompt, written to a cache.
    pub cache_creation: u64,
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The words.
    pub text: String,
    /// The provider's own name for the conversation; none = ours.
    pub session_id: Option<String>,
    /// Why it ended.
    pub stop_reason: StopReason,
    /// What it took.
    pub usage: Usage,
    /// What it cost.
    pub cost_usd: f64,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind of failure.
    pub code: Code,
    /// What failed and why, for a person.
    pub message: String,
    /// What to try.
    pub hint: Option<String>,
    /// How long the provider wants to be left alone, in milliseconds.
    pub retry_after_ms: Option<u64>,
    /// Whether trying again is pointless, whatever the policy says.
    pub permanent: bool,
}

impl Failure {
    /// A failure that may pass.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let message = message.into();
        Failure { code, message, hint: None, retry_after_ms: None, permanent: false }
    }

    /// A failure that stays.
    pub fn permanent(code: Code, message: impl Into<String>) -> Self {
        Failure { permanent: true, ..Failure::new(code, message) }
    }

    /// Adds what to try.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Failure { hint: Some(hint.into()), ..self }
    }
}

/// What a provider is and may be asked for.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Description {
    /// Its name: the part of a model's name before the first `/` or `:`.
    pub name: String,
    /// How its models are named.
    pub models: Vec<String>,
    /// How many requests it works on at the same time.
    pub concurrency: u32,
    /// Whether its answers cost money.
    pub paid: bool,
    /// Whether its answers come word by word.
    pub streams: bool,
    /// How long the first word may take, in milliseconds.
    pub first_token_ms: u64,
    /// How long the next word may take, in milliseconds.
    pub silence_ms: u64,
}

/// Requests that share a limit on how many run at the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    /// The limit's name.
    pub name: String,
    /// How many may run.
    pub limit: u32,
}

/// Where an attempt reports to while it runs, and what it may use of the daemon.
pub trait Sink: Send + Sync {
    /// The next piece of the answer.
    fn text(&self, text: &str);

    /// What is being done before the answer begins, such as `loading the model`.
    fn progress(&self, phase: &str);

    /// Waits, by the daemon's clock.
    fn pause(&self, duration: Duration) -> BoxFuture<()>;

    /// Runs a task of the daemon that may outlive the attempt.
    fn spawn(&self, name: &str, task: BoxFuture<()>);
}

/// Something that answers prompts.
pub trait Provider: Send + Sync + 'static {
    /// What it is.
    fn describe(&self) -> Description;

    /// Refuses a model that cannot be asked, as far as a look at this machine tells: it costs
    /// neither money nor time, and needs no network.
    fn check(&self, _model: &str) -> Result<(), Failure> {
        Ok(())
    }

    /// Answers; dropping the future cancels the work behind it.
    fn complete(
        &self,
        request: Request,
        sink: Arc<dyn Sink>,
    ) -> BoxFuture<Result<Outcome, Failure>>;

    /// The limit that requests for this model share.
    fn gate(&self, _model: &str) -> Gate {
        let Description { name, concurrency, .. } = self.describe();
        Gate { name, limit: concurrency }
    }

    /// Lets go of what it keeps between requests, because the daemon shuts down.
    fn close(&self) -> BoxFuture<()> {
        Box::pin(async {})
    }
}

/// The providers of this daemon.
pub struct Providers(Vec<Arc<dyn Provider>>);

impl Providers {
    /// These, in the order in which they are listed.
    pub fn new(providers: Vec<Arc<dyn Provider>>) -> Self {
        Providers(providers)
    }

    /// The one of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Provider>> {
        self.0.iter().find(|provider| provider.describe().name == name)
    }

    /// What each of them is.
    pub fn describe(&self) -> Vec<Description> {
        self.0.iter().map(|provider| provider.describe()).collect()
    }

    /// Lets go of what they keep.
    pub async fn close(&self) {
        for provider in &self.0 {
            provider.close().await;
        }
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// A provider of this name that panics when it is asked.
    pub(crate) struct Panicking(pub(crate) &'static str);

    impl Provider for Panicking {
        fn describe(&self) -> Description {
            Description {
                name: self.0.into(),
                models: Vec::new(),
                concurrency: 1,
                paid: false,
                streams: false,
                first_token_ms: 1_000,
                silence_ms: 1_000,
            }
        }

        fn complete(
            &self,
            request: Request,
            _: Arc<dyn Sink>,
        ) -> BoxFuture<Result<Outcome, Failure>> {
            panic!("{} is too much", request.request_id)
        }
    }
}
