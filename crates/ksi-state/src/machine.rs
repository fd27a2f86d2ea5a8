//! Machines: how facts change a plugin's state, and what that state wants to run.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::{any::Any, fmt, sync::Arc};

use ksi_record::{Document, Millis, Record, Section, Seq};
use serde::{Serialize, de::DeserializeOwned};

use crate::fact::{Fact, Stamp};
use crate::sequencer::{PluginId, Refused};

/// A plugin's state: made by folding facts, and by nothing else.
pub trait State: Default + Serialize + DeserializeOwned + Send + 'static {}
impl<S: Default + Serialize + DeserializeOwned + Send + 'static> State for S {}

/// Work in the world, as data.
pub trait Effect: PartialEq + fmt::Debug + Send + Sync + 'static {}
impl<E: PartialEq + fmt::Debug + Send + Sync + 'static> Effect for E {}

/// Why a fact could not be folded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);

impl Fault {
    /// What a panic said.
    pub fn of_panic(panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Fault(format!("panicked: {text}"))
    }
}

/// What a fold says besides changing its state.
#[derive(Debug, Default)]
pub struct Out {
    pub(crate) touched: BTreeSet<String>,
    pub(crate) documents: Vec<Document>,
}

impl Out {
    /// This key changed too, though the fact is about another.
    pub fn touch(&mut self, key: impl Into<String>) {
        self.touched.insert(key.into());
    }

    /// This is finished: it is kept with the fact, to be read and not to be remembered.
    pub fn document(&mut self, document: Document) {
        self.documents.push(document);
    }
}

/// What `drive` should look at.
#[derive(Debug, Clone, Copy)]
pub enum Changed<'a> {
    /// Everything: the answer is the complete set of what should run.
    All,
    /// These keys: the answer is what changes for them.
    Keys(&'a BTreeSet<String>),
}

/// What should run now, or no longer.
#[derive(Debug, Clone, PartialEq)]
pub enum Want<E> {
    /// Run this, once, at the given time or now if that has passed.
    Run {
        /// What it is about; one effect runs per key.
        key: String,
        /// Which attempt; reports of an older one are refused.
        epoch: u64,
        /// When.
        at: Millis,
        /// The work.
        effect: E,
    },
    /// Do not run anything for this key.
    Stop {
        /// The key.
        key: String,
    },
}

/// An effect whose type only its plugin knows.
#[derive(Debug, Clone)]
pub struct AnyEffect(Arc<dyn ErasedEffect>);

trait ErasedEffect: Any + fmt::Debug + Send + Sync {
    fn equals(&self, other: &AnyEffect) -> bool;
}

impl<E: Effect> ErasedEffect for E {
    fn equals(&self, other: &AnyEffect) -> bool {
        other.get::<E>() == Some(self)
    }
}

impl AnyEffect {
    /// The effect, if it is of this type.
    pub fn get<E: Effect>(&self) -> Option<&E> {
        let effect: &dyn Any = &*self.0;
        effect.downcast_ref()
    }
}

impl PartialEq for AnyEffect {
    fn eq(&self, other: &Self) -> bool {
        self.0.equals(other)
    }
}

/// What plugins want, each with the plugin's place.
pub type Wants = Vec<(PluginId, Want<AnyEffect>)>;

impl<E: Effect> Want<E> {
    /// The same want, of an effect whose type only its plugin knows.
    pub fn erase(self) -> Want<AnyEffect> {
        match self {
            Want::Run { key, epoch, at, effect } => {
                Want::Run { key, epoch, at, effect: AnyEffect(Arc::new(effect)) }
            }
            Want::Stop { key } => Want::Stop { key },
        }
    }
}

type AnyState = Box<dyn Any + Send>;
type FoldFn = Arc<
    dyn Fn(&mut dyn Any, Option<&dyn Any>, &Record, &mut Out) -> Result<(), Fault> + Send + Sync,
