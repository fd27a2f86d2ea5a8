//! Orchestrations: agents that speak with each other by the rules of a pattern.

mod archive;
mod facts;
mod pattern;
mod run;
mod template;
mod transcript;
mod turn;

use std::{collections::BTreeMap, sync::Arc};

use ksi_kernel::{Caller, Code, Ctx, Error, Facts, Millis, Plugin, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::{Value, json};

use facts::ENDINGS;
pub use facts::{EndRequested, Failed, Finished, Started, Terminated, Totals, TurnTaken, Usage};
pub use pattern::{Order, Pattern, Prompts, Role};
pub use run::Orchestrations;
use run::{Phase, Run};

use crate::{
    Settings,
    library::{Entry, Library, NotLoaded},
};

/// The patterns that come with KSI.
const BUILT_IN: &[(&str, &str)] = &[("debate", include_str!("../../patterns/debate.yaml"))];

/// The plugin: `orchestration:start status list terminate list_patterns load_pattern get_instance`.
pub fn plugin(settings: Arc<Settings>) -> Plugin<Orchestrations> {
    let with = |settings: &Arc<Settings>| settings.clone();
    let (starting, listing, loading) = (with(&settings), with(&settings), with(&settings));
    Plugin::new("orchestration")
        .on("orchestration:start", move |cx, req| start(starting.clone(), cx, req))
        .on("orchestration:status", status)
        .on("orchestration:get_instance", get_instance)
        .on("orchestration:list", list)
        .on("orchestration:terminate", terminate)
        .on("orchestration:list_patterns", move |_, req| list_patterns(listing.clone(), req))
        .on("orchestration:load_pattern", move |_, req| load_pattern(loading.clone(), req))
        .fact::<Started>()
        .fact::<TurnTaken>()
        .fact::<EndRequested>()
        .fact::<Finished>()
        .fact::<Failed>()
        .fact::<Terminated>()
        .fold(Orchestrations::started)
        .fold(Orchestrations::turn_taken)
        .fold(Orchestrations::end_requested)
        .fold(Orchestrations::finished)
        .fold(Orchestrations::failed)
        .fold(Orchestrations::terminated)
        .upgrade(VERSION, |_, older| archive::upgrade(older))
        .drive(Orchestrations::wanted, move |cx, id, _epoch, task| {
            turn::perform(settings.clone(), cx, id, task)
        })
}

/// The shape of the state: the first one held all that had ended.
const VERSION: u16 = 2;

/// Start an orchestration; its turns come as facts
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(example = serde_json::json!({ "pattern": "debate", "vars": { "topic": "Is P=NP?" } }))]
struct Start {
    /// The pattern's name.
    #[serde(default = "debate")]
    pattern: String,
    /// What the pattern wants to be told, such as `topic`; also `rounds`.
    #[serde(default)]
    vars: BTreeMap<String, Value>,
    /// The model of all speakers; else the config's, else `local`.
    #[serde(default)]
    model: Option<String>,
    /// How often each speaks, instead of the pattern's own number.
    #[serde(default)]
    rounds: Option<u32>,
    /// Makes chance repeatable, where the model can.
    #[serde(default)]
    seed: Option<u64>,
}

fn debate() -> String {
    "debate".to_owned()
}

/// What `orchestration:start` answers.
#[derive(Debug, Serialize, JsonSchema)]
struct Begun {
    orchestration_id: String,
    status: &'static str,
    /// Who will speak.
    agents: Vec<String>,
    model: String,
    /// How many turns there will be.
    turns: u32,
}

/// How an orchestration is
#[derive(Debug, Deserialize, JsonSchema)]
struct GetStatus {
    /// Its id.
    orchestration_id: String,
}

/// How an orchestration is, and what was said in it
#[derive(Debug, Deserialize, JsonSchema)]
struct GetInstance {
    /// Its id.
    orchestration_id: String,
}

/// All orchestrations, the oldest first
#[derive(Debug, Deserialize, JsonSchema)]
struct List {}

/// End an orchestration: the turn that runs is cancelled, the transcript of the others is written
#[derive(Debug, Deserialize, JsonSchema)]
struct Terminate {
    /// Its id.
    orchestration_id: String,
    /// Why, for the transcript.
    #[serde(default)]
    reason: Option<String>,
}

/// The patterns there are, built in and in the folder `patterns`
#[derive(Debug, Deserialize, JsonSchema)]
struct ListPatterns {}

/// One pattern with all its roles and prompts
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(example = serde_json::json!({ "pattern": "debate" }))]
struct LoadPattern {
    /// Its name.
    pattern: String,
}

/// How an orchestration is.
#[derive(Debug, Serialize, JsonSchema)]
struct Status {
    orchestration_id: String,
    pattern: String,
    vars: BTreeMap<String, String>,
    /// `running`, `ending`, `finished`, `failed` or `terminated`.
    status: &'static str,
    agents: Vec<String>,
    model: String,
    /// How many turns there are in all.
    turns_total: u32,
    /// When it started, in milliseconds since the epoch.
    started_at: u64,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// What to try.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    /// Why its end was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(flatten)]
    totals: Totals,
}

