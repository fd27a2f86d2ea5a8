//! The chain: each fact's check covers the fact and the check before it.

use sha2::{Digest, Sha256};

use crate::row::Row;

/// Half of a SHA-256: 128 bits find any accident, and cost a fact 16 bytes.
pub(crate) type Check = [u8; 16];

/// The check before the first fact.
pub(crate) const START: Check = [0; 16];

/// The chain up to some fact, to be carried on with the next.
pub(crate) struct Chain {
    last: Check,
    /// What the last check was made of, kept for its memory.
    bytes: Vec<u8>,
}

impl Chain {
    /// The chain up to the fact with this check.
    pub(crate) fn up_to(last: Check) -> Self {
        Self { last, bytes: Vec::new() }
    }

    /// The check of the next fact.
    ///
    /// Every field goes in with its length or its presence, so that no two facts look the same.
    pub(crate) fn next(&mut self, row: &Row<'_>) -> Check {
        let bytes = &mut self.bytes;
        bytes.clear();
        bytes.extend_from_slice(&self.last);
        for number in [row.seq, row.at, row.version] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.push(u8::from(row.cause.is_some()));
        bytes.extend_from_slice(&row.cause.unwrap_or_default().to_le_bytes());
        let texts = [row.name, row.subject, row.principal].map(Some);
        for text in texts.into_iter().chain([row.correlation, row.chain, Some(row.data)]) {
            let length = text.map_or(u64::MAX, |text| text.len() as u64);
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(text.unwrap_or_default().as_bytes());
        }
        self.last.copy_from_slice(&Sha256::digest(bytes)[..START.len()]);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(before: &Check, row: &Row<'_>) -> Check {
        Chain::up_to(*before).next(row)
    }

    const ROW: Row<'static> = Row {
        seq: 1,
        at: 2,
        name: "agent:spawned",
        version: 1,
        subject: "bob",
        principal: "operator",
        correlation: None,
        cause: None,
        chain: None,
        data: "{}",
    };

    #[test]
    fn a_check_covers_every_field_and_the_check_before() {
        let rows = [
            ROW,
            Row { seq: 2, ..ROW },
            Row { at: 3, ..ROW },
            Row { name: "agent:ended", ..ROW },
            Row { version: 2, ..ROW },
            Row { subject: "ann", ..ROW },
            Row { principal: "system", ..ROW },
            Row { correlation: Some(""), ..ROW },
            Row { cause: Some(0), ..ROW },
            Row { chain: Some(""), ..ROW },
            Row { data: "[]", ..ROW },
        ];
        let mut checks: Vec<_> = rows.iter().map(|row| check(&START, row)).collect();
        checks.push(check(&[1; 16], &ROW));
        checks.sort_unstable();
        checks.dedup();
        assert_eq!(checks.len(), 12);
    }

    #[test]
    fn a_text_cannot_move_from_one_field_to_the_next() {
        let one = Row { subject: "ab", principal: "c", ..ROW };
        let other = Row { subject: "a", principal: "bc", ..ROW };
        assert_ne!(check(&START, &one), check(&START, &other));
    }

    #[test]
    fn files_written_today_verify_tomorrow() {
        let hex: String = check(&START, &ROW).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "13d6964eb0230889e224caf21d7d265f");
    }
}
