//! What a handler and an effect may do.

use std::{marker::PhantomData, sync::Arc};

use ksi_protocol::{Error, Pattern, Raw, Result};
use ksi_ring::{Caller, Listener};
use ksi_runtime::{reading, refused};
use ksi_state::{Facts, Journal, JournalError, Millis, Origin, PluginId, Refused, State};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::to_raw_value;
use tokio::sync::oneshot;

use crate::kernel::Kernel;

/// A plugin's way to its state, to other plugins and to the news.
pub struct Ctx<S> {
    kernel: Kernel,
    plugin: PluginId,
    caller: Caller,
    state: PhantomData<fn() -> S>,
}

impl<S> Clone for Ctx<S> {
    fn clone(&self) -> Self {
        Ctx { kernel: self.kernel.clone(), caller: self.caller.clone(), ..*self }
    }
}

impl<S: State> Ctx<S> {
    pub(crate) fn new(kernel: Kernel, plugin: PluginId, caller: Caller) -> Self {
        Ctx { kernel, plugin, caller, state: PhantomData }
    }

    /// The same, for a plugin whose state is of this type.
    pub(crate) fn of<T: State>(self) -> Ctx<T> {
        Ctx::new(self.kernel, self.plugin, self.caller)
    }

    /// Decides what happens, on the state as it is; returns when that is safe from a crash.
    ///
    /// An error waits likewise for what it was based on.
    pub async fn decide<R>(
        &self,
        decide: impl FnOnce(&S, Millis) -> Result<(Facts, R)>,
    ) -> Result<R> {
        let (durable, wait) = oneshot::channel();
        let decide = |state: &S, now| match decide(state, now) {
            Ok((facts, reply)) => (facts, Ok(reply)),
            Err(error) => (Facts::none(), Err(error)),
        };
        let done = Box::new(move |result| drop(durable.send(result)));
        let sequencer = &self.kernel.0.sequencer;
        let reply = sequencer.decide(self.plugin, &self.caller.by(), self.now(), decide, done);
        let reply = reply.map_err(|refusal| refused(&refusal))?;
        let ended = |_| Err(Refused::Lost("the daemon is ending".to_owned()));
        wait.await.unwrap_or_else(ended).map_err(|refusal| refused(&refusal)).and(reply)
    }

    /// Reads the state as of its last durable fact or later, and waits until that is durable.
    pub async fn read<R>(&self, look: impl FnOnce(&S) -> R) -> Result<R> {
        self.decide(|state, _| Ok((Facts::none(), look(state)))).await
    }

    /// Looks at the state as it is, durable or not; for health and metrics.
    pub fn peek<R>(&self, look: impl FnOnce(&S) -> R) -> Result<R> {
        let seen = self.kernel.0.sequencer.peek(self.plugin, look);
        seen.map_err(|refusal| refused(&refusal))
    }

    /// Sends a request on the caller's behalf.
    pub async fn call<R: DeserializeOwned>(&self, event: &str, data: &impl Serialize) -> Result<R> {
        let caller = Caller { effect: None, ..self.caller.clone() };
        let reply = self.kernel.dispatch(caller, event, raw(data)?).await?;
        serde_json::from_str(reply.get()).map_err(|error| {
            Error::internal(format!("the reply to `{event}` has another shape: {error}"))
        })
    }

    /// Passes news on to whoever listens; it is not kept.
    pub fn signal(&self, name: &str, data: &impl Serialize) {
        self.kernel.signal(name, data);
    }

    /// A listener to these patterns from now on.
    pub fn listen(&self, patterns: &[&str]) -> Result<Listener> {
        let patterns: Result<Vec<_>> = patterns.iter().map(|text| Pattern::parse(text)).collect();
        let listener = self.kernel.listener();
        listener.inbox().subscribe(patterns?, None);
        Ok(listener)
    }

    /// Reads from the journal: facts, or documents.
    pub async fn journal<R: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn Journal) -> Result<R, JournalError> + Send + 'static,
    ) -> Result<R> {
        reading(self.kernel.0.journal.clone(), read).await
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
        self.kernel.clock().now()
    }

    /// The daemon as a whole: what it answers, what runs, how it is.
    pub fn daemon(&self) -> &Kernel {
        &self.kernel
    }
}

/// A reply that may be raw JSON already.
pub(crate) fn raw(value: &impl Serialize) -> Result<Raw> {
    to_raw_value(value).map_err(|error| Error::internal(format!("it is not JSON: {error}")))
}
