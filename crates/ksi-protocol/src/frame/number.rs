//! Numbers that no double can hold: valid JSON, which every reader takes for something else.

use memchr::memchr2_iter;

/// The shortest run of digits that is too large without an exponent.
const LONGEST: usize = 309;

/// The first number in valid JSON that is larger than any double.
pub(super) fn too_large(json: &str) -> Option<&str> {
    let text = json.as_bytes();
    if !has_exponent(text) && !has_long_run(text) {
        return None;
    }
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            b'"' => at = end_of_string(text, at),
            b'-' | b'0'..=b'9' => {
                let number = number(json, at);
                if number.parse().is_ok_and(f64::is_infinite) {
                    return Some(number);
                }
                at += number.len();
            }
            _ => at += 1,
        }
    }
    None
}

/// Whether there may be an exponent; most texts have none, and are not looked at any further.
fn has_exponent(text: &[u8]) -> bool {
    let digit = |at: Option<&u8>| at.is_some_and(u8::is_ascii_digit);
    let sign = |at: Option<&u8>| at.is_some_and(|byte| matches!(byte, b'+' | b'-'));
    memchr2_iter(b'e', b'E', text).any(|at| {
        let before = at.checked_sub(1).and_then(|before| text.get(before));
        digit(before) && (digit(text.get(at + 1)) || sign(text.get(at + 1)))
    })
}

/// Whether there may be so many digits in a row: looked for at places that each such run covers.
fn has_long_run(text: &[u8]) -> bool {
    let digits = |bytes: &mut dyn Iterator<Item = &u8>| {
        bytes.take(LONGEST).take_while(|byte| byte.is_ascii_digit()).count()
    };
    (0..text.len()).step_by(LONGEST).any(|at| {
        let (before, behind) = text.split_at(at);
        digits(&mut before.iter().rev()) + digits(&mut behind.iter()) >= LONGEST
    })
}

/// Behind the quote that ends the string which begins here.
fn end_of_string(text: &[u8], begin: usize) -> usize {
    let mut at = begin + 1;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

fn number(json: &str, begin: usize) -> &str {
    let rest = &json[begin..];
    let of_number = |c: char| matches!(c, '0'..='9' | '-' | '+' | '.' | 'e' | 'E');
    &rest[..rest.find(|c| !of_number(c)).unwrap_or(rest.len())]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_no_double_can_hold_is_found_outside_of_strings_only() {
        for (json, found) in [
            (r#"{"a":1e999}"#, Some("1e999")),
            (r#"{"a":[1,-2.5E+400,3]}"#, Some("-2.5E+400")),
            (r#"{"a":1e308,"b":1e-999,"c":0e999,"d":12e3}"#, None),
            (r#"{"a":"1e999 \" 1e999","b":"\\","c":"e"}"#, None),
            (r#"{"1e999":{"b":"\\","c":1e999}}"#, Some("1e999")),
        ] {
            assert_eq!(too_large(json), found, "{json}");
        }
        for digits in [308, 309, 310, 700, 5_000] {
            for before in [0, 1, 150, 308, 309, 400] {
                let (blanks, number) = (" ".repeat(before), "9".repeat(digits));
                let json = format!("{{{blanks}\"a\":{number}}}");
                assert_eq!(too_large(&json).is_some(), digits > 308, "{digits} behind {before}");
                assert_eq!(too_large(&format!("{{{blanks}\"a\":\"{number}\"}}")), None);
            }
        }
    }

    proptest! {
        /// What a parser that reads every number says.
        #[test]
        fn it_agrees_with_a_parser(mantissa in -9.9..9.9f64, exponent in -400..400i32, text in ".*") {
            let text = serde_json::to_string(&text).unwrap();
            let json = format!("{{\"t\":{text},\"n\":{mantissa}e{exponent}}}");
            let parsed = serde_json::from_str::<serde_json::Value>(&json);
            prop_assert_eq!(too_large(&json).is_none(), parsed.is_ok(), "{}", json);
        }
    }
}
