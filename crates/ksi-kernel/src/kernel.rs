//! The kernel: plugins, sequencer, router, ring and tasks put together.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use ksi_protocol::{Code, Error, Result};
use ksi_state::{Committed, Journal, JournalError, Millis, PluginId, Sequencer};
use serde_json::value::RawValue;
use tokio::sync::watch;

use crate::{
    caught,
    clock::Clock,
    ctx::{Caller, Daemon},
    effects::{EffectFailed, Effects},
    event::Event,
    listener::{Listener, News},
    plugin::{AnyPlugin, Plugin, Stopper, Watcher},
    ring::Ring,
    router::{Guard, Router},
    tasks::Tasks,
};

/// Why the kernel did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Two plugins want to answer or publish the same event.
    #[error("`{event}` belongs to plugin `{one}` and to plugin `{two}`; only one may own it")]
    Owner {
        /// The event.
        event: &'static str,
        /// One owner.
        one: String,
        /// The other.
        two: &'static str,
    },
    /// Two plugins have the same name.
    #[error("there are two plugins of the name `{0}`")]
    Twice(&'static str),
    /// A plugin's table is wrong.
    #[error("plugin `{plugin}`: {why}")]
    Plugin {
        /// The plugin.
        plugin: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The writer's thread could not be started.
    #[error("the journal's writer could not be started")]
    Writer(#[source] std::io::Error),
}

pub(crate) struct Core {
    pub(crate) sequencer: Sequencer,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) router: Router,
    pub(crate) effects: Effects,
    pub(crate) ring: Ring,
    pub(crate) tasks: Tasks,
    pub(crate) clock: Clock,
    pub(crate) started: Millis,
    stoppers: Vec<(&'static str, Stopper)>,
    pub(crate) closing: watch::Sender<bool>,
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) broken: AtomicBool,
}

/// What a kernel is made of.
pub struct Setup {
    /// The plugins, in the order in which they fold.
    pub plugins: Vec<AnyPlugin>,
    /// Where facts are kept.
    pub journal: Arc<dyn Journal>,
    /// Where time comes from.
    pub clock: Clock,
    /// Who may send what.
    pub guards: Vec<Box<dyn Guard>>,
}

/// A running kernel.
#[derive(Clone)]
pub struct Kernel {
    core: Arc<Core>,
    writer: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Kernel {
    /// Folds the journal, starts what is wanted, and answers from then on.
    ///
    /// Must be called on a tokio runtime, which runs everything that the kernel owns.
    pub fn start(setup: Setup) -> Result<Kernel, StartError> {
        let own = Plugin::<()>::new("kernel").fact::<EffectFailed>();
        let mut plugins = vec![own.into()];
        plugins.extend(setup.plugins);
        let router = Router::new(&mut plugins, setup.guards)?;
        let (mut machines, mut performers, mut watchers, mut stoppers) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (place, plugin) in plugins.into_iter().enumerate() {
            let _ = plugin.place.set(PluginId(place));
            machines.push(plugin.machine);
            performers.push(plugin.performer);
            watchers.extend(plugin.watchers);
            stoppers.extend(plugin.stopper.map(|stop| (plugin.name, stop)));
        }
        let (sequencer, wants) = Sequencer::open(machines, setup.journal.clone())?;
        let ring = Ring::default();
        ring.start_at(sequencer.position().1);
        let core = Arc::new(Core {
            sequencer,
            journal: setup.journal,
            router,
            effects: Effects::new(performers),
            ring,
            tasks: Tasks::new(tokio::runtime::Handle::current()),
            started: setup.clock.now(),
            clock: setup.clock,
            stoppers,
            closing: watch::Sender::new(false),
            stop: watch::Sender::new(false),
            broken: AtomicBool::new(false),
        });
        let writer = core.clone().start_writer().map_err(StartError::Writer)?;
        for (pattern, watcher) in watchers {
            let listener = core.listener();
            listener.inbox().subscribe(vec![pattern], None);
            core.tasks.spawn("watcher", watch(core.clone(), listener, watcher));
        }
        core.tasks.spawn("timer", core.clone().keep_time());
        core.apply(wants, true);
        Ok(Kernel { core, writer: Arc::new(Mutex::new(Some(writer))) })
    }

    /// Answers a request of this caller.
    pub async fn call(
        &self,
        caller: Caller,
        event: String,
        data: Box<RawValue>,
    ) -> Result<Box<RawValue>> {
        // Only here: what was begun before may still call what it needs to finish.
        if *self.core.closing.borrow() {
            return Err(Error::new(Code::Shutdown, "the daemon is shutting down")
                .hint("try again in a moment; commands start it when it is not there"));
        }
        self.core.call(caller, event, data).await
    }

    /// A listener that hears nothing until it subscribes.
    pub fn listener(&self) -> Listener {
        self.core.listener()
    }

    /// The owner of the daemon's tasks.
    pub fn tasks(&self) -> &Tasks {
        &self.core.tasks
    }

    /// The clock.
    pub fn clock(&self) -> &Clock {
        &self.core.clock
    }

    /// What runs and how it is.
    pub fn daemon(&self) -> Daemon<'_> {
        Daemon(&self.core)
    }

    /// Each plugin's state and wants, as they are and as the whole journal makes them.
    #[cfg(any(test, feature = "testing"))]
    pub fn audit(&self) -> Result<[Vec<ksi_state::testing::Snapshot>; 2], JournalError> {
        self.core.sequencer.audit()
    }

    /// Returns once somebody has asked the daemon to stop.
    pub async fn stop_requested(&self) {
        let mut stop = self.core.stop.subscribe();
        let _ = stop.wait_for(|stop| *stop).await;
    }

    /// Returns once no new request is taken.
    pub async fn closing(&self) {
        let mut closing = self.core.closing.subscribe();
        let _ = closing.wait_for(|closing| *closing).await;
    }

    /// Ends in phases: refuse, finish within the grace, stop, write, end all tasks.
    ///
    /// Only the writing has no bound: what was decided must reach the disk.
    pub async fn shutdown(&self, grace: Duration) {
        let core = &self.core;
        core.closing.send_replace(true);
        let _ = tokio::time::timeout(grace, async {
            for (plugin, stop) in core.stoppers.iter().rev() {
                tracing::debug!(plugin, "stopping");
                if let Err(why) = caught(async { stop(core.clone()).await }).await {
                    tracing::error!(plugin, why, "panicked while stopping");
                }
            }
            core.drain_effects().await;
        })
        .await;
        core.stop_effects();
        let _ = tokio::time::timeout(LAGGARDS, core.drain_effects()).await;
        core.sequencer.close();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        }
        core.ring.close();
        for name in core.tasks.drain(LAGGARDS).await {
            tracing::warn!(task = name, "had to be ended");
        }
    }
}

