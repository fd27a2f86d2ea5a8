//! The archive: what has ended, as documents.
//!
//! Four collections. One for each way in which a request ends, named as the fact that says so:
//! its requests, in the order of acceptance. `conversations`: how each stood when it last came to
//! rest. `turns/ID`: the turns of one, in order.
//!
//! A journal that an older release has begun has facts without documents, and its snapshots hold
//! what ended in the state. The first request that this release accepts says that documents begin;
//! what the state still holds of the past then goes into them. Until then it is read from there.

use ksi_kernel::{Ctx, Document, Fact, Journal, Millis, Out, Result, Select, Stamp};
use ksi_state::JournalError;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::to_raw_value;

use super::{
    facts::{Cancelled, Completed, ENDINGS, Failed, Started},
    queries::Status,
    state::{Conversation, Ended, Finished, Turn, Work},
};

/// The collection of conversations.
pub(super) const CONVERSATIONS: &str = "conversations";

/// How many requests are in documents, by the way they ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Archived {
    pub(super) completed: usize,
    pub(super) failed: usize,
    pub(super) cancelled: usize,
}

/// A conversation at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rested {
    pub(super) created: Millis,
    pub(super) updated: Millis,
    pub(super) turns: usize,
}

/// A request that ended, under its id.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Filed {
    pub(super) request_id: String,
    #[serde(flatten)]
    pub(super) finished: Finished,
}

/// What was said in a conversation before the turn that begins.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Past {
    /// Its turns, in order.
    pub turns: Vec<Turn>,
    /// When it began, if it was not with the request that begins.
    pub began: Option<Millis>,
}

impl Ended {
    /// Where requests go that ended so.
    pub(super) fn collection(&self) -> &'static str {
        match self {
            Ended::Completed => Completed::NAME,
            Ended::Failed(_) => Failed::NAME,
            Ended::Cancelled => Cancelled::NAME,
        }
    }
}

impl Archived {
    fn count(&mut self, ended: &Ended) {
        *match ended {
            Ended::Completed => &mut self.completed,
            Ended::Failed(_) => &mut self.failed,
            Ended::Cancelled => &mut self.cancelled,
        } += 1;
    }
}

impl Work {
    /// From here on what ends goes into documents, and so does what has ended.
    pub(super) fn begin_archive(&mut self, out: &mut Out) {
        if std::mem::replace(&mut self.archives, true) {
            return;
        }
        for (id, finished) in std::mem::take(&mut self.finished) {
            self.put_away(id, finished, out);
        }
        let ids: Vec<_> = self.conversations.keys().cloned().collect();
        for id in ids {
            let Some(conversation) = self.conversations.get_mut(&id) else { continue };
            let turns = std::mem::take(&mut conversation.turns);
            conversation.before = Some(turns.len());
            for (place, turn) in (0..).zip(turns) {
                // Facts come later than any number of turns before them.
                put(out, turns_of(&id), turn.request_id.clone(), place, &turn);
            }
            self.rest(&id, out);
        }
    }

    /// Takes note of how a request ended.
    pub(super) fn put_away(&mut self, request_id: String, finished: Finished, out: &mut Out) {
        if !self.archives {
            self.finished.insert(request_id, finished);
            return;
        }
        self.archived.count(&finished.ended);
        let (collection, accepted) = (finished.ended.collection(), finished.accepted.0);
        let filed = Filed { request_id: request_id.clone(), finished };
        put(out, collection, request_id, accepted, &filed);
    }

    /// An attempt says what it found in documents of its conversation.
    pub(super) fn recall(&mut self, started: &Started) {
        let conversation = self.conversations.get_mut(&started.conversation_id);
        let Some(conversation) = conversation.filter(|found| found.before.is_none()) else {
            return;
        };
        if self.archives {
            conversation.before = Some(started.turns);
            conversation.created = started.began.map_or(conversation.created, Millis);
        }
    }

    /// One more turn was taken.
    pub(super) fn take_turn(&mut self, id: &str, turn: Turn, stamp: &Stamp, out: &mut Out) {
        let Some(conversation) = self.conversations.get_mut(id) else { return };
        if !self.archives {
            conversation.turns.push(turn);
            return;
        }
        conversation.before = conversation.before.map(|turns| turns + 1);
        put(out, turns_of(id), turn.request_id.clone(), stamp.seq.0, &turn);
    }

    /// A conversation in which nothing is under way leaves the state.
    ///
    /// One in which no attempt ever began has nothing to say, or says what it said before.
    pub(super) fn rest(&mut self, id: &str, out: &mut Out) {
        let resting = |one: &Conversation| self.archives && one.lane.is_empty();
        if !self.conversations.get(id).is_some_and(resting) {
            return;
        }
        let Some(conversation) = self.conversations.remove(id) else { return };
        if let Some(rested) = conversation.rested() {
            put(out, CONVERSATIONS, id.to_owned(), rested.updated.0, &rested);
        }
    }

