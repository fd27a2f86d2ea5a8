//! Asking for completions and cancelling them.

use std::{fmt::Write, sync::Arc};

use ksi_kernel::{Code, Ctx, Error, Fact, Millis, Query, Result, Seq};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{
    archive,
    facts::{Cancelled, Completed, ENDINGS, Failed, Queued},
    provider::{Message, Providers, Role},
    queries::{self, Status, Summary},
    retry::Policy,
    state::Work,
    which,
};

/// What is asked of a model.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[schemars(inline)]
#[serde(default)]
pub struct Ask {
    /// The prompt; either this or `messages`.
    pub prompt: Option<String>,
    /// The prompt as several messages, the last one from a user.
    pub messages: Option<Vec<Message>>,
    /// `provider/model` or `provider:path`; the config's default, else `local`.
    pub model: Option<String>,
    /// The conversation to go on with; a new one when absent.
    pub conversation_id: Option<String>,
    /// Another name for `conversation_id`.
    pub session_id: Option<String>,
    /// What the model should be and do.
    pub instructions: Option<String>,
    /// The answer's greatest length in tokens.
    pub max_tokens: Option<u32>,
    /// Makes chance repeatable, where the provider can; drawn when absent.
    pub seed: Option<u64>,
    /// How freely words are chosen, from 0 to 2.
    pub temperature: Option<f32>,
    /// The same key again within a week means the same request.
    pub idempotency_key: Option<String>,
    /// How long all attempts together may take, from the first one on; ten minutes when absent.
    pub timeout_ms: Option<u64>,
    /// Texts whose runs of words must not come again.
    pub avoid_repeats: Vec<String>,
    /// When a failed attempt is followed by another.
    pub retry: Option<Policy>,
    /// The client's own name for itself; stands in the result.
    pub client_id: Option<String>,
    /// Whatever should stand beside the request.
    pub metadata: Value,
}

/// Asks a model and returns at once; the answer comes as `completion:result`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(example = serde_json::json!({ "prompt": "Write a haiku about coding", "model": "local" }))]
pub struct AskLater(pub Ask);

/// Asks a model and waits for the answer
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(example = serde_json::json!({ "prompt": "Write a haiku about coding", "model": "local" }))]
pub struct AskNow(pub Ask);

/// A request that was accepted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Accepted {
    /// Its id, in all that follows.
    pub request_id: String,
    /// `queued`, unless its key was known.
    pub status: Status,
    /// Whose turn it is.
    pub conversation_id: String,
}

/// Cancels a request that is queued or running; its conversation's next one goes on
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Cancel {
    /// Which request.
    pub request_id: String,
    /// Why.
    #[serde(default)]
    pub reason: Option<String>,
}

/// What the handlers here need besides the state.
pub struct Desk {
    /// Who answers.
    pub providers: Arc<Providers>,
    /// The model when a request names none, from the config.
    pub default_model: Option<String>,
}

const TIMEOUT_MS: u64 = 10 * 60 * 1_000;
const LONGEST_NAME: usize = 256;

/// Answers `completion:async`.
pub async fn ask_later(cx: Ctx<Work>, desk: Arc<Desk>, ask: Ask) -> Result<Accepted> {
    let asked = desk.prepare(&cx, ask)?;
    follow(&cx, &asked)?;
    accept(&cx, asked).await
}

/// Answers `completion:sync`.
pub async fn ask_now(cx: Ctx<Work>, desk: Arc<Desk>, ask: Ask) -> Result<Completed> {
    let asked = desk.prepare(&cx, ask)?;
    // Listening begins before the request does, so that no ending is missed.
    let mut endings = cx.listen(&ENDINGS)?;
    let Accepted { request_id, status, .. } = accept(&cx, asked).await?;
    if status.has_ended() {
        return ending(&cx, &request_id).await;
    }
    let ended = endings.until(|event| {
        let record = event.record().filter(|record| record.subject == request_id)?;
        Some(outcome(&record.name, record.data.get()))
    });
    ended.await?
}