/// How long tasks have to end by themselves before they are named and ended.
const LAGGARDS: Duration = Duration::from_secs(2);

impl Core {
    pub(crate) fn listener(&self) -> Listener {
        Listener::new(self.ring.clone(), self.journal.clone())
    }

    pub(crate) fn signal(&self, name: &str, data: Box<RawValue>) {
        self.ring.publish([Arc::new(Event::signal(name, self.clock.now(), data))]);
    }

    fn start_writer(self: Arc<Self>) -> std::io::Result<JoinHandle<()>> {
        let write = move || {
            while self.sequencer.commit(&|news| self.committed(news)) {}
        };
        std::thread::Builder::new().name("journal".into()).spawn(write)
    }

    /// For each durable batch: first its wants, then the ring; the replies follow.
    fn committed(self: &Arc<Self>, news: Committed) {
        match news {
            Committed::Batch(batch) => {
                self.apply(batch.wants, false);
                self.ring.publish(batch.records.into_iter().map(|r| Arc::new(Event::fact(r))));
            }
            Committed::Rebuilt(wants) => {
                tracing::error!("the journal had no room; what was not on disk is forgotten");
                self.apply(wants, true);
            }
            Committed::Broken(error) => {
                tracing::error!(%error, "the journal failed; the daemon ends");
                self.broken.store(true, Ordering::Relaxed);
                self.stop.send_replace(true);
            }
        }
    }
}

async fn watch(core: Arc<Core>, mut listener: Listener, watcher: Watcher) {
    while let Some(news) = listener.next().await {
        let News::Event(event, _) = news else { continue };
        if let Err(why) = caught(async { watcher(core.clone(), event).await }).await {
            tracing::error!(why, "a watcher panicked");
        }
    }
}
