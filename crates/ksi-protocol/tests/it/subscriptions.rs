use ksi_protocol::{Client, Code, Options, Pattern, Subscription};
use serde_json::{Value, json};

use crate::daemon::{Daemon, both, connected, connected_with, patiently};

async fn subscribe(
    client: &Client,
    daemon: &mut Daemon,
    patterns: &[&str],
    since: Option<u64>,
    reply: Value,
) -> Subscription {
    let patterns = patterns.iter().map(|text| Pattern::parse(text).unwrap()).collect();
    let (subscription, ()) = both(client.subscribe(patterns, since), async {
        let request = daemon.expect("monitor:subscribe").await;
        daemon.answer(&request, reply).await;
    })
    .await;
    subscription.unwrap()
}

async fn seqs(subscription: &mut Subscription, count: usize) -> Vec<u64> {
    let mut seqs = Vec::new();
    for _ in 0..count {
        let event = patiently(subscription.next()).await.expect("there is one more event");
        seqs.push(event.seq.expect("it is a fact"));
    }
    seqs
}

/// Everything that was sent before this has been taken in when it returns.
async fn settled(client: &Client, daemon: &mut Daemon) {
    let (answer, ()) = both(client.emit("test:settled", &()), async {
        let request = daemon.expect("test:settled").await;
        daemon.answer(&request, json!({})).await;
    })
    .await;
    answer.unwrap();
}

