//! The router: from an event's name to the one plugin that answers it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use ksi_protocol::{Code, Error, Result, check_event_name};
use serde_json::value::RawValue;

use crate::{
    caught,
    ctx::{Caller, raw},
    kernel::{Core, StartError},
    plugin::{AnyPlugin, EventDoc, Handler, Kind},
};

/// Says whether a caller may send an event; asked before every dispatch.
pub trait Guard: Send + Sync + 'static {
    /// An error ends the request.
    fn check(&self, caller: &Caller, event: &str) -> Result<()>;
}

impl<F: Fn(&Caller, &str) -> Result<()> + Send + Sync + 'static> Guard for F {
    fn check(&self, caller: &Caller, event: &str) -> Result<()> {
        self(caller, event)
    }
}

/// Who answers what.
pub(crate) struct Router {
    routes: HashMap<&'static str, Handler>,
    news: BTreeSet<&'static str>,
    namespaces: BTreeSet<String>,
    guards: Vec<Box<dyn Guard>>,
    pub(crate) catalog: Vec<EventDoc>,
    pub(crate) plugins: Vec<&'static str>,
}

impl Router {
    pub(crate) fn new(
        plugins: &mut [AnyPlugin],
        guards: Vec<Box<dyn Guard>>,
    ) -> Result<Self, StartError> {
        let mut owners: HashMap<&str, &str> = HashMap::new();
        let (mut routes, mut news, mut namespaces) =
            (HashMap::new(), BTreeSet::new(), BTreeSet::new());
        let (mut catalog, mut names) = (Vec::new(), Vec::new());
        for plugin in plugins {
            let name = plugin.name;
            if names.contains(&name) {
                return Err(StartError::Twice(name));
            }
            names.push(name);
            if let Some(fault) = plugin.faults.pop() {
                return Err(StartError::Plugin { plugin: name, why: fault });
            }
            for doc in &plugin.docs {
                if let Some(other) = owners.insert(doc.event, name) {
                    return Err(StartError::Owner {
                        event: doc.event,
                        one: other.to_owned(),
                        two: name,
                    });
                }
                if doc.kind != Kind::Request {
                    news.insert(doc.event);
                }
                namespaces.extend(doc.event.split(':').next().map(str::to_owned));
            }
            routes.extend(plugin.handlers.drain(..));
            catalog.append(&mut plugin.docs);
        }
        catalog.sort_by_key(|doc| doc.event);
        Ok(Router { routes, news, namespaces, guards, catalog, plugins: names })
    }

    /// Whether anyone may send this, and whether it has an owner.
    fn route(&self, caller: &Caller, event: &str) -> Result<Option<&Handler>> {
        for guard in &self.guards {
            guard.check(caller, event)?;
        }
        if self.news.contains(event) {
            let why = format!("`{event}` is published by its plugin and cannot be sent");
            return Err(Error::new(Code::Forbidden, why).hint("subscribe to it instead"));
        }
        Ok(self.routes.get(event))
    }

    fn unhandled(&self, event: &str) -> Error {
        let error = Error::new(Code::Unhandled, format!("no plugin answers `{event}`"));
        let near = |known: &&&'static str| strsim::damerau_levenshtein(known, event) <= 3;
        let by_distance = |known: &&&'static str| strsim::damerau_levenshtein(known, event);
        match self.routes.keys().filter(near).min_by_key(by_distance) {
            Some(known) => error.hint(format!("did you mean `{known}`?")),
            None => error.hint("`ksi discover` lists what is answered"),
        }
    }
}

impl Core {
    /// Answers a request, or passes a signal on to whoever listens.
    pub(crate) async fn call(
        self: &Arc<Self>,
        caller: Caller,
        event: String,
        data: Box<RawValue>,
    ) -> Result<Box<RawValue>> {
        let answer = caught(async {
            match self.router.route(&caller, &event)? {
                Some(handler) => handler(self.clone(), caller, data).await,
                None => self.pass_on(&event, data),
            }
        });
        answer.await.unwrap_or_else(|why| {
            tracing::error!(event, why, "a handler panicked");
            Err(Error::new(Code::Panicked, format!("the handler of `{event}` panicked: {why}")))
        })
    }

    fn pass_on(&self, event: &str, data: Box<RawValue>) -> Result<Box<RawValue>> {
        check_event_name(event)?;
        let namespace = event.split(':').next().unwrap_or_default();
        let delivered = self.ring.listeners(event);
        if self.router.namespaces.contains(namespace) || delivered == 0 {
            return Err(self.router.unhandled(event));
        }
        self.signal(event, data);
        raw(&serde_json::json!({ "delivered": delivered }))
    }
}
