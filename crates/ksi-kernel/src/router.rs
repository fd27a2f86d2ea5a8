//! The router: from an event's name to the one plugin that answers it.

use std::{collections::BTreeMap, future::ready};

use ksi_protocol::{Code, Error, EventDoc, Pattern, Raw, Result, check_event_name};
use ksi_ring::{Act, Caller};
use ksi_runtime::BoxFuture;
use ksi_state::{PluginId, catch};

use crate::ctx::{Ctx, raw};
use crate::kernel::{Kernel, StartError};
use crate::plugin::{Handler, Parts, panicked};

/// The answer to a request, when it comes.
pub type Answer = BoxFuture<Result<Raw>>;

/// Who answers what.
pub(crate) struct Router {
    routes: BTreeMap<&'static str, Route>,
}

/// An event and its owner; without a handler it is published, and nobody may send it.
struct Route {
    doc: EventDoc,
    plugin: PluginId,
    handler: Option<Handler>,
}

impl Router {
    pub(crate) fn new(plugins: &mut [Parts]) -> Result<Self, StartError> {
        let mut routes: BTreeMap<_, Route> = BTreeMap::new();
        for (id, plugin) in plugins.iter_mut().enumerate() {
            for (pattern, _) in &plugin.watchers {
                Pattern::parse(pattern).map_err(|why| StartError::Pattern(plugin.name, why))?;
            }
            for (doc, handler) in plugin.events.drain(..) {
                let event = doc.event;
                let route = Route { doc, plugin: PluginId(id), handler };
                if let Some(other) = routes.insert(event, route) {
                    return Err(StartError::Owner(event, other.doc.plugin, plugin.name));
                }
            }
        }
        Ok(Router { routes })
    }

    pub(crate) fn catalog(&self) -> impl ExactSizeIterator<Item = &EventDoc> {
        self.routes.values().map(|route| &route.doc)
    }

    /// Who answers this; an error for what cannot be sent.
    fn route(&self, event: &str) -> Result<Option<(PluginId, &Handler)>> {
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
    /// Whether the caller may do this; guards are asked about all but operator and system.
    pub fn check(&self, caller: &Caller, act: Act, event: &str) -> Result<()> {
        if caller.is_unbound() {
            return Ok(());
        }
        for (cx, parts) in self.each_plugin(caller.clone()) {
            let Some(guard) = &parts.guard else { continue };
            let asked = catch(|| guard(cx, act, event));
            asked.unwrap_or_else(|fault| Err(panicked("a guard", event, fault)))?;
        }
        Ok(())
    }

    /// Answers a request, or passes a signal on to whoever listens.
    pub(crate) fn dispatch(&self, caller: Caller, event: &str, data: Raw) -> Answer {
        let checked = self.check(&caller, Act::Send, event);
        let answer = match checked.and_then(|()| self.0.router.route(event)) {
            Ok(Some((id, handler))) => return handler(Ctx::new(self.clone(), id, caller), data),
            Ok(None) => {
                let mut others = self.each_plugin(caller);
                match others.find_map(|(cx, parts)| parts.otherwise.as_ref()?(cx, event, &data)) {
                    Some(answer) => return answer,
                    None => self.pass_on(event, &data),
                }
            }
            Err(error) => Err(error),
        };
        Box::pin(ready(answer))
    }

    /// Every plugin, in order, and how it acts for this caller.
    pub(crate) fn each_plugin(
        &self,
        caller: Caller,
    ) -> impl DoubleEndedIterator<Item = (Ctx<()>, &Parts)> {
        let cx = move |id| Ctx::new(self.clone(), PluginId(id), caller.clone());
        self.0.plugins.iter().enumerate().map(move |(id, parts)| (cx(id), parts))
    }

    fn pass_on(&self, event: &str, data: &Raw) -> Result<Raw> {
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
