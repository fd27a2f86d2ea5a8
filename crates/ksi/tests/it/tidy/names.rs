//! The kernel knows no plugin.

use super::files::{repository, shown};
use super::modules::{Module, parse, tree};
use super::rust::Token;
use super::size::TEST_SWITCHES;

/// Words that would show the kernel knows what KSI does, whether or not a module bears them.
const SUBJECTS: [&str; 5] = ["sqlite", "completion", "claude", "model", "orchestration"];

/// Names of plugins that are also words of the kernel's own field; as the namespace of an event
/// they are refused all the same.
const KERNEL_WORDS: [&str; 5] = ["agent", "config", "plugin", "state", "system"];

#[test]
fn the_kernel_names_no_plugin() {
    let mut names = parse(&repository().join("crates/ksi-plugins/src/lib.rs")).modules();
    names.extend(SUBJECTS.map(str::to_owned));
    let mut found = Vec::new();
    for name in ["ksi-kernel", "ksi-state"] {
        let root = repository().join("crates").join(name).join("src/lib.rs");
        let modules = tree(&root, &TEST_SWITCHES);
        let shipped = modules.iter().filter(|module| !module.behind);
        found.extend(shipped.flat_map(|module| mentions(module, &names)));
    }
    assert!(found.is_empty(), "what the kernel may not know:\n{}", found.join("\n"));
}

fn mentions(module: &Module, names: &[String]) -> Vec<String> {
    let behind = module.rust.lines_behind(&TEST_SWITCHES);
    let tokens = module.rust.tokens.iter().filter(|token| !behind.contains(&token.first));
    let mentions = tokens.filter(|token| names.iter().any(|name| is_named(name, token)));
    mentions
        .map(|token| format!("{}:{}: {}", shown(&module.path), token.first, token.text))
        .collect()
}

fn is_named(name: &str, token: &Token) -> bool {
    if KERNEL_WORDS.contains(&name) {
        return names_an_event_of(name, &token.text);
    }
    let words = words(&token.text);
    words.iter().any(|word| word == name || word.strip_suffix('s') == Some(name))
}

/// Whether the text holds `name:verb` or `name:*`.
fn names_an_event_of(name: &str, text: &str) -> bool {
    text.match_indices(&format!("{name}:")).any(|(start, found)| {
        let before = text[..start].chars().next_back();
        let after = text[start + found.len()..].chars().next();
        !before.is_some_and(char::is_alphanumeric)
            && after.is_some_and(|next| next == '*' || next.is_alphabetic())
    })
}

/// The words of `snake_case`, `CamelCase` and prose, in lower case.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut previous = ' ';
    for letter in text.chars() {
        let starts_a_word = letter.is_uppercase() && !previous.is_uppercase();
        if starts_a_word || !letter.is_alphanumeric() {
            words.push(String::new());
        }
        if letter.is_alphanumeric() {
            words.last_mut().expect("there is always a word").extend(letter.to_lowercase());
        }
        previous = letter;
    }
    words
}

#[test]
fn a_name_is_found_in_identifiers_and_strings() {
    let token = |text: &str| Token { text: text.to_owned(), first: 1, last: 1 };
    for named in ["model", "ModelName", "model_name", "MODELS", "\"no model runs\""] {
        assert!(is_named("model", &token(named)), "{named}");
    }
    for other in ["remodel", "modelled", "\"remodelled\""] {
        assert!(!is_named("model", &token(other)), "{other}");
    }
    assert!(is_named("state", &token("\"state:set\"")));
    assert!(is_named("state", &token("\"state:*\"")));
    for other in ["state", "State", "\"the state: {x}\"", "\"estate:set\""] {
        assert!(!is_named("state", &token(other)), "{other}");
    }
}
