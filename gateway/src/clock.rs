//! The one place where the gateway looks at a clock or rolls dice.
//!
//! `TOLLGATE_CLOCK_OFFSET_MS` in the environment puts its calendar ahead or back, for tests of gateways whose clocks disagree.

use exchange::RequestId;
use std::pin::Pin;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::time::Sleep;

/// Microseconds since the epoch.
pub(crate) fn unix_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros())
        .unwrap_or(i64::MAX)
        .saturating_add(offset_us())
}

#[expect(
    clippy::disallowed_methods,
    reason = "not a setting: only tests have clocks that disagree"
)]
fn offset_us() -> i64 {
    static OFFSET_US: std::sync::OnceLock<i64> = std::sync::OnceLock::new();
    *OFFSET_US.get_or_init(|| {
        let text = std::env::var("TOLLGATE_CLOCK_OFFSET_MS").unwrap_or_default();
        text.parse::<i64>().unwrap_or(0).saturating_mul(1_000)
    })
}

/// A stopwatch that also knows when, on the calendar, it was started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch {
    pub(crate) started_unix_us: i64,
    started: Instant,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self {
            started_unix_us: unix_us(),
            started: Instant::now(),
        }
    }

    pub(crate) fn elapsed_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// The calendar time now, by the monotonic clock.
    pub(crate) fn now_unix_us(&self) -> i64 {
        self.started_unix_us.saturating_add_unsigned(self.elapsed_us())
    }
}

/// Tells when something has been silent for too long. A sign of life costs a look at the clock; to set a timer for each
/// costs more than to relay what came.
pub(crate) struct Silence {
    limit: Duration,
    heard: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Silence {
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            limit,
            heard: Instant::now(),
            timer: Box::pin(tokio::time::sleep(limit)),
        }
    }

    pub(crate) fn heard(&mut self) {
        self.heard = Instant::now();
    }

    /// Resolves when nothing has been heard for the limit. Cancel-safe.
    pub(crate) async fn too_long(&mut self) {
        loop {
            self.timer.as_mut().await;
            let until = self.heard + self.limit;
            if until <= Instant::now() {
                return;
            }
            self.timer.as_mut().reset(until.into());
        }
    }
}

/// Microseconds on the monotonic clock since an arbitrary but fixed moment.
pub(crate) fn monotonic_us() -> i64 {
    i64::try_from(since_start().as_micros()).unwrap_or(i64::MAX)
}

/// Milliseconds on the monotonic clock since an arbitrary but fixed moment.
pub(crate) fn monotonic_ms() -> u64 {
    u64::try_from(since_start().as_millis()).unwrap_or(u64::MAX)
}

fn since_start() -> std::time::Duration {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// A fresh request id and the seed of its decision.
pub(crate) fn new_request(now_unix_us: i64) -> (RequestId, u64) {
    let random = uuid::Uuid::new_v4();
    let bytes = random.as_bytes();
    let mut tail = [0; 10];
    tail.copy_from_slice(&bytes[..10]);
    let unix_ms = u64::try_from(now_unix_us / 1000).unwrap_or(0);
    (RequestId::new(unix_ms, tail), random.as_u64_pair().1)
}

/// Bytes fit for a key.
pub(crate) fn entropy() -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    bytes[16..].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    bytes
}
