//! Effects: runs what the plugins' states want, and nothing else.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ksi_protocol::{Error, Result};
use ksi_state::{Action, By, Ended, Fact, Facts, Place, PluginId, Runs, Wants};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::{
    caught,
    ctx::Caller,
    kernel::Core,
    plugin::{Performer, Run},
};

/// An effect failed, panicked or ended without a fact; it runs again after a pause.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EffectFailed {
    /// Whose effect.
    pub plugin: String,
    /// What it was about.
    pub key: String,
    /// Which attempt.
    pub epoch: u64,
    /// Failures in a row, this one counted.
    pub failures: u32,
    /// Why.
    pub error: String,
    /// When it runs again, in milliseconds since the epoch.
    pub again_at: u64,
}

impl Fact for EffectFailed {
    const NAME: &'static str = "effect:failed";

    fn subject(&self) -> std::borrow::Cow<'_, str> {
        (&self.key).into()
    }
}

/// What runs, and the means to stop it.
pub(crate) struct Effects {
    performers: Vec<Option<Performer>>,
    inner: Mutex<Inner>,
    rearm: Notify,
    ended: Notify,
}

#[derive(Default)]
struct Inner {
    runs: Runs,
    stops: HashMap<Place, Arc<Notify>>,
    draining: bool,
}

impl Effects {
    pub(crate) fn new(performers: Vec<Option<Performer>>) -> Self {
        let (inner, rearm, ended) = (Mutex::default(), Notify::new(), Notify::new());
        Effects { performers, inner, rearm, ended }
    }

    pub(crate) fn running(&self) -> usize {
        self.inner().stops.len()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// Takes wants that are durable; `all` when they are the complete set.
    pub(crate) fn apply(self: &Arc<Self>, wants: Wants, all: bool) {
        if wants.is_empty() && !all {
            return;
        }
        let now = self.clock.now();
        let mut inner = self.effects.inner();
        let actions = match all {
            true => inner.runs.replace(wants, now),
            false => inner.runs.apply(wants, now),
        };
        self.act(&mut inner, actions);
        drop(inner);
        self.effects.rearm.notify_one();
    }

    /// Starts what comes due, one timer for all.
    pub(crate) async fn keep_time(self: Arc<Self>) {
        while !self.effects.inner().draining {
            let next = self.effects.inner().runs.next_due();
            let rearmed = self.effects.rearm.notified();
            match next {
                None => rearmed.await,
                Some(at) => tokio::select! {
                    () = self.clock.sleep_until(at) => {
                        let mut inner = self.effects.inner();
                        let actions = inner.runs.due(self.clock.now());
                        self.act(&mut inner, actions);
                    }
                    () = rearmed => {}
                },
            }
        }
    }

    /// No effect starts any more; returns when none runs.
    pub(crate) async fn drain_effects(&self) {
        self.effects.inner().draining = true;
        self.effects.rearm.notify_one();
        loop {
            let ended = self.effects.ended.notified();
            if self.effects.running() == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Stops every effect that still runs; what it was for is wanted again at the next start.
    pub(crate) fn stop_effects(&self) {
        let mut inner = self.effects.inner();
        inner.draining = true;
        inner.stops.values().for_each(|stop| stop.notify_one());
    }

    fn act(self: &Arc<Self>, inner: &mut Inner, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Stop(place) => {
                    if let Some(stop) = inner.stops.get(&place) {
                        stop.notify_one();
                    }
                }
                Action::Start { .. } if inner.draining => {}
                Action::Start { place, epoch, effect } => {
                    let stop = Arc::new(Notify::new());
                    inner.stops.insert(place.clone(), stop.clone());
                    let run = Run { key: place.1.clone(), epoch, effect };
                    let name = format!("effect {} {}", self.router.plugins[place.0.0], place.1);
                    self.tasks.spawn(name, self.clone().run(place, run, stop));
                }
            }
        }
    }

    async fn run(self: Arc<Self>, place: Place, run: Run, stop: Arc<Notify>) {
        let epoch = run.epoch;
        let outcome = caught(self.perform(place.0, run, &stop))
            .await
            .unwrap_or_else(|why| Some(Err(Error::internal(format!("panicked: {why}")))));
        let ended = {
            let mut inner = self.effects.inner();
            inner.stops.remove(&place);
            let (ended, actions) = inner.runs.ended(&place, self.clock.now());
            self.act(&mut inner, actions);
            ended
        };
        self.effects.rearm.notify_one();
        if let (Some(outcome), Ended::Again { failures, at }) = (outcome, ended) {
            self.record_failure(&place, epoch, failures, at.0, outcome);
        }
        self.effects.ended.notify_waiters();
    }

    /// What became of the work; none when it was stopped.
    async fn perform(
        self: &Arc<Self>,
        plugin: PluginId,
        run: Run,
        stop: &Notify,
    ) -> Option<Result<()>> {
        let perform = self.effects.performers[plugin.0].as_ref()?;
        tokio::select! {
            biased;
            () = stop.notified() => None,
            result = perform(self.clone(), run) => Some(result),
        }
    }

    fn record_failure(
        &self,
        (plugin, key): &Place,
        epoch: u64,
        failures: u32,
        again_at: u64,
        outcome: Result<()>,
    ) {
        let plugin = self.router.plugins[plugin.0].to_owned();
        let error = outcome.err().map_or("it ended without a fact".into(), |e| e.to_string());
        tracing::warn!(plugin, key, error, failures, "an effect failed and will run again");
        let fact = EffectFailed { plugin, key: key.clone(), epoch, failures, error, again_at };
        let by = By { origin: Caller::system().origin, effect: None };
        let decide = |(): &(), _| (Facts::one(fact), ());
        let recorded =
            self.sequencer.decide(PluginId(0), &by, self.clock.now(), decide, Box::new(|_| {}));
        if let Err(error) = recorded {
            tracing::warn!(%error, "the failure could not be recorded");
        }
    }
}
