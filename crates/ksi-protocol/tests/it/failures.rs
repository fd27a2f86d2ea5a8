use ksi_protocol::{Client, Code, Context, Error, Options};
use serde_json::json;

use crate::daemon::{Daemon, both, connected, connected_with};

/// The error that a call in flight gets when the daemon sends this and closes.
async fn error_after(bytes: &[u8]) -> Error {
    let (client, mut daemon) = connected().await;
    let (answer, _) = both(client.emit("a:b", &()), async {
        daemon.expect("a:b").await;
        daemon.send_bytes(bytes).await;
        drop(daemon);
    })
    .await;
    answer.unwrap_err()
}

async fn refused(client: &Client, context: &Context) -> Error {
    client.call_with::<()>("a:b", &(), context).await.unwrap_err()
}

async fn go_away(mut daemon: Daemon) {
    daemon.expect("a:b").await;
}

#[tokio::test]
async fn a_call_in_flight_when_the_daemon_goes_away_has_an_unknown_outcome() {
    let error = error_after(b"").await;
    assert_eq!((error.code, error.retryable), (Code::Unavailable, false));
    assert!(error.message.contains("whether `a:b` was done is unknown"), "{error}");
}

#[tokio::test]
async fn an_idempotent_call_may_be_sent_again() {
    let (client, daemon) = connected().await;
    let context = Context { idempotency_key: Some("k".to_owned()), ..Context::default() };
    let (error, ()) = both(refused(&client, &context), go_away(daemon)).await;
    assert_eq!((error.code, error.retryable), (Code::Unavailable, true));
}

#[tokio::test]
async fn a_call_after_the_end_was_not_sent() {
    let (client, daemon) = connected().await;
    let context = Context::default();
    both(refused(&client, &context), go_away(daemon)).await;
    let error = refused(&client, &context).await;
    assert_eq!((error.code, error.retryable), (Code::Unavailable, true));
    assert!(error.message.contains("nothing was sent"), "{error}");
    let mut unasked = client.unasked();
    assert!(unasked.next().await.is_none());
}

#[tokio::test]
async fn an_answer_counts_though_the_daemon_closes_right_after_it() {
    let (client, mut daemon) = connected().await;
    let (answer, ()) = both(client.call::<u64>("a:b", &()), async {
        let request = daemon.expect("a:b").await;
        daemon.answer(&request, json!(1)).await;
        drop(daemon);
    })
    .await;
    assert_eq!(answer.unwrap(), 1);
}

#[tokio::test]
async fn a_daemon_that_sends_nonsense_fails_the_calls() {
    for nonsense in ["nonsense\n", "[1]\n", "{}\n", "{\"event\":\"a:b\",\"timestamp\":\"x\"}\n"] {
        let error = error_after(nonsense.as_bytes()).await;
        assert_eq!((error.code, error.retryable), (Code::Internal, false), "{nonsense}: {error}");
        assert!(error.message.contains("the daemon sent what is no message"), "{error}");
    }
    let deep = format!("{{\"event\":{}\n", "[".repeat(100_000));
    assert_eq!(error_after(deep.as_bytes()).await.code, Code::Internal);
    assert_eq!(error_after(b"{\"event\":\"\xff\"}\n").await.code, Code::Internal);
}

#[tokio::test]
async fn an_answer_to_nobody_is_ignored() {
    let (client, mut daemon) = connected().await;
    let (answer, ()) = both(client.call::<u64>("a:b", &()), async {
        let request = daemon.expect("a:b").await;
        for id in [json!(null), json!(99), json!("x"), json!({"a": 1})] {
            daemon.answer(&json!({"event": "a:b", "correlation_id": id}), json!(0)).await;
        }
        daemon.answer(&request, json!(1)).await;
        daemon.answer(&request, json!(2)).await;
    })
    .await;
    assert_eq!(answer.unwrap(), 1);
}

#[tokio::test]
async fn a_line_without_end_is_not_collected() {
    let options = Options { line_limit: 1 << 20, ..Options::default() };
    let (client, mut daemon) = connected_with(&options).await;
    let (answer, ()) = both(client.emit("a:b", &()), async {
        daemon.expect("a:b").await;
        daemon.send_endlessly(&[b'x'; 100_000]).await;
    })
    .await;
    let error = answer.unwrap_err();
    assert_eq!((error.code, error.retryable), (Code::TooLarge, false));
    assert!(error.message.contains("1048576"), "{error}");
}

#[tokio::test]
async fn a_daemon_that_ignores_the_deadline_is_not_waited_for() {
    let (client, mut daemon) = connected().await;
    let context = Context { timeout_ms: Some(1_000), ..Context::default() };
    let (error, ()) = both(refused(&client, &context), async {
        let request = daemon.expect("a:b").await;
        assert_eq!(request["context"]["timeout_ms"], 1_000);
        // From here on nothing happens but that time passes.
        tokio::time::pause();
    })
    .await;
    assert_eq!((error.code, error.retryable), (Code::Timeout, false));
}
