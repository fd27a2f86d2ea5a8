//! The queue's state: changed by facts alone, and what it wants to run.
//!
//! A request waits in the lane of its conversation until it is first there, then for room at its
//! gate, in the order of acceptance; a fold that makes room admits the next one. What is admitted
//! runs. What has ended leaves the state and is kept in documents: see `archive`.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use ksi_kernel::{Changed, Fault, Millis, Origin, Out, Seq, Stamp, Want};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    archive::Archived,
    facts::{Cancelled, Completed, Failed, Queued, Reason, Retrying, Started},
    provider::Message,
};

/// Everything about completions and conversations.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Work {
    /// Accepted and not ended.
    pub(super) open: BTreeMap<String, Open>,
    /// Ended before documents were kept.
    pub(super) finished: BTreeMap<String, Finished>,
    /// Those with requests under way, and those of before documents were kept.
    pub(super) conversations: BTreeMap<String, Conversation>,
    /// Whether what ends goes into documents.
    #[serde(default)]
    pub(super) archives: bool,
    /// How many requests are in documents.
    #[serde(default)]
    pub(super) archived: Archived,
    gates: BTreeMap<String, Admission>,
    keys: Keys,
}

/// A request under way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Open {
    pub(super) seq: Seq,
    pub(super) at: Millis,
    pub(super) origin: Arc<Origin>,
    pub(super) asked: Queued,
    pub(super) stage: Stage,
    /// When the next attempt may begin.
    pub(super) due: Millis,
    /// Attempts that began.
    pub(super) attempts: u32,
    /// Attempts that failed.
    pub(super) retries: u32,
    /// From when its deadline counts.
    pub(super) since: Option<Millis>,
}

/// How far a request is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// For its lane or its gate.
    Waiting,
    /// It may run: at once, or when its pause is over.
    Admitted,
    /// An attempt began at this time.
    Running(Millis),
}

/// A request that ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Finished {
    /// Which fact ended it.
    pub(super) seq: Seq,
    pub(super) accepted: Seq,
    pub(super) ended: Ended,
    pub(super) conversation_id: String,
    pub(super) model: String,
    pub(super) attempts: u32,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Ended {
    /// With an answer.
    Completed,
    /// Without one.
    Failed(Reason),
    /// Somebody did not want it any more.
    Cancelled,
}

/// A conversation, and the lane of its turns to come.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Conversation {
    pub(super) created: Millis,
    pub(super) updated: Millis,
    /// Turns that are not in documents.
    pub(super) turns: Vec<Turn>,
    /// How many turns are in documents, once an attempt has looked there.
    #[serde(default)]
    pub(super) before: Option<usize>,
    /// Requests that are open, in order; only the first may run.
    pub(super) lane: VecDeque<String>,
}

/// One prompt and its answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Turn {
    /// The request behind it.
    pub request_id: String,
    /// The prompt.
    pub messages: Vec<Message>,
    /// The answer.
    pub text: String,
    /// The model that gave it.
    pub model: String,
    /// When it was answered, in milliseconds since the epoch.
    pub at: u64,
}

/// Who may run and who is next, among requests that share a limit.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Admission {
    limit: usize,
    admitted: BTreeSet<String>,
    /// First in their lanes, in order of acceptance.
    next: BTreeSet<(Seq, String)>,
}

/// Idempotency keys, remembered for a week, as hashes.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Keys {
    requests: BTreeMap<String, (String, Millis)>,
    by_age: VecDeque<String>,
}

const WEEK_MS: u64 = 7 * 24 * 60 * 60 * 1_000;

/// One request is worked on: the effect of this plugin.
#[derive(Debug, Clone, PartialEq)]
pub struct Complete {
    /// Who asked.
    pub origin: Arc<Origin>,
}

