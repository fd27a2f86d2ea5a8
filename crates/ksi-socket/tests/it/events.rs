//! Subscriptions and pushed events.

use serde_json::{Value, json};

use crate::daemon::{TestServer, Wire};

async fn note(wire: &mut Wire, text: &str) {
    wire.data("test:note", json!({ "text": text })).await;
}

fn parts(event: &Value) -> (&Value, &Value, &Value) {
    (&event["data"]["text"], &event["seq"], &event["subscription"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fact_comes_once_per_connection_labelled_with_the_lowest_subscription() {
    let server = TestServer::start();
    let (mut wire, mut other) = (server.connect().await, server.connect().await);
    assert_eq!(wire.subscribe(&["other:*"]).await, json!({ "subscription": "s1" }));
    assert_eq!(wire.subscribe(&["test:*", "test:noted"]).await, json!({ "subscription": "s2" }));
    assert_eq!(wire.subscribe(&["*"]).await, json!({ "subscription": "s3" }));
    for text in ["one", "two"] {
        note(&mut other, text).await;
    }
    let (one, two) = (wire.next().await, wire.next().await);
    assert_eq!(parts(&one), (&json!("one"), &json!(1), &json!("s2")));
    assert_eq!(parts(&two), (&json!("two"), &json!(2), &json!("s2")));
    assert!(one.get("count").is_none() && one["timestamp"].is_number(), "{one}");
    wire.is_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_was_ended_is_silent() {
    let server = TestServer::start();
    let (mut wire, mut other) = (server.connect().await, server.connect().await);
    wire.subscribe(&["test:*"]).await;
    wire.data("monitor:unsubscribe", json!({ "subscription": "s1" })).await;
    note(&mut other, "unheard").await;
    wire.is_alive().await;
    let again = wire.ask("monitor:unsubscribe", json!({ "subscription": "s1" })).await;
    assert_eq!(again["error"]["code"], "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_since_a_fact_gets_what_came_after_it_and_goes_on_live() {
    let server = TestServer::start();
    let (mut wire, mut other) = (server.connect().await, server.connect().await);
    for n in 1..=600 {
        note(&mut other, &format!("past {n}")).await;
    }
    wire.data("monitor:subscribe", json!({ "event_patterns": ["test:noted"], "since": 10 })).await;
    note(&mut other, "live").await;
    for seq in 11..=601 {
        let event = wire.next().await;
        assert_eq!((&event["seq"], &event["subscription"]), (&json!(seq), &json!("s1")));
    }
    wire.is_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_past_is_read_to_its_end_while_requests_keep_coming() {
    let server = TestServer::start();
    let mut wire = server.connect().await;
    for n in 1..=2_000 {
        wire.send(&json!({"event": "test:note", "data": {"text": format!("{n}")}})).await;
        wire.next().await;
    }
    wire.data("monitor:subscribe", json!({ "event_patterns": ["test:noted"], "since": 0 })).await;
    let mut seq = 0;
    let mut echoes = 0;
    wire.send(&json!({"event": "test:echo"})).await;
    while seq < 2_000 {
        let line = wire.next().await;
        if line["event"] == "test:echo" {
            // Never without a request under way, so that each read of the journal is interrupted.
            echoes += 1;
            wire.send(&json!({"event": "test:echo"})).await;
            continue;
        }
        seq += 1;
        assert_eq!(line["seq"], seq);
    }
    assert!(echoes > 0, "the requests starved");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriptions_answer_stands_before_its_first_event_however_late_it_is() {
    let server = TestServer::start();
    let (mut wire, mut other) = (server.connect().await, server.connect().await);
    let subscribe = json!({"event_patterns": ["test:*"], "gate": "late"});
    wire.send(&json!({"event": "monitor:subscribe", "data": subscribe, "correlation_id": 1})).await;
    wire.send(&json!({"event": "test:echo", "correlation_id": 2})).await;
    assert_eq!(wire.next().await["correlation_id"], 2);
    note(&mut other, "early").await;
    // A request that is answered shows that the connection was awake and kept the event back.
    wire.send(&json!({"event": "test:echo", "correlation_id": 3})).await;
    assert_eq!(wire.next().await["correlation_id"], 3);
    server.gates.open("late");
    assert_eq!(wire.next().await["data"], json!({ "subscription": "s1" }));
    assert_eq!(wire.next().await["data"]["text"], "early");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sender_gets_what_its_request_led_to_unasked() {
    let server = TestServer::start();
    let mut wire = server.connect().await;
    wire.send(&json!({"event": "test:note", "data": {"text": "mine", "follow": true}})).await;
    let lines = [wire.next().await, wire.next().await];
    let pushed = lines.iter().find(|line| line.get("subscription").is_some()).unwrap();
    assert_eq!(parts(pushed), (&json!("mine"), &json!(1), &json!("sender")));
    note(&mut wire, "mine").await;
    wire.is_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_reaches_those_who_listen_and_says_how_many() {
    let server = TestServer::start();
    let (mut wire, mut other) = (server.connect().await, server.connect().await);
    let unheard = other.ask("news:flash", json!({ "text": "hello" })).await;
    assert_eq!(unheard["error"]["code"], "unhandled");
    wire.subscribe(&["news:*"]).await;
    let sent = other.data("news:flash", json!({ "text": "hello" })).await;
    assert_eq!(sent, json!({ "delivered": 1 }));
    let event = wire.next().await;
    assert_eq!(parts(&event), (&json!("hello"), &Value::Null, &json!("s1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_subscriber_sees_a_fact_before_it_is_durable() {
    let server = TestServer::start();
    let (mut wire, mut other) = (server.connect().await, server.connect().await);
    wire.subscribe(&["test:*"]).await;
    server.journal.freeze();
    other.send(&json!({"event": "test:note", "data": {"text": "not yet"}})).await;
    tokio::task::block_in_place(|| server.journal.wait_frozen());
    wire.is_alive().await;
    server.journal.thaw();
    assert_eq!(wire.next().await["data"]["text"], "not yet");
    assert_eq!(other.next().await["data"], json!({ "count": 1 }));
}
