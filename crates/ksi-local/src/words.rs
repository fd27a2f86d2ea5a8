//! No run of words of an answer repeats an earlier one: the rule that keeps a debate moving.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

/// This many words in a row may not come twice.
const RUN: usize = 8;

/// Which word may not follow which words, case and punctuation aside.
///
/// A word is a run of letters and digits; apostrophes inside it do not count. A collision of
/// hashes forbids a word too many and never allows one.
#[derive(Default)]
pub(crate) struct Runs {
    /// By the hash of `RUN - 1` words: the words that would complete an earlier run.
    forbidden: HashMap<u64, Vec<String>>,
    answer: Tail,
}

/// The end of a text: its last whole words, and the word it breaks off in.
#[derive(Clone, Default)]
struct Tail {
    words: VecDeque<String>,
    word: String,
}

impl Runs {
    /// Forbids all runs of an earlier text.
    pub(crate) fn forbid(&mut self, text: &str) {
        let mut tail = Tail::default();
        for character in text.chars().chain([' ']) {
            if let Some(word) = tail.push(character) {
                self.learn(&mut tail, word);
            }
        }
    }

    /// Whether the answer may go on with this text.
    ///
    /// A run is stopped where its last word begins, so that no word is left half said.
    pub(crate) fn allows(&self, text: &str) -> bool {
        let mut tail = self.answer.clone();
        let mut fresh = HashMap::new();
        for character in text.chars() {
            let Some(word) = tail.push(character) else { continue };
            if self
                .completing(&tail)
                .chain(tail.key().and_then(|key| fresh.get(&key)))
                .any(|end| *end == word)
            {
                return false;
            }
            if let Some(key) = tail.key() {
                fresh.insert(key, word.clone());
            }
            tail.end_word(word);
        }
        let mut ends = self.completing(&tail).chain(tail.key().and_then(|key| fresh.get(&key)));
        tail.word.is_empty() || !ends.any(|end| end.starts_with(&tail.word))
    }

    /// Notes that the answer went on with this text.
    pub(crate) fn push(&mut self, text: &str) {
        let mut tail = std::mem::take(&mut self.answer);
        for character in text.chars() {
            if let Some(word) = tail.push(character) {
                self.learn(&mut tail, word);
            }
        }
        self.answer = tail;
    }

    fn completing(&self, tail: &Tail) -> impl Iterator<Item = &String> {
        tail.key().and_then(|key| self.forbidden.get(&key)).into_iter().flatten()
    }

    fn learn(&mut self, tail: &mut Tail, word: String) {
        if let Some(key) = tail.key() {
            self.forbidden.entry(key).or_default().push(word.clone());
        }
        tail.end_word(word);
    }
}

impl Tail {
    /// Adds a character; the word that it ends, if it ends one.
    fn push(&mut self, character: char) -> Option<String> {
        if character.is_alphanumeric() {
            self.word.extend(character.to_lowercase());
            return None;
        }
        if matches!(character, '\'' | '\u{2019}') || self.word.is_empty() {
            return None;
        }
        Some(std::mem::take(&mut self.word))
    }

    fn end_word(&mut self, word: String) {
        if self.words.len() == RUN - 1 {
            self.words.pop_front();
        }
        self.words.push_back(word);
    }

    fn key(&self) -> Option<u64> {
        if self.words.len() < RUN - 1 {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        self.words.hash(&mut hasher);
        Some(hasher.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EARLIER: &str = "One, two; three four FIVE six seven polynomial nine.";

    fn after(answer: &str) -> Runs {
        let mut runs = Runs::default();
        runs.forbid(EARLIER);
        runs.push(answer);
        runs
    }

    #[test]
    fn the_token_that_completes_a_run_is_forbidden() {
        let runs = after("Well: one two three four five six seven");
        assert!(!runs.allows(" polynomial"));
        assert!(runs.allows(" exponential"));
    }

    #[test]
    fn case_and_punctuation_do_not_hide_a_run() {
        let runs = after("ONE - two - \"three\" - four,\nFive. Six? seven");
        assert!(!runs.allows(", Polynomial"));
    }

    #[test]
    fn a_run_is_stopped_where_its_last_word_begins() {
        let runs = after("one two three four five six seven");
        assert!(!runs.allows(" polynom"));
        assert!(runs.allows(" policy"));
        assert!(runs.allows(" polynomials"), "a longer word is another word");
    }

    #[test]
    fn a_run_inside_one_token_is_found() {
        let runs = after("one two three four five six");
        assert!(!runs.allows(" seven polynomial,"));
        assert!(runs.allows(" seven"));
    }

    #[test]
    fn fewer_words_than_a_run_may_come_again() {
        let runs = after("zero two three four five six seven");
        assert!(runs.allows(" polynomial"));
    }

    #[test]
    fn an_answer_may_not_repeat_itself() {
        let mut runs = Runs::default();
        let said = "a b c d e f g h, and then again a b c d e f g";
        runs.push(said);
        assert!(!runs.allows(" h"));
        assert!(runs.allows(" i"));
    }

    #[test]
    fn one_word_over_and_over_comes_to_an_end() {
        let mut runs = Runs::default();
        let said = (0..100).take_while(|_| {
            let allowed = runs.allows(" ha");
            runs.push(" ha");
            allowed
        });
        assert!(said.count() <= RUN);
    }

    #[test]
    fn apostrophes_do_not_split_words() {
        let mut runs = Runs::default();
        runs.forbid("a b c d e f g don't");
        runs.push("a b c d e f g");
        assert!(!runs.allows(" don\u{2019}t"));
        assert!(!runs.allows(" don"));
    }
}
