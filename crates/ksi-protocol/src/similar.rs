/// The known name that was probably meant by one that is not known.
pub fn did_you_mean<'a>(
    unknown: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    // In a short name one wrong letter is much already.
    let most = (unknown.chars().count() / 3).clamp(1, 3);
    let distance = |known: &&'a str| strsim::damerau_levenshtein(known, unknown);
    let by_distance = known.into_iter().map(|known| (distance(&known), known));
    by_distance.min().filter(|(distance, _)| *distance <= most).map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_was_meant_and_what_is_far_was_not() {
        let known = ["completion", "model", "state", "work"];
        for (unknown, meant) in [
            ("stat", Some("state")),
            ("modle", Some("model")),
            ("conpletoin", Some("completion")),
            ("nope", None),
            ("", None),
        ] {
            assert_eq!(did_you_mean(unknown, known), meant, "{unknown}");
        }
    }
}
