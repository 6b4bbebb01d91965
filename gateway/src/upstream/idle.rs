//! Connections to one provider that wait for their next request.
//!
//! The last one in is the first one out, so that a quiet provider keeps few. A connection is looked at when it is taken
//! and every few seconds in between, instead of by a task of its own: a task for every request costs more than the
//! request's own way through the gateway. Knows nothing of HTTP.

use futures_util::FutureExt;
use pingora_core::protocols::Stream;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// What providers keep open at least as long.
const IDLE_FOR: Duration = Duration::from_secs(60);
/// Beyond it a connection is closed instead of kept.
const ROOM: usize = 4096;

struct Waiting {
    stream: Stream,
    /// On the monotonic clock.
    since_ms: u64,
}

/// The waiting connections of one provider.
#[derive(Default)]
pub(super) struct Idle(Mutex<VecDeque<Waiting>>);

impl Idle {
    /// The connection that was used last, if it is still open.
    pub(super) fn take(&self) -> Option<Stream> {
        loop {
            let mut waiting = self.lock().pop_back()?;
            if is_quiet(&mut waiting.stream) {
                return Some(waiting.stream);
            }
        }
    }

    /// Keeps a connection whose last answer was read to its end.
    pub(super) fn put(&self, stream: Stream, now_ms: u64) {
        let mut waiting = self.lock();
        if waiting.len() < ROOM {
            waiting.push_back(Waiting {
                stream,
                since_ms: now_ms,
            });
        }
    }

    /// Closes what has waited for too long and what the other side has closed.
    pub(super) fn sweep(&self, now_ms: u64) {
        let oldest = now_ms.saturating_sub(u64::try_from(IDLE_FOR.as_millis()).unwrap_or(u64::MAX));
        self.lock()
            .retain_mut(|waiting| waiting.since_ms >= oldest && is_quiet(&mut waiting.stream));
    }

    /// Closes all of them.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nothing to read: neither an end nor bytes that nobody asked for, after which a connection cannot be trusted.
fn is_quiet(stream: &mut Stream) -> bool {
    stream.read(&mut [0]).now_or_never().is_none()
}
