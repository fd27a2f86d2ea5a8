//! A running program, seen from the process that started it.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};

use crate::family::Over;
use crate::os::process::ProcessId;
use crate::report::{Exit, Report};

/// A program under its shim. Dropping this lets go of the lifeline: the whole tree then ends by
/// itself, within its grace.
#[derive(Debug)]
pub struct Child {
    /// Writes to the program, if its stdin is a pipe.
    pub stdin: Option<ChildStdin>,
    /// Reads from the program, if its stdout is a pipe.
    pub stdout: Option<ChildStdout>,
    /// Reads from the program, if its stderr is a pipe.
    pub stderr: Option<ChildStderr>,
    pid: u32,
    id: Option<ProcessId>,
    shim: tokio::process::Child,
    reports: Lines<BufReader<OwnedReadHalf>>,
    /// Closing this half tells the shim to end the tree.
    lifeline: Option<OwnedWriteHalf>,
    reported: Option<Exit>,
    /// Comes when nothing is left of the tree, for a shim that cannot say so any more.
    over: Option<Over>,
}

/// What is heard of a program first.
pub(crate) enum FirstWord {
    Started,
    /// Another run of the effect is there; the process of its shim, if it is known.
    Waiting(Option<u32>),
    /// The lock has to be opened again.
    Stale,
    /// The system's answer.
    Failed(io::Error),
    /// The shim ended without a word.
    Silent(Exit),
}

impl Child {
    pub(crate) fn new(
        mut shim: tokio::process::Child,
        lifeline: UnixStream,
        family: Option<(ProcessId, Over)>,
    ) -> Self {
        let (id, over) = family.unzip();
        let (reports, lifeline) = lifeline.into_split();
        Self {
            stdin: shim.stdin.take(),
            stdout: shim.stdout.take(),
            stderr: shim.stderr.take(),
            pid: shim.id().unwrap_or_default(),
            id,
            shim,
            reports: BufReader::new(reports).lines(),
            lifeline: Some(lifeline),
            reported: None,
            over,
        }
    }

    /// The process id of the shim, above all of the program's processes.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The shim for good, as [`crate::Descent::Under`] names it; None without a home.
    pub fn id(&self) -> Option<ProcessId> {
        self.id
    }

    /// Waits until program, descendants and shim are gone; closes stdin first, so that a program
    /// that reads to the end comes to it. May be cancelled and called again.
    pub async fn wait(&mut self) -> Exit {
        self.stdin = None;
        while self.reported.is_none() {
            let Some(report) = self.report().await else { break };
            if let Report::Ended(exit) = report {
                self.reported = Some(exit);
            }
        }
        let shim = self.shim_exit().await;
        // A shim that was killed left its tree to us.
        if self.reported.is_none()
            && let Some(over) = &mut self.over
        {
            // Its sender is only dropped.
            let _ = over.await;
            self.over = None;
        }
        // It said nothing; then its own end is all there is to tell.
        self.reported.unwrap_or(shim)
    }

    /// Ends the tree, TERM first and KILL after the grace, and waits until all of it is gone.
    pub async fn stop(mut self) -> Exit {
        self.lifeline = None;
        self.wait().await
    }

    /// Whether the program runs, or what keeps it from it; after an error nothing is left.
    pub(crate) async fn first_word(&mut self) -> FirstWord {
        match self.report().await {
            Some(Report::Started) => return FirstWord::Started,
            Some(Report::Waiting(holder)) => {
                let holder = u32::try_from(holder).ok().filter(|pid| *pid > 0);
                return FirstWord::Waiting(holder);
            }
            Some(Report::Stale) => {
                self.shim_exit().await;
                return FirstWord::Stale;
            }
            Some(Report::Failed(number)) => {
                self.shim_exit().await;
                return FirstWord::Failed(io::Error::from_raw_os_error(number));
            }
            Some(Report::Ended(exit)) => self.reported = Some(exit),
            None => {}
        }
        self.lifeline = None;
        FirstWord::Silent(self.wait().await)
    }

    /// None when the shim closed its end: it is gone, or about to be.
    async fn report(&mut self) -> Option<Report> {
        let line = self.reports.next_line().await.ok().flatten()?;
        Report::parse(&line)
    }

    async fn shim_exit(&mut self) -> Exit {
        match self.shim.wait().await {
            Ok(status) => exit_of(status),
            Err(error) => {
                // Somebody else reaped it, so it is gone, and its status with it.
                tracing::warn!(pid = self.pid, %error, "the status of a shim was lost");
                Exit::Code(-1)
            }
        }
    }
}

pub(crate) fn exit_of(status: ExitStatus) -> Exit {
    let signal = status.signal().map(Exit::Signal);
    signal.unwrap_or_else(|| Exit::Code(status.code().unwrap_or(-1)))
}
