//! What the shim says on the lifeline: one line when the program runs, one when all is over.

use std::fmt;
use std::io;

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl Exit {
    /// Whether it returned 0.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }

    /// The exit code a shell would show: 128 + signal when a signal ended it.
    pub(crate) fn shell_code(self) -> u8 {
        let code = match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        };
        u8::try_from(code & 0xff).unwrap_or(u8::MAX)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// One line from the shim to the process that started it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    Started,
    /// Another process holds the effect's lock, by this number if that is not 0.
    Waiting(i32),
    /// The lock that it waited for is another file by now: open it again.
    Stale,
    /// The program could not be started, with the system's error number.
    Failed(i32),
    Ended(Exit),
}

impl Report {
    pub(crate) fn failed(error: &io::Error) -> Self {
        Self::Failed(error.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error()))
    }

    pub(crate) fn parse(line: &str) -> Option<Self> {
        if line == "started" {
            return Some(Self::Started);
        }
        if line == "stale" {
            return Some(Self::Stale);
        }
        let (word, number) = line.split_once(' ')?;
        let number = number.parse().ok()?;
        match word {
            "waiting" => Some(Self::Waiting(number)),
            "failed" => Some(Self::Failed(number)),
            "code" => Some(Self::Ended(Exit::Code(number))),
            "signal" => Some(Self::Ended(Exit::Signal(number))),
            _ => None,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started => write!(f, "started"),
            Self::Waiting(number) => write!(f, "waiting {number}"),
            Self::Stale => write!(f, "stale"),
            Self::Failed(number) => write!(f, "failed {number}"),
            Self::Ended(Exit::Code(code)) => write!(f, "code {code}"),
            Self::Ended(Exit::Signal(signal)) => write!(f, "signal {signal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_report_is_read_as_it_was_written() {
        let ends = [Exit::Code(0), Exit::Code(255), Exit::Signal(9)].map(Report::Ended);
        let others = [Report::Started, Report::Failed(2), Report::Waiting(7), Report::Stale];
        for report in others.into_iter().chain(ends) {
            assert_eq!(Report::parse(&report.to_string()), Some(report));
        }
    }

    #[test]
    fn a_line_that_is_no_report_is_refused() {
        for line in ["", "started 1", "code", "code x", "died 3"] {
            assert_eq!(Report::parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn a_shell_sees_a_signal_as_128_and_more() {
        assert_eq!(Exit::Code(7).shell_code(), 7);
        assert_eq!(Exit::Signal(15).shell_code(), 143);
    }
}
