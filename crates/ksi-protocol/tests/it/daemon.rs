//! The other end of the socket.

use std::time::Duration;

use ksi_protocol::{Client, Options};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

/// How long anything may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(20);

/// One connection, seen from the daemon's side.
pub(crate) struct Daemon {
    requests: BufReader<OwnedReadHalf>,
    output: OwnedWriteHalf,
    _folder: TempDir,
}

/// A client and the daemon that it is connected to.
pub(crate) async fn connected() -> (Client, Daemon) {
    connected_with(&Options::default()).await
}

pub(crate) async fn connected_with(options: &Options) -> (Client, Daemon) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("daemon.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let client = Client::connect_with(&socket, options).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    (client, Daemon::new(stream, folder))
}

impl Daemon {
    fn new(stream: UnixStream, folder: TempDir) -> Self {
        let (input, output) = stream.into_split();
        Self { requests: BufReader::new(input), output, _folder: folder }
    }

    /// The next request; none when the client has closed the connection.
    pub(crate) async fn request(&mut self) -> Option<Value> {
        let mut line = String::new();
        let read = patiently(self.requests.read_line(&mut line)).await.unwrap();
        (read > 0).then(|| serde_json::from_str(&line).unwrap())
    }

    /// The next request, which must be for this event.
    pub(crate) async fn expect(&mut self, event: &str) -> Value {
        let request = self.request().await.expect("the client is there");
        assert_eq!(request["event"], event, "{request}");
        request
    }

    pub(crate) async fn answer(&mut self, request: &Value, data: Value) {
        let (event, id) = (&request["event"], &request["correlation_id"]);
        self.send(json!({
            "event": event, "data": data, "count": 1, "correlation_id": id, "timestamp": 1.5,
        }))
        .await;
    }

    pub(crate) async fn fail(&mut self, request: &Value, error: Value) {
        let (event, id) = (&request["event"], &request["correlation_id"]);
        self.send(json!({
            "event": event, "error": error, "correlation_id": id, "timestamp": 1.5,
        }))
        .await;
    }

    pub(crate) async fn push(&mut self, subscription: &str, event: &str, seq: u64) {
        self.send(json!({
            "event": event, "data": {"n": seq}, "seq": seq, "timestamp": 1.5,
            "subscription": subscription,
        }))
        .await;
    }

    pub(crate) async fn send(&mut self, line: Value) {
        self.send_bytes(format!("{line}\n").as_bytes()).await;
    }

    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        patiently(self.output.write_all(bytes)).await.unwrap();
    }

    /// Writes for as long as the client reads.
    pub(crate) async fn send_endlessly(&mut self, bytes: &[u8]) {
        patiently(async { while self.output.write_all(bytes).await.is_ok() {} }).await;
    }
}

/// Waits, but not for ever.
pub(crate) async fn patiently<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("this comes in time")
}

/// What the client gets and what the daemon does meanwhile; neither may take for ever.
pub(crate) async fn both<A, B>(
    client: impl Future<Output = A>,
    daemon: impl Future<Output = B>,
) -> (A, B) {
    patiently(async { tokio::join!(client, daemon) }).await
}
