//! The daemon put together.

use std::{
    fs::DirBuilder, os::unix::fs::DirBuilderExt, path::Path, process::ExitCode, sync::Arc,
    time::Duration,
};

use anyhow::Context;
use ksi_journal::SqliteJournal;
use ksi_kernel::{Clock, Kernel, Setup};
use ksi_plugins::Settings;
use ksi_process::{Readiness, Shim, lock};
use ksi_protocol::Paths;
use ksi_socket::{Admit, Server};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{admission, config::Config, fail::no_home, log::Log};

/// How long running work may take to finish when the daemon is asked to stop.
const GRACE: Duration = Duration::from_secs(30);

/// The journal's file in the state folder.
pub(crate) const JOURNAL: &str = "journal.db";

/// The log's file in the state folder, of a daemon in the background.
pub(crate) const LOG: &str = "daemon.log";

/// A snapshot is made whenever so many facts have come: so many a start folds in some 20 ms.
const SNAPSHOT_EVERY: u64 = 10_000;

/// Runs the daemon until it is told to stop.
pub(crate) async fn run() -> anyhow::Result<ExitCode> {
    let readiness = Readiness::from_env();
    let log = Log::start();
    match Daemon::start(&log).await {
        Ok(daemon) => {
            readiness.ready();
            daemon.run().await
        }
        Err(error) => {
            readiness.failed(&format!("{error:#}"));
            Err(error)
        }
    }
}

struct Daemon {
    kernel: Kernel,
    journal: Arc<SqliteJournal>,
    server: Server,
    admit: Admit,
    signals: Signals,
    /// Held as long as the process lives.
    _lock: lock::Lock,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

impl Daemon {
    async fn start(log: &Log) -> anyhow::Result<Daemon> {
        let signals = Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        };
        let paths = Paths::discover()?;
        let config = Config::read(&paths.config.join("config.toml"))?;
        for folder in [&paths.state, &paths.state.join("transcripts")] {
            private_folder(folder)?;
        }
        let lock = lock::Lock::acquire(&paths.lock)?;
        log.keep(&paths.state.join(LOG), config.log);
        let file = paths.state.join(JOURNAL);
        let opening = tokio::task::spawn_blocking(move || SqliteJournal::open(&file));
        let no_place = || format!("{} cannot keep locks of effects", paths.state.display());
        let shim = Shim::current()?.at_home(&paths.state).with_context(no_place)?;
        let mut plugins = ksi_plugins::all(settings(&paths, config, shim.clone()));
        let admit = admission::by(shim.clone());
        // Nothing starts before what a former daemon has left is gone.
        let ended = tokio::task::spawn_blocking(move || shim.end_leftovers()).await?;
        match ended.context("what a former daemon left cannot be looked for")? {
            0 => {}
            processes => tracing::warn!(processes, "ended what a former daemon had left"),
        }
        let journal = Arc::new(opening.await??);
        plugins.push(ksi_plugins::checkpoint::plugin(journal.clone()).into());
        let kernel = Kernel::start(Setup {
            plugins,
            journal: journal.clone(),
            clock: Clock::system(),
            snapshot_every: SNAPSHOT_EVERY,
        })?;
        for (what, why) in kernel.degraded() {
            tracing::error!(what, why, "degraded");
        }
        let server = Server::bind(&paths.socket)?;
        tracing::info!(socket = %paths.socket.display(), version = VERSION, "ready");
        Ok(Daemon { kernel, journal, server, admit, signals, _lock: lock })
    }

    async fn run(mut self) -> anyhow::Result<ExitCode> {
        let serve = self.server.run(self.kernel.clone(), self.admit);
        let serving = self.kernel.tasks().spawn("socket", serve);
        tokio::select! {
            () = self.kernel.ending().asked() => {}
            () = self.signals.next() => {}
        }
        tracing::info!("shutting down");
        tokio::select! {
            () = self.kernel.shutdown(GRACE) => {}
            () = self.signals.next() => {
                tracing::warn!("asked twice: ending at once");
                std::process::exit(i32::from(crate::fail::FAILED));
            }
        }
        drop(serving);
        let broken = self.kernel.ending().has_failed();
        if !broken {
            tokio::task::spawn_blocking(move || self.journal.tidy_up()).await?;
        }
        tracing::info!("ended");
        Ok(if broken { ExitCode::from(crate::fail::FAILED) } else { ExitCode::SUCCESS })
    }
}

pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

fn settings(paths: &Paths, config: Config, shim: Shim) -> Settings {
    Settings {
        version: ksi_plugins::version(VERSION),
        shim,
        default_model: config.model,
        models: paths.models.clone(),
        shared_models: paths.shared_models.clone(),
        transcripts: paths.state.join("transcripts"),
        patterns: paths.config.join("patterns"),
        permissions: paths.config.join("permissions"),
        socket: paths.socket.clone(),
        started: Clock::system().now(),
        local_idle_ms: config.local.idle_seconds.saturating_mul(1000),
    }
}

pub(crate) fn private_folder(path: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    let what = || format!("the folder {} cannot be made", path.display());
    Ok(made.map_err(|why| no_home(what(), &why))?)
}
