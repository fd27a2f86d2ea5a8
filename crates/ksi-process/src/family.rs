//! The shims that live, and what falls to this process when one of them is killed.

#[cfg(not(target_os = "linux"))]
mod elsewhere;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(not(target_os = "linux"))]
pub(crate) use elsewhere::{Family, Over};
#[cfg(target_os = "linux")]
pub(crate) use linux::{Family, Over};
