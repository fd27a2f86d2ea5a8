//! Requests without a `correlation_id`: one at a time, answered in the order they came.

use std::collections::VecDeque;

use bytes::BytesMut;
use ksi_protocol::Request;
use tokio::time::Instant;

/// So many requests may wait for their turn, and so many bytes of them, before no more are read.
const MAX_WAITING: usize = 256;
const MAX_WAITING_BYTES: usize = 1 << 20;

/// Whose turn it is.
#[derive(Default)]
pub(crate) struct Order {
    /// One is being answered; nothing waits unless this is so.
    pub(crate) busy: bool,
    waiting: VecDeque<(Turn, usize)>,
    bytes: usize,
}

/// What waits for its turn.
pub(crate) enum Turn {
    /// A request, and until when its caller waits.
    Request(Request, Option<Instant>),
    /// The answer to a line that was no request, so that answers stay in the order of the lines.
    Answer(BytesMut),
}

impl Order {
    pub(crate) fn push(&mut self, turn: Turn, bytes: usize) {
        self.bytes += bytes;
        self.waiting.push_back((turn, bytes));
    }

    /// The next, if none is being answered.
    pub(crate) fn next(&mut self) -> Option<Turn> {
        if self.busy {
            return None;
        }
        let (turn, bytes) = self.waiting.pop_front()?;
        self.bytes -= bytes;
        Some(turn)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.waiting.len() >= MAX_WAITING || self.bytes >= MAX_WAITING_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_its_turn_while_one_is_being_answered() {
        let mut order = Order { busy: true, ..Order::default() };
        order.push(Turn::Answer("a\n".into()), 2);
        assert!(order.next().is_none());
        order.busy = false;
        assert!(matches!(order.next(), Some(Turn::Answer(line)) if line == "a\n"));
        assert!(order.next().is_none());
    }

    #[test]
    fn many_small_or_few_large_lines_fill_it() {
        let (mut small, mut large) = (Order::default(), Order::default());
        for _ in 0..MAX_WAITING {
            assert!(!small.is_full());
            small.push(Turn::Answer(BytesMut::new()), 1);
        }
        assert!(small.is_full());
        large.push(Turn::Answer(BytesMut::new()), MAX_WAITING_BYTES);
        assert!(large.is_full());
        large.next();
        assert!(!large.is_full());
    }
}
