//! `ksi start stop restart status health`.

use std::{process::ExitCode, time::Duration};

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
    connect::{Cx, not_running},
    fail::{FAILED, NOT_RUNNING},
    output::{json, line},
};

/// How long the daemon may take to end: its grace for running work, and some.
const PATIENCE: Duration = Duration::from_secs(45);

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
    let ended = end(cx).await?;
    if ended.is_none()
        && let Some(holder) = lock::holder(&cx.paths.lock)
    {
        return Err(out_of_reach(cx, holder).into());
    }
    match ended {
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
    if let Ok(client) = cx.running().await
        && ask(&client).await.is_ok_and(|health| health.managed)
    {
        let why = "a service manager has started this daemon, and would not know the new one";
        let hint = "restart it there, such as with `systemctl --user restart ksi`";
        return Err(Error::conflict(why).hint(hint).into());
    }
    // The daemon that runs has read its configuration; the next one would refuse a broken one.
    ConfigFile::new(cx.paths.config.join("config.toml")).load()?;
    let before = end(cx).await?;
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

/// This process is the daemon of this home, and does not answer where we look.
fn out_of_reach(cx: &Cx, holder: u32) -> Error {
    let (lock, socket) = (cx.paths.lock.display(), cx.paths.socket.display());
    let hint = "it may still be starting or ending, or was started with another KSI_SOCKET";
    Error::conflict(format!("process {holder} holds {lock} and does not answer on {socket}"))
        .hint(hint)
}

/// Ends the daemon, and returns once its process is gone; its pid, if there was one.
async fn end(cx: &Cx) -> anyhow::Result<Option<u32>> {
    let client = match cx.running().await {
        Ok(client) => client,
        Err(error) if not_running(&error) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let pid = ask(&client).await?.pid;
    // Opened while the daemon answers, so that it is this process and no later one.
    let process = Pid::from_raw(pid as i32).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
    client.call::<Value>("system:shutdown", &json!({})).await?;
    let gone = match process {
        Some(Ok(process)) => tokio::task::spawn_blocking(move || wait(&process)).await??,
        _ => true,
    };
    if !gone {
        let message = format!("the daemon (pid {pid}) is still ending after {PATIENCE:?}");
        let hint = format!("its log is {}", cx.log().display());
        return Err(Error::new(Code::Timeout, message).hint(hint).into());
    }
    Ok(Some(pid))
}

/// Whether the process ended in time.
fn wait(process: &std::os::fd::OwnedFd) -> anyhow::Result<bool> {
    let patience = Timespec::try_from(PATIENCE)?;
    let mut ended = [PollFd::new(process, PollFlags::IN)];
    Ok(poll(&mut ended, Some(&patience))? > 0)
}

/// Says whether the daemon runs.
pub(crate) async fn status(cx: &Cx) -> anyhow::Result<ExitCode> {
    let client = match cx.running().await {
        Ok(client) => client,
        Err(error) if not_running(&error) => {
            if cx.json() {
                json(&json!({ "running": false }))?;
            } else {
                line("ksi is not running; `ksi start` starts it")?;
            }
            return Ok(ExitCode::from(NOT_RUNNING));
        }
        Err(error) => return Err(error.into()),
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
