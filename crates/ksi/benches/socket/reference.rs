//! The references: an echo, and an echo that answers after a group commit.
//!
//! Each line is parsed and answered with an envelope as large as the daemon's. A `state:set` is
//! answered when the same row that the daemon writes is on disk; one thread commits what has
//! gathered while its last commit ran. And a bare fan-out: `bench:…` goes to all who have subscribed,
//! serialized once, over a bounded channel and a writer for each.

use std::{
    path::Path,
    process::ExitCode,
    sync::{Arc, Mutex, mpsc},
};

use bytes::Bytes;
use ksi_protocol::{Line, Lines};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::oneshot,
};

#[derive(Deserialize)]
struct Request<'a> {
    event: &'a str,
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(borrow)]
    correlation_id: &'a RawValue,
}

/// Everybody who has subscribed.
type Fan = Arc<Mutex<Vec<tokio::sync::mpsc::Sender<Bytes>>>>;

/// So many events may wait for one subscriber; the publisher waits for room.
const WAITING: usize = 1024;

type Row = (String, oneshot::Sender<()>);

/// Serves until it is killed: SOCKET DATABASE SIZE DURABLE_SIZE.
pub(crate) fn serve(args: &[String]) -> ExitCode {
    let [socket, database, size, durable_size] = args else { return ExitCode::FAILURE };
    let sizes = [size, durable_size].map(|size| size.parse().unwrap_or(200));
    let (rows, queue) = mpsc::channel();
    let database = database.clone();
    std::thread::spawn(move || write(Path::new(&database), &queue));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let Ok(runtime) = runtime else { return ExitCode::FAILURE };
    runtime.block_on(accept(Path::new(socket), sizes, rows));
    ExitCode::SUCCESS
}

#[allow(clippy::disallowed_methods, reason = "the reference has no task owner")]
async fn accept(socket: &Path, sizes: [usize; 2], rows: mpsc::Sender<Row>) {
    let listener = UnixListener::bind(socket).expect("a socket");
    let fan = Fan::default();
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(echo(stream, sizes, rows.clone(), fan.clone()));
    }
}

async fn echo(mut stream: UnixStream, sizes: [usize; 2], rows: mpsc::Sender<Row>, fan: Fan) {
    let (mut lines, mut input, mut output) = (Lines::default(), bytes::BytesMut::new(), Vec::new());
    loop {
        while let Some(Line::Frame(line)) = lines.next(&mut input) {
            let Ok(request) = serde_json::from_slice::<Request<'_>>(&line) else { return };
            if request.event == "monitor:subscribe" {
                answer(&mut output, &request, sizes[0]);
                let _ = stream.write_all(&output).await;
                return deliver(stream, &fan).await;
            }
            if request.event.starts_with("bench:") {
                publish(&request, &fan).await;
            }
            let durable = request.event == "state:set";
            if durable {
                let (done, wait) = oneshot::channel();
                let _ = rows.send((request.data.get().to_owned(), done));
                let _ = wait.await;
            }
            answer(&mut output, &request, sizes[usize::from(durable)]);
        }
        if stream.write_all(&output).await.is_err() {
            return;
        }
        output.clear();
        if !matches!(stream.read_buf(&mut input).await, Ok(1..)) {
            return;
        }
    }
}

async fn publish(request: &Request<'_>, fan: &Fan) {
    let Request { event, data, .. } = request;
    let line = format!(
        "{{\"event\":\"{event}\",\"data\":{data},\"timestamp\":1782864000.123,\"subscription\":\"s1\"}}\n"
    );
    let line = Bytes::from(line);
    let all = fan.lock().expect("a list").clone();
    for one in all {
        let _ = one.send(line.clone()).await;
    }
}

/// Writes what has gathered, until the subscriber goes.
async fn deliver(mut stream: UnixStream, fan: &Fan) {
    let (sender, mut events) = tokio::sync::mpsc::channel(WAITING);
    fan.lock().expect("a list").push(sender.clone());
    let (mut batch, mut output) = (Vec::new(), Vec::new());
    let mut input = [0; 64];
    loop {
        tokio::select! {
            _ = events.recv_many(&mut batch, 256) => {}
            // A subscriber says nothing more: it has gone.
            _ = stream.read(&mut input) => break,
        }
        output.clear();
        batch.drain(..).for_each(|line: Bytes| output.extend_from_slice(&line));
        if stream.write_all(&output).await.is_err() {
            break;
        }
    }
    fan.lock().expect("a list").retain(|one| !one.same_channel(&sender));
}

/// An envelope of the same size as the daemon's.
fn answer(output: &mut Vec<u8>, request: &Request<'_>, size: usize) {
    use std::io::Write;
    let start = output.len();
    let Request { event, correlation_id, .. } = request;
    let _ = write!(output, r#"{{"event":"{event}","data":{{"padding":""#);
    let end =
        format!(r#""}},"count":1,"correlation_id":{correlation_id},"timestamp":1782864000.123}}"#);
    let used = output.len() - start + end.len() + 1;
    output.resize(output.len() + size.saturating_sub(used), b'x');
    output.extend_from_slice(end.as_bytes());
    output.push(b'\n');
}

fn write(database: &Path, queue: &mpsc::Receiver<Row>) {
    let mut connection = rusqlite::Connection::open(database).expect("a database");
    connection
        .execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;
             CREATE TABLE journal(seq INTEGER PRIMARY KEY, at, name, v, subject, principal,
                                  correlation, cause, chain, data, \"check\")",
        )
        .expect("a table");
    while let Ok(first) = queue.recv() {
        let rows: Vec<Row> = std::iter::once(first).chain(queue.try_iter()).collect();
        commit(&mut connection, &rows).expect("a commit");
        for (_, done) in rows {
            let _ = done.send(());
        }
    }
}

fn commit(connection: &mut rusqlite::Connection, rows: &[Row]) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    {
        let mut insert = transaction.prepare_cached(
            "INSERT INTO journal(at, name, v, subject, principal, correlation, cause, chain, data, \"check\")
             VALUES(?1, 'state:changed', 1, 'bench/bench', 'operator', 'c1', NULL, NULL, ?2, ?3)",
        )?;
        for (data, _) in rows {
            insert.execute((1_782_864_000_123_i64, data, [0_u8; 32]))?;
        }
    }
    transaction.commit()
}
