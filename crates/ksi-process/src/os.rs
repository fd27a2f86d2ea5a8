//! The one module that speaks to the operating system: processes, descriptors, limits, cgroups,
//! peers. Where Linux has a means that others lack, the others do what they can, which is said in
//! [`crate::enforcement`].
#![allow(
    unsafe_code,
    reason = "what crosses an exec, and one socket option, have no safe interface"
)]

pub(crate) mod cgroup;
pub(crate) mod descriptors;
#[cfg(target_os = "linux")]
pub(crate) mod ends;
pub(crate) mod filesystem;
pub(crate) mod limits;
pub(crate) mod peer;
pub(crate) mod process;
pub(crate) mod unread;
pub(crate) mod wake;
pub(crate) mod watch;
