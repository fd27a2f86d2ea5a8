//! Config: one file, read as a whole or not at all, and what holds of it now.
#![allow(clippy::unused_async, reason = "handlers are async, also those that need not wait")]

mod file;
mod settings;
mod value;

use std::sync::Arc;

use ksi_kernel::{Code, Ctx, Error, Plugin, Result};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

pub use file::{ConfigError, ConfigFile, Loaded, Source};
pub use settings::{Config, Journal, Log, reference, variable, waits_for_start};

/// The configuration of a running daemon; cloning it makes another handle to it.
#[derive(Clone)]
pub struct Live(Arc<Inner>);

struct Inner {
    file: ConfigFile,
    loaded: watch::Sender<Loaded>,
    /// Held while the file is changed, so that of two changes none is lost.
    changing: Mutex<()>,
}

impl Live {
    /// What the file says now.
    pub fn new(file: ConfigFile) -> Result<Live, ConfigError> {
        let loaded = watch::Sender::new(file.load()?);
        Ok(Live(Arc::new(Inner { file, loaded, changing: Mutex::default() })))
    }

    /// What holds.
    pub fn get(&self) -> Config {
        self.0.loaded.borrow().config.clone()
    }

    /// Reads the file again; when it is broken, what held before stays.
    pub fn reload(&self) -> Result<(), ConfigError> {
        self.change(ConfigFile::load)
    }

    /// Tells of every change from now on.
    pub fn changes(&self) -> watch::Receiver<Loaded> {
        self.0.loaded.subscribe()
    }

    fn change(
        &self,
        change: impl FnOnce(&ConfigFile) -> Result<Loaded, ConfigError>,
    ) -> Result<(), ConfigError> {
        let _changing = self.0.changing.lock();
        let loaded = change(&self.0.file)?;
        self.0.loaded.send_replace(loaded);
        Ok(())
    }
}

/// The plugin: `config:get set list reload backup rollback`.
pub fn plugin(live: &Live) -> Plugin<()> {
    let [get, set, list, reload, backup, rollback] = std::array::from_fn(|_| live.clone());
    Plugin::new("config")
        .on("config:get", move |_: Ctx<()>, req| {
            let got = get_one(&get, &req);
            async { got }
        })
        .on("config:set", move |cx, req: Set| {
            let key = req.key.clone();
            changing(set.clone(), cx, Some(key), move |file| file.set(&req.key, &text(&req)?))
        })
        .on("config:list", move |_: Ctx<()>, _: List| {
            let listed = list_all(&list);
            async { Ok(listed) }
        })
        .on("config:reload", move |cx, _: Reload| {
            changing(reload.clone(), cx, None, ConfigFile::load)
        })
        .on("config:backup", move |_: Ctx<()>, _: Backup| {
            let live = backup.clone();
            async move {
                let path = blocking(move || live.0.file.back_up()).await?;
                Ok(BackedUp { status: "backed up", path: path.display().to_string() })
            }
        })
        .on("config:rollback", move |cx, _: Rollback| {
            changing(rollback.clone(), cx, None, ConfigFile::roll_back)
        })
        .signal::<Changed>("config:changed")
}

/// One setting and where it comes from
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(example = serde_json::json!({ "key": "local.idle_seconds" }))]
struct Get {
    /// Such as `local.idle_seconds`.
    key: String,
}

/// Change a setting in the file, which keeps its comments
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(example = serde_json::json!({ "key": "local.idle_seconds", "value": 120 }))]
struct Set {
    /// Such as `local.idle_seconds`.
    key: String,
    /// A text or a number.
    value: Value,
}

/// All settings and where they come from
#[derive(Debug, Deserialize, JsonSchema)]
struct List {}

/// Read the file again; when it is broken, what held before stays
#[derive(Debug, Deserialize, JsonSchema)]
struct Reload {}

/// Keep a copy of the file, for `config:rollback`
#[derive(Debug, Deserialize, JsonSchema)]
struct Backup {}

/// Bring back the file as it was before the last `config:set`, or at the last `config:backup`
#[derive(Debug, Deserialize, JsonSchema)]
struct Rollback {}

/// The configuration has changed
#[derive(Debug, Serialize, JsonSchema)]
struct Changed {
    /// The keys whose values are others now.
    keys: Vec<String>,
}

