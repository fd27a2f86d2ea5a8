//! What a child sees of our environment: little, unless asked.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

/// Variables that every child inherits; a trailing `*` stands for any end.
const ALWAYS: &[&str] = &[
    "PATH",
    "HOME",
    "LANG",
    "LC_*",
    "TZ",
    "TMPDIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
];

/// The environment of a child: a short list of inherited variables plus those set by hand.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    inherited: Vec<String>,
    set: BTreeMap<OsString, OsString>,
}

impl Environment {
    /// Only what every child inherits: paths, locale, time zone, proxies and certificates.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets these variables through too; `PIP_*` means all that begin with `PIP_`, `*` all.
    #[must_use]
    pub fn inherit<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.inherited.extend(names.into_iter().map(Into::into));
        self
    }

    /// Sets one variable, over an inherited one of that name.
    #[must_use]
    pub fn set(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.set.insert(name.into(), value.into());
        self
    }

    /// What the child gets, given what we have.
    pub(crate) fn of(
        &self,
        ours: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> BTreeMap<OsString, OsString> {
        let mut variables: BTreeMap<_, _> =
            ours.into_iter().filter(|(name, _)| self.inherits(name)).collect();
        variables.extend(self.set.clone());
        variables
    }

    fn inherits(&self, name: &OsStr) -> bool {
        let asked = self.inherited.iter().map(String::as_str);
        ALWAYS.iter().copied().chain(asked).any(|pattern| matches(pattern, name))
    }
}

fn matches(pattern: &str, name: &OsStr) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.as_encoded_bytes().starts_with(start.as_bytes()),
        None => name == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(environment: &Environment, ours: &[(&str, &str)]) -> Vec<String> {
        let ours = ours.iter().map(|(name, value)| (name.into(), value.into()));
        let variables = environment.of(ours);
        variables
            .iter()
            .map(|(name, value)| format!("{}={}", name.display(), value.display()))
            .collect()
    }

    const OURS: &[(&str, &str)] = &[
        ("PATH", "/bin"),
        ("LC_ALL", "C"),
        ("https_proxy", "http://127.0.0.1:1"),
        ("ANTHROPIC_API_KEY", "secret"),
        ("PIP_INDEX_URL", "http://127.0.0.1:2"),
        ("PATHOLOGY", "x"),
    ];

    #[test]
    fn a_secret_stays_behind() {
        let expected = ["LC_ALL=C", "PATH=/bin", "https_proxy=http://127.0.0.1:1"];
        assert_eq!(seen(&Environment::new(), OURS), expected);
    }

    #[test]
    fn a_pattern_lets_a_family_through_and_a_star_everything() {
        let pip = seen(&Environment::new().inherit(["PIP_*"]), OURS);
        assert!(pip.contains(&"PIP_INDEX_URL=http://127.0.0.1:2".to_owned()));
        assert!(!pip.iter().any(|line| line.starts_with("ANTHROPIC")));
        assert_eq!(seen(&Environment::new().inherit(["*"]), OURS).len(), OURS.len());
    }

    #[test]
    fn a_variable_set_by_hand_wins() {
        let environment = Environment::new().set("PATH", "/opt").set("NEW", "1");
        assert_eq!(seen(&environment, &[("PATH", "/bin")]), ["NEW=1", "PATH=/opt"]);
    }
}
