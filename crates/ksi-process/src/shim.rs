//! The shim: a small process between the daemon and a program, which ends the program's whole
//! tree when the daemon lets go or dies. One thread, no runtime, blocked unless something ends.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::process::{Pid, setsid};

use crate::command::new_process;
use crate::effect_lock::{EffectLock, Taken};
use crate::limits::Limits;
use crate::os::wake::{self, Wake};
use crate::os::{cgroup, descriptors, limits, process};
use crate::report::{Exit, Report};
use crate::tree::Tree;

/// What the daemon wants of a shim; it travels as the arguments of the hidden verb.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Orders {
    /// Number of the inherited descriptor.
    pub(crate) lifeline: RawFd,
    /// From the request to end until the kill.
    pub(crate) grace: Duration,
    pub(crate) limits: Limits,
    pub(crate) lock: Option<LockOrder>,
    /// The group for the program, removed afterwards.
    pub(crate) cgroup: Option<PathBuf>,
    /// Number of the inherited descriptor that is the program's to read.
    pub(crate) token: Option<RawFd>,
    pub(crate) program: OsString,
    pub(crate) args: Vec<OsString>,
}

/// The lock to take before the program starts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LockOrder {
    /// Number of the inherited descriptor.
    pub(crate) file: RawFd,
    pub(crate) path: PathBuf,
    /// For people: what the lock is for.
    pub(crate) effect: String,
}

impl Orders {
    pub(crate) fn into_args(self) -> Vec<OsString> {
        let number = |number: RawFd| OsString::from(number.to_string());
        let grace = self.grace.as_millis().to_string().into();
        let mut args = vec!["--lifeline".into(), number(self.lifeline), "--grace".into(), grace];
        args.extend(self.limits.into_args());
        if let Some(LockOrder { file, path, effect }) = self.lock {
            let lock = ["--lock".into(), number(file), "--lock-path".into(), path.into()];
            args.extend(lock.into_iter().chain(["--effect".into(), effect.into()]));
        }
        args.extend(self.cgroup.into_iter().flat_map(|group| ["--cgroup".into(), group.into()]));
        args.extend(self.token.into_iter().flat_map(|token| ["--token".into(), number(token)]));
        args.extend(["--".into(), self.program]);
        args.into_iter().chain(self.args).collect()
    }

    fn parse(mut args: impl Iterator<Item = OsString>) -> Option<Self> {
        let (mut lifeline, mut grace, mut cgroup, mut token) = (None, None, None, None);
        let (mut lock, mut path, mut effect) = (None, None, None);
        let mut limits = Limits::default();
        loop {
            let option = args.next()?;
            if option == "--" {
                break;
            }
            let value = args.next()?;
            let text = || value.to_str();
            match option.to_str()? {
                "--lifeline" => lifeline = Some(text()?.parse().ok()?),
                "--grace" => grace = Some(Duration::from_millis(text()?.parse().ok()?)),
                "--lock" => lock = Some(text()?.parse().ok()?),
                "--lock-path" => path = Some(PathBuf::from(value)),
                "--effect" => effect = Some(text()?.to_owned()),
                "--token" => token = Some(text()?.parse().ok()?),
                "--cgroup" => cgroup = Some(PathBuf::from(value)),
                other => limits.parse(other, text()?)?,
            }
        }
        let (lifeline, grace) = (lifeline?, grace?);
        let lock = match lock {
            Some(file) => Some(LockOrder { file, path: path?, effect: effect? }),
            None => None,
        };
        let program = args.next()?;
        let args = args.collect();
        Some(Self { lifeline, grace, limits, lock, cgroup, token, program, args })
    }
}

/// The hidden verb: runs the program to its end or the lifeline's, and passes its status on.
pub(crate) fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(orders) = Orders::parse(args) else {
        let _ = writeln!(io::stderr(), "error: this verb is for ksi itself to use");
        return ExitCode::from(2);
    };
    match supervise(&orders) {
        Ok(exit) => ExitCode::from(exit.shell_code()),
        Err(error) => {
            // The streams may be gone by now, and the daemon was told on the lifeline.
            let _ = writeln!(io::stderr(), "error: {}: {error}", orders.program.display());
            ExitCode::from(127)
        }
    }
}