/// How an orchestration is, and what was said in it.
#[derive(Debug, Serialize, JsonSchema)]
struct Instance {
    #[serde(flatten)]
    status: Status,
    /// The turns taken, in order.
    spoken: Vec<TurnTaken>,
}

/// One line of the list of patterns.
#[derive(Debug, Serialize, JsonSchema)]
struct PatternLine {
    name: String,
    /// Its file; none for one that is built in.
    path: Option<String>,
    description: Option<String>,
    roles: Vec<String>,
    vars: BTreeMap<String, String>,
    /// Why it cannot be used.
    error: Option<String>,
}

async fn start(settings: Arc<Settings>, cx: Ctx<Orchestrations>, req: Start) -> Result<Begun> {
    let mut definition = load(settings.clone(), req.pattern.clone()).await?;
    let mut vars = texts(req.vars)?;
    let (rounds, place) = match vars.remove("rounds") {
        Some(rounds) => (Some(rounds.parse().unwrap_or(0)), "vars.rounds"),
        None => (req.rounds, "rounds"),
    };
    definition.rounds = rounds.unwrap_or(definition.rounds);
    definition.seed = req.seed.or(definition.seed);
    if !definition.rounds_are_possible() {
        let why = format!("there can be 1 to {} rounds", pattern::MOST_ROUNDS);
        let hint = "without a number the pattern's own is taken";
        return Err(Error::bad_params(why).at(place).hint(hint));
    }
    check_vars(&definition, &vars)?;
    definition.rehearse(&vars).map_err(|error| Error::from(error).at("pattern"))?;

    let model = req.model.filter(|model| !model.trim().is_empty());
    let model = model.or_else(|| settings.default_model.clone()).unwrap_or_else(|| "local".into());
    // Whether somebody has this model, and it can be asked.
    cx.call::<IgnoredAny>("completion:providers", &json!({ "model": model })).await?;
    let Caller { idempotency_key, .. } = cx.caller().clone();
    let chance = archive::free_chance(&cx, &req.pattern).await?;
    let begun_before = cx.decide(|state, now| {
        if let Some(id) = idempotency_key.as_deref().and_then(|key| state.of_key(key, now)) {
            return Ok((Facts::none(), Err(id.to_owned())));
        }
        let orchestration_id = free_id(state, &req.pattern, chance);
        let (pattern, archives) = (req.pattern, !state.archives);
        let started = Started {
            orchestration_id,
            pattern,
            definition,
            vars,
            model,
            idempotency_key,
            archives,
        };
        let reply = begun(&started);
        Ok((Facts::one(started), Ok(reply)))
    });
    match begun_before.await? {
        Ok(begun) => Ok(begun),
        Err(id) => Ok(begun(&archive::find(&cx, &id).await?.started)),
    }
}

fn begun(started: &Started) -> Begun {
    Begun {
        orchestration_id: started.orchestration_id.clone(),
        status: "running",
        agents: started.definition.names(),
        model: started.model.clone(),
        turns: started.definition.turns(),
    }
}

/// A name that nothing under way has, beginning with what chance says.
fn free_id(state: &Orchestrations, pattern: &str, chance: u64) -> String {
    let mut ids = (0..).map(|n: u64| id(pattern, chance.wrapping_add(n)));
    ids.find(|id| !state.runs.contains_key(id)).unwrap_or_default()
}

/// A name that people can type, of the pattern and a few letters by chance.
fn id(pattern: &str, chance: u64) -> String {
    const LETTERS: &[u8] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let letters = (0..6).map(|i| LETTERS[(chance >> (5 * i)) as usize % 32] as char);
    format!("{pattern}-{}", letters.collect::<String>())
}

/// Variables as text; a list or an object is none.
fn texts(vars: BTreeMap<String, Value>) -> Result<BTreeMap<String, String>> {
    let text = |(name, value)| {
        let text = match value {
            Value::String(text) => text,
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            _ => {
                let why = format!("`{name}` must be a text or a number");
                return Err(Error::bad_params(why).at(format!("vars.{name}")));
            }
        };
        Ok((name, text))
    };
    vars.into_iter().map(text).collect()
}

fn check_vars(pattern: &Pattern, vars: &BTreeMap<String, String>) -> Result<()> {
    let empty = |name: &&String| vars.get(*name).is_none_or(|value| value.trim().is_empty());
    if let Some(name) = pattern.vars.keys().find(empty) {
        let why = format!("the pattern needs `{name}`: {}", pattern.vars[name]);
        return Err(Error::bad_params(why).at(format!("vars.{name}")));
    }
    if let Some(name) = vars.keys().find(|name| !pattern.vars.contains_key(*name)) {
        let known: Vec<_> = pattern.vars.keys().map(String::as_str).collect();
        return Err(Error::bad_params(format!("the pattern does not know `{name}`"))
            .at(format!("vars.{name}"))
            .hint(format!("it knows: {}, rounds", known.join(", "))));
    }
    Ok(())
}

