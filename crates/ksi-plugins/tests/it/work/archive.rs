//! What has ended leaves memory and is still told.

use ksi_kernel::{Code, Journal, Select};
use serde_json::{Value, json};

use super::harness::Daemon;

const STORY: &str = "{log: calls.ndjson, rules: [
    {when: please fail, fail: {code: bad_params, message: no, permanent: true}},
    {when: hang, hang: true},
    {answers: [One., Two., Three.]},
]}";

/// The queue's state as a snapshot would hold it.
fn state(daemon: &Daemon) -> Value {
    let [live, folded] = daemon.kernel.audit().unwrap();
    assert_eq!(live, folded);
    live.into_iter().find(|snapshot| snapshot.plugin == "work").unwrap().state
}

async fn sync(daemon: &Daemon, conversation: &str, prompt: &str) -> ksi_kernel::Result<Value> {
    let ask = json!({ "prompt": prompt, "conversation_id": conversation });
    daemon.call("completion:sync", ask).await
}

async fn conversation(daemon: &Daemon, id: &str) -> Value {
    daemon.call("conversation:get", json!({ "conversation_id": id })).await.unwrap()
}

#[tokio::test]
async fn what_has_ended_is_found_right_after_its_reply_and_after_a_restart_but_not_in_the_state() {
    let daemon = Daemon::start(STORY);
    for _ in 0..50 {
        let answer = sync(&daemon, "talk", "hello").await.unwrap();
        let status = daemon.status(answer["request_id"].as_str().unwrap()).await;
        assert_eq!((&status["status"], &status["attempts"]), (&json!("completed"), &json!(1)));
    }
    sync(&daemon, "talk", "please fail").await.unwrap_err();
    let before = conversation(&daemon, "talk").await;
    let state = state(&daemon);
    for nothing in ["open", "finished", "conversations"] {
        assert_eq!(state[nothing], json!({}), "{state}");
    }
    let daemon = daemon.restart().await;
    assert_eq!(conversation(&daemon, "talk").await, before);
    assert_eq!(before["turns"].as_array().unwrap().len(), 50);
    let counts = daemon.call("completion:status", json!({})).await.unwrap();
    assert_eq!((&counts["completed"], &counts["failed"]), (&json!(50), &json!(1)));
    let listed = daemon.call("completion:list", json!({ "limit": 3 })).await.unwrap();
    let statuses: Vec<_> = (0..3).map(|n| listed["completions"][n]["status"].clone()).collect();
    assert_eq!(statuses, ["failed", "completed", "completed"]);
    let failed = daemon.call("completion:list", json!({ "status": "failed" })).await.unwrap();
    assert_eq!(failed["completions"][0]["error"]["message"], "no");
}

#[tokio::test]
async fn a_turn_is_given_all_that_was_said_though_the_state_holds_none_of_it() {
    let daemon = Daemon::start(STORY);
    sync(&daemon, "talk", "first").await.unwrap();
    let began = conversation(&daemon, "talk").await["created_at"].clone();
    daemon.clock.advance(5_000);
    let daemon = daemon.restart().await;
    sync(&daemon, "talk", "second").await.unwrap();
    let said = daemon.calls()[1]["messages"].clone();
    let said: Vec<_> = (0..3).map(|n| said[n]["content"].clone()).collect();
    assert_eq!(said, ["first", "One.", "second"]);
    let talks = daemon.call("conversation:list", json!({})).await.unwrap();
    let talk = &talks["conversations"][0];
    assert_eq!((&talk["turns"], &talk["created_at"]), (&json!(2), &began), "{talk}");
    assert_eq!(talk["updated_at"], began.as_u64().unwrap() + 5_000);
}

#[tokio::test]
async fn a_conversation_under_way_is_told_with_its_past_and_once() {
    let mut daemon = Daemon::start(STORY);
    sync(&daemon, "talk", "first").await.unwrap();
    let hanging = daemon.ask("talk", "hang").await;
    let waiting = daemon.ask("talk", "later").await;
    daemon.hear("completion:started", &hanging).await;
    let talk = conversation(&daemon, "talk").await;
    assert_eq!(
        (&talk["open"], &talk["turns"][0]["text"]),
        (&json!([hanging, waiting]), &json!("One."))
    );
    let talks = daemon.call("conversation:list", json!({})).await.unwrap();
    assert_eq!((&talks["total"], &talks["conversations"][0]["turns"]), (&json!(1), &json!(1)));
    daemon.call("completion:cancel", json!({ "request_id": hanging })).await.unwrap();
    daemon.hear("completion:result", &waiting).await;
    let again = daemon.call("completion:cancel", json!({ "request_id": hanging })).await;
    let again = again.unwrap_err();
    assert_eq!(again.code, Code::Conflict, "{again}");
    assert_eq!(conversation(&daemon, "talk").await["turns"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_conversation_in_which_nothing_was_ever_tried_leaves_no_trace() {
    let mut daemon = Daemon::start("{concurrency: 1, rules: [{hang: true}]}");
    let first = daemon.ask("one", "x").await;
    daemon.hear("completion:started", &first).await;
    let second = daemon.ask("two", "x").await;
    daemon.call("completion:cancel", json!({ "request_id": second })).await.unwrap();
    let missing = daemon.call("conversation:get", json!({ "conversation_id": "two" })).await;
    assert_eq!(missing.unwrap_err().code, Code::NotFound);
    assert_eq!(daemon.status(&second).await["status"], "cancelled");
    assert!(daemon.journal.documents(&Select::all("conversations")).unwrap().is_empty());
}

#[tokio::test]
async fn the_state_does_not_grow_with_what_has_ended() {
    let daemon = Daemon::start(STORY);
    let mut sizes = Vec::new();
    for round in 0..3 {
        for n in 0..100 {
            sync(&daemon, &format!("talk {round} {n}"), "hello").await.unwrap();
        }
        sizes.push(state(&daemon).to_string().len());
    }
    // A count has more digits than before; nothing else is longer.
    assert!(sizes[2] <= sizes[0] + 2, "{sizes:?}");
}
