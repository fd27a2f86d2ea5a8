/// Text from a model or another program, without what could command a terminal.
pub fn harmless(text: &str) -> String {
    let keep = |c: &char| !is_command(*c) || matches!(c, '\n' | '\t');
    text.chars().filter(keep).collect()
}

/// Whether a character is not shown but does something to what stands around it: control
/// characters, and those that turn the direction of text.
pub fn is_command(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_cannot_command_the_terminal() {
        assert_eq!(harmless("a\x1b[31mb\u{9b}2Jc\nd\te\r"), "a[31mb2Jc\nd\te");
    }

    #[test]
    fn a_model_cannot_turn_the_direction_of_what_stands_around_its_words() {
        for letter in ('\u{202a}'..='\u{202e}').chain('\u{2066}'..='\u{2069}') {
            assert_eq!(harmless(&format!("a{letter}b שלום")), "ab שלום");
        }
    }
}
