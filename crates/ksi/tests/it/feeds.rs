//! Subscriptions through the real daemon: every fact once, whoever joins, lags or dies.

use std::{path::PathBuf, time::Duration};

use ksi_protocol::{Client, Context, Feed, News, Pattern};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::daemon::{Home, PATIENCE, data};

fn patterns(text: &str) -> Vec<Pattern> {
    vec![Pattern::parse(text).unwrap()]
}

fn socket(home: &Home) -> PathBuf {
    home.path().join("run/daemon.sock")
}

async fn set(client: &Client, value: u64) {
    client.emit("state:set", &json!({ "key": "k", "value": value })).await.unwrap();
}

/// The next event of a feed, over whatever happens to its daemon.
async fn event(feed: &mut Feed) -> ksi_protocol::Pushed {
    let next = async {
        loop {
            match feed.next().await.expect("the feed goes on") {
                News::Event(event) => return event,
                News::Away(_) | News::Back { .. } => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, next).await.expect("an event comes")
}

/// The numbers of the next facts.
async fn seqs(feed: &mut Feed, count: usize) -> Vec<u64> {
    let mut seqs = Vec::new();
    while seqs.len() < count {
        seqs.extend(event(feed).await.seq);
    }
    seqs
}

fn start(home: &Home) -> Pid {
    let pid = home.json(&["start", "-o", "json"])["pid"].as_i64().unwrap();
    Pid::from_raw(pid as i32).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_goes_on_over_kill_9_and_restart_with_every_fact_once() {
    let home = Home::new();
    let mut pid = start(&home);
    let mut feed = Feed::open(socket(&home), patterns("state:*"), None, PATIENCE).await.unwrap();
    let mut expected = 1;
    for round in 0..4 {
        let client = Client::connect(&socket(&home)).await.unwrap();
        for value in 0..50 {
            set(&client, value).await;
        }
        // Some are taken before the daemon dies, and the others after.
        let taken = seqs(&mut feed, 20).await;
        assert_eq!(taken, (expected..expected + 20).collect::<Vec<_>>(), "round {round}");
        match round % 2 {
            0 => {
                kill_process(pid, Signal::KILL).unwrap();
                pid = start(&home);
            }
            _ => {
                let replaced = home.json(&["restart", "-o", "json"])["pid"].as_i64().unwrap();
                pid = Pid::from_raw(replaced as i32).unwrap();
            }
        }
        let taken = seqs(&mut feed, 30).await;
        assert_eq!(taken, (expected + 20..expected + 50).collect::<Vec<_>>(), "round {round}");
        expected += 50;
        assert_eq!(feed.seen(), expected - 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_begins_with_what_happens_from_now_on_also_when_its_daemon_dies_first() {
    let home = Home::new();
    let pid = start(&home);
    let client = Client::connect(&socket(&home)).await.unwrap();
    set(&client, 1).await;
    let mut feed = Feed::open(socket(&home), patterns("state:*"), None, PATIENCE).await.unwrap();
    assert_eq!(feed.seen(), 1);
    kill_process(pid, Signal::KILL).unwrap();
    assert!(matches!(feed.next().await, Some(News::Away(_))));
    assert!(feed.away().is_some());
    start(&home);
    set(&Client::connect(&socket(&home)).await.unwrap(), 2).await;
    assert!(matches!(feed.next().await, Some(News::Back { pruned: None })));
    assert_eq!(event(&mut feed).await.seq, Some(2), "the first fact is not its own to see");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_ends_when_no_daemon_comes_back_in_time() {
    let home = Home::new();
    start(&home);
    let patience = Duration::from_millis(200);
    let mut feed = Feed::open(socket(&home), patterns("*"), None, patience).await.unwrap();
    home.ok(&["stop"]);
    let mut away = None;
    while let Some(news) = feed.next().await {
        if let News::Away(why) = news {
            away = Some(why.code);
        }
    }
    assert_eq!(away, Some(ksi_protocol::Code::Shutdown));
    assert!(feed.next().await.is_none(), "its time is over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_slowly_misses_no_fact_and_slows_nobody_down() {
    let home = Home::new();
    let _daemon = home.daemon().await;
    let mut feed = Feed::open(socket(&home), patterns("state:*"), None, PATIENCE).await.unwrap();
    let client = Client::connect(&socket(&home)).await.unwrap();
    // More than the client, both sockets' buffers and the ring can hold together.
    let long = "x".repeat(10_000);
    let facts = 4_000;
    let sets: Vec<_> = (0..facts)
        .map(|value| {
            let data = json!({ "key": "k", "value": format!("{value}{long}") });
            let client = client.clone();
            async move { client.emit("state:set", &data).await.unwrap() }
        })
        .collect();
    futures_util::future::join_all(sets).await;
    let health: Value = client.call("system:health", &json!({})).await.unwrap();
    assert_eq!(health["status"], "healthy");
    let taken = seqs(&mut feed, facts).await;
    assert!(taken.into_iter().eq(1..=facts as u64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_join_at_any_time_get_each_fact_once_while_facts_flow() {
    let home = Home::new();
    let _daemon = home.daemon().await;
    let client = Client::connect(&socket(&home)).await.unwrap();
    let facts = 1_500;
    let flow = async {
        for value in 0..facts {
            set(&client, value).await;
        }
    };
    let join = |number: u64| {
        let (client, socket) = (client.clone(), socket(&home));
        async move {
            // Each joins when about so many facts are there, from behind an earlier one.
            let mut seen = client.subscribe(patterns("state:*"), Some(0)).await.unwrap();
            while seen.next().await.unwrap().seq.unwrap() < number * 25 {}
            drop(seen);
            let since = number * 11;
            let feed = Feed::open(socket, patterns("state:*"), Some(since), PATIENCE).await;
            let taken = seqs(&mut feed.unwrap(), (facts - since) as usize).await;
            assert!(taken.into_iter().eq(since + 1..=facts), "of number {number}");
        }
    };
    let all = futures_util::future::join_all((1..=50).map(join));
    let both = async { tokio::join!(flow, all) };
    tokio::time::timeout(PATIENCE, both).await.expect("all get all in time");
}

#[tokio::test]
async fn who_asks_for_what_is_gone_is_told_so() {
    let home = Home::new();
    home.ok(&["config", "set", "journal.keep_bytes", "1"]);
    let daemon = home.daemon().await;
    let client = daemon.client().await;
    for _ in 0..3 {
        for value in 0..20 {
            set(&client, value).await;
        }
        home.ok(&["checkpoint", "save"]);
    }
    let stats = || async { client.call::<Value>("monitor:get_stats", &json!({})).await.unwrap() };
    while stats().await["pruned"] == 0 {}
    let pruned = stats().await["pruned"].as_u64().unwrap();
    let feed = |since| Feed::open(socket(&home), patterns("state:*"), since, PATIENCE);
    let mut early = feed(Some(0)).await.unwrap();
    assert_eq!(early.pruned(), Some(pruned));
    assert!(event(&mut early).await.seq > Some(pruned), "what is left comes");
    assert_eq!(feed(Some(pruned)).await.unwrap().pruned(), None);
    assert_eq!(feed(None).await.unwrap().pruned(), None);
    let read = json!({ "reverse": false, "event_patterns": ["state:*"] });
    let read: Value = client.call("monitor:get_events", &read).await.unwrap();
    assert_eq!(read["pruned"], pruned);

    let mut listen = home.command(&["listen", "state:*", "--since", "0"]).spawn().unwrap();
    let mut said = String::new();
    let stderr = listen.stderr.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stderr), &mut said).unwrap();
    listen.kill().unwrap();
    listen.wait().unwrap();
    assert_eq!(said, format!("note: of the facts up to {pruned} the journal keeps only some\n"));
}

#[tokio::test]
async fn the_monitor_tells_what_goes_on_and_what_came_of_a_request() {
    let home = Home::new();
    let daemon = home.daemon().await;
    let client = daemon.client().await;
    let (model, _) = home.script("rules: [{answers: [one, two]}]");
    for key in ["a", "b"] {
        let context = Context { idempotency_key: Some(key.into()), ..Context::default() };
        let ask = json!({ "prompt": "x", "model": model, "conversation_id": "c" });
        client.call_with::<Value>("completion:sync", &ask, &context).await.unwrap();
    }
    let status = json!({ "session_id": "c" });
    let status: Value = client.call("completion:session_status", &status).await.unwrap();
    assert_eq!(status, json!({ "session_id": "c", "status": "idle", "queued": [], "turns": 2 }));
    let events: Value =
        client.call("monitor:get_session_events", &json!({ "session_id": "c" })).await.unwrap();
    let names: Vec<_> =
        events["events"].as_array().unwrap().iter().map(|it| &it["event"]).collect();
    let turn = ["completion:queued", "completion:started", "completion:result"];
    assert_eq!(names, [turn, turn].concat());

    let mut news = client.subscribe(patterns("state:*"), None).await.unwrap();
    let line = r#"{"event":"state:set","data":{"key":"k","value":1},"correlation_id":"mine"}"#;
    let mut raw = std::os::unix::net::UnixStream::connect(socket(&home)).unwrap();
    std::io::Write::write_all(&mut raw, format!("{line}\n").as_bytes()).unwrap();
    let told = news.next().await.unwrap();
    assert_eq!(data(&told)["key"], "k");
    let chain = json!({ "correlation_id": "mine" });
    let chain: Value = client.call("monitor:get_correlation_chain", &chain).await.unwrap();
    assert_eq!((&chain["count"], &chain["events"][0]["seq"]), (&json!(1), &json!(told.seq)));

    let stats: Value = client.call("monitor:get_stats", &json!({})).await.unwrap();
    assert_eq!(
        (&stats["seq"], &stats["pruned"], &stats["missed"]),
        (&json!(told.seq), &json!(0), &json!(0))
    );
    assert!(
        stats["events"]["facts"].as_u64() >= Some(1) && stats["subscriptions"].as_u64() >= Some(1)
    );
    for (event, data, path) in [
        ("monitor:get_session_events", json!({ "session_id": "none" }), "session_id"),
        ("completion:session_status", json!({ "session_id": "none" }), "session_id"),
        ("monitor:get_correlation_chain", json!({ "correlation_id": "x", "limit": 0 }), "limit"),
    ] {
        let error = client.call::<Value>(event, &data).await.unwrap_err();
        assert_eq!(error.path.as_deref(), Some(path), "{error:?}");
    }
}

#[tokio::test]
async fn what_is_read_at_once_is_cut_at_eight_megabytes_and_says_so() {
    let home = Home::new();
    let daemon = home.daemon().await;
    let client = daemon.client().await;
    let long = "x".repeat(3 << 20);
    for _ in 0..4 {
        client.emit("state:set", &json!({ "key": "k", "value": long })).await.unwrap();
    }
    let read = async |after: u64| -> (Vec<u64>, Value) {
        let asked = json!({ "after": after, "reverse": false });
        let mut read: Value = client.call("monitor:get_events", &asked).await.unwrap();
        let seqs = read["events"].as_array().unwrap().iter().map(|it| it["seq"].as_u64().unwrap());
        (seqs.collect(), read["more"].take())
    };
    assert_eq!(read(0).await, (vec![1, 2, 3], json!(true)));
    assert_eq!(read(3).await, (vec![4], Value::Null));
}
