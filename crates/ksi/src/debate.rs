//! `ksi orchestrate`: starts an orchestration and prints it as it is spoken.

mod screen;

use std::{ops::ControlFlow, process::ExitCode};

use ksi_protocol::{Client, Result as Reply, Subscription};
use serde::Deserialize;
use serde_json::{Value, json};

use self::screen::Screen;
use crate::{
    args::Wish,
    connect::{Cx, patterns},
    fail::{FAILED, is_broken_pipe, refused},
    models,
    output::{bold, harmless, piece, say},
    signals::{Asked, Signals},
};

#[derive(Debug, Deserialize)]
struct Started {
    orchestration_id: String,
    agents: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Health {
    seq: u64,
}

/// Starts it, prints it, and says where it lies; a signal ends it.
pub(crate) async fn orchestrate(cx: &Cx, wish: &Wish) -> anyhow::Result<ExitCode> {
    let client = cx.client().await?;
    // From here on a signal does not end us alone and leave a debate behind.
    let mut signals = Signals::new()?;
    let model = tokio::select! {
        model = prepare(&client, wish) => model?,
        asked = signals.next() => {
            say("\nnothing was started; a model that is being fetched goes on (`ksi model list`)");
            return Ok(asked.code());
        }
    };
    let Health { seq } = client.call("system:health", &json!({})).await?;
    let events = news(&client, seq).await?;
    let Started { orchestration_id: id, agents } =
        match start(&client, wish, &model, &mut signals).await? {
            ControlFlow::Continue(started) => started,
            ControlFlow::Break(code) => return Ok(code),
        };
    let title = bold(&format!("{} — {}", harmless(&wish.topic), agents.join(", ")));
    let title = if cx.json() { String::new() } else { format!("{title}\n") };
    let screen = Screen::new(id.clone(), cx.json(), seq);
    let watched = tokio::select! {
        watched = watch(&client, events, screen, title) => watched,
        asked = signals.next() => return end(&client, &id, asked, &mut signals).await,
    };
    match watched {
        Err(error) if is_broken_pipe(&error) => {
            say("nobody reads this any more; the orchestration goes on");
            say(format!("look at it with: ksi describe orchestration {id}"));
            say(format!("end it with: ksi emit orchestration:terminate orchestration_id={id}"));
            Ok(ExitCode::SUCCESS)
        }
        watched => watched,
    }
}

/// Chooses the model, and fetches it when it is not there.
async fn prepare(client: &Client, wish: &Wish) -> anyhow::Result<String> {
    let model = models::choose(client, wish).await?;
    models::fetch(client, &model).await?;
    Ok(model)
}

/// Starts it. Who wants it to end meanwhile waits until its id is known, so that it can be ended;
/// who asks twice does not.
async fn start(
    client: &Client,
    wish: &Wish,
    model: &str,
    signals: &mut Signals,
) -> anyhow::Result<ControlFlow<ExitCode, Started>> {
    let mut request =
        json!({ "pattern": wish.mode, "model": model, "vars": { "topic": wish.topic } });
    request["seed"] = wish.seed.into();
    request["rounds"] = wish.rounds.into();
    let started = client.call::<Started>("orchestration:start", &request);
    tokio::pin!(started);
    let asked = tokio::select! {
        started = &mut started => return Ok(ControlFlow::Continue(started.map_err(refused)?)),
        asked = signals.next() => asked,
    };
    say("\nending it as soon as it has started; ask again to leave at once");
    let code = tokio::select! {
        started = started => {
            let id = started.map_err(refused)?.orchestration_id;
            end(client, &id, asked, signals).await?
        }
        _ = signals.next() => {
            say("whether it has started is not known: ksi get orchestrations");
            asked.code()
        }
    };
    Ok(ControlFlow::Break(code))
}

/// The news of all orchestrations, from behind this fact on, and of what holds them up.
async fn news(client: &Client, after: u64) -> Reply<Subscription> {
    let names = ["orchestration:*", "completion:chunk", "completion:retrying", "journal:*"];
    client.subscribe(patterns(&names)?, Some(after)).await
}

/// Prints what happens until the end.
async fn watch(
    client: &Client,
    mut events: Subscription,
    mut screen: Screen,
    title: String,
) -> anyhow::Result<ExitCode> {
    print(title).await?;
    while let Some(event) = events.next().await {
        if events.lagged() > 0 {
            // A fact may be among what was lost; the journal has them all.
            drop(events);
            events = news(client, screen.seen()).await?;
            continue;
        }
        let ended = screen.show(&event)?;
        print(screen.take()).await?;
        if let Some(code) = ended {
            return Ok(code);
        }
    }
    say("the daemon has gone away; the orchestration goes on when it is back (`ksi start`)");
    say(format!("look at it with: ksi describe orchestration {}", screen.id()));
    Ok(ExitCode::from(FAILED))
}

/// Prints on a thread of its own: a reader who does not read must not keep signals out.
async fn print(text: String) -> anyhow::Result<()> {
    if !text.is_empty() {
        tokio::task::spawn_blocking(move || piece(&text)).await??;
    }
    Ok(())
}

/// Ends it; who asks again does not wait until it has ended.
async fn end(
    client: &Client,
    id: &str,
    asked: Asked,
    signals: &mut Signals,
) -> anyhow::Result<ExitCode> {
    say("\nending the orchestration");
    let request = json!({ "orchestration_id": id, "reason": asked.reason() });
    tokio::select! {
        ended = client.call::<Value>("orchestration:terminate", &request) => { ended?; }
        _ = signals.next() => say("not waiting for its end"),
    }
    say(format!("what was said: ksi describe orchestration {id}"));
    Ok(asked.code())
}
