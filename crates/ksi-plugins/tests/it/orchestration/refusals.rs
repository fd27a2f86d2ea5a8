//! What is not started, or does not go on, and what is said about it.

use super::*;

/// Loops that would make a text of a terabyte.
fn endless() -> String {
    let (open, close) = ("{% for n in range(10000) %}", "{% endfor %}");
    format!("{}word{}", open.repeat(3), close.repeat(3))
}

impl Daemon {
    /// Writes the pattern `mine`: the debate, with another value somewhere.
    async fn mine(&self, place: &str, value: String) {
        let debate = self.call("orchestration:load_pattern", json!({ "pattern": "debate" })).await;
        let mut debate = debate.unwrap();
        *debate.pointer_mut(place).unwrap() = value.into();
        self.write_pattern("mine.yaml", &debate.to_string());
    }

    async fn start_mine(&self) -> Result<Value> {
        let data = json!({ "pattern": "mine", "vars": { "topic": "tea" } });
        self.call("orchestration:start", data).await
    }
}

#[tokio::test]
async fn a_pattern_that_makes_too_much_text_is_refused_by_the_name_of_its_field() {
    let daemon = Daemon::start(SPEAK);
    for (place, field) in [
        ("/prompts/opening", "`prompts.opening`"),
        ("/roles/0/instructions", "`roles[0].instructions`"),
        ("/roles/1/instructions", "`roles[1].instructions`"),
    ] {
        daemon.mine(place, endless()).await;
        let error = daemon.start_mine().await.unwrap_err();
        assert_eq!((error.code, error.path.as_deref()), (Code::BadParams, Some("pattern")));
        assert!(error.message.contains(field) && error.message.contains("steps"), "{error}");
        assert!(error.hint.unwrap().contains("loops"));
    }
    assert!(daemon.facts("orchestration:started").is_empty());
}

#[tokio::test]
async fn a_turn_that_makes_too_much_text_fails_the_orchestration_by_the_name_of_its_field() {
    let mut daemon = Daemon::start(SPEAK);
    daemon.mine("/prompts/turn", endless()).await;
    let begun = daemon.start_mine().await.unwrap();
    let failed = daemon.hear("orchestration:failed").await;
    assert_eq!(failed["orchestration_id"], begun["orchestration_id"]);
    let error = failed["error"].as_str().unwrap();
    assert!(error.contains("turn 2 (Kurt): the pattern's `prompts.turn` cannot"), "{error}");
    assert!(failed["hint"].as_str().unwrap().contains("loops"));
    assert_eq!(daemon.facts("completion:queued").len(), 1);
    assert!(daemon.facts("effect:failed").is_empty(), "it is not tried again");
}

#[tokio::test]
async fn a_model_that_nobody_provides_is_refused_with_the_providers_there_are() {
    let daemon = Daemon::start(SPEAK);
    for (model, code) in [("nonsense", Code::BadParams), ("claude-cli/x", Code::Unavailable)] {
        let data = json!({ "vars": { "topic": "tea" }, "model": model });
        let error = daemon.call("orchestration:start", data).await.unwrap_err();
        assert_eq!((error.code, error.path.as_deref()), (code, Some("model")), "{error}");
        assert!(!error.retryable);
        assert_eq!(error.hint.unwrap(), "providers of this version: local, scripted");
    }
    assert!(daemon.facts("orchestration:started").is_empty());
}

#[tokio::test]
async fn a_model_that_cannot_be_asked_is_refused_before_anything_is_written() {
    let daemon = Daemon::start(SPEAK);
    let file = |name: &str, text: &str| {
        let path = daemon.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (text, misspelt) =
        (file("notes.gguf", "no model"), file("bad.yaml", "rules: [{anwsers: []}]"));
    for (model, code, said) in [
        ("local:/missing.gguf", Code::BadParams, "/missing.gguf cannot be used: No such file"),
        ("local:/", Code::BadParams, "this is no file"),
        (&format!("local:{text}"), Code::BadParams, "this is no GGUF file"),
        ("local", Code::NotFound, "is not on this machine yet"),
        ("scripted", Code::BadParams, "names no script"),
        ("scripted/none", Code::BadParams, "No such file"),
        ("scripted:/", Code::BadParams, "this is no file"),
        (&format!("scripted:{misspelt}"), Code::BadParams, "anwsers"),
    ] {
        let start = json!({ "vars": { "topic": "tea" }, "model": model });
        let ask = json!({ "prompt": "tea", "model": model });
        for (event, data) in [("orchestration:start", start), ("completion:async", ask)] {
            let error = daemon.call(event, data).await.unwrap_err();
            assert_eq!((error.code, error.path.as_deref()), (code, Some("model")), "{error}");
            assert!(error.message.contains(said) && error.hint.is_some(), "{error:?}");
        }
    }
    assert_eq!(daemon.journal.read(&Query::default()).unwrap().len(), 0);
}

#[tokio::test]
async fn a_failed_turn_keeps_its_code_and_hint() {
    let mut daemon = Daemon::start("rules: [{when: nothing of the kind, answers: [x]}]");
    daemon.debate(1).await;
    let failed = daemon.hear("orchestration:failed").await;
    assert_eq!(failed["error"], "turn 1 (Ada): no rule of the script fits this request");
    assert_eq!(failed["code"], "provider_error");
    assert!(failed["hint"].as_str().unwrap().contains("`when`"), "{failed}");
}

#[tokio::test]
async fn what_a_pattern_needs_is_asked_for_by_name() {
    let daemon = Daemon::start(SPEAK);
    for (data, path) in [
        (json!({}), "vars.topic"),
        (json!({ "vars": { "topic": " " } }), "vars.topic"),
        (json!({ "vars": { "topic": ["tea"] } }), "vars.topic"),
        (json!({ "vars": { "topic": "tea", "tpoic": "x" } }), "vars.tpoic"),
        (json!({ "vars": { "topic": "tea", "rounds": "many" } }), "vars.rounds"),
        (json!({ "vars": { "topic": "tea" }, "rounds": 0 }), "rounds"),
    ] {
        let error = daemon.call("orchestration:start", data.clone()).await.unwrap_err();
        assert_eq!((error.code, error.path.as_deref()), (Code::BadParams, Some(path)), "{data}");
    }
    let error = daemon.call("orchestration:start", json!({ "pattern": "duel" })).await.unwrap_err();
    assert_eq!((error.code, error.path.as_deref()), (Code::NotFound, Some("pattern")));
    let unknown = json!({ "orchestration_id": "x" });
    let error = daemon.call("orchestration:status", unknown).await.unwrap_err();
    assert_eq!(error.code, Code::NotFound);
    assert!(daemon.facts("orchestration:started").is_empty());
}

#[tokio::test]
async fn a_faulty_pattern_is_listed_and_refused_with_file_and_line() {
    let daemon = Daemon::start(SPEAK);
    daemon.write_pattern("broken.yaml", "description: x\nround: 3\n");
    let listed = daemon.call("orchestration:list_patterns", json!({})).await.unwrap();
    let names: Vec<_> = listed.as_array().unwrap().iter().map(|line| &line["name"]).collect();
    assert_eq!(names, ["broken", "debate"]);
    let error = listed[0]["error"].as_str().unwrap();
    assert!(error.contains("broken.yaml, line 2: unknown field `round`"), "{error}");
    let data = json!({ "pattern": "broken", "vars": { "topic": "tea" } });
    let refused = daemon.call("orchestration:start", data).await.unwrap_err();
    assert_eq!((refused.code, refused.message.as_str()), (Code::BadParams, error));
}
