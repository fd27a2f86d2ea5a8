//! Looking at requests, conversations and providers.

use std::collections::BTreeMap;

use ksi_kernel::{Ctx, Error, Millis, Result, Seq};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    archive::{self, Archived, Rested},
    decisions::messages,
    facts::Reason,
    provider::{Description, Message},
    requests::Desk,
    state::{Conversation, Ended, Finished, Open, Stage, Turn, Work},
    which,
};

/// How far a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It waits for its conversation or its provider.
    Queued,
    /// It is worked on.
    Running,
    /// It failed and waits for its next attempt.
    Retrying,
    /// It was answered.
    Completed,
    /// It failed for good.
    Failed,
    /// Somebody did not want it any more.
    Cancelled,
}

impl Status {
    /// Whether nothing more will happen.
    pub fn has_ended(self) -> bool {
        matches!(self, Status::Completed | Status::Failed | Status::Cancelled)
    }
}

/// How one request is, or how many there are of each kind
#[derive(Debug, Deserialize, JsonSchema)]
pub struct StatusOf {
    /// Which request; all of them when absent.
    #[serde(default)]
    pub request_id: Option<String>,
}

/// How one request is, or how many there are.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Answer {
    /// One request.
    One(Summary),
    /// All requests.
    All(Counts),
}

/// One request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Summary {
    /// Its id.
    pub request_id: String,
    /// How far it is.
    pub status: Status,
    /// Whose turn it is.
    pub conversation_id: String,
    /// The model's full name.
    pub model: String,
    /// Attempts that began.
    pub attempts: u32,
    /// Requests before it in its conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<usize>,
    /// When its next attempt begins, in milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<u64>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Reason>,
}

/// How many requests there are of each kind.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Counts {
    /// Waiting.
    pub queued: usize,
    /// Worked on.
    pub running: usize,
    /// Waiting for another attempt.
    pub retrying: usize,
    /// Answered.
    pub completed: usize,
    /// Failed for good.
    pub failed: usize,
    /// Cancelled.
    pub cancelled: usize,
}

/// Lists requests, newest first
#[derive(Debug, Deserialize, JsonSchema)]
pub struct List {
    /// Only those.
    #[serde(default)]
    pub status: Option<Status>,
    /// At most so many; 100 when absent.
    #[serde(default)]
    pub limit: Option<usize>,
}

/// Requests.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Listed {
    /// Newest first.
    pub completions: Vec<Summary>,
    /// How many these are.
    pub count: usize,
}

/// Lists the providers that can answer
#[derive(Debug, Deserialize, JsonSchema)]
pub struct ListProviders {
    /// Only the one that has this model; an error if nobody has it, or if it cannot be asked.
    #[serde(default)]
    pub model: Option<String>,
}

/// Providers.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ProvidersListed {
    /// What each is.
    pub providers: Vec<Description>,
    /// The model when a request names none.
    pub default_model: String,
    /// How many they are.
    pub count: usize,
}

/// Lists conversations
#[derive(Debug, Deserialize, JsonSchema)]
pub struct ListConversations {
    /// At most so many; 100 when absent.
    #[serde(default)]
    pub limit: Option<usize>,
    /// Leave out so many at the beginning.
    #[serde(default)]
    pub offset: usize,
    /// By what they are sorted.
    #[serde(default)]
    pub sort_by: SortBy,
    /// The other way round: newest last.
    #[serde(default)]
    pub reverse: bool,
}

/// By what conversations are sorted, newest or most first.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SortBy {
    /// When something last happened.
    #[default]
    UpdatedAt,
    /// When they began.
    CreatedAt,
    /// How many turns they have.
    Turns,
}

/// Conversations.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct ConversationsListed {
    /// In the order asked for.
    pub conversations: Vec<ConversationSummary>,
    /// How many these are.
    pub count: usize,
    /// How many there are.
    pub total: usize,
}

/// One conversation.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ConversationSummary {
    /// Its id.
    pub conversation_id: String,
    /// Its id, under its other name.
    pub session_id: String,
    /// When it began, in milliseconds since the epoch.
    pub created_at: u64,
    /// When something last happened.
    pub updated_at: u64,
    /// How many turns it has.
    pub turns: usize,
    /// How many requests are under way or wait.
    pub open: usize,
}

/// Shows a conversation with all that was said
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(example = serde_json::json!({ "conversation_id": "c1" }))]
pub struct GetConversation {
    /// Which one.
    #[serde(default)]
    pub conversation_id: Option<String>,
    /// Another name for `conversation_id`.
    #[serde(default)]
    pub session_id: Option<String>,
}