/// Answers `completion:cancel`.
pub async fn cancel(cx: Ctx<Work>, req: Cancel) -> Result<Accepted> {
    let Cancel { request_id, reason } = req;
    let cancel = |work: &Work, _| work.cancel(&request_id, reason);
    let conversation_id = match cx.decide(cancel).await {
        Err(error) if error.code == Code::NotFound => {
            let ended = queries::ended(&cx, &request_id).await?;
            let why = format!("request `{request_id}` has ended already");
            let conflict = Error::conflict(why).hint("`completion:status` says how");
            return Err(ended.map_or(error, |_| conflict));
        }
        cancelled => cancelled?,
    };
    Ok(Accepted { request_id, status: Status::Cancelled, conversation_id })
}

async fn accept(cx: &Ctx<Work>, asked: Queued) -> Result<Accepted> {
    let conversation_id = asked.conversation_id.clone();
    let new = asked.request_id.clone();
    let decided = cx.decide(|work, now| {
        let (facts, request_id) = work.accept(asked, now);
        let known = work.status(&request_id);
        Ok((facts, (request_id, known)))
    });
    let (request_id, known) = decided.await?;
    if request_id == new {
        return Ok(Accepted { request_id, status: Status::Queued, conversation_id });
    }
    let known = match known {
        None => queries::ended(cx, &request_id).await?,
        known => known,
    };
    let Summary { status, conversation_id, .. } = known.ok_or_else(|| gone(&request_id))?;
    Ok(Accepted { request_id, status, conversation_id })
}

fn gone(id: &str) -> Error {
    let why = format!("how request `{id}` ended is no longer in the journal");
    Error::not_found(why).hint("old facts go when the journal has become large")
}

/// Lets the caller's connection hear how its request ends, whatever it subscribes to.
fn follow(cx: &Ctx<Work>, asked: &Queued) -> Result<()> {
    let Some(inbox) = &cx.caller().inbox else { return Ok(()) };
    let now = cx.now();
    let known = cx.peek(|work| {
        let known = asked.idempotency.as_ref().and_then(|hash| work.known(hash, now));
        known.map(str::to_owned)
    })?;
    let id = known.as_ref().unwrap_or(&asked.request_id);
    for name in ENDINGS {
        inbox.follow(name, id);
    }
    Ok(())
}

/// How a request ended that did so earlier.
async fn ending(cx: &Ctx<Work>, id: &str) -> Result<Completed> {
    let seq = cx.read(|work| work.finished.get(id).map(|finished| finished.seq)).await?;
    let seq = match seq {
        None => archive::filed(cx, id).await?.map(|filed| filed.finished.seq),
        seq => seq,
    };
    let seq = seq.ok_or_else(|| gone(id))?;
    let query = Query { until: Some(seq), ..Query::page(Seq(seq.0 - 1), 1) };
    let found = cx.journal(move |journal| journal.read(&query)).await?;
    let record = found.into_iter().next().ok_or_else(|| gone(id))?;
    outcome(&record.name, record.data.get())
}

/// The result that a fact holds, or the error.
fn outcome(name: &str, data: &str) -> Result<Completed> {
    let broken = |error: serde_json::Error| Error::internal(error.to_string());
    match name {
        Completed::NAME => serde_json::from_str(data).map_err(broken),
        Failed::NAME => {
            let failed: Failed = serde_json::from_str(data).map_err(broken)?;
            Err(failed.error.into())
        }
        _ => {
            let cancelled: Cancelled = serde_json::from_str(data).map_err(broken)?;
            let reason = cancelled.reason.map_or(String::new(), |why| format!(": {why}"));
            let id = cancelled.request_id;
            Err(Error::new(Code::Cancelled, format!("request `{id}` was cancelled{reason}")))
        }
    }
}

