//! Processes found by a marker in their environment: whatever they did to their group, session
//! or parent, that stays.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::PATIENCE;

/// Processes that bear the marker now.
pub(crate) struct Marked {
    marker: String,
    found: Vec<OwnedFd>,
}

impl Marked {
    pub(crate) fn find(marker: &str) -> Self {
        let marker = format!("KSI_TEST_MARKER={marker}");
        Self { found: find(&marker), marker }
    }

    pub(crate) fn count(&self) -> usize {
        self.found.len()
    }

    /// Waits for the end of each, and makes sure that nobody came after them.
    pub(crate) fn wait_until_gone(self) {
        self.found.iter().for_each(wait_for_end);
        assert_eq!(find(&self.marker).len(), 0, "a process came after the others");
    }
}

pub(crate) fn wait_for_end(pidfd: &OwnedFd) {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let ended = poll(&mut fds, Some(&Timespec::try_from(PATIENCE).unwrap())).unwrap();
    assert_eq!(ended, 1, "a process outlived its daemon");
}

fn find(marker: &str) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(pid) = number.and_then(Pid::from_raw) else { continue };
        // Opened first, read then: what is read belongs to the process that is held.
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        let Ok(environment) = std::fs::read(entry.path().join("environ")) else { continue };
        if environment.split(|byte| *byte == 0).any(|variable| variable == marker.as_bytes()) {
            found.push(pidfd);
        }
    }
    found
}
