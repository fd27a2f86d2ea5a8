//! What a child sees of our environment: little, unless asked.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

/// Variables that every child inherits; a trailing `*` stands for any end.
const ALWAYS: &[&str] = &["PATH", "HOME", "LANG", "LC_*", "TZ", "TMPDIR"];

/// How a program gets out of this network, and whom it trusts there. A proxy's address may hold a
/// password, so only those get them that need them.
const NETWORK: &[&str] = &[
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "FTP_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "ftp_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "AWS_CA_BUNDLE",
    "GIT_SSL_CAINFO",
];

/// Never inherited, whatever was asked for: it says whose child a process is.
const NEVER: &str = crate::home::MARK;

/// The environment of a child: a short list of inherited variables plus those set by hand.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    inherited: Vec<String>,
    set: BTreeMap<OsString, OsString>,
}

impl Environment {
    /// Only what every child inherits: paths, locale and time zone.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets these variables through too; `PIP_*` means all that begin with `PIP_`, `*` all.
    #[must_use]
    pub fn inherit<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.inherited.extend(names.into_iter().map(Into::into));
        self
    }

    /// Lets proxies and certificates through too, for a program that talks to the world.
    #[must_use]
    pub fn network(self) -> Self {
        self.inherit(NETWORK.iter().copied())
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
        if name == NEVER {
            return false;
        }
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
        assert_eq!(seen(&Environment::new(), OURS), ["LC_ALL=C", "PATH=/bin"]);
    }

    #[test]
    fn who_talks_to_the_world_gets_proxies_and_certificates() {
        let expected = ["LC_ALL=C", "PATH=/bin", "https_proxy=http://127.0.0.1:1"];
        assert_eq!(seen(&Environment::new().network(), OURS), expected);
        let bundle = [("NODE_EXTRA_CA_CERTS", "/ca.pem")];
        assert_eq!(seen(&Environment::new().network(), &bundle), ["NODE_EXTRA_CA_CERTS=/ca.pem"]);
        assert_eq!(seen(&Environment::new(), &bundle), [""; 0]);
    }

    #[test]
    fn the_mark_of_a_child_is_not_handed_on_to_who_is_none() {
        let ours = [("KSI_CHILD", "home/effect"), ("KSI_HOME", "/x")];
        let all = Environment::new().inherit(["*"]);
        assert_eq!(seen(&all, &ours), ["KSI_HOME=/x"]);
        assert_eq!(seen(&all.set("KSI_CHILD", "own"), &ours)[0], "KSI_CHILD=own");
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
