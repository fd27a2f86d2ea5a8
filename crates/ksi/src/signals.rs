//! The signals by which a command is asked to end.

use std::{future::poll_fn, io, process::ExitCode, task::Poll};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// A request to end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked(SignalKind);

impl Asked {
    /// As a shell tells that a signal ended a command.
    pub(crate) fn code(self) -> ExitCode {
        ExitCode::from(128_u8.saturating_add(self.0.as_raw_value() as u8))
    }

    /// By what it came, for a person.
    pub(crate) fn reason(self) -> &'static str {
        match self.0 {
            kind if kind == SignalKind::interrupt() => "interrupted at the terminal",
            kind if kind == SignalKind::hangup() => "the terminal was closed",
            _ => "the command was terminated",
        }
    }
}

/// Listens for them; from then on none ends the process by itself.
pub(crate) struct Signals(Vec<(SignalKind, Signal)>);

impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        let kinds = [SignalKind::hangup(), SignalKind::terminate(), SignalKind::interrupt()];
        let kinds = kinds.into_iter().filter(|kind| !is_ignored(*kind));
        kinds.map(|kind| Ok((kind, signal(kind)?))).collect::<io::Result<_>>().map(Signals)
    }

    /// The next one; those that came before are kept.
    pub(crate) async fn next(&mut self) -> Asked {
        poll_fn(|cx| {
            let mut all = self.0.iter_mut();
            let came =
                all.find_map(|(kind, signal)| signal.poll_recv(cx).is_ready().then_some(*kind));
            came.map_or(Poll::Pending, |kind| Poll::Ready(Asked(kind)))
        })
        .await
    }
}

/// Whether our caller wants this one ignored, as `nohup` does.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (kind.as_raw_value() - 1) & 1 == 1
}
