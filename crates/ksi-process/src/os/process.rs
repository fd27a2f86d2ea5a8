//! Processes: what they are, whose children, and how to signal them for sure.

#[cfg(not(target_os = "linux"))]
mod elsewhere;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(not(target_os = "linux"))]
pub(crate) use elsewhere::{Process, become_subreaper, boot, signal_outside};
#[cfg(target_os = "linux")]
pub(crate) use linux::{
    Process, above, all, become_subreaper, below, boot, has_ended, reap, signal_outside,
};

#[cfg(not(target_os = "linux"))]
pub use elsewhere::ProcessId;
#[cfg(target_os = "linux")]
pub use linux::ProcessId;
