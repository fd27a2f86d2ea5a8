//! How failures reach a person, and exit codes a script.

use std::{io, process::ExitCode};

use ksi_protocol::{Code, ConnectError, Error};
use serde_json::json;

use crate::{args::Format, output::say};

/// The event failed.
pub(crate) const FAILED: u8 = 1;
/// The command line is wrong.
pub(crate) const USAGE: u8 = 2;
/// The daemon is not running.
pub(crate) const NOT_RUNNING: u8 = 3;

/// A failure of the command line itself, with what to try.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    pub(crate) code: u8,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Failure { message: message.into(), hint: Some(hint.into()), code }
    }
}

/// Prints an error, its causes and its hint, and says with which code to exit.
pub(crate) fn report(error: &anyhow::Error, format: Format) -> ExitCode {
    if error.chain().any(is_broken_pipe) {
        return ExitCode::SUCCESS;
    }
    let code = exit_code(error);
    if format == Format::Json {
        let known = error.downcast_ref::<Error>().cloned();
        let event = known.unwrap_or_else(|| Error::new(Code::Internal, format!("{error:#}")));
        say(json!({ "error": event }));
        return code;
    }
    say(format!("error: {error}"));
    for cause in error.chain().skip(1) {
        say(format!("caused by: {cause}"));
    }
    if let Some(path) = error.downcast_ref::<Error>().and_then(|e| e.path.as_deref())
        && path != "."
    {
        say(format!("at: {path}"));
    }
    if let Some(hint) = hint(error) {
        say(format!("hint: {hint}"));
    }
    code
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    let own = error.downcast_ref::<Failure>().map(|failure| failure.code);
    let connect = error.downcast_ref::<ConnectError>().map(|_| NOT_RUNNING);
    ExitCode::from(own.or(connect).unwrap_or(FAILED))
}

fn hint(error: &anyhow::Error) -> Option<String> {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return failure.hint.clone();
    }
    if let Some(connect) = error.downcast_ref::<ConnectError>() {
        return connect.hint().map(str::to_owned);
    }
    error.downcast_ref::<Error>()?.hint.clone()
}

fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
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
