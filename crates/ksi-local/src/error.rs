use std::io;
use std::path::PathBuf;

/// Why the local model cannot run, or cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model file cannot be opened.
    #[error("cannot open the model file {}", path.display())]
    Open {
        /// The file as it was named.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is there and is not a model that this crate can run.
    #[error(
        "{} is not a model that can run here: {reason}; fetch it again with `ksi model pull`, or name another file with `--model local:/path.gguf`",
        path.display()
    )]
    Unusable {
        /// The file as it was named.
        path: PathBuf,
        /// What is wrong with its content.
        reason: String,
    },
    /// Requests cannot be read any more.
    #[error("cannot read requests")]
    Input(#[source] io::Error),
    /// Events cannot be written any more, so nobody hears the answers.
    #[error("cannot write events")]
    Output(#[source] io::Error),
}

impl Error {
    /// The stable name of this error on the wire.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Open { .. } => "model_not_found",
            Self::Unusable { .. } => "model_unusable",
            Self::Input(_) | Self::Output(_) => "pipe_broken",
        }
    }
}

/// What is wrong with the content of a model file; its path is added where it is known.
#[derive(Debug)]
pub(crate) struct Flaw(pub(crate) String);

impl From<io::Error> for Flaw {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Self("it ends too early".to_owned());
        }
        Self(format!("it cannot be read: {error}"))
    }
}

impl From<candle_core::Error> for Flaw {
    fn from(error: candle_core::Error) -> Self {
        Self(format!("its weights do not fit together: {error}"))
    }
}

/// Why one request has no answer; the loop goes on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the request is not usable: {0}")]
    BadRequest(String),
    #[error(
        "the prompt is too long for this model: with its instructions it takes {needed} tokens, and {room} fit beside the answer"
    )]
    TooLong { needed: usize, room: usize },
    #[error("the model failed to compute: {0}")]
    Compute(#[from] candle_core::Error),
    #[error("the model gave no usable score for any token; its file may be damaged")]
    NoScores,
}

impl Refusal {
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "bad_request",
            Self::TooLong { .. } => "too_long",
            Self::Compute(_) | Self::NoScores => "compute_failed",
        }
    }
}