/// One conversation with all that was said.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct WholeConversation {
    /// Its id.
    pub conversation_id: String,
    /// Its id, under its other name.
    pub session_id: String,
    /// When it began, in milliseconds since the epoch.
    pub created_at: u64,
    /// When something last happened.
    pub updated_at: u64,
    /// Prompts and answers.
    pub turns: Vec<Turn>,
    /// The same as one list of messages.
    pub messages: Vec<Message>,
    /// Requests under way or waiting, in order.
    pub open: Vec<String>,
}

const LIMIT: usize = 100;

/// Answers `completion:status`.
pub async fn status(cx: Ctx<Work>, req: StatusOf) -> Result<Answer> {
    let Some(id) = req.request_id else { return Ok(Answer::All(cx.read(Work::counts).await?)) };
    let found = match cx.read(|work| work.status(&id)).await? {
        None => ended(&cx, &id).await?,
        found => found,
    };
    let missing = || Error::not_found(format!("there is no request `{id}`")).at("request_id");
    found.map(Answer::One).ok_or_else(missing)
}

/// How this request ended, if documents say so.
pub(super) async fn ended(cx: &Ctx<Work>, id: &str) -> Result<Option<Summary>> {
    let filed = archive::filed(cx, id).await?;
    Ok(filed.map(|filed| filed.finished.summary(&filed.request_id)))
}

/// Answers `completion:list`.
pub async fn list(cx: Ctx<Work>, req: List) -> Result<Listed> {
    let (status, limit) = (req.status, req.limit.unwrap_or(LIMIT));
    // The state first: what ends meanwhile is then seen there, and not a second time.
    let mut all = cx.read(|work| work.list(status)).await?;
    let filed = cx.journal(move |journal| archive::newest(journal, status, limit)).await?;
    let filed = filed
        .into_iter()
        .map(|filed| (filed.finished.accepted, filed.finished.summary(&filed.request_id)));
    all.extend(filed);
    all.sort_by(|(a, one), (b, other)| (b, &one.request_id).cmp(&(a, &other.request_id)));
    all.dedup_by(|(_, later), (_, earlier)| later.request_id == earlier.request_id);
    let completions: Vec<_> = all.into_iter().take(limit).map(|(_, one)| one).collect();
    Ok(Listed { count: completions.len(), completions })
}

/// Answers `completion:providers`.
pub fn providers(desk: &Desk, req: &ListProviders) -> Result<ProvidersListed> {
    let providers = match &req.model {
        Some(model) => {
            let choice = which::choose(&desk.providers, Some(model), None)?;
            choice.check()?;
            vec![choice.provider.describe()]
        }
        None => desk.providers.describe(),
    };
    let default_model = desk.default_model.clone().unwrap_or_else(|| "local".into());
    Ok(ProvidersListed { count: providers.len(), providers, default_model })
}

/// Answers `conversation:list`.
pub async fn conversations(cx: Ctx<Work>, req: ListConversations) -> Result<ConversationsListed> {
    let live = cx.read(Work::conversation_summaries).await?;
    let rested = cx.journal(archive::conversations).await?;
    let mut by_id: BTreeMap<_, _> = rested
        .into_iter()
        .map(|(id, rested)| (id.clone(), ConversationSummary::of(id, &rested)))
        .collect();
    for mut one in live {
        let rested = by_id.get(&one.conversation_id);
        rested.into_iter().for_each(|rested| one.goes_on(rested.created_at, rested.turns));
        by_id.insert(one.conversation_id.clone(), one);
    }
    let mut all: Vec<_> = by_id.into_values().collect();
    let total = all.len();
    all.sort_by_key(|one| {
        let key = match req.sort_by {
            SortBy::UpdatedAt => one.updated_at,
            SortBy::CreatedAt => one.created_at,
            SortBy::Turns => one.turns as u64,
        };
        std::cmp::Reverse(key)
    });
    if req.reverse {
        all.reverse();
    }
    let limit = req.limit.unwrap_or(LIMIT);
    let conversations: Vec<_> = all.into_iter().skip(req.offset).take(limit).collect();
    Ok(ConversationsListed { count: conversations.len(), conversations, total })
}

