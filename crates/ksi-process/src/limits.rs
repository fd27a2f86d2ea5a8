//! What a child may use.

use std::ffi::OsString;

/// What a child may use of the machine; what is not named is not limited.
///
/// Without a cgroup of our own each limit binds every process of the child for itself, not all of
/// them together; [`crate::enforcement`] says which it is here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes. Per process: private memory that it may write to, used or not, and so also 8 MiB
    /// for each thread's stack; asking for more fails. In a cgroup: what all of them really use;
    /// past it one of them is killed.
    pub memory: Option<u64>,
    /// Seconds of processor time, per process, its children not counted: SIGXCPU at the limit,
    /// SIGKILL 5 s of processor time later.
    pub cpu_seconds: Option<u64>,
    /// Descriptors open at once, per process; opening more fails.
    pub files: Option<u64>,
    /// Processes and threads; starting more fails. Without a cgroup the system counts *all* of
    /// this user's on the machine, not only the child's, and does not bind root.
    pub processes: Option<u64>,
}

/// The limits by the names of the shim's options.
const OPTIONS: [&str; 4] = ["--memory", "--cpu-seconds", "--files", "--processes"];

impl Limits {
    fn fields(&mut self) -> [&mut Option<u64>; 4] {
        [&mut self.memory, &mut self.cpu_seconds, &mut self.files, &mut self.processes]
    }

    pub(crate) fn into_args(mut self) -> Vec<OsString> {
        let set = OPTIONS.into_iter().zip(self.fields().map(|field| *field));
        let set =
            set.filter_map(|(option, limit)| Some([option.into(), limit?.to_string().into()]));
        set.flatten().collect()
    }

    /// Takes one of the shim's options; None if it is none of ours, or no number.
    pub(crate) fn parse(&mut self, option: &str, value: &str) -> Option<()> {
        let index = OPTIONS.iter().position(|ours| *ours == option)?;
        *self.fields()[index] = Some(value.parse().ok()?);
        Some(())
    }
}
