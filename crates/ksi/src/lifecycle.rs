//! `ksi start stop restart status health`.

use std::{os::fd::OwnedFd, process::ExitCode};

use ksi_plugins::config::ConfigFile;
use ksi_process::lock;
use ksi_protocol::{Client, Code, Error};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    connect::Cx,
    fail::{FAILED, NOT_RUNNING},
    output::{json, line},
    reach::{TURNING, Unreached},
};

#[derive(Debug, Serialize, Deserialize)]
struct Health {
    status: String,
    pid: u32,
    version: String,
    uptime: f64,
    /// Older daemons do not say.
    #[serde(default)]
    managed: bool,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

/// Starts the daemon and returns once it has answered.
pub(crate) async fn start(cx: &Cx) -> anyhow::Result<ExitCode> {
    let (client, mut started) = cx.start().await?;
    let mut health = ask(&client).await;
    if health.as_ref().is_err_and(|error| error.code == Code::Unavailable) {
        // It was killed a moment ago, and one of its threads still answered.
        let (client, anew) = cx.start().await?;
        (health, started) = (ask(&client).await, anew);
    }
    let health = health?;
    if cx.json() {
        let Health { pid, status, .. } = health;
        let socket = &cx.paths.socket;
        json(&json!({ "started": started, "pid": pid, "socket": socket, "status": status }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let word = if started { "started" } else { "running already" };
    line(format!("ksi is {word}: pid {}, socket {}", health.pid, cx.paths.socket.display()))?;
    if health.status != "healthy" {
        line(format!("it is {}:", health.status))?;
        problems(&health)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Stops the daemon and returns once its process is gone.
pub(crate) async fn stop(cx: &Cx) -> anyhow::Result<ExitCode> {
    match end(cx, cx.running().await).await? {
        None if cx.json() => json(&json!({ "stopped": false }))?,
        None => line("ksi is not running")?,
        Some(pid) if cx.json() => json(&json!({ "stopped": true, "pid": pid }))?,
        Some(pid) => line(format!("ksi has stopped (pid {pid})"))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Stops the daemon if one runs, of whatever version, and starts this one.
pub(crate) async fn restart(cx: &Cx) -> anyhow::Result<ExitCode> {
    // It is replaced whatever its version.
    cx.compared.set(true);
    let found = cx.running().await;
    if let Ok(client) = &found
        && ask(client).await.is_ok_and(|health| health.managed)
    {
        let why = "a service manager has started this daemon, and would not know the new one";
        let hint = "restart it there, such as with `systemctl --user restart ksi`";
        return Err(Error::conflict(why).hint(hint).into());
    }
    // The daemon that runs has read its configuration; the next one would refuse a broken one.
    ConfigFile::new(cx.paths.config.join("config.toml")).load()?;
    let before = end(cx, found).await?;
    let (client, _) = cx.start().await?;
    let health = ask(&client).await?;
    let Health { pid, status, version, .. } = &health;
    if cx.json() {
        json(&json!({ "stopped": before, "pid": pid, "version": version, "status": status }))?;
        return Ok(ExitCode::SUCCESS);
    }
    match before {
        Some(before) => line(format!("ksi has restarted: pid {pid} instead of {before}"))?,
        None => line(format!("ksi did not run and is started: pid {pid}"))?,
    }
    problems(&health)?;
    Ok(ExitCode::SUCCESS)
}

/// Ends the daemon, and returns once its process is gone; its pid, if there was one.
async fn end(cx: &Cx, found: Result<Client, Unreached>) -> anyhow::Result<Option<u32>> {
    let client = match found {
        Ok(client) => client,
        Err(Unreached::Ending(pid)) => return until_gone(cx, pid, open(pid)).await.map(Some),
        Err(why) if why.passes_within().is_some() => match cx.settled().await? {
            Some(client) => client,
            None => return Ok(None),
        },
        Err(why) if why.is_free() => return Ok(None),
        Err(why) => return Err(why.into()),
    };
    let pid = match (ask(&client).await, lock::holder(&cx.paths.lock)) {
        (Ok(health), _) => health.pid,
        (Err(_), Some(holder)) => holder.pid,
        (Err(_), None) => return Ok(None),
    };
    // Opened while the daemon answers, so that it is this process and no later one.
    let process = open(pid);
    match client.call::<Value>("system:shutdown", &json!({})).await {
        // Somebody else has asked it too.
        Err(error) if !matches!(error.code, Code::Shutdown | Code::Unavailable) => {
            Err(error.into())
        }
        _ => until_gone(cx, pid, process).await.map(Some),
    }
}

/// None when it is gone already.
fn open(pid: u32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid.cast_signed())?, PidfdFlags::empty()).ok()
}

async fn until_gone(cx: &Cx, pid: u32, process: Option<OwnedFd>) -> anyhow::Result<u32> {
    let gone = match process {
        Some(process) => tokio::task::spawn_blocking(move || wait(&process)).await??,
        None => true,
    };
    if gone {
        return Ok(pid);
    }
    let message = format!("the daemon (pid {pid}) is still ending after {TURNING:?}");
    let hint = format!("its log is {}", cx.log().display());
    Err(Error::new(Code::Timeout, message).hint(hint).into())
}

/// Whether the process ended in time.
fn wait(process: &OwnedFd) -> anyhow::Result<bool> {
    let patience = Timespec::try_from(TURNING)?;
    let mut ended = [PollFd::new(process, PollFlags::IN)];
    Ok(poll(&mut ended, Some(&patience))? > 0)
}

/// Says whether the daemon runs.
pub(crate) async fn status(cx: &Cx) -> anyhow::Result<ExitCode> {
    let client = match cx.running().await {
        Ok(client) => client,
        Err(error) => return no_status(cx, error),
    };
    let health = ask(&client).await?;
    if cx.json() {
        json(&json!({ "running": true, "health": health }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let Health { status, pid, version, uptime, .. } = &health;
    line(format!("ksi {version} is running: {status}, pid {pid}, up {uptime:.0} s"))?;
    line(format!("socket  {}", cx.paths.socket.display()))?;
    line(format!("state   {}", cx.paths.state.display()))?;
    problems(&health)?;
    Ok(ExitCode::SUCCESS)
}

/// No daemon answers, which is a status too.
fn no_status(cx: &Cx, why: Unreached) -> anyhow::Result<ExitCode> {
    let (text, status) = match why {
        Unreached::Starting(pid) => {
            let status = json!({ "running": false, "stage": "starting", "pid": pid });
            (format!("ksi is starting (pid {pid})"), status)
        }
        Unreached::Ending(pid) => {
            let status = json!({ "running": false, "stage": "ending", "pid": pid });
            (format!("ksi is shutting down (pid {pid})"), status)
        }
        why if why.is_free() => {
            ("ksi is not running; `ksi start` starts it".to_owned(), json!({ "running": false }))
        }
        why => return Err(why.into()),
    };
    if cx.json() {
        json(&status)?;
    } else {
        line(text)?;
    }
    Ok(ExitCode::from(NOT_RUNNING))
}

/// Prints the daemon's health; a degraded one is a failure.
pub(crate) async fn health(cx: &Cx) -> anyhow::Result<ExitCode> {
    let health = ask(&cx.client().await?).await?;
    let code = if health.status == "healthy" { ExitCode::SUCCESS } else { ExitCode::from(FAILED) };
    if cx.json() {
        json(&health)?;
        return Ok(code);
    }
    line(&health.status)?;
    problems(&health)?;
    Ok(code)
}

fn problems(health: &Health) -> anyhow::Result<()> {
    let problems = health.rest.get("problems").and_then(Value::as_object);
    for (plugin, why) in problems.into_iter().flatten() {
        line(format!("{plugin}: {}", why.as_str().unwrap_or_default()))?;
    }
    Ok(())
}

async fn ask(client: &Client) -> ksi_protocol::Result<Health> {
    client.call("system:health", &json!({})).await
}
