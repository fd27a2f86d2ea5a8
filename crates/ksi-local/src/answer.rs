//! An answer while it is written: what may come next, and where it may end.

use std::str;

use crate::words::Runs;

/// An answer may not end before it has this many words.
const LEAST_WORDS: usize = 4;
/// Words whose full stop does not end a sentence.
const ABBREVIATIONS: &[&str] = &["vs", "e.g", "i.e", "etc", "cf", "dr", "mr", "mrs", "ms", "st"];

/// The text so far, and the bytes of a character that is not whole yet.
pub(crate) struct Answer {
    text: String,
    /// So much of it was handed out: white space only with what follows it.
    said: usize,
    pending: Vec<u8>,
    runs: Runs,
}

impl Answer {
    pub(crate) fn new(runs: Runs) -> Self {
        Self { text: String::new(), said: 0, pending: Vec::new(), runs }
    }

    /// Whether the answer may go on with the bytes of a token.
    pub(crate) fn allows(&self, bytes: &[u8]) -> bool {
        let Some((text, _)) = self.split(bytes) else { return false };
        if text.chars().any(|c| c.is_control() && c != '\n') {
            return false;
        }
        // The first piece holds a word, so that no answer is empty or begins with a blank line.
        let begins = !self.text.is_empty() || text.chars().any(char::is_alphanumeric);
        begins && self.runs.allows(&text)
    }

    /// Adds the bytes of an allowed token; the text that can be said by now.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        let Some((text, pending)) = self.split(bytes) else { return String::new() };
        self.pending = pending;
        self.runs.push(&text);
        self.text.push_str(&text);
        let piece = self.text[self.said..].trim_end().to_owned();
        self.said += piece.len();
        piece
    }

    /// Whether the answer may end here: it says something, and nothing is announced or half done.
    pub(crate) fn may_end(&self) -> bool {
        self.pending.is_empty()
            && self.text.split_whitespace().count() >= LEAST_WORDS
            && !self.text.trim_end().ends_with([':', ',', ';', '-'])
    }

    /// Whether the text ends with a whole sentence.
    pub(crate) fn ends_a_sentence(&self) -> bool {
        let text =
            self.text.trim_end().trim_end_matches(['"', '\'', '\u{201d}', '\u{2019}', ')', '*']);
        if text.ends_with(['!', '?', '\u{2026}']) {
            return true;
        }
        let Some(text) = text.strip_suffix('.') else { return false };
        let word = text.rsplit(|c: char| c.is_whitespace() || c == '(').next().unwrap_or_default();
        let is_number = word.ends_with(|c: char| c.is_ascii_digit());
        !is_number && !ABBREVIATIONS.contains(&word.to_lowercase().as_str())
    }

    /// Whether the text ends in a word, so that a full stop may follow.
    pub(crate) fn ends_in_a_word(&self) -> bool {
        self.text.ends_with(char::is_alphanumeric)
    }

    /// The pending bytes and these as whole characters and a rest, if they can be UTF-8 at all.
    fn split(&self, bytes: &[u8]) -> Option<(String, Vec<u8>)> {
        let mut all = self.pending.clone();
        all.extend_from_slice(bytes);
        let whole = match str::from_utf8(&all) {
            Ok(text) => text.len(),
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => return None,
        };
        let pending = all.split_off(whole);
        Some((String::from_utf8(all).ok()?, pending))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> Answer {
        let mut answer = Answer::new(Runs::default());
        answer.push(text.as_bytes());
        answer
    }

    #[test]
    fn half_a_character_is_held_back_until_it_is_whole() {
        let mut answer = answer("x");
        let euro = "\u{20ac}".as_bytes();
        assert_eq!(answer.push(&euro[..1]), "");
        assert!(!answer.may_end());
        assert_eq!(answer.push(&euro[1..2]), "");
        assert_eq!(answer.push(&euro[2..]), "\u{20ac}");
    }

    #[test]
    fn white_space_is_said_only_with_what_follows_it() {
        let mut answer = answer("One.");
        assert_eq!(answer.push(b"\n\n"), "");
        assert_eq!(answer.push(b"Two"), "\n\nTwo");
        assert_eq!(answer.push(b" and "), " and");
        assert_eq!(answer.push(b"three.\n"), " three.");
    }

    #[test]
    fn bytes_that_cannot_become_text_are_not_allowed() {
        let mut answer = answer("x");
        assert!(!answer.allows(&[0xFF]));
        assert!(answer.allows(&[0xE2]));
        answer.push(&[0xE2]);
        assert!(!answer.allows(b"a"), "a character was begun and not ended");
    }

    #[test]
    fn an_answer_begins_with_a_word() {
        let empty = Answer::new(Runs::default());
        assert!(!empty.allows(b"\n"));
        assert!(!empty.allows(b" \""));
        assert!(empty.allows(b"Yes"));
    }

    #[test]
    fn control_characters_never_reach_a_terminal() {
        assert!(!answer("x").allows(b"\x1b[2J"));
        assert!(!answer("x").allows("\u{9b}".as_bytes()));
        assert!(answer("x").allows(b"\n"));
    }

    #[test]
    fn an_answer_of_one_word_may_not_end() {
        assert!(!answer("No.").may_end());
        assert!(answer("No, it is not.").may_end());
    }

    #[test]
    fn an_answer_may_not_end_where_more_is_announced() {
        assert!(!answer("My answer to this is:\n").may_end());
        assert!(!answer("There is one thing, though,").may_end());
    }

    #[test]
    fn sentences_end_at_full_stops_that_mean_it() {
        for whole in ["It is so.", "Is it so?", "He said \"no.\"", "(It is NP.)", "P equals NP!\n"]
        {
            assert!(answer(whole).ends_a_sentence(), "{whole}");
        }
        for open in ["It is", "P vs.", "some, e.g.", "about 3.", "1.", "so,", ""] {
            assert!(!answer(open).ends_a_sentence(), "{open}");
        }
    }
}
