//! One connection: a task that reads, asks, is told, and writes.

use std::{
    fmt::Write as _,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context as Wake, Poll, Waker, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use ksi_kernel::{Act, Because, BoxFuture, Call, Caller, Kernel, Listener, News, Result};
use ksi_protocol::{EventLine, Line, Lines, write_call};
use serde_json::value::{RawValue, to_raw_value};
use tokio::{
    io::{AsyncReadExt, AsyncWrite},
    net::UnixStream,
    time::Sleep,
};

use crate::{Guest, bell::Bell, calls::Calls, share::Share};

/// So many requests are taken before what they led to is written.
const REQUESTS_PER_TURN: usize = 128;

/// So many turns are taken before other connections get theirs.
const TURNS: usize = 16;

/// So much is read at once.
const READ_SIZE: usize = 16 << 10;

/// A buffer that had to grow beyond this is given back once it is empty.
const KEEP: usize = 64 << 10;

/// Once the daemon is closing, a client has so long to take what is left for it.
const LAST_SECOND: Duration = Duration::from_secs(1);

/// Each connection says this itself, once, whatever it subscribes to.
const SHUTDOWN: &str = "system:shutdown_notification";

/// The subscription of what the connection itself has to say; below all that clients have.
const OWN: &str = "s0";

/// One client.
pub(crate) struct Connection {
    kernel: Kernel,
    stream: UnixStream,
    input: Input,
    calls: Calls,
    /// Whoever may not see everything.
    bound: Option<Caller>,
    out: BytesMut,
    share: Share,
    /// The listener at its work; none once the daemon has no more news.
    news: Option<BoxFuture<(Listener, Option<News>)>>,
    /// Ready when the daemon is closing; none once the client was told.
    closing: Option<BoxFuture<()>>,
    /// Rung by these two, so that they are not polled at every request and answer.
    bell: Arc<Bell>,
    ring: Waker,
    /// It has rung, and they have not been polled until both had nothing more.
    rung: bool,
    /// How long the client still has.
    patience: Option<Pin<Box<Sleep>>>,
    /// Where a subscription's name is written, to save an allocation for each event.
    label: String,
}

/// What the client has sent and nobody has looked at.
#[derive(Default)]
struct Input {
    buf: BytesMut,
    lines: Lines,
    /// A large line has made the buffer grow.
    grown: bool,
    ended: bool,
}

impl Connection {
    /// The connection of this guest, or of somebody who is told only why he is none.
    pub(crate) fn new(
        kernel: Kernel,
        stream: UnixStream,
        guest: Result<Guest>,
        share: Share,
    ) -> Self {
        let listener = kernel.listener();
        let guest = guest.map(|mut guest| {
            guest.caller.inbox = Some(listener.inbox().clone());
            guest
        });
        // What may be seen can change at any time, so it is asked for each event.
        let bound = guest.as_ref().ok().map(|guest| guest.caller.clone());
        let (watched, bell) = (kernel.clone(), Arc::new(Bell::new()));
        Connection {
            calls: Calls::new(kernel.clone(), guest),
            bound: bound.filter(|caller| !caller.is_unbound()),
            kernel,
            stream,
            input: Input::default(),
            out: BytesMut::new(),
            share,
            news: Some(Box::pin(next_news(listener))),
            closing: Some(Box::pin(async move { watched.ending().closing().await })),
            ring: bell.clone().into(),
            bell,
            rung: true,
            patience: None,
            label: String::new(),
        }
    }

    /// Serves the client until it or the daemon has had enough.
    pub(crate) async fn serve(mut self) {
        if let Err(error) = poll_fn(|cx| self.poll(cx)).await {
            tracing::debug!(%error, "a connection broke off");
        }
    }

    /// Everything gets its turn at every wake, so that nothing starves; then one write for all.
    fn poll(&mut self, cx: &mut Wake<'_>) -> Poll<io::Result<()>> {
        self.rung |= self.bell.has_rung(cx);
        self.calls.wake();
        self.notice_closing();
        for _ in 0..TURNS {
            let mut more = self.take_requests(cx)?;
            let were_too_many = self.calls.is_full();
            // Answers before news: that of a subscription must stand before its events.
            more |= self.take_answers(cx);
            more |= were_too_many && !self.calls.is_full();
            more |= self.take_news();
            // What was written moves the rest on only where it stood in the way or is not all.
            let was_full = !self.has_room();
            more |= self.write(cx)? && (was_full || !self.out.is_empty());
            if self.is_done() {
                return Poll::Ready(Ok(()));
            }
            if !more {
                return self.poll_patience(cx).map(Ok);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Whether everything is answered and written, and one side has ended the conversation.
    fn is_done(&self) -> bool {
        let ended = self.input.ended || self.news.is_none();
        ended && self.calls.is_idle() && self.out.is_empty()
    }

    fn has_room(&self) -> bool {
        self.out.len() < self.share.high_water()
    }

    /// Whether there may be more that can be taken at once; so say all three.
    fn take_answers(&mut self, cx: &mut Wake<'_>) -> bool {
        self.has_room() && self.calls.take_answers(cx, &mut self.out)
    }

    fn take_requests(&mut self, cx: &mut Wake<'_>) -> io::Result<bool> {
        for _ in 0..REQUESTS_PER_TURN {
            if !self.has_room() || self.calls.is_full() {
                return Ok(false);
            }
            let Poll::Ready(line) = self.input.poll_line(&mut self.stream, cx)? else {
                return Ok(false);
            };
            let Some(line) = line else {
                self.calls.hang_up();
                return Ok(false);
            };
            self.calls.accept(&line, cx, &mut self.out);
        }
        Ok(true)
    }

    fn take_news(&mut self) -> bool {
        if !self.rung || !self.has_room() || self.calls.is_subscribing() {
            return false;
        }
        let Some(next) = &mut self.news else { return false };
        let mut cx = Wake::from_waker(&self.ring);
        let Poll::Ready((mut listener, news)) = next.as_mut().poll(&mut cx) else {
            self.rung = false;
            return false;
        };
        let Some(news) = news else {
            self.news = None;
            return true;
        };
        self.tell(&news);
        while self.has_room()
            && let Some(more) = listener.at_hand()
        {
            self.tell(&more);
        }
        self.news = Some(Box::pin(next_news(listener)));
        true
    }

    fn tell(&mut self, news: &News) {
        let (event, because) = match news {
            News::Event(event, _) if event.name() == SHUTDOWN => return,
            News::Event(event, because) if self.is_hidden(event.name(), *because) => return,
            News::Event(event, because) => (event, *because),
            News::Call(call) => {
                let Call { id, event, data, origin } = call;
                return write_call(&mut self.out, *id, event, data, &origin.principal);
            }
            News::Lagged { missed } => {
                let data = to_raw_value(&serde_json::json!({ "missed": missed }));
                return self.say("monitor:lagged", &data.unwrap_or_default());
            }
        };
        self.label.clear();
        // Writing to a string does not fail.
        let _ = match because {
            Because::Subscribed(number) => write!(self.label, "s{number}"),
            Because::Followed => write!(self.label, "sender"),
        };
        event.line().write_to(&mut self.out, &self.label);
    }

    /// What a request of its own led to is the client's to see.
    fn is_hidden(&self, event: &str, because: Because) -> bool {
        let hidden = |caller| self.kernel.check(caller, Act::See, event).is_err();
        because != Because::Followed && self.bound.as_ref().is_some_and(hidden)
    }

    fn say(&mut self, event: &str, data: &RawValue) {
        let now = self.kernel.clock().now().0;
        EventLine::new(event, data, None, now).write_to(&mut self.out, OWN);
    }

    fn notice_closing(&mut self) {
        let Some(closing) = self.closing.as_mut().filter(|_| self.rung) else { return };
        if closing.as_mut().poll(&mut Wake::from_waker(&self.ring)).is_pending() {
            return;
        }
        self.closing = None;
        let data = to_raw_value(&serde_json::json!({}));
        self.say(SHUTDOWN, &data.unwrap_or_default());
    }

    fn write(&mut self, cx: &mut Wake<'_>) -> io::Result<bool> {
        if self.out.is_empty() {
            return Ok(false);
        }
        let written = match Pin::new(&mut self.stream).poll_write(cx, &self.out) {
            Poll::Ready(written) => written?,
            Poll::Pending => return Ok(false),
        };
        self.patience = None;
        self.out.advance(written);
        if self.out.is_empty() && self.out.capacity() > KEEP {
            self.out = BytesMut::new();
        }
        Ok(true)
    }

    /// Ready when the daemon is closing and the client has let its last second pass.
    fn poll_patience(&mut self, cx: &mut Wake<'_>) -> Poll<()> {
        let is_stuck = self.closing.is_none() && !self.out.is_empty();
        if !is_stuck && self.news.is_some() {
            self.patience = None;
            return Poll::Pending;
        }
        let last = || Box::pin(tokio::time::sleep(LAST_SECOND));
        self.patience.get_or_insert_with(last).as_mut().poll(cx)
    }
}

impl Input {
    /// The next line; none after the last.
    fn poll_line(
        &mut self,
        stream: &mut UnixStream,
        cx: &mut Wake<'_>,
    ) -> Poll<io::Result<Option<Line>>> {
        while !self.ended {
            if let Some(line) = self.lines.next(&mut self.buf) {
                self.grown |= !matches!(&line, Line::Frame(text) if text.len() <= KEEP);
                return Poll::Ready(Ok(Some(line)));
            }
            self.make_room();
            if ready!(pin!(stream.read_buf(&mut self.buf)).poll(cx))? == 0 {
                self.ended = true;
                return Poll::Ready(Ok(self.lines.finish(&mut self.buf)));
            }
        }
        Poll::Ready(Ok(None))
    }

    fn make_room(&mut self) {
        if self.grown && self.buf.is_empty() && !self.lines.is_skipping() {
            (self.buf, self.grown) = (BytesMut::new(), false);
        }
        if self.buf.capacity() - self.buf.len() < READ_SIZE / 4 {
            self.buf.reserve(READ_SIZE);
        }
    }
}

/// The listener goes in and comes out again, so that waiting for it is never begun anew: a page of
/// the journal that it reads would be read from the start each time a request comes in.
async fn next_news(mut listener: Listener) -> (Listener, Option<News>) {
    let news = listener.next().await;
    (listener, news)
}

#[cfg(test)]
mod tests {
    use ksi_kernel::{Clock, Setup};
    use ksi_state::testing::memory::MemoryJournal;
    use serde_json::Value;
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn another_users_process_is_forbidden_everything() {
        let kernel = Kernel::start(Setup {
            plugins: Vec::new(),
            journal: Arc::new(MemoryJournal::default()),
            clock: Clock::manual(ksi_kernel::Millis(1_500)),
            snapshot_every: 0,
        });
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        let connection =
            Connection::new(kernel.unwrap(), ours, Err(crate::another_user()), Share::default());
        theirs.write_all(b"{\"event\":\"system:health\",\"correlation_id\":1}\n{}").await.unwrap();
        theirs.shutdown().await.unwrap();
        connection.serve().await;
        let mut text = String::new();
        theirs.read_to_string(&mut text).await.unwrap();
        let answers: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(answers[0]["error"]["code"], "forbidden");
        assert_eq!(
            (&answers[0]["correlation_id"], &answers[0]["timestamp"]),
            (&1.into(), &1.5.into())
        );
        assert_eq!(answers[1]["error"]["code"], "bad_params");
        assert_eq!(answers.len(), 2);
    }
}
