//! A real daemon with a home of its own, for one test.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use ksi_protocol::{Client, Pattern, Pushed, Subscription};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// How long anything may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A home without a daemon; everything is ended and removed with it.
pub(crate) struct Home(TempDir);

/// A running daemon in the foreground of the test.
pub(crate) struct Daemon {
    child: Child,
    stderr: UnboundedReceiver<String>,
    socket: PathBuf,
}

impl Home {
    pub(crate) fn new() -> Home {
        Home(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// `ksi` with an environment of its own.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = self.program(env!("CARGO_BIN_EXE_ksi"));
        command.args(args);
        command
    }

    /// `ksi`, run by another program.
    pub(crate) fn command_under(&self, program: &str, args: &[&str]) -> Command {
        let mut command = self.program(program);
        command.arg(env!("CARGO_BIN_EXE_ksi")).args(args);
        command
    }

    #[allow(clippy::disallowed_methods, reason = "a test starts programs as a shell would")]
    pub(crate) fn program(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("KSI_HOME", self.path()).env("HOME", self.path());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a command to its end.
    pub(crate) fn ksi(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that must succeed; its stdout.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.ksi(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ksi {args:?}: {}\n{stderr}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// A command that must succeed and print JSON.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    /// Starts the daemon and waits until it is ready.
    pub(crate) async fn daemon(&self) -> Daemon {
        let mut daemon = self.daemon_with(&[]);
        daemon.wait_for("ready").await;
        daemon
    }

    /// Starts the daemon with more variables, without waiting.
    pub(crate) fn daemon_with(&self, env: &[(&str, &str)]) -> Daemon {
        let mut command = self.command(&["start", "--foreground"]);
        let mut child = command.envs(env.iter().copied()).spawn().unwrap();
        let (lines, stderr) = unbounded_channel();
        let pipe = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in pipe.lines().map_while(Result::ok) {
                let _ = lines.send(line);
            }
        });
        Daemon { child, stderr, socket: self.path().join("run/daemon.sock") }
    }

    /// Writes a script for the scripted provider: the model's name, and the log of its calls.
    pub(crate) fn script(&self, text: &str) -> (String, PathBuf) {
        let (script, log) = (self.path().join("script.yaml"), self.path().join("calls.ndjson"));
        std::fs::write(&script, text.replace("$LOG", log.to_str().unwrap())).unwrap();
        (format!("scripted:{}", script.display()), log)
    }
}

impl Drop for Home {
    /// Ends a daemon that a command has put into the background.
    fn drop(&mut self) {
        let _ = self.ksi(&["stop"]);
    }
}

impl Daemon {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line on stderr that contains the text; the line.
    pub(crate) async fn wait_for(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        loop {
            match tokio::time::timeout(PATIENCE, self.stderr.recv()).await {
                Ok(Some(line)) if line.contains(text) => return line,
                Ok(Some(line)) => seen.push(line),
                _ => panic!("the daemon never said `{text}`; it said:\n{}", seen.join("\n")),
            }
        }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(&self.socket).await.unwrap()
    }

    /// How the daemon has ended, if it has.
    pub(crate) fn try_wait(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until the daemon has ended by itself.
    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }

    /// Kills the daemon as `kill -9` does.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A subscription to one pattern.
pub(crate) async fn subscribe(client: &Client, pattern: &str, since: Option<u64>) -> Subscription {
    client.subscribe(vec![Pattern::parse(pattern).unwrap()], since).await.unwrap()
}

/// The next event of this name.
pub(crate) async fn next_of(events: &mut Subscription, name: &str) -> Pushed {
    let next = async {
        loop {
            let event = events.next().await.expect("the daemon went away");
            if event.event == name {
                return event;
            }
        }
    };
    tokio::time::timeout(PATIENCE, next).await.unwrap_or_else(|_| panic!("no {name} came"))
}

/// An event's data.
pub(crate) fn data(event: &Pushed) -> Value {
    serde_json::from_str(event.data.get()).unwrap()
}
