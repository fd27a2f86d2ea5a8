//! A running program, seen from the process that started it.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};

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
    shim: tokio::process::Child,
    reports: Lines<BufReader<OwnedReadHalf>>,
    /// Closing this half tells the shim to end the tree.
    lifeline: Option<OwnedWriteHalf>,
    reported: Option<Exit>,
}

impl Child {
    pub(crate) fn new(mut shim: tokio::process::Child, lifeline: UnixStream) -> Self {
        let (reports, lifeline) = lifeline.into_split();
        Self {
            stdin: shim.stdin.take(),
            stdout: shim.stdout.take(),
            stderr: shim.stderr.take(),
            pid: shim.id().unwrap_or_default(),
            shim,
            reports: BufReader::new(reports).lines(),
            lifeline: Some(lifeline),
            reported: None,
        }
    }

    /// The process id of the shim, above all of the program's processes.
    pub fn pid(&self) -> u32 {
        self.pid
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
        // A shim that was killed said nothing; then its own end is all there is to tell.
        self.reported.unwrap_or(shim)
    }

    /// Ends the tree, TERM first and KILL after the grace, and waits until all of it is gone.
    pub async fn stop(mut self) -> Exit {
        self.lifeline = None;
        self.wait().await
    }

    /// Whether the program runs: what the system said if not, the shim's end if it said nothing.
    pub(crate) async fn started(&mut self) -> Result<io::Result<()>, Exit> {
        match self.report().await {
            Some(Report::Started) => return Ok(Ok(())),
            Some(Report::Ended(exit)) => self.reported = Some(exit),
            Some(Report::Failed(number)) => {
                self.shim_exit().await;
                return Ok(Err(io::Error::from_raw_os_error(number)));
            }
            None => {}
        }
        self.lifeline = None;
        Err(self.wait().await)
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
