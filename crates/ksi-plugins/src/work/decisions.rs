//! What is decided about requests, purely, on the state as it is.

use ksi_kernel::{Error, Facts, Millis, Result};

use super::{
    archive::Past,
    facts::{
        Cancelled, Completed, Enclosed, Envelope, Failed, Queued, Response, Retrying, Started,
    },
    provider::{Failure, Message, Outcome, Request},
    retry::{self, Verdict},
    state::{Open, Stage, Turn, Work},
};

/// An attempt that has begun.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    /// The provider's name.
    pub provider: String,
    /// What it is asked.
    pub request: Request,
    /// When all attempts together have taken too long.
    pub deadline: Millis,
}

impl Work {
    /// Accepts a request, or finds the one that its key stands for.
    pub fn accept(&self, asked: Queued, now: Millis) -> (Facts, String) {
        let known = asked.idempotency.as_ref().and_then(|hash| self.known(hash, now));
        match known {
            Some(id) => (Facts::none(), id.to_owned()),
            None => {
                let id = asked.request_id.clone();
                (Facts::one(Queued { archives: !self.archives, ..asked }), id)
            }
        }
    }

    /// Begins the next attempt, behind what was said before.
    pub fn start(&self, id: &str, past: &Past, now: Millis) -> Result<(Facts, Attempt)> {
        let open = self.find(id)?;
        let Queued { conversation_id, timeout_ms, .. } = &open.asked;
        let attempt = open.attempts + 1;
        let started = Started {
            request_id: id.to_owned(),
            conversation_id: conversation_id.clone(),
            attempt,
            turns: past.turns.len(),
            began: past.began.map(|at| at.0),
        };
        let call = Attempt {
            provider: open.asked.provider.clone(),
            request: open.request(past, attempt),
            deadline: open.counts_from(now).plus(*timeout_ms),
        };
        Ok((Facts::one(started), call))
    }

    /// Takes note of how an attempt ended; chance comes from outside.
    pub fn report(
        &self,
        id: &str,
        outcome: Result<Outcome, Failure>,
        random: u64,
        now: Millis,
    ) -> Result<(Facts, ())> {
        let open = self.find(id)?;
        let failure = match outcome {
            Ok(outcome) => return Ok((Facts::one(open.completed(outcome, now)), ())),
            Err(failure) => failure,
        };
        let deadline = open.since.unwrap_or(open.at).plus(open.asked.timeout_ms);
        let (request_id, conversation_id) = (id.to_owned(), open.asked.conversation_id.clone());
        let facts = match retry::next(&open.asked.retry, open.retries + 1, &failure, random) {
            Verdict::Again { delay_ms } if now.plus(delay_ms) < deadline => Facts::one(Retrying {
                request_id,
                conversation_id,
                attempt: open.attempts,
                delay_ms,
                at: now.plus(delay_ms).0,
                reason: failure.message,
                code: failure.code,
            }),
            _ => {
                let (error, attempts) = (failure.into(), open.attempts);
                Facts::one(Failed { request_id, conversation_id, error, attempts })
            }
        };
        Ok((facts, ()))
    }

    /// Cancels a request that is queued or running; returns its conversation.
    pub fn cancel(&self, id: &str, reason: Option<String>) -> Result<(Facts, String)> {
        let conversation_id = self.find(id)?.asked.conversation_id.clone();
        let (request_id, conversation) = (id.to_owned(), conversation_id.clone());
        Ok((Facts::one(Cancelled { request_id, conversation_id, reason }), conversation))
    }

    /// Whose turn an open request is.
    pub fn conversation_of(&self, id: &str) -> Result<String> {
        self.find(id).map(|open| open.asked.conversation_id.clone())
    }

    fn find(&self, id: &str) -> Result<&Open> {
        let missing = || {
            Error::not_found(format!("there is no request `{id}`"))
                .at("request_id")
                .hint("`completion:list` shows what there is")
        };
        self.open.get(id).ok_or_else(missing)
    }
}

/// What was said, as messages.
pub(super) fn messages(turns: &[Turn]) -> Vec<Message> {
    let mut messages = Vec::new();
    for turn in turns {
        messages.extend(turn.messages.iter().cloned());
        messages.push(Message::assistant(&turn.text));
    }
    messages
}

impl Open {
    fn request(&self, past: &Past, attempt: u32) -> Request {
        let asked = self.asked.clone();
        let mut messages = messages(&past.turns);
        messages.extend(asked.messages);
        Request {
            request_id: asked.request_id,
            attempt,
            conversation_id: asked.conversation_id,
            model: asked.model,
            instructions: asked.instructions,
            messages,
            max_tokens: asked.max_tokens,
            seed: asked.seed,
            temperature: asked.temperature,
            avoid_repeats: asked.avoid_repeats,
        }
    }

    fn completed(&self, outcome: Outcome, now: Millis) -> Completed {
        let Queued { request_id, conversation_id, model, provider, client_id, .. } =
            self.asked.clone();
        let began = match self.stage {
            Stage::Running(at) => at,
            _ => now,
        };
        let duration_ms = now.0.saturating_sub(began.0);
        let session_id = outcome.session_id.unwrap_or_else(|| conversation_id.clone());
        let result = Enclosed {
            ksi: Envelope {
                provider: provider.clone(),
                request_id: request_id.clone(),
                timestamp: rfc3339(now),
                duration_ms,
                client_id,
            },
            response: Response {
                result: outcome.text.clone(),
                session_id: session_id.clone(),
                model: model.clone(),
                stop_reason: outcome.stop_reason,
                total_cost_usd: outcome.cost_usd,
                usage: outcome.usage,
            },
        };
        Completed {
            request_id,
            conversation_id,
            session_id,
            text: outcome.text,
            model,
            provider,
            stop_reason: outcome.stop_reason,
            usage: outcome.usage,
            cost_usd: outcome.cost_usd,
            attempts: self.attempts,
            duration_ms,
            result,
        }
    }
}

/// A time as clients of the first KSI read it.
fn rfc3339(at: Millis) -> String {
    let at = i64::try_from(at.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.unwrap_or_default().to_string()
}
