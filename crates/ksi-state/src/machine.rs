//! Machines: how facts change a plugin's state, and what that state wants to run.

use std::{
    any::Any,
    collections::{BTreeSet, HashMap},
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    fact::{Fact, Millis, Record, Stamp},
    sequencer::PluginId,
};

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

/// What a fold says besides changing its state.
#[derive(Debug, Default)]
pub struct Out {
    touched: BTreeSet<String>,
}

impl Out {
    /// This key changed too, though the fact is about another.
    pub fn touch(&mut self, key: impl Into<String>) {
        self.touched.insert(key.into());
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
#[derive(Clone)]
pub struct AnyEffect(Arc<dyn ErasedEffect>);

trait ErasedEffect: Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn equals(&self, other: &dyn Any) -> bool;
    fn debug(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

impl<E: Effect> ErasedEffect for E {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn equals(&self, other: &dyn Any) -> bool {
        other.downcast_ref::<E>() == Some(self)
    }
    fn debug(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl AnyEffect {
    /// The effect, if it is of this type.
    pub fn get<E: Effect>(&self) -> Option<&E> {
        self.0.as_any().downcast_ref()
    }
}

impl PartialEq for AnyEffect {
    fn eq(&self, other: &Self) -> bool {
        self.0.equals(other.0.as_any())
    }
}

impl fmt::Debug for AnyEffect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.debug(f)
    }
}

/// What plugins want, each with the plugin's place.
pub type Wants = Vec<(PluginId, Want<AnyEffect>)>;

impl<E: Effect> Want<E> {
    pub(crate) fn erase(self) -> Want<AnyEffect> {
        match self {
            Want::Run { key, epoch, at, effect } => {
                Want::Run { key, epoch, at, effect: AnyEffect(Arc::new(effect)) }
            }
            Want::Stop { key } => Want::Stop { key },
        }
    }
}

type FoldFn = Box<
    dyn Fn(&mut dyn Any, Option<&dyn Any>, &Record, &mut Out) -> Result<(), Fault> + Send + Sync,
>;
type DriveFn = Box<dyn Fn(&dyn Any, Changed<'_>) -> Vec<Want<AnyEffect>> + Send + Sync>;

/// A plugin's state machine: its folds and its drive.
pub struct Machine {
    pub(crate) name: &'static str,
    pub(crate) init: fn() -> Box<dyn Any + Send>,
    #[cfg(any(test, feature = "testing"))]
    dump: fn(&dyn Any) -> serde_json::Result<serde_json::Value>,
    folds: HashMap<&'static str, Vec<FoldFn>>,
    drive: Option<DriveFn>,
}

impl Machine {
    /// A machine over this type of state.
    pub fn new<S: State>(name: &'static str) -> Self {
        Machine {
            name,
            init: || Box::new(S::default()),
            #[cfg(any(test, feature = "testing"))]
            dump: |state| serde_json::to_value(state.downcast_ref::<S>()),
            folds: HashMap::new(),
            drive: None,
        }
    }

    /// This fact changes the state so; pure, and never on values the machine did not make.
    pub fn fold<S: State, F: Fact>(
        &mut self,
        fold: impl Fn(&mut S, &F, &Stamp, &mut Out) -> Result<(), Fault> + Send + Sync + 'static,
    ) {
        let fold: FoldFn = Box::new(move |state, live, record, out| {
            let state =
                state.downcast_mut().ok_or_else(|| Fault("state of another type".into()))?;
            match live.and_then(<dyn Any>::downcast_ref::<F>) {
                Some(fact) => fold(state, fact, &record.stamp(), out),
                None => fold(state, &parse(record)?, &record.stamp(), out),
            }
        });
        self.folds.entry(F::NAME).or_default().push(fold);
    }

    /// What the state wants to run; pure.
    pub fn drive<S: State, E: Effect>(
        &mut self,
        drive: impl Fn(&S, Changed<'_>) -> Vec<Want<E>> + Send + Sync + 'static,
    ) {
        self.drive = Some(Box::new(move |state, changed| match state.downcast_ref() {
            Some(state) => drive(state, changed).into_iter().map(Want::erase).collect(),
            None => Vec::new(),
        }));
    }

    /// Folds one fact and collects the keys it changed; true if the machine folds it at all.
    pub(crate) fn apply(
        &self,
        state: &mut (dyn Any + Send),
        live: Option<&dyn Any>,
        record: &Record,
        keys: &mut BTreeSet<String>,
    ) -> Result<bool, Fault> {
        let Some(folds) = self.folds.get(record.name.as_ref()) else { return Ok(false) };
        let mut out = Out::default();
        for fold in folds {
            catch(|| fold(&mut *state, live, record, &mut out)).and_then(|result| result).map_err(
                |Fault(why)| Fault(format!("fact {} {}: {why}", record.seq, record.name)),
            )?;
        }
        keys.insert(record.subject.clone());
        keys.append(&mut out.touched);
        Ok(true)
    }

    pub(crate) fn wants(
        &self,
        state: &(dyn Any + Send),
        changed: Changed<'_>,
    ) -> Result<Vec<Want<AnyEffect>>, Fault> {
        match &self.drive {
            Some(drive) => catch(|| drive(state, changed)),
            None => Ok(Vec::new()),
        }
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn dump(&self, state: &(dyn Any + Send)) -> serde_json::Result<serde_json::Value> {
        (self.dump)(state)
    }
}

fn parse<F: Fact>(record: &Record) -> Result<F, Fault> {
    if record.version > F::VERSION {
        let (theirs, ours) = (record.version, F::VERSION);
        return Err(Fault(format!("version {theirs} is newer than this program's {ours}")));
    }
    serde_json::from_str(record.data.get()).map_err(|error| Fault(error.to_string()))
}

/// Turns a panic into a fault: plugin code may be wrong, the sequencer must go on.
fn catch<T>(run: impl FnOnce() -> T) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Fault(format!("panicked: {text}"))
    })
}
