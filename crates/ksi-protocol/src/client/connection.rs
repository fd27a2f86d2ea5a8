use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use serde_json::value::{RawValue, to_raw_value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Options;
use super::calls::{After, Call, Calls};
use crate::{Code, Context, Error, Line, Lines, Message, Reply, Result, write_request};

/// How many bytes of requests may wait for the daemon to read; further calls wait for room.
const UNSENT: usize = 64 << 20;
/// How much longer than the daemon's own deadline the client waits for the answer.
const GRACE: Duration = Duration::from_secs(2);
/// How long the rest of the daemon's answers may take when it has stopped reading.
const LAST_WORDS: Duration = Duration::from_secs(1);
const READ: usize = 64 << 10;

/// One connection and the task that moves its bytes; the task ends with it.
#[derive(Debug)]
pub(super) struct Connection {
    shared: Arc<Shared>,
    options: Options,
    task: JoinHandle<()>,
}

/// What the callers and the task both see.
#[derive(Debug)]
struct Shared {
    calls: Mutex<Calls>,
    outgoing: mpsc::UnboundedSender<Outgoing>,
    room: Arc<Semaphore>,
}

/// A line on its way to the daemon, and its part of the room.
#[derive(Debug)]
struct Outgoing {
    line: BytesMut,
    room: Option<OwnedSemaphorePermit>,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, options: &Options) -> Self {
        let (outgoing, unsent) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(UNSENT));
        let shared = Arc::new(Shared { calls: Mutex::default(), outgoing, room });
        let serving = serve(stream, shared.clone(), unsent, options.line_limit);
        #[expect(
            clippy::disallowed_methods,
            reason = "the connection owns this task and ends it when it is dropped"
        )]
        let task = tokio::spawn(serving);
        Self { shared, options: options.clone(), task }
    }

    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    pub(super) fn calls(&self) -> MutexGuard<'_, Calls> {
        self.shared.calls()
    }

    /// Sends a request and waits for the answer.
    pub(super) async fn call(
        &self,
        event: &str,
        data: &RawValue,
        context: Option<&Context>,
        after: After,
    ) -> Result<Reply> {
        let idempotent = context.is_some_and(|context| context.idempotency_key.is_some());
        let (answer, answered) = oneshot::channel();
        let call = Call { event: event.to_owned(), answer, idempotent, bytes: 0, after };
        let waiting = InFlight { id: self.calls().begin(call)?, shared: &self.shared };
        let line = request(event, data, waiting.id, context)?;
        self.calls().sized(waiting.id, line.len());
        let answer = async {
            self.shared.send(line).await?;
            answered.await.unwrap_or_else(|_| Err(Error::internal("the connection was dropped")))
        };
        let Some(millis) = context.and_then(|context| context.timeout_ms) else {
            return answer.await;
        };
        let deadline = Duration::from_millis(millis).saturating_add(GRACE);
        timeout(deadline, answer).await.unwrap_or_else(|_| {
            let message = format!(
                "the daemon did not answer `{event}` in {millis} ms; whether it was done is unknown"
            );
            Err(Error::new(Code::Timeout, message).retryable(idempotent))
        })
    }

    /// Tells the daemon that nobody takes this subscription's events any more.
    pub(super) fn unsubscribe(&self, id: String) {
        self.shared.unsubscribe(id);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A call that leaves nothing behind when its caller stops waiting.
struct InFlight<'a> {
    id: u64,
    shared: &'a Shared,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.shared.calls().forget(self.id);
    }
}

