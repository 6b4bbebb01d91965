//! How long a step will take, learned from those that were. Owns the estimate; refuses to know clocks and sequences.
//!
//! A step costs something for being one, something for each token (the weights' multiplications), and something for each
//! pair of a token and one it looks back at (attention). The three rates are fitted by least squares over steps whose weight
//! fades. How the last few steps compare with the fit is kept apart, so that a machine that becomes slower is known to be
//! slower within a few steps, and a fit that is poor at one place is corrected where it is used.

use std::time::Duration;

/// Share of what was learned that each new step leaves.
const MEMORY: f64 = 0.995;
/// A step that takes so many times what was expected counts as no more than that: a hiccup of the machine is not a rate.
const HICCUP: f64 = 4.0;
/// How much of the drag each step is.
const FRESH: f64 = 0.2;
/// How much the rates that it starts from weigh, in steps.
const PRIOR: f64 = 0.05;
/// Aimed at, as a share of the limit: half of all steps take longer than the estimate.
const AIM: f64 = 0.8;

/// The amount of work of a step or a part of one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    pub tokens: usize,
    /// Pairs of a token and one before it, or itself.
    pub pairs: usize,
}

impl Work {
    /// Of `count` tokens that follow `first` others of their sequence.
    #[must_use]
    pub fn of(first: usize, count: usize) -> Self {
        Self {
            tokens: count,
            pairs: count * first + count * (count + 1) / 2,
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            tokens: self.tokens + other.tokens,
            pairs: self.pairs + other.pairs,
        }
    }

    /// As the fit sees it; pairs in thousands keep the numbers of one size.
    fn features(self) -> [f64; 3] {
        [1.0, self.tokens as f64, self.pairs as f64 / 1000.0]
    }
}

/// The learned rates, in seconds.
#[derive(Clone, Debug)]
pub struct Pace {
    rates: [f64; 3],
    moments: [[f64; 3]; 3],
    products: [f64; 3],
    /// What the last steps took, as a multiple of what the rates say.
    drag: f64,
}

impl Default for Pace {
    /// A slow machine: better a first chunk that is too small than one that is too large.
    fn default() -> Self {
        let rates = [0.005, 0.002, 0.001];
        let mut pace = Self {
            rates,
            moments: [[0.0; 3]; 3],
            products: [0.0; 3],
            drag: 1.0,
        };
        for (at, scale) in [1.0, 32.0, 8.0].into_iter().enumerate() {
            pace.moments[at][at] = PRIOR * scale * scale;
            pace.products[at] = PRIOR * scale * scale * rates[at];
        }
        pace
    }
}

impl Pace {
    /// What a step of this work will take, in seconds.
    #[must_use]
    pub fn expected(&self, work: Work) -> f64 {
        self.fitted(work) * self.drag
    }

    /// Whether a step of this work will take no longer than `limit`, more likely than not with some to spare.
    #[must_use]
    pub fn fits(&self, work: Work, limit: Duration) -> bool {
        self.expected(work) <= limit.as_secs_f64() * AIM
    }

    /// The limit under which a step that is expected to take `time` just fits.
    #[must_use]
    pub fn aimed_at(&self, time: Duration) -> Duration {
        time.div_f64(AIM)
    }

    /// What a step costs for being one, in seconds.
    #[must_use]
    pub fn fixed(&self) -> f64 {
        self.rates[0] * self.drag
    }

    fn fitted(&self, work: Work) -> f64 {
        self.rates
            .iter()
            .zip(work.features())
            .map(|(rate, feature)| rate * feature)
            .sum()
    }

    /// Part of a step's time that this part of its work accounts for, in no unit: compare only within a step.
    #[must_use]
    pub fn share(&self, work: Work, parts: usize) -> f64 {
        self.fitted(work) - self.rates[0] + self.rates[0] / parts.max(1) as f64
    }

    /// The most tokens after `first` others that fit into a step of `limit` beside `planned`; at most `most`, and at least
    /// `least` so that there is progress on any machine.
    #[must_use]
    pub fn chunk(
        &self,
        planned: Work,
        first: usize,
        (least, most): (usize, usize),
        limit: Duration,
    ) -> usize {
        let fits = |count: usize| self.fits(planned.plus(Work::of(first, count)), limit);
        let (mut fitting, mut over) = (least, most + 1);
        while over - fitting > 1 {
            let middle = fitting.midpoint(over);
            if fits(middle) {
                fitting = middle;
            } else {
                over = middle;
            }
        }
        fitting
    }

