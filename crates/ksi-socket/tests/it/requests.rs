//! Requests and their answers.

use ksi_kernel::{Journal, Query};
use serde_json::{Value, json};

use crate::daemon::{TestServer, Wire};

fn wait(gate: &str, id: Option<&str>) -> Value {
    json!({ "event": "test:wait", "data": { "gate": gate }, "correlation_id": id })
}

fn echo(n: u64, id: Option<&str>) -> Value {
    json!({ "event": "test:echo", "data": { "n": n }, "correlation_id": id })
}

/// What an answer is to: the number that was echoed, or the gate that was passed.
async fn answered(wire: &mut Wire) -> Value {
    let mut answer = wire.next().await;
    let data = &mut answer["data"];
    if data["n"].is_null() { data["passed"].take() } else { data["n"].take() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_has_the_shape_that_old_clients_know() {
    let server = TestServer::start();
    let mut wire = server.connect().await;
    wire.send(
        &json!({"event": "test:echo", "data": {"k": [1.5, null]}, "correlation_id": {"a": 1}}),
    )
    .await;
    let mut answer = wire.next().await;
    let timestamp = answer["timestamp"].take().as_f64().unwrap();
    assert!(timestamp > 1.7e9, "{timestamp} is no wall time in seconds");
    let expected = json!({"event": "test:echo", "data": {"k": [1.5, null]}, "count": 1,
        "correlation_id": {"a": 1}, "timestamp": null});
    assert_eq!(answer, expected);
    let several = wire.ask("test:list", json!({})).await;
    assert_eq!((&several["count"], &several["correlation_id"]), (&json!(2), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_without_an_id_are_answered_in_order_though_the_first_takes_longest() {
    let server = TestServer::start();
    let mut wire = server.connect().await;
    wire.send(&wait("slow", None)).await;
    for n in 0..10 {
        wire.send(&echo(n, None)).await;
    }
    wire.send(&wait("also slow", None)).await;
    wire.send(&echo(10, None)).await;
    // Its answer shows that all lines before it were read.
    wire.send(&echo(99, Some("overtakes"))).await;
    assert_eq!(answered(&mut wire).await, 99);
    server.gates.open("also slow");
    server.gates.open("slow");
    assert_eq!(answered(&mut wire).await, "slow");
    for n in 0..10 {
        assert_eq!(answered(&mut wire).await, n);
    }
    assert_eq!(answered(&mut wire).await, "also slow");
    assert_eq!(answered(&mut wire).await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_line_without_an_id_is_answered_in_its_turn_and_one_with_an_id_at_once() {
    let server = TestServer::start();
    let mut wire = server.connect().await;
    wire.send(&wait("slow", None)).await;
    wire.send_bytes(b"nonsense\n{\"event\":7,\"correlation_id\":\"c\"}\n").await;
    assert_eq!(wire.next().await["correlation_id"], "c");
    server.gates.open("slow");
    assert_eq!(answered(&mut wire).await, "slow");
    assert_eq!(wire.next().await["error"]["code"], "bad_json");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_requests_than_may_wait_for_their_turn_are_all_answered_in_order() {
    let server = TestServer::start();
    let mut wire = server.connect().await;
    // In one piece: the server reads on only when there is room again, and a small write each
    // would fill the system's buffer.
    let lines = (0..1000).map(|n| format!("{}\n", echo(n, None)));
    let lines: String = [format!("{}\n", wait("slow", None))].into_iter().chain(lines).collect();
    wire.send_bytes(lines.as_bytes()).await;
    server.connect().await.is_alive().await;
    server.gates.open("slow");
    assert_eq!(answered(&mut wire).await, "slow");
    for n in 0..1000 {
        assert_eq!(answered(&mut wire).await, n);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_with_an_id_run_at_the_same_time() {
    let server = TestServer::start();
    let mut wire = server.connect().await;
    for gate in ["a", "b", "c"] {
        wire.send(&wait(gate, Some(gate))).await;
    }
    for gate in ["c", "a", "b"] {
        wire.send(&json!({"event": "test:open", "data": {"gate": gate}, "correlation_id": "o"}))
            .await;
        let mut ids =
            [wire.next().await, wire.next().await].map(|mut a| a["correlation_id"].take());
        ids.sort_by_key(ToString::to_string);
        assert_eq!(ids, [json!(gate), json!("o")]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_event_is_unhandled_with_a_suggestion() {
    let server = TestServer::start();
    let mut wire = server.connect().await;
    let answer = wire.ask("test:ehco", json!({})).await;
    assert_eq!(answer["error"]["code"], "unhandled");
    assert_eq!(answer["error"]["hint"], "did you mean `test:echo`?");
    wire.is_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_signals_and_lifecycle_events_cannot_be_sent_from_outside() {
    let server = TestServer::start();
    let mut wire = server.connect().await;
    for event in ["test:noted", "test:flashed", "system:startup"] {
        let answer = wire.ask(event, json!({ "text": "forged" })).await;
        assert_eq!(answer["error"]["code"], "forbidden", "{answer}");
    }
    wire.is_alive().await;
    assert_eq!(server.journal.appended(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_and_panicking_handlers_answer_with_their_own_errors() {
    let server = TestServer::start();
    let mut wire = server.connect().await;
    let failed = wire.ask("test:fail", json!({})).await;
    let expected = json!({"code": "conflict", "message": "there is one already",
        "hint": "use another name", "retryable": false});
    assert_eq!(failed["error"], expected);
    let panicked = wire.ask("test:panic", json!({})).await;
    assert_eq!(panicked["error"]["code"], "panicked");
    let bad = wire.ask("test:wait", json!({ "gate": 7 })).await;
    assert_eq!(
        (&bad["error"]["code"], &bad["error"]["path"]),
        (&json!("bad_params"), &json!("gate"))
    );
    wire.is_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_the_waiting_but_not_the_work() {
    let server = TestServer::start();
    let (mut wire, mut other) = (server.connect().await, server.connect().await);
    other.subscribe(&["test:noted"]).await;
    let data = json!({ "gate": "late", "text": "kept" });
    wire.send(&json!({"event": "test:later", "data": data, "correlation_id": "c",
        "context": {"timeout_ms": 1}}))
        .await;
    let answer = wire.next().await;
    assert_eq!(answer["error"]["code"], "timeout", "{answer}");
    assert_eq!(
        (&answer["correlation_id"], &answer["error"]["retryable"]),
        (&json!("c"), &json!(true))
    );
    server.gates.open("late");
    assert_eq!(other.next().await["data"]["text"], "kept");
    wire.is_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_deadline_passed_in_the_queue_is_never_begun() {
    let server = TestServer::start();
    let mut wire = server.connect().await;
    wire.send(&wait("slow", None)).await;
    wire.send(
        &json!({"event": "test:note", "data": {"text": "late"}, "context": {"timeout_ms": 0}}),
    )
    .await;
    wire.send(&echo(1, Some("read"))).await;
    assert_eq!(answered(&mut wire).await, 1);
    server.gates.open("slow");
    assert_eq!(answered(&mut wire).await, "slow");
    let late = wire.next().await;
    assert_eq!((&late["event"], &late["error"]["code"]), (&json!("test:note"), &json!("timeout")));
    assert_eq!(wire.data("test:note", json!({ "text": "next" })).await, json!({ "count": 1 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_beyond_all_time_is_none() {
    let server = TestServer::start();
    let mut wire = server.connect().await;
    let context = json!({ "timeout_ms": u64::MAX });
    wire.send(&json!({"event": "test:note", "data": {"text": "a"}, "context": context})).await;
    assert_eq!(wire.next().await["data"], json!({ "count": 1 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_does_not_cancel_its_call() {
    let server = TestServer::start();
    let mut other = server.connect().await;
    other.subscribe(&["test:noted"]).await;
    let before = server.kernel.tasks().count();
    let mut wire = server.connect().await;
    let data = json!({ "gate": "gone", "text": "paid for" });
    wire.send(&json!({"event": "test:later", "data": data})).await;
    // Its answer shows that the call before it is under way.
    wire.send(&echo(1, Some("read"))).await;
    assert_eq!(answered(&mut wire).await, 1);
    drop(wire);
    server.gates.open("gone");
    assert_eq!(other.next().await["data"]["text"], "paid for");
    server.until_tasks(before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_off_does_not_cancel_its_calls() {
    let server = TestServer::start();
    let mut other = server.connect().await;
    other.subscribe(&["test:noted"]).await;
    let before = server.kernel.tasks().count();
    let mut wire = server.connect().await;
    wire.subscribe(&["test:noted"]).await;
    let data = json!({ "gate": "gone", "text": "paid for" });
    wire.send(&json!({"event": "test:later", "data": data})).await;
    wire.send(&echo(1, Some("read"))).await;
    assert_eq!(answered(&mut wire).await, 1);
    drop(wire);
    // What it is told cannot be written any more.
    other.send(&json!({"event": "test:note", "data": {"text": "broken"}})).await;
    server.until_task("calls of a client that left").await;
    server.gates.open("gone");
    server.until_tasks(before).await;
    let mut said = Vec::new();
    while said.last().is_none_or(|text| text != "paid for") {
        said.push(other.next().await["data"]["text"].take());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_closed_connection_is_answered_all_that_is_pending_and_its_last_line() {
    let server = TestServer::start();
    let mut wire = server.connect().await;
    wire.subscribe(&["test:*"]).await;
    wire.send(&wait("slow", Some("1"))).await;
    wire.send(&wait("slow", None)).await;
    wire.send_bytes(br#"{"event":"test:echo","data":{"n":7}}"#).await;
    wire.end_input();
    server.gates.open("slow");
    let (mut in_order, mut by_id) = (Vec::new(), Vec::new());
    while let Some(mut answer) = wire.line().await {
        let answers = if answer["correlation_id"].is_null() { &mut in_order } else { &mut by_id };
        answers.push(answer["data"].take());
    }
    assert_eq!(by_id, [json!({ "passed": "slow" })]);
    assert_eq!(in_order, [json!({ "passed": "slow" }), json!({ "n": 7 })]);
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_carry_the_callers_correlation_and_key() {
    let server = TestServer::start();
    let mut wire = server.connect().await;
    for id in [json!("c1"), json!({"a": [1]}), Value::Null] {
        wire.send(&json!({"event": "test:note", "data": {"text": "a"}, "correlation_id": id,
            "context": {"idempotency_key": "k"}}))
            .await;
        assert_eq!(wire.next().await["correlation_id"], id);
    }
    let records = server.journal.read(&Query::default()).unwrap();
    let correlations: Vec<_> =
        records.iter().map(|record| record.origin.correlation.as_deref()).collect();
    assert_eq!(correlations, [Some("c1"), Some(r#"{"a":[1]}"#), None]);
    assert!(records.iter().all(|record| &*record.origin.principal == "operator"));
    assert_eq!(records[0].data.get(), r#"{"text":"a","by":"k"}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_connections_come_and_go_and_leave_nothing_behind() {
    let server = TestServer::start();
    let before = server.kernel.tasks().count();
    for _ in 0..10 {
        let mut wires = Vec::new();
        for n in 0..100 {
            let mut wire = server.connect().await;
            match n % 4 {
                0 => wire.send(&wait("never", None)).await,
                1 => wire.send_bytes(b"{\"event\":\"test:ec").await,
                2 => wire.is_alive().await,
                _ => drop(wire.subscribe(&["test:*"]).await),
            }
            wires.push(wire);
        }
        drop(wires);
    }
    server.gates.open("never");
    server.until_tasks(before).await;
    server.connect().await.is_alive().await;
}
