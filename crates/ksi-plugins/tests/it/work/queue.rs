//! Accepting, ordering, answering and cancelling.

use ksi_kernel::{Because, Caller, Code, News};
use serde_json::{Value, json};

use super::harness::Daemon;

const ECHO: &str = "{log: calls.ndjson, rules: [{echo: true}]}";
const FIRST_HANGS: &str =
    "{log: calls.ndjson, rules: [{when: for ever, hang: true}, {answers: ['fine, {prompt}']}]}";

#[tokio::test]
async fn an_answer_has_the_shape_that_old_and_new_clients_read() {
    let daemon = Daemon::start("rules: [{answers: ['No, {instructions}.']}]");
    let ask = json!({
        "prompt": "Is P=NP?", "session_id": "s1", "instructions": "surely", "client_id": "me",
    });
    let result = daemon.call("completion:sync", ask).await.unwrap();
    assert_eq!(result["text"], "No, surely.");
    assert_eq!(result["conversation_id"], "s1");
    assert_eq!(result["attempts"], 1);
    assert_eq!(
        result["usage"],
        json!({ "input": 2, "output": 2, "cache_read": 0, "cache_creation": 0 })
    );
    let ksi = &result["result"]["ksi"];
    assert_eq!(ksi["provider"], "scripted");
    assert_eq!(ksi["client_id"], "me");
    assert_eq!(ksi["timestamp"], "1970-01-01T00:16:40Z");
    assert_eq!(ksi["request_id"], result["request_id"]);
    let response = &result["result"]["response"];
    assert_eq!(response["result"], "No, surely.");
    assert_eq!(response["session_id"], "s1");
    assert_eq!(response["total_cost_usd"], 0.0);
}

#[tokio::test]
async fn a_conversation_takes_one_turn_at_a_time_while_others_go_on() {
    let mut daemon = Daemon::start(FIRST_HANGS);
    let first = daemon.ask("ada", "talk for ever").await;
    let second = daemon.ask("ada", "and then?").await;
    let other = daemon.ask("bob", "hello").await;
    daemon.hear("completion:started", &first).await;
    assert_eq!(daemon.hear("completion:result", &other).await["text"], "fine, hello");
    assert_eq!(daemon.status(&first).await["status"], "running");
    let waiting = daemon.status(&second).await;
    assert_eq!((&waiting["status"], &waiting["position"]), (&json!("queued"), &json!(1)));

    daemon.call("completion:cancel", json!({ "request_id": first })).await.unwrap();
    daemon.hear("completion:result", &second).await;
    let began =
        daemon.facts("completion:started").into_iter().map(|fact| fact["request_id"].clone());
    assert_eq!(began.collect::<Vec<_>>(), [json!(first), json!(other), json!(second)]);
}

#[tokio::test]
async fn a_provider_works_on_no_more_requests_than_it_takes() {
    let script = FIRST_HANGS.replace("{log", "{concurrency: 1, log");
    let mut daemon = Daemon::start(&script);
    let first = daemon.ask("ada", "talk for ever").await;
    let second = daemon.ask("bob", "hello").await;
    daemon.hear("completion:started", &first).await;
    // While a third is accepted, the second would have begun if there were room.
    daemon.ask("eve", "hello").await;
    let counts = daemon.call("completion:status", json!({})).await.unwrap();
    assert_eq!((&counts["running"], &counts["queued"]), (&json!(1), &json!(2)));
    daemon.call("completion:cancel", json!({ "request_id": first })).await.unwrap();
    daemon.hear("completion:result", &second).await;
    let place = |name, request| daemon.place(name, request);
    assert!(place("completion:cancelled", &first) < place("completion:started", &second));
}

#[tokio::test]
async fn the_provider_is_given_the_history_the_prompt_and_the_instructions() {
    let daemon = Daemon::start("{log: calls.ndjson, rules: [{answers: [one, two]}]}");
    for prompt in ["first", "second"] {
        let ask = json!({ "prompt": prompt, "conversation_id": "ada", "instructions": "be brief" });
        daemon.call("completion:sync", ask).await.unwrap();
    }
    let call = daemon.calls().pop().unwrap();
    assert_eq!(call["instructions"], "be brief");
    assert_eq!(
        call["messages"],
        json!([
            { "role": "user", "content": "first" },
            { "role": "assistant", "content": "one" },
            { "role": "user", "content": "second" },
        ])
    );
    let whole = daemon.call("conversation:get", json!({ "session_id": "ada" })).await.unwrap();
    assert_eq!(whole["turns"][1]["text"], "two");
    assert_eq!(whole["messages"].as_array().unwrap().len(), 4);
    let listed = daemon.call("conversation:list", json!({})).await.unwrap();
    assert_eq!((&listed["total"], &listed["conversations"][0]["turns"]), (&json!(1), &json!(2)));
}

