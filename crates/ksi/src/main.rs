//! KSI: Kubernetes-style infrastructure for AI agents.
//!
//! One program: the daemon, the command line, and under hidden verbs the shim and the local model.

mod admission;
mod args;
mod config;
mod connect;
mod cpu;
mod daemon;
mod debate;
mod discover;
mod doctor;
mod events;
mod fail;
mod ground;
mod lifecycle;
mod log;
mod logs;
mod look;
mod models;
mod output;
mod permission;
mod reach;
mod service;
mod signals;
mod upkeep;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if let Some(code) = fail::unless_cpu_has(&cpu::missing_features()) {
        return code;
    }
    if let Some(code) = ksi_process::run_hidden_verb() {
        return code;
    }
    #[cfg(feature = "local")]
    if let Some(code) = models::run_hidden_verb() {
        return code;
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return fail::unreadable(&error),
    };
    match run(&args) {
        Ok(code) => code,
        Err(error) => fail::report(&error, args.output),
    }
}

/// A request that comes in is noticed after at most so many polls of tasks.
const POLLS_BETWEEN_LOOKS: u32 = 16;

fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if let Command::Start { foreground: true } = args.command {
        let service = service::Service::from_env()?;
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).event_interval(POLLS_BETWEEN_LOOKS).enable_all();
        return runtime.build()?.block_on(daemon::run(service));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(dispatch(args));
    // A piece that nobody reads may still be on its way to stdout; it holds nothing up.
    runtime.shutdown_background();
    done
}

async fn dispatch(args: &Args) -> anyhow::Result<ExitCode> {
    let cx = match connect::Cx::new(args) {
        Err(why) if matches!(args.command, Command::Doctor) => {
            return doctor::without_places(args.output, &why);
        }
        cx => cx?,
    };
    match &args.command {
        Command::Start { .. } => lifecycle::start(&cx).await,
        Command::Stop => lifecycle::stop(&cx).await,
        Command::Restart => lifecycle::restart(&cx).await,
        Command::Logs { follow, lines } => logs::logs(&cx, *lines, *follow).await,
        Command::Status => lifecycle::status(&cx).await,
        Command::Health => lifecycle::health(&cx).await,
        Command::Doctor => doctor::doctor(&cx).await,
        Command::Orchestrate(wish) => debate::orchestrate(&cx, wish).await,
        Command::Emit { event, data } => events::emit(&cx, event, data).await,
        Command::Listen { patterns, since } => events::listen(&cx, patterns, *since).await,
        Command::Discover { what, markdown } => {
            discover::discover(&cx, what.as_deref(), *markdown).await
        }
        Command::Model { verb } => models::model(&cx, verb).await,
        Command::Checkpoint { verb } => upkeep::checkpoint(&cx, verb).await,
        Command::Config { verb } => config::config(&cx, verb).await,
        Command::Permission { verb } => permission::run(&cx, verb).await,
        Command::Journal { verb } => upkeep::journal(&cx, verb).await,
        Command::Backup { file } => upkeep::backup(&cx, file).await,
        Command::Restore { file, replace } => upkeep::restore(&cx, file, *replace),
        Command::Get { kind } => look::get(&cx, kind).await,
        Command::Describe { kind } => look::describe(&cx, kind).await,
    }
}
