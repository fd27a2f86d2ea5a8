//! Models: the files of local models, and how they come here.

mod error;
mod growth;
mod pip;
mod pull;
mod source;
mod state;
mod wheel;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ksi_kernel::{Ctx, Error, Event, Fact, Plugin, Result};
pub use pip::Patience;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
pub use source::Source;
use state::Phase;
pub use state::{Models, Progress, PullFailed, PullPhase, Pulled, Removed, Requested};

use crate::Settings;

/// How a model is fetched.
#[derive(Debug, Clone)]
pub struct Fetch {
    /// What, and from where.
    pub source: Source,
    /// How long nothing may happen.
    pub patience: Patience,
    /// More variables for pip's environment.
    pub environment: BTreeMap<OsString, OsString>,
}

impl Default for Fetch {
    fn default() -> Self {
        let patience =
            Patience { first_byte: Duration::from_secs(15), stall: Duration::from_secs(60) };
        Fetch { source: Source::smollm2(), patience, environment: BTreeMap::new() }
    }
}

const PROGRESS: &str = "model:progress";

/// The plugin: `model:pull list`.
pub fn plugin(settings: Arc<Settings>) -> Plugin<Models> {
    plugin_with(settings, Fetch::default())
}

/// The plugin, with another model to fetch or another way to do it.
pub fn plugin_with(settings: Arc<Settings>, fetch: Fetch) -> Plugin<Models> {
    let fetch = Arc::new(fetch);
    let both = (settings.clone(), fetch.clone());
    let (pulling, listing) = (both.clone(), both);
    Plugin::new("model")
        .on("model:pull", move |cx, req| {
            let (settings, fetch) = pulling.clone();
            pull_model(settings, fetch, cx, req)
        })
        .on("model:list", move |cx, req| {
            let (settings, fetch) = listing.clone();
            list(settings, fetch, cx, req)
        })
        .fact::<Requested>()
        .fact::<Pulled>()
        .fact::<PullFailed>()
        .fact::<Removed>()
        .signal::<Progress>(PROGRESS)
        .fold(Models::requested)
        .fold(Models::pulled)
        .fold(Models::pull_failed)
        .fold(Models::removed)
        .drive(Models::wanted, move |cx, name, attempt, state::Pull| {
            pull::perform(settings.clone(), fetch.clone(), cx, name, attempt)
        })
}

/// Fetch a model's file unless it is here; answers when it is
#[derive(Debug, Deserialize, JsonSchema)]
struct PullModel {
    /// Its name; none means `smollm2-135m`.
    #[serde(default)]
    name: Option<String>,
}

/// The models that can be fetched, and which are here
#[derive(Debug, Deserialize, JsonSchema)]
struct List {}

/// A model's file.
#[derive(Debug, Serialize, JsonSchema)]
struct Here {
    name: String,
    path: String,
    bytes: u64,
}

/// One line of the list of models.
#[derive(Debug, Serialize, JsonSchema)]
struct Line {
    name: String,
    /// `ready`, `pulling`, `failed` or `missing`.
    status: &'static str,
    path: Option<String>,
    bytes: u64,
    /// Why the last pull failed.
    error: Option<String>,
}

/// The file of a local model: `local`, or `local:/path.gguf`.
pub fn find(settings: &Settings, model: &str) -> Result<PathBuf> {
    match model.split_once(':') {
        None if model == "local" => {
            let source = Source::smollm2();
            present(settings, &source).ok_or_else(|| {
                Error::not_found(format!("the model {} is not on this machine yet", source.name))
                    .hint("`ksi model pull` fetches it")
            })
        }
        Some(("local", path)) => check_gguf(Path::new(path)),
        _ => Err(Error::bad_params(format!("`{model}` is no local model"))
            .hint("`local`, or `local:/path.gguf` for a file of your own")),
    }
}

fn check_gguf(path: &Path) -> Result<PathBuf> {
    let shown = path.display();
    let wrong = |why: String| {
        Error::bad_params(format!("the model file {shown} cannot be used: {why}"))
            .at("model")
            .hint("`local:` wants the absolute path of a GGUF file")
    };
    if !path.is_absolute() {
        return Err(wrong("the path must be absolute".into()));
    }
    // Of a pipe nothing would come, and whoever waits for it would wait for ever.
    let kind = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?;
    if !kind.is_file() {
        return Err(wrong("this is no file".into()));
    }
    let mut magic = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    match read {
        Ok(()) if &magic == b"GGUF" => Ok(path.to_owned()),
        Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => {
            Err(wrong(error.to_string()))
        }
        _ => Err(wrong("this is no GGUF file".into())),
    }
}

/// Where the whole file lies: fetched by us, or by another of this user's programs.
fn present(settings: &Settings, source: &Source) -> Option<PathBuf> {
    let folders = [Some(&settings.models), settings.shared_models.as_ref()];
    let paths = folders.into_iter().flatten().map(|folder| folder.join(&source.file));
    paths.into_iter().find(|path| pull::is_complete(path, source))
}

