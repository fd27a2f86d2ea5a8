use serde::{Deserialize, Serialize};

use crate::did_you_mean;

/// What kind of failure this is; stable on the wire, and what programs should branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Code {
    /// No plugin answers this event.
    Unhandled,
    /// The line is not a JSON object, or not UTF-8.
    BadJson,
    /// `data` does not have the shape that the event wants.
    BadParams,
    /// The line is longer than the limit.
    TooLarge,
    /// The caller may not do this.
    Forbidden,
    /// The caller cannot be told apart from others.
    Unauthenticated,
    /// The request contradicts what is there.
    Conflict,
    /// What was asked for is not there.
    NotFound,
    /// Something is in use, or a queue is full.
    Busy,
    /// A deadline passed.
    Timeout,
    /// Somebody asked for the end of this.
    Cancelled,
    /// A budget does not allow it.
    BudgetExceeded,
    /// A provider or a limit asks to slow down.
    RateLimited,
    /// A provider failed.
    ProviderError,
    /// Not possible at the moment; the outcome may be unknown.
    Unavailable,
    /// The daemon is shutting down.
    Shutdown,
    /// A handler panicked.
    Panicked,
    /// A defect of KSI itself; also what a code means that this version does not know.
    #[serde(other)]
    Internal,
}

impl Code {
    /// Whether the same request may succeed later without being changed.
    pub fn retryable(self) -> bool {
        use Code::*;
        matches!(self, Busy | Timeout | RateLimited | Unavailable | Shutdown)
    }
}

/// A failed request: what failed and why, what to try, and whether to try again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What kind of failure.
    pub code: Code,
    /// What failed and why, for a person.
    pub message: String,
    /// What to try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Where in `data` the fault lies, as `a.b[2].c`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Whether the same request may succeed later.
    #[serde(default)]
    pub retryable: bool,
}

/// The result of a request.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of this kind, retryable as its code says.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let retryable = code.retryable();
        Self { code, message: message.into(), hint: None, path: None, retryable }
    }

    /// Adds what to try.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds where in `data` the fault lies.
    pub fn at(mut self, path: impl Into<String>) -> Self {
        self.path = Some(path.into());
        self
    }

    /// Says that trying again cannot help, or can.
    pub fn retryable(mut self, retryable: bool) -> Self {
        self.retryable = retryable;
        self
    }

    /// [`Code::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }

    /// [`Code::Conflict`].
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(Code::Conflict, message)
    }

    /// [`Code::BadParams`].
    pub fn bad_params(message: impl Into<String>) -> Self {
        Self::new(Code::BadParams, message)
    }

    /// [`Code::Unavailable`].
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    /// [`Code::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// [`Code::Shutdown`].
    pub fn shutdown() -> Self {
        Self::new(Code::Shutdown, "the daemon is shutting down")
            .hint("try again in a moment; commands start it when it is not there")
    }

    /// [`Code::Unhandled`]; the hint is the answered event that was meant, or who could hear it.
    pub fn unhandled<'a>(event: &str, answered: impl Iterator<Item = &'a str>) -> Self {
        let error = Self::new(Code::Unhandled, format!("no plugin answers `{event}`"));
        let answered: Vec<_> = answered.collect();
        if let Some(known) = did_you_mean(event, answered.iter().copied()) {
            return error.hint(format!("did you mean `{known}`?"));
        }
        let namespace = event.split_inclusive(':').next().unwrap_or_default();
        if answered.iter().any(|known| known.starts_with(namespace)) {
            return error.hint("`ksi discover` lists what is answered");
        }
        error.hint(format!(
            "nobody listens for it: as a signal it needs a listener on exactly `{event}` or on \
             `{namespace}*`, such as `ksi listen '{namespace}*'`; `ksi discover` lists what is answered"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_goes_over_the_wire_and_back() {
        let error = Error::bad_params("`to` is missing").at("message.to").hint("name an agent");
        let json = serde_json::to_string(&error).unwrap();
        assert_eq!(
            json,
            r#"{"code":"bad_params","message":"`to` is missing","hint":"name an agent","path":"message.to","retryable":false}"#
        );
        assert_eq!(serde_json::from_str::<Error>(&json).unwrap(), error);
    }

    #[test]
    fn hint_and_path_are_left_out_when_there_are_none() {
        let json = serde_json::to_string(&Error::unavailable("not now")).unwrap();
        assert_eq!(json, r#"{"code":"unavailable","message":"not now","retryable":true}"#);
    }

    #[test]
    fn an_error_says_itself_whether_to_try_again() {
        assert!(Error::new(Code::Busy, "full").retryable);
        assert!(!Error::conflict("there is one").retryable);
        assert!(!Error::unavailable("outcome unknown").retryable(false).retryable);
    }

    #[test]
    fn an_event_that_nobody_answers_is_explained_by_what_was_meant_or_what_would_hear_it() {
        let hint = |event| Error::unhandled(event, ["state:set", "state:get"].into_iter()).hint;
        assert_eq!(hint("state:sett").unwrap(), "did you mean `state:set`?");
        assert_eq!(hint("state:elsewhere").unwrap(), "`ksi discover` lists what is answered");
        let signal = hint("shop:opened").unwrap();
        assert!(signal.contains("exactly `shop:opened` or on `shop:*`"), "{signal}");
        assert!(signal.contains("`ksi listen 'shop:*'`"), "{signal}");
    }

    #[test]
    fn every_code_keeps_its_name() {
        use Code::*;
        let codes = [
            Unhandled,
            BadJson,
            BadParams,
            TooLarge,
            Forbidden,
            Unauthenticated,
            Conflict,
            NotFound,
            Busy,
            Timeout,
            Cancelled,
            BudgetExceeded,
            RateLimited,
            ProviderError,
            Unavailable,
            Shutdown,
            Panicked,
            Internal,
        ];
        let names = "unhandled bad_json bad_params too_large forbidden unauthenticated conflict \
                     not_found busy timeout cancelled budget_exceeded rate_limited provider_error \
                     unavailable shutdown panicked internal";
        assert_eq!(codes.len(), names.split(' ').count());
        for (code, name) in codes.into_iter().zip(names.split(' ')) {
            let json = format!("\"{name}\"");
            assert_eq!(serde_json::to_string(&code).unwrap(), json);
            assert_eq!(serde_json::from_str::<Code>(&json).unwrap(), code);
        }
    }

    #[test]
    fn a_code_of_a_newer_daemon_reads_as_internal() {
        assert_eq!(serde_json::from_str::<Code>(r#""moonphase""#).unwrap(), Code::Internal);
    }
}
