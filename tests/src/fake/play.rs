//! Plays an answer in time: a response body that yields each event when it is due, and whose drop is the hang-up.
//!
//! Tokens are due on a fixed schedule from the first one, so that a late wake-up does not stretch the whole stream.

use super::log::{Ended, Entry, Ticket};
use super::script::{STAMP, Script};
use bytes::Bytes;
use hyper::body::{Body, Frame};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// Time for the half event to leave before the connection is cut.
const BEFORE_CUT: Duration = Duration::from_millis(20);
/// Far enough not to come.
const NEVER: Duration = Duration::from_secs(86_400);

/// One server-sent event.
pub struct Event {
    bytes: Bytes,
    /// Carries generated content, so the pace and the cuts apply.
    token: bool,
}

impl Event {
    pub fn plain(text: String) -> Self {
        Self {
            bytes: text.into(),
            token: false,
        }
    }

    pub fn token(text: String) -> Self {
        Self {
            bytes: text.into(),
            token: true,
        }
    }
}

enum State {
    Playing,
    /// Half an event is out; at the deadline the connection goes.
    Cutting,
    Over,
}

/// The body of a streamed answer.
pub struct Play {
    events: Box<dyn Iterator<Item = Event> + Send>,
    /// An event that is not due yet.
    waiting: Option<Event>,
    due: Instant,
    sleep: Pin<Box<Sleep>>,
    script: Script,
    sent: u32,
    total: u32,
    state: State,
    ticket: Ticket,
}

impl Play {
    pub fn new(
        events: Box<dyn Iterator<Item = Event> + Send>,
        script: Script,
        total: u32,
        ticket: Ticket,
    ) -> Self {
        let due = Instant::now();
        Self {
            events,
            waiting: None,
            due,
            sleep: Box::pin(sleep_until(due)),
            script,
            sent: 0,
            total,
            state: State::Playing,
            ticket,
        }
    }

    fn wait_until(&mut self, due: Instant, cx: &mut Context<'_>) -> Poll<()> {
        if self.sleep.deadline() != due {
            self.sleep.as_mut().reset(due);
        }
        self.sleep.as_mut().poll(cx)
    }

    /// The next event with its time, or nothing at the end.
    fn next_event(&mut self) -> Option<Event> {
        if let Some(event) = self.waiting.take() {
            return Some(event);
        }
        let event = self.events.next()?;
        if event.token && self.sent > 0 {
            self.due += self.script.gap;
        }
        Some(event)
    }
}

impl Body for Play {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        match this.state {
            State::Over => return Poll::Ready(None),
            State::Cutting => {
                let due = this.due;
                std::task::ready!(this.wait_until(due, cx));
                this.state = State::Over;
                this.ticket.end(Ended::Cut);
                return Poll::Ready(Some(Err(std::io::Error::other("cut as scripted"))));
            }
            State::Playing => {}
        }
        let Some(event) = this.next_event() else {
            this.state = State::Over;
            this.ticket.end(Ended::Finished);
            return Poll::Ready(None);
        };
        if event.token {
            let due = if this.script.stall_after == Some(this.sent) {
                Instant::now() + NEVER
            } else {
                this.due
            };
            let immediate = this.script.gap.is_zero() && this.script.stall_after.is_none();
            if !immediate && this.wait_until(due, cx).is_pending() {
                this.waiting = Some(event);
                return Poll::Pending;
            }
            if this.script.cut_after == Some(this.sent) {
                this.state = State::Cutting;
                this.due = Instant::now() + BEFORE_CUT;
                return Poll::Ready(Some(Ok(Frame::data(event.bytes.slice(..event.bytes.len() / 2)))));
            }
            this.sent += 1;
            this.ticket.token();
        }
        let bytes = if event.token && this.script.stamp {
            stamped(event.bytes)
        } else {
            event.bytes
        };
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

/// Puts the time into the place that the token keeps for it.
fn stamped(bytes: Bytes) -> Bytes {
    let Some(at) = memchr::memmem::find(&bytes, STAMP.as_bytes()) else {
        return bytes;
    };
    let mut bytes = Vec::from(bytes);
    let now = format!("@{:019}", super::log::unix_ns());
    bytes[at..at + STAMP.len()].copy_from_slice(now.as_bytes());
    bytes.into()
}

impl Drop for Play {
    fn drop(&mut self) {
        let unfinished = matches!(self.state, State::Playing);
        if unfinished && self.script.deaf {
            let task = talk_on(
                self.ticket.shared(),
                self.total.saturating_sub(self.sent),
                self.script.gap,
            );
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(task);
            }
        }
    }
}

/// Generates the rest for nobody.
async fn talk_on(entry: Arc<Mutex<Entry>>, tokens: u32, gap: Duration) {
    for _ in 0..tokens {
        tokio::time::sleep(gap).await;
        entry.lock().unwrap().tokens += 1;
    }
}
