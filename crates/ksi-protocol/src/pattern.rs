use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result, text::is_command};

const MAX_NAME: usize = 256;

/// Which events somebody wants: `completion:result`, `completion:*` or `*`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(Wanted);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Wanted {
    All,
    /// Ends in a colon.
    Below(String),
    Exactly(String),
}

impl Pattern {
    /// Reads a pattern; a wildcard may only be its last segment.
    pub fn parse(text: &str) -> Result<Self> {
        if text == "*" {
            return Ok(Self(Wanted::All));
        }
        let Some(below) = text.strip_suffix('*').filter(|below| below.ends_with(':')) else {
            check_event_name(text).map_err(|error| as_pattern(text, error))?;
            return Ok(Self(Wanted::Exactly(text.to_owned())));
        };
        check_event_name(&format!("{below}x")).map_err(|error| as_pattern(text, error))?;
        Ok(Self(Wanted::Below(below.to_owned())))
    }

    /// Whether the event is among those wanted.
    pub fn matches(&self, event: &str) -> bool {
        match &self.0 {
            Wanted::All => true,
            Wanted::Below(below) => event.len() > below.len() && event.starts_with(below.as_str()),
            Wanted::Exactly(name) => event == name,
        }
    }

    /// Whether every event that the other matches is among those wanted.
    pub fn covers(&self, other: &Self) -> bool {
        match &other.0 {
            Wanted::All => self.0 == Wanted::All,
            Wanted::Exactly(name) => self.matches(name),
            // What lies below is longer by a word at least, so one word stands for them all.
            Wanted::Below(below) => {
                self.matches(&format!("{below}x")) && !matches!(&self.0, Wanted::Exactly(_))
            }
        }
    }

    /// The only namespace whose events can match; none when every namespace can.
    pub fn namespace(&self) -> Option<&str> {
        match &self.0 {
            Wanted::All => None,
            Wanted::Below(name) | Wanted::Exactly(name) => name.split(':').next(),
        }
    }
}

/// Whether this can name an event: `noun:verb`, without white space and wildcards.
pub fn check_event_name(name: &str) -> Result<()> {
    let Some(why) = fault(name) else { return Ok(()) };
    let shown: String = name.chars().take(80).collect();
    Err(Error::bad_params(format!("{shown:?} is not an event name: it {why}"))
        .hint("names have the form `noun:verb`, as in `system:health`"))
}

/// What is wrong with an event's name; asked for every request, so it allocates nothing.
fn fault(name: &str) -> Option<String> {
    let odd = |letter: char| letter.is_whitespace() || is_command(letter) || letter == '*';
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'*';
    if name.len() > MAX_NAME {
        return Some(format!("is longer than {MAX_NAME} bytes"));
    }
    if !name.bytes().all(plain) && name.contains(odd) {
        return Some("holds white space, a control character or `*`".to_owned());
    }
    let words = name.as_bytes().split(|byte| *byte == b':');
    let (words, empty) =
        words.fold((0, false), |(n, empty), word| (n + 1, empty | word.is_empty()));
    (words < 2 || empty).then(|| "has no `:` between two words".to_owned())
}

fn as_pattern(text: &str, error: Error) -> Error {
    if !text.contains('*') && !text.trim().is_empty() {
        return error;
    }
    Error::bad_params(format!("{text:?} is not an event pattern"))
        .hint("write `completion:result`, `completion:*` or `*`: a wildcard is the last segment")
}

impl FromStr for Pattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Pattern {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Self::parse(&text)
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Wanted::All => f.write_str("*"),
            Wanted::Below(below) => write!(f, "{below}*"),
            Wanted::Exactly(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Code;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    #[test]
    fn a_star_matches_every_event() {
        assert!(pattern("*").matches("agent:spawned"));
        assert_eq!(pattern("*").namespace(), None);
    }

    #[test]
    fn a_star_as_the_last_segment_matches_what_is_below() {
        let below = pattern("completion:*");
        assert!(below.matches("completion:result"));
        assert!(below.matches("completion:lane:freed"));
        assert!(!below.matches("completion:"));
        assert!(!below.matches("completions:result"));
        assert_eq!(below.namespace(), Some("completion"));
    }

    #[test]
    fn a_name_matches_itself() {
        let exact = pattern("agent:spawned");
        assert!(exact.matches("agent:spawned"));
        assert!(!exact.matches("agent:spawned:late"));
        assert_eq!(exact.namespace(), Some("agent"));
    }

    #[test]
    fn a_wildcard_anywhere_else_is_refused() {
        for text in ["", " ", "**", "*:result", "comp*", "completion:*:x", "completion:re*", ":*"] {
            let error = Pattern::parse(text).unwrap_err();
            assert_eq!(error.code, Code::BadParams, "{text:?}");
            assert!(error.message.contains("not an event pattern"), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_pattern_goes_through_json_as_its_text() {
        let wanted: Vec<Pattern> = serde_json::from_str(r#"["*","a:*","a:b"]"#).unwrap();
        assert_eq!(serde_json::to_string(&wanted).unwrap(), r#"["*","a:*","a:b"]"#);
        assert!(serde_json::from_str::<Pattern>(r#""a:*:b""#).is_err());
    }

    #[test]
    fn an_event_name_has_a_noun_and_a_verb() {
        for name in ["a:b", "agent:send_message", "my-app:Thing.done", "a:b:c"] {
            assert_eq!(check_event_name(name), Ok(()), "{name}");
        }
        let long = format!("a:{}", "b".repeat(MAX_NAME));
        for name in ["", "a", ":", "a:", ":b", "a::b", "a b:c", "a:b\n", "a:*", "a:\0", &long] {
            assert_eq!(check_event_name(name).unwrap_err().code, Code::BadParams, "{name}");
        }
    }

    #[test]
    fn what_turns_the_direction_of_text_cannot_be_in_a_name_or_pattern() {
        for letter in ('\u{202a}'..='\u{202e}').chain('\u{2066}'..='\u{2069}') {
            for name in [format!("a:b{letter}c"), format!("{letter}a:b")] {
                let error = check_event_name(&name).unwrap_err();
                assert!(error.message.contains("a control character"), "{error}");
                assert!(!error.message.contains(letter), "it is shown as itself");
                Pattern::parse(&name).unwrap_err();
            }
            Pattern::parse(&format!("a{letter}:*")).unwrap_err();
        }
        assert_eq!(check_event_name("räksmörgås:שלום"), Ok(()));
    }

    proptest! {
        #[test]
        fn a_pattern_only_matches_events_of_its_namespace(
            event in "[a-c]{1,2}(:[a-c]{1,2}){1,2}",
            text in "[a-c]{1,2}:([a-c]|\\*)",
        ) {
            let pattern = pattern(&text);
            prop_assert_eq!(pattern.to_string(), text);
            let namespace = event.split(':').next();
            prop_assert!(!pattern.matches(&event) || pattern.namespace() == namespace);
        }
    }
}
