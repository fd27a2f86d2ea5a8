//! The daemon's log: stderr, and when that is the log file, in files of a bounded size.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use ksi_plugins::config::Log as Keep;
use parking_lot::Mutex;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// Writes whole lines to stderr.
#[derive(Clone)]
pub(crate) struct Log(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// The file that stderr is; none when it is something else.
    file: Option<PathBuf>,
    keep: Keep,
    bytes: u64,
}

impl Log {
    /// Logs from now on.
    pub(crate) fn start() -> Log {
        let log = Log(Arc::new(Mutex::new(State::default())));
        let filter = EnvFilter::try_from_env("KSI_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
        let subscriber = tracing_subscriber::fmt().with_env_filter(filter);
        let _ = subscriber.with_ansi(false).with_writer(log.clone()).try_init();
        log
    }

    /// Begins new files at this path, if stderr leads there; a terminal and a pipe are left alone.
    pub(crate) fn keep(&self, path: &Path, keep: &Keep) {
        let own = rustix::fs::fstat(rustix::stdio::stderr());
        let (Ok(own), Ok(there)) = (own, rustix::fs::stat(path)) else { return };
        if (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino) {
            let bytes = there.st_size as u64;
            *self.0.lock() = State { file: Some(path.to_owned()), keep: keep.clone(), bytes };
        }
    }

    /// Goes on in the file at the log's path, also when what was there was moved away.
    pub(crate) fn reopen(&self) {
        let mut state = self.0.lock();
        let Some(path) = state.file.clone() else { return };
        if let Err(error) = begin(&path) {
            // It is said where it still can be.
            let _ = writeln!(io::stderr(), "error: {} cannot be opened: {error}", path.display());
        }
        state.bytes = fs::metadata(path).map_or(0, |found| found.len());
    }
}

/// Lets stderr lead to the end of this file.
fn begin(path: &Path) -> io::Result<()> {
    let file = File::options().create(true).append(true).mode(0o600).open(path)?;
    Ok(rustix::stdio::dup2_stderr(&file)?)
}

impl State {
    /// Begins a new file when this one is full. What cannot be renamed grows on.
    fn turn_over(&mut self) -> io::Result<()> {
        let Some(path) = self.file.as_ref().filter(|_| self.bytes >= self.keep.max_bytes) else {
            return Ok(());
        };
        let numbered = |number: u32| {
            let mut name = path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        self.bytes = 0;
        for number in (1..self.keep.keep_files).rev() {
            match fs::rename(numbered(number), numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        match self.keep.keep_files {
            0 => fs::remove_file(path)?,
            _ => fs::rename(path, numbered(1))?,
        }
        begin(path)
    }
}

impl Write for Log {
    /// One call is one line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        // The line matters more than the size of its file, and the daemon more than the line.
        let _ = state.turn_over();
        let _ = io::stderr().write_all(line);
        state.bytes += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}
