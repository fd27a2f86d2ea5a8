//! A lock that its holder's death frees: `flock` on an open file. What the file says about the
//! holder is for people to read; only the lock itself proves anything.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Held as long as this value lives, and not a moment longer than this process.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// For people to read; it may be another process's by now.
    pub pid: u32,
    /// What it last said that it does.
    pub note: Option<String>,
}

/// Somebody else holds the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Who, as far as the file tells.
    pub pid: Option<u32>,
}

/// Why the lock is not ours.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process holds it.
    #[error("{path} is locked by {}", describe(.held))]
    Held {
        /// The lock's file.
        path: PathBuf,
        /// Who holds it.
        held: Held,
    },
    /// The file cannot be used.
    #[error("cannot lock {path}: check that its folder exists and is writable")]
    File {
        /// The lock's file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Lock {
    /// Takes the lock, or says at once who has it. The file stays behind for good: removing it
    /// would let two processes lock two files of the same name.
    pub fn acquire(path: &Path) -> Result<Self, Error> {
        let file_error = |source| Error::File { path: path.to_owned(), source };
        let file = open(path).map_err(file_error)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let held = Held { pid: read(&file).map(|holder| holder.pid) };
                return Err(Error::Held { path: path.to_owned(), held });
            }
            Err(error) => return Err(file_error(error.into())),
        }
        write_holder(&file, "").map_err(file_error)?;
        Ok(Self { file })
    }

    /// The same, but waits for a holder that is about to go: who was killed holds its locks until
    /// its memory is given back. When it stays, a thread of this process may go on waiting.
    pub fn acquire_within(path: &Path, patience: Duration) -> Result<Self, Error> {
        match Self::acquire(path) {
            Err(Error::Held { .. }) => {}
            done => return done,
        }
        let file_error = |source| Error::File { path: path.to_owned(), source };
        let (freed, waiting) = mpsc::channel();
        let file = open(path).map_err(file_error)?;
        std::thread::spawn(move || {
            if flock(&file, FlockOperation::LockExclusive).is_ok() {
                // If nobody waits any more, the lock goes with the file.
                let _ = freed.send(file);
            }
        });
        let Ok(file) = waiting.recv_timeout(patience) else { return Self::acquire(path) };
        write_holder(&file, "").map_err(file_error)?;
        Ok(Self { file })
    }

    /// Says in the file what the holder does, for who looks there.
    pub fn note(&self, note: &str) -> io::Result<()> {
        write_holder(&self.file, note)
    }
}

/// Who holds the lock of this file, without touching it; none also where that cannot be known.
pub fn holder(path: &Path) -> Option<Holder> {
    let inode = std::fs::metadata(path).ok()?.ino();
    let said = read(&File::open(path).ok()?)?;
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let held = locks.lines().any(|line| is_lock_of(line, said.pid, inode));
    held.then_some(said)
}

/// A line such as `1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF`. The device is not compared:
/// some filesystems have another one here than for a file's metadata.
fn is_lock_of(line: &str, pid: u32, inode: u64) -> bool {
    let fields: Vec<_> = line.split_whitespace().collect();
    let [_, "FLOCK", _, _, holder, place, ..] = fields[..] else { return false };
    let at = place.rsplit(':').next().and_then(|at| at.parse().ok());
    holder.parse() == Ok(pid) && at == Some(inode)
}

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}

fn describe(held: &Held) -> String {
    match held.pid {
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    }
}

/// The start time stands beside the pid so that a reader can tell a reused number. The file is
/// never empty in between: somebody may be reading it.
fn write_holder(file: &File, note: &str) -> io::Result<()> {
    let mut text = format!("pid {}\n", std::process::id());
    #[cfg(target_os = "linux")]
    {
        let own = rustix::process::getpid().as_raw_pid();
        if let Some(process) = crate::os::process::Process::read(own) {
            text += &format!("started {} clock ticks after boot\n", process.id.start);
        }
    }
    if !note.is_empty() {
        text += &format!("{NOTE}{note}\n");
    }
    file.write_all_at(text.as_bytes(), 0)?;
    file.set_len(text.len() as u64)
}

const NOTE: &str = "now ";

/// A path may stand in the note.
const LONGEST: u64 = 8192;

fn read(file: &File) -> Option<Holder> {
    let mut text = Vec::new();
    file.take(LONGEST).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines();
    let pid = lines.next()?.strip_prefix("pid ")?.parse().ok()?;
    let note = lines.find_map(|line| line.strip_prefix(NOTE)).map(str::to_owned);
    Some(Holder { pid, note })
}
