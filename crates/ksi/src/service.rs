//! The service manager that has started the daemon, such as systemd: what it hands over, and what
//! it wants to be told.

use std::{io, os::unix::net::UnixListener, time::Duration};

use anyhow::{Context, bail};
use ksi_kernel::{Caller, Kernel};
use listenfd::ListenFd;
use sd_notify::NotifyState;
use serde_json::value::RawValue;

/// What a service manager has said in the environment; nothing when there is none.
pub(crate) struct Service {
    /// The socket that it listens on for us.
    listener: Option<UnixListener>,
    /// How long the daemon may be silent.
    watchdog: Option<Duration>,
    managed: bool,
}

impl Service {
    /// Reads the environment, and takes what is in it out of it; to be called before any thread
    /// runs.
    pub(crate) fn from_env() -> anyhow::Result<Service> {
        let managed = std::env::var_os("NOTIFY_SOCKET").is_some_and(|path| !path.is_empty());
        let mut passed = ListenFd::from_env();
        if passed.len() > 1 {
            bail!("{} sockets were handed over, and ksi listens on one", passed.len());
        }
        let listener = match passed.len() {
            0 => None,
            _ => passed.take_unix_listener(0).context("what was handed over is no Unix socket")?,
        };
        Ok(Service { listener, watchdog: sd_notify::watchdog_enabled(), managed })
    }

    /// Whether somebody else starts and restarts this daemon.
    pub(crate) fn manages(&self) -> bool {
        self.managed || self.listener.is_some()
    }

    /// The socket that was handed over, once.
    pub(crate) fn take_listener(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }

    /// The daemon answers; from now on the watchdog is told that it does.
    pub(crate) fn ready(&self, kernel: &Kernel) {
        notify(&[NotifyState::Ready, NotifyState::Status("answers on its socket")]);
        if let Some(patience) = self.watchdog {
            let (kernel, every) = (kernel.clone(), patience / 2);
            kernel.clone().tasks().spawn("watchdog", async move {
                tokio::select! {
                    () = kernel.ending().closing() => {}
                    () = watch(&kernel, every) => {}
                }
            });
        }
    }

    /// The configuration is read again while this runs.
    pub(crate) fn reloading<T>(&self, read: impl FnOnce() -> T) -> T {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(error) => not_told(&error),
        }
        let done = read();
        notify(&[NotifyState::Ready]);
        done
    }

    /// The daemon comes to its end.
    pub(crate) fn stopping(&self) {
        notify(&[NotifyState::Stopping, NotifyState::Status("finishing what runs")]);
    }
}

/// Says that the daemon is alive, as often as that is proved: a request was answered, and of what
/// was to be written something was, since the last time. One that cannot say so is restarted.
async fn watch(kernel: &Kernel, every: Duration) {
    let mut before = None;
    loop {
        let (last, durable) = kernel.position();
        let stuck = last > durable && before == Some(durable);
        before = Some(durable);
        let health = kernel.call(Caller::system(), "system:health", nothing());
        match tokio::time::timeout(every, health).await {
            Ok(Ok(_)) if !stuck => notify(&[NotifyState::Watchdog]),
            Ok(Ok(_)) => tracing::error!("the journal's disk has not written since {every:?}"),
            Ok(Err(error)) => tracing::error!(%error, "the daemon does not answer itself"),
            Err(_) => tracing::error!("the daemon does not answer itself within {every:?}"),
        }
        tokio::time::sleep(every).await;
    }
}

/// `{}`.
fn nothing() -> Box<RawValue> {
    RawValue::from_string("{}".to_owned()).unwrap_or_default()
}

/// Without a service manager this does nothing.
fn notify(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        not_told(&error);
    }
}

fn not_told(error: &io::Error) {
    tracing::warn!(%error, "the service manager cannot be told how the daemon is");
}
