//! The state: which models were asked for, and what came of it. All pure.

use std::{borrow::Cow, collections::BTreeMap};

use ksi_kernel::{Changed, Code, Fact, Facts, Fault, Millis, Out, Stamp, Want};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// All models that were ever asked for, by name.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Models {
    pub(super) models: BTreeMap<String, Model>,
}

/// One model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Model {
    /// The last pull's number, which is also its epoch.
    pub(super) attempt: u64,
    pub(super) phase: Phase,
}

/// How far a model's pull is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Phase {
    Pulling,
    Pulled,
    Failed { error: String, hint: Option<String> },
    Removed,
}

/// A model is to be fetched
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Requested {
    /// Its name.
    pub name: String,
    /// Which pull of this model, from 1.
    pub attempt: u64,
}

/// A model's file is here, complete and checked
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Pulled {
    /// Its name.
    pub name: String,
    /// Which pull of this model, from 1.
    pub attempt: u64,
    /// Its file.
    pub path: String,
    /// The file's length.
    pub bytes: u64,
    /// The file's SHA-256, in hexadecimal.
    pub sha256: String,
}

/// A model could not be fetched
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct PullFailed {
    /// Its name.
    pub name: String,
    /// Which pull of this model, from 1.
    pub attempt: u64,
    /// What kind of failure it was.
    #[serde(default = "unavailable")]
    #[schemars(with = "String")]
    pub code: Code,
    /// What failed and why.
    pub error: String,
    /// What to try.
    pub hint: Option<String>,
}

/// What every failure was before they were told apart.
fn unavailable() -> Code {
    Code::Unavailable
}

/// The file of a model that was here is gone
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Removed {
    /// Its name.
    pub name: String,
}

/// How a pull goes on
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// The model's name.
    pub name: String,
    /// How many bytes of the download are here.
    pub bytes: u64,
    /// About how many there will be.
    pub total: u64,
    /// What is being done.
    pub phase: PullPhase,
}

/// What a pull does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PullPhase {
    /// Another daemon pulls it.
    Waiting,
    /// Bytes come.
    Downloading,
    /// The file is unpacked and its checksum compared.
    Checking,
    /// It is here.
    Ready,
}

impl Fact for Requested {
    const NAME: &'static str = "model:requested";

    fn subject(&self) -> Cow<'_, str> {
        (&self.name).into()
    }
}

impl Fact for Pulled {
    const NAME: &'static str = "model:pulled";

    fn subject(&self) -> Cow<'_, str> {
        (&self.name).into()
    }
}

impl Fact for PullFailed {
    const NAME: &'static str = "model:pull_failed";

    fn subject(&self) -> Cow<'_, str> {
        (&self.name).into()
    }
}

impl Fact for Removed {
    const NAME: &'static str = "model:removed";

    fn subject(&self) -> Cow<'_, str> {
        (&self.name).into()
    }
}

/// The one thing a model can want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pull;

type Folded = Result<(), Fault>;

impl Models {
    pub(super) fn phase(&self, name: &str) -> Option<&Phase> {
        self.models.get(name).map(|model| &model.phase)
    }

    /// Asks for the model unless it is under way; one that was here once is gone. Also answers
    /// which pull it will be.
    pub(super) fn request(&self, name: &str) -> (Facts, u64) {
        let last = self.models.get(name).map_or(0, |model| model.attempt);
        let (name, attempt) = (name.to_owned(), last + 1);
        match self.phase(&name) {
            Some(Phase::Pulling) => (Facts::none(), last),
            Some(Phase::Pulled) => {
                let removed = Removed { name: name.clone() };
                (Facts::one(removed).and(Requested { name, attempt }), attempt)
            }
            Some(Phase::Failed { .. } | Phase::Removed) | None => {
                (Facts::one(Requested { name, attempt }), attempt)
            }
        }
    }

    pub(super) fn requested(&mut self, fact: &Requested, _: &Stamp, _: &mut Out) -> Folded {
        let model = Model { attempt: fact.attempt, phase: Phase::Pulling };
        self.models.insert(fact.name.clone(), model);
        Ok(())
    }

    pub(super) fn pulled(&mut self, fact: &Pulled, _: &Stamp, _: &mut Out) -> Folded {
        self.turn(&fact.name, Phase::Pulled)
    }

    pub(super) fn pull_failed(&mut self, fact: &PullFailed, _: &Stamp, _: &mut Out) -> Folded {
        let PullFailed { error, hint, .. } = fact.clone();
        self.turn(&fact.name, Phase::Failed { error, hint })
    }

    pub(super) fn removed(&mut self, fact: &Removed, _: &Stamp, _: &mut Out) -> Folded {
        self.turn(&fact.name, Phase::Removed)
    }

    fn turn(&mut self, name: &str, phase: Phase) -> Folded {
        let model = self.models.get_mut(name);
        model.ok_or_else(|| Fault(format!("`{name}` was never asked for")))?.phase = phase;
        Ok(())
    }

    pub(super) fn wanted(&self, changed: Changed<'_>) -> Vec<Want<Pull>> {
        let run = |name: &String| {
            let model = self.models.get(name)?;
            let wanted = model.phase == Phase::Pulling;
            let (key, epoch) = (name.clone(), model.attempt);
            wanted.then_some(Want::Run { key, epoch, at: Millis(0), effect: Pull })
        };
        match changed {
            Changed::All => self.models.keys().filter_map(run).collect(),
            Changed::Keys(keys) => {
                let stop = |key: &String| Want::Stop { key: key.clone() };
                keys.iter().map(|key| run(key).unwrap_or_else(|| stop(key))).collect()
            }
        }
    }
}
