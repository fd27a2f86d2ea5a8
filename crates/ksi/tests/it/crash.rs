//! `kill -9` after every fact of a debate.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};

use crate::daemon::{Daemon, Home, data, next_of, subscribe};

const SCRIPT: &str = "log: $LOG\nrules:\n  - echo: true\n";

#[tokio::test]
async fn a_debate_survives_a_kill_right_before_every_fact() {
    kill_at_every_fact("append").await;
}

#[tokio::test]
async fn a_debate_survives_a_kill_right_after_every_fact() {
    kill_at_every_fact("appended").await;
}

async fn kill_at_every_fact(point: &str) {
    for (kills, seq) in (1..).enumerate() {
        let home = Home::new();
        let (model, log) = home.script(SCRIPT);
        let hold = format!("{point}:{seq}");
        let mut daemon = home.daemon_with(&[("KSI_HOLD", &hold)]);
        daemon.wait_for("ready").await;
        if debate_or_hold(&mut daemon, &model).await {
            assert!(kills >= 12, "a debate of four turns has more than {kills} facts");
            return;
        }
        daemon.kill();
        let daemon = home.daemon().await;
        finish(&daemon, &model).await;
        check(&home, &log, &hold);
    }
}

/// Starts a debate; true if it ended, false if the daemon was held before.
async fn debate_or_hold(daemon: &mut Daemon, model: &str) -> bool {
    let client = daemon.client().await;
    let mut events = subscribe(&client, "orchestration:finished", None).await;
    let ended = async {
        start(&client, model).await;
        next_of(&mut events, "orchestration:finished").await
    };
    tokio::select! {
        _ = ended => true,
        _ = daemon.wait_for("held at") => false,
    }
}

async fn start(client: &ksi_protocol::Client, model: &str) {
    let request = json!({ "pattern": "debate", "model": model, "rounds": 2, "vars": { "topic": "Is P=NP?" } });
    let _ = client.call::<Value>("orchestration:start", &request).await;
}

/// Lets the debate go on to its end; one whose start was never acknowledged is started again.
async fn finish(daemon: &Daemon, model: &str) {
    let client = daemon.client().await;
    let mut events = subscribe(&client, "orchestration:finished", Some(0)).await;
    let runs: Value = client.call("orchestration:list", &json!({})).await.unwrap();
    if runs.as_array().is_none_or(Vec::is_empty) {
        start(&client, model).await;
    }
    data(&next_of(&mut events, "orchestration:finished").await);
}

/// Every turn is there once, and the provider was asked at most once more than needed.
fn check(home: &Home, log: &Path, hold: &str) {
    let facts = home.json(&[
        "emit",
        "monitor:get_events",
        "event_patterns=[\"*\"]",
        "limit=1000",
        "reverse=false",
    ]);
    let facts = facts["events"].as_array().unwrap();
    let turns: Vec<_> = facts
        .iter()
        .filter(|fact| fact["event"] == "orchestration:turn_taken")
        .map(|fact| fact["data"]["turn"].as_u64().unwrap())
        .collect();
    assert_eq!(turns.len(), 4, "killed at {hold}: {turns:?}");
    assert!(turns.windows(2).all(|pair| pair[0] + 1 == pair[1]), "killed at {hold}: {turns:?}");
    let mut asked: BTreeMap<String, u32> = BTreeMap::new();
    for line in std::fs::read_to_string(log).unwrap().lines() {
        let call: Value = serde_json::from_str(line).unwrap();
        *asked.entry(call["request_id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    let repeated: u32 = asked.values().map(|times| times - 1).sum();
    assert_eq!(asked.len(), 4, "killed at {hold}: {asked:?}");
    assert!(repeated <= 1, "killed at {hold}: {asked:?}");
}