impl Work {
    pub(super) fn queued(&mut self, fact: &Queued, stamp: &Stamp, out: &mut Out) -> Folded {
        let id = &fact.request_id;
        if self.open.contains_key(id) || self.finished.contains_key(id) {
            return Err(Fault(format!("request {id} was accepted twice")));
        }
        if fact.archives {
            self.begin_archive(out);
        }
        self.keys.forget_before(stamp.at);
        if let Some(hash) = &fact.idempotency {
            self.keys.remember(hash, id, stamp.at);
        }
        let origin = Origin { cause: Some(stamp.seq), ..Origin::clone(&stamp.origin) };
        let open = Open {
            seq: stamp.seq,
            at: stamp.at,
            origin: Arc::new(origin),
            asked: fact.clone(),
            stage: Stage::Waiting,
            due: Millis(0),
            attempts: 0,
            retries: 0,
            since: None,
        };
        self.open.insert(id.clone(), open);
        let conversation = self.conversations.entry(fact.conversation_id.clone()).or_default();
        if conversation.created == Millis(0) {
            conversation.created = stamp.at;
        }
        conversation.updated = stamp.at;
        conversation.lane.push_back(id.clone());
        let first = conversation.lane.len() == 1;
        let gate = self.gates.entry(fact.gate.clone()).or_default();
        gate.limit = fact.concurrency as usize;
        if first {
            gate.next.insert((stamp.seq, id.clone()));
        }
        self.admit(&fact.gate, out);
        Ok(())
    }

    pub(super) fn started(&mut self, fact: &Started, stamp: &Stamp, _: &mut Out) -> Folded {
        let open = self.opened(&fact.request_id)?;
        open.since = Some(open.counts_from(stamp.at));
        open.attempts = fact.attempt;
        open.stage = Stage::Running(stamp.at);
        self.recall(fact);
        Ok(())
    }

    pub(super) fn retrying(&mut self, fact: &Retrying, _: &Stamp, _: &mut Out) -> Folded {
        let open = self.opened(&fact.request_id)?;
        open.retries += 1;
        open.due = Millis(fact.at);
        open.stage = Stage::Admitted;
        Ok(())
    }

    pub(super) fn completed(&mut self, fact: &Completed, stamp: &Stamp, out: &mut Out) -> Folded {
        let open = self.end(&fact.request_id, Ended::Completed, stamp, out)?;
        let turn = Turn {
            request_id: fact.request_id.clone(),
            messages: open.asked.messages,
            text: fact.text.clone(),
            model: fact.model.clone(),
            at: stamp.at.0,
        };
        self.take_turn(&fact.conversation_id, turn, stamp, out);
        self.rest(&fact.conversation_id, out);
        Ok(())
    }

    pub(super) fn failed(&mut self, fact: &Failed, stamp: &Stamp, out: &mut Out) -> Folded {
        self.end(&fact.request_id, Ended::Failed(fact.error.clone()), stamp, out)?;
        self.rest(&fact.conversation_id, out);
        Ok(())
    }

    pub(super) fn cancelled(&mut self, fact: &Cancelled, stamp: &Stamp, out: &mut Out) -> Folded {
        self.end(&fact.request_id, Ended::Cancelled, stamp, out)?;
        self.rest(&fact.conversation_id, out);
        Ok(())
    }

    /// What is admitted runs, and nothing else.
    pub(super) fn wanted(&self, changed: Changed<'_>) -> Vec<Want<Complete>> {
        match changed {
            Changed::All => self.open.iter().filter_map(|(id, open)| open.run(id)).collect(),
            Changed::Keys(keys) => keys.iter().map(|id| self.want(id)).collect(),
        }
    }

    fn want(&self, id: &str) -> Want<Complete> {
        let run = self.open.get(id).and_then(|open| open.run(id));
        run.unwrap_or_else(|| Want::Stop { key: id.to_owned() })
    }

    /// The request that this idempotency key stands for.
    pub(super) fn known(&self, hash: &str, now: Millis) -> Option<&str> {
        let (id, at) = self.keys.requests.get(hash)?;
        (now < at.plus(WEEK_MS)).then_some(id)
    }

    /// How many requests stand before this one in its lane.
    pub(super) fn position(&self, open: &Open) -> usize {
        let lane = self.conversations.get(&open.asked.conversation_id).map(|c| &c.lane);
        let before = |id: &&String| **id != open.asked.request_id;
        lane.map_or(0, |lane| lane.iter().take_while(before).count())
    }

