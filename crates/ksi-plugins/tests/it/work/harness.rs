//! A kernel with the queue in it, over a journal in memory and a script.

use std::{sync::Arc, time::Duration};

use ksi_kernel::{
    Caller, Clock, Event, Journal, Kernel, Listener, Millis, News, Pattern, Query, Result, Seq,
    Setup,
};
use ksi_plugins::{Settings, work};
use ksi_state::testing::memory::MemoryJournal;
use serde_json::{Value, json, value::to_raw_value};
use tempfile::TempDir;

/// Longer than anything here takes, so that a test that waits in vain fails.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Daemon {
    pub(super) kernel: Kernel,
    pub(super) journal: MemoryJournal,
    pub(super) clock: Clock,
    pub(super) folder: TempDir,
    events: Listener,
}

impl Daemon {
    /// Starts over an empty journal; `script` is the model of every request that names none.
    pub(super) fn start(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("script.yaml"), script).unwrap();
        Self::over(folder, MemoryJournal::default(), Clock::manual(Millis(1_000_000)))
    }

    /// Ends as a crash does, with everything under way, and starts again.
    pub(super) async fn restart(self) -> Self {
        let Daemon { kernel, journal, clock, folder, events } = self;
        drop(events);
        kernel.shutdown(Duration::ZERO).await;
        Self::over(folder, journal, clock)
    }

    fn over(folder: TempDir, journal: MemoryJournal, clock: Clock) -> Self {
        let settings = Settings {
            version: "0.0.0",
            managed: false,
            shim: ksi_process::Shim::new(env!("CARGO_BIN_EXE_ksi-plugins-test-program")),
            default_model: Some(format!("scripted:{}/script.yaml", folder.path().display())),
            models: folder.path().to_owned(),
            shared_models: None,
            transcripts: folder.path().to_owned(),
            patterns: folder.path().to_owned(),
            permissions: folder.path().to_owned(),
            socket: folder.path().join("socket"),
            started: Millis(0),
            local_idle_ms: 1_000,
        };
        let plugins = vec![work::plugin(Arc::new(settings)).into()];
        let setup = Setup {
            plugins,
            journal: Arc::new(journal.clone()),
            clock: clock.clone(),
            snapshot_every: 0,
        };
        let kernel = Kernel::start(setup).unwrap();
        let events = kernel.listener();
        events.inbox().subscribe(vec![Pattern::parse("*").unwrap()], Some(Seq(0)));
        Daemon { kernel, journal, clock, folder, events }
    }

    pub(super) async fn call(&self, event: &str, data: Value) -> Result<Value> {
        self.call_as(Caller::operator(), event, data).await
    }

    pub(super) async fn call_as(&self, caller: Caller, event: &str, data: Value) -> Result<Value> {
        let data = to_raw_value(&data).unwrap();
        let answer = self.kernel.call(caller, event, data);
        let answer = tokio::time::timeout(PATIENCE, answer).await.expect("an answer comes")?;
        Ok(serde_json::from_str(answer.get()).unwrap())
    }

    /// Asks in this conversation, without waiting for the answer; returns the request's id.
    pub(super) async fn ask(&self, conversation: &str, prompt: &str) -> String {
        let data = json!({ "prompt": prompt, "conversation_id": conversation });
        let accepted = self.call("completion:async", data).await.unwrap();
        accepted["request_id"].as_str().unwrap().to_owned()
    }

    pub(super) async fn status(&self, request: &str) -> Value {
        self.call("completion:status", json!({ "request_id": request })).await.unwrap()
    }

    /// Waits for the next event of this name about this request.
    pub(super) async fn hear(&mut self, name: &str, request: &str) -> Value {
        self.next(|event| {
            let data: Value = event.parse().unwrap();
            (event.name() == name && data["request_id"] == request).then_some(data)
        })
        .await
    }

    pub(super) async fn next<R>(&mut self, mut wanted: impl FnMut(&Event) -> Option<R>) -> R {
        let search = async {
            loop {
                let News::Event(event, _) = self.events.next().await.expect("the kernel lives")
                else {
                    continue;
                };
                if let Some(found) = wanted(&event) {
                    return found;
                }
            }
        };
        tokio::time::timeout(PATIENCE, search).await.expect("the event comes")
    }

    /// The facts of this name, as data.
    pub(super) fn facts(&self, name: &str) -> Vec<Value> {
        let query = Query { names: vec![name.into()], ..Query::default() };
        let records = self.journal.read(&query).unwrap();
        records.iter().map(|record| serde_json::from_str(record.data.get()).unwrap()).collect()
    }

    /// Where in the journal the fact of this name about this request stands.
    pub(super) fn place(&self, name: &str, request: &str) -> Seq {
        let subject = Some(request.to_owned());
        let subjects = subject.into_iter().collect();
        let query = Query { names: vec![name.into()], subjects, ..Query::default() };
        let records = self.journal.read(&query).unwrap();
        records.first().expect("the fact is in the journal").seq
    }

    /// What the script's log holds.
    pub(super) fn calls(&self) -> Vec<Value> {
        let log = std::fs::read_to_string(self.folder.path().join("calls.ndjson"));
        let log = log.unwrap_or_default();
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits until the script was called so often.
    pub(super) async fn called(&self, times: usize) {
        let called = async {
            while self.calls().len() < times {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, called).await.expect("the script is called");
    }

    /// The newest prompts that the script was given, in order.
    pub(super) fn prompts(&self) -> Vec<String> {
        let newest = |call: Value| {
            let messages = call["messages"].as_array().unwrap().clone();
            messages.last().unwrap()["content"].as_str().unwrap().to_owned()
        };
        self.calls().into_iter().map(newest).collect()
    }
}
