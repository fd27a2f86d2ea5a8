//! The effects: have the next speaker speak, and write the transcript at the end.

use std::{path::PathBuf, sync::Arc};

use ksi_kernel::{Code, Ctx, Error, Facts, Result};
use serde::Deserialize;
use serde_json::json;

use super::{
    facts::{Failed, Finished, Terminated, Totals, TurnTaken, Usage},
    run::{Orchestrations, Phase, Run, Task},
    transcript,
};
use crate::Settings;

/// What a completion answers, as far as a turn needs it.
#[derive(Debug, Deserialize)]
struct Answer {
    request_id: String,
    text: String,
    model: String,
    #[serde(default)]
    usage: Usage,
    #[serde(default)]
    cost_usd: f64,
    #[serde(default)]
    duration_ms: u64,
}

/// Which request a completion is, and how it stands.
#[derive(Debug, Deserialize)]
struct Accepted {
    request_id: String,
    status: String,
}

/// Performs what an orchestration wants; its key is the orchestration's id.
pub(super) async fn perform(
    settings: Arc<Settings>,
    cx: Ctx<Orchestrations>,
    id: String,
    task: Task,
) -> Result<()> {
    let run = cx.read(|state| state.run(&id).cloned()).await??;
    let cx = cx.on_behalf_of(run.origin.clone());
    match task {
        Task::Speak => speak(&settings, &cx, &run).await,
        Task::Conclude => conclude(&settings, &cx, &run).await,
    }
}

/// Takes one turn. The key of the request is the turn's own: asked again after a crash, it finds
/// the answer of the first time.
async fn speak(settings: &Settings, cx: &Ctx<Orchestrations>, run: &Run) -> Result<()> {
    match answer(cx, run).await {
        Ok(answer) => cx.decide(|_, _| Ok((Facts::one(taken(run, answer)), ()))).await,
        Err(error) if passes(cx, run, &error).await => Err(error),
        Err(error) => fail(settings, cx, run, error).await,
    }
}

async fn answer(cx: &Ctx<Orchestrations>, run: &Run) -> Result<Answer> {
    cx.call("completion:sync", &run.speech()?).await
}

/// Whether the failure is not the turn's own: the daemon ends, its queue or its disk is full. The
/// turn is then taken at the next start, or after a pause.
async fn passes(cx: &Ctx<Orchestrations>, run: &Run, error: &Error) -> bool {
    match error.code {
        Code::Shutdown | Code::Busy => true,
        Code::Unavailable if error.retryable => {
            // A model that is not to be had says the same; then the request itself has failed.
            let request = request(cx, run).await;
            !request.is_ok_and(|request| request.status == "failed")
        }
        _ => false,
    }
}

/// The turn's request; if it never came to one, there is one now.
async fn request(cx: &Ctx<Orchestrations>, run: &Run) -> Result<Accepted> {
    cx.call("completion:async", &run.speech()?).await
}

fn taken(run: &Run, answer: Answer) -> TurnTaken {
    let turn = run.next_turn();
    TurnTaken {
        orchestration_id: run.started.orchestration_id.clone(),
        turn,
        round: run.started.definition.round(turn),
        speaker: run.speaker().name.clone(),
        text: answer.text,
        request_id: answer.request_id,
        usage: answer.usage,
        cost_usd: answer.cost_usd,
        duration_ms: answer.duration_ms,
        model: answer.model,
    }
}

async fn fail(
    settings: &Settings,
    cx: &Ctx<Orchestrations>,
    run: &Run,
    error: Error,
) -> Result<()> {
    let why = format!("turn {} ({}): {error}", run.next_turn(), run.speaker().name);
    let totals = write(settings, cx, run, Some(format!("The orchestration failed: {why}"))).await?;
    let orchestration_id = run.started.orchestration_id.clone();
    let Error { code, hint, .. } = error;
    let failed = Failed { orchestration_id, error: why, code, hint, totals };
    cx.decide(|_, _| Ok((Facts::one(failed), ()))).await
}

/// Writes the transcript, then says that it is over.
async fn conclude(settings: &Settings, cx: &Ctx<Orchestrations>, run: &Run) -> Result<()> {
    let orchestration_id = run.started.orchestration_id.clone();
    let Phase::Ending { reason } = run.phase.clone() else {
        let totals = write(settings, cx, run, None).await?;
        let finished = Finished { orchestration_id, totals };
        return cx.decide(|_, _| Ok((Facts::one(finished), ()))).await;
    };
    cancel_turn(cx, run, reason.as_deref()).await;
    let why = reason.as_deref().map_or_else(String::new, |reason| format!(": {reason}"));
    let totals = write(settings, cx, run, Some(format!("Ended early{why}"))).await?;
    let terminated = Terminated { orchestration_id, reason, totals };
    cx.decide(|_, _| Ok((Facts::one(terminated), ()))).await
}

/// Cancels the turn that may be under way, or the request that was made to find it.
async fn cancel_turn(cx: &Ctx<Orchestrations>, run: &Run, reason: Option<&str>) {
    if run.next_turn() > run.started.definition.turns() {
        return;
    }
    let cancelled = async {
        let accepted = request(cx, run).await?;
        let data = json!({ "request_id": accepted.request_id, "reason": reason });
        cx.call::<serde_json::Value>("completion:cancel", &data).await
    };
    if let Err(error) = cancelled.await {
        // A turn that has ended by itself has nothing to be cancelled.
        tracing::debug!(orchestration = run.started.orchestration_id, %error, "no turn cancelled");
    }
}

/// Writes the transcript of what there is.
async fn write(
    settings: &Settings,
    cx: &Ctx<Orchestrations>,
    run: &Run,
    end: Option<String>,
) -> Result<Totals> {
    let path = transcript::path(&settings.transcripts, &run.started.orchestration_id);
    let totals = run.totals(cx.now(), Some(path.display().to_string()));
    let text = transcript::text(run, &totals, end.as_deref());
    write_file(path, text).await?;
    Ok(totals)
}

async fn write_file(path: PathBuf, text: String) -> Result<()> {
    let shown = path.display().to_string();
    let written = tokio::task::spawn_blocking(move || transcript::write(&path, &text)).await;
    let written = written.map_err(|_| Error::internal("writing a transcript panicked"))?;
    written.map_err(|error| {
        Error::unavailable(format!("cannot write the transcript {shown}: {error}"))
            .hint("make room or mend the folder; it is tried again")
    })
}
