use ksi_protocol::{Code, Context};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::join;

use crate::daemon::{both, connected, patiently};

#[derive(Debug, Deserialize, PartialEq)]
struct Health {
    status: String,
}

#[tokio::test]
async fn a_call_sends_its_data_and_returns_the_typed_answer() {
    let (client, mut daemon) = connected().await;
    let data = json!({"detail": true});
    let (health, ()) = both(client.call::<Health>("system:health", &data), async {
        let request = daemon.expect("system:health").await;
        assert_eq!(request["data"], json!({"detail": true}));
        assert_eq!(request.get("context"), None);
        daemon.answer(&request, json!({"status": "healthy"})).await;
    })
    .await;
    assert_eq!(health.unwrap(), Health { status: "healthy".to_owned() });
}

#[tokio::test]
async fn a_context_goes_along() {
    let (client, mut daemon) = connected().await;
    let context = Context {
        token: Some("t".to_owned()),
        idempotency_key: Some("k".to_owned()),
        ..Context::default()
    };
    let (answer, ()) = both(client.call_with::<Value>("a:b", &(), &context), async {
        let request = daemon.expect("a:b").await;
        assert_eq!(request["context"], json!({"token": "t", "idempotency_key": "k"}));
        daemon.answer(&request, json!({})).await;
    })
    .await;
    assert_eq!(answer.unwrap(), json!({}));
}

#[tokio::test]
async fn an_error_of_the_daemon_comes_back_whole() {
    let (client, mut daemon) = connected().await;
    let (answer, ()) = both(client.emit("agnt:spawn", &()), async {
        let request = daemon.expect("agnt:spawn").await;
        let error = json!({"code": "unhandled", "message": "no plugin", "hint": "did you mean"});
        daemon.fail(&request, error).await;
    })
    .await;
    let error = answer.unwrap_err();
    assert_eq!((error.code, error.message.as_str()), (Code::Unhandled, "no plugin"));
    assert_eq!(error.hint.as_deref(), Some("did you mean"));
}

#[tokio::test]
async fn calls_in_flight_together_each_get_their_own_answer() {
    let (client, mut daemon) = connected().await;
    let calls = (0..100).map(|n| {
        let client = client.clone();
        async move { client.call::<u64>("math:echo", &json!({ "n": n })).await.unwrap() == n }
    });
    let mut calls: tokio::task::JoinSet<bool> = calls.collect();
    let mut requests = Vec::new();
    for _ in 0..100 {
        requests.push(daemon.expect("math:echo").await);
    }
    for request in requests.iter().rev() {
        daemon.answer(request, request["data"]["n"].clone()).await;
    }
    let mut right = 0;
    while let Some(own) = patiently(calls.join_next()).await {
        right += usize::from(own.unwrap());
    }
    assert_eq!(right, 100);
}

#[tokio::test]
async fn requests_and_replies_may_be_large() {
    let (client, mut daemon) = connected().await;
    let text = "x".repeat(20 << 20);
    let data = json!({ "text": text });
    let (answer, ()) = both(client.call::<Value>("a:b", &data), async {
        let request = daemon.expect("a:b").await;
        daemon.answer(&request, request["data"].clone()).await;
    })
    .await;
    assert_eq!(answer.unwrap()["text"].as_str().unwrap().len(), text.len());
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_does_not_disturb_the_next() {
    let (client, mut daemon) = connected().await;
    let first = tokio::select! {
        _ = client.emit("a:slow", &()) => panic!("nobody answered"),
        request = daemon.expect("a:slow") => request,
    };
    let (answer, ()) = both(client.call::<u64>("a:quick", &()), async {
        let second = daemon.expect("a:quick").await;
        daemon.answer(&first, json!(1)).await;
        daemon.answer(&second, json!(2)).await;
    })
    .await;
    assert_eq!(answer.unwrap(), 2);
}

#[tokio::test]
async fn an_answer_of_another_shape_is_an_error() {
    let (client, mut daemon) = connected().await;
    let (answer, ()) = both(client.call::<Health>("system:health", &()), async {
        let request = daemon.expect("system:health").await;
        daemon.answer(&request, json!({"state": "healthy"})).await;
    })
    .await;
    let error = answer.unwrap_err();
    assert_eq!(error.code, Code::Internal);
    assert!(error.message.contains("missing field `status`"), "{error}");
}

#[tokio::test]
async fn a_request_that_is_too_long_to_be_read_fails_alone() {
    let (client, mut daemon) = connected().await;
    let long = json!({ "text": "x".repeat(1000) });
    let (long, short, ()) = patiently(async {
        join!(client.emit("a:long", &long), client.call::<u64>("a:short", &()), async {
            let _long = daemon.expect("a:long").await;
            let short = daemon.expect("a:short").await;
            let nobody = json!({"event": null});
            let error = json!({"code": "too_large", "message": "1000 bytes"});
            daemon.fail(&nobody, error).await;
            daemon.answer(&short, json!(1)).await;
        })
    })
    .await;
    assert_eq!(long.unwrap_err().code, Code::TooLarge);
    assert_eq!(short.unwrap(), 1);
}
