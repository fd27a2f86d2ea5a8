//! Waiting for the ends of many processes at once.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::process::RawPid;

/// A set of things whose end wakes one thread, which is otherwise blocked.
#[derive(Debug)]
pub(crate) struct Ends(OwnedFd);

impl Ends {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// From now on the end of this process, or of this pipe, wakes the thread, once; also while
    /// it waits already. Closing the descriptor takes it out.
    pub(crate) fn add(&self, what: impl AsFd, key: RawPid) -> io::Result<()> {
        let key = epoll::EventData::new_u64(u64::from(key.cast_unsigned()));
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
        Ok(epoll::add(&self.0, what, key, flags)?)
    }

    /// Waits until at least one of them ended.
    pub(crate) fn wait(&self) -> io::Result<Vec<RawPid>> {
        let mut events = Vec::with_capacity(64);
        loop {
            match epoll::wait(&self.0, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let keys = events.iter().map(|event| event.data.u64());
        Ok(keys.filter_map(|key| Some(u32::try_from(key).ok()?.cast_signed())).collect())
    }
}
