/// Text from a model or another program, without what could command a terminal.
pub fn harmless(text: &str) -> String {
    let keep = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().filter(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_cannot_command_the_terminal() {
        assert_eq!(harmless("a\x1b[31mb\u{9b}2Jc\nd\te\r"), "a[31mb2Jc\nd\te");
    }
}
