//! A kernel behind a socket, and raw connections to it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use ksi_kernel::{Clock, Kernel, Setup};
use ksi_socket::Server;
use ksi_state::testing::memory::MemoryJournal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use crate::plugin::{Gates, plugin};

/// How long anything may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct TestServer {
    pub(crate) kernel: Kernel,
    pub(crate) gates: Gates,
    pub(crate) journal: MemoryJournal,
    pub(crate) socket: PathBuf,
    pub(crate) accepting: tokio::task::JoinHandle<()>,
    _folder: TempDir,
}

impl TestServer {
    /// Must be called on a runtime.
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("run/daemon.sock");
        let (gates, journal) = (Gates::default(), MemoryJournal::default());
        let kernel = Kernel::start(Setup {
            plugins: vec![plugin(&gates).into()],
            journal: Arc::new(journal.clone()),
            clock: Clock::system(),
            snapshot_every: 0,
        });
        let kernel = kernel.unwrap();
        let server = Server::bind(&socket).unwrap();
        let accepting = kernel
            .tasks()
            .spawn("socket", server.run(kernel.clone(), Arc::new(ksi_socket::same_user)));
        TestServer { kernel, gates, journal, socket, accepting, _folder: folder }
    }

    pub(crate) async fn connect(&self) -> Wire {
        Wire::new(UnixStream::connect(&self.socket).await.unwrap())
    }

    /// Ends the daemon at once, as far as it lets itself be ended.
    pub(crate) async fn shut_down(&self) {
        patiently(self.kernel.shutdown(Duration::ZERO)).await;
    }

    /// Waits until a task of this name runs.
    pub(crate) async fn until_task(&self, name: &str) {
        patiently(async {
            while !self.kernel.tasks().names().iter().any(|running| running == name) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Waits until so many tasks run.
    pub(crate) async fn until_tasks(&self, count: usize) {
        patiently(async {
            while self.kernel.tasks().count() != count {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

/// One connection, seen from the client's side.
pub(crate) struct Wire {
    pub(crate) input: BufReader<OwnedReadHalf>,
    pub(crate) output: Option<OwnedWriteHalf>,
}

impl Wire {
    fn new(stream: UnixStream) -> Self {
        let (input, output) = stream.into_split();
        Wire { input: BufReader::new(input), output: Some(output) }
    }

    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        let output = self.output.as_mut().expect("the input has not ended");
        patiently(output.write_all(bytes)).await.unwrap();
    }

    pub(crate) async fn send(&mut self, request: &Value) {
        self.send_bytes(format!("{request}\n").as_bytes()).await;
    }

    /// The next line; none at the end.
    pub(crate) async fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        let read = patiently(self.input.read_line(&mut line)).await.unwrap();
        (read > 0).then(|| serde_json::from_str(&line).unwrap())
    }

    pub(crate) async fn next(&mut self) -> Value {
        self.line().await.expect("the connection goes on")
    }

    /// Sends one request and takes the next line for its answer.
    pub(crate) async fn ask(&mut self, event: &str, data: Value) -> Value {
        self.send(&json!({ "event": event, "data": data })).await;
        let answer = self.next().await;
        assert_eq!(answer["event"], event, "{answer}");
        answer
    }

    /// Sends one request that must succeed.
    pub(crate) async fn data(&mut self, event: &str, data: Value) -> Value {
        let mut answer = self.ask(event, data).await;
        assert!(answer.get("error").is_none(), "{answer}");
        answer["data"].take()
    }

    pub(crate) async fn subscribe(&mut self, patterns: &[&str]) -> Value {
        self.data("monitor:subscribe", json!({ "event_patterns": patterns })).await
    }

    /// Ends the input of the server, not its output.
    pub(crate) fn end_input(&mut self) {
        self.output = None;
    }

    /// The connection serves as if nothing had been.
    pub(crate) async fn is_alive(&mut self) {
        let data = self.data("test:echo", json!({ "still": "here" })).await;
        assert_eq!(data, json!({ "still": "here" }));
    }
}

/// Waits, but not for ever.
pub(crate) async fn patiently<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("this comes in time")
}