fn supervise(orders: &Orders) -> io::Result<Exit> {
    let mut lifeline = UnixStream::from(descriptors::take_inherited(orders.lifeline)?);
    let started = begin(orders, &mut lifeline);
    let (wake, lock, program) = match started {
        Ok(started) => started,
        Err(error) => {
            report(&lifeline, error.report());
            return Err(error.into());
        }
    };
    report(&lifeline, Report::Started);

    let mut tree = Tree::new(program);
    let watched = let_go().and_then(|()| watch(&mut tree, &wake, &mut lifeline));
    // Whatever went wrong while watching, the tree has to end.
    let ended = end(&mut tree, &wake, orders.grace).and(watched);
    if ended.is_err() {
        tree.kill();
    }
    ended?;
    // Nothing is left: the next attempt need not look for anything.
    if let Some(group) = &orders.cgroup {
        cgroup::remove(group);
    }
    if let Some(lock) = lock {
        lock.remove()?;
    }
    let exit = tree.exit().ok_or_else(|| io::Error::other("the program's status was lost"))?;
    report(&lifeline, Report::Ended(exit));
    Ok(exit)
}

/// Why no program was started.
#[derive(Debug, thiserror::Error)]
enum Unstarted {
    #[error("the lock is another file by now")]
    Stale,
    #[error("nobody wants it any more")]
    Unwanted,
    #[error(transparent)]
    Failed(#[from] io::Error),
}

impl Unstarted {
    fn report(&self) -> Report {
        match self {
            Self::Stale => Report::Stale,
            Self::Unwanted => Report::Failed(rustix::io::Errno::CANCELED.raw_os_error()),
            Self::Failed(error) => Report::failed(error),
        }
    }
}

impl From<Unstarted> for io::Error {
    fn from(error: Unstarted) -> Self {
        match error {
            Unstarted::Failed(error) => error,
            other => Self::other(other),
        }
    }
}

/// Takes the lock, then starts the program.
fn begin(
    orders: &Orders,
    lifeline: &mut UnixStream,
) -> Result<(Wake, Option<EffectLock>, Pid), Unstarted> {
    let inherited = |order: &LockOrder| -> io::Result<EffectLock> {
        let file = descriptors::take_inherited(order.file)?;
        Ok(EffectLock::inherited(file, order.path.clone()))
    };
    let lock = orders.lock.as_ref().map(inherited).transpose()?;
    let token = orders.token.map(descriptors::take_inherited).transpose()?;
    let wake = prepare()?;
    if let (Some(lock), Some(order)) = (&lock, &orders.lock) {
        take(lock, &wake, lifeline)?;
        lock.sign(&order.effect)?;
    }
    // A daemon that was killed meanwhile has a successor, which will start it itself.
    if wake::has_let_go(lifeline)? {
        return Err(Unstarted::Unwanted);
    }
    let program = start(orders, token)?;
    Ok((wake, lock, program))
}

/// Takes the lock of the effect, or waits until it has it or is not wanted any more.
fn take(lock: &EffectLock, wake: &Wake, lifeline: &mut UnixStream) -> Result<(), Unstarted> {
    let taken = match lock.try_take()? {
        Taken::Held(holder) => {
            report(lifeline, Report::Waiting(holder.unwrap_or_default().cast_signed()));
            wait_for(lock, wake, lifeline)?
        }
        taken => taken,
    };
    if taken == Taken::Stale { Err(Unstarted::Stale) } else { Ok(()) }
}

/// Nothing but its holder can end the wait for a lock. So a thread waits, and when this process
/// is not wanted any more, the thread ends with it.
fn wait_for(lock: &EffectLock, wake: &Wake, lifeline: &mut UnixStream) -> Result<Taken, Unstarted> {
    let (done, doing) = io::pipe()?;
    let file = EffectLock::inherited(lock.share()?, lock.path().to_owned());
    let thread = std::thread::spawn(move || {
        let _doing = doing;
        file.take()
    });
    if wake.done_or_end(&done, lifeline)? {
        return Err(Unstarted::Unwanted);
    }
    let panicked = |_| io::Error::other("waiting for the lock failed");
    Ok(thread.join().map_err(panicked)??)
}

/// Makes this process the one that everything below it falls back to.
fn prepare() -> io::Result<Wake> {
    setsid()?;
    process::become_subreaper()?;
    // For people who look at a list of processes.
    #[cfg(target_os = "linux")]
    rustix::thread::set_name(c"ksi-shim")?;
    descriptors::close_inherited()?;
    Wake::install()
}

fn start(orders: &Orders, token: Option<OwnedFd>) -> io::Result<Pid> {
    // The allocator of this program does without; the program that is started may want them.
    let _ = rustix::thread::disable_transparent_huge_pages(false);
    let mut command = new_process(&orders.program);
    command.args(&orders.args).process_group(0);
    let members = orders.cgroup.as_deref().map(cgroup::members).transpose()?;
    limits::apply(&mut command, orders.limits, members);
    token.into_iter().for_each(|token| descriptors::hand_over(&mut command, token));
    Ok(Pid::from_child(&command.spawn()?))
}

/// Leaves folder and streams to the program alone: a copy here would hide that it closed its own.
fn let_go() -> io::Result<()> {
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    rustix::stdio::dup2_stderr(&nothing)?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Nobody listens when the daemon is gone; what is to be done does not change.
fn report(mut lifeline: &UnixStream, report: Report) {
    let _ = writeln!(lifeline, "{report}");
}

/// Returns when the program ended or the tree has to.
fn watch(tree: &mut Tree, wake: &Wake, lifeline: &mut UnixStream) -> io::Result<()> {
    loop {
        tree.reap()?;
        if tree.exit().is_some() || wake.child_or_end(lifeline)? {
            return Ok(());
        }
    }
}

/// Returns when nothing is left.
fn end(tree: &mut Tree, wake: &Wake, grace: Duration) -> io::Result<()> {
    if !tree.reap()? {
        // Without a subreaper what the program left behind is not ours to wait for.
        if cfg!(not(target_os = "linux")) {
            tree.kill();
        }
        return Ok(());
    }
    tree.terminate();
    let begun = Instant::now();
    while let Some(left) = grace.checked_sub(begun.elapsed()) {
        wake.child(Some(left))?;
        if !tree.reap()? {
            return Ok(());
        }
    }
    // Every death below wakes us, and what it orphaned is then in sight.
    loop {
        tree.kill();
        wake.child(None)?;
        if !tree.reap()? {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn orders_survive_the_journey_through_the_arguments() {
        let orders = || Orders {
            lifeline: 7,
            grace: Duration::from_millis(1500),
            limits: Limits { memory: Some(1), processes: Some(9), ..Limits::default() },
            lock: Some(LockOrder { file: 8, path: "/x y".into(), effect: "work/--".into() }),
            cgroup: Some("/sys/fs/cgroup/x".into()),
            token: Some(9),
            program: "prog".into(),
            args: words(&["--grace", "--", "x y"]),
        };
        assert_eq!(Orders::parse(orders().into_args().into_iter()), Some(orders()));
    }

    #[test]
    fn incomplete_orders_are_refused() {
        let whole = ["--lifeline", "7", "--grace", "5", "--", "prog"];
        assert!(Orders::parse(words(&whole).into_iter()).is_some());
        for end in 0..whole.len() {
            assert_eq!(Orders::parse(words(&whole[..end]).into_iter()), None, "{end} words");
        }
        for wrong in [["--loud", "1"], ["--files", "many"], ["--lock", "8"]] {
            let mut wrong = words(&wrong);
            wrong.extend(words(&whole));
            assert_eq!(Orders::parse(wrong.into_iter()), None);
        }
    }
}
