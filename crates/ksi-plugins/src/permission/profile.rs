//! Profiles: what their bearers may do, as read from a file.

use ksi_kernel::{Act, Pattern};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::library::from_yaml;

/// What its bearer may send and see.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// One line for people.
    pub summary: String,
    /// The events that it may send.
    #[schemars(with = "Vec<String>")]
    pub send: Vec<Pattern>,
    /// Of these the ones that it may not send all the same.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub never: Vec<Pattern>,
    /// The events that it may see, when it subscribes or reads the journal.
    #[schemars(with = "Vec<String>")]
    pub see: Vec<Pattern>,
}

/// A profile's file is not one.
#[derive(Debug, thiserror::Error)]
#[error("{file}, line {line}: {why}")]
pub struct Faulty {
    file: String,
    /// From 1.
    line: u64,
    why: String,
}

impl Profile {
    /// Reads a profile; `file` is for the error.
    pub fn parse(file: &str, text: &str) -> Result<Self, Faulty> {
        from_yaml(text).map_err(|(line, why)| Faulty { file: file.to_owned(), line, why })
    }

    /// Whether its bearer may do this.
    pub fn allows(&self, act: Act, event: &str) -> bool {
        let among = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(event));
        match act {
            Act::Send => among(&self.send) && !among(&self.never),
            Act::See => among(&self.see),
        }
    }

    /// What the other allows and this does not, if there is anything: the first such pattern.
    ///
    /// Each of the other's patterns must be within one of these, not within several together.
    pub fn beyond<'a>(&self, other: &'a Profile) -> Option<&'a Pattern> {
        let within = |patterns: &[Pattern], one: &Pattern| patterns.iter().any(|p| p.covers(one));
        // What is taken out here must be out of reach there, or taken out there too.
        let taken_out = |one: &Pattern| {
            let reached = |never: &&Pattern| never.covers(one) || one.covers(never);
            self.never.iter().filter(reached).all(|never| within(&other.never, never))
        };
        let mut sent = other.send.iter();
        let sent = sent.find(|one| !within(&self.send, one) || !taken_out(one));
        sent.or_else(|| other.see.iter().find(|one| !within(&self.see, one)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn profile(send: &[&str], never: &[&str], see: &[&str]) -> Profile {
        let patterns =
            |texts: &[&str]| texts.iter().map(|text| Pattern::parse(text).unwrap()).collect();
        let [send, never, see] = [send, never, see].map(patterns);
        Profile { summary: String::new(), send, never, see }
    }

    #[test]
    fn what_is_named_never_is_not_sent_and_seeing_is_another_matter() {
        let one = profile(&["a:*"], &["a:b"], &["a:b"]);
        assert!(one.allows(Act::Send, "a:c") && !one.allows(Act::Send, "a:b"));
        assert!(one.allows(Act::See, "a:b") && !one.allows(Act::See, "a:c"));
        assert!(!profile(&[], &[], &[]).allows(Act::Send, "a:b"));
    }

    #[test]
    fn a_wrong_line_is_named() {
        let error = |text: &str| Profile::parse("x.yaml", text).unwrap_err().to_string();
        let typo = error("summary: x\nsend: []\nsea: []\n");
        assert!(typo.starts_with("x.yaml, line 3: ") && typo.contains("sea"), "{typo}");
        let pattern = error("summary: x\nsee: []\nsend:\n  - a:*:b\n");
        assert!(pattern.starts_with("x.yaml, line ") && pattern.contains("a:*:b"), "{pattern}");
        assert!(error("- 1").starts_with("x.yaml, line 1: "));
    }

    #[test]
    fn a_narrower_profile_is_within_a_wider_one_and_not_the_other_way() {
        let wide = profile(&["a:*", "b:c"], &["a:x"], &["*"]);
        let within = |send, never, see| wide.beyond(&profile(send, never, see)).is_none();
        assert!(within(&["a:b", "b:c"], &[], &["z:*"]));
        assert!(within(&["a:*"], &["a:x"], &[]) && within(&["a:*"], &["a:*"], &[]));
        assert!(!within(&["a:*"], &[], &[]), "a:x");
        assert!(!within(&["a:x"], &[], &[]) && !within(&["b:*"], &[], &[]));
        assert!(!within(&["*"], &["a:x"], &[]));
        let blind = profile(&["*"], &[], &["a:*"]);
        assert_eq!(blind.beyond(&wide).unwrap().to_string(), "*");
    }

    fn patterns() -> impl Strategy<Value = Vec<&'static str>> {
        let all = ["*", "a:*", "b:*", "a:b:*", "a:x", "b:x", "a:b:x"];
        prop::sample::subsequence(all.to_vec(), 0..4)
    }

    proptest! {
        #[test]
        fn nothing_within_goes_beyond(
            one in (patterns(), patterns(), patterns()),
            other in (patterns(), patterns(), patterns()),
        ) {
            let profile = |(send, never, see): &(Vec<_>, Vec<_>, Vec<_>)| profile(send, never, see);
            let (wide, narrow) = (profile(&one), profile(&other));
            let within = wide.beyond(&narrow).is_none();
            for event in ["a:x", "b:x", "a:b:x", "a:b:y", "c:x"] {
                for act in [Act::Send, Act::See] {
                    prop_assert!(!within || wide.allows(act, event) || !narrow.allows(act, event));
                }
            }
        }
    }
}
