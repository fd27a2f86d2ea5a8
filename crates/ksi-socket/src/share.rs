use std::sync::Arc;

/// So much may wait to be written to all clients together, a line each aside.
const ALL: usize = 64 << 20;

/// A client that is the only one needs no more to be kept busy.
const MOST: usize = 1 << 20;

/// With less, each write would carry too little.
const LEAST: usize = 16 << 10;

/// A connection's share of the memory for what waits to be written; each holds one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Share(Arc<()>);

impl Share {
    /// With so many bytes to write, no request is read and no event taken until the client has read.
    pub(crate) fn high_water(&self) -> usize {
        (ALL / Arc::strong_count(&self.0)).clamp(LEAST, MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_there_are_the_less_each_may_have() {
        let share = Share::default();
        assert_eq!(share.high_water(), MOST);
        let mut shares = vec![share; 1_000];
        assert_eq!(shares[0].high_water(), ALL / 1_000);
        shares.extend(vec![shares[0].clone(); 1_000_000]);
        assert_eq!(shares[0].high_water(), LEAST);
        shares.truncate(64);
        assert_eq!(shares[0].high_water(), MOST);
    }
}
