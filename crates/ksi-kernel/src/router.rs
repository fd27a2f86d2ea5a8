//! The router: from an event's name to the one plugin that answers it.

use std::{collections::BTreeMap, future::ready};

use ksi_protocol::{Code, Error, EventDoc, Raw, Result, check_event_name};
use ksi_runtime::BoxFuture;
use ksi_state::{PluginId, catch};

use crate::ctx::{Caller, Ctx, raw};
use crate::kernel::{Kernel, StartError};
use crate::plugin::{Handler, Parts, panicked};

/// Says whether a caller may send an event; asked before every dispatch, an error ends the request.
pub type Guard = Box<dyn Fn(&Caller, &str) -> Result<()> + Send + Sync>;

/// The answer to a request, when it comes.
pub type Answer = BoxFuture<Result<Raw>>;

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

    pub(crate) fn catalog(&self) -> impl ExactSizeIterator<Item = &EventDoc> {
        self.routes.values().map(|route| &route.doc)
    }

    /// Whether the caller may send this, and who answers it.
    fn route(&self, caller: &Caller, event: &str) -> Result<Option<(PluginId, &Handler)>> {
        let asked = || self.guards.iter().try_for_each(|guard| guard(caller, event));
        catch(asked).unwrap_or_else(|fault| Err(panicked("a guard", event, fault)))?;
        match self.routes.get(event) {
            None => Ok(None),
            Some(Route { plugin, handler: Some(handler), .. }) => Ok(Some((*plugin, handler))),
            Some(_) => {
                let why = format!("`{event}` is published by its plugin and cannot be sent");
                Err(Error::new(Code::Forbidden, why).hint("subscribe to it instead"))
            }
        }
    }

    /// Whether a plugin answers or publishes anything in this event's namespace.
    fn knows_namespace_of(&self, event: &str) -> bool {
        let namespace = event.split_inclusive(':').next().unwrap_or_default();
        self.routes.range(namespace..).next().is_some_and(|(known, _)| known.starts_with(namespace))
    }
}

impl Kernel {
    /// Answers a request, or passes a signal on to whoever listens.
    pub(crate) fn dispatch(&self, caller: Caller, event: &str, data: Raw) -> Answer {
        let answer = match self.0.router.route(&caller, event) {
            Ok(Some((id, handler))) => return handler(Ctx::new(self.clone(), id, caller), data),
            Ok(None) => self.pass_on(event, data),
            Err(error) => Err(error),
        };
        Box::pin(ready(answer))
    }

    fn pass_on(&self, event: &str, data: Raw) -> Result<Raw> {
        check_event_name(event)?;
        let (router, delivered) = (&self.0.router, self.0.ring.listeners(event));
        if router.knows_namespace_of(event) || delivered == 0 {
            let answered = router.routes.iter().filter(|(_, route)| route.handler.is_some());
            return Err(Error::unhandled(event, answered.map(|(known, _)| *known)));
        }
        self.signal(event, data);
        raw(&serde_json::json!({ "delivered": delivered }))
    }
}
