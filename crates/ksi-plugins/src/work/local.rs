//! The local model: a child process that holds it, one request at a time.
//!
//! The child is this program under a hidden verb. It starts with the first request, is kept for
//! the next one, and ends when nothing was asked for a while. An attempt that is cancelled takes
//! its child along: that is the one way to stop an answer that is being computed.

mod child;
mod lines;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ksi_kernel::Code;
use tokio::sync::{Mutex, oneshot};

use self::child::Child;
use super::provider::{
    BoxFuture, Description, Failure, Outcome, Provider, Request, Sink, StopReason, Usage,
};
use crate::Settings;

/// The provider `local`.
pub(super) struct Local {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Arc<Settings>,
    seat: Mutex<Seat>,
    closing: AtomicBool,
}

/// Where the child stays between requests; empty while it works.
#[derive(Default)]
struct Seat {
    child: Option<Child>,
    /// Dropped when the child is needed again, which ends the wait for its idleness.
    idle: Option<oneshot::Sender<()>>,
}

/// Loading and reading a long prompt take their time on a slow machine.
const FIRST_TOKEN_MS: u64 = 180_000;
const SILENCE_MS: u64 = 60_000;

impl Local {
    /// The model of these settings; nothing starts before it is asked.
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        let (seat, closing) = (Mutex::default(), AtomicBool::new(false));
        Local { shared: Arc::new(Shared { settings, seat, closing }) }
    }
}

impl Provider for Local {
    fn describe(&self) -> Description {
        Description {
            name: "local".into(),
            models: vec!["local".into(), "local:/path/model.gguf".into()],
            concurrency: 1,
            paid: false,
            streams: true,
            first_token_ms: FIRST_TOKEN_MS,
            silence_ms: SILENCE_MS,
        }
    }

    fn check(&self, model: &str) -> Result<(), Failure> {
        self.shared.find(model).map(drop)
    }

    fn complete(
        &self,
        request: Request,
        sink: Arc<dyn Sink>,
    ) -> BoxFuture<Result<Outcome, Failure>> {
        let shared = self.shared.clone();
        Box::pin(async move { shared.complete(request, sink).await })
    }

    fn close(&self) -> BoxFuture<()> {
        let shared = self.shared.clone();
        Box::pin(async move {
            shared.closing.store(true, Ordering::Release);
            // A child at work ends with its answer: whoever holds the seat sees to it.
            if let Ok(mut seat) = shared.seat.try_lock() {
                seat.vacate().await;
            }
        })
    }
}

impl Shared {
    async fn complete(
        self: Arc<Self>,
        request: Request,
        sink: Arc<dyn Sink>,
    ) -> Result<Outcome, Failure> {
        let path = self.find(&request.model)?;
        let mut seat = self.seat.lock().await;
        seat.idle = None;
        let mut child = match seat.child.take() {
            Some(child) if child.path() == path => child,
            other => {
                if let Some(other) = other {
                    other.stop().await;
                }
                sink.progress("loading the model");
                Child::start(&self.settings.shim, path).await?
            }
        };
        let done = child.answer(&request, &*sink).await;
        // One that crashed or talks nonsense goes; one that refused a question is sound.
        if done.as_ref().err().is_none_or(|failure| failure.code == Code::BadParams) {
            seat.child = Some(child);
            self.clone().rest(&mut seat, sink).await;
        }
        done.map(outcome)
    }

    /// What becomes of a child that has nothing to do.
    async fn rest(self: Arc<Self>, seat: &mut Seat, sink: Arc<dyn Sink>) {
        if self.closing.load(Ordering::Acquire) {
            return seat.vacate().await;
        }
        let disturbed = seat.keep();
        sink.clone().spawn("idle local model", Box::pin(self.idle(disturbed, sink)));
    }

    fn find(&self, model: &str) -> Result<PathBuf, Failure> {
        crate::model::find(&self.settings, model).map_err(|error| {
            let hint = error.hint.unwrap_or_else(|| "run `ksi model pull`".into());
            Failure::permanent(error.code, error.message).hint(hint)
        })
    }

    /// Ends the child once nothing was asked for a while.
    async fn idle(self: Arc<Self>, mut disturbed: oneshot::Receiver<()>, sink: Arc<dyn Sink>) {
        let patience = Duration::from_millis(self.settings.local_idle_ms);
        tokio::select! {
            _ = &mut disturbed => return,
            () = sink.pause(patience) => {}
        }
        let mut seat = self.seat.lock().await;
        // A request may have come and gone while this one waited for the seat.
        if disturbed.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
            seat.vacate().await;
        }
    }
}

impl Seat {
    /// Keeps the child for the next request; the receiver ends when that one comes.
    fn keep(&mut self) -> oneshot::Receiver<()> {
        let (idle, disturbed) = oneshot::channel();
        self.idle = Some(idle);
        disturbed
    }

    async fn vacate(&mut self) {
        self.idle = None;
        if let Some(child) = self.child.take() {
            child.stop().await;
        }
    }
}

fn outcome((text, done): (String, lines::Done)) -> Outcome {
    let stop_reason = match done.stop_reason.as_str() {
        "max_tokens" => StopReason::MaxTokens,
        _ => StopReason::End,
    };
    let lines::Tokens { input, output, cached } = done.usage;
    let usage = Usage { input, output, cache_read: cached, cache_creation: 0 };
    Outcome { text, session_id: None, stop_reason, usage, cost_usd: 0.0 }
}

/// A failure as the child reports it.
fn refused(error: lines::Trouble) -> Failure {
    match error.code.as_str() {
        "bad_request" => Failure::permanent(Code::BadParams, error.message),
        "too_long" => Failure::permanent(Code::BadParams, error.message)
            .hint("give it a shorter prompt or topic, or ask for a shorter answer"),
        "model_not_found" | "model_unusable" => {
            Failure::permanent(Code::ProviderError, error.message).hint("run `ksi model pull`")
        }
        _ => Failure::new(Code::ProviderError, error.message),
    }
}