#[tokio::test]
async fn an_answer_comes_word_by_word() {
    let mut daemon = Daemon::start(ECHO);
    let request = daemon.ask("ada", "one two three").await;
    let mut words = Vec::new();
    let result = daemon
        .next(|event| {
            let data: Value = event.parse().unwrap();
            if event.name() == "completion:chunk" {
                assert_eq!((&data["request_id"], &data["attempt"]), (&json!(request), &json!(1)));
                words.push(data["text"].as_str().unwrap().to_owned());
            }
            (event.name() == "completion:result").then_some(data)
        })
        .await;
    assert_eq!(words, ["one ", "two ", "three"]);
    assert_eq!(result["text"], "one two three");
}

#[tokio::test]
async fn each_piece_of_an_answer_says_how_many_bytes_came_before_it() {
    let mut daemon = Daemon::start(ECHO);
    daemon.ask("ada", "zwölf Uhr früh").await;
    let mut offsets = Vec::new();
    daemon
        .next(|event| {
            let data: Value = event.parse().unwrap();
            offsets.extend(data["offset"].as_u64());
            (event.name() == "completion:result").then_some(())
        })
        .await;
    assert_eq!(offsets, [0, 7, 11]);
}

#[tokio::test]
async fn asked_for_a_model_the_providers_say_who_has_it() {
    let daemon = Daemon::start(ECHO);
    let asked = json!({ "model": "scripted/script" });
    let found = daemon.call("completion:providers", asked).await.unwrap();
    assert_eq!((&found["count"], &found["providers"][0]["name"]), (&json!(1), &json!("scripted")));
    let asked = json!({ "model": "scripted/gone" });
    let error = daemon.call("completion:providers", asked).await.unwrap_err();
    assert!(error.message.contains("gone.yaml"), "{error}");
    let asked = json!({ "model": "chatty" });
    let error = daemon.call("completion:providers", asked).await.unwrap_err();
    assert!(error.hint.unwrap().contains("local, scripted"));
}

#[tokio::test]
async fn a_cancelled_request_is_never_answered_nor_asked_if_it_was_queued() {
    let mut daemon = Daemon::start(FIRST_HANGS);
    let first = daemon.ask("ada", "talk for ever").await;
    let second = daemon.ask("ada", "never said").await;
    daemon.called(1).await;
    for (request, reason) in [(&second, "changed my mind"), (&first, "enough")] {
        let cancel = json!({ "request_id": request, "reason": reason });
        let cancelled = daemon.call("completion:cancel", cancel).await.unwrap();
        assert_eq!(
            (&cancelled["status"], &cancelled["conversation_id"]),
            (&json!("cancelled"), &json!("ada"))
        );
        assert_eq!(daemon.hear("completion:cancelled", request).await["reason"], reason);
    }
    let third = daemon.ask("ada", "hello").await;
    daemon.hear("completion:result", &third).await;
    assert_eq!(daemon.prompts(), ["talk for ever", "hello"]);
    assert_eq!(daemon.calls()[1]["messages"].as_array().unwrap().len(), 1, "no history of it");

    let again = daemon.call("completion:cancel", json!({ "request_id": first })).await;
    assert_eq!(again.unwrap_err().code, Code::Conflict);
    let unknown = daemon.call("completion:cancel", json!({ "request_id": "req_x" })).await;
    assert_eq!(unknown.unwrap_err().code, Code::NotFound);
}

#[tokio::test]
async fn who_waits_for_a_cancelled_request_is_told_so() {
    let mut daemon = Daemon::start(FIRST_HANGS);
    let ask = json!({ "prompt": "talk for ever", "idempotency_key": "k" });
    let accepted = daemon.call("completion:async", ask.clone()).await.unwrap();
    let id = accepted["request_id"].as_str().unwrap().to_owned();
    daemon.hear("completion:started", &id).await;
    let cancel = json!({ "request_id": id, "reason": "enough" });
    let (waited, cancelled) =
        tokio::join!(daemon.call("completion:sync", ask), daemon.call("completion:cancel", cancel));
    cancelled.unwrap();
    let error = waited.unwrap_err();
    assert_eq!(error.code, Code::Cancelled);
    assert!(error.message.contains("enough"), "{error}");
}

#[tokio::test]
async fn the_same_key_of_the_same_caller_is_the_same_request() {
    let daemon = Daemon::start(ECHO);
    let ask = json!({ "prompt": "hello", "idempotency_key": "turn 1" });
    let first = daemon.call("completion:sync", ask.clone()).await.unwrap();
    let second = daemon.call("completion:sync", ask.clone()).await.unwrap();
    assert_eq!(first, second);
    let accepted = daemon.call("completion:async", ask.clone()).await.unwrap();
    assert_eq!(accepted["request_id"], first["request_id"]);
    assert_eq!(accepted["status"], "completed");
    assert_eq!(daemon.calls().len(), 1);

    let ask = json!({ "prompt": "hello" });
    let mut agent = Caller::new("agent:eve");
    agent.idempotency_key = Some("turn 1".into());
    let other = daemon.call_as(agent.clone(), "completion:sync", ask.clone()).await.unwrap();
    assert_ne!(other["request_id"], first["request_id"]);
    let same = daemon.call_as(agent, "completion:sync", ask).await.unwrap();
    assert_eq!(other["request_id"], same["request_id"]);
}

