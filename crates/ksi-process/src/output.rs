//! What a program says, with a cap: what is beyond is counted and dropped. It is always read, so
//! that no program is held up by it, and never kept, so that none fills our memory.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

/// How much of a stream is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap {
    /// Bytes of one line; the rest of a longer one is dropped.
    pub line: usize,
    /// Bytes of all lines together; later lines are dropped.
    pub total: u64,
}

/// The lines of a stream, as far as a cap lets them through.
#[derive(Debug)]
pub struct CappedLines<R> {
    stream: BufReader<R>,
    cap: Cap,
    line: Vec<u8>,
    /// Whether a line has begun, though all of it may have been dropped.
    begun: bool,
    kept: u64,
    dropped: u64,
}

impl<R: AsyncRead + Unpin> CappedLines<R> {
    /// The lines of this stream.
    pub fn new(stream: R, cap: Cap) -> Self {
        let stream = BufReader::new(stream);
        Self { stream, cap, line: Vec::new(), begun: false, kept: 0, dropped: 0 }
    }

    /// The next line without its end, or None at the end of the stream. What is not UTF-8 is
    /// replaced. Dropping the future loses nothing.
    pub async fn next(&mut self) -> io::Result<Option<String>> {
        loop {
            let ready = self.stream.fill_buf().await?;
            if ready.is_empty() {
                return Ok(if self.begun { self.finish() } else { None });
            }
            let end = ready.iter().position(|byte| *byte == b'\n');
            let length = end.unwrap_or(ready.len());
            let room = self.cap.line.saturating_sub(self.line.len());
            let left = self.cap.total.saturating_sub(self.kept);
            let keep = length.min(room).min(usize::try_from(left).unwrap_or(usize::MAX));
            self.line.extend_from_slice(&ready[..keep]);
            self.begun |= length > 0 || left > 0;
            self.kept += keep as u64;
            self.dropped += (length - keep) as u64;
            self.stream.consume(length + usize::from(end.is_some()));
            if end.is_some()
                && let Some(line) = self.finish()
            {
                return Ok(Some(line));
            }
        }
    }

    /// How many bytes were dropped so far, the ends of lines not counted.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// None for a line of which nothing was kept because the cap was reached before.
    fn finish(&mut self) -> Option<String> {
        let nothing_left = self.kept >= self.cap.total && self.line.is_empty();
        self.begun = false;
        let line = std::mem::take(&mut self.line);
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        (!nothing_left).then(|| String::from_utf8_lossy(line).into_owned())
    }
}

/// A piece of what a program said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// Its last part; what is not UTF-8 is replaced.
    pub text: String,
    /// How many bytes came before.
    pub dropped: u64,
}

/// Reads to the end and keeps the last `keep` bytes; an error counts as the end.
pub async fn tail(stream: Option<impl AsyncRead + Unpin>, keep: usize) -> Tail {
    let Some(mut stream) = stream else { return Tail::default() };
    let (mut kept, mut dropped) = (Vec::new(), 0);
    let mut piece = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut piece).await {
        kept.extend_from_slice(&piece[..read]);
        let beyond = kept.len().saturating_sub(keep);
        dropped += beyond as u64;
        kept.drain(..beyond);
    }
    Tail { text: String::from_utf8_lossy(&kept).into_owned(), dropped }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(text: &[u8], cap: Cap) -> (Vec<String>, u64) {
        let mut lines = CappedLines::new(text, cap);
        let mut found = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            found.push(line);
        }
        assert!(lines.line.capacity() <= cap.line.max(64), "memory is bounded by the cap");
        (found, lines.dropped())
    }

    const WIDE: Cap = Cap { line: 100, total: 1000 };

    #[tokio::test]
    async fn lines_within_the_cap_come_as_they_are() {
        let (found, dropped) = lines(b"one\n\ntwo\r\nlast", WIDE).await;
        assert_eq!(found, ["one", "", "two", "last"]);
        assert_eq!(dropped, 0);
        assert_eq!(lines(b"", WIDE).await.0, [] as [String; 0]);
        assert_eq!(lines(b"a\n", WIDE).await.0, ["a"]);
        assert_eq!(lines(b"\xff\n", WIDE).await.0, ["\u{fffd}"]);
    }

    #[tokio::test]
    async fn the_rest_of_a_long_line_is_dropped_and_counted() {
        let mut text = vec![b'x'; 50_000];
        text.extend_from_slice(b"\nnext\n");
        let (found, dropped) = lines(&text, Cap { line: 10, total: 1000 }).await;
        assert_eq!(found, ["xxxxxxxxxx", "next"]);
        assert_eq!(dropped, 49_990);
    }

    #[tokio::test]
    async fn lines_beyond_the_total_are_dropped_and_counted() {
        let (found, dropped) = lines(b"12345\n67890\nabc\n\nd", Cap { line: 9, total: 7 }).await;
        assert_eq!(found, ["12345", "67"]);
        assert_eq!(dropped, 3 + 3 + 1);
    }

    #[tokio::test]
    async fn a_dropped_future_loses_no_part_of_a_line() {
        use tokio::io::AsyncWriteExt;
        let (mut writer, reader) = tokio::io::duplex(64);
        let mut lines = CappedLines::new(reader, WIDE);
        writer.write_all(b"first half, ").await.unwrap();
        {
            let mut next = std::pin::pin!(lines.next());
            let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(next.as_mut().poll(cx)));
            assert!(polled.await.is_pending());
        }
        writer.write_all(b"second half\n").await.unwrap();
        assert_eq!(lines.next().await.unwrap().unwrap(), "first half, second half");
    }

    #[tokio::test]
    async fn a_long_complaint_keeps_its_end() {
        let mut long = vec![b'a'; 50_000];
        long.extend_from_slice(b"the end");
        let tail = tail(Some(&long[..]), 1000).await;
        assert_eq!((tail.text.len(), tail.dropped), (1000, 49_007));
        assert!(tail.text.ends_with("athe end"));
        assert_eq!(super::tail(None::<&[u8]>, 10).await, Tail::default());
    }
}
