//! How failures reach a person, and exit codes a script.

use std::{
    fmt::Display,
    io::{self, Write},
    process::ExitCode,
};

use ksi_protocol::{Code, ConnectError, Error};
use serde_json::json;

use crate::{
    args::{Format, want_json},
    output::say,
    reach::Unreached,
};

/// The event failed.
pub(crate) const FAILED: u8 = 1;
/// The command line is wrong.
pub(crate) const USAGE: u8 = 2;
/// The daemon is not running.
pub(crate) const NOT_RUNNING: u8 = 3;

/// The command line asks for what cannot be.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct Usage(pub(crate) Error);

impl Usage {
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Usage(Error::bad_params(message).hint(hint))
    }
}

/// What the daemon refused: if what was typed is at fault, that is wrong usage.
pub(crate) fn refused(error: Error) -> anyhow::Error {
    let wrong = matches!(error.code, Code::BadParams | Code::NotFound) || error.path.is_some();
    if wrong { Usage(error).into() } else { error.into() }
}

/// Of the folder where KSI keeps its things, something cannot be made.
pub(crate) fn no_home(what: impl Display, why: &io::Error) -> Error {
    let hint = "set KSI_HOME to a folder that you can write to";
    Error::unavailable(format!("{what}: {why}")).retryable(false).hint(hint)
}

/// Prints what the command line's grammar says of it: an error, or the help that was asked for.
pub(crate) fn unreadable(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && want_json(std::env::args_os()) {
        return report(&ungrammatical(error).into(), Format::Json);
    }
    let printed = error.print().and_then(|()| io::stdout().flush());
    match printed {
        Err(why) if !error.use_stderr() => {
            report(&anyhow::Error::from(why).context("stdout cannot be written"), Format::Text)
        }
        _ => ExitCode::from(if error.use_stderr() { USAGE } else { 0 }),
    }
}

/// The grammar's error as one of ours.
fn ungrammatical(error: &clap::Error) -> Usage {
    use clap::error::ErrorKind::{DisplayHelpOnMissingArgumentOrSubcommand, MissingSubcommand};
    let help = "`ksi --help` says what can be typed";
    if matches!(error.kind(), DisplayHelpOnMissingArgumentOrSubcommand | MissingSubcommand) {
        return Usage::new("a command is missing", help);
    }
    let text = error.to_string();
    let one_line = |part: &str| part.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut parts = text.split("\n\n").map(one_line);
    let message = parts.next().unwrap_or_default();
    // What follows is tips, how it is used, and where help is.
    let hint = parts.find_map(|part| match part.split_once(": ")? {
        ("tip", tip) => Some(tip.to_owned()),
        ("Usage", usage) => Some(format!("usage: {usage}")),
        _ => None,
    });
    Usage::new(message.trim_start_matches("error: "), hint.as_deref().unwrap_or(help))
}

/// Prints an error, its causes and its hint, and says with which code to exit.
pub(crate) fn report(error: &anyhow::Error, format: Format) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    let code = exit_code(error);
    let known = known(error);
    if format == Format::Json {
        let other = || Error::new(Code::Internal, format!("{error:#}"));
        say(json!({ "error": known.unwrap_or_else(other) }));
        return code;
    }
    say(labelled("error", error));
    for cause in error.chain().skip(1) {
        say(labelled("caused by", cause));
    }
    let Some(Error { path, hint, .. }) = known else { return code };
    if let Some(path) = path.filter(|path| path != ".") {
        say(labelled("at", path));
    }
    if let Some(hint) = hint {
        say(labelled("hint", hint));
    }
    code
}

/// Others' words may have several lines; none of them passes for a label of ours.
fn labelled(label: &str, text: impl Display) -> String {
    format!("{label}: {}", text.to_string().trim_end().replace('\n', "\n  "))
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    ExitCode::from(match () {
        () if error.is::<Usage>() => USAGE,
        () if error.is::<ConnectError>() => NOT_RUNNING,
        () if error.downcast_ref().is_some_and(Unreached::is_not_serving) => NOT_RUNNING,
        () => FAILED,
    })
}

/// The error as a program can read it, if it is one of ours.
fn known(error: &anyhow::Error) -> Option<Error> {
    if let Some(Usage(error)) = error.downcast_ref() {
        return Some(error.clone());
    }
    if let Some(connect) = error.downcast_ref::<ConnectError>() {
        let hint = connect.hint().map(str::to_owned);
        return Some(Error { hint, ..Error::unavailable(format!("{error:#}")) });
    }
    if let Some(unreached) = error.downcast_ref::<Unreached>() {
        return Some(Error { hint: unreached.hint(), ..Error::unavailable(format!("{error:#}")) });
    }
    error.downcast_ref().cloned()
}

/// Whether nobody reads stdout any more.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Refuses to run where the processor lacks what the program was compiled for.
pub(crate) fn unless_cpu_has(missing: &[String]) -> Option<ExitCode> {
    if missing.is_empty() {
        return None;
    }
    say(format!(
        "error: this processor lacks {}, which this ksi was built for",
        missing.join(", ")
    ));
    say("hint: build it on this machine, or with RUSTFLAGS= to run on any processor of its kind");
    Some(ExitCode::from(FAILED))
}
