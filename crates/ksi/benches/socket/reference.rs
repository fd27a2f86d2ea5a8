//! The references: an echo, and an echo that answers after a group commit.
//!
//! Each line is parsed and answered with an envelope as large as the daemon's. A `state:set` is
//! answered when the same row that the daemon writes is on disk; one thread commits what has
//! gathered while its last commit ran.

use std::{path::Path, process::ExitCode, sync::mpsc};

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
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(echo(stream, sizes, rows.clone()));
    }
}

async fn echo(mut stream: UnixStream, sizes: [usize; 2], rows: mpsc::Sender<Row>) {
    let (mut lines, mut input, mut output) = (Lines::default(), bytes::BytesMut::new(), Vec::new());
    loop {
        while let Some(Line::Frame(line)) = lines.next(&mut input) {
            let Ok(request) = serde_json::from_slice::<Request<'_>>(&line) else { return };
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