    /// What of the past the state itself holds; documents hold the rest, once they are kept.
    pub(super) fn past(&self, conversation: &str) -> Option<Past> {
        let found = self.conversations.get(conversation).filter(|_| !self.archives)?;
        Some(Past { turns: found.turns.clone(), began: None })
    }
}

impl Conversation {
    /// How it stands, if that is known.
    fn rested(&self) -> Option<Rested> {
        let Conversation { created, updated, before, .. } = *self;
        before.map(|turns| Rested { created, updated, turns })
    }
}

/// The collection of a conversation's turns.
pub(super) fn turns_of(conversation: &str) -> String {
    format!("turns/{conversation}")
}

fn put(
    out: &mut Out,
    collection: impl Into<String>,
    key: String,
    sort: u64,
    data: &impl Serialize,
) {
    // These types are plain: all of them are JSON.
    if let Ok(data) = to_raw_value(data) {
        out.document(Document { collection: collection.into(), key, sort, data });
    }
}

/// What was said in a conversation before the request that begins; no other turn of it runs.
pub(super) async fn past(cx: &Ctx<Work>, conversation: &str) -> Result<Past> {
    if let Some(past) = cx.read(|work| work.past(conversation)).await? {
        return Ok(past);
    }
    let id = conversation.to_owned();
    let (rested, turns) = cx.journal(move |journal| rested(journal, &id)).await?;
    Ok(Past { turns, began: rested.map(|rested| rested.created) })
}

/// How this request ended, if documents say so.
pub(super) async fn filed(cx: &Ctx<Work>, request_id: &str) -> Result<Option<Filed>> {
    let id = request_id.to_owned();
    let read = move |journal: &dyn Journal| {
        for collection in ENDINGS {
            if let Some(filed) = one(journal, collection, &id)? {
                return Ok(Some(filed));
            }
        }
        Ok(None)
    };
    cx.journal(read).await
}

/// The requests that were accepted last, of those that ended so, or in any way.
pub(super) fn newest(
    journal: &dyn Journal,
    status: Option<Status>,
    limit: usize,
) -> Result<Vec<Filed>, JournalError> {
    let collections: &[&str] = match status {
        None => &ENDINGS,
        Some(Status::Completed) => &[Completed::NAME],
        Some(Status::Failed) => &[Failed::NAME],
        Some(Status::Cancelled) => &[Cancelled::NAME],
        Some(Status::Queued | Status::Running | Status::Retrying) => &[],
    };
    let mut found = Vec::new();
    for collection in collections.iter().filter(|_| limit > 0) {
        let newest = Select { last_first: true, limit, ..Select::all(*collection) };
        found.extend(all::<Filed>(journal, &newest)?);
    }
    Ok(found)
}

/// All conversations that have ever come to rest.
pub(super) fn conversations(journal: &dyn Journal) -> Result<Vec<(String, Rested)>, JournalError> {
    let documents = journal.documents(&Select::all(CONVERSATIONS))?;
    let read = |document: Document| read(&document).map(|rested| (document.key, rested));
    documents.into_iter().map(read).collect()
}

/// How a conversation stood when it last came to rest, and its turns.
pub(super) fn rested(
    journal: &dyn Journal,
    id: &str,
) -> Result<(Option<Rested>, Vec<Turn>), JournalError> {
    Ok((rest(journal, id)?, all(journal, &Select::all(turns_of(id)))?))
}

/// How a conversation stood when it last came to rest.
pub(super) fn rest(journal: &dyn Journal, id: &str) -> Result<Option<Rested>, JournalError> {
    one(journal, CONVERSATIONS, id)
}

/// The document of this name.
pub(super) fn one<T: DeserializeOwned>(
    journal: &dyn Journal,
    collection: &str,
    key: &str,
) -> Result<Option<T>, JournalError> {
    Ok(all(journal, &Select::one(collection, key))?.pop())
}

/// The documents that are asked for.
pub(super) fn all<T: DeserializeOwned>(
    journal: &dyn Journal,
    select: &Select,
) -> Result<Vec<T>, JournalError> {
    journal.documents(select)?.iter().map(read).collect()
}

fn read<T: DeserializeOwned>(document: &Document) -> Result<T, JournalError> {
    let Document { collection, key, data, .. } = document;
    serde_json::from_str(data.get()).map_err(|error| JournalError {
        message: format!("document `{key}` of `{collection}` is not what was written"),
        source: Some(error.into()),
    })
}
