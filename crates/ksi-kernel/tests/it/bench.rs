//! A kernel over a journal in memory, with a sample plugin whose effects a test directs.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ksi_kernel::{
    AnyPlugin, Caller, Changed, Clock, Ctx, Error, Event, Fact, Facts, Fault, Kernel, Listener,
    Millis, News, Out, Pattern, Plugin, Result, Setup, Stamp, Want,
};
use ksi_state::testing::memory::MemoryJournal;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json, value::to_raw_value};
use tokio::sync::{Notify, mpsc};

pub(crate) const START: Millis = Millis(1_000_000);

/// A job was added.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct JobAdded {
    pub(crate) id: String,
    pub(crate) at: u64,
}

impl Fact for JobAdded {
    const NAME: &'static str = "job:added";
    fn subject(&self) -> std::borrow::Cow<'_, str> {
        (&self.id).into()
    }
}

/// A job is done.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct JobDone {
    pub(crate) id: String,
}

impl Fact for JobDone {
    const NAME: &'static str = "job:done";
    fn subject(&self) -> std::borrow::Cow<'_, str> {
        (&self.id).into()
    }
}

/// Something was noted.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct NoteAdded {
    pub(crate) about: String,
    pub(crate) text: String,
}

impl Fact for NoteAdded {
    const NAME: &'static str = "note:added";
    fn subject(&self) -> std::borrow::Cow<'_, str> {
        (&self.about).into()
    }
}

/// A job's progress.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Progress {
    pub(crate) text: String,
}

/// Add a job
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Add {
    pub(crate) id: String,
    /// Not before this time.
    #[serde(default)]
    pub(crate) at: u64,
    #[serde(default)]
    pub(crate) tags: Vec<String>,
}

/// Note something
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Note {
    about: String,
    text: String,
}

/// Nothing to say
#[derive(Debug, Deserialize, JsonSchema)]
struct Nothing {}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Jobs {
    open: BTreeMap<String, u64>,
    done: u64,
    notes: u64,
}

impl Jobs {
    fn added(&mut self, added: &JobAdded, _: &Stamp, _: &mut Out) -> Result<(), Fault> {
        self.open.insert(added.id.clone(), added.at);
        Ok(())
    }

    fn finished(&mut self, done: &JobDone, _: &Stamp, _: &mut Out) -> Result<(), Fault> {
        self.open.remove(&done.id);
        self.done += 1;
        Ok(())
    }

    fn noted(&mut self, _: &NoteAdded, _: &Stamp, _: &mut Out) -> Result<(), Fault> {
        self.notes += 1;
        Ok(())
    }

    fn wanted(&self, changed: Changed<'_>) -> Vec<Want<()>> {
        let want = |key: &String| match self.open.get(key) {
            Some(at) => Want::Run { key: key.clone(), epoch: 1, at: Millis(*at), effect: () },
            None => Want::Stop { key: key.clone() },
        };
        match changed {
            Changed::All => self.open.keys().map(want).collect(),
            Changed::Keys(keys) => keys.iter().map(want).collect(),
        }
    }
}

/// What effects and watchers do and tell; a job's name says how it goes.
pub(crate) struct Stage {
    started: mpsc::UnboundedSender<String>,
    watched: mpsc::UnboundedSender<String>,
    /// Lets a waiting effect go on.
    pub(crate) gate: Notify,
    /// Lets a waiting handler go on.
    pub(crate) door: Notify,
    pub(crate) log: Mutex<Vec<String>>,
}

impl Stage {
    pub(crate) fn log(&self, line: impl Into<String>) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(line.into());
    }
}

async fn perform(stage: Arc<Stage>, cx: Ctx<Jobs>, key: String) -> Result<()> {
    stage.started.send(key.clone()).unwrap_or_default();
    match key.split('-').next().unwrap_or_default() {
        "fail" => return Err(Error::internal("it went wrong")),
        "panic" => panic!("it blew up"),
        "mute" => return Ok(()),
        "hold" => std::future::pending::<()>().await,
        "wait" => stage.gate.notified().await,
        "tell" => cx.signal("job:progress", &Progress { text: key.clone() }),
        _ => {}
    }
    cx.decide(|_, _| Ok((Facts::one(JobDone { id: key.clone() }), ()))).await
}

async fn add(cx: Ctx<Jobs>, req: Add) -> Result<usize> {
    cx.decide(|jobs, _| {
        if jobs.open.contains_key(&req.id) {
            return Err(Error::conflict(format!("job `{}` is there", req.id)));
        }
        Ok((Facts::one(JobAdded { id: req.id.clone(), at: req.at }), jobs.open.len() + 1))
    })
    .await
}

async fn list(cx: Ctx<Jobs>, _: Nothing) -> Result<Vec<String>> {
    cx.read(|jobs| jobs.open.keys().cloned().collect()).await
}

async fn peek(cx: Ctx<Jobs>, _: Nothing) -> Result<usize> {
    std::future::ready(cx.peek(|jobs| jobs.open.len())).await
}

async fn note(cx: Ctx<Jobs>, req: Note) -> Result<()> {
    let note = NoteAdded { about: req.about, text: req.text };
    cx.decide(|_, _| Ok((Facts::one(note), ()))).await
}

async fn nested(cx: Ctx<Jobs>, _: Nothing) -> Result<Vec<String>> {
    cx.call("job:list", &json!({})).await
}