#[tokio::test]
async fn a_subscription_names_its_patterns_and_where_it_starts() {
    let (client, mut daemon) = connected().await;
    let patterns = vec![Pattern::parse("completion:*").unwrap()];
    let (subscription, ()) = both(client.subscribe(patterns, Some(120)), async {
        let request = daemon.expect("monitor:subscribe").await;
        assert_eq!(request["data"], json!({"event_patterns": ["completion:*"], "since": 120}));
        daemon.answer(&request, json!({"subscription": "s1"})).await;
        daemon.push("s1", "completion:result", 121).await;
    })
    .await;
    let mut subscription = subscription.unwrap();
    let event = patiently(subscription.next()).await.unwrap();
    assert_eq!((event.event.as_str(), event.seq), ("completion:result", Some(121)));
    assert_eq!(event.data.get(), r#"{"n":121}"#);
    assert_eq!(subscription.last_seq(), Some(121));
}

#[tokio::test]
async fn events_right_behind_the_answer_are_not_lost() {
    let (client, mut daemon) = connected().await;
    let (subscription, ()) = both(client.subscribe(Vec::new(), None), async {
        let request = daemon.expect("monitor:subscribe").await;
        let mut bytes = json!({
            "event": "monitor:subscribe", "data": {"subscription": "s1"}, "count": 1,
            "correlation_id": request["correlation_id"], "timestamp": 1,
        })
        .to_string();
        for seq in 1..=3 {
            bytes += &format!(
                "\n{{\"event\":\"a:b\",\"data\":{{}},\"seq\":{seq},\"timestamp\":1,\"subscription\":\"s1\"}}"
            );
        }
        daemon.send_bytes((bytes + "\n").as_bytes()).await;
    }).await;
    assert_eq!(seqs(&mut subscription.unwrap(), 3).await, [1, 2, 3]);
}

#[tokio::test]
async fn an_event_for_several_subscriptions_comes_once_and_reaches_them_all() {
    let (client, mut daemon) = connected().await;
    let mut all =
        subscribe(&client, &mut daemon, &["*"], None, json!({"subscription": "s9"})).await;
    let mut agents =
        subscribe(&client, &mut daemon, &["agent:*"], None, json!({"subscription": "s10"})).await;
    daemon.push("s9", "agent:spawned", 1).await;
    daemon.push("s9", "state:changed", 2).await;
    daemon.push("s10", "agent:stopped", 3).await;
    daemon.push("s9", "agent:spawned", 4).await;
    assert_eq!(seqs(&mut all, 3).await, [1, 2, 4]);
    assert_eq!(seqs(&mut agents, 3).await, [1, 3, 4]);
}

#[tokio::test]
async fn a_later_subscription_does_not_get_what_was_before_it() {
    let (client, mut daemon) = connected().await;
    let mut old =
        subscribe(&client, &mut daemon, &["a:*"], Some(0), json!({"subscription": "s1"})).await;
    let reply = json!({"subscription": "s2", "since": 2});
    let mut live = subscribe(&client, &mut daemon, &["a:*"], None, reply).await;
    for seq in 1..=4 {
        daemon.push("s1", "a:b", seq).await;
    }
    assert_eq!(seqs(&mut old, 4).await, [1, 2, 3, 4]);
    assert_eq!(seqs(&mut live, 2).await, [3, 4]);
}

#[tokio::test]
async fn a_slow_reader_loses_the_oldest_and_holds_nobody_up() {
    let options = Options { queued_events: 10, ..Options::default() };
    let (client, mut daemon) = connected_with(&options).await;
    let mut slow =
        subscribe(&client, &mut daemon, &["*"], None, json!({"subscription": "s1"})).await;
    for seq in 1..=1000 {
        daemon.push("s1", "a:b", seq).await;
    }
    settled(&client, &mut daemon).await;
    assert_eq!(slow.lagged(), 990);
    assert_eq!(seqs(&mut slow, 10).await, (991..=1000).collect::<Vec<_>>());
    daemon.push("s1", "a:b", 1001).await;
    assert_eq!(seqs(&mut slow, 1).await, [1001]);
    assert_eq!(slow.lagged(), 990);
}

#[tokio::test]
async fn waiting_events_are_bounded_in_bytes_too() {
    let options = Options { queued_bytes: 1, ..Options::default() };
    let (client, mut daemon) = connected_with(&options).await;
    let mut slow =
        subscribe(&client, &mut daemon, &["*"], None, json!({"subscription": "s1"})).await;
    daemon.push("s1", "a:b", 1).await;
    daemon.push("s1", "a:b", 2).await;
    settled(&client, &mut daemon).await;
    assert_eq!(slow.lagged(), 1);
    assert_eq!(seqs(&mut slow, 1).await, [2]);
}

#[tokio::test]
async fn a_dropped_subscription_is_ended_at_the_daemon() {
    let (client, mut daemon) = connected().await;
    let first = subscribe(&client, &mut daemon, &["*"], None, json!({"subscription": "s1"})).await;
    let mut second =
        subscribe(&client, &mut daemon, &["*"], None, json!({"subscription": "s2"})).await;
    let mut unasked = client.unasked();
    drop(first);
    let request = daemon.expect("monitor:unsubscribe").await;
    assert_eq!(request["data"], json!({"subscription": "s1"}));
    daemon.push("s1", "a:b", 1).await;
    daemon.answer(&request, json!({})).await;
    daemon.push("s2", "a:b", 2).await;
    daemon.push("sender", "completion:result", 3).await;
    assert_eq!(seqs(&mut second, 2).await, [1, 2], "what was on its way counts for the others");
    assert_eq!(seqs(&mut unasked, 1).await, [3]);
}

#[tokio::test]
async fn a_subscription_that_nobody_waited_for_is_ended_too() {
    let (client, mut daemon) = connected().await;
    let request = tokio::select! {
        _ = client.subscribe(Vec::new(), None) => panic!("nobody answered"),
        request = daemon.expect("monitor:subscribe") => request,
    };
    daemon.answer(&request, json!({"subscription": "s1"})).await;
    let request = daemon.expect("monitor:unsubscribe").await;
    assert_eq!(request["data"], json!({"subscription": "s1"}));
}

#[tokio::test]
async fn a_refused_subscription_is_an_error() {
    let (client, mut daemon) = connected().await;
    let (subscription, ()) = both(client.subscribe(Vec::new(), None), async {
        let request = daemon.expect("monitor:subscribe").await;
        daemon.fail(&request, json!({"code": "forbidden", "message": "not you"})).await;
    })
    .await;
    assert_eq!(subscription.unwrap_err().code, Code::Forbidden);
    settled(&client, &mut daemon).await;
}

#[tokio::test]
async fn a_subscription_keeps_the_connection_when_the_client_is_gone() {
    let (client, mut daemon) = connected().await;
    let mut subscription =
        subscribe(&client, &mut daemon, &["*"], None, json!({"subscription": "s1"})).await;
    drop(client);
    daemon.push("s1", "a:b", 1).await;
    assert_eq!(seqs(&mut subscription, 1).await, [1]);
}

#[tokio::test]
async fn a_subscription_ends_with_the_connection_after_its_last_event() {
    let (client, mut daemon) = connected().await;
    let mut subscription =
        subscribe(&client, &mut daemon, &["*"], None, json!({"subscription": "s1"})).await;
    assert_eq!(subscription.ended(), None);
    daemon.push("s1", "a:b", 1).await;
    drop(daemon);
    assert_eq!(seqs(&mut subscription, 1).await, [1]);
    assert!(patiently(subscription.next()).await.is_none());
    assert_eq!(subscription.ended().unwrap().code, Code::Unavailable);
}

#[tokio::test]
async fn the_farewell_of_the_daemon_is_an_event_and_the_reason_of_the_end() {
    let (client, mut daemon) = connected().await;
    let mut unasked = client.unasked();
    let (answer, ()) = both(client.emit("a:b", &()), async {
        daemon.expect("a:b").await;
        let farewell = json!({
            "event": "system:shutdown_notification", "data": {}, "timestamp": 1,
            "subscription": "sender",
        });
        daemon.send(farewell).await;
        drop(daemon);
    })
    .await;
    assert_eq!(answer.unwrap_err().code, Code::Shutdown);
    let farewell = patiently(unasked.next()).await.unwrap();
    assert_eq!(farewell.event, "system:shutdown_notification");
    assert!(patiently(unasked.next()).await.is_none());
    assert_eq!(unasked.ended().unwrap().code, Code::Shutdown);
}

/// Such events were taken for the ended subscription before the new one began, and come again in
/// their place: taken here, the last fact would come before those that lead to it.
#[tokio::test]
async fn what_comes_late_for_an_ended_subscription_is_not_taken_for_the_one_behind_it() {
    let (client, mut daemon) = connected().await;
    let all = &["a:*"][..];
    let first = subscribe(&client, &mut daemon, all, None, json!({"subscription": "s1"})).await;
    drop(first);
    let ending = daemon.expect("monitor:unsubscribe").await;
    let reply = json!({"subscription": "s2", "since": 3});
    let mut second = subscribe(&client, &mut daemon, all, Some(3), reply).await;
    daemon.push("s1", "a:finished", 6).await;
    daemon.answer(&ending, json!({})).await;
    daemon.push("s1", "a:finished", 6).await;
    for seq in 4..=6 {
        daemon.push("s2", "a:happened", seq).await;
    }
    assert_eq!(seqs(&mut second, 3).await, [4, 5, 6]);
}
