//! Orchestrations over a whole kernel, with the real queue and a script for a model.

mod ending;
mod refusals;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ksi_kernel::{
    AnyPlugin, Caller, Clock, Code, Ctx, Error, Event, Journal, Kernel, Listener, Millis, News,
    Pattern, Plugin, Query, Result, Seq, Setup,
};
use ksi_plugins::{Settings, orchestration, work};
use ksi_state::testing::memory::MemoryJournal;
use serde_json::{Value, json, value::to_raw_value};
use tempfile::TempDir;

/// Longer than anything here takes, so that a test that waits in vain fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// Every speaker says the number of its own turn.
const SPEAK: &str = "{log: calls.ndjson, rules: [{answers: ['{turn} by {conversation}']}]}";

/// Every call hangs once, so that a restart always falls into a turn.
const HANG_ONCE: &str = "{log: calls.ndjson, rules: [{hang: true, attempts: 1}, \
                         {answers: ['{turn} by {conversation}']}]}";

/// The first speaker speaks, the second one never ends.
const SECOND_HANGS: &str = "{log: calls.ndjson, rules: [{when: 'Ada said', hang: true}, \
                            {answers: ['{turn} by {conversation}']}]}";

struct Daemon {
    kernel: Kernel,
    journal: MemoryJournal,
    clock: Clock,
    folder: TempDir,
    events: Listener,
}

impl Daemon {
    fn start(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("script.yaml"), script).unwrap();
        Self::over(folder, MemoryJournal::default(), Clock::manual(Millis(1_000_000)), Seq(0))
    }

    /// Ends as a crash does, with everything under way, and starts again; news begin there.
    async fn restart(self) -> Self {
        let Daemon { kernel, journal, clock, folder, events } = self;
        drop(events);
        kernel.shutdown(Duration::ZERO).await;
        let last = journal.read(&Query::default()).unwrap().last().map_or(Seq(0), |last| last.seq);
        Self::over(folder, journal, clock, last)
    }

    fn over(folder: TempDir, journal: MemoryJournal, clock: Clock, since: Seq) -> Self {
        let queue = work::plugin(settings(&folder)).into();
        Self::with(queue, folder, journal, clock, since)
    }

    fn with(
        queue: AnyPlugin,
        folder: TempDir,
        journal: MemoryJournal,
        clock: Clock,
        since: Seq,
    ) -> Self {
        let setup = Setup {
            plugins: vec![queue, orchestration::plugin(settings(&folder)).into()],
            journal: Arc::new(journal.clone()),
            clock: clock.clone(),
            snapshot_every: 0,
        };
        let kernel = Kernel::start(setup).unwrap();
        let events = kernel.listener();
        events.inbox().subscribe(vec![Pattern::parse("*").unwrap()], Some(since));
        Daemon { kernel, journal, clock, folder, events }
    }

    async fn call(&self, event: &str, data: Value) -> Result<Value> {
        self.call_as(Caller::operator(), event, data).await
    }

    async fn call_as(&self, caller: Caller, event: &str, data: Value) -> Result<Value> {
        let answer = self.kernel.call(caller, event, to_raw_value(&data).unwrap());
        let answer = tokio::time::timeout(PATIENCE, answer).await.expect("an answer comes")?;
        Ok(serde_json::from_str(answer.get()).unwrap())
    }

    /// Starts a debate; returns its id.
    async fn debate(&self, rounds: u32) -> String {
        let data = json!({ "vars": { "topic": "Is tea good?", "rounds": rounds } });
        let begun = self.call("orchestration:start", data).await.unwrap();
        assert_eq!(begun["status"], "running");
        begun["orchestration_id"].as_str().unwrap().to_owned()
    }

    async fn instance(&self, id: &str) -> Value {
        let data = json!({ "orchestration_id": id });
        self.call("orchestration:get_instance", data).await.unwrap()
    }

    /// Waits for the next event of this name, while no effect fails.
    async fn hear(&mut self, name: &str) -> Value {
        self.next(|event| {
            assert_ne!(event.name(), "effect:failed", "{}", event.data().get());
            (event.name() == name).then(|| event.parse().unwrap())
        })
        .await
    }

    async fn await_fact(&mut self, name: &str) {
        self.next(|event| (event.name() == name).then_some(())).await;
    }

    /// Waits until this many facts are durable.
    async fn reach(&mut self, seq: Seq) {
        self.next(|event| (event.seq() >= Some(seq)).then_some(())).await;
    }

    async fn next<R>(&mut self, mut wanted: impl FnMut(&Event) -> Option<R>) -> R {
        let search = async {
            loop {
                let news = self.events.next().await.expect("the kernel lives");
                let News::Event(event, _) = news else { continue };
                if let Some(found) = wanted(&event) {
                    return found;
                }
            }
        };
        tokio::time::timeout(PATIENCE, search).await.expect("the event comes")
    }

    fn facts(&self, name: &str) -> Vec<Value> {
        let query = Query { names: vec![name.into()], ..Query::default() };
        let records = self.journal.read(&query).unwrap();
        records.iter().map(|record| serde_json::from_str(record.data.get()).unwrap()).collect()
    }

    /// What the model was asked, in order.
    fn calls(&self) -> Vec<Value> {
        let log = std::fs::read_to_string(self.folder.path().join("calls.ndjson"));
        log.unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn transcript(&self, id: &str) -> String {
        let path = self.folder.path().join("transcripts").join(format!("{id}.md"));
        std::fs::read_to_string(path).unwrap()
    }

    fn write_pattern(&self, name: &str, text: &str) {
        let folder = self.folder.path().join("patterns");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), text).unwrap();
    }
}

