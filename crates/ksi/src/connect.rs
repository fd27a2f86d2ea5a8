//! The way to the daemon: connect, or start it first.

use std::{
    cell::Cell,
    fs::File,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context;
use ksi_process::{Environment, NotReady, Shim, spawn_detached};
use ksi_protocol::{Client, Error, Feed, FeedError, Paths, Pattern};
use rustix::fs::{FlockOperation, flock};

use crate::{
    args::{Args, Format},
    daemon::{LOG, VERSION, state_folder},
    fail::no_home,
    output::{harmless, say},
    reach::{Unreached, reach},
};

/// How long a daemon may take until it answers.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a command looks for a daemon that is starting or ending: with pauses that double.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How long a command that watches waits for a daemon that has gone away.
const COMEBACK: Duration = Duration::from_secs(10);

/// All of ours; paths that begin here are made to hold in `/` too, where the daemon runs.
fn environment() -> anyhow::Result<Environment> {
    let mut environment = Environment::new().inherit(["*"]);
    for name in ["KSI_HOME", "KSI_SOCKET"] {
        if let Some(path) = std::env::var_os(name).filter(|path| !path.is_empty()) {
            environment = environment.set(name, std::path::absolute(path)?);
        }
    }
    Ok(environment)
}

/// Event patterns from their texts.
pub(crate) fn patterns(texts: &[impl AsRef<str>]) -> ksi_protocol::Result<Vec<Pattern>> {
    texts.iter().map(|text| Pattern::parse(text.as_ref())).collect()
}

/// What a command knows of its surroundings.
pub(crate) struct Cx {
    pub(crate) paths: Paths,
    pub(crate) format: Format,
    no_start: bool,
    /// Whether the daemon's version was looked at, or does not matter.
    pub(crate) compared: Cell<bool>,
}

impl Cx {
    pub(crate) fn new(args: &Args) -> anyhow::Result<Cx> {
        let (paths, compared) = (Paths::discover()?, Cell::new(false));
        Ok(Cx { paths, format: args.output, no_start: args.no_start, compared })
    }

    pub(crate) fn json(&self) -> bool {
        self.format == Format::Json
    }

    /// The file that a daemon in the background logs to.
    pub(crate) fn log(&self) -> PathBuf {
        self.paths.state.join(LOG)
    }

    /// A client, if the daemon runs and answers.
    pub(crate) async fn running(&self) -> Result<Client, Unreached> {
        self.once_over(|why| why.passes_within().filter(|_| why.is_momentary())).await
    }

    /// The same once a daemon that is starting or ending has done so; none if none runs then.
    pub(crate) async fn settled(&self) -> Result<Option<Client>, Unreached> {
        match self.once_over(Unreached::passes_within).await {
            Ok(client) => Ok(Some(client)),
            Err(why) if why.is_free() => Ok(None),
            Err(why) => Err(why),
        }
    }

    /// A client, when what keeps it away is over within the time that it is given.
    async fn once_over(
        &self,
        patience: impl Fn(&Unreached) -> Option<Duration>,
    ) -> Result<Client, Unreached> {
        let (begun, mut pause) = (Instant::now(), FIRST_PAUSE);
        loop {
            let why = match reach(&self.paths).await {
                Ok((client, version)) => {
                    version.iter().for_each(|version| self.compare(version));
                    return Ok(client);
                }
                Err(why) => why,
            };
            if patience(&why).is_none_or(|patience| begun.elapsed() >= patience) {
                return Err(why);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Says once that the daemon is another program than this; programs read it in the status.
    fn compare(&self, version: &str) {
        if version != VERSION && !self.compared.replace(true) && !self.json() {
            let version = harmless(version);
            say(format!("note: the daemon is ksi {version}, and this is ksi {VERSION}"));
            say("hint: `ksi restart` replaces it");
        }
    }

    /// These events from a daemon that runs, also when another takes its place.
    pub(crate) async fn feed(
        &self,
        patterns: Vec<Pattern>,
        since: Option<u64>,
    ) -> anyhow::Result<Feed> {
        match Feed::open(&self.paths.socket, patterns, since, COMEBACK).await {
            Ok(feed) => {
                self.tell_pruned(feed.pruned());
                Ok(feed)
            }
            Err(FeedError::Connect(error)) => Err(error.into()),
            Err(FeedError::Refused(error)) => Err(error.into()),
        }
    }

    /// Says that the daemon is away.
    pub(crate) fn tell_away(&self) {
        self.note("the daemon has gone away; waiting until it is back");
    }

    /// Says that a daemon is back, and if it is another than this program; a client for it.
    pub(crate) async fn tell_back(&self, pruned: Option<u64>) -> Result<Client, Unreached> {
        self.note("the daemon is back");
        self.tell_pruned(pruned);
        self.running().await
    }

    fn tell_pruned(&self, pruned: Option<u64>) {
        if let Some(seq) = pruned {
            self.note(&format!("note: of the facts up to {seq} the journal keeps only some"));
        }
    }

    /// Tells a person what a program need not know.
    fn note(&self, text: &str) {
        if !self.json() {
            say(text);
        }
    }

    /// A client; the daemon is started when it does not run and may be.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        if self.no_start {
            return Ok(self.running().await?);
        }
        self.start().await.map(|(client, _)| client)
    }

    /// Starts the daemon in the background unless it runs; true if this call did it.
    pub(crate) async fn start(&self) -> anyhow::Result<(Client, bool)> {
        // Who waits for a daemon that hangs holds no other up.
        if let Some(client) = self.settled().await? {
            return Ok((client, false));
        }
        let state = &self.paths.state;
        state_folder(&self.paths)?;
        // Of several commands that start the daemon at once, one does and the others wait for it.
        let gate = state.join("starting.lock");
        let gate = File::create(&gate)
            .map_err(|why| no_home(format!("{} cannot be written", gate.display()), &why))?;
        let _gate = tokio::task::spawn_blocking(move || {
            flock(&gate, FlockOperation::LockExclusive).map(|()| gate)
        })
        .await??;
        if let Some(client) = self.settled().await? {
            return Ok((client, false));
        }
        let shim = Shim::current()?;
        let program = std::env::current_exe().context("this program's own file is not known")?;
        let args = ["start", "--foreground"];
        let detached = spawn_detached(&shim, &program, args, &environment()?, &self.log())?;
        match detached.ready(PATIENCE) {
            Ok(()) => Ok((self.running().await?, true)),
            // Another daemon, started in another way, was faster.
            Err(why) => match self.settled().await {
                Ok(Some(client)) => Ok((client, false)),
                _ => Err(self.not_ready(&why).into()),
            },
        }
    }

    fn not_ready(&self, why: &NotReady) -> Error {
        let message = match why {
            NotReady::Failed(text) => format!("the daemon did not start: {text}"),
            why => format!("the daemon did not start: {why}"),
        };
        Error::unavailable(message).hint(format!("its log is {}", self.log().display()))
    }
}