    fn opened(&mut self, id: &str) -> Result<&mut Open, Fault> {
        self.open.get_mut(id).ok_or_else(|| Fault(format!("request {id} is not open")))
    }

    /// Takes an ended request out of lane and gate, and lets in whoever is next.
    fn end(&mut self, id: &str, ended: Ended, stamp: &Stamp, out: &mut Out) -> Result<Open, Fault> {
        let open = self.open.remove(id);
        let open = open.ok_or_else(|| Fault(format!("request {id} is not open")))?;
        let finished = Finished {
            seq: stamp.seq,
            accepted: open.seq,
            ended,
            conversation_id: open.asked.conversation_id.clone(),
            model: open.asked.model.clone(),
            attempts: open.attempts,
        };
        self.put_away(id.to_owned(), finished, out);
        if let Some(gate) = self.gates.get_mut(&open.asked.gate) {
            gate.admitted.remove(id);
            gate.next.remove(&(open.seq, id.to_owned()));
        }
        let next = self.advance_lane(&open.asked.conversation_id, id, stamp);
        self.admit(&open.asked.gate, out);
        if let Some(gate) = next.filter(|gate| *gate != open.asked.gate) {
            self.admit(&gate, out);
        }
        Ok(open)
    }

    /// Takes a request out of its lane; returns the gate at which another now stands.
    fn advance_lane(&mut self, conversation: &str, id: &str, stamp: &Stamp) -> Option<String> {
        let conversation = self.conversations.get_mut(conversation)?;
        conversation.updated = stamp.at;
        let was_first = conversation.lane.front().is_some_and(|first| first == id);
        conversation.lane.retain(|other| other != id);
        let next = conversation.lane.front().filter(|_| was_first)?;
        let open = self.open.get(next)?;
        let gate = self.gates.get_mut(&open.asked.gate)?;
        gate.next.insert((open.seq, next.clone()));
        Some(open.asked.gate.clone())
    }

    /// Lets requests through a gate while there is room.
    ///
    /// A request keeps its room while it waits to be tried again: the provider is in trouble, and
    /// others would only join it.
    fn admit(&mut self, gate: &str, out: &mut Out) {
        let Some(gate) = self.gates.get_mut(gate) else { return };
        while gate.admitted.len() < gate.limit
            && let Some((_, id)) = gate.next.pop_first()
        {
            if let Some(open) = self.open.get_mut(&id) {
                open.stage = Stage::Admitted;
            }
            out.touch(id.clone());
            gate.admitted.insert(id);
        }
    }
}

type Folded = Result<(), Fault>;

impl Open {
    /// The effect that this request wants, if it may run.
    fn run(&self, id: &str) -> Option<Want<Complete>> {
        if self.stage == Stage::Waiting {
            return None;
        }
        let effect = Complete { origin: self.origin.clone() };
        let (key, epoch) = (id.to_owned(), u64::from(self.retries));
        Some(Want::Run { key, epoch, at: self.due, effect })
    }

    /// From when the deadline counts if an attempt begins now: from the first attempt, but anew
    /// after one that the daemon's end cut short, because nobody worked on it meanwhile.
    pub(super) fn counts_from(&self, now: Millis) -> Millis {
        match (&self.stage, self.since) {
            (Stage::Running(_), _) | (_, None) => now,
            (_, Some(since)) => since,
        }
    }
}

impl Keys {
    fn remember(&mut self, hash: &str, id: &str, at: Millis) {
        self.requests.insert(hash.to_owned(), (id.to_owned(), at));
        self.by_age.push_back(hash.to_owned());
    }

    fn forget_before(&mut self, now: Millis) {
        let old = |at: Millis| at.plus(WEEK_MS) <= now;
        while let Some(hash) = self.by_age.front()
            && self.requests.get(hash).is_none_or(|(_, at)| old(*at))
        {
            self.requests.remove(hash);
            self.by_age.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
