//! The router: from an event's name to the one plugin that answers it.

use std::collections::BTreeMap;

use ksi_protocol::{Code, Error, EventDoc, Result, check_event_name};
use ksi_runtime::caught;
use ksi_state::{Fault, PluginId};
use serde_json::value::RawValue;

use crate::ctx::{Caller, raw};
use crate::kernel::{Kernel, StartError};
use crate::plugin::{Handler, Parts, Place};

/// Says whether a caller may send an event; asked before every dispatch, an error ends the request.
pub type Guard = Box<dyn Fn(&Caller, &str) -> Result<()> + Send + Sync>;

/// Who answers what.
pub(crate) struct Router {
    routes: BTreeMap<&'static str, Route>,
    guards: Vec<Guard>,
}

/// An event and its owner; without a handler it is published, and nobody may send it.
struct Route {
    doc: EventDoc,
    plugin: PluginId,
    handler: Option<Handler>,
}

impl Router {
    pub(crate) fn new(plugins: &mut [Parts], guards: Vec<Guard>) -> Result<Self, StartError> {
        let mut routes: BTreeMap<_, Route> = BTreeMap::new();
        for (id, plugin) in plugins.iter_mut().enumerate() {
            if let Some(error) = plugin.fault.take() {
                return Err(StartError::Pattern(plugin.name, error));
            }
            for (doc, handler) in plugin.events.drain(..) {
                let event = doc.event;
                let route = Route { doc, plugin: PluginId(id), handler };
                if let Some(other) = routes.insert(event, route) {
                    return Err(StartError::Owner(event, other.doc.plugin, plugin.name));
                }
            }
        }
        Ok(Router { routes, guards })
    }

    pub(crate) fn catalog(&self) -> impl Iterator<Item = &EventDoc> {
        self.routes.values().map(|route| &route.doc)
    }

    /// Whether the caller may send this, and who answers it.
    fn route(&self, caller: &Caller, event: &str) -> Result<Option<(PluginId, &Handler)>> {
        self.guards.iter().try_for_each(|guard| guard(caller, event))?;
        let Some(Route { plugin, handler, .. }) = self.routes.get(event) else { return Ok(None) };
        let why = || format!("`{event}` is published by its plugin and cannot be sent");
        let handler = handler.as_ref().ok_or_else(|| Error::new(Code::Forbidden, why()));
        Ok(Some((*plugin, handler.map_err(|error| error.hint("subscribe to it instead"))?)))
    }

    /// Whether a plugin answers or publishes anything in this event's namespace.
    fn knows_namespace_of(&self, event: &str) -> bool {
        let namespace = event.split_inclusive(':').next().unwrap_or_default();
        self.routes.range(namespace..).next().is_some_and(|(known, _)| known.starts_with(namespace))
    }

    fn unhandled(&self, event: &str) -> Error {
        let error = Error::new(Code::Unhandled, format!("no plugin answers `{event}`"));
        let answered = self.routes.iter().filter(|(_, route)| route.handler.is_some());
        let by_distance =
            answered.map(|(known, _)| (strsim::damerau_levenshtein(known, event), known));
        match by_distance.min().filter(|(distance, _)| *distance <= 3) {
            Some((_, known)) => error.hint(format!("did you mean `{known}`?")),
            None => error.hint("`ksi discover` lists what is answered"),
        }
    }
}

impl Kernel {
    /// Answers a request, or passes a signal on to whoever listens.
    pub(crate) async fn dispatch(
        &self,
        caller: Caller,
        event: &str,
        data: Box<RawValue>,
    ) -> Result<Box<RawValue>> {
        let answer = caught(async {
            match self.0.router.route(&caller, event)? {
                Some((id, handler)) => handler(Place(self.clone(), id), (caller, data)).await,
                None => self.pass_on(event, data),
            }
        });
        answer.await.unwrap_or_else(|Fault(why)| {
            tracing::error!(event, why, "a handler panicked");
            Err(Error::new(Code::Panicked, format!("the handler of `{event}` {why}")))
        })
    }

    fn pass_on(&self, event: &str, data: Box<RawValue>) -> Result<Box<RawValue>> {
        check_event_name(event)?;
        let delivered = self.0.ring.listeners(event);
        if self.0.router.knows_namespace_of(event) || delivered == 0 {
            return Err(self.0.router.unhandled(event));
        }
        self.signal(event, data);
        raw(&serde_json::json!({ "delivered": delivered }))
    }
}
