//! Failures: which are tried again, when, and when it is too late.

use ksi_kernel::Code;
use serde_json::json;

use super::harness::Daemon;

#[tokio::test]
async fn a_provider_that_asks_for_a_pause_gets_it_and_the_request_keeps_its_id() {
    let mut daemon = Daemon::start(
        "{log: calls.ndjson, rules: [{answers: [at last], \
         fail: {code: rate_limited, message: slow down, retry_after_ms: 5000, times: 2}}]}",
    );
    let request = daemon.ask("ada", "hello").await;
    for attempt in 1..=2 {
        let retrying = daemon.hear("completion:retrying", &request).await;
        assert_eq!(retrying["attempt"], attempt);
        assert_eq!(retrying["delay_ms"], 5000);
        assert_eq!(retrying["code"], "rate_limited");
        assert_eq!(retrying["reason"], "slow down");
        let status = daemon.status(&request).await;
        assert_eq!((&status["status"], &status["retry_at"]), (&json!("retrying"), &retrying["at"]));
        daemon.clock.advance(5_000);
        let began =
            daemon.next(|event| (event.name() == "completion:started").then(|| event.at())).await;
        assert_eq!(Some(began.0), retrying["at"].as_u64());
    }
    let result = daemon.hear("completion:result", &request).await;
    assert_eq!((&result["text"], &result["attempts"]), (&json!("at last"), &json!(3)));
    let attempts: Vec<_> = daemon.calls().iter().map(|call| call["attempt"].clone()).collect();
    assert_eq!(attempts, [1, 2, 3]);
}

#[tokio::test]
async fn attempts_end_where_the_policy_says() {
    let mut daemon = Daemon::start("rules: [{fail: {message: broken}}]");
    let ask = json!({ "prompt": "x", "retry": { "max_attempts": 3, "initial_ms": 0 } });
    let accepted = daemon.call("completion:async", ask).await.unwrap();
    let id = accepted["request_id"].as_str().unwrap().to_owned();
    let failed = daemon.hear("completion:failed", &id).await;
    assert_eq!(failed["attempts"], 3);
    assert_eq!(failed["error"], json!({ "code": "provider_error", "message": "broken" }));
    assert_eq!(daemon.facts("completion:retrying").len(), 2);
    assert_eq!(daemon.status(&id).await["error"]["message"], "broken");
}

#[tokio::test]
async fn a_permanent_failure_reaches_who_waits_at_once() {
    let daemon = Daemon::start("rules: [{fail: {code: forbidden, message: no, permanent: true}}]");
    let error = daemon.call("completion:sync", json!({ "prompt": "x" })).await.unwrap_err();
    assert_eq!((error.code, error.message.as_str()), (Code::Forbidden, "no"));
    assert_eq!(daemon.facts("completion:retrying").len(), 0);
}

#[tokio::test]
async fn a_provider_that_says_nothing_for_a_minute_is_asked_again() {
    let mut daemon =
        Daemon::start("{log: calls.ndjson, rules: [{hang: true, attempts: 1}, {answers: [ok]}]}");
    let ask = json!({ "prompt": "x", "retry": { "initial_ms": 0 } });
    let accepted = daemon.call("completion:async", ask).await.unwrap();
    let id = accepted["request_id"].as_str().unwrap().to_owned();
    daemon.hear("completion:started", &id).await;
    daemon.called(1).await;
    daemon.clock.advance(60_000);
    assert_eq!(daemon.hear("completion:retrying", &id).await["code"], "timeout");
    assert_eq!(daemon.hear("completion:result", &id).await["attempts"], 2);
}

#[tokio::test]
async fn a_request_that_takes_longer_than_it_may_fails_for_good() {
    let mut daemon = Daemon::start("{log: calls.ndjson, rules: [{hang: true}]}");
    let ask = json!({ "prompt": "x", "timeout_ms": 2_000 });
    let accepted = daemon.call("completion:async", ask).await.unwrap();
    let id = accepted["request_id"].as_str().unwrap().to_owned();
    daemon.hear("completion:started", &id).await;
    daemon.called(1).await;
    daemon.clock.advance(2_000);
    let failed = daemon.hear("completion:failed", &id).await;
    assert_eq!((&failed["error"]["code"], &failed["attempts"]), (&json!("timeout"), &json!(1)));
}
