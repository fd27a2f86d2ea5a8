//! Templates: the words around a model's own, and how much they may make of them.

use std::collections::{BTreeMap, BTreeSet};

use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};

/// What a template may spend: steps, and one for every 64 bytes that it makes or reads.
const FUEL: u64 = 100_000;

/// How long a filled-in template may be: it is journaled and read by a model, turn for turn.
const LONGEST: usize = 1 << 20;

/// Functions that every template has.
const GLOBALS: &[&str] = &["range", "dict", "namespace", "debug"];

/// Why a template gives no text.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfilled {
    #[error("it does more than {FUEL} steps")]
    TooMuchWork,
    #[error("it makes {0} bytes of text, and there can be {LONGEST}")]
    TooLong(usize),
    #[error("{0}")]
    Faulty(minijinja::Error),
}

/// Fills a template in.
pub(super) fn fill(template: &str, values: BTreeMap<String, Value>) -> Result<String, Unfilled> {
    let text =
        strict().render_str(template, Value::from(values)).map_err(|error| match error.kind() {
            ErrorKind::OutOfFuel => Unfilled::TooMuchWork,
            _ => Unfilled::Faulty(error),
        })?;
    match text.trim() {
        text if text.len() > LONGEST => Err(Unfilled::TooLong(text.len())),
        text => Ok(text.to_owned()),
    }
}

/// What is wrong with a template: it does not parse, or uses what it will not be given.
pub(super) fn fault(
    template: &str,
    allowed: &[&str],
    vars: &BTreeMap<String, String>,
) -> Option<String> {
    let environment = strict();
    let parsed = match environment.template_from_str(template) {
        Ok(parsed) => parsed,
        Err(error) => {
            let line = error.line().unwrap_or(1);
            return Some(format!("line {line} of the template: {}", detail(&error)));
        }
    };
    let used: BTreeSet<_> = parsed.undeclared_variables(false).into_iter().collect();
    let known = |name: &String| {
        let name = name.as_str();
        allowed.contains(&name) || vars.contains_key(name) || GLOBALS.contains(&name)
    };
    let unknown = used.iter().find(|name| !known(name))?;
    Some(format!("the template uses `{unknown}`, which is neither under `vars` nor given here"))
}

fn strict() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment
}

fn detail(error: &minijinja::Error) -> String {
    error.detail().map_or_else(|| error.kind().to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(template: &str, said: &str) -> Result<String, Unfilled> {
        fill(template, BTreeMap::from([("said".to_owned(), said.into())]))
    }

    #[test]
    fn loops_in_loops_end_for_want_of_fuel_whether_they_say_something_or_not() {
        let loops = |body: &str| {
            let open = "{% for i in range(1000) %}".repeat(4);
            filled(&format!("{open}{body}{}", "{% endfor %}".repeat(4)), "")
        };
        for body in ["and so on ", ""] {
            assert!(matches!(loops(body), Err(Unfilled::TooMuchWork)), "{body:?}");
        }
        let long = filled("{{ 'x' * 1000000000 }}", "");
        assert!(matches!(long, Err(Unfilled::TooMuchWork)), "{long:?}");
    }

    #[test]
    fn the_longest_text_is_filled_in_and_a_longer_one_is_not() {
        let said = "x".repeat(LONGEST);
        assert_eq!(filled("{{ said }}", &said).unwrap().len(), LONGEST);
        let long = filled("{{ said }}!", &said);
        assert!(matches!(long, Err(Unfilled::TooLong(bytes)) if bytes == LONGEST + 1), "{long:?}");
    }
}