/// A setting.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Setting {
    /// Such as `local.idle_seconds`.
    pub key: String,
    /// None where none was chosen.
    pub value: Value,
    /// `default`, `file`, or the variable of the environment.
    pub source: String,
    /// `at once`, or `from the next start`.
    pub holds: &'static str,
}

/// All settings.
#[derive(Debug, Serialize, JsonSchema)]
struct Settings {
    path: String,
    settings: Vec<Setting>,
}

/// What has changed.
#[derive(Debug, Serialize, JsonSchema)]
struct Applied {
    status: &'static str,
    /// The keys whose values are others now.
    changed: Vec<String>,
    /// Of these the ones that hold from the next start on.
    from_next_start: Vec<String>,
    /// The variable that is stronger than what was set.
    #[serde(skip_serializing_if = "Option::is_none")]
    overridden_by: Option<String>,
}

/// Where the copy is.
#[derive(Debug, Serialize, JsonSchema)]
struct BackedUp {
    status: &'static str,
    path: String,
}

/// Every setting of a configuration.
pub fn settings_of(loaded: &Loaded) -> Vec<Setting> {
    let setting = |(key, value): (String, Value)| Setting {
        source: match loaded.sources.get(&key) {
            None => "default".to_owned(),
            Some(Source::File) => "file".to_owned(),
            Some(Source::Variable(name)) => name.clone(),
        },
        holds: if waits_for_start(&key) { "from the next start" } else { "at once" },
        key,
        value,
    };
    loaded.config.entries().into_iter().map(setting).collect()
}

fn list_all(live: &Live) -> Settings {
    let path = live.0.file.path().display().to_string();
    Settings { path, settings: settings_of(&live.0.loaded.borrow()) }
}

fn get_one(live: &Live, req: &Get) -> Result<Setting> {
    let mut all = list_all(live).settings.into_iter();
    let found = all.find(|setting| setting.key == req.key);
    found.ok_or_else(|| refused(&ConfigError::Key { key: req.key.clone() }))
}

/// Changes the configuration and says what became of it.
async fn changing(
    live: Live,
    cx: Ctx<()>,
    set: Option<String>,
    change: impl FnOnce(&ConfigFile) -> Result<Loaded, ConfigError> + Send + 'static,
) -> Result<Applied> {
    let before = live.get().entries();
    let changing = live.clone();
    blocking(move || changing.change(change)).await?;
    let now = live.get().entries();
    let pairs = now.into_iter().zip(before);
    let changed: Vec<_> =
        pairs.filter(|(now, before)| now != before).map(|((key, _), _)| key).collect();
    let from_next_start = changed.iter().filter(|key| waits_for_start(key)).cloned().collect();
    if !changed.is_empty() {
        cx.signal("config:changed", &Changed { keys: changed.clone() });
    }
    let source = set.and_then(|key| live.0.loaded.borrow().sources.get(&key).cloned());
    let overridden_by = match source {
        Some(Source::Variable(name)) => Some(name),
        _ => None,
    };
    Ok(Applied { status: "applied", changed, from_next_start, overridden_by })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ConfigError> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|_| Error::internal("the configuration's file panicked"))?;
    done.map_err(|error| refused(&error))
}

fn refused(error: &ConfigError) -> Error {
    let (code, at) = match error {
        ConfigError::Key { .. } => (Code::BadParams, Some("key")),
        ConfigError::Value { .. } => (Code::BadParams, Some("value")),
        ConfigError::File { .. } => (Code::BadParams, None),
        ConfigError::NoBackup(_) => (Code::NotFound, None),
        ConfigError::System { .. } => (Code::Unavailable, None),
    };
    let refused = Error::new(code, error.to_string()).retryable(false);
    let refused = match at {
        Some(at) => refused.at(at),
        None => refused,
    };
    match error {
        ConfigError::File { .. } => refused.hint("mend the file; what held before stays"),
        _ => refused,
    }
}

/// A value as it is typed.
fn text(Set { key, value }: &Set) -> Result<String, ConfigError> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(_) => Ok(value.to_string()),
        other => {
            let (what, expected) = (key.clone(), "a text or a number".to_owned());
            Err(ConfigError::Value { what, value: other.to_string(), expected })
        }
    }
}
