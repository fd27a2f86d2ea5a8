//! Plugins as values: a name, a state, and a table of what they answer, fold, want and watch.

use std::{future::Future, pin::Pin, sync::Arc};

use ksi_protocol::{Error, Pattern, Result};
use ksi_state::{Changed, Effect, Fact, Fault, Machine, Out, PluginId, Stamp, State, Want};
use schemars::{JsonSchema, schema_for};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};

use crate::{
    ctx::{Caller, Ctx, raw},
    event::Event,
    kernel::Core,
};

/// A boxed future that may move between threads.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

pub(crate) type Handler =
    Box<dyn Fn(Arc<Core>, Caller, Box<RawValue>) -> BoxFuture<Result<Box<RawValue>>> + Send + Sync>;
pub(crate) type Watcher = Box<dyn Fn(Arc<Core>, Arc<Event>) -> BoxFuture<()> + Send + Sync>;
pub(crate) type Performer = Arc<dyn Fn(Arc<Core>, Run) -> BoxFuture<Result<()>> + Send + Sync>;
pub(crate) type Stopper = Box<dyn Fn(Arc<Core>) -> BoxFuture<()> + Send + Sync>;

/// One run of an effect.
pub(crate) struct Run {
    pub(crate) key: String,
    pub(crate) epoch: u64,
    pub(crate) effect: ksi_state::AnyEffect,
}

/// What an event is to those who send or receive it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Answered by one plugin.
    Request,
    /// In the journal.
    Fact,
    /// Passing news.
    Signal,
}

/// What `system:discover` says of one event.
#[derive(Debug, Clone)]
pub struct EventDoc {
    /// Its name.
    pub event: &'static str,
    /// Whose it is.
    pub plugin: &'static str,
    /// What it is.
    pub kind: Kind,
    /// One sentence.
    pub summary: String,
    /// The JSON schema of its `data`.
    pub params: Value,
    /// The JSON schema of the reply; null for facts and signals.
    pub reply: Value,
}

/// A plugin under construction; `S` is its state, changed by folds alone.
pub struct Plugin<S> {
    pub(crate) parts: AnyPlugin,
    state: std::marker::PhantomData<fn() -> S>,
}

/// A finished plugin.
pub struct AnyPlugin {
    pub(crate) name: &'static str,
    pub(crate) machine: Machine,
    pub(crate) docs: Vec<EventDoc>,
    pub(crate) handlers: Vec<(&'static str, Handler)>,
    pub(crate) watchers: Vec<(Pattern, Watcher)>,
    pub(crate) performer: Option<Performer>,
    pub(crate) stopper: Option<Stopper>,
    pub(crate) faults: Vec<String>,
    pub(crate) place: Arc<std::sync::OnceLock<PluginId>>,
}

impl<S: State> Plugin<S> {
    /// A plugin that does nothing yet.
    pub fn new(name: &'static str) -> Self {
        let parts = AnyPlugin {
            name,
            machine: Machine::new::<S>(name),
            docs: Vec::new(),
            handlers: Vec::new(),
            watchers: Vec::new(),
            performer: None,
            stopper: None,
            faults: Vec::new(),
            place: Arc::default(),
        };
        Plugin { parts, state: std::marker::PhantomData }
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
        let reply = schema_for!(R).to_value();
        self.document::<P>(event, Kind::Request, reply);
        let place = self.parts.place.clone();
        let handler: Handler = Box::new(move |core, caller, data| {
            let (handler, id) = (handler.clone(), at(&place));
            Box::pin(async move {
                let params = parse::<P>(&data)?;
                raw(&handler(Ctx::new(core, id, caller), params).await?)
            })
        });
        self.parts.handlers.push((event, handler));
        self
    }

    /// A fact changes the state; this plugin's own fact or another's.
    pub fn fold<F: Fact>(
        mut self,
        fold: impl Fn(&mut S, &F, &Stamp, &mut Out) -> Result<(), Fault> + Send + Sync + 'static,
    ) -> Self {
        self.parts.machine.fold(fold);
        self
    }

    /// Declares a fact of this plugin, so that it is documented and cannot be sent from outside.
    pub fn fact<F: Fact + JsonSchema>(mut self) -> Self {
        self.document::<F>(F::NAME, Kind::Fact, Value::Null);
        self
    }

    /// Declares a signal of this plugin and its shape.
    pub fn signal<P: JsonSchema>(mut self, event: &'static str) -> Self {
        self.document::<P>(event, Kind::Signal, Value::Null);
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
        F: Fn(Ctx<S>, String, u64, E) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        self.parts.machine.drive(drive);
        let place = self.parts.place.clone();
        self.parts.performer = Some(Arc::new(move |core, run| {
            let Some(effect) = run.effect.get::<E>().cloned() else {
                return Box::pin(async { Err(Error::internal("an effect of another type")) });
            };
            let effect_id = Some((run.key.clone(), run.epoch));
            let caller = Caller { effect: effect_id, ..Caller::system() };
            Box::pin(perform(Ctx::new(core, at(&place), caller), run.key, run.epoch, effect))
        }));
        self
    }

    /// Is told of events that match; best effort, one after the other.
    pub fn watch<F, Fut>(mut self, pattern: &str, watch: F) -> Self
    where
        F: Fn(Ctx<S>, Arc<Event>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let place = self.parts.place.clone();
        let watcher: Watcher = Box::new(move |core, event| {
            Box::pin(watch(Ctx::new(core, at(&place), Caller::system()), event))
        });
        match Pattern::parse(pattern) {
            Ok(pattern) => self.parts.watchers.push((pattern, watcher)),
            Err(error) => self.parts.faults.push(error.to_string()),
        }
        self
    }

    /// Is asked to finish when the daemon shuts down, in reverse order of the plugins.
    pub fn on_stop<F, Fut>(mut self, stop: F) -> Self
    where
        F: Fn(Ctx<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let place = self.parts.place.clone();
        self.parts.stopper = Some(Box::new(move |core| {
            Box::pin(stop(Ctx::new(core, at(&place), Caller::system())))
        }));
        self
    }

    fn document<P: JsonSchema>(&mut self, event: &'static str, kind: Kind, reply: Value) {
        let params = schema_for!(P).to_value();
        let summary = params.get("description").and_then(Value::as_str).unwrap_or_default();
        let summary = summary.to_owned();
        let plugin = self.parts.name;
        self.parts.docs.push(EventDoc { event, plugin, kind, summary, params, reply });
    }
}

#[cfg(any(test, feature = "testing"))]
impl AnyPlugin {
    /// Its folds and its drive alone, for a world without threads.
    pub fn into_machine(self) -> Machine {
        self.machine
    }
}

impl<S> From<Plugin<S>> for AnyPlugin {
    fn from(plugin: Plugin<S>) -> Self {
        plugin.parts
    }
}

/// The plugin's place, which the kernel fills in when it starts.
fn at(place: &std::sync::OnceLock<PluginId>) -> PluginId {
    place.get().copied().unwrap_or(PluginId(usize::MAX))
}

/// Reads the parameters; an error names the path and what was expected there.
fn parse<P: DeserializeOwned>(data: &RawValue) -> Result<P> {
    let mut json = serde_json::Deserializer::from_str(data.get());
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let why = error.into_inner().to_string();
        let why = why.split(" at line ").next().unwrap_or_default().to_owned();
        Error::bad_params(why).at(path).hint("`ksi discover EVENT` shows the shape it wants")
    })
}
