use bytes::{Bytes, BytesMut};

/// Cuts what a connection has read into lines.
///
/// Empty lines are skipped, `\r\n` ends a line like `\n`. However the bytes arrive, the lines are
/// the same, and no byte is looked at twice. A frame shares the buffer's memory.
#[derive(Debug)]
pub struct Lines {
    limit: usize,
    /// How far the buffer is known to hold no newline.
    scanned: usize,
    /// How much of a line that is too long was thrown away so far.
    skipped: Option<usize>,
}

/// What stood before a newline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// A line within the limit, without its end.
    Frame(Bytes),
    /// A line over the limit, which is gone.
    TooLong {
        /// How long it was.
        bytes: usize,
    },
}

impl Default for Lines {
    fn default() -> Self {
        Self::new(Self::LIMIT)
    }
}

impl Lines {
    /// The longest request that a daemon takes when nobody says otherwise: 8 MiB.
    pub const LIMIT: usize = 8 << 20;

    /// Lines of up to `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit, scanned: 0, skipped: None }
    }

    /// Takes the next whole line out of the buffer; none means that more must be read.
    pub fn next(&mut self, buf: &mut BytesMut) -> Option<Line> {
        while let Some(found) = memchr::memchr(b'\n', &buf[self.scanned..]) {
            let mut line = buf.split_to(self.scanned + found + 1);
            self.scanned = 0;
            line.truncate(line.len() - 1);
            if let Some(line) = self.line(line) {
                return Some(line);
            }
        }
        if self.skipped.is_some() || self.is_too_long(buf) {
            *self.skipped.get_or_insert(0) += buf.len();
            buf.clear();
        }
        self.scanned = buf.len();
        None
    }

    /// The last line, when the connection ended without a newline.
    pub fn finish(&mut self, buf: &mut BytesMut) -> Option<Line> {
        self.scanned = 0;
        self.line(buf.split())
    }

    /// Whether the present line is already over the limit, however it will end.
    pub fn is_skipping(&self) -> bool {
        self.skipped.is_some()
    }

    fn line(&mut self, mut line: BytesMut) -> Option<Line> {
        if let Some(skipped) = self.skipped.take() {
            return Some(Line::TooLong { bytes: skipped + line.len() });
        }
        if self.is_too_long(&line) {
            return Some(Line::TooLong { bytes: line.len() });
        }
        line.truncate(without_return(&line).len());
        (!line.trim_ascii().is_empty()).then(|| Line::Frame(line.freeze()))
    }

    fn is_too_long(&self, line: &[u8]) -> bool {
        without_return(line).len() > self.limit
    }
}

fn without_return(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 8;

    fn cut(chunks: &[&[u8]]) -> Vec<Line> {
        let (mut lines, mut buf, mut found) = (Lines::new(LIMIT), BytesMut::new(), Vec::new());
        for chunk in chunks {
            buf.extend_from_slice(chunk);
            while let Some(line) = lines.next(&mut buf) {
                found.push(line);
            }
            assert!(buf.len() <= LIMIT + 1, "{} bytes are kept", buf.len());
        }
        found.extend(lines.finish(&mut buf));
        assert!(buf.is_empty(), "nothing is left behind");
        found
    }

    /// The same rules said in another way: all the text at once.
    fn expected(text: &[u8]) -> Vec<Line> {
        let lines = text.split(|byte| *byte == b'\n');
        let lines = lines.filter_map(|line| {
            let content = line.strip_suffix(b"\r").unwrap_or(line);
            if content.len() > LIMIT {
                return Some(Line::TooLong { bytes: line.len() });
            }
            let blank = content.iter().all(u8::is_ascii_whitespace);
            (!blank).then(|| frame(content))
        });
        lines.collect()
    }

    fn frame(text: &[u8]) -> Line {
        Line::Frame(Bytes::copy_from_slice(text))
    }

    #[test]
    fn a_line_ends_at_a_newline_with_or_without_a_return() {
        assert_eq!(cut(&[b"a\nb\r\nc"]), [frame(b"a"), frame(b"b"), frame(b"c")]);
    }

    #[test]
    fn empty_lines_are_skipped() {
        assert_eq!(cut(&[b"\n\r\n  \na\n\n"]), [frame(b"a")]);
    }

    #[test]
    fn a_line_of_the_limit_is_taken_and_one_byte_more_is_too_long() {
        assert_eq!(cut(&[b"12345678\n"]), [frame(b"12345678")]);
        assert_eq!(cut(&[b"12345678\r", b"\n"]), [frame(b"12345678")]);
        assert_eq!(cut(&[b"123456789\nnext\n"]), [Line::TooLong { bytes: 9 }, frame(b"next")]);
    }

    #[test]
    fn a_line_that_is_too_long_is_reported_once_and_the_next_is_taken() {
        let lines = cut(&[b"aaaaaaaaa", b"aaaaaaaaa", b"aa\nnext\n"]);
        assert_eq!(lines, [Line::TooLong { bytes: 20 }, frame(b"next")]);
    }

    #[test]
    fn a_line_that_is_too_long_is_known_before_it_ends() {
        let (mut lines, mut buf) = (Lines::new(LIMIT), BytesMut::from("123456789"));
        assert_eq!(lines.next(&mut buf), None);
        assert!(lines.is_skipping());
        assert_eq!(lines.finish(&mut buf), Some(Line::TooLong { bytes: 9 }));
        assert!(!lines.is_skipping());
    }

    #[test]
    fn a_long_line_that_trickles_in_is_looked_at_once() {
        let mut lines = Lines::default();
        let mut buf = BytesMut::new();
        for _ in 0..1000 {
            buf.extend_from_slice(&[b'a'; 1000]);
            assert_eq!(lines.next(&mut buf), None);
            assert_eq!(lines.scanned, buf.len());
        }
        buf.extend_from_slice(b"\n");
        assert_eq!(lines.next(&mut buf), Some(frame(&[b'a'; 1_000_000])));
        assert_eq!(lines.scanned, 0);
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_the_bytes_arrive(
            text in proptest::collection::vec(
                prop_oneof![3 => Just(b'a'), 2 => Just(b'\n'), 1 => Just(b'\r'), 1 => Just(b' ')],
                0..200,
            ),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let mut at: Vec<_> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            at.extend([0, text.len()]);
            at.sort_unstable();
            let chunks: Vec<_> = at.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            prop_assert_eq!(cut(&chunks), expected(&text));
        }
    }
}
