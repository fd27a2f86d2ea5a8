//! Real processes, ended in every way there is.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

mod detached;
mod ends;
mod homes;
mod limits;
mod locks;
mod marked;
mod peers;
mod programs;
mod root;

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ksi_process::Shim;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ksi-process-test-program");

/// Nothing here takes a tenth of this; it only keeps a broken test from hanging.
const PATIENCE: Duration = Duration::from_secs(20);

fn shim() -> Shim {
    Shim::new(PROGRAM)
}

/// A value for the marker variable that no other process bears.
fn new_marker() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("ksi-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A helper process that a test may kill; killed at the end in any case.
struct Helper {
    process: std::process::Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Helper {
    #[allow(clippy::disallowed_methods, reason = "the test plays what is above the daemon")]
    fn start(args: &[&str]) -> Self {
        let mut command = std::process::Command::new(PROGRAM);
        Self::run(command.args(args))
    }

    fn run(command: &mut std::process::Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    fn line(&mut self) -> String {
        self.lines.next().expect("the helper goes on").unwrap()
    }

    /// The next lines, whatever their order.
    fn sorted_lines(&mut self, count: usize) -> Vec<String> {
        let mut lines: Vec<_> = (0..count).map(|_| self.line()).collect();
        lines.sort();
        lines
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn bounded<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it ends")
}

/// The next lines of a child, whatever their order.
async fn sorted_lines(child: &mut ksi_process::Child, count: usize) -> Vec<String> {
    use tokio::io::AsyncBufReadExt;
    let mut lines = tokio::io::BufReader::new(child.stdout.as_mut().unwrap()).lines();
    let mut found = Vec::new();
    for _ in 0..count {
        found.push(lines.next_line().await.unwrap().expect("the child goes on"));
    }
    found.sort();
    found
}
