//! The clients: the same ones for the daemon and for its references.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use crate::{Bound, Verdict};

/// One request, sent again and again to one socket.
pub(crate) struct Load {
    socket: PathBuf,
    line: Vec<u8>,
}

/// How long requests took.
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

struct Connection {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
    reply: Vec<u8>,
}

impl Connection {
    async fn open(socket: &Path) -> Connection {
        let stream = UnixStream::connect(socket).await.expect("a connection");
        let (read, write) = stream.into_split();
        Connection { read: BufReader::with_capacity(1 << 16, read), write, reply: Vec::new() }
    }

    async fn send(&mut self, lines: &[u8]) {
        self.write.write_all(lines).await.expect("a server that reads");
    }

    async fn receive(&mut self) -> usize {
        self.reply.clear();
        let size = self.read.read_until(b'\n', &mut self.reply).await.expect("a reply");
        assert!(size > 0 && !self.reply.starts_with(br#"{"event":null"#), "the server hung up");
        size
    }
}

impl Load {
    pub(crate) fn new(socket: &Path, request: &str) -> Load {
        Load { socket: socket.to_owned(), line: format!("{request}\n").into_bytes() }
    }

    pub(crate) async fn reply_size(&self) -> usize {
        let mut connection = Connection::open(&self.socket).await;
        connection.send(&self.line).await;
        connection.receive().await
    }

    /// One request after the other on one connection; in microseconds.
    pub(crate) async fn round_trip(&self, requests: usize) -> Latency {
        let mut connection = Connection::open(&self.socket).await;
        let mut times = Vec::with_capacity(requests);
        for _ in 0..requests {
            let start = Instant::now();
            connection.send(&self.line).await;
            connection.receive().await;
            times.push(start.elapsed());
        }
        times.sort_unstable();
        let at = |share: f64| {
            let time: Duration = times[((times.len() - 1) as f64 * share) as usize];
            time.as_secs_f64() * 1e6
        };
        Latency { p50: at(0.5), p99: at(0.99) }
    }

    /// So many requests at once on one connection; requests per second.
    pub(crate) async fn in_flight(&self, depth: usize, requests: usize) -> f64 {
        let mut connection = Connection::open(&self.socket).await;
        let start = Instant::now();
        connection.send(&self.line.repeat(depth)).await;
        let mut sent = depth;
        for received in 0..requests {
            connection.receive().await;
            // Refilled by halves, as a client that batches its writes would do.
            if received % (depth / 2) == depth / 2 - 1 && sent < requests {
                connection.send(&self.line.repeat(depth / 2)).await;
                sent += depth / 2;
            }
            if received + 1 == sent {
                return sent as f64 / start.elapsed().as_secs_f64();
            }
        }
        requests as f64 / start.elapsed().as_secs_f64()
    }

    /// So many connections, each with one request after the other; requests per second.
    pub(crate) async fn connections(&self, connections: usize, each: usize) -> f64 {
        let opened = join_all((0..connections).map(|_| Connection::open(&self.socket))).await;
        let start = Instant::now();
        let work = opened.into_iter().map(|mut connection| async move {
            for _ in 0..each {
                connection.send(&self.line).await;
                connection.receive().await;
            }
        });
        join_all(work).await;
        (connections * each) as f64 / start.elapsed().as_secs_f64()
    }

    /// Connections that have subscribed, and do nothing.
    pub(crate) async fn subscribers(&self, count: usize, pattern: &str) -> Vec<impl Sized + use<>> {
        let open = (0..count).map(|_| self.subscribed(pattern));
        join_all(open).await
    }

    async fn subscribed(&self, pattern: &str) -> Connection {
        let mut connection = Connection::open(&self.socket).await;
        let line = format!(
            "{{\"event\":\"monitor:subscribe\",\"data\":{{\"event_patterns\":[\"{pattern}\"]}},\"correlation_id\":1}}\n"
        );
        connection.send(line.as_bytes()).await;
        connection.receive().await;
        connection
    }

    /// So many signals to so many subscribers, 50 in flight; deliveries per second.
    pub(crate) async fn fan_out(&self, subscribers: usize, signals: usize) -> f64 {
        const DEPTH: usize = 50;
        let opened = join_all((0..subscribers).map(|_| self.subscribed("bench:*"))).await;
        let mut publisher = Connection::open(&self.socket).await;
        let start = Instant::now();
        let publish = async {
            for _ in 0..signals / DEPTH {
                publisher.send(&self.line.repeat(DEPTH)).await;
                for _ in 0..DEPTH {
                    publisher.receive().await;
                }
            }
        };
        let hear = opened.into_iter().map(|mut connection| async move {
            for _ in 0..signals {
                connection.receive().await;
            }
        });
        futures_util::future::join(publish, join_all(hear)).await;
        (subscribers * signals) as f64 / start.elapsed().as_secs_f64()
    }

    /// Keeps so many requests in flight on connections of their own, until it is dropped.
    pub(crate) async fn keep_busy(&self, connections: usize) {
        self.connections(connections, usize::MAX / connections).await;
    }
}

/// Runs of ours and of the reference, in turn.
pub(crate) struct Runs {
    ours: Vec<f64>,
    reference: Vec<f64>,
}

impl Runs {
    /// Runs side 0 (ours) and side 1 (the reference) in turn, after a warm-up of each.
    pub(crate) async fn of(runs: usize, run: impl AsyncFn(usize) -> f64) -> Runs {
        let mut sides = [Vec::new(), Vec::new()];
        for round in 0..=runs {
            // Who goes first changes, so that a machine that gets slower or faster favours nobody.
            for side in [round % 2, 1 - round % 2] {
                let figure = run(side).await;
                if round > 0 {
                    sides[side].push(figure);
                }
            }
        }
        let [ours, reference] = sides;
        Runs { ours, reference }
    }

    /// The median of the ratios of each pair.
    pub(crate) fn verdict(
        self,
        name: &'static str,
        bound: Bound,
        unit: &str,
        processor: f64,
    ) -> Verdict {
        let ratios = self.ours.iter().zip(&self.reference).map(|(ours, theirs)| ours / theirs);
        let ratio = median(ratios.collect());
        let (ours, theirs) = (median(self.ours), median(self.reference));
        let detail = format!(
            "{ours:.0} {unit} against {theirs:.0} {unit}, the server's processor time {processor:.2}x"
        );
        Verdict { name, ratio, bound, detail }
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}
