//! What a handler and an effect may do.

use std::{
    future::Future,
    marker::PhantomData,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ksi_protocol::{Code, Error, Pattern, Result};
use ksi_state::{By, Facts, Millis, Origin, PluginId, Refused, Seq, State};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::oneshot;

use crate::{
    event::Event,
    kernel::Core,
    listener::{Inbox, Listener, News},
};

/// Who asks, and by which means an answer reaches them besides the reply.
#[derive(Clone, Default)]
pub struct Caller {
    /// Who, and of which chain of requests; stands in every fact that comes of it.
    pub origin: Arc<Origin>,
    /// The caller's own key: the same key again means the same request.
    pub idempotency_key: Option<String>,
    /// The caller's listener.
    pub inbox: Option<Inbox>,
    /// The effect that asks, as key and epoch.
    pub(crate) effect: Option<(String, u64)>,
}

impl Caller {
    /// A caller of this name.
    pub fn new(principal: &str) -> Self {
        let origin = Origin { principal: principal.into(), ..Origin::default() };
        Caller { origin: Arc::new(origin), ..Caller::default() }
    }

    /// The daemon itself.
    pub fn system() -> Self {
        Self::new("system")
    }
}

/// A plugin's way to its state, to other plugins and to the news.
pub struct Ctx<S> {
    core: Arc<Core>,
    plugin: PluginId,
    caller: Caller,
    state: PhantomData<fn() -> S>,
}

impl<S> Clone for Ctx<S> {
    fn clone(&self) -> Self {
        Ctx { core: self.core.clone(), caller: self.caller.clone(), ..*self }
    }
}

impl<S: State> Ctx<S> {
    pub(crate) fn new(core: Arc<Core>, plugin: PluginId, caller: Caller) -> Self {
        Ctx { core, plugin, caller, state: PhantomData }
    }

    /// Decides what happens, on the state as it is; returns when that is safe from a crash.
    ///
    /// An error waits likewise for what it was based on.
    pub async fn decide<R>(
        &self,
        decide: impl FnOnce(&S, Millis) -> Result<(Facts, R)>,
    ) -> Result<R> {
        let by = By { origin: self.caller.origin.clone(), effect: self.caller.effect.clone() };
        let (durable, wait) = oneshot::channel();
        let decide = |state: &S, now| match decide(state, now) {
            Ok((facts, reply)) => (facts, Ok(reply)),
            Err(error) => (Facts::none(), Err(error)),
        };
        let done = Box::new(move |result| drop(durable.send(result)));
        let now = self.core.clock.now();
        let reply = self.core.sequencer.decide(self.plugin, &by, now, decide, done);
        let reply = reply.map_err(|refusal| refused(&refusal))?;
        match wait.await {
            Ok(Ok(())) => reply,
            Ok(Err(lost)) => Err(lost_error(&lost.to_string())),
            Err(_) => Err(lost_error("the daemon is ending")),
        }
    }

    /// Reads the state as of its last durable fact or later, and waits until that is durable.
    pub async fn read<R>(&self, look: impl FnOnce(&S) -> R) -> Result<R> {
        self.decide(|state, _| Ok((Facts::none(), look(state)))).await
    }

    /// Looks at the state as it is, durable or not; for health and metrics.
    pub fn peek<R>(&self, look: impl FnOnce(&S) -> R) -> Result<R> {
        self.core.sequencer.peek(self.plugin, look).map_err(|refusal| refused(&refusal))
    }

    /// Sends a request on the caller's behalf.
    pub async fn call<R: DeserializeOwned>(&self, event: &str, data: &impl Serialize) -> Result<R> {
        let data = to_raw_value(data).map_err(|error| Error::internal(error.to_string()))?;
        let caller = Caller { effect: None, ..self.caller.clone() };
        let reply = self.core.call(caller, event.to_owned(), data).await?;
        serde_json::from_str(reply.get()).map_err(|error| {
            Error::internal(format!("the reply to `{event}` has another shape: {error}"))
        })
    }

    /// Passes news on to whoever listens; it is not kept.
    pub fn signal(&self, name: &str, data: &impl Serialize) {
        match to_raw_value(data) {
            Ok(data) => self.core.signal(name, data),
            Err(error) => tracing::error!(event = name, %error, "a signal cannot be serialized"),
        }
    }

    /// A listener to these patterns from now on.
    pub fn listen(&self, patterns: &[&str]) -> Result<Listener> {
        let patterns: Result<Vec<_>> = patterns.iter().map(|text| Pattern::parse(text)).collect();
        let listener = self.core.listener();
        listener.inbox().subscribe(patterns?, None);
        Ok(listener)
    }

    /// Waits until the listener hears an event that answers the question.
    pub async fn until<R>(
        &self,
        listener: &mut Listener,
        mut answer: impl FnMut(&Event) -> Option<R>,
    ) -> Result<R> {
        while let Some(news) = listener.next().await {
            let News::Event(event, _) = news else { continue };
            if let Some(found) = answer(&event) {
                return Ok(found);
            }
        }
        Err(Error::new(Code::Shutdown, "the daemon is shutting down"))
    }

    /// The facts in the journal that match.
    pub async fn journal(&self, query: ksi_state::Query) -> Result<Vec<ksi_state::Record>> {
        let journal = self.core.journal.clone();
        let read = tokio::task::spawn_blocking(move || journal.read(&query)).await;
        let read = read.map_err(|_| Error::internal("reading the journal panicked"))?;
        read.map_err(|error| Error::unavailable(error.to_string()))
    }

    /// The same plugin's view, acting for somebody else, such as the one a fact was caused by.
    pub fn on_behalf_of(&self, origin: Arc<Origin>) -> Self {
        Ctx { caller: Caller { origin, ..self.caller.clone() }, ..self.clone() }
    }

    /// Who asks.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The time.
    pub fn now(&self) -> Millis {
        self.core.clock.now()
    }

    /// Waits; by the daemon's clock, which tests may move.
    pub async fn sleep(&self, duration: Duration) {
        let at = self.now().plus(duration.as_millis() as u64);
        self.core.clock.sleep_until(at).await;
    }

    /// Runs a future as a task of the daemon.
    pub fn spawn(&self, name: &str, future: impl Future<Output = ()> + Send + 'static) {
        self.core.tasks.spawn(name, future);
    }

    /// The daemon as a whole: what it answers, what runs, how it is.
    pub fn daemon(&self) -> Daemon<'_> {
        Daemon(&self.core)
    }
}

