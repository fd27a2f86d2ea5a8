//! Whether a conversation is worked on.

use ksi_kernel::{Ctx, Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{archive, queries::Summary, state::Work};

/// Says whether a conversation is worked on, and what waits in it
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct SessionStatusOf {
    /// The conversation.
    session_id: String,
}

/// How a conversation is.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct SessionStatus {
    /// The conversation.
    session_id: String,
    /// `active` while requests are under way or wait, else `idle`.
    status: String,
    /// The request whose turn it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    current: Option<Summary>,
    /// Requests behind it, in order.
    queued: Vec<String>,
    /// How many turns it has.
    turns: usize,
}

/// Answers `completion:session_status`.
pub(super) async fn status(cx: Ctx<Work>, req: SessionStatusOf) -> Result<SessionStatus> {
    let id = req.session_id;
    let live = cx
        .read(|work| {
            let live = work.conversations.get(&id)?;
            let current = live.lane.front().and_then(|request| work.status(request));
            let queued = live.lane.iter().skip(1).cloned().collect::<Vec<_>>();
            Some((current, queued, live.turns.len()))
        })
        .await?;
    let name = id.clone();
    let rested = cx.journal(move |journal| archive::rest(journal, &name)).await?;
    if live.is_none() && rested.is_none() {
        let why = format!("there is no session `{id}`");
        return Err(Error::not_found(why)
            .at("session_id")
            .hint("`conversation:list` shows what there is"));
    }
    let (current, queued, turns) = live.unwrap_or_default();
    let status = if current.is_some() { "active" } else { "idle" }.to_owned();
    let turns = turns.max(rested.map_or(0, |rested| rested.turns));
    Ok(SessionStatus { session_id: id, status, current, queued, turns })
}
