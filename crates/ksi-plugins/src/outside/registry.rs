//! Who is registered: plugins in other processes, each for as long as its connection lives.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ksi_kernel::{Inbox, Millis, Origin};
use ksi_protocol::{Code, Error, Raw, Result, did_you_mean};
use parking_lot::RwLock;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// So many calls may wait for one plugin.
const MOST_CALLS: usize = 256;

/// The plugins in other processes; cloning it makes another handle to them.
#[derive(Clone, Default)]
pub struct Outside(Arc<RwLock<BTreeMap<String, Arc<Member>>>>);

/// An event that a plugin answers.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Handle {
    /// Its name, such as `my:custom:event`.
    pub event: String,
    /// One line for people.
    #[serde(default)]
    pub summary: String,
    /// The JSON schema of its parameters.
    #[serde(default)]
    pub params: Value,
    /// The JSON schema of its answer.
    #[serde(default)]
    pub reply: Value,
}

/// One registered plugin.
pub struct Member {
    pub(super) name: String,
    pub(super) handles: Vec<Handle>,
    pub(super) principal: Arc<str>,
    pub(super) since: Millis,
    /// How long it has to answer a call.
    pub(super) patience: Duration,
    /// Whether it wants to be told when the daemon ends.
    pub(super) stops: bool,
    pub(super) inbox: Arc<Inbox>,
}

impl Outside {
    /// Lets a plugin in, unless its name or one of its events is taken.
    pub(super) fn join(&self, member: Member) -> Result<Arc<Member>> {
        let mut members = self.0.write();
        if members.contains_key(&member.name) {
            let why = format!("there is a plugin `{}` already", member.name);
            return Err(Error::conflict(why).at("name").hint("end it first, or take another name"));
        }
        for (index, handle) in member.handles.iter().enumerate() {
            let mut others = members.values();
            if let Some(other) = others.find(|other| other.answers(&handle.event)) {
                let why = format!(
                    "`{}` belongs to plugin `{}` and to plugin `{}`; only one may own it",
                    handle.event, other.name, member.name
                );
                return Err(Error::conflict(why).at(format!("handles[{index}].event")));
            }
        }
        let member = Arc::new(member);
        members.insert(member.name.clone(), member.clone());
        Ok(member)
    }

    /// Lets it go; false if it is gone already, also if another of its name is there.
    pub(super) fn leave(&self, member: &Arc<Member>) -> bool {
        let mut members = self.0.write();
        let there = members.get(&member.name).is_some_and(|known| Arc::ptr_eq(known, member));
        there && members.remove(&member.name).is_some()
    }

    /// All of them, by name.
    pub fn members(&self) -> Vec<Arc<Member>> {
        self.0.read().values().cloned().collect()
    }

    /// Who answers this event.
    pub(super) fn owner(&self, event: &str) -> Option<Arc<Member>> {
        self.0.read().values().find(|member| member.answers(event)).cloned()
    }

    /// Why nobody answers an event of a namespace that one of them has; none for other namespaces.
    pub(super) fn unhandled(&self, event: &str) -> Option<Error> {
        let namespace = event.split_inclusive(':').next().unwrap_or_default();
        let members = self.0.read();
        let all = members.values().flat_map(|member| &member.handles);
        let known: Vec<&str> = all.map(|handle| handle.event.as_str()).collect();
        known.iter().any(|known| known.starts_with(namespace)).then(|| {
            let error = Error::new(Code::Unhandled, format!("no plugin answers `{event}`"));
            error.hint(match did_you_mean(event, known) {
                Some(known) => format!("did you mean `{known}`?"),
                None => "`ksi discover` lists what is answered".to_owned(),
            })
        })
    }
}

impl Member {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The events that it answers.
    pub fn handles(&self) -> &[Handle] {
        &self.handles
    }

    fn answers(&self, event: &str) -> bool {
        self.handles.iter().any(|handle| handle.event == event)
    }

    /// Asks it, on somebody's behalf.
    pub(super) async fn ask(&self, event: &str, data: Raw, origin: Arc<Origin>) -> Result<Raw> {
        if self.inbox.waiting() >= MOST_CALLS {
            let why = format!("plugin `{}` has {MOST_CALLS} calls to answer", self.name);
            return Err(Error::new(Code::Busy, why).hint("try again in a moment"));
        }
        let answer = self.inbox.ask(event, data, origin, self.patience).answer().await;
        answer.map_err(|error| match error.code {
            // Its own errors stand as they are; these two are about it.
            Code::Unavailable | Code::Timeout => Error {
                message: format!("plugin `{}`, `{event}`: {}", self.name, error.message),
                ..error
            },
            _ => error,
        })
    }
}