/// Answers `conversation:get`.
pub async fn conversation(cx: Ctx<Work>, req: GetConversation) -> Result<WholeConversation> {
    let id = req.conversation_id.or(req.session_id);
    let id = id.ok_or_else(|| Error::bad_params("it is missing").at("conversation_id"))?;
    let live = cx.read(|work| work.conversations.get(&id).cloned()).await?;
    let name = id.clone();
    let (rested, mut turns) = cx.journal(move |journal| archive::rested(journal, &name)).await?;
    let missing = || {
        Error::not_found(format!("there is no conversation `{id}`"))
            .at("conversation_id")
            .hint("`conversation:list` shows what there is")
    };
    let live = live.or_else(|| rested.map(Conversation::from)).ok_or_else(missing)?;
    // Those of before documents were kept may have gone into them just now.
    if !live.turns.is_empty() {
        turns = live.turns;
    }
    Ok(WholeConversation {
        created_at: rested.map_or(live.created, |rested| rested.created).0,
        updated_at: live.updated.0,
        messages: messages(&turns),
        turns,
        open: live.lane.into(),
        session_id: id.clone(),
        conversation_id: id,
    })
}

impl Work {
    /// One request, open or ended, if the state holds it.
    pub(super) fn status(&self, id: &str) -> Option<Summary> {
        if let Some(open) = self.open.get(id) {
            return Some(self.open_summary(open));
        }
        self.finished.get(id).map(|finished| finished.summary(id))
    }

    pub(super) fn counts(&self) -> Counts {
        let Archived { completed, failed, cancelled } = self.archived;
        let mut counts = Counts { completed, failed, cancelled, ..Counts::default() };
        let open = self.open.values().map(Open::status);
        for status in open.chain(self.finished.values().map(Finished::status)) {
            *match status {
                Status::Queued => &mut counts.queued,
                Status::Running => &mut counts.running,
                Status::Retrying => &mut counts.retrying,
                Status::Completed => &mut counts.completed,
                Status::Failed => &mut counts.failed,
                Status::Cancelled => &mut counts.cancelled,
            } += 1;
        }
        counts
    }

    /// What the state holds, each with where it was accepted.
    fn list(&self, status: Option<Status>) -> Vec<(Seq, Summary)> {
        let open = self.open.values().map(|open| (open.seq, self.open_summary(open)));
        let ended = self.finished.iter().map(|(id, one)| (one.accepted, one.summary(id)));
        let asked_for = |(_, one): &(Seq, Summary)| status.is_none_or(|s| s == one.status);
        open.chain(ended).filter(asked_for).collect()
    }

    fn open_summary(&self, open: &Open) -> Summary {
        let status = open.status();
        Summary {
            request_id: open.asked.request_id.clone(),
            status,
            conversation_id: open.asked.conversation_id.clone(),
            model: open.asked.model.clone(),
            attempts: open.attempts,
            position: (status == Status::Queued).then(|| self.position(open)),
            retry_at: (status == Status::Retrying).then_some(open.due.0),
            error: None,
        }
    }

    fn conversation_summaries(&self) -> Vec<ConversationSummary> {
        let summary = |(id, one): (&String, &Conversation)| ConversationSummary {
            conversation_id: id.clone(),
            session_id: id.clone(),
            created_at: one.created.0,
            updated_at: one.updated.0,
            turns: one.before.unwrap_or_default() + one.turns.len(),
            open: one.lane.len(),
        };
        self.conversations.iter().map(summary).collect()
    }
}

impl ConversationSummary {
    fn of(id: String, rested: &Rested) -> Self {
        let Rested { created: Millis(created_at), updated: Millis(updated_at), turns } = *rested;
        let session_id = id.clone();
        Self { conversation_id: id, session_id, created_at, updated_at, turns, open: 0 }
    }

    /// It had come to rest before, having begun then and with so many turns.
    fn goes_on(&mut self, created_at: u64, turns: usize) {
        self.created_at = self.created_at.min(created_at);
        self.turns = self.turns.max(turns);
    }
}

impl From<Rested> for Conversation {
    fn from(Rested { created, updated, .. }: Rested) -> Self {
        Conversation { created, updated, ..Conversation::default() }
    }
}

impl Open {
    fn status(&self) -> Status {
        match self.stage {
            Stage::Running(_) => Status::Running,
            Stage::Admitted if self.retries > 0 => Status::Retrying,
            Stage::Waiting | Stage::Admitted => Status::Queued,
        }
    }
}

impl Finished {
    fn status(&self) -> Status {
        match self.ended {
            Ended::Completed => Status::Completed,
            Ended::Failed(_) => Status::Failed,
            Ended::Cancelled => Status::Cancelled,
        }
    }

    fn summary(&self, id: &str) -> Summary {
        let error = match &self.ended {
            Ended::Failed(reason) => Some(reason.clone()),
            Ended::Completed | Ended::Cancelled => None,
        };
        Summary {
            request_id: id.to_owned(),
            status: self.status(),
            conversation_id: self.conversation_id.clone(),
            model: self.model.clone(),
            attempts: self.attempts,
            position: None,
            retry_at: None,
            error,
        }
    }
}
