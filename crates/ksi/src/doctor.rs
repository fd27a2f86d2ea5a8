//! `ksi doctor`: looks at what KSI stands on, and changes nothing.

mod daemon;
mod machine;
mod places;

use std::process::ExitCode;

use serde::Serialize;

use crate::{
    args::Format,
    connect::Cx,
    fail::FAILED,
    output::{bold, harmless, json, line},
};

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Good to know; nothing to do.
    Note,
    /// It works, and may not for long or not as well as it could.
    Warning,
    /// The daemon does not work, or not for long.
    Failed,
}

/// What was found of one thing.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    what: String,
    /// What to try.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Finding {
    fn new(check: &'static str, verdict: Verdict, what: impl Into<String>) -> Finding {
        Finding { check, verdict, what: what.into(), hint: None }
    }

    fn ok(check: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(check, Verdict::Ok, what)
    }

    fn note(check: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(check, Verdict::Note, what)
    }

    fn warning(check: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(check, Verdict::Warning, what)
    }

    fn failed(check: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(check, Verdict::Failed, what)
    }

    fn hint(self, hint: impl Into<String>) -> Finding {
        Finding { hint: Some(hint.into()), ..self }
    }
}

/// All that was found; the worst of it is its status.
#[derive(Debug, Serialize)]
struct Report {
    status: Verdict,
    findings: Vec<Finding>,
}

/// Looks at everything and says what it found; exit code 1 when something does not work.
pub(crate) async fn doctor(cx: &Cx) -> anyhow::Result<ExitCode> {
    // It says itself what there is to say of the daemon's version.
    cx.compared.set(true);
    let (running, of_daemon) = daemon::look(cx).await;
    let mut findings = machine::look(running.as_ref());
    findings.extend(places::look(cx, running.as_ref()));
    findings.extend(of_daemon);
    report(cx.format, findings)
}

/// What can be said where no places can be told.
pub(crate) fn without_places(format: Format, why: &anyhow::Error) -> anyhow::Result<ExitCode> {
    let mut findings = machine::look(None);
    findings.push(Finding::failed("places", format!("{why:#}")));
    report(format, findings)
}

fn report(format: Format, findings: Vec<Finding>) -> anyhow::Result<ExitCode> {
    let worst = findings.iter().map(|it| it.verdict).max();
    let status = worst.filter(|worst| *worst > Verdict::Note).unwrap_or(Verdict::Ok);
    let report = Report { status, findings };
    if format == Format::Json {
        json(&report)?;
    } else {
        print(&report)?;
    }
    Ok(if status == Verdict::Failed { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

fn print(report: &Report) -> anyhow::Result<()> {
    for Finding { check, verdict, what, hint } in &report.findings {
        let word = match verdict {
            Verdict::Ok => "ok  ".to_owned(),
            Verdict::Note => "note".to_owned(),
            Verdict::Warning => bold("warn"),
            Verdict::Failed => bold("FAIL"),
        };
        line(format!("{word}  {check:10}  {}", harmless(what)))?;
        if let Some(hint) = hint {
            line(format!("{:18}hint: {}", "", harmless(hint)))?;
        }
    }
    let count = |verdict| report.findings.iter().filter(|it| it.verdict == verdict).count();
    let (failed, warnings) = (count(Verdict::Failed), count(Verdict::Warning));
    line(match (failed, warnings) {
        (0, 0) => "all is well".to_owned(),
        (0, warnings) => format!("it works; warnings: {warnings}"),
        (failed, warnings) => format!("failures: {failed}, warnings: {warnings}"),
    })?;
    Ok(())
}
