//! Plugins as values: a name, a state, and a table of what they answer, fold, want and watch.

use std::{marker::PhantomData, sync::Arc};

use futures_util::FutureExt;
use ksi_protocol::{Code, Error, EventDoc, Kind, Raw, Result, parse_data};
use ksi_ring::{Act, Caller, Event};
use ksi_runtime::{BoxFuture, Run, caught};
use ksi_state::{Changed, Effect, Fact, Fault, Machine, Out, Stamp, State, Want};
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};

use crate::ctx::{Ctx, raw};
use crate::router::Answer;

type Boxed<I, O> = Box<dyn Fn(Ctx<()>, I) -> BoxFuture<O> + Send + Sync>;
pub(crate) type Handler = Boxed<Raw, Result<Raw>>;
pub(crate) type Performer = Boxed<Run, Result<()>>;
pub(crate) type Watcher = Boxed<Arc<Event>, ()>;
pub(crate) type Stopper = Boxed<(), ()>;
type Guard = Box<dyn Fn(Ctx<()>, Act, &str) -> Result<()> + Send + Sync>;
type Otherwise = Box<dyn Fn(Ctx<()>, &str, &Raw) -> Option<Answer> + Send + Sync>;

/// A plugin under construction; `S` is its state, changed by folds alone.
pub struct Plugin<S> {
    machine: Machine,
    parts: Parts,
    state: PhantomData<fn() -> S>,
}

/// A finished plugin.
pub struct AnyPlugin(pub(crate) Machine, pub(crate) Parts);

/// A plugin without its state.
#[derive(Default)]
pub(crate) struct Parts {
    pub(crate) name: &'static str,
    pub(crate) events: Vec<(EventDoc, Option<Handler>)>,
    pub(crate) watchers: Vec<(&'static str, Watcher)>,
    pub(crate) performer: Option<Performer>,
    pub(crate) stopper: Option<Stopper>,
    pub(crate) guard: Option<Guard>,
    pub(crate) otherwise: Option<Otherwise>,
}

impl<S: State> Plugin<S> {
    /// A plugin that does nothing yet.
    pub fn new(name: &'static str) -> Self {
        let parts = Parts { name, ..Parts::default() };
        Plugin { machine: Machine::new::<S>(name), parts, state: PhantomData }
    }

    /// Answers a request; exactly one plugin may answer an event.
    ///
    /// The doc comment of the parameters' type describes the event.
    pub fn on<P, R, F, Fut>(mut self, event: &'static str, handler: F) -> Self
    where
        P: DeserializeOwned + JsonSchema + Send + 'static,
        R: Serialize + JsonSchema + 'static,
        F: Fn(Ctx<S>, P) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<R>> + Send + 'static,
    {
        let answer: Handler = Box::new(move |cx, data| {
            let handler = handler.clone();
            let answered = caught(async move {
                let params = parse_data::<P>(&data)?;
                raw(&handler(cx.of(), params).await?)
            });
            Box::pin(answered.map(|answered| {
                answered.unwrap_or_else(|fault| Err(panicked("the handler", event, fault)))
            }))
        });
        let doc = EventDoc::new::<P>(self.parts.name, event, Kind::Request).replies::<R>();
        self.parts.events.push((doc, Some(answer)));
        self
    }

    /// A fact changes the state; this plugin's own fact or another's.
    pub fn fold<F: Fact>(
        mut self,
        fold: impl Fn(&mut S, &F, &Stamp, &mut Out) -> Result<(), Fault> + Send + Sync + 'static,
    ) -> Self {
        self.machine.fold(fold);
        self
    }

    /// The state has a shape of this version; snapshots of older ones are read by `older`.
    pub fn upgrade(
        mut self,
        version: u16,
        older: impl Fn(u16, &str) -> Result<S, Fault> + Send + Sync + 'static,
    ) -> Self {
        self.machine.upgrade(version, older);
        self
    }

    /// Declares a fact of this plugin, so that it is documented and cannot be sent from outside.
    pub fn fact<F: Fact + JsonSchema>(mut self) -> Self {
        let doc = EventDoc::new::<F>(self.parts.name, F::NAME, Kind::Fact);
        self.parts.events.push((doc, None));
        self
    }

    /// Declares a signal of this plugin and its shape.
    pub fn signal<P: JsonSchema>(mut self, event: &'static str) -> Self {
        let doc = EventDoc::new::<P>(self.parts.name, event, Kind::Signal);
        self.parts.events.push((doc, None));
        self
    }

    /// What the state wants to run, and the one function that runs it.
    pub fn drive<E, F, Fut>(
        mut self,
        drive: impl Fn(&S, Changed<'_>) -> Vec<Want<E>> + Send + Sync + 'static,
        perform: F,
    ) -> Self
    where
        E: Effect + Clone,
        F: Fn(Ctx<S>, String, u64, E) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        self.machine.drive(drive);
        self.parts.performer = Some(Box::new(move |cx, run| {
            let Some(effect) = run.effect.get::<E>().cloned() else {
                return Box::pin(async { Err(Error::internal("an effect of another type")) });
            };
            Box::pin(perform(cx.of(), run.place.1, run.epoch, effect))
        }));
        self
    }

    /// Is told of events that match; best effort, one after the other.
    pub fn watch<F, Fut>(mut self, pattern: &'static str, watch: F) -> Self
    where
        F: Fn(Ctx<S>, Arc<Event>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let watcher: Watcher = Box::new(move |cx, event| Box::pin(watch(cx.of(), event)));
        self.parts.watchers.push((pattern, watcher));
        self
    }

    /// Says whether a caller may send or see an event; asked before every dispatch of a caller that
    /// is not [unbound](Caller::is_unbound). It sees the state as it is, durable or not.
    pub fn guard(
        mut self,
        guard: impl Fn(&S, &Caller, Act, &str) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.parts.guard = Some(Box::new(move |cx, act, event| {
            let cx = cx.of();
            cx.peek(|state| guard(state, cx.caller(), act, event))?
        }));
        self
    }

    /// Answers what no plugin owns, if it will.
    pub fn otherwise(
        mut self,
        answer: impl Fn(Ctx<S>, &str, &Raw) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let answer = move |cx: Ctx<()>, event: &str, data: &Raw| answer(cx.of(), event, data);
        self.parts.otherwise = Some(Box::new(answer));
        self
    }

    /// Is asked to finish when the daemon shuts down, in reverse order of the plugins.
    pub fn on_stop<F, Fut>(mut self, stop: F) -> Self
    where
        F: Fn(Ctx<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.parts.stopper = Some(Box::new(move |cx, ()| Box::pin(stop(cx.of()))));
        self
    }
}

/// What becomes of a request when plugin code on its way panics.
pub(crate) fn panicked(who: &str, event: &str, Fault(why): Fault) -> Error {
    tracing::error!(event, why, "{who} panicked");
    Error::new(Code::Panicked, format!("{who} of `{event}` {why}"))
}

#[cfg(any(test, feature = "testing"))]
impl AnyPlugin {
    /// Its folds and its drive alone, for a world without threads.
    pub fn into_machine(self) -> Machine {
        self.0
    }
}

impl<S> From<Plugin<S>> for AnyPlugin {
    fn from(plugin: Plugin<S>) -> Self {
        AnyPlugin(plugin.machine, plugin.parts)
    }
}
