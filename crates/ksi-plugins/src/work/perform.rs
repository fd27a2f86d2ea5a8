//! Works on one request: begins an attempt, lets the provider answer, reports how it ended.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;
use ksi_kernel::{Code, Ctx, Millis, Result};

use super::{
    archive,
    decisions::Attempt,
    facts::{CHUNK, Chunk, PROGRESS, Progress},
    provider::{BoxFuture, Description, Failure, Outcome, Providers, Request, Sink},
    state::{Complete, Work},
};

/// One attempt at a request, from its `started` to what follows from its end.
///
/// A daemon that ends in between finds the request wanted again at its next start, and begins
/// the next attempt.
pub(super) async fn perform(
    cx: Ctx<Work>,
    providers: Arc<Providers>,
    request_id: String,
    effect: Complete,
) -> Result<()> {
    let cx = cx.on_behalf_of(effect.origin);
    let conversation = cx.read(|work| work.conversation_of(&request_id)).await??;
    let past = archive::past(&cx, &conversation).await?;
    let attempt = cx.decide(|work, now| work.start(&request_id, &past, now)).await?;
    let outcome = answer(&cx, &providers, attempt).await;
    let random = fastrand::u64(..);
    cx.decide(|work, now| work.report(&request_id, outcome, random, now)).await
}

/// Lets the provider answer within its deadlines.
async fn answer(
    cx: &Ctx<Work>,
    providers: &Providers,
    attempt: Attempt,
) -> Result<Outcome, Failure> {
    let Attempt { provider: name, request, deadline } = attempt;
    let Some(provider) = providers.get(&name).cloned() else {
        let why = format!("provider `{name}` is not built in this version");
        return Err(Failure::permanent(Code::Unavailable, why));
    };
    let hearing = Arc::new(Hearing::new(cx.clone(), provider.describe(), &request));
    let sink: Arc<dyn Sink> = hearing.clone();
    let work = async move { provider.complete(request, sink).await };
    let left = Duration::from_millis(deadline.0.saturating_sub(cx.now().0));
    tokio::select! {
        biased;
        done = AssertUnwindSafe(work).catch_unwind() => match done {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::new(Code::Panicked, format!("provider `{name}` panicked"))),
        },
        failure = hearing.silence() => Err(failure),
        () = cx.daemon().clock().sleep(left) => Err(too_late()),
    }
}

fn too_late() -> Failure {
    Failure::permanent(Code::Timeout, "the request took longer than its `timeout_ms`")
        .hint("give it more time, or ask for a shorter answer")
}

/// What was heard of an attempt, passed on as signals.
struct Hearing {
    cx: Ctx<Work>,
    provider: Description,
    request_id: String,
    conversation_id: String,
    model: String,
    attempt: u32,
    last: Mutex<Heard>,
}

/// When something was heard last, whether a word was among it, and how many bytes of words.
#[derive(Clone, Copy)]
struct Heard {
    at: Millis,
    words: bool,
    bytes: u64,
}

impl Hearing {
    fn new(cx: Ctx<Work>, provider: Description, request: &Request) -> Self {
        let last = Mutex::new(Heard { at: cx.now(), words: false, bytes: 0 });
        Hearing {
            cx,
            provider,
            request_id: request.request_id.clone(),
            conversation_id: request.conversation_id.clone(),
            model: request.model.clone(),
            attempt: request.attempt,
            last,
        }
    }

    /// Takes note that something was heard; how many bytes of words came before.
    fn heard(&self, text: Option<&str>) -> u64 {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let before = last.bytes;
        let bytes = before + text.map_or(0, |text| text.len() as u64);
        *last = Heard { at: self.cx.now(), words: last.words || text.is_some(), bytes };
        before
    }

    /// Returns once nothing was heard for too long.
    async fn silence(&self) -> Failure {
        loop {
            let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let limit = match last.words {
                true => self.provider.silence_ms,
                false => self.provider.first_token_ms,
            };
            let until = last.at.plus(limit);
            let now = self.cx.now();
            if now >= until {
                return self.silent(limit, last.words);
            }
            self.cx.daemon().clock().sleep_until(until).await;
        }
    }

    fn silent(&self, limit_ms: u64, words: bool) -> Failure {
        let what = if words { "fell silent" } else { "did not begin to answer" };
        let why = format!("provider `{}` {what} for {limit_ms} ms", self.provider.name);
        Failure::new(Code::Timeout, why)
    }
}

impl Sink for Hearing {
    fn text(&self, text: &str) {
        let offset = self.heard(Some(text));
        let chunk = Chunk {
            request_id: self.request_id.clone(),
            conversation_id: self.conversation_id.clone(),
            attempt: self.attempt,
            offset,
            text: text.to_owned(),
        };
        self.cx.signal(CHUNK, &chunk);
    }

    fn progress(&self, phase: &str) {
        self.heard(None);
        let progress = Progress {
            request_id: self.request_id.clone(),
            conversation_id: self.conversation_id.clone(),
            attempt: self.attempt,
            phase: phase.to_owned(),
            model: self.model.clone(),
        };
        self.cx.signal(PROGRESS, &progress);
    }

    fn pause(&self, duration: Duration) -> BoxFuture<()> {
        let cx = self.cx.clone();
        Box::pin(async move { cx.daemon().clock().sleep(duration).await })
    }

    fn spawn(&self, name: &str, task: BoxFuture<()>) {
        self.cx.daemon().tasks().spawn(name, task);
    }
}

#[cfg(test)]
mod tests {
    use ksi_kernel::{Caller, Clock, Kernel, Setup};
    use ksi_state::testing::memory::MemoryJournal;
    use serde_json::{json, value::to_raw_value};

    use super::*;
    use crate::work::{provider::testing::Panicking, requests::Desk};

    #[tokio::test]
    async fn a_provider_that_panics_has_failed_and_the_daemon_lives() {
        let providers = Arc::new(Providers::new(vec![Arc::new(Panicking("wild"))]));
        let desk = Desk { providers, default_model: Some("wild".into()) };
        let plugins = vec![crate::work::with(&Arc::new(desk)).into()];
        let journal = Arc::new(MemoryJournal::default());
        let setup = Setup { plugins, journal, clock: Clock::system(), snapshot_every: 0 };
        let kernel = Kernel::start(setup).unwrap();
        let call = |event: &str, data| {
            let data = to_raw_value(&data).unwrap();
            kernel.call(Caller::operator(), event, data)
        };
        let ask = json!({ "prompt": "x", "retry": { "max_attempts": 2, "initial_ms": 0 } });
        let error = call("completion:sync", ask).await.unwrap_err();
        assert_eq!(
            (error.code, error.message.as_str()),
            (Code::Panicked, "provider `wild` panicked")
        );
        let counts = call("completion:status", json!({})).await.unwrap();
        assert!(counts.get().contains(r#""failed":1"#), "{counts}");
    }
}