/// The daemon as a plugin may see it.
pub struct Daemon<'a>(pub(crate) &'a Arc<Core>);

impl Daemon<'_> {
    /// Every event that plugins answer or publish, with its shape.
    pub fn catalog(&self) -> &[crate::plugin::EventDoc] {
        &self.0.router.catalog
    }

    /// The plugins' names, in order.
    pub fn plugins(&self) -> &[&'static str] {
        &self.0.router.plugins
    }

    /// The plugins whose state cannot be trusted, and why.
    pub fn degraded(&self) -> Vec<(&'static str, String)> {
        self.0.sequencer.degraded()
    }

    /// The last fact, and the last durable one.
    pub fn position(&self) -> (Seq, Seq) {
        self.0.sequencer.position()
    }

    /// How many tasks run.
    pub fn task_count(&self) -> usize {
        self.0.tasks.count()
    }

    /// How many effects run.
    pub fn effects(&self) -> usize {
        self.0.effects.running()
    }

    /// When the daemon started.
    pub fn started(&self) -> Millis {
        self.0.started
    }

    /// Whether the journal failed, so that only a new start helps.
    pub fn broken(&self) -> bool {
        self.0.broken.load(Ordering::Relaxed)
    }

    /// Asks the daemon to shut down.
    pub fn stop(&self) {
        self.0.stop.send_replace(true);
    }
}

/// A reply that may be raw JSON already.
pub(crate) fn raw(value: &impl Serialize) -> Result<Box<RawValue>> {
    to_raw_value(value).map_err(|error| Error::internal(format!("a reply is not JSON: {error}")))
}

pub(crate) fn refused(refused: &Refused) -> Error {
    match refused {
        Refused::Degraded { .. } => Error::unavailable(refused.to_string())
            .hint("`ksi health` says what is wrong; the journal itself is kept")
            .retryable(false),
        Refused::Stale => Error::conflict(refused.to_string()),
        Refused::Unserializable { .. } => Error::internal(refused.to_string()),
        Refused::Closed => Error::new(Code::Shutdown, "the daemon is shutting down"),
    }
}

fn lost_error(why: &str) -> Error {
    Error::unavailable(format!("the outcome is unknown: {why}"))
        .hint("ask for the state before you try again, or use an idempotency key")
}
