//! The lock of an effect: held by its shim from before the program starts until nothing of its
//! tree is left, and by the daemon until it has ended what a killed shim left.
//!
//! Both hold the same opening of the file, so the lock is free when neither does any more. Who
//! ends last removes the file, while it holds the lock: what is left in the folder belongs to a
//! live shim, or to one that was killed together with its daemon.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::os::process::{Process, ProcessId, boot};

/// An open lock file; whether it is locked is another matter.
#[derive(Debug)]
pub(crate) struct EffectLock {
    file: File,
    path: PathBuf,
}

/// What came of an attempt to lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Ours,
    /// Its last holder removed the file: the lock is now another file of that name.
    Stale,
    /// By this process, as far as the file tells.
    Held(Option<u32>),
}

/// What a shim writes about itself into its lock.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) shim: ProcessId,
    boot: String,
}

impl EffectLock {
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        Ok(Self { file: options.open(&path)?, path })
    }

    /// One that is there already.
    pub(crate) fn existing(path: PathBuf) -> io::Result<Self> {
        Ok(Self { file: File::options().read(true).write(true).open(&path)?, path })
    }

    /// The same opening of the file, in the shim.
    pub(crate) fn inherited(file: OwnedFd, path: PathBuf) -> Self {
        Self { file: File::from(file), path }
    }

    /// Another descriptor of the same opening.
    pub(crate) fn share(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the lock, or says at once who has it.
    pub(crate) fn try_take(&self) -> io::Result<Taken> {
        match flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => self.check(),
            Err(Errno::WOULDBLOCK) => Ok(Taken::Held(self.holder())),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the lock, however long that takes.
    pub(crate) fn take(&self) -> io::Result<Taken> {
        loop {
            match flock(&self.file, FlockOperation::LockExclusive) {
                Ok(()) => return self.check(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn check(&self) -> io::Result<Taken> {
        Ok(if self.file.metadata()?.nlink() == 0 { Taken::Stale } else { Taken::Ours })
    }

    /// Says who holds it; only of use while this process does.
    pub(crate) fn sign(&self, effect: &str) -> io::Result<()> {
        let mut file = &self.file;
        file.set_len(0)?;
        file.rewind()?;
        let pid = std::process::id();
        let start = Process::own().map_or(0, |own| own.id.start);
        let boot = boot();
        write!(file, "pid {pid}\nstarted {start} clock ticks after boot {boot}\neffect {effect}\n")
    }

    /// What the last holder said of itself, if it was in this boot of the machine.
    pub(crate) fn record(&self) -> Option<Record> {
        let record = Record::parse(&self.text())?;
        (record.boot == boot()).then_some(record)
    }

    fn holder(&self) -> Option<u32> {
        Some(Record::parse(&self.text())?.shim.pid.cast_unsigned())
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut file = &self.file;
        let read = file.rewind().and_then(|()| file.take(4096).read_to_string(&mut text));
        read.map_or_else(|_| String::new(), |_| text)
    }

    /// Removes the file if the lock is ours; a file of that name that is not this one stays.
    pub(crate) fn remove(&self) -> io::Result<()> {
        if self.try_take()? == Taken::Ours {
            std::fs::remove_file(&self.path)?;
        }
        Ok(())
    }
}

impl Record {
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let pid = lines.next()?.strip_prefix("pid ")?.parse().ok()?;
        let started = lines.next()?.strip_prefix("started ")?;
        let (start, boot) = started.split_once(" clock ticks after boot ")?;
        let shim = ProcessId { pid, start: start.parse().ok()? };
        Some(Self { shim, boot: boot.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_openings() -> (tempfile::TempDir, EffectLock, EffectLock) {
        let folder = tempfile::tempdir().unwrap();
        let open = || EffectLock::open(folder.path().join("lock")).unwrap();
        let (first, second) = (open(), open());
        (folder, first, second)
    }

    #[test]
    fn the_lock_is_free_when_neither_shim_nor_daemon_holds_it() {
        let (_folder, daemon, other) = two_openings();
        let shim = EffectLock::inherited(daemon.share().unwrap(), daemon.path().to_owned());
        assert_eq!(shim.try_take().unwrap(), Taken::Ours);
        shim.sign("a/b").unwrap();
        let holder = Taken::Held(Some(std::process::id()));
        assert_eq!(other.try_take().unwrap(), holder);
        drop(shim);
        assert_eq!(other.try_take().unwrap(), holder, "the daemon holds it too");
        assert_eq!(daemon.record().unwrap().shim, Process::own().unwrap().id);
        drop(daemon);
        assert_eq!(other.try_take().unwrap(), Taken::Ours);
    }

    #[test]
    fn only_the_holder_removes_the_file_and_who_waited_for_it_is_told() {
        let (folder, first, second) = two_openings();
        assert_eq!(first.try_take().unwrap(), Taken::Ours);
        second.remove().unwrap();
        assert!(first.path().exists());
        first.remove().unwrap();
        assert!(!first.path().exists());
        drop(first);
        assert_eq!(second.take().unwrap(), Taken::Stale);
        let third = EffectLock::open(folder.path().join("lock")).unwrap();
        assert_eq!(third.try_take().unwrap(), Taken::Ours);
        second.remove().unwrap();
        assert!(third.path().exists(), "this is the new file");
    }

    #[test]
    fn a_record_of_another_boot_says_nothing() {
        let (_folder, lock, _) = two_openings();
        assert_eq!(lock.record(), None);
        lock.sign("a/b").unwrap();
        assert!(lock.record().is_some());
        std::fs::write(lock.path(), "pid 7\nstarted 9 clock ticks after boot another\n").unwrap();
        assert_eq!(lock.record(), None);
        assert_eq!(lock.holder(), Some(7));
        std::fs::write(lock.path(), "nonsense").unwrap();
        assert_eq!(lock.holder(), None);
    }
}