impl Desk {
    /// Checks what is asked and fills in what was left open.
    fn prepare(&self, cx: &Ctx<Work>, ask: Ask) -> Result<Queued> {
        let now = cx.now();
        let choice =
            which::choose(&self.providers, ask.model.as_deref(), self.default_model.as_deref())?;
        let (instructions, messages) = said(ask.instructions, ask.prompt, ask.messages)?;
        let conversation_id = match ask.conversation_id.or(ask.session_id) {
            Some(id) => checked_name(id)?,
            None => new_id("conv", now),
        };
        if ask.temperature.is_some_and(|degree| !(0.0..=2.0).contains(&degree)) {
            return Err(Error::bad_params("it must be between 0 and 2").at("temperature"));
        }
        if ask.max_tokens == Some(0) {
            return Err(Error::bad_params("it must be at least 1").at("max_tokens"));
        }
        let retry = ask.retry.unwrap_or_default();
        retry.check()?;
        let key = ask.idempotency_key.or_else(|| cx.caller().idempotency_key.clone());
        let idempotency = key.map(|key| hash(&cx.caller().origin.principal, &key));
        // One that was accepted before is found, also when its model has gone since.
        let known = |hash: &String| cx.peek(|work| work.known(hash, now).is_some());
        if !idempotency.as_ref().map_or(Ok(false), known)? {
            choice.check()?;
        }
        let gate = choice.provider.gate(&choice.model);
        Ok(Queued {
            request_id: new_id("req", now),
            conversation_id,
            model: choice.model,
            provider: choice.name,
            gate: gate.name,
            concurrency: gate.limit.max(1),
            messages,
            instructions,
            max_tokens: ask.max_tokens,
            // Few enough digits for every JSON reader.
            seed: ask.seed.unwrap_or_else(|| u64::from(fastrand::u32(..))),
            temperature: ask.temperature,
            avoid_repeats: ask.avoid_repeats,
            timeout_ms: ask.timeout_ms.unwrap_or(TIMEOUT_MS),
            idempotency,
            retry,
            client_id: ask.client_id,
            metadata: ask.metadata,
            archives: false,
        })
    }
}

/// Instructions and prompt, whichever way they were given.
fn said(
    instructions: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<Message>>,
) -> Result<(Option<String>, Vec<Message>)> {
    let (messages, path) = match (prompt, messages) {
        (Some(prompt), None) => (vec![Message::user(prompt)], "prompt"),
        (None, Some(messages)) => (messages, "messages"),
        (None, None) => {
            return Err(Error::bad_params("either `prompt` or `messages` is needed").at("prompt"));
        }
        (Some(_), Some(_)) => {
            let why = "`prompt` and `messages` exclude each other";
            return Err(Error::bad_params(why).at("messages"));
        }
    };
    let (system, messages): (Vec<_>, Vec<_>) =
        messages.into_iter().partition(|message| message.role == Role::System);
    let last = messages.last().filter(|last| last.role == Role::User);
    if last.is_none_or(|last| last.content.trim().is_empty()) {
        return Err(
            Error::bad_params("the last message must be a user's, and say something").at(path)
        );
    }
    let all: Vec<_> =
        instructions.into_iter().chain(system.into_iter().map(|message| message.content)).collect();
    let instructions = (!all.is_empty()).then(|| all.join("\n\n"));
    Ok((instructions, messages))
}

fn checked_name(id: String) -> Result<String> {
    let fits = !id.is_empty() && id.len() <= LONGEST_NAME && !id.contains(char::is_control);
    if fits {
        return Ok(id);
    }
    let why = format!("it must have 1 to {LONGEST_NAME} bytes and no control characters");
    Err(Error::bad_params(why).at("conversation_id"))
}

/// A name that sorts by time and that nobody can guess by counting.
fn new_id(kind: &str, now: Millis) -> String {
    format!("{kind}_{:011x}{:010x}", now.0, fastrand::u64(..1 << 40))
}

/// A caller's key, so that neither it nor another caller's equal one can be read or hit.
fn hash(principal: &str, key: &str) -> String {
    let digest = Sha256::new_with_prefix(principal).chain_update([0]).chain_update(key).finalize();
    digest.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
