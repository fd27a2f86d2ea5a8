//! Who is at the other end of a Unix socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::process::RawPid;

use super::process::{Process, ProcessId};

/// The process at the other end of an accepted Unix socket, as it was when it connected.
#[derive(Debug)]
pub struct Peer {
    pub(crate) pid: RawPid,
    /// None when it was gone before it could be looked at.
    pub(crate) id: Option<ProcessId>,
    pub(crate) pidfd: Option<OwnedFd>,
    /// Its user.
    pub uid: u32,
}

impl Peer {
    /// Looks at the peer of a connected socket; call it right after accept.
    pub fn of(socket: impl AsFd) -> io::Result<Self> {
        let (pid, uid) = credentials(&socket)?;
        let pidfd = pidfd(&socket)?;
        let seen = Process::read(pid).map(|process| process.id);
        // Alive after it was read, it had its number all the time.
        let gone = pidfd.as_ref().is_some_and(ended);
        Ok(Self { pid, id: seen.filter(|_| pid > 0 && !gone), pidfd, uid })
    }

    /// Its process id, for people; 0 when it lives in another namespace.
    pub fn pid(&self) -> u32 {
        self.pid.cast_unsigned()
    }

    /// Whether it is still the process that connected.
    pub(crate) fn is_there(&self) -> bool {
        let same = self.id.is_some() && Process::read(self.pid).map(|now| now.id) == self.id;
        same && !self.pidfd.as_ref().is_some_and(ended)
    }
}

#[cfg(target_os = "linux")]
fn ended(pidfd: &OwnedFd) -> bool {
    super::process::has_ended(pidfd)
}

#[cfg(not(target_os = "linux"))]
fn ended(_pidfd: &OwnedFd) -> bool {
    false
}

/// Process and user as they were at connect; the process is 0 when its namespace is not ours.
#[cfg(target_os = "linux")]
fn credentials(socket: &impl AsFd) -> io::Result<(RawPid, u32)> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    option(socket, libc::SO_PEERCRED, &mut credentials)?;
    Ok((credentials.pid, credentials.uid))
}

#[cfg(not(target_os = "linux"))]
fn credentials(socket: &impl AsFd) -> io::Result<(RawPid, u32)> {
    let (mut uid, mut gid) = (0, 0);
    // SAFETY: both pointers are to values that live through the call.
    match unsafe { libc::getpeereid(socket.as_fd().as_raw_fd(), &mut uid, &mut gid) } {
        0 => Ok((0, uid)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The peer, held; None where the kernel cannot say, or the peer is gone already.
#[cfg(target_os = "linux")]
fn pidfd(socket: &impl AsFd) -> io::Result<Option<OwnedFd>> {
    let mut number: libc::c_int = -1;
    match option(socket, libc::SO_PEERPIDFD, &mut number) {
        // SAFETY: the kernel has just opened it for us, and nobody else knows of it.
        Ok(()) => Ok(Some(unsafe { OwnedFd::from_raw_fd(number) })),
        Err(error) if error.raw_os_error() == Some(libc::EMFILE) => Err(error),
        Err(_) => Ok(None),
    }
}

#[cfg(not(target_os = "linux"))]
fn pidfd(_socket: &impl AsFd) -> io::Result<Option<OwnedFd>> {
    Ok(None)
}

#[cfg(target_os = "linux")]
fn option<T: Copy>(socket: &impl AsFd, name: libc::c_int, value: &mut T) -> io::Result<()> {
    let socket = socket.as_fd().as_raw_fd();
    let mut length = size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_mut(value).cast();
    // SAFETY: the kernel writes at most `length` bytes, which is the value's size, and both
    // options are plain numbers, for which any bits are valid.
    match unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, name, value, &mut length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
