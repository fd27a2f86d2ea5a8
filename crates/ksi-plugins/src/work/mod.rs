//! Work: a durable queue of completions, and the conversations that they make.
//!
//! A completion is accepted by one fact and ends with exactly one other: `completion:result`,
//! `completion:failed` or `completion:cancelled`. In between it waits in the lane of its
//! conversation, which has one turn at a time, and at the gate of its provider.
//!
//! In reading order: [`facts`], what happens; [`state`], how that changes the queue and what
//! then runs; `archive`, where it goes when it has ended; `decisions` and `perform`, how a request
//! goes on; [`retry`]; [`provider`], what answers.

mod archive;
mod decisions;
pub mod facts;
mod local;
mod perform;
pub mod provider;
pub mod queries;
pub mod requests;
pub mod retry;
pub mod scripted;
mod session;
pub mod state;
mod which;

use std::sync::Arc;

use ksi_kernel::{Ctx, Fault, Plugin};

use self::{
    facts::{
        CHUNK, Cancelled, Chunk, Completed, Failed, PROGRESS, Progress, Queued, Retrying, Started,
    },
    local::Local,
    provider::Providers,
    queries::ListProviders,
    requests::{AskLater, AskNow, Desk},
    scripted::Scripted,
    state::Work,
};
use crate::Settings;

/// Completions: accepted, run one turn at a time per conversation, retried, cancelled.
pub fn plugin(settings: Arc<Settings>) -> Plugin<Work> {
    let default_model = settings.default_model.clone();
    let scripted = Scripted::new(settings.models.clone());
    let providers = Providers::new(vec![Arc::new(Local::new(settings)), Arc::new(scripted)]);
    with(&Arc::new(Desk { providers: Arc::new(providers), default_model }))
}

/// The shape of the state: the first one held all that had ended.
const VERSION: u16 = 2;

fn with(desk: &Arc<Desk>) -> Plugin<Work> {
    let (later, now, listing) = (desk.clone(), desk.clone(), desk.clone());
    let (performing, closing) = (desk.providers.clone(), desk.providers.clone());
    Plugin::new("work")
        .on("completion:async", move |cx: Ctx<Work>, AskLater(ask)| {
            requests::ask_later(cx, later.clone(), ask)
        })
        .on("completion:sync", move |cx: Ctx<Work>, AskNow(ask)| {
            requests::ask_now(cx, now.clone(), ask)
        })
        .on("completion:cancel", requests::cancel)
        .on("completion:status", queries::status)
        .on("completion:session_status", session::status)
        .on("completion:list", queries::list)
        .on("completion:providers", move |_: Ctx<Work>, req: ListProviders| {
            std::future::ready(queries::providers(&listing, &req))
        })
        .on("conversation:list", queries::conversations)
        .on("conversation:get", queries::conversation)
        .fact::<Queued>()
        .fact::<Started>()
        .fact::<Retrying>()
        .fact::<Completed>()
        .fact::<Failed>()
        .fact::<Cancelled>()
        .signal::<Chunk>(CHUNK)
        .signal::<Progress>(PROGRESS)
        .fold(Work::queued)
        .fold(Work::started)
        .fold(Work::retrying)
        .fold(Work::completed)
        .fold(Work::failed)
        .fold(Work::cancelled)
        .upgrade(VERSION, |_, older| {
            // What is new has defaults: nothing is in documents yet.
            serde_json::from_str(older).map_err(|error| Fault(error.to_string()))
        })
        .drive(Work::wanted, move |cx, request_id, _epoch, effect| {
            perform::perform(cx, performing.clone(), request_id, effect)
        })
        .on_stop(move |_| {
            let providers = closing.clone();
            async move { providers.close().await }
        })
}
