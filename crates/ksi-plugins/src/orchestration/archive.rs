//! The archive: orchestrations that have ended, as documents of the collection `orchestrations`.
//!
//! As in the archive of work, the first orchestration that this release starts says that
//! documents begin; what the state holds of the past then goes into them.

use std::collections::BTreeMap;

use ksi_kernel::{Ctx, Document, Fault, Journal, Out, Result, Select};
use ksi_state::JournalError;
use serde_json::value::to_raw_value;

use super::{
    id,
    run::{Folded, Known, Orchestrations, Phase, Run, missing},
};

const COLLECTION: &str = "orchestrations";

impl Orchestrations {
    /// From here on what ends goes into documents, and so does what has ended.
    pub(super) fn begin_archive(&mut self, out: &mut Out) {
        self.archives = true;
        let (over, runs) =
            std::mem::take(&mut self.runs).into_iter().partition(|(_, run)| run.is_over());
        self.runs = runs;
        over.into_values().for_each(|run: Run| put(&run, out));
    }

    /// It is over: it leaves the state.
    pub(super) fn end(&mut self, id: &str, phase: Phase, out: &mut Out) -> Folded {
        self.change(id)?.phase = phase;
        if self.archives
            && let Some(run) = self.runs.remove(id)
        {
            put(&run, out);
        }
        Ok(())
    }
}

impl Run {
    fn is_over(&self) -> bool {
        !matches!(self.phase, Phase::Running | Phase::Ending { .. })
    }
}

fn put(run: &Run, out: &mut Out) {
    let (key, sort) = (run.started.orchestration_id.clone(), run.started_at.0);
    // Its type is plain: it is JSON.
    if let Ok(data) = to_raw_value(run) {
        out.document(Document { collection: COLLECTION.to_owned(), key, sort, data });
    }
}

/// A state of the first shape: its orchestrations were all in it, with their callers' keys.
pub(super) fn upgrade(older: &str) -> Result<Orchestrations, Fault> {
    let state = serde_json::from_str(older).map_err(|error| Fault(error.to_string()));
    let mut state: Orchestrations = state?;
    for run in state.runs.values() {
        if let Some(key) = &run.started.idempotency_key {
            state.keys.insert(key.clone(), Known::of(run));
        }
    }
    Ok(state)
}

/// One orchestration, whether under way or over.
pub(super) async fn find(cx: &Ctx<Orchestrations>, id: &str) -> Result<Run> {
    if let Some(run) = cx.read(|state| state.runs.get(id).cloned()).await? {
        return Ok(run);
    }
    let select = Select::one(COLLECTION, id);
    let found = cx.journal(move |journal| read(journal, &select)).await?;
    found.into_values().next().ok_or_else(|| missing(id))
}

/// All that are in documents, by id.
pub(super) async fn ended(cx: &Ctx<Orchestrations>) -> Result<BTreeMap<String, Run>> {
    cx.journal(|journal| read(journal, &Select::all(COLLECTION))).await
}

/// Chance that makes an id of which there is no document.
pub(super) async fn free_chance(cx: &Ctx<Orchestrations>, pattern: &str) -> Result<u64> {
    loop {
        let chance = fastrand::u64(..);
        let select = Select::one(COLLECTION, id(pattern, chance));
        if cx.journal(move |journal| journal.documents(&select)).await?.is_empty() {
            return Ok(chance);
        }
    }
}

fn read(journal: &dyn Journal, select: &Select) -> Result<BTreeMap<String, Run>, JournalError> {
    let parse = |Document { key, data, .. }| match serde_json::from_str(data.get()) {
        Ok(run) => Ok((key, run)),
        Err(error) => Err(JournalError {
            message: format!("document `{key}` of `{COLLECTION}` is not what was written"),
            source: Some(error.into()),
        }),
    };
    journal.documents(select)?.into_iter().map(parse).collect()
}