>;
type DriveFn = Arc<dyn Fn(&dyn Any, Changed<'_>) -> Vec<Want<AnyEffect>> + Send + Sync>;
type ParseFn = Arc<dyn Fn(&Section) -> Result<AnyState, Fault> + Send + Sync>;

/// A plugin's state machine: its folds, its drive, its state, and what that wants at present.
pub struct Machine {
    pub(crate) name: &'static str,
    /// With the names of the facts that they fold: few enough to look through.
    folds: Vec<(&'static str, FoldFn)>,
    drive: Option<DriveFn>,
    /// Of the state's shape.
    version: u16,
    init: fn() -> AnyState,
    dump: fn(&dyn Any) -> serde_json::Result<String>,
    parse: ParseFn,
    pub(crate) live: Live,
}

/// What folds have made of a machine so far.
pub(crate) struct Live {
    state: AnyState,
    /// A snapshot holds the facts up to this one.
    pub(crate) since: Seq,
    pub(crate) degraded: Option<String>,
    pub(crate) wanted: BTreeMap<String, Want<AnyEffect>>,
}

impl Machine {
    /// A machine over this type of state.
    pub fn new<S: State>(name: &'static str) -> Self {
        let init: fn() -> AnyState = || Box::new(S::default());
        Machine {
            name,
            folds: Vec::new(),
            drive: None,
            version: 1,
            init,
            dump: |state| serde_json::to_string(&state.downcast_ref::<S>()),
            parse: Arc::new(parse_state::<S>),
            live: Live { state: init(), since: Seq(0), degraded: None, wanted: BTreeMap::new() },
        }
    }

    /// The same machine with nothing folded yet.
    pub(crate) fn fork(&self) -> Self {
        let (folds, drive, parse) = (self.folds.clone(), self.drive.clone(), self.parse.clone());
        let live =
            Live { state: (self.init)(), since: Seq(0), degraded: None, wanted: BTreeMap::new() };
        Machine { folds, drive, parse, live, ..*self }
    }

    /// The state has a shape of this version; snapshots of older ones are read by `older`.
    pub fn upgrade<S: State>(
        &mut self,
        version: u16,
        older: impl Fn(u16, &str) -> Result<S, Fault> + Send + Sync + 'static,
    ) {
        self.version = version;
        self.parse = Arc::new(move |section| match section.version < version {
            true => Ok(Box::new(older(section.version, &section.state)?)),
            false => parse_state::<S>(section),
        });
    }

    /// This fact changes the state so; pure, and never on values the machine did not make.
    pub fn fold<S: State, F: Fact>(
        &mut self,
        fold: impl Fn(&mut S, &F, &Stamp, &mut Out) -> Result<(), Fault> + Send + Sync + 'static,
    ) {
        let fold: FoldFn = Arc::new(move |state, live, record, out| {
            let state = state.downcast_mut().ok_or_else(|| Fault("not a state of its".into()))?;
            match live.and_then(<dyn Any>::downcast_ref::<F>) {
                Some(fact) => fold(state, fact, &Stamp::of(record), out),
                None => fold(state, &parse(record)?, &Stamp::of(record), out),
            }
        });
        self.folds.push((F::NAME, fold));
    }

    /// What the state wants to run; pure.
    pub fn drive<S: State, E: Effect>(
        &mut self,
        drive: impl Fn(&S, Changed<'_>) -> Vec<Want<E>> + Send + Sync + 'static,
    ) {
        self.drive = Some(Arc::new(move |state, changed| match state.downcast_ref() {
            Some(state) => drive(state, changed).into_iter().map(Want::erase).collect(),
            None => Vec::new(),
        }));
    }

    pub(crate) fn state<S: State>(&self) -> Result<&S, Refused> {
        let degraded = |why: &str| Refused::Degraded { plugin: self.name, why: why.to_owned() };
        match &self.live.degraded {
            Some(why) => Err(degraded(why)),
            None => self.live.state.downcast_ref().ok_or_else(|| degraded("of another type")),
        }
    }

    /// Forgets everything but what the section of a snapshot says.
    pub(crate) fn reset(&mut self, section: Option<&Section>) {
        self.live = self.fork().live;
        let Some(section) = section else { return };
        self.live.since = section.seq;
        let parse = || match section.version > self.version {
            true => Err(newer(section.version, self.version)),
            false => (self.parse)(section),
        };
        match catch(parse).flatten() {
            Ok(state) => self.live.state = state,
            Err(Fault(why)) => self.live.degraded = Some(format!("its snapshot: {why}")),
        }
    }

    /// The state as of this fact, if it can be trusted.
    pub(crate) fn section(&self, seq: Seq, at: Millis) -> Option<Section> {
        let well = self.live.degraded.is_none();
        let state = well.then(|| (self.dump)(&*self.live.state).ok())??;
        Some(Section { seq, at, version: self.version, state })
    }

    /// Folds one fact; a new one also tells `out` what it is about, where there is a drive.
    pub(crate) fn apply(&mut self, fact: Option<&dyn Any>, record: &Record, out: &mut Out) {
        let Live { state, degraded, since, .. } = &mut self.live;
        if record.seq <= *since {
            return;
        }
        for (_, fold) in self.folds.iter().filter(|(name, _)| *name == record.name) {
            if degraded.is_none() {
                let folded = catch(|| fold(&mut **state, fact, record, out)).flatten();
                let why = |Fault(why)| format!("fact {} {}: {why}", record.seq, record.name);
                *degraded = folded.err().map(why);
            }
            if fact.is_some() && self.drive.is_some() {
                out.touched.insert(record.subject.clone());
            }
        }
    }

    /// What the plugin wants now that it did not before, and what it wants no more.
    pub(crate) fn want(&mut self, changed: Changed<'_>) -> Vec<Want<AnyEffect>> {
        let Some(drive) = &self.drive else { return Vec::new() };
        if self.live.degraded.is_none() {
            match catch(|| drive(&*self.live.state, changed)) {
                Ok(wants) => return wants.into_iter().filter(|want| self.note(want)).collect(),
                Err(Fault(why)) => self.live.degraded = Some(why),
            }
        }
        // Nothing may run for a state that cannot be trusted.
        let wanted = std::mem::take(&mut self.live.wanted);
        wanted.into_keys().map(|key| Want::Stop { key }).collect()
    }

    /// Remembers a want; false if it is not news.
    fn note(&mut self, want: &Want<AnyEffect>) -> bool {
        match want {
            Want::Stop { key } => self.live.wanted.remove(key).is_some(),
            Want::Run { key, .. } => {
                self.live.wanted.insert(key.clone(), want.clone()).as_ref() != Some(want)
            }
        }
    }

    /// Whether this attempt for this key is what the plugin wants at present.
    pub(crate) fn wants(&self, key: &str, epoch: u64) -> bool {
        let wanted = self.live.wanted.get(key);
        matches!(wanted, Some(Want::Run { epoch: wanted, .. }) if *wanted == epoch)
    }

    /// The state as JSON and what is wanted, for comparing.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn snapshot(&self) -> crate::testing::Snapshot {
        crate::testing::Snapshot {
            plugin: self.name,
            degraded: self.live.degraded.clone(),
            state: (self.dump)(&*self.live.state)
                .and_then(|state| serde_json::from_str(&state))
                .unwrap_or_default(),
            wanted: self.live.wanted.values().map(|want| format!("{want:?}")).collect(),
        }
    }
}

fn parse_state<S: State>(section: &Section) -> Result<AnyState, Fault> {
    Ok(Box::new(serde_json::from_str::<S>(&section.state).map_err(|error| not_json(&error))?))
}

fn parse<F: Fact>(record: &Record) -> Result<F, Fault> {
    if record.version > F::VERSION {
        return Err(newer(record.version, F::VERSION));
    }
    serde_json::from_str(record.data.get()).map_err(|error| not_json(&error))
}

fn newer(theirs: u16, ours: u16) -> Fault {
    Fault(format!("version {theirs} is newer than this program's {ours}"))
}

fn not_json(error: &serde_json::Error) -> Fault {
    Fault(error.to_string())
}

/// Turns a panic into a fault: plugin code may be wrong, the sequencer must go on.
pub fn catch<T>(run: impl FnOnce() -> T) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| Fault::of_panic(&*panic))
}
