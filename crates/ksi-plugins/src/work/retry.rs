//! Retries: whether and when a failed attempt is followed by another; pure.

use ksi_kernel::{Code, Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::provider::Failure;

/// How often and when a failed attempt is followed by another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Policy {
    /// At most so many attempts, the first one counted.
    pub max_attempts: u32,
    /// The pause after the first failure, in milliseconds.
    pub initial_ms: u64,
    /// By how much the pause grows each time.
    pub multiplier: f32,
    /// The longest pause, in milliseconds; a provider's own wish may be longer.
    pub max_ms: u64,
    /// How chance shortens the pause.
    pub jitter: Jitter,
    /// The error codes after which another attempt is made.
    #[schemars(with = "Vec<String>")]
    pub retry_on: Vec<Code>,
}

/// How chance shortens a pause, so that those who failed together do not come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Jitter {
    /// Anything between nothing and the whole pause.
    Full,
    /// Not at all.
    None,
}

/// What follows a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Another attempt, after this pause.
    Again {
        /// The pause in milliseconds.
        delay_ms: u64,
    },
    /// No other attempt.
    GiveUp,
}

impl Default for Policy {
    fn default() -> Self {
        use Code::*;
        Policy {
            max_attempts: 4,
            initial_ms: 1_000,
            multiplier: 2.0,
            max_ms: 60_000,
            jitter: Jitter::Full,
            retry_on: vec![Busy, Timeout, RateLimited, ProviderError, Unavailable, Panicked],
        }
    }
}

const MOST_ATTEMPTS: u32 = 100;
const LONGEST_MS: u64 = 24 * 60 * 60 * 1_000;

impl Policy {
    /// Refuses a policy that could go on for ever or wait for ever.
    pub fn check(&self) -> Result<()> {
        if !(1..=MOST_ATTEMPTS).contains(&self.max_attempts) {
            let why = format!("`max_attempts` must be between 1 and {MOST_ATTEMPTS}");
            return Err(Error::bad_params(why).at("retry.max_attempts"));
        }
        if !(1.0..=100.0).contains(&self.multiplier) {
            return Err(
                Error::bad_params("`multiplier` must be between 1 and 100").at("retry.multiplier")
            );
        }
        if self.max_ms > LONGEST_MS {
            return Err(Error::bad_params("`max_ms` is more than a day").at("retry.max_ms"));
        }
        Ok(())
    }

    /// The longest pause after this attempt, before chance shortens it.
    fn ceiling(&self, attempt: u32) -> u64 {
        let growths = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
        let pause = self.initial_ms as f64 * f64::from(self.multiplier).powi(growths);
        (pause as u64).min(self.max_ms)
    }
}

/// Whether attempt number `attempt`, which failed so, is followed by another.
pub fn next(policy: &Policy, attempt: u32, failure: &Failure, random: u64) -> Verdict {
    let hopeless = failure.permanent || !policy.retry_on.contains(&failure.code);
    if hopeless || attempt >= policy.max_attempts {
        return Verdict::GiveUp;
    }
    if let Some(delay_ms) = failure.retry_after_ms {
        return Verdict::Again { delay_ms };
    }
    let ceiling = policy.ceiling(attempt);
    let delay_ms = match policy.jitter {
        Jitter::Full => random % (ceiling + 1),
        Jitter::None => ceiling,
    };
    Verdict::Again { delay_ms }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn failure(code: Code) -> Failure {
        Failure::new(code, "it failed")
    }

    fn policies() -> impl Strategy<Value = Policy> {
        (1..=MOST_ATTEMPTS, 0..100_000u64, 1.0..10.0f32, 0..=LONGEST_MS, any::<bool>()).prop_map(
            |(max_attempts, initial_ms, multiplier, max_ms, full)| Policy {
                max_attempts,
                initial_ms,
                multiplier,
                max_ms,
                jitter: if full { Jitter::Full } else { Jitter::None },
                ..Policy::default()
            },
        )
    }

    proptest! {
        #[test]
        fn there_are_never_more_attempts_than_allowed(policy in policies(), random: u64) {
            policy.check().unwrap();
            let mut attempt = 1;
            while next(&policy, attempt, &failure(Code::Timeout), random) != Verdict::GiveUp {
                attempt += 1;
                prop_assert!(attempt <= policy.max_attempts);
            }
            prop_assert_eq!(attempt, policy.max_attempts);
        }

        #[test]
        fn a_pause_is_never_longer_than_its_bounds(
            policy in policies(), attempt in 1..MOST_ATTEMPTS, random: u64,
        ) {
            let verdict = next(&policy, attempt, &failure(Code::Busy), random);
            if let Verdict::Again { delay_ms } = verdict {
                prop_assert!(delay_ms <= policy.max_ms);
                prop_assert!(attempt > 1 || delay_ms <= policy.initial_ms);
            }
        }

        #[test]
        fn pauses_without_jitter_never_shrink(policy in policies(), attempt in 1..MOST_ATTEMPTS) {
            prop_assert!(policy.ceiling(attempt) <= policy.ceiling(attempt + 1));
        }

        #[test]
        fn what_the_provider_asks_for_wins(policy in policies(), after: u64, random: u64) {
            let failure = Failure { retry_after_ms: Some(after), ..failure(Code::RateLimited) };
            let expected = match policy.max_attempts {
                1 => Verdict::GiveUp,
                _ => Verdict::Again { delay_ms: after },
            };
            prop_assert_eq!(next(&policy, 1, &failure, random), expected);
        }
    }

    #[test]
    fn a_permanent_failure_and_an_unlisted_code_are_not_tried_again() {
        let policy = Policy::default();
        let permanent = Failure { permanent: true, ..failure(Code::ProviderError) };
        assert_eq!(next(&policy, 1, &permanent, 0), Verdict::GiveUp);
        assert_eq!(next(&policy, 1, &failure(Code::BadParams), 0), Verdict::GiveUp);
        let again = next(&policy, 1, &failure(Code::ProviderError), 0);
        assert_eq!(again, Verdict::Again { delay_ms: 0 });
    }

    #[test]
    fn full_jitter_reaches_both_ends() {
        let policy = Policy::default();
        let pause = |random| next(&policy, 1, &failure(Code::Timeout), random);
        assert_eq!(pause(0), Verdict::Again { delay_ms: 0 });
        assert_eq!(pause(policy.initial_ms), Verdict::Again { delay_ms: policy.initial_ms });
        assert_eq!(pause(policy.initial_ms + 1), Verdict::Again { delay_ms: 0 });
    }

    #[test]
    fn a_policy_without_end_is_refused() {
        for (policy, path) in [
            (Policy { max_attempts: 0, ..Policy::default() }, "retry.max_attempts"),
            (Policy { max_attempts: 101, ..Policy::default() }, "retry.max_attempts"),
            (Policy { multiplier: f32::NAN, ..Policy::default() }, "retry.multiplier"),
            (Policy { max_ms: LONGEST_MS + 1, ..Policy::default() }, "retry.max_ms"),
        ] {
            assert_eq!(policy.check().unwrap_err().path.as_deref(), Some(path));
        }
    }
}