fn settings(folder: &TempDir) -> Arc<Settings> {
    let home = folder.path();
    Arc::new(Settings {
        version: "0.0.0",
        managed: false,
        shim: ksi_process::Shim::new(env!("CARGO_BIN_EXE_ksi-plugins-test-program")),
        default_model: Some(format!("scripted:{}/script.yaml", home.display())),
        models: home.join("models"),
        shared_models: None,
        transcripts: home.join("transcripts"),
        patterns: home.join("patterns"),
        permissions: home.join("permissions"),
        socket: home.join("socket"),
        started: Millis(0),
        local_idle_ms: 1_000,
    })
}

fn prompt(call: &Value) -> &str {
    call["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap()
}

fn texts(turns: &[Value]) -> Vec<&str> {
    turns.iter().map(|turn| turn["text"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn each_speaker_is_told_its_side_and_what_the_other_said() {
    let mut daemon = Daemon::start(SPEAK);
    let id = daemon.debate(2).await;
    let finished = daemon.hear("orchestration:finished").await;
    assert_eq!(finished["turns"], 4);

    let turns = daemon.facts("orchestration:turn_taken");
    let said = texts(&turns);
    let expected = ["1 by ID/Ada", "1 by ID/Kurt", "2 by ID/Ada", "2 by ID/Kurt"];
    assert_eq!(said, expected.map(|text| text.replace("ID", &id)));
    let calls = daemon.calls();
    assert_eq!(calls.len(), 4);
    assert!(prompt(&calls[0]).contains("Is tea good?"));
    for (n, call) in calls.iter().enumerate() {
        let (name, side) = if n % 2 == 0 { ("Ada", "is yes") } else { ("Kurt", "is no") };
        let instructions = call["instructions"].as_str().unwrap();
        assert!(instructions.contains("short sentences"), "{instructions}");
        assert!(prompt(call).contains(side) && prompt(call).contains("Is tea good?"));
        assert_eq!(call["conversation_id"], format!("{id}/{name}"));
        assert_eq!(call["max_tokens"], 120);
        assert_eq!(call["avoid_repeats"], json!(said[..n]));
        assert_eq!(call["messages"].as_array().unwrap().len(), 1 + n / 2 * 2, "its own history");
        if n > 0 {
            assert!(prompt(call).contains(said[n - 1]), "{}", prompt(call));
        }
    }
}

#[tokio::test]
async fn the_transcript_holds_topic_speakers_texts_and_figures() {
    let mut daemon = Daemon::start(SPEAK);
    let id = daemon.debate(1).await;
    let finished = daemon.hear("orchestration:finished").await;
    let transcript = daemon.transcript(&id);
    assert!(finished["transcript"].as_str().unwrap().ends_with(&format!("{id}.md")));
    let (read, written) = (&finished["usage"]["input"], &finished["usage"]["output"]);
    for part in [
        "# Is tea good?\n",
        "- Model: scripted:",
        "- Date: 1970-01-01 00:16 UTC\n",
        &format!("## Ada (turn 1)\n\n1 by {id}/Ada\n"),
        &format!("## Kurt (turn 2)\n\n1 by {id}/Kurt\n"),
        &format!("2 turns, {read} tokens read, {written} written"),
    ] {
        assert!(transcript.contains(part), "{part:?} in {transcript}");
    }
    assert_ne!(written, 0);
}

#[tokio::test]
async fn a_transcript_cannot_command_a_terminal() {
    let mut daemon = Daemon::start(r#"rules: [{answers: ["\e[2Jgone \x9b31mred\r\tand\nnext"]}]"#);
    let id = daemon.debate(1).await;
    daemon.hear("orchestration:finished").await;
    let transcript = daemon.transcript(&id);
    assert!(transcript.contains("[2Jgone 31mred\tand\nnext"), "{transcript:?}");
}

#[tokio::test]
async fn a_daemon_that_ends_in_every_turn_loses_none_and_repeats_none() {
    let mut daemon = Daemon::start(HANG_ONCE);
    let id = daemon.debate(2).await;
    for _ in 0..4 {
        daemon.hear("completion:started").await;
        daemon = daemon.restart().await;
        daemon.hear("orchestration:turn_taken").await;
    }
    daemon.hear("orchestration:finished").await;
    let turns = daemon.facts("orchestration:turn_taken");
    let numbers: Vec<_> = turns.iter().map(|turn| turn["turn"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
    assert!(daemon.facts("orchestration:failed").is_empty());
    let requests: BTreeSet<_> = daemon.facts("completion:queued").iter().map(request).collect();
    assert_eq!(requests.len(), 4, "a turn is one request, however often the daemon ends");
    assert_eq!(daemon.transcript(&id).matches("\n## ").count(), 4);
}

fn request(fact: &Value) -> String {
    fact["request_id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_daemon_that_ends_after_any_fact_goes_on_where_it_stood() {
    let mut daemon = Daemon::start(SPEAK);
    daemon.debate(2).await;
    daemon.hear("orchestration:finished").await;
    let whole = daemon.journal.read(&Query::default()).unwrap();
    for last in &whole {
        let mut daemon = Daemon::start(SPEAK);
        daemon.debate(2).await;
        daemon.reach(last.seq).await;
        let mut daemon = daemon.restart().await;
        if daemon.facts("orchestration:finished").is_empty() {
            daemon.hear("orchestration:finished").await;
        }
        let turns = daemon.facts("orchestration:turn_taken");
        let numbers: Vec<_> = turns.iter().map(|turn| turn["turn"].as_u64().unwrap()).collect();
        assert_eq!(numbers, [1, 2, 3, 4], "after fact {} {}", last.seq, last.name);
        assert_eq!(daemon.facts("completion:queued").len(), 4);
    }
}

#[tokio::test]
async fn terminating_cancels_the_turn_and_keeps_the_transcript() {
    let mut daemon = Daemon::start(SECOND_HANGS);
    let id = daemon.debate(2).await;
    daemon.hear("orchestration:turn_taken").await;
    let running = daemon.hear("completion:started").await;
    let data = json!({ "orchestration_id": id, "reason": "time for tea" });
    let status = daemon.call("orchestration:terminate", data.clone()).await.unwrap();
    assert_eq!((&status["status"], &status["turns"]), (&json!("terminated"), &json!(1)));
    let cancelled = daemon.facts("completion:cancelled");
    assert_eq!(cancelled.iter().map(request).collect::<Vec<_>>(), [request(&running)]);
    let transcript = daemon.transcript(&id);
    assert!(transcript.contains("## Ada (turn 1)") && !transcript.contains("## Kurt"));
    assert!(transcript.contains("*Ended early: time for tea*"), "{transcript}");

    let again = daemon.call("orchestration:terminate", data).await.unwrap();
    assert_eq!(again["status"], "terminated");
    assert_eq!(daemon.facts("orchestration:terminated").len(), 1);
    let daemon = daemon.restart().await;
    assert_eq!(daemon.kernel.effects().running(), 0, "nothing goes on after a restart");
}

#[tokio::test]
async fn a_turn_that_fails_for_good_ends_the_orchestration_with_its_reason() {
    let mut daemon = Daemon::start(
        "rules: [{when: 'Ada said', fail: {permanent: true, message: out of words}}, \
         {answers: [Tea is calm.]}]",
    );
    let id = daemon.debate(2).await;
    let failed = daemon.hear("orchestration:failed").await;
    assert_eq!(failed["error"], "turn 2 (Kurt): out of words");
    assert_eq!(failed["turns"], 1);
    let instance = daemon.instance(&id).await;
    assert_eq!((&instance["status"], &instance["error"]), (&json!("failed"), &failed["error"]));
    assert_eq!(instance["spoken"][0]["text"], "Tea is calm.");
    let transcript = daemon.transcript(&id);
    assert!(transcript.contains("Tea is calm.") && transcript.contains("out of words"));
}

/// A queue that refuses the first request with this code and answers every other one.
fn refusing_once(code: Code) -> Plugin<()> {
    let refused = Arc::new(AtomicBool::new(false));
    let queue = Plugin::new("work").on("completion:providers", any_model);
    queue.on("completion:sync", move |_: Ctx<()>, _: BTreeMap<String, Value>| {
        let first = !refused.swap(true, Ordering::Relaxed);
        async move {
            if first {
                return Err(Error::new(code, "not now"));
            }
            Ok(json!({ "request_id": "req", "text": "Tea is calm.", "model": "stand-in" }))
        }
    })
}

async fn any_model(_: Ctx<()>, _: BTreeMap<String, Value>) -> Result<Value> {
    Ok(json!({}))
}

#[tokio::test]
async fn a_daemon_that_ends_or_is_too_busy_is_no_failure_of_the_turn() {
    for code in [Code::Shutdown, Code::Busy, Code::Unavailable] {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::manual(Millis(1_000_000));
        let queue = refusing_once(code).into();
        let journal = MemoryJournal::default();
        let mut daemon = Daemon::with(queue, folder, journal, clock, Seq(0));
        daemon.debate(1).await;
        daemon.await_fact("effect:failed").await;
        daemon.clock.advance(60_000);
        daemon.hear("orchestration:finished").await;
        assert!(daemon.facts("orchestration:failed").is_empty(), "{code:?}");
        assert_eq!(daemon.facts("orchestration:turn_taken").len(), 2, "{code:?}");
    }
}

#[tokio::test]
async fn a_model_that_is_not_to_be_had_fails_the_turn_for_good() {
    let mut daemon = Daemon::start(
        "rules: [{fail: {code: unavailable, permanent: true, message: the model is gone}}]",
    );
    daemon.debate(1).await;
    let failed = daemon.hear("orchestration:failed").await;
    assert_eq!(failed["error"], "turn 1 (Ada): the model is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_debate_waits_while_the_disk_is_full_and_goes_on_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("script.yaml"), SPEAK).unwrap();
    let mut daemon = Daemon::over(folder, MemoryJournal::default(), Clock::system(), Seq(0));
    daemon.debate(20).await;
    for turn in [1, 2] {
        daemon.hear("orchestration:turn_taken").await;
        daemon.journal.fill();
        daemon.await_fact("journal:full").await;
        let listed = daemon.call("orchestration:list", json!({})).await.unwrap();
        assert!(listed.to_string().contains("running"), "{turn}: {listed}");
        daemon.journal.make_room();
        daemon.await_fact("journal:recovered").await;
    }
    daemon.await_fact("orchestration:finished").await;
    assert_eq!(daemon.facts("orchestration:turn_taken").len(), 40);
    assert_eq!(daemon.facts("orchestration:failed"), [json!(null); 0]);
}

#[tokio::test]
async fn the_same_key_starts_one_orchestration() {
    let mut daemon = Daemon::start(SPEAK);
    let mut ids = BTreeSet::new();
    for _ in 0..2 {
        let key = Some("k".to_owned());
        let mut caller = Caller::operator();
        caller.idempotency_key = key;
        let data = json!({ "vars": { "topic": "Is tea good?" }, "rounds": 1 });
        let begun = daemon.call_as(caller, "orchestration:start", data).await.unwrap();
        ids.insert(begun["orchestration_id"].to_string());
        assert_eq!(begun["agents"], json!(["Ada", "Kurt"]));
    }
    assert_eq!(ids.len(), 1);
    daemon.hear("orchestration:finished").await;
    assert_eq!(daemon.facts("orchestration:started").len(), 1);
    assert_eq!(daemon.facts("orchestration:turn_taken").len(), 2);
}

#[tokio::test]
async fn a_changed_file_does_not_change_a_run() {
    let mut daemon = Daemon::start(HANG_ONCE);
    let loaded = daemon.call("orchestration:load_pattern", json!({ "pattern": "debate" })).await;
    let loaded = loaded.unwrap();
    let own = |name: &str| {
        let mut pattern = loaded.clone();
        pattern["roles"][1]["name"] = json!(name);
        pattern.to_string()
    };
    daemon.write_pattern("duel.yaml", &own("Grace"));
    let data = json!({ "pattern": "duel", "vars": { "topic": "Is tea good?" }, "rounds": 1 });
    let begun = daemon.call("orchestration:start", data).await.unwrap();
    assert_eq!(begun["agents"], json!(["Ada", "Grace"]));
    daemon.hear("completion:started").await;
    daemon.write_pattern("duel.yaml", &own("Linus"));
    let mut daemon = daemon.restart().await;
    daemon.hear("orchestration:turn_taken").await;
    daemon.hear("completion:started").await;
    let mut daemon = daemon.restart().await;
    daemon.hear("orchestration:finished").await;
    assert_eq!(daemon.facts("orchestration:turn_taken")[1]["speaker"], "Grace");
}

#[tokio::test]
async fn after_any_history_a_fold_from_the_start_gives_the_same_state() {
    for seed in 0..12 {
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut daemon = Daemon::start(HANG_ONCE);
        let mut ids = Vec::new();
        for _ in 0..chance.usize(3..10) {
            match chance.u8(..4) {
                0 | 1 => ids.push(daemon.debate(1 + chance.u32(..2)).await),
                2 => daemon = daemon.restart().await,
                _ => {
                    let Some(id) = chance.choice(&ids) else { continue };
                    let data = json!({ "orchestration_id": id });
                    daemon.call("orchestration:terminate", data).await.unwrap();
                }
            }
        }
        for id in &ids {
            let data = json!({ "orchestration_id": id });
            daemon.call("orchestration:terminate", data).await.unwrap();
        }
        let before = daemon.call("orchestration:list", json!({})).await.unwrap();
        let spoken = instances(&daemon, &ids).await;
        let daemon = daemon.restart().await;
        let after = daemon.call("orchestration:list", json!({})).await.unwrap();
        assert_eq!(after.as_array().unwrap().len(), ids.len(), "seed {seed}");
        assert_eq!((before, spoken), (after, instances(&daemon, &ids).await), "seed {seed}");
    }
}

async fn instances(daemon: &Daemon, ids: &[String]) -> Vec<Value> {
    let mut all = Vec::new();
    for id in ids {
        all.push(daemon.instance(id).await);
    }
    all
}