async fn progress(cx: Ctx<Jobs>, req: Progress) -> Result<()> {
    cx.signal("job:progress", &req);
    std::future::ready(Ok(())).await
}

async fn explode(_: Ctx<Jobs>, _: Nothing) -> Result<()> {
    panic!("no way")
}

/// The sample plugin.
pub(crate) fn jobs(stage: &Arc<Stage>) -> AnyPlugin {
    let [performing, waiting, watching, stopping] = [(); 4].map(|()| stage.clone());
    Plugin::<Jobs>::new("jobs")
        .on("job:add", add)
        .on("job:list", list)
        .on("job:peek", peek)
        .on("job:nested", nested)
        .on("job:explode", explode)
        .on("job:report", progress)
        .on("job:wait", move |cx: Ctx<Jobs>, _: Nothing| {
            let stage = waiting.clone();
            async move {
                stage.started.send("handler".into()).unwrap_or_default();
                stage.door.notified().await;
                cx.call::<Vec<String>>("job:list", &json!({})).await
            }
        })
        .on("note:add", note)
        .fact::<JobAdded>()
        .fact::<JobDone>()
        .fact::<NoteAdded>()
        .signal::<Progress>("job:progress")
        .fold(Jobs::added)
        .fold(Jobs::finished)
        .fold(Jobs::noted)
        .drive(Jobs::wanted, move |cx, key: String, _, ()| {
            assert!(!key.starts_with("early"), "before it began");
            perform(performing.clone(), cx, key)
        })
        .watch("note:*", move |_, event: Arc<Event>| {
            let stage = watching.clone();
            async move {
                let note: NoteAdded = event.parse().expect("a note");
                assert_ne!(note.text, "panic", "the watcher cannot bear it");
                stage.watched.send(note.text).unwrap_or_default();
            }
        })
        .on_stop(move |_| {
            let stage = stopping.clone();
            async move { stage.log("jobs stop") }
        })
        .into()
}

/// A kernel and all a test needs around it.
pub(crate) struct Bench {
    pub(crate) kernel: Kernel,
    pub(crate) journal: MemoryJournal,
    pub(crate) clock: Clock,
    pub(crate) stage: Arc<Stage>,
    pub(crate) started: mpsc::UnboundedReceiver<String>,
    pub(crate) watched: mpsc::UnboundedReceiver<String>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::over(MemoryJournal::default(), Vec::new())
    }

    pub(crate) fn over(journal: MemoryJournal, more: Vec<AnyPlugin>) -> Self {
        let (tx, started) = mpsc::unbounded_channel();
        let (seen, watched) = mpsc::unbounded_channel();
        let (gate, door, log) = (Notify::new(), Notify::new(), Mutex::default());
        let stage = Arc::new(Stage { started: tx, watched: seen, gate, door, log });
        let clock = Clock::manual(START);
        let mut plugins = vec![jobs(&stage)];
        plugins.extend(more);
        let setup = Setup {
            plugins,
            journal: Arc::new(journal.clone()),
            clock: clock.clone(),
            snapshot_every: 0,
        };
        let kernel = Kernel::start(setup).expect("the kernel starts");
        Bench { kernel, journal, clock, stage, started, watched }
    }

    pub(crate) async fn call_as(&self, caller: Caller, event: &str, data: Value) -> Result<Value> {
        let data = to_raw_value(&data).expect("it is JSON");
        let reply = within(self.kernel.call(caller, event, data)).await?;
        Ok(serde_json::from_str(reply.get()).expect("a reply is JSON"))
    }

    pub(crate) async fn call(&self, event: &str, data: Value) -> Result<Value> {
        self.call_as(Caller::operator(), event, data).await
    }

    pub(crate) async fn add(&self, id: &str) -> Result<Value> {
        self.call("job:add", json!({ "id": id })).await
    }

    pub(crate) async fn note(&self, about: &str, text: &str) {
        let note = json!({ "about": about, "text": text });
        self.call("note:add", note).await.expect("noted");
    }

    pub(crate) fn listen(&self, patterns: &[&str]) -> Listener {
        let listener = self.kernel.listener();
        listener.inbox().subscribe(these(patterns), None);
        listener
    }

    /// The next effect that starts.
    pub(crate) async fn next_start(&mut self) -> String {
        within(self.started.recv()).await.expect("the stage is there")
    }

    /// Runs in place until an append waits at the frozen journal.
    pub(crate) fn wait_frozen(&self) {
        tokio::task::block_in_place(|| self.journal.wait_frozen());
    }
}

pub(crate) fn these(patterns: &[&str]) -> Vec<Pattern> {
    patterns.iter().map(|text| Pattern::parse(text).expect("a pattern")).collect()
}

/// What is awaited must come; a minute is for slow machines.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it never came")
}

/// The next event.
pub(crate) async fn heard(listener: &mut Listener) -> Arc<Event> {
    match within(listener.next()).await {
        Some(News::Event(event, _)) => event,
        other => panic!("no event but {other:?}"),
    }
}

/// The next event, of this name and type.
pub(crate) async fn heard_as<T: DeserializeOwned>(listener: &mut Listener, name: &str) -> T {
    let event = heard(listener).await;
    assert_eq!(event.name(), name);
    event.parse().expect("its type")
}
