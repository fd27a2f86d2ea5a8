//! `ksi orchestrate`: starts an orchestration and prints it as it is spoken.

use std::process::ExitCode;

use ksi_protocol::{Client, Pushed, Subscription};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    args::Wish,
    connect::{Cx, patterns},
    fail::{FAILED, refused},
    models,
    output::{bold, duration, harmless, json_line, line, piece, say},
};

#[derive(Debug, Deserialize)]
struct Started {
    orchestration_id: String,
    agents: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Turn {
    turn: u32,
    speaker: String,
    text: String,
}

#[derive(Debug, Deserialize)]
struct Chunk {
    conversation_id: String,
    attempt: u32,
    text: String,
}

#[derive(Debug, Deserialize)]
struct Finished {
    turns: u32,
    usage: Usage,
    cost_usd: f64,
    duration_ms: u64,
    transcript: String,
}

#[derive(Debug, Default, Deserialize)]
struct Usage {
    input: u64,
    output: u64,
}

/// Starts it, prints it, and says where it lies; Ctrl-C ends it.
pub(crate) async fn orchestrate(cx: &Cx, wish: &Wish) -> anyhow::Result<ExitCode> {
    let client = cx.client().await?;
    let model = models::choose(&client, wish).await?;
    models::fetch(&client, &model).await?;
    let mut events =
        client.subscribe(patterns(&["orchestration:*", "completion:*"])?, None).await?;
    let mut request =
        json!({ "pattern": wish.mode, "model": model, "vars": { "topic": wish.topic } });
    request["seed"] = wish.seed.into();
    request["rounds"] = wish.rounds.into();
    // Listened for before it starts: from then on Ctrl-C ends the orchestration, not only us.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let started: Started = client.call("orchestration:start", &request).await.map_err(refused)?;
    let id = started.orchestration_id;
    if !cx.json() {
        line(bold(&format!("{} — {}", harmless(&wish.topic), started.agents.join(", "))))?;
    }
    let mut screen = Screen { id: id.clone(), json: cx.json(), spoken: None };
    tokio::select! {
        ended = watch(&mut events, &mut screen) => ended,
        _ = interrupt.recv() => interrupted(&client, &id).await,
    }
}

async fn watch(events: &mut Subscription, screen: &mut Screen) -> anyhow::Result<ExitCode> {
    while let Some(event) = events.next().await {
        if let Some(code) = screen.show(&event)? {
            return Ok(code);
        }
    }
    say("the daemon has gone away; the orchestration goes on when it is back (`ksi start`)");
    say(format!("look at it with: ksi describe orchestration {}", screen.id));
    Ok(ExitCode::from(FAILED))
}

async fn interrupted(client: &Client, id: &str) -> anyhow::Result<ExitCode> {
    say("\nending the orchestration");
    let request = json!({ "orchestration_id": id, "reason": "interrupted at the terminal" });
    client.call::<Value>("orchestration:terminate", &request).await?;
    say(format!("what was said: ksi describe orchestration {id}"));
    Ok(ExitCode::from(130))
}

/// What has been printed so far.
struct Screen {
    id: String,
    json: bool,
    /// The speaker whose words stream at present, the attempt, and whether there were any.
    spoken: Option<(String, u32)>,
}

impl Screen {
    /// Prints an event of this orchestration; the last one brings the exit code.
    fn show(&mut self, event: &Pushed) -> anyhow::Result<Option<ExitCode>> {
        let data: Value = serde_json::from_str(event.data.get())?;
        if event.event == "completion:chunk" {
            self.chunk(&serde_json::from_value(data)?)?;
            return Ok(None);
        }
        if event.event.starts_with("completion:") {
            self.trouble(&event.event, &data);
            return Ok(None);
        }
        if data["orchestration_id"] != self.id.as_str() {
            return Ok(None);
        }
        if self.json {
            json_line(&json!({ "event": event.event, "data": data, "seq": event.seq }))?;
        }
        match event.event.as_str() {
            "orchestration:turn_taken" => self.turn(&serde_json::from_value(data)?)?,
            "orchestration:finished" => {
                self.finished(&serde_json::from_value(data)?)?;
                return Ok(Some(ExitCode::SUCCESS));
            }
            "orchestration:failed" => {
                say(format!("\nerror: {}", data["error"].as_str().unwrap_or("it failed")));
                if let Some(hint) = data["hint"].as_str() {
                    say(format!("hint: {hint}"));
                }
                say(format!("what was said: ksi describe orchestration {}", self.id));
                return Ok(Some(ExitCode::from(FAILED)));
            }
            "orchestration:terminated" => {
                say("\nit was terminated");
                return Ok(Some(ExitCode::from(FAILED)));
            }
            _ => {}
        }
        Ok(None)
    }

    fn chunk(&mut self, chunk: &Chunk) -> anyhow::Result<()> {
        let speaker = chunk.conversation_id.strip_prefix(&self.id);
        let Some(speaker) = speaker.and_then(|rest| rest.strip_prefix('/')) else { return Ok(()) };
        if self.json {
            return Ok(());
        }
        let now = (speaker.to_owned(), chunk.attempt);
        if self.spoken.as_ref() != Some(&now) {
            piece(&format!("\n{}\n", bold(&harmless(speaker))))?;
            self.spoken = Some(now);
        }
        Ok(piece(&harmless(&chunk.text))?)
    }

    fn turn(&mut self, turn: &Turn) -> anyhow::Result<()> {
        if self.json {
            return Ok(());
        }
        // Signals may be missed, as when the daemon was restarted; the fact holds the whole text.
        if self.spoken.take().is_none() {
            piece(&format!("\n{}\n{}", bold(&harmless(&turn.speaker)), harmless(&turn.text)))?;
        }
        tracing::debug!(turn = turn.turn, "taken");
        Ok(piece("\n")?)
    }

    fn trouble(&self, name: &str, data: &Value) {
        let ours = data["conversation_id"].as_str().is_some_and(|id| id.starts_with(&self.id));
        if name == "completion:retrying" && ours {
            let reason = data["reason"].as_str().unwrap_or("it failed");
            let delay = duration(data["delay_ms"].as_u64().unwrap_or(0));
            say(format!("\n({reason}; trying again in {delay})"));
        }
    }

    fn finished(&self, end: &Finished) -> anyhow::Result<()> {
        if self.json {
            return Ok(());
        }
        let Finished { turns, usage, cost_usd, duration_ms, transcript } = end;
        let tokens = usage.input + usage.output;
        let time = duration(*duration_ms);
        say(format!(
            "\n{turns} turns, {tokens} tokens ({} read, {} written), {time}, {cost_usd:.4} USD",
            usage.input, usage.output
        ));
        say(format!("transcript: {transcript}"));
        say("the daemon runs on; `ksi stop` stops it");
        Ok(())
    }
}
