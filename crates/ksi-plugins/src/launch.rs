//! Launch: runs any program as an effect. For tests: only in a build for them, and only when
//! `KSI_LAUNCH` is set.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc, time::Duration};

use ksi_kernel::{
    Changed, Ctx, Error, Fact, Facts, Fault, Millis, Out, Plugin, Result, Stamp, Want,
};
use ksi_process::{Cap, CappedLines, Command, Limits};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::json;

use crate::Settings;

/// How much of what a program says is passed on.
const OUTPUT: Cap = Cap { line: 4096, total: 1024 * 1024 };

const SAID: &str = "launch:said";

/// The plugin: `launch:program`.
pub fn plugin(settings: Arc<Settings>) -> Plugin<Launches> {
    Plugin::new("launch")
        .on("launch:program", program)
        .fact::<Wanted>()
        .fact::<Started>()
        .fact::<Ended>()
        .signal::<Said>(SAID)
        .fold(Launches::want)
        .fold(Launches::end)
        .drive(Launches::wanted, move |cx, key, _epoch, order| {
            perform(settings.clone(), cx, key, order)
        })
}

/// What is to run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Launches(BTreeMap<String, Program>);

/// Run a program
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Program {
    /// Of one key one run is there at a time.
    key: String,
    program: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// What it may do; without one, as little as a child may.
    #[serde(default)]
    profile: Option<String>,
    #[serde(default)]
    grace_ms: u64,
    #[serde(default)]
    memory: Option<u64>,
    #[serde(default)]
    cpu_seconds: Option<u64>,
    #[serde(default)]
    files: Option<u64>,
    #[serde(default)]
    processes: Option<u64>,
}

/// A program is to run
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Wanted(Program);

/// A program runs
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Started {
    key: String,
    /// Of its shim.
    pid: u32,
}

/// A program ended, or could not be started
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Ended {
    key: String,
    how: String,
    /// How many bytes of what it said were not passed on.
    dropped: u64,
}

/// A line that a program printed
#[derive(Debug, Serialize, JsonSchema)]
struct Said {
    key: String,
    line: String,
}

impl Fact for Wanted {
    const NAME: &'static str = "launch:wanted";

    fn subject(&self) -> Cow<'_, str> {
        (&self.0.key).into()
    }
}

impl Fact for Started {
    const NAME: &'static str = "launch:started";

    fn subject(&self) -> Cow<'_, str> {
        (&self.key).into()
    }
}

impl Fact for Ended {
    const NAME: &'static str = "launch:ended";

    fn subject(&self) -> Cow<'_, str> {
        (&self.key).into()
    }
}

impl Launches {
    fn want(&mut self, fact: &Wanted, _: &Stamp, _: &mut Out) -> Result<(), Fault> {
        self.0.insert(fact.0.key.clone(), fact.0.clone());
        Ok(())
    }

    fn end(&mut self, fact: &Ended, _: &Stamp, _: &mut Out) -> Result<(), Fault> {
        self.0.remove(&fact.key);
        Ok(())
    }

    fn wanted(&self, changed: Changed<'_>) -> Vec<Want<Program>> {
        let want = |key: &String| match self.0.get(key).cloned() {
            Some(effect) => Want::Run { key: key.clone(), epoch: 1, at: Millis(0), effect },
            None => Want::Stop { key: key.clone() },
        };
        match changed {
            Changed::All => self.0.keys().map(want).collect(),
            Changed::Keys(keys) => keys.iter().map(want).collect(),
        }
    }
}

async fn program(cx: Ctx<Launches>, req: Program) -> Result<&'static str> {
    if let Some(level) = &req.profile {
        let grant = json!({ "agent_id": principal(&req.key), "level": level });
        cx.call::<IgnoredAny>("permission:set_agent", &grant).await?;
    }
    cx.decide(|launches, _| {
        if launches.0.contains_key(&req.key) {
            return Err(Error::bad_params("this key runs already").at("key"));
        }
        Ok((Facts::one(Wanted(req)), "wanted"))
    })
    .await
}

fn principal(key: &str) -> String {
    format!("launch:{key}")
}

async fn perform(
    settings: Arc<Settings>,
    cx: Ctx<Launches>,
    key: String,
    order: Program,
) -> Result<()> {
    let Program { program, args, env, grace_ms, .. } = order;
    let (memory, cpu_seconds) = (order.memory, order.cpu_seconds);
    let limits = Limits { memory, cpu_seconds, files: order.files, processes: order.processes };
    let command = Command::new(program).args(args).effect("launch", &key).limits(limits);
    let command = command.principal(principal(&key)).env("KSI_SOCKET", &settings.socket);
    let command = env.into_iter().fold(command, |command, (name, value)| command.env(name, value));
    let spawned = command.grace(Duration::from_millis(grace_ms)).spawn(&settings.shim).await;
    let mut child = match spawned {
        Ok(child) => child,
        // It is still wanted, and tried again.
        Err(error @ ksi_process::Error::Busy { .. }) => {
            return Err(Error::unavailable(error.to_string()));
        }
        Err(error) => return end(&cx, key, error.to_string(), 0).await,
    };
    let pid = child.pid();
    let started = Started { key: key.clone(), pid };
    cx.decide(|_, _| Ok((Facts::one(started), ()))).await?;
    let stdout = child.stdout.take().ok_or_else(|| Error::internal("it has no pipes"))?;
    let mut lines = CappedLines::new(stdout, OUTPUT);
    while let Ok(Some(line)) = lines.next().await {
        cx.signal(SAID, &Said { key: key.clone(), line });
    }
    let how = child.wait().await.to_string();
    end(&cx, key, how, lines.dropped()).await
}

async fn end(cx: &Ctx<Launches>, key: String, how: String, dropped: u64) -> Result<()> {
    cx.decide(|_, _| Ok((Facts::one(Ended { key, how, dropped }), ()))).await
}