async fn status(cx: Ctx<Orchestrations>, req: GetStatus) -> Result<Status> {
    Ok(status_of(&archive::find(&cx, &req.orchestration_id).await?, cx.now()))
}

async fn get_instance(cx: Ctx<Orchestrations>, req: GetInstance) -> Result<Instance> {
    let run = archive::find(&cx, &req.orchestration_id).await?;
    Ok(Instance { status: status_of(&run, cx.now()), spoken: run.turns })
}

async fn list(cx: Ctx<Orchestrations>, _: List) -> Result<Vec<Status>> {
    // The state first: what ends meanwhile is then found in documents as well, and listed once.
    let live = cx.read(|state| state.runs.clone()).await?;
    let mut all = archive::ended(&cx).await?;
    all.extend(live);
    let mut all: Vec<_> = all.values().map(|run| status_of(run, cx.now())).collect();
    all.sort_by_key(|status| status.started_at);
    Ok(all)
}

/// Asks for the end and waits until it has come; what is over already stays as it ended.
async fn terminate(cx: Ctx<Orchestrations>, req: Terminate) -> Result<Status> {
    let id = req.orchestration_id;
    let mut endings = cx.listen(&ENDINGS)?;
    let over = cx
        .decide(|state, _| {
            let facts = match state.runs.get(&id).map(|run| &run.phase) {
                Some(Phase::Running) => {
                    let reason = req.reason;
                    Facts::one(EndRequested { orchestration_id: id.clone(), reason })
                }
                Some(Phase::Ending { .. }) => Facts::none(),
                _ => return Ok((Facts::none(), true)),
            };
            Ok((facts, false))
        })
        .await?;
    if !over {
        endings.until(|event| event.record().filter(|end| end.subject == id).map(drop)).await?;
    }
    status(cx, GetStatus { orchestration_id: id }).await
}

async fn list_patterns(settings: Arc<Settings>, _: ListPatterns) -> Result<Vec<PatternLine>> {
    let entries = blocking(move || library(&settings).list(Pattern::parse)).await?;
    let line = |entry: Entry<Pattern, pattern::Error>| {
        let (pattern, error) = match entry.loaded {
            Ok(pattern) => (Some(pattern), None),
            Err(error) => (None, Some(error.to_string())),
        };
        PatternLine {
            name: entry.name,
            path: entry.path.map(|path| path.display().to_string()),
            description: pattern.as_ref().map(|pattern| pattern.description.clone()),
            roles: pattern.as_ref().map(Pattern::names).unwrap_or_default(),
            vars: pattern.map(|pattern| pattern.vars).unwrap_or_default(),
            error,
        }
    };
    Ok(entries.into_iter().map(line).collect())
}

async fn load_pattern(settings: Arc<Settings>, req: LoadPattern) -> Result<Pattern> {
    load(settings, req.pattern).await
}

async fn load(settings: Arc<Settings>, name: String) -> Result<Pattern> {
    blocking(move || library(&settings).load(&name, Pattern::parse)).await
}

fn library(settings: &Settings) -> Library {
    Library { kind: "pattern", built_in: BUILT_IN, folder: settings.patterns.clone() }
}

async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, NotLoaded<pattern::Error>> + Send + 'static,
) -> Result<T> {
    let read = tokio::task::spawn_blocking(read).await;
    let read = read.map_err(|_| Error::internal("reading a pattern panicked"))?;
    read.map_err(|error| {
        let (code, hint) = match &error {
            NotLoaded::Unknown { .. } => {
                (Code::NotFound, "`orchestration:list_patterns` names those there are")
            }
            NotLoaded::Faulty(_) => (Code::BadParams, "mend the file and start again"),
            NotLoaded::Unreadable { .. } => (Code::Unavailable, "check the file's permissions"),
        };
        Error::new(code, error.to_string()).at("pattern").hint(hint).retryable(false)
    })
}

fn status_of(run: &Run, now: Millis) -> Status {
    let started = &run.started;
    let mut status = Status {
        orchestration_id: started.orchestration_id.clone(),
        pattern: started.pattern.clone(),
        vars: started.vars.clone(),
        status: "running",
        agents: started.definition.names(),
        model: started.model.clone(),
        turns_total: started.definition.turns(),
        started_at: run.started_at.0,
        error: None,
        hint: None,
        reason: None,
        totals: Totals::default(),
    };
    (status.status, status.totals) = match run.phase.clone() {
        Phase::Running => ("running", run.totals(now, None)),
        Phase::Ending { reason } => {
            status.reason = reason;
            ("ending", run.totals(now, None))
        }
        Phase::Finished(totals) => ("finished", totals),
        Phase::Failed { error, hint, totals } => {
            (status.error, status.hint) = (Some(error), hint);
            ("failed", totals)
        }
        Phase::Terminated { reason, totals } => {
            status.reason = reason;
            ("terminated", totals)
        }
    };
    status
}
