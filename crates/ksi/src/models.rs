//! Which model, and fetching it; the hidden verb that runs the local one.

use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ksi_protocol::{Client, Code, Error};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    args::{ModelVerb, Wish},
    connect::{Cx, patterns},
    fail::refused,
    output::{harmless, json, line, say},
};

/// The model that needs no account.
const LOCAL: &str = "local";

/// Runs the local model when this process was started for that.
#[cfg(feature = "local")]
pub(crate) fn run_hidden_verb() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != "__local-model" {
        return None;
    }
    let file = args.next()?;
    let served = ksi_local::serve(file.as_ref(), std::io::stdin().lock(), std::io::stdout().lock());
    Some(match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format!("the local model ended: {error}"));
            ExitCode::from(crate::fail::FAILED)
        }
    })
}

/// Chooses the model and says which and why.
pub(crate) async fn choose(cx: &Cx, client: &Client, wish: &Wish) -> anyhow::Result<String> {
    let providers: Value = client.call("completion:providers", &json!({})).await?;
    let default = providers["default_model"].as_str().unwrap_or(LOCAL);
    let (model, why) = match &wish.model {
        Some(model) => (model.as_str(), "asked for with --model"),
        None if default == LOCAL => (LOCAL, "the default; none was named"),
        None => (default, "set in config.toml"),
    };
    if cx.json() {
        return Ok(model.to_owned());
    }
    say(format!("model: {} ({why})", harmless(model)));
    if model == LOCAL {
        say(
            "  a small stand-in of 135 million parameters on this machine: its English is coherent, \
             its logic weak.\n  claude-cli, API keys and Ollama are for a later version; \
             `--model local:/path.gguf` takes a larger file today",
        );
        if on_path("claude") {
            let topic = wish.topic.replace('\'', "'\\''");
            say(format!(
                "  `claude` is on your PATH and will not be used unasked; with that version: \
                 ksi orchestrate '{topic}' --model claude-cli/sonnet"
            ));
        }
    }
    Ok(model.to_owned())
}

pub(crate) fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Whether it was refused because the local model is not there yet, and can be fetched.
pub(crate) fn is_missing(model: &str, refusal: &Error) -> bool {
    let of_model = refusal.path.as_deref() == Some("model");
    model == LOCAL && refusal.code == Code::NotFound && of_model
}

/// Fetches the local model.
pub(crate) async fn fetch(cx: &Cx, client: &Client) -> anyhow::Result<()> {
    pull(cx, client, None).await.map(|_| ())
}

/// `ksi model …`.
pub(crate) async fn model(cx: &Cx, verb: &ModelVerb) -> anyhow::Result<ExitCode> {
    let client = cx.client().await?;
    match verb {
        ModelVerb::Pull { name } => {
            let pulled = pull(cx, &client, name.as_deref()).await?;
            if cx.json() {
                json(&pulled)?;
            } else {
                line(pulled["path"].as_str().unwrap_or_default())?;
            }
        }
        ModelVerb::List => {
            let models: Value = client.call("model:list", &json!({})).await?;
            if cx.json() {
                json(&models)?;
                return Ok(ExitCode::SUCCESS);
            }
            let models: Vec<Model> = serde_json::from_value(models)?;
            for Model { name, bytes, status, path } in models {
                let path = path.unwrap_or_default();
                line(format!("{name}  {:.0} MB  {status}  {path}", bytes as f64 / 1e6))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Deserialize)]
struct Model {
    name: String,
    bytes: u64,
    status: String,
    path: Option<String>,
}

/// Fetches a model and shows how far it is.
async fn pull(cx: &Cx, client: &Client, name: Option<&str>) -> anyhow::Result<Value> {
    let models: Vec<Model> = client.call("model:list", &json!({})).await?;
    let asked_for = |model: &Model| name.is_none_or(|name| name == model.name);
    let missing = models.iter().any(|model| asked_for(model) && model.path.is_none());
    let mut progress = client.subscribe(patterns(&["model:progress"])?, None).await?;
    let target =
        if cx.json() { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(None, target);
    let shape = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}";
    bar.set_style(ProgressStyle::with_template(shape)?);
    if missing && !cx.json() {
        say("fetching the local model, once");
    }
    let request = json!({ "name": name });
    let pulled = client.call::<Value>("model:pull", &request);
    tokio::pin!(pulled);
    loop {
        tokio::select! {
            done = &mut pulled => {
                bar.finish_and_clear();
                return done.map_err(refused);
            }
            Some(event) = progress.next() => {
                let data: Value = serde_json::from_str(event.data.get())?;
                bar.set_length(data["total"].as_u64().unwrap_or(0));
                bar.set_position(data["bytes"].as_u64().unwrap_or(0));
                bar.set_message(harmless(data["phase"].as_str().unwrap_or_default()));
            }
        }
    }
}
