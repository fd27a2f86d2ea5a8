//! What KSI does: one module per plugin.

use std::{path::PathBuf, sync::Arc};

use ksi_kernel::{AnyPlugin, Millis};
use ksi_process::Shim;

pub mod checkpoint;
pub mod config;
#[cfg(feature = "testing")]
pub mod launch;
mod library;
pub mod model;
pub mod monitor;
pub mod orchestration;
pub mod outside;
pub mod permission;
pub mod state;
pub mod system;
pub mod work;

/// What the plugins need to know of the machine and its owner's wishes.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The program's version.
    pub version: &'static str,
    /// Whether a service manager starts and restarts the daemon.
    pub managed: bool,
    /// When the daemon started.
    pub started: Millis,
    /// This program, under which all children run; some are it themselves under a hidden verb.
    pub shim: Shim,
    /// The model to use when a request names none, from the config.
    pub default_model: Option<String>,
    /// Where downloaded models are kept.
    pub models: PathBuf,
    /// Models that others of this user have downloaded, read but not written.
    pub shared_models: Option<PathBuf>,
    /// Where transcripts of orchestrations are written.
    pub transcripts: PathBuf,
    /// Where people put patterns of their own.
    pub patterns: PathBuf,
    /// Where people put permission profiles of their own.
    pub permissions: PathBuf,
    /// The daemon's socket, for children that speak with it.
    pub socket: PathBuf,
    /// How long the local model stays loaded with nothing to do, in milliseconds.
    pub local_idle_ms: u64,
}

/// All plugins but [`checkpoint`], which needs the journal, in the order in which they fold.
pub fn all(settings: Settings) -> Vec<AnyPlugin> {
    let settings = Arc::new(settings);
    let for_tests = for_tests(&settings);
    let outside = outside::Outside::default();
    let plugins: [AnyPlugin; 8] = [
        system::plugin(settings.clone(), outside.clone()).into(),
        permission::plugin(&settings).into(),
        monitor::plugin().into(),
        state::plugin().into(),
        model::plugin(settings.clone()).into(),
        work::plugin(settings.clone()).into(),
        orchestration::plugin(settings).into(),
        outside::plugin(&outside).into(),
    ];
    plugins.into_iter().chain(for_tests).collect()
}

/// The version to say, which a test may choose.
#[cfg(feature = "testing")]
pub fn version(own: &'static str) -> &'static str {
    std::env::var("KSI_TEST_VERSION").map_or(own, |text| &*text.leak())
}

/// The version to say.
#[cfg(not(feature = "testing"))]
pub fn version(own: &'static str) -> &'static str {
    own
}

/// The table of what is mounted, which a test may choose.
#[cfg(feature = "testing")]
pub fn mounts() -> PathBuf {
    std::env::var_os("KSI_TEST_MOUNTS").map_or(MOUNTS.into(), PathBuf::from)
}

/// The table of what is mounted.
#[cfg(not(feature = "testing"))]
pub fn mounts() -> PathBuf {
    MOUNTS.into()
}

const MOUNTS: &str = "/proc/self/mountinfo";

/// What tests add, when they ask for it.
#[cfg(feature = "testing")]
fn for_tests(settings: &Arc<Settings>) -> Option<AnyPlugin> {
    std::env::var_os("KSI_LAUNCH").map(|_| launch::plugin(settings.clone()).into())
}

#[cfg(not(feature = "testing"))]
fn for_tests(_: &Arc<Settings>) -> Option<AnyPlugin> {
    None
}
