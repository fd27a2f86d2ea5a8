//! What wakes a shim: a child's end, a signal to the shim, the lifeline. Never the clock alone.

use std::io::{self, PipeReader, Read};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::low_level::pipe;

/// Pipes into which the signal handlers write.
pub(crate) struct Wake {
    child: UnixStream,
    end: UnixStream,
}

impl Wake {
    /// From now on a child's end and a signal to this process make the pipes readable.
    pub(crate) fn install() -> io::Result<Self> {
        let (child, child_tx) = UnixStream::pair()?;
        let (end, end_tx) = UnixStream::pair()?;
        pipe::register(SIGCHLD, child_tx)?;
        for signal in [SIGTERM, SIGINT, SIGHUP, SIGQUIT] {
            pipe::register(signal, end_tx.try_clone()?)?;
        }
        child.set_nonblocking(true)?;
        Ok(Self { child, end })
    }

    /// Waits until a child ended (false) or the tree has to (true).
    pub(crate) fn child_or_end(&self, lifeline: &mut UnixStream) -> io::Result<bool> {
        let mut fds = [
            PollFd::new(&self.child, PollFlags::IN),
            PollFd::new(&self.end, PollFlags::IN),
            PollFd::new(&*lifeline, PollFlags::IN),
        ];
        wait(&mut fds, None)?;
        let [_, end, line] = fds.map(|fd| !fd.revents().is_empty());
        self.drain();
        Ok(end || (line && is_over(lifeline)))
    }

    /// Waits until `done` is closed (false) or this process is not wanted any more (true).
    pub(crate) fn done_or_end(
        &self,
        done: &PipeReader,
        lifeline: &mut UnixStream,
    ) -> io::Result<bool> {
        loop {
            let mut fds = [
                PollFd::new(done, PollFlags::HUP),
                PollFd::new(&self.end, PollFlags::IN),
                PollFd::new(&*lifeline, PollFlags::IN),
            ];
            wait(&mut fds, None)?;
            let [done, end, line] = fds.map(|fd| !fd.revents().is_empty());
            if end || (line && is_over(lifeline)) {
                return Ok(true);
            }
            if done {
                return Ok(false);
            }
        }
    }

    /// Waits until a child ended or the time is over.
    pub(crate) fn child(&self, timeout: Option<Duration>) -> io::Result<()> {
        wait(&mut [PollFd::new(&self.child, PollFlags::IN)], timeout)?;
        self.drain();
        Ok(())
    }

    fn drain(&self) {
        let mut buffer = [0; 64];
        while matches!((&self.child).read(&mut buffer), Ok(1..)) {}
    }
}

/// Whether the starter has let go already.
pub(crate) fn has_let_go(lifeline: &mut UnixStream) -> io::Result<bool> {
    let mut fds = [PollFd::new(&*lifeline, PollFlags::IN)];
    wait(&mut fds, Some(Duration::ZERO))?;
    let [line] = fds.map(|fd| !fd.revents().is_empty());
    Ok(line && is_over(lifeline))
}

/// An error says as clearly as the end of file that nobody holds the other end.
fn is_over(lifeline: &mut UnixStream) -> bool {
    !matches!(lifeline.read(&mut [0; 64]), Ok(1..))
}

/// A signal that interrupts the wait counts as a wake-up: its pipe is looked at next time.
pub(crate) fn wait(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<()> {
    let timeout = timeout.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
    match poll(fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
