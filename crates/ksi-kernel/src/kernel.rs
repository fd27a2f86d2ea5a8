//! The kernel: plugins, sequencer, router, ring and tasks put together.

use std::sync::{Arc, Weak};
use std::{future::ready, time::Duration};

use ksi_protocol::{Error, EventDoc, Pattern, Raw, Result};
use ksi_ring::{Caller, Event, Listener, Ring};
use ksi_runtime::{
    BoxFuture, Clock, EffectFailed, Effects, Ending, Replies, Run, Snapshots, Tasks,
};
use ksi_runtime::{Writer, caught, finish, room};
use ksi_state::{
    Committed, Facts, Fault, Journal, JournalError, PluginId, Replica, Seq, Sequencer,
};
use serde::Serialize;
use tokio::{runtime::Handle, time::timeout};

use crate::ctx::{Ctx, raw};
use crate::plugin::{AnyPlugin, Parts, Plugin};
use crate::router::{Answer, Router};

/// Why the kernel did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Two plugins want to answer or publish the same event.
    #[error("`{0}` belongs to plugin `{1}` and to plugin `{2}`; only one may own it")]
    Owner(&'static str, &'static str, &'static str),
    /// Two plugins have the same name.
    #[error("there are two plugins of the name `{0}`")]
    Twice(&'static str),
    /// A plugin watches a pattern that is none.
    #[error("plugin `{0}`: {1}")]
    Pattern(&'static str, Error),
    /// The journal cannot be read, or not be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// A running kernel.
#[derive(Clone)]
pub struct Kernel(pub(crate) Arc<Core>);

pub(crate) struct Core {
    pub(crate) sequencer: Sequencer,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) router: Router,
    pub(crate) ring: Ring,
    effects: Effects,
    pub(crate) plugins: Vec<Parts>,
    writer: Writer,
    ending: Ending,
    replies: Replies,
    snapshots: Snapshots,
}

/// What a kernel is made of.
pub struct Setup {
    /// The plugins, in the order in which they fold.
    pub plugins: Vec<AnyPlugin>,
    /// Where facts are kept.
    pub journal: Arc<dyn Journal>,
    /// Where time comes from.
    pub clock: Clock,
    /// A snapshot is made whenever so many facts have come; 0 means only when asked, or at the end.
    pub snapshot_every: u64,
}

/// How long tasks have to end by themselves before they are named and ended.
const LAGGARDS: Duration = Duration::from_secs(2);

impl Kernel {
    /// Folds the journal, starts what is wanted, and answers from then on.
    ///
    /// Must be called on a tokio runtime, which runs everything that the kernel owns.
    pub fn start(setup: Setup) -> Result<Kernel, StartError> {
        let Setup { plugins, journal, clock, snapshot_every: every } = setup;
        let own = Plugin::<()>::new("kernel").fact::<EffectFailed>();
        let own = own.signal::<room::Full>(room::FULL);
        let own = own.signal::<room::Recovered>(room::RECOVERED).into();
        let all = [own].into_iter().chain(plugins).map(|plugin: AnyPlugin| (plugin.0, plugin.1));
        let (machines, mut plugins): (Vec<_>, Vec<_>) = all.unzip();
        let names: Vec<_> = plugins.iter().map(|plugin| plugin.name).collect();
        if let Some(id) = (1..names.len()).find(|id| names[..*id].contains(&names[*id])) {
            return Err(StartError::Twice(names[id]));
        }
        let router = Router::new(&mut plugins)?;
        let live = Replica::new(machines);
        let copy = live.fork();
        let (sequencer, wants) = Sequencer::open(live, journal.clone())?;
        let (ring, tasks) = (Ring::default(), Tasks::new(Handle::current()));
        ring.start_at(sequencer.position().1);
        let kernel = Kernel(Arc::new_cyclic(|core: &Weak<Core>| Core {
            replies: Replies::new(&tasks),
            snapshots: Snapshots::new(copy, journal.clone(), every, sequencer.since(), &tasks),
            effects: Effects::new(names, core.clone(), tasks, clock),
            sequencer,
            journal,
            router,
            ring,
            plugins,
            writer: Writer::default(),
            ending: Ending::default(),
        }));
        for (id, plugin) in kernel.0.plugins.iter().enumerate() {
            for (index, (pattern, _)) in plugin.watchers.iter().enumerate() {
                let listener = kernel.listener();
                listener.inbox().subscribe(Pattern::parse(pattern).into_iter().collect(), None);
                kernel.tasks().spawn("watcher", kernel.clone().watch(id, index, listener));
            }
        }
        kernel.tasks().spawn("timer", kernel.0.effects.clone().keep_time());
        kernel.0.effects.apply(wants);
        kernel.0.sequencer.try_commit(&|news| kernel.committed(news));
        let writer = kernel.clone();
        let commit = move || writer.0.sequencer.commit(&|news| writer.committed(news));
        kernel.0.writer.start(commit)?;
        Ok(kernel)
    }

    /// Answers a request of this caller.
    pub fn call(&self, caller: Caller, event: &str, data: Raw) -> Answer {
        // Only here: what was begun before may still call what it needs to finish.
        match self.0.ending.is_closing() {
            true => Box::pin(ready(Err(Error::shutdown()))),
            false => self.dispatch(caller, event, data),
        }
    }

    /// A listener that hears nothing until it subscribes.
    pub fn listener(&self) -> Listener {
        Listener::new(self.0.ring.clone(), self.0.journal.clone())
    }

    /// The owner of the daemon's tasks.
    pub fn tasks(&self) -> &Tasks {
        self.0.effects.tasks()
    }

    /// What the plugins' states want, and what of it runs.
    pub fn effects(&self) -> &Effects {
        &self.0.effects
    }

    /// What makes snapshots.
    pub fn snapshots(&self) -> &Snapshots {
        &self.0.snapshots
    }

    /// The clock.
    pub fn clock(&self) -> &Clock {
        self.0.effects.clock()
    }

    /// Every event that plugins answer or publish, by name.
    pub fn catalog(&self) -> impl ExactSizeIterator<Item = &EventDoc> {
        self.0.router.catalog()
    }

    /// The plugins' names, in order.
    pub fn plugins(&self) -> impl ExactSizeIterator<Item = &'static str> {
        self.0.plugins.iter().map(|plugin| plugin.name)
    }

    /// What is not well, and why: plugins whose state cannot be trusted, a journal without room.
    pub fn degraded(&self) -> Vec<(&'static str, String)> {
        self.0.sequencer.degraded()
    }

    /// The last fact, and the last durable one.
    pub fn position(&self) -> (Seq, Seq) {
        self.0.sequencer.position()
    }

    /// Each plugin's state and wants, as they are and as the whole journal makes them.
    #[cfg(any(test, feature = "testing"))]
    pub fn audit(&self) -> Result<[Vec<ksi_state::testing::Snapshot>; 2], JournalError> {
        self.0.sequencer.audit()
    }

    /// How the daemon comes to its end.
    pub fn ending(&self) -> &Ending {
        &self.0.ending
    }

    /// Ends in phases: refuse, finish within the grace, stop, write, end all tasks.
    ///
    /// Only the writing has no bound: what was decided must reach the disk.
    pub async fn shutdown(&self, grace: Duration) {
        let core = &self.0;
        core.ending.close();
        let stops = self.each_plugin(Caller::system()).rev().filter_map(|(cx, parts)| {
            let stop = parts.stopper.as_ref()?;
            Some((parts.name, async move { stop(cx, ()).await }))
        });
        finish(stops, core.effects.drain(), grace, LAGGARDS).await;
        core.effects.stop();
        let _ = timeout(LAGGARDS, core.effects.drain()).await;
        core.sequencer.close();
        core.writer.end().await;
        core.snapshots.finish().await;
        core.replies.close();
        core.ring.close();
        for name in self.tasks().drain(LAGGARDS).await {
            tracing::warn!(task = name, "had to be ended");
        }
    }

    pub(crate) fn signal(&self, name: &str, data: &impl Serialize) {
        match raw(data) {
            Ok(data) => self.0.ring.publish([Event::signal(name, self.clock().now(), data)]),
            Err(error) => tracing::error!(event = name, %error, "a signal cannot be serialized"),
        }
    }

    /// For each durable batch: first the ring, then its wants; the replies follow.
    ///
    /// So what an effect says is heard behind the facts that led to it.
    fn committed(&self, news: Committed) {
        match news {
            Committed::Batch(batch) => {
                batch.records.last().inspect(|last| self.0.snapshots.note(last.seq));
                self.0.ring.publish(batch.records.into_iter().map(Event::fact));
                self.0.effects.apply(batch.wants);
            }
            Committed::Full(wants) => {
                self.0.effects.hold(wants);
                self.signal(room::FULL, &room::Full {});
            }
            Committed::Room => {
                self.signal(room::RECOVERED, &room::Recovered {});
                self.0.effects.go_on();
            }
            Committed::Broken(error) => {
                tracing::error!(%error, "the journal failed; the daemon ends");
                self.0.ending.fail();
            }
            Committed::Settled(dones, result) => self.0.replies.send(dones, result),
        }
    }

    async fn watch(self, id: usize, index: usize, mut listener: Listener) {
        let Parts { name, watchers, .. } = &self.0.plugins[id];
        while let Some(event) = listener.event().await {
            let cx = Ctx::new(self.clone(), PluginId(id), Caller::system());
            if let Err(Fault(why)) = caught(async { watchers[index].1(cx, event).await }).await {
                tracing::error!(plugin = name, why, "a watcher failed");
            }
        }
    }
}

impl ksi_runtime::Performer for Core {
    fn perform(self: Arc<Self>, run: Run) -> BoxFuture<Result<(), String>> {
        Box::pin(async move {
            let (id, key) = run.place.clone();
            let perform = self.plugins[id.0].performer.as_ref().ok_or("its plugin runs nothing")?;
            let caller = Caller { effect: Some((key, run.epoch)), ..Caller::system() };
            let cx = Ctx::new(Kernel(self.clone()), id, caller);
            perform(cx, run).await.map_err(|error| error.to_string())
        })
    }

    fn failed(&self, failure: EffectFailed) {
        let decide = |(): &(), _| (Facts::one(failure), ());
        let (by, now) = (Caller::system().by(), self.effects.clock().now());
        let recorded = self.sequencer.decide(PluginId(0), &by, now, decide, Box::new(|_| {}));
        recorded.unwrap_or_else(|error| tracing::warn!(%error, "the failure is not recorded"));
    }
}
