//! `ksi orchestrate`: starts an orchestration and prints it as it is spoken.

mod screen;

use std::{ops::ControlFlow, process::ExitCode};

use ksi_protocol::{Client, Error, Feed, News, Result as Reply};
use serde::Deserialize;
use serde_json::{Value, json};

use self::screen::Screen;
use crate::{
    args::Wish,
    connect::{Cx, patterns},
    fail::{FAILED, is_broken_pipe, refused, report},
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
    let mut client = cx.client().await?;
    // From here on a signal does not end us alone and leave a debate behind.
    let mut signals = Signals::new()?;
    let model = tokio::select! {
        model = models::choose(cx, &client, wish) => model?,
        asked = signals.next() => return Ok(nothing_started(asked)),
    };
    let Health { seq } = client.call("system:health", &json!({})).await?;
    let feed = cx.feed(patterns(&NEWS)?, Some(seq)).await?;
    let mut started = start(&client, wish, &model, &mut signals).await?;
    // Only now is it known that nothing but the model is in the way.
    if let ControlFlow::Continue(Err(refusal)) = &started
        && models::is_missing(&model, refusal)
    {
        tokio::select! {
            fetched = models::fetch(cx, &client) => fetched?,
            asked = signals.next() => return Ok(nothing_started(asked)),
        }
        started = start(&client, wish, &model, &mut signals).await?;
    }
    let Started { orchestration_id: id, agents } = match started {
        ControlFlow::Continue(started) => started.map_err(refused)?,
        ControlFlow::Break(code) => return Ok(code),
    };
    let title = bold(&format!("{} — {}", harmless(&wish.topic), agents.join(", ")));
    let title = if cx.json() { String::new() } else { format!("{title}\n") };
    let screen = Screen::new(id.clone(), cx.json());
    let watched = tokio::select! {
        watched = watch(cx, &mut client, feed, screen, title) => watched,
        asked = signals.next() => return end(&client, &id, asked, &mut signals).await,
    };
    match watched {
        Ok(Ok(())) => Ok(ExitCode::SUCCESS),
        Ok(Err(error)) => Ok(failed(cx, &id, error)),
        Err(error) => goes_on(cx, &id, &error),
    }
}

fn nothing_started(asked: Asked) -> ExitCode {
    say("\nnothing was started; a model that is being fetched goes on (`ksi model list`)");
    asked.code()
}

/// Says why it has ended before its last turn.
fn failed(cx: &Cx, id: &str, error: Error) -> ExitCode {
    if cx.json() {
        return report(&error.into(), cx.format);
    }
    say("");
    let code = report(&error.into(), cx.format);
    say(format!("what was said: ksi describe orchestration {id}"));
    code
}

/// Says that it goes on, though what is said can be shown no further.
fn goes_on(cx: &Cx, id: &str, error: &anyhow::Error) -> anyhow::Result<ExitCode> {
    let unread = is_broken_pipe(error);
    let look = format!("look at it with: ksi describe orchestration {id}");
    let end = format!("end it with: ksi emit orchestration:terminate orchestration_id={id}");
    if cx.json() && !unread {
        let why = format!("it can be shown no further: {error:#}; the orchestration goes on");
        return Err(Error::unavailable(why).hint(format!("{look}; {end}")).into());
    }
    match unread {
        true => say("nobody reads this any more; the orchestration goes on"),
        false => {
            say(format!("error: it can be shown no further: {error:#}; the orchestration goes on"))
        }
    }
    say(look);
    say(end);
    Ok(if unread { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// Starts it. Who wants it to end meanwhile waits until its id is known, so that it can be ended;
/// who asks twice does not.
async fn start(
    client: &Client,
    wish: &Wish,
    model: &str,
    signals: &mut Signals,
) -> anyhow::Result<ControlFlow<ExitCode, Reply<Started>>> {
    let mut request =
        json!({ "pattern": wish.mode, "model": model, "vars": { "topic": wish.topic } });
    request["seed"] = wish.seed.into();
    // What is beyond any pattern is refused with what can be.
    request["rounds"] = wish.rounds.map(|rounds| rounds.min(u32::MAX.into())).into();
    let started = client.call::<Started>("orchestration:start", &request);
    tokio::pin!(started);
    let asked = tokio::select! {
        started = &mut started => return Ok(ControlFlow::Continue(started)),
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

/// All orchestrations, and what holds them up.
const NEWS: [&str; 4] = ["orchestration:*", "completion:chunk", "completion:retrying", "journal:*"];

/// Prints what happens until the end; an error if it cannot be shown until then.
async fn watch(
    cx: &Cx,
    client: &mut Client,
    mut feed: Feed,
    mut screen: Screen,
    title: String,
) -> anyhow::Result<Reply<()>> {
    print(title).await?;
    while let Some(news) = feed.next().await {
        let event = match news {
            News::Event(event) => event,
            News::Away(_) => {
                cx.tell_away();
                continue;
            }
            News::Back { pruned } => {
                if let Ok(back) = cx.tell_back(pruned).await {
                    *client = back;
                }
                continue;
            }
        };
        let ended = screen.show(&event)?;
        print(screen.take()).await?;
        if let Some(ended) = ended {
            return Ok(ended);
        }
    }
    let why = "the daemon has gone away; the orchestration goes on when it is back";
    Ok(Err(Error::unavailable(why).hint("`ksi start` brings it back")))
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
