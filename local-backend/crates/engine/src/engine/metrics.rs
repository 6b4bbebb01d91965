//! What the engine counts, read from any thread without waiting.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets, in seconds; the last bucket has none.
pub const BOUNDS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0,
];

/// How often things took how long.
#[derive(Debug, Default)]
pub struct Histogram {
    counts: [AtomicU64; BOUNDS.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    pub fn observe(&self, took: Duration) {
        let at = BOUNDS.iter().position(|bound| took.as_secs_f64() <= *bound);
        self.counts[at.unwrap_or(BOUNDS.len())].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }

    /// Observations up to each bound, all of them last; and their sum in seconds.
    pub fn read(&self) -> ([u64; BOUNDS.len() + 1], f64) {
        let mut sum = 0;
        let cumulated = std::array::from_fn(|at| {
            sum += self.counts[at].load(Ordering::Relaxed);
            sum
        });
        (cumulated, self.sum_us.load(Ordering::Relaxed) as f64 / 1e6)
    }
}

/// Counters, gauges and histograms, as they are now.
#[derive(Debug, Default)]
pub struct Metrics {
    pub running: AtomicU64,
    pub blocks_used: AtomicU64,
    pub blocks_total: AtomicU64,
    pub prompt_tokens: AtomicU64,
    pub output_tokens: AtomicU64,
    /// Prompt tokens looked up in the prefix cache, and found there.
    pub prefix_queries: AtomicU64,
    pub prefix_hits: AtomicU64,
    pub finished_stop: AtomicU64,
    pub finished_length: AtomicU64,
    pub failed: AtomicU64,
    pub cancelled_queued: AtomicU64,
    pub cancelled_prefill: AtomicU64,
    pub cancelled_decode: AtomicU64,
    pub preempted: AtomicU64,
    pub guessed: AtomicU64,
    pub guessed_right: AtomicU64,
    pub steps: AtomicU64,
    pub aborted_steps: AtomicU64,
    /// Time in steps.
    pub busy_us: AtomicU64,
    /// Of that, in steps of the background class.
    pub background_us: AtomicU64,
    /// The longest step that was not alone on its own, since the start.
    pub longest_step_us: AtomicU64,
    pub first_token: Histogram,
    pub between_tokens: Histogram,
    pub end_to_end: Histogram,
    pub queue: Histogram,
    pub prefill: Histogram,
    pub decode: Histogram,
    /// From a caller's leaving to its request being gone.
    pub cancel: Histogram,
    pub step: Histogram,
    /// Milliseconds since the engine started, at its last sign of life.
    pub heartbeat_ms: AtomicU64,
}

pub(super) fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let histogram = Histogram::default();
        for ms in [1, 3, 40, 100_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        let (counts, sum) = histogram.read();
        assert_eq!((counts[0], counts[2], counts[5], counts[14]), (1, 2, 3, 4));
        assert!((sum - 100.044).abs() < 1e-9);
    }
}
