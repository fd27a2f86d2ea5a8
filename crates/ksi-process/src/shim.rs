//! The shim: a small process between the daemon and a program, which ends the program's whole
//! tree when the daemon lets go or dies. One thread, no runtime, blocked unless something ends.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::process::{Pid, setsid};

use crate::command::new_process;
use crate::descriptors;
use crate::report::{Exit, Report};
use crate::tree::Tree;
use crate::wake::Wake;

/// What the daemon wants of a shim; it travels as the arguments of the hidden verb.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Orders {
    /// Number of the inherited descriptor.
    pub(crate) lifeline: RawFd,
    /// From the request to end until the kill.
    pub(crate) grace: Duration,
    pub(crate) program: OsString,
    pub(crate) args: Vec<OsString>,
}

impl Orders {
    pub(crate) fn into_args(self) -> Vec<OsString> {
        let grace = self.grace.as_millis().to_string();
        let lifeline = self.lifeline.to_string();
        let options = ["--lifeline", &lifeline, "--grace", &grace, "--"].map(OsString::from);
        options.into_iter().chain([self.program]).chain(self.args).collect()
    }

    fn parse(mut args: impl Iterator<Item = OsString>) -> Option<Self> {
        let (mut lifeline, mut grace) = (None, None);
        loop {
            let option = args.next()?;
            if option == "--" {
                break;
            }
            let value = args.next()?.into_string().ok()?;
            match option.to_str()? {
                "--lifeline" => lifeline = Some(value.parse().ok()?),
                "--grace" => grace = Some(Duration::from_millis(value.parse().ok()?)),
                _ => return None,
            }
        }
        let program = args.next()?;
        Some(Self { lifeline: lifeline?, grace: grace?, program, args: args.collect() })
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
    let wake = prepare().inspect_err(|error| report(&lifeline, Report::failed(error)))?;
    let program = start(orders).inspect_err(|error| report(&lifeline, Report::failed(error)))?;
    report(&lifeline, Report::Started);

    let mut tree = Tree::new(program);
    let watched = let_go().and_then(|()| watch(&mut tree, &wake, &mut lifeline));
    // Whatever went wrong while watching, the tree has to end.
    let ended = end(&mut tree, &wake, orders.grace).and(watched);
    if ended.is_err() {
        tree.kill();
    }
    ended?;
    let exit = tree.exit().ok_or_else(|| io::Error::other("the program's status was lost"))?;
    report(&lifeline, Report::Ended(exit));
    Ok(exit)
}

/// Makes this process the one that everything below it falls back to.
fn prepare() -> io::Result<Wake> {
    setsid()?;
    #[cfg(target_os = "linux")]
    {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        // For people who look at a list of processes.
        rustix::thread::set_name(c"ksi-shim")?;
    }
    descriptors::close_inherited()?;
    Wake::install()
}

fn start(orders: &Orders) -> io::Result<Pid> {
    // The allocator of this program does without; the program that is started may want them.
    let _ = rustix::thread::disable_transparent_huge_pages(false);
    let child = new_process(&orders.program).args(&orders.args).process_group(0).spawn()?;
    Ok(Pid::from_child(&child))
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
        let unknown = ["--lifeline", "7", "--grace", "5", "--loud", "1", "--", "prog"];
        assert_eq!(Orders::parse(words(&unknown).into_iter()), None);
    }
}
