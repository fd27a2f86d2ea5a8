//! A daemon that ends in the middle of its work and starts again.

use serde_json::json;

use super::harness::Daemon;

#[tokio::test]
async fn a_turn_that_was_cut_short_is_taken_again_and_gives_one_result() {
    let mut daemon = Daemon::start(
        "{log: calls.ndjson, rules: [{when: first, hang: true, attempts: 1}, {echo: true}]}",
    );
    let first = daemon.ask("ada", "first").await;
    let second = daemon.ask("ada", "second").await;
    daemon.hear("completion:started", &first).await;
    daemon.called(1).await;

    let mut daemon = daemon.restart().await;
    assert_eq!(daemon.hear("completion:result", &first).await["attempts"], 2);
    assert_eq!(daemon.hear("completion:result", &second).await["attempts"], 1);
    let daemon = daemon.restart().await;
    let results = daemon.facts("completion:result").into_iter();
    let results: Vec<_> = results.map(|result| result["request_id"].clone()).collect();
    assert_eq!(results, [json!(first), json!(second)]);
    assert_eq!(daemon.prompts(), ["first", "first", "second"]);
    let counts = daemon.call("completion:status", json!({})).await.unwrap();
    assert_eq!((&counts["completed"], &counts["running"]), (&json!(2), &json!(0)));
    let [live, folded] = daemon.kernel.audit().unwrap();
    assert_eq!(live, folded);
}

#[tokio::test]
async fn a_pause_before_a_retry_outlives_the_daemon() {
    let mut daemon = Daemon::start(
        "rules: [{fail: {code: busy, retry_after_ms: 8000, times: 1}, answers: [ok]}]",
    );
    let request = daemon.ask("ada", "hello").await;
    let retrying = daemon.hear("completion:retrying", &request).await;
    daemon.clock.advance(3_000);
    let mut daemon = daemon.restart().await;
    assert_eq!(daemon.status(&request).await["retry_at"], retrying["at"]);
    daemon.clock.advance(5_000);
    daemon.hear("completion:result", &request).await;
    assert_eq!(daemon.facts("completion:started").len(), 2);
}

#[tokio::test]
async fn a_cancelled_request_stays_cancelled() {
    let mut daemon = Daemon::start("{log: calls.ndjson, rules: [{hang: true}]}");
    let request = daemon.ask("ada", "hello").await;
    daemon.hear("completion:started", &request).await;
    daemon.call("completion:cancel", json!({ "request_id": request })).await.unwrap();
    let daemon = daemon.restart().await;
    assert_eq!(daemon.status(&request).await["status"], "cancelled");
    assert_eq!(daemon.facts("completion:started").len(), 1);
    assert_eq!(daemon.kernel.effects().running(), 0);
}

#[tokio::test]
async fn a_key_is_known_after_a_restart() {
    let daemon = Daemon::start("{log: calls.ndjson, rules: [{echo: true}]}");
    let ask = json!({ "prompt": "hello", "idempotency_key": "k" });
    let first = daemon.call("completion:sync", ask.clone()).await.unwrap();
    let daemon = daemon.restart().await;
    assert_eq!(daemon.call("completion:sync", ask).await.unwrap(), first);
    assert_eq!(daemon.calls().len(), 1);
}