#[tokio::test]
async fn a_request_is_found_by_its_key_also_when_its_model_has_gone() {
    let daemon = Daemon::start(ECHO);
    let ask = json!({ "prompt": "hello", "idempotency_key": "turn 1" });
    let first = daemon.call("completion:sync", ask.clone()).await.unwrap();
    std::fs::remove_file(daemon.folder.path().join("script.yaml")).unwrap();
    assert_eq!(daemon.call("completion:sync", ask).await, Ok(first));
    let other = daemon.call("completion:sync", json!({ "prompt": "hello" })).await;
    assert_eq!(other.unwrap_err().path.as_deref(), Some("model"));
}

#[tokio::test]
async fn who_asks_and_listens_to_nothing_is_sent_the_result_all_the_same() {
    let daemon = Daemon::start(ECHO);
    let mut listener = daemon.kernel.listener();
    let mut caller = Caller::operator();
    caller.inbox = Some(listener.inbox().clone());
    let ask = json!({ "prompt": "hello" });
    let accepted = daemon.call_as(caller, "completion:async", ask).await.unwrap();
    let Some(News::Event(event, because)) = listener.next().await else { panic!("it ended") };
    assert_eq!((event.name(), because), ("completion:result", Because::Followed));
    let data: Value = event.parse().unwrap();
    assert_eq!(data["request_id"], accepted["request_id"]);
}

#[tokio::test]
async fn a_request_that_cannot_be_meant_is_refused_with_its_place() {
    let daemon = Daemon::start(ECHO);
    for (ask, path) in [
        (json!({}), "prompt"),
        (json!({ "prompt": " " }), "prompt"),
        (json!({ "prompt": "x", "messages": [] }), "messages"),
        (json!({ "messages": [{ "role": "assistant", "content": "x" }] }), "messages"),
        (json!({ "messages": [{ "role": "wizard", "content": "x" }] }), "messages[0].role"),
        (json!({ "prompt": "x", "model": "chatty/large" }), "model"),
        (json!({ "prompt": "x", "conversation_id": "" }), "conversation_id"),
        (json!({ "prompt": "x", "temperature": 3 }), "temperature"),
        (json!({ "prompt": "x", "max_tokens": 0 }), "max_tokens"),
        (json!({ "prompt": "x", "retry": { "max_attempts": 0 } }), "retry.max_attempts"),
    ] {
        let error = daemon.call("completion:async", ask.clone()).await.unwrap_err();
        assert_eq!((error.code, error.path.as_deref()), (Code::BadParams, Some(path)), "{ask}");
    }
    assert_eq!(daemon.facts("completion:queued").len(), 0);
}

#[tokio::test]
async fn every_event_is_documented_with_its_fields() {
    let daemon = Daemon::start(ECHO);
    let catalog = daemon.kernel.catalog().cloned().collect::<Vec<_>>();
    for doc in catalog.iter().filter(|doc| doc.plugin == "work") {
        assert!(!doc.summary.is_empty(), "{} says nothing of itself", doc.event);
        assert!(doc.params["type"] == "object", "{}: {}", doc.event, doc.params);
    }
    let find = |event| catalog.iter().find(|doc| doc.event == event).unwrap();
    let (now, later) = (find("completion:sync"), find("completion:async"));
    assert_ne!(now.summary, later.summary);
    assert!(now.params["properties"]["prompt"].is_object(), "{}", now.params);
}

#[tokio::test]
async fn requests_and_providers_are_listed() {
    let mut daemon = Daemon::start(FIRST_HANGS);
    let first = daemon.ask("ada", "hello").await;
    daemon.hear("completion:result", &first).await;
    let second = daemon.ask("bob", "talk for ever").await;
    daemon.hear("completion:started", &second).await;
    let listed = daemon.call("completion:list", json!({})).await.unwrap();
    assert_eq!(listed["completions"][0]["request_id"], second);
    assert_eq!(listed["completions"][1]["status"], "completed");
    let running = daemon.call("completion:list", json!({ "status": "running" })).await.unwrap();
    assert_eq!(
        (&running["count"], &running["completions"][0]["request_id"]),
        (&json!(1), &json!(second))
    );
    let providers = daemon.call("completion:providers", json!({})).await.unwrap();
    assert_eq!(providers["providers"][0]["name"], "local");
    assert_eq!(providers["providers"][0]["concurrency"], 1);
}
