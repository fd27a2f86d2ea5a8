//! The end of a daemon that is in the middle of everything.

use std::{io::Write, os::unix::net::UnixStream, time::Instant};

use serde_json::{Value, json};

use crate::daemon::{Home, data, next_of, subscribe};

/// Ten turns that finish in time, and ten that never would.
const SCRIPT: &str = "
concurrency: 64
rules:
  - {when: slow, answers: [one two three four five], delay_ms: 100}
  - {when: stuck, hang: true, attempts: 1}
  - answers: [at last]
";

const GRACE_S: u64 = 3;

#[tokio::test]
async fn stop_keeps_its_time_with_idle_and_stuck_clients_and_running_turns_and_loses_nothing() {
    let home = Home::new();
    let (model, _) = home.script(SCRIPT);
    home.ok(&["config", "set", "shutdown.grace_seconds", &GRACE_S.to_string()]);
    let mut daemon = home.daemon().await;
    let client = daemon.client().await;
    let mut started = subscribe(&client, "completion:started", None).await;
    let mut asked = Vec::new();
    for number in 0..20 {
        let prompt = if number % 2 == 0 { "slow" } else { "stuck" };
        let ask = json!({ "prompt": prompt, "model": model });
        let reply: Value = client.call("completion:async", &ask).await.unwrap();
        asked.push((reply["request_id"].as_str().unwrap().to_owned(), prompt));
        next_of(&mut started, "completion:started").await;
    }
    let socket = home.path().join("run/daemon.sock");
    let idle: Vec<_> = (0..100).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let stuck: Vec<_> = (0..10).map(|number| stuck(&socket, number)).collect();

    let begun = Instant::now();
    assert!(home.ok(&["stop"]).contains("has stopped"));
    let took = begun.elapsed().as_secs_f64();
    assert!(daemon.wait().success());
    assert!(took < GRACE_S as f64 + 4.0, "{took} s");
    drop((idle, stuck));

    let daemon = home.daemon().await;
    let client = daemon.client().await;
    let mut results = subscribe(&client, "completion:result", Some(0)).await;
    let mut answers = Vec::new();
    for _ in 0..20 {
        let result = data(&next_of(&mut results, "completion:result").await);
        let text = result["text"].as_str().unwrap().to_owned();
        answers.push((result["request_id"].as_str().unwrap().to_owned(), text));
    }
    answers.sort();
    let text = |prompt| if prompt == "slow" { "one two three four five" } else { "at last" };
    let mut expected: Vec<_> =
        asked.into_iter().map(|(id, prompt)| (id, text(prompt).to_owned())).collect();
    expected.sort();
    assert_eq!(answers, expected, "each has one result");
    let facts = json!({ "event_patterns": ["completion:result"] });
    let facts: Value = client.call("monitor:get_events", &facts).await.unwrap();
    assert_eq!(facts["count"], 20);
}

/// A client that asks until nobody reads any more and never reads, or that stops in half a line.
fn stuck(socket: &std::path::Path, number: usize) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    if number.is_multiple_of(2) {
        stream.write_all(b"{\"event\":\"system:he").unwrap();
        return stream;
    }
    stream
        .write_all(b"{\"event\":\"monitor:subscribe\",\"data\":{\"event_patterns\":[\"*\"]}}\n")
        .unwrap();
    stream.set_nonblocking(true).unwrap();
    let line = b"{\"event\":\"system:discover\",\"data\":{\"detail\":true}}\n";
    while stream.write(line).is_ok_and(|written| written == line.len()) {}
    stream
}
