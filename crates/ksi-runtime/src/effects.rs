//! Effects: runs what the plugins' states want, and nothing else.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use ksi_state::{AnyEffect, Fact, Fault, Millis, Wants};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::runs::{Action, Ended, Place, Runs};
use crate::{BoxFuture, Clock, Tasks, caught};

/// One run of an effect.
#[derive(Debug, Clone)]
pub struct Run {
    /// Whose, and what it is about.
    pub place: Place,
    /// Which attempt.
    pub epoch: u64,
    /// The work.
    pub effect: AnyEffect,
}

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

/// Who knows how to run an effect, and takes note when one failed.
pub trait Performer: Send + Sync + 'static {
    /// Does the work; an error's text says why it failed.
    fn perform(self: Arc<Self>, run: Run) -> BoxFuture<Result<(), String>>;

    /// Records a failure.
    fn failed(&self, failure: EffectFailed);
}

/// What runs, and the means to stop it.
#[derive(Clone)]
pub struct Effects(Arc<Shared>);

struct Shared {
    plugins: Vec<&'static str>,
    performer: Weak<dyn Performer>,
    tasks: Tasks,
    clock: Clock,
    inner: Mutex<Inner>,
    rearm: Notify,
    ended: Notify,
}

#[derive(Default)]
struct Inner {
    runs: Runs,
    stops: HashMap<Place, Arc<Notify>>,
    /// Told to stop, and not returned yet.
    ending: HashSet<Place>,
    draining: bool,
}

impl Inner {
    /// Whether none has to return any more, or none could say how it ended.
    fn is_drained(&self) -> bool {
        self.stops.is_empty() && self.ending.is_empty() || self.runs.is_held()
    }
}

impl Effects {
    /// Nothing starts before [`Effects::go_on`]; `plugins` are their names by place.
    pub fn new(
        plugins: Vec<&'static str>,
        performer: Weak<dyn Performer>,
        tasks: Tasks,
        clock: Clock,
    ) -> Self {
        let mut inner = Inner::default();
        inner.runs.hold();
        let (inner, rearm, ended) = (Mutex::new(inner), Notify::new(), Notify::new());
        Effects(Arc::new(Shared { plugins, performer, tasks, clock, inner, rearm, ended }))
    }

    /// Takes wants that are durable, in order.
    pub fn apply(&self, wants: Wants) {
        if !wants.is_empty() {
            self.change(|runs, now| runs.apply(wants, now));
        }
    }

    /// Takes the complete set of what is wanted, and starts none of it before [`Effects::go_on`]:
    /// the journal has no room for how it would end, and a second run may cost as much again.
    pub fn hold(&self, wants: Wants) {
        tracing::error!(
            "the journal's disk is full; what was not on it is forgotten, effects wait"
        );
        self.change(|runs, now| {
            runs.hold();
            runs.replace(wants, now)
        });
        self.0.ended.notify_waiters();
    }

    /// Starts what is wanted: the journal has room.
    pub fn go_on(&self) {
        tracing::info!("the journal has room");
        self.change(Runs::go_on);
    }

    /// The owner of the tasks they run in.
    pub fn tasks(&self) -> &Tasks {
        &self.0.tasks
    }

    /// The clock they go by.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// How many run. Once the fact that ends one is durable it does not count, though it may still
    /// be returning, unless the next of its place is to start then.
    pub fn running(&self) -> usize {
        let now = self.0.clock.now();
        let Inner { runs, stops, ending, .. } = &*self.0.inner.lock();
        stops.len() + ending.iter().filter(|place| runs.is_due(place, now)).count()
    }

    /// Starts what comes due, one timer for all; returns when they are drained.
    pub async fn keep_time(self) {
        while !self.0.inner.lock().draining {
            let next = self.0.inner.lock().runs.next_due();
            let rearmed = self.0.rearm.notified();
            match next {
                None => rearmed.await,
                Some(at) => tokio::select! {
                    () = self.0.clock.sleep_until(at) => self.change(Runs::due),
                    () = rearmed => {}
                },
            }
        }
    }

    /// None starts any more; returns when none runs, or when none could say how it ended.
    pub async fn drain(&self) {
        self.0.inner.lock().draining = true;
        self.0.rearm.notify_one();
        loop {
            let ended = self.0.ended.notified();
            if self.0.inner.lock().is_drained() {
                return;
            }
            ended.await;
        }
    }

    /// Stops every one that still runs; what it was for is wanted again at the next start.
    pub fn stop(&self) {
        let mut inner = self.0.inner.lock();
        inner.draining = true;
        inner.stops.values().for_each(|stop| stop.notify_one());
    }

    fn change(&self, change: impl FnOnce(&mut Runs, Millis) -> Vec<Action>) {
        let mut inner = self.0.inner.lock();
        let actions = change(&mut inner.runs, self.0.clock.now());
        self.act(&mut inner, actions);
        drop(inner);
        self.0.rearm.notify_one();
    }

    fn act(&self, inner: &mut Inner, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Stop(place) => {
                    if let Some(stop) = inner.stops.remove(&place) {
                        stop.notify_one();
                        inner.ending.insert(place);
                    }
                }
                Action::Start { .. } if inner.draining => {}
                Action::Start { place, epoch, effect } => {
                    let stop = Arc::new(Notify::new());
                    inner.stops.insert(place.clone(), stop.clone());
                    let name = format!("effect {} {}", self.0.plugins[place.0.0], place.1);
                    let run = Run { place, epoch, effect };
                    self.0.tasks.spawn(name, self.clone().run(run, stop));
                }
            }
        }
    }

    async fn run(self, run: Run, stop: Arc<Notify>) {
        let (place, epoch) = (run.place.clone(), run.epoch);
        let outcome = self.perform(run, &stop).await;
        let ended = {
            let mut inner = self.0.inner.lock();
            inner.stops.remove(&place);
            inner.ending.remove(&place);
            let (ended, actions) = inner.runs.ended(&place, self.0.clock.now());
            self.act(&mut inner, actions);
            ended
        };
        self.0.rearm.notify_one();
        if let (Some(outcome), Ended::Again { failures, at }) = (outcome, ended) {
            let plugin = self.0.plugins[place.0.0].to_owned();
            let error = outcome.err().unwrap_or_else(|| "it ended without a fact".to_owned());
            let (key, again_at) = (place.1, at.0);
            tracing::warn!(plugin, key, error, failures, "an effect failed and will run again");
            let failure = EffectFailed { plugin, key, epoch, failures, error, again_at };
            self.0.performer.upgrade().inspect(|performer| performer.failed(failure));
        }
        self.0.ended.notify_waiters();
    }

    /// What became of the work; none when it was stopped.
    async fn perform(&self, run: Run, stop: &Notify) -> Option<Result<(), String>> {
        let performer = self.0.performer.upgrade()?;
        tokio::select! {
            biased;
            () = stop.notified() => None,
            outcome = caught(async { performer.perform(run).await }) => {
                Some(outcome.map_err(|Fault(why)| why).flatten())
            }
        }
    }
}
