//! One thread, blocked unless a shim ends. This process is a subreaper: whatever loses its shim
//! becomes its child, whatever it did to its session, group or environment. So a child of this
//! process that is no shim is an orphan, and is ended with all below it. Others can fall to this
//! process only if it is the first of a container, or was a shell with jobs before: then an
//! orphan is ended if it shows that it is a child's.

use std::collections::{HashMap, HashSet};
use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{RawPid, Signal, getpid};
use tokio::sync::oneshot;

use crate::effect_lock::EffectLock;
use crate::identity::Identity;
use crate::os::cgroup;
use crate::os::ends::Ends;
use crate::os::process::{self, Process, ProcessId};

/// The shims of this process.
#[derive(Debug)]
pub(crate) struct Family {
    kin: Arc<Kin>,
    /// Its end ends the thread.
    _alive: PipeWriter,
}

#[derive(Debug)]
struct Kin {
    /// Whoever makes a process holds this until the process is in here.
    shims: Mutex<HashMap<ProcessId, Shim>>,
    ends: Ends,
    /// How the mark of a child begins.
    mark: Vec<u8>,
    /// Whether others than children of ours may fall to this process.
    strangers: bool,
}

#[derive(Debug)]
struct Shim {
    /// Open, it is among the `ends`.
    _pidfd: OwnedFd,
    /// None once nothing of its tree is left: who waits for it must not wait for the shim's entry,
    /// which stays until somebody has waited for the shim.
    lock: Option<EffectLock>,
    /// Its cgroup.
    leaf: Option<PathBuf>,
    identity: Arc<Identity>,
    /// Dropped when nothing of its tree is left.
    over: Option<oneshot::Sender<()>>,
    ended: bool,
}

/// The end of a tree: of the shim, and of what was left if it was killed.
pub(crate) type Over = oneshot::Receiver<()>;

/// No process has this number.
const END: RawPid = 0;

impl Family {
    /// Makes this process the one that orphans fall to, and starts the thread that ends them.
    pub(crate) fn start(mark: Vec<u8>) -> io::Result<Arc<Self>> {
        let own = getpid();
        let strangers =
            own.is_init() || process::all().iter().any(|p| p.parent == own.as_raw_pid());
        process::become_subreaper()?;
        let (end, alive) = io::pipe()?;
        let kin = Kin { shims: Mutex::default(), ends: Ends::new()?, mark, strangers };
        let kin = Arc::new(kin);
        kin.ends.add(&end, END)?;
        let watching = kin.clone();
        std::thread::Builder::new().name("ksi-orphans".into()).spawn(move || {
            let _end = end;
            if let Err(error) = watching.watch() {
                tracing::error!(%error, "what a killed shim leaves is not ended any more");
            }
        })?;
        Ok(Arc::new(Self { kin, _alive: alive }))
    }

    /// Makes a shim: nobody is an orphan between its start and its entry here.
    pub(crate) fn add<C>(
        &self,
        lock: EffectLock,
        leaf: Option<PathBuf>,
        identity: Identity,
        make: impl FnOnce() -> io::Result<(RawPid, C)>,
    ) -> io::Result<(ProcessId, C, Over)> {
        let mut shims = self.kin.shims();
        let (pid, child) = make()?;
        // Nobody has waited for it yet, so the number is still its own, dead or alive.
        let gone = || io::Error::other("the shim was gone at once");
        let id = Process::read(pid).ok_or_else(gone)?.id;
        let pidfd = id.hold()?.ok_or_else(gone)?;
        self.kin.ends.add(&pidfd, pid)?;
        let (over, wait) = oneshot::channel();
        let (lock, identity, over) = (Some(lock), Arc::new(identity), Some(over));
        let shim = Shim { _pidfd: pidfd, lock, leaf, identity, over, ended: false };
        shims.insert(id, shim);
        Ok((id, child, wait))
    }

    /// Whether this is a shim of ours that lives.
    pub(crate) fn is_live(&self, id: ProcessId) -> bool {
        self.identity(id).is_some()
    }

    /// Whom the children of this shim speak for, if it lives.
    pub(crate) fn identity(&self, id: ProcessId) -> Option<Arc<Identity>> {
        let shims = self.kin.shims();
        shims.get(&id).filter(|shim| !shim.ended).map(|shim| shim.identity.clone())
    }
}

impl Kin {
    fn shims(&self) -> MutexGuard<'_, HashMap<ProcessId, Shim>> {
        // A panic under this lock has changed nothing.
        self.shims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when nobody can start another shim.
    fn watch(&self) -> io::Result<()> {
        let mut refused = HashSet::new();
        loop {
            let ended = self.ends.wait()?;
            if ended.contains(&END) {
                return Ok(());
            }
            for (id, shim) in self.shims().iter_mut() {
                shim.ended |= ended.contains(&id.pid);
            }
            while self.end_orphans(&mut refused) {}
            self.tell();
        }
    }

    /// Ends the orphans that are there and all below them; false if there was none. What they
    /// left while they ended falls to us in turn, so ask again until then.
    fn end_orphans(&self, refused: &mut HashSet<ProcessId>) -> bool {
        let all = process::all();
        let own = getpid().as_raw_pid();
        // Looked at behind the list: a shim in the list is in here by now.
        let shims: HashSet<_> = self.shims().keys().copied().collect();
        let fallen = all.iter().filter(|one| one.parent == own && !shims.contains(&one.id));
        let ours = fallen.filter(|one| !self.strangers || self.is_a_childs(one, &shims));
        let orphans: Vec<_> = ours.filter(|one| !refused.contains(&one.id)).collect();
        for orphan in &orphans {
            if let Err(error) = orphan.signal(Signal::KILL) {
                tracing::error!(pid = orphan.id.pid, %error, "what a killed shim left goes on");
                refused.insert(orphan.id);
            }
            for below in process::below(orphan.id.pid, &all) {
                // What cannot be ended now falls to us next, and is named then.
                let _ = below.signal(Signal::KILL);
            }
        }
        for orphan in &orphans {
            if refused.contains(&orphan.id) {
                continue;
            }
            // Its number is its own until this, because nobody else waits for it.
            if let Err(error) = process::reap(orphan.id.pid) {
                tracing::error!(pid = orphan.id.pid, %error, "an orphan's end was not seen");
                refused.insert(orphan.id);
            }
        }
        !orphans.is_empty()
    }

    /// Whether an orphan bears the mark, took off its environment, or is in a shim's session; one
    /// that has ended is to be forgotten, whosever it was.
    fn is_a_childs(&self, orphan: &Process, shims: &HashSet<ProcessId>) -> bool {
        let of_session = shims.iter().any(|shim| shim.pid == orphan.session);
        orphan.zombie || of_session || orphan.has_variable(&self.mark) || orphan.is_bare()
    }

    /// Tells those who wait that nothing is left of the shims that ended.
    fn tell(&self) {
        let mut shims = self.shims();
        for (id, shim) in shims.iter_mut().filter(|(_, shim)| shim.ended) {
            let Some(over) = shim.over.take() else { continue };
            if let Some(Err(error)) = shim.lock.take().map(|lock| lock.remove()) {
                tracing::warn!(pid = id.pid, %error, "the lock of an effect stays behind");
            }
            if let Some(leaf) = &shim.leaf {
                cgroup::remove(leaf);
            }
            drop(over);
        }
        // One that nobody has waited for yet is still a child of ours, though it ended.
        shims.retain(|id, shim| !shim.ended || Process::read(id.pid).is_some_and(|p| p.id == *id));
    }
}
