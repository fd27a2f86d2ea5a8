//! Clients that do not read.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::daemon::{TestServer, Wire};

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_never_reads_is_not_read_from_and_holds_up_nobody() {
    const ASKED: usize = 100_000;
    let server = TestServer::start();
    let Wire { input, output } = server.connect().await;
    let mut output = output.unwrap();
    let (asking, asked) = tokio::sync::oneshot::channel();
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = sent.clone();
    server.kernel.tasks().spawn("asker", async move {
        let line = format!("{}\n", json!({"event": "test:echo", "data": {"t": "x".repeat(1000)}}));
        for _ in 0..ASKED {
            output.write_all(line.as_bytes()).await.unwrap();
            counter.fetch_add(line.len(), Ordering::Relaxed);
        }
        let _ = asking.send(output);
    });
    let mut other = server.connect().await;
    other.subscribe(&["test:*"]).await;
    let mut writer = server.connect().await;
    let mut stalled_at = None;
    for n in 0..100_000 {
        writer.data("test:note", json!({ "text": "x" })).await;
        assert_eq!(other.next().await["seq"], n + 1);
        if n % 500 < 499 {
            continue;
        }
        let sent = sent.load(Ordering::Relaxed);
        assert!(sent < 8 << 20, "{sent} bytes were read from one who reads no answer");
        if stalled_at == Some(sent) {
            break;
        }
        stalled_at = Some(sent);
    }
    let mut wire = Wire { input, output: None };
    for _ in 0..ASKED {
        assert_eq!(wire.next().await["event"], "test:echo");
    }
    wire.output = Some(asked.await.unwrap());
    wire.is_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_many_megabytes_wait_until_the_client_reads_them() {
    let server = TestServer::start();
    let mut wire = server.connect().await;
    for id in 0..64 {
        wire.send(&json!({"event": "test:big", "correlation_id": id})).await;
    }
    server.connect().await.is_alive().await;
    for id in 0..64 {
        let answer = wire.next().await;
        assert_eq!(answer["correlation_id"], id);
        assert_eq!(answer["data"]["text"].as_str().unwrap().len(), 1 << 20);
    }
    wire.is_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_subscriber_gets_every_fact_once_in_order_and_learns_how_many_signals_it_missed() {
    const EACH: u64 = 150;
    let server = TestServer::start();
    let (mut slow, mut writer) = (server.connect().await, server.connect().await);
    slow.subscribe(&["test:*"]).await;
    let text = "x".repeat(100_000);
    for n in 1..=EACH {
        writer.data("test:note", json!({ "text": text })).await;
        writer.data("test:flash", json!({ "n": n, "text": text })).await;
    }
    let (mut seq, mut last_signal, mut signals, mut missed) = (0, 0, 0, 0);
    while seq < EACH || signals + missed < EACH {
        let line = slow.next().await;
        match line["event"].as_str().unwrap() {
            "test:noted" => {
                seq += 1;
                assert_eq!(line["seq"], seq);
            }
            "test:flashed" => {
                let n = line["data"]["n"].as_u64().unwrap();
                assert!(n > last_signal, "signal {n} behind {last_signal}");
                (last_signal, signals) = (n, signals + 1);
            }
            "monitor:lagged" => {
                assert_eq!(line["subscription"], "s0");
                missed += line["data"]["missed"].as_u64().unwrap();
            }
            other => panic!("{other}"),
        }
    }
    assert!(missed > 0, "30 MB of events cannot all have waited");
    assert_eq!((seq, signals + missed), (EACH, EACH));
    slow.is_alive().await;
}
