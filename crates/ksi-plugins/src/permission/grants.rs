//! Grants: who may do what, as facts have it.

use std::{borrow::Cow, collections::BTreeMap};

use ksi_kernel::{Act, Fact, Fault, Out, Stamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::profile::Profile;

/// So many may stand above one another; whoever is deeper may do nothing.
const DEEPEST: usize = 16;

/// The profiles that were given to somebody.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Grants(BTreeMap<String, Granted>);

/// Somebody was given a profile
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Granted {
    /// Who, such as `agent:ada`.
    pub principal: String,
    /// The profile's name.
    pub level: String,
    /// What it allows; a file that changes later changes nothing about it.
    pub profile: Profile,
    /// Who stands above: more than that one may the principal never do.
    #[serde(default)]
    pub parent: Option<String>,
}

impl Fact for Granted {
    const NAME: &'static str = "permission:granted";

    fn subject(&self) -> Cow<'_, str> {
        (&self.principal).into()
    }
}

/// Why somebody may not.
#[derive(Debug, PartialEq)]
pub(super) struct Denied<'a> {
    /// Whose profile does not allow it: theirs, or that of one above.
    pub(super) principal: &'a str,
    pub(super) level: &'a str,
}

impl Grants {
    pub(super) fn granted(&mut self, fact: &Granted, _: &Stamp, _: &mut Out) -> Result<(), Fault> {
        self.0.insert(fact.principal.clone(), fact.clone());
        Ok(())
    }

    pub(super) fn of(&self, principal: &str) -> Option<&Granted> {
        self.0.get(principal)
    }

    /// Whether somebody may do this; who was never given a profile has the fallback.
    pub(super) fn check<'a>(
        &'a self,
        principal: &'a str,
        fallback: &Profile,
        act: Act,
        event: &str,
    ) -> Result<(), Denied<'a>> {
        let mut next = Some(principal);
        for _ in 0..DEEPEST {
            let Some(principal) = next else { return Ok(()) };
            let granted = self.0.get(principal);
            let profile = granted.map_or(fallback, |granted| &granted.profile);
            if !profile.allows(act, event) {
                let level = granted.map_or(super::FALLBACK, |granted| &granted.level);
                return Err(Denied { principal, level });
            }
            next = granted.and_then(|granted| granted.parent.as_deref());
        }
        Err(Denied { principal, level: "a chain of too many parents" })
    }
}

#[cfg(test)]
mod tests {
    use ksi_kernel::Pattern;

    use super::*;

    fn profile(send: &[&str]) -> Profile {
        let send = send.iter().map(|text| Pattern::parse(text).unwrap()).collect();
        Profile { summary: String::new(), send, never: Vec::new(), see: Vec::new() }
    }

    fn grants(all: &[(&str, &[&str], Option<&str>)]) -> Grants {
        let granted = |(principal, send, parent): &(&str, &[&str], Option<&str>)| Granted {
            principal: (*principal).to_owned(),
            level: format!("of {principal}"),
            profile: profile(send),
            parent: parent.map(str::to_owned),
        };
        Grants(all.iter().map(|one| (one.0.to_owned(), granted(one))).collect())
    }

    fn check<'a>(grants: &'a Grants, who: &'a str, event: &str) -> Result<(), Denied<'a>> {
        grants.check(who, &profile(&["a:least"]), Act::Send, event)
    }

    #[test]
    fn who_was_given_nothing_has_the_fallback() {
        let grants = Grants::default();
        assert_eq!(check(&grants, "x", "a:least"), Ok(()));
        let denied = Denied { principal: "x", level: "restricted" };
        assert_eq!(check(&grants, "x", "a:more"), Err(denied));
    }

    #[test]
    fn nobody_may_more_than_whoever_stands_above() {
        let grants = grants(&[("p", &["a:*"], None), ("c", &["*"], Some("p"))]);
        assert_eq!(check(&grants, "c", "a:more"), Ok(()));
        let denied = Denied { principal: "p", level: "of p" };
        assert_eq!(check(&grants, "c", "b:more"), Err(denied));
        let orphan = self::grants(&[("c", &["*"], Some("gone"))]);
        assert!(check(&orphan, "c", "a:least").is_ok() && check(&orphan, "c", "a:more").is_err());
    }

    #[test]
    fn a_circle_of_parents_may_nothing() {
        let grants = grants(&[("a", &["*"], Some("b")), ("b", &["*"], Some("a"))]);
        assert!(check(&grants, "a", "a:least").is_err());
    }
}
