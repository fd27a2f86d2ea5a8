//! The daemon put together.

use std::{
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use ksi_journal::{Options, Retention, SqliteJournal};
use ksi_kernel::{Clock, Kernel, Setup};
use ksi_plugins::{
    Settings,
    config::{Config, ConfigFile, Live},
};
use ksi_process::{Filesystem, Readiness, Shim, lock};
use ksi_protocol::{Error, Paths};
use ksi_socket::Server;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{admission, fail::no_home, ground::Ground, log::Log, reach::Stage, service::Service};

/// The journal's file in the state folder.
pub(crate) const JOURNAL: &str = "journal.db";

/// The log's file in the state folder, of a daemon in the background.
pub(crate) const LOG: &str = "daemon.log";

/// A former daemon that was killed may take so long until its lock is free.
const DYING: Duration = Duration::from_secs(1);

/// Runs the daemon until it is told to stop.
pub(crate) async fn run(service: Service) -> anyhow::Result<ExitCode> {
    let readiness = Readiness::from_env();
    let log = Log::start();
    match Daemon::start(&log, service).await {
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
    live: Live,
    service: Service,
    ground: Ground,
    /// The log, and its file.
    log: (Log, PathBuf),
    signals: Signals,
    /// Held as long as the process lives.
    lock: lock::Lock,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
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
    async fn start(log: &Log, mut service: Service) -> anyhow::Result<Daemon> {
        let signals = Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        };
        let paths = Paths::discover()?;
        let live = Live::new(ConfigFile::new(paths.config.join("config.toml")))?;
        let config = live.get();
        state_folder(&paths)?;
        private_folder(&paths.state.join("transcripts"))?;
        let lock = lock::Lock::acquire_within(&paths.lock, DYING)?;
        Stage::Starting.note(&lock);
        log.keep(&paths.state.join(LOG), &config.log);
        let file = paths.state.join(JOURNAL);
        let options = Options { retention: retention(&config), ..Options::default() };
        let opening =
            tokio::task::spawn_blocking(move || SqliteJournal::open_with(&file, &options));
        let no_place = || format!("{} cannot keep locks of effects", paths.state.display());
        let shim = Shim::current()?.at_home(&paths.state).with_context(no_place)?;
        let mut plugins = ksi_plugins::all(settings(&paths, &config, shim.clone(), &service));
        let admit = admission::by(shim.clone());
        // Nothing starts before what a former daemon has left is gone.
        let ended = tokio::task::spawn_blocking(move || shim.end_leftovers()).await?;
        match ended.context("what a former daemon left cannot be looked for")? {
            0 => {}
            processes => tracing::warn!(processes, "ended what a former daemon had left"),
        }
        let journal = Arc::new(opening.await??);
        let ground = Ground::under(&paths.state.join(JOURNAL))?;
        plugins.push(ksi_plugins::checkpoint::plugin(journal.clone()).into());
        plugins.push(ksi_plugins::config::plugin(&live).into());
        let kernel = Kernel::start(Setup {
            plugins,
            journal: journal.clone(),
            clock: Clock::system(),
            snapshot_every: config.checkpoint.snapshot_every,
        })?;
        for (what, why) in kernel.degraded() {
            tracing::error!(what, why, "degraded");
        }
        let server = match service.take_listener() {
            Some(listener) => Server::take(listener, &paths.socket)?,
            None => Server::bind(&paths.socket)?,
        };
        Stage::Serving(paths.socket.clone()).note(&lock);
        tracing::info!(socket = %paths.socket.display(), version = VERSION, "ready");
        let log = (log.clone(), paths.state.join(LOG));
        kernel.tasks().spawn("socket", server.run(kernel.clone(), admit));
        Ok(Daemon { kernel, journal, live, service, ground, log, signals, lock })
    }

    async fn run(mut self) -> anyhow::Result<ExitCode> {
        self.service.ready(&self.kernel);
        self.until_asked().await;
        Stage::Ending.note(&self.lock);
        self.service.stopping();
        tracing::info!("shutting down");
        let grace = Duration::from_secs(self.live.get().shutdown.grace_seconds.into());
        tokio::select! {
            () = self.kernel.shutdown(grace) => {}
            () = self.signals.next() => {
                tracing::warn!("asked twice: ending at once");
                std::process::exit(i32::from(crate::fail::FAILED));
            }
        }
        let broken = self.kernel.ending().has_failed();
        if !broken {
            tokio::task::spawn_blocking(move || self.journal.tidy_up()).await?;
        }
        tracing::info!("ended");
        Ok(if broken { ExitCode::from(crate::fail::FAILED) } else { ExitCode::SUCCESS })
    }

    /// Returns once the daemon is to end; until then it reads its configuration when asked to.
    async fn until_asked(&mut self) {
        let (Signals { terminate, interrupt, hangup }, (log, file)) =
            (&mut self.signals, &self.log);
        let mut changes = self.live.changes();
        loop {
            tokio::select! {
                () = self.kernel.ending().asked() => return,
                () = self.ground.lost() => {
                    tracing::error!("the journal was removed, moved or replaced: nothing is kept");
                    return self.kernel.ending().fail();
                }
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                Ok(()) = changes.changed() => log.keep(file, &self.live.get().log),
                _ = hangup.recv() => {
                    let read = self.service.reloading(|| self.live.reload());
                    // Another program may have moved the log away.
                    log.reopen();
                    match read {
                        Ok(()) => tracing::info!("the configuration was read again"),
                        Err(error) => tracing::error!(%error, "what held before stays"),
                    }
                }
            }
        }
    }
}

pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

fn settings(paths: &Paths, config: &Config, shim: Shim, service: &Service) -> Settings {
    Settings {
        version: ksi_plugins::version(VERSION),
        managed: service.manages(),
        shim,
        default_model: config.model.clone(),
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

fn retention(config: &Config) -> Retention {
    const DAY_MS: u64 = 24 * 60 * 60 * 1000;
    let ksi_plugins::config::Journal { keep_days, keep_bytes } = config.journal;
    Retention { age_ms: u64::from(keep_days) * DAY_MS, bytes: keep_bytes }
}

/// Makes the folder where all is kept, on a disk of this machine.
pub(crate) fn state_folder(paths: &Paths) -> anyhow::Result<()> {
    let place = Filesystem::of(&paths.state, &ksi_plugins::mounts());
    if let Some(place) = place.filter(Filesystem::is_remote) {
        let folder = paths.state.display();
        return Err(Error::unavailable(format!(
            "{folder} is on {place}, where neither locks nor the journal can be trusted; \
             set KSI_HOME or XDG_STATE_HOME to a folder on a disk of this machine"
        ))
        .retryable(false)
        .into());
    }
    private_folder(&paths.state)
}

pub(crate) fn private_folder(path: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    let what = || format!("the folder {} cannot be made", path.display());
    Ok(made.map_err(|why| no_home(what(), &why))?)
}