async fn pull_model(
    settings: Arc<Settings>,
    fetch: Arc<Fetch>,
    cx: Ctx<Models>,
    req: PullModel,
) -> Result<Here> {
    let Source { name, bytes, .. } = fetch.source.clone();
    if let Some(other) = req.name.filter(|other| *other != name) {
        let why = format!("there is no model `{other}` to fetch");
        return Err(Error::not_found(why).at("name").hint(format!("there is `{name}`")));
    }
    if let Some(path) = present(&settings, &fetch.source) {
        return Ok(Here { name, path: path.display().to_string(), bytes });
    }
    let mut ends = cx.listen(&[Pulled::NAME, PullFailed::NAME])?;
    let attempt = cx.decide(|state, _| Ok(state.request(&name))).await?;
    let ours = |event: &Event| ending(event).filter(|end| end.attempt() == attempt);
    match ends.until(ours).await? {
        Ending::Pulled(Pulled { name, path, bytes, .. }) => Ok(Here { name, path, bytes }),
        Ending::Failed(PullFailed { code, error, hint, .. }) => {
            Err(Error { hint, ..Error::new(code, error).retryable(false) })
        }
    }
}

/// How a pull ended.
enum Ending {
    Pulled(Pulled),
    Failed(PullFailed),
}

impl Ending {
    fn attempt(&self) -> u64 {
        match self {
            Ending::Pulled(pulled) => pulled.attempt,
            Ending::Failed(failed) => failed.attempt,
        }
    }
}

fn ending(event: &Event) -> Option<Ending> {
    match event.name() {
        Pulled::NAME => event.parse().map(Ending::Pulled).ok(),
        _ => event.parse().map(Ending::Failed).ok(),
    }
}

async fn list(
    settings: Arc<Settings>,
    fetch: Arc<Fetch>,
    cx: Ctx<Models>,
    _: List,
) -> Result<Vec<Line>> {
    let Source { name, bytes, .. } = fetch.source.clone();
    let phase = cx.read(|state| state.phase(&name).cloned()).await?;
    let path = present(&settings, &fetch.source).map(|path| path.display().to_string());
    let (status, error) = match (&path, phase) {
        (Some(_), _) => ("ready", None),
        (None, Some(Phase::Pulling)) => ("pulling", None),
        (None, Some(Phase::Failed { error, .. })) => ("failed", Some(error)),
        (None, _) => ("missing", None),
    };
    Ok(vec![Line { name, status, path, bytes, error }])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(folder: &Path) -> Settings {
        Settings {
            version: "0",
            managed: false,
            shim: ksi_process::Shim::new("/nowhere"),
            default_model: None,
            models: folder.join("models"),
            shared_models: Some(folder.join("shared")),
            transcripts: folder.join("transcripts"),
            patterns: folder.join("patterns"),
            permissions: folder.join("permissions"),
            socket: folder.join("socket"),
            started: ksi_kernel::Millis(0),
            local_idle_ms: 0,
        }
    }

    /// A file of the model's length that takes no room.
    fn put(folder: &Path, bytes: u64) -> PathBuf {
        std::fs::create_dir_all(folder).unwrap();
        let path = folder.join(Source::smollm2().file);
        File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }

    #[test]
    fn local_is_our_own_file_and_else_the_shared_one() {
        let home = tempfile::tempdir().unwrap();
        let (settings, bytes) = (settings(home.path()), Source::smollm2().bytes);
        let error = find(&settings, "local").unwrap_err();
        assert!(error.hint.unwrap().contains("ksi model pull"));
        let shared = put(&home.path().join("shared"), bytes);
        assert_eq!(find(&settings, "local").unwrap(), shared);
        let own = put(&home.path().join("models"), bytes - 1);
        assert_eq!(find(&settings, "local").unwrap(), shared, "half a file is none");
        File::options().write(true).open(&own).unwrap().set_len(bytes).unwrap();
        assert_eq!(find(&settings, "local").unwrap(), own);
    }

    #[test]
    fn a_file_of_ones_own_must_be_gguf() {
        let home = tempfile::tempdir().unwrap();
        let settings = settings(home.path());
        let path = home.path().join("x.gguf");
        let model = format!("local:{}", path.display());
        assert!(find(&settings, &model).unwrap_err().message.contains("No such file"));
        std::fs::write(&path, "GG").unwrap();
        assert!(find(&settings, &model).unwrap_err().message.contains("no GGUF file"));
        std::fs::write(&path, "GGUF and more").unwrap();
        assert_eq!(find(&settings, &model).unwrap(), path);
        assert!(find(&settings, "local:x.gguf").unwrap_err().message.contains("absolute"));
        assert!(find(&settings, "gpt").unwrap_err().message.contains("no local model"));
    }
}
