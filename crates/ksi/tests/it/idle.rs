//! An idle daemon does nothing.

use std::time::Duration;

use serde_json::{Value, json};

use crate::daemon::{Daemon, Home, subscribe};

/// Voluntary and involuntary context switches of all threads.
fn context_switches(daemon: &Daemon) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let switches = |status: String| -> u64 {
        let lines = status.lines().filter(|line| line.contains("ctxt_switches"));
        lines.map(|line| line.rsplit('\t').next().unwrap().parse::<u64>().unwrap()).sum()
    };
    tasks
        .map(|task| switches(std::fs::read_to_string(task.unwrap().path().join("status")).unwrap()))
        .sum()
}

fn resident_kib(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn an_idle_daemon_makes_no_context_switch_and_is_small() {
    let home = Home::new();
    let daemon = home.daemon().await;
    let client = daemon.client().await;
    for n in 0..1000 {
        let value = json!({ "key": format!("k{}", n % 10), "value": n });
        client.call::<Value>("state:set", &value).await.unwrap();
    }
    let (model, _) =
        home.script("log: $LOG\nrules:\n  - fail: {code: rate_limited, retry_after_ms: 3600000}\n");
    let mut retries = subscribe(&client, "completion:retrying", None).await;
    let request = json!({ "prompt": "x", "model": model, "timeout_ms": 36_000_000 });
    client.call::<Value>("completion:async", &request).await.unwrap();
    let far = crate::daemon::next_of(&mut retries, "completion:retrying").await;
    assert!(crate::daemon::data(&far)["delay_ms"].as_u64().unwrap() > 60_000, "no far deadline");
    let mut quiet = subscribe(&client, "*", None).await;
    let silence = tokio::time::timeout(Duration::from_secs(2), quiet.next()).await;
    assert!(silence.is_err(), "{silence:?}");
    let before = context_switches(&daemon);
    let silence = tokio::time::timeout(Duration::from_secs(5), quiet.next()).await;
    assert!(silence.is_err(), "{silence:?}");
    assert_eq!(context_switches(&daemon) - before, 0, "an idle daemon did something");
    let resident = resident_kib(&daemon);
    assert!(resident <= 25 * 1024, "{resident} KiB");
}