    /// A step of `work` took so long.
    pub fn learn(&mut self, work: Work, took: Duration) {
        let features = work.features();
        let seconds = took.as_secs_f64().min(self.expected(work) * HICCUP);
        let ratio = seconds / self.fitted(work).max(1e-6);
        self.drag += (ratio.clamp(0.25, HICCUP) - self.drag) * FRESH;
        // Short and long steps count alike: it is the relative error that matters.
        let weight = 1e-4 / seconds.max(1e-4).powi(2);
        for row in 0..3 {
            for column in 0..3 {
                let prior = self.moments[row][column];
                self.moments[row][column] = prior * MEMORY + weight * features[row] * features[column];
            }
            self.products[row] = self.products[row] * MEMORY + weight * features[row] * seconds;
        }
        self.solve();
    }

    /// The rates that fit best and are not negative: coordinate descent from where it was.
    fn solve(&mut self) {
        for _ in 0..50 {
            for at in 0..3 {
                let others: f64 = (0..3)
                    .filter(|other| *other != at)
                    .map(|other| self.moments[at][other] * self.rates[other])
                    .sum();
                if self.moments[at][at] > 0.0 {
                    self.rates[at] = ((self.products[at] - others) / self.moments[at][at]).max(0.0);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: Duration = Duration::from_millis(50);

    /// A machine of given rates and a little noise, fed with chunks as large as the pace allows.
    fn times(rates: [f64; 3], steps: usize, noise: u64) -> Vec<f64> {
        let (mut pace, mut times, mut random) = (Pace::default(), Vec::new(), noise);
        let mut first = 0;
        for step in 0..steps {
            let planned = Work::of(300, 1);
            let count = pace.chunk(planned, first, (1, 512), LIMIT);
            let work = planned.plus(Work::of(first, count));
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let jitter = 0.95 + 0.1 * (random >> 40) as f64 / f64::from(1u32 << 24);
            let took: f64 = rates
                .iter()
                .zip(work.features())
                .map(|(rate, feature)| rate * feature)
                .sum::<f64>()
                * jitter;
            pace.learn(work, Duration::from_secs_f64(took));
            // Where even a single token is too much, or the most is not enough, there is nothing to choose.
            if step > steps / 4 && count > 1 && count < 512 {
                times.push(took);
            }
            first = (first + count) % 4000;
        }
        times.sort_unstable_by(f64::total_cmp);
        times
    }

    proptest! {
        #[test]
        fn steps_stay_within_the_limit_on_any_machine(
            base in 0.0005f64..0.015, token in 0.0002f64..0.004, pair in 0.0f64..0.004, noise: u64,
        ) {
            let times = times([base, token, pair], 400, noise);
            if let Some(longest) = times.last() {
                prop_assert!(*longest <= 0.060, "{longest} s");
                let most = times[times.len() * 98 / 100];
                prop_assert!(most <= 0.050, "{most} s");
            }
        }
    }

    #[test]
    fn the_time_allowed_is_used() {
        let times = times([0.004, 0.001, 0.0005], 400, 1);
        let median = times[times.len() / 2];
        assert!((0.036..0.044).contains(&median), "{median} s");
    }

    #[test]
    fn a_machine_that_slows_down_is_known_to() {
        let (mut pace, work) = (Pace::default(), Work::of(0, 64));
        (0..100).for_each(|_| pace.learn(work, Duration::from_millis(20)));
        assert!((pace.expected(work) - 0.020).abs() < 0.001);
        (0..10).for_each(|_| pace.learn(work, Duration::from_millis(100)));
        assert!(pace.expected(work) > 0.070, "{}", pace.expected(work));
        pace.learn(work, Duration::from_secs(5));
        assert!(pace.expected(work) < 0.2, "one hiccup is no rate");
    }

    #[test]
    fn shares_add_up_to_the_step() {
        let pace = Pace::default();
        let (one, two) = (Work::of(0, 40), Work::of(500, 1));
        let sum = pace.share(one, 2) + pace.share(two, 2);
        assert!((sum - pace.fitted(one.plus(two))).abs() < 1e-12);
    }
}
