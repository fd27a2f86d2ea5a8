//! The end of the daemon, as its clients see it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::daemon::{TestServer, Wire, patiently};

const NOTIFICATION: &str = "system:shutdown_notification";

async fn rest(wire: &mut Wire) -> Vec<Value> {
    let mut rest = Vec::new();
    while let Some(line) = wire.line().await {
        rest.push(line);
    }
    rest
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_is_told_once_whatever_it_subscribes_to_and_then_the_connection_ends() {
    let server = TestServer::start();
    let (mut idle, mut all) = (server.connect().await, server.connect().await);
    idle.is_alive().await;
    all.subscribe(&["*"]).await;
    server.shut_down().await;
    for wire in [&mut idle, &mut all] {
        let lines = rest(wire).await;
        let [told] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!((&told["event"], &told["subscription"]), (&json!(NOTIFICATION), &json!("s0")));
        assert_eq!(told["data"], json!({}));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_gone_once_the_daemon_is_closing() {
    let mut server = TestServer::start();
    server.connect().await.is_alive().await;
    assert!(server.socket.exists());
    server.shut_down().await;
    patiently(&mut server.accepting).await.unwrap();
    assert!(!server.socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_up_to_the_last_are_delivered_before_the_end() {
    let server = TestServer::start();
    let (mut wire, mut writer) = (server.connect().await, server.connect().await);
    wire.subscribe(&["test:*"]).await;
    for _ in 0..300 {
        writer.data("test:note", json!({ "text": "x" })).await;
    }
    let (lines, ()) = tokio::join!(rest(&mut wire), server.shut_down());
    let seqs: Vec<_> = lines.iter().filter_map(|line| line["seq"].as_u64()).collect();
    assert_eq!(seqs, (1..=300).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn new_requests_are_answered_shutdown_while_the_daemon_closes() {
    let server = TestServer::start();
    let mut wire = server.connect().await;
    wire.is_alive().await;
    server.journal.freeze();
    wire.send(&json!({"event": "test:note", "data": {"text": "under way"}, "correlation_id": 1}))
        .await;
    tokio::task::block_in_place(|| server.journal.wait_frozen());
    let kernel = server.kernel.clone();
    let closing = async {
        assert_eq!(wire.next().await["event"], NOTIFICATION);
        let refused = wire.ask("test:echo", json!({})).await;
        assert_eq!(refused["error"]["code"], "shutdown");
        server.journal.thaw();
        let done = wire.next().await;
        assert_eq!((&done["correlation_id"], &done["data"]), (&json!(1), &json!({ "count": 1 })));
        assert!(wire.line().await.is_none());
    };
    tokio::join!(patiently(kernel.shutdown(Duration::ZERO)), closing);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_holds_up_the_end_for_a_second_at_most() {
    let server = TestServer::start();
    let mut stuck = server.connect().await;
    for id in 0..8 {
        stuck.send(&json!({"event": "test:big", "correlation_id": id})).await;
    }
    // Its first bytes show that the rest is under way and cannot all be written.
    patiently(tokio::io::AsyncBufReadExt::fill_buf(&mut stuck.input)).await.unwrap();
    let begun = tokio::time::Instant::now();
    server.shut_down().await;
    assert_eq!(server.kernel.tasks().count(), 0);
    assert!(begun.elapsed() < Duration::from_secs(2), "it took {:?}", begun.elapsed());
}