impl Shared {
    /// No call is left half noted by a panic.
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, line: BytesMut) -> Result<()> {
        let bytes = u32::try_from(line.len().min(UNSENT)).unwrap_or(u32::MAX);
        let room = self.room.clone().acquire_many_owned(bytes).await;
        let sent = room.ok().map(|room| Outgoing { line, room: Some(room) });
        if sent.is_some_and(|line| self.outgoing.send(line).is_ok()) {
            return Ok(());
        }
        let ended = self.calls().not_sent();
        Err(ended.unwrap_or_else(|| Error::unavailable("the connection is gone")))
    }

    fn unsubscribe(&self, id: String) {
        let Ok(data) = to_raw_value(&serde_json::json!({ "subscription": id })) else { return };
        let (answer, _) = oneshot::channel();
        let event = "monitor:unsubscribe";
        let after = After::Unsubscribe(id);
        let call = Call { event: event.to_owned(), answer, idempotent: true, bytes: 0, after };
        let Ok(id) = self.calls().begin(call) else { return };
        let Ok(line) = request(event, &data, id, None) else { return };
        // It waits for no room: it is short, and there is one per subscription at most.
        let _ = self.outgoing.send(Outgoing { line, room: None });
    }

    fn receive(&self, line: &[u8]) -> Result<()> {
        let message = Message::parse(line).map_err(|error| {
            Error::internal(format!("the daemon sent what is no message: {error}"))
        })?;
        let unwanted = match message {
            Message::Pushed(event) => {
                self.calls().pushed(event);
                None
            }
            Message::Reply(reply) => {
                let id = reply.correlation_id.clone();
                self.calls().answered(id.as_deref(), Ok(reply))
            }
            Message::Failure { error, correlation_id, .. } => {
                self.calls().answered(correlation_id.as_deref(), Err(error))
            }
        };
        if let Some(subscription) = unwanted {
            self.unsubscribe(subscription);
        }
        Ok(())
    }
}

fn request(event: &str, data: &RawValue, id: u64, context: Option<&Context>) -> Result<BytesMut> {
    let id = to_raw_value(&id).map_err(|error| Error::internal(error.to_string()))?;
    let mut line = BytesMut::with_capacity(event.len() + data.get().len() + 64);
    write_request(&mut line, event, data, Some(&id), context);
    Ok(line)
}

/// Moves the connection's bytes until it ends, then tells all who wait.
async fn serve(
    stream: UnixStream,
    shared: Arc<Shared>,
    unsent: mpsc::UnboundedReceiver<Outgoing>,
    line_limit: usize,
) {
    let (input, output) = stream.into_split();
    let mut reading = pin!(read(input, &shared, line_limit));
    let end = tokio::select! {
        end = &mut reading => end,
        // A daemon that closes may have answered before it did.
        failed = write(output, unsent) => timeout(LAST_WORDS, reading).await.unwrap_or(failed),
    };
    shared.room.close();
    shared.calls().end(end);
}

/// Takes in lines until there are no more, and says why.
async fn read(mut input: OwnedReadHalf, shared: &Shared, line_limit: usize) -> Error {
    let mut lines = Lines::new(line_limit);
    let mut buf = BytesMut::new();
    loop {
        while let Some(Line::Frame(line)) = lines.next(&mut buf) {
            if let Err(error) = shared.receive(&line) {
                return error;
            }
        }
        if lines.is_skipping() {
            let message = format!("the daemon sent a line of more than {line_limit} bytes");
            return Error::new(Code::TooLarge, message);
        }
        // Bound before the wait, so that no lock is held over it.
        let full = shared.calls().full();
        if let Some(queue) = full {
            queue.has_room().await;
            continue;
        }
        buf.reserve(READ);
        match input.read_buf(&mut buf).await {
            Ok(0) => return Error::unavailable("the daemon has closed the connection"),
            Ok(_) => {}
            Err(error) => return gone(&error),
        }
    }
}

/// Writes what waits, many lines at once, until it cannot, and says why.
async fn write(mut output: OwnedWriteHalf, mut unsent: mpsc::UnboundedReceiver<Outgoing>) -> Error {
    let mut batch = Vec::new();
    loop {
        if unsent.recv_many(&mut batch, 64).await == 0 {
            return Error::unavailable("the connection was dropped");
        }
        let mut waiting = batch.drain(..);
        let Some(mut first) = waiting.next() else { continue };
        let rooms: Vec<_> = waiting
            .map(|next| {
                first.line.unsplit(next.line);
                next.room
            })
            .collect();
        if let Err(error) = output.write_all(&first.line).await {
            return gone(&error);
        }
        drop(rooms);
    }
}

fn gone(error: &io::Error) -> Error {
    Error::unavailable(format!("the connection to the daemon broke: {error}"))
}
