//! File descriptors across `exec`.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// Lets the process that `command` starts inherit this descriptor, under its number; in no other
/// process is it ever without the close-on-exec mark. Ours closes with `command`.
pub(crate) fn hand_over(command: &mut std::process::Command, descriptor: OwnedFd) {
    // SAFETY: the closure runs in the forked child, where only async-signal-safe calls are
    // allowed: it makes one fcntl, allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || Ok(fcntl_setfd(&descriptor, FdFlags::empty())?));
    }
}

/// Takes a descriptor that the starting process handed over, and marks it close-on-exec.
pub(crate) fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a standard stream is not ours"));
    }
    // SAFETY: used for one fcntl only, which answers EBADF when nothing is open there.
    let flags = fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) })?;
    // What came through an exec cannot bear the mark; what bears it has an owner in this process.
    if flags.contains(FdFlags::CLOEXEC) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an inherited descriptor"));
    }
    // SAFETY: it is open and, being unmarked, not one of those that Rust code opened here; from
    // the next line on the mark keeps a second call from taking it again.
    let owned = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&owned, FdFlags::CLOEXEC)?;
    Ok(owned)
}

/// Closes all that the starting process left open for this one by mistake, so that neither this
/// process nor a program it starts keeps it open; what was taken before stays.
pub(crate) fn close_inherited() -> io::Result<()> {
    let folder = if cfg!(target_os = "linux") { "/proc/self/fd" } else { "/dev/fd" };
    for entry in std::fs::read_dir(folder)? {
        let number = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        // Refused are the standard streams and what has an owner here: both are to stay.
        drop(number.map(take_inherited));
    }
    Ok(())
}
