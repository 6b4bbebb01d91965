//! How long a provider's batches take: learned from those that ended and from those that still run, pessimistic until
//! enough have been seen.
//!
//! The curve is a Kaplan–Meier estimate on a grid of ages, with a prior of a few imagined batches (a beta process): in
//! each step of the grid the chance to end is `(ended + weight · prior) / (at risk + weight)`. Batches that still run count
//! as at risk up to their age, so that a provider that stands still is noticed while it does, not when its batches end.

use std::collections::VecDeque;

/// Batches that are remembered.
const KEPT: usize = 256;
/// The grid: each step is a quarter longer than the one before, from half a minute to two days.
const STEPS: usize = 36;
const FIRST_US: f64 = 30.0e6;
const RATIO: f64 = 1.25;
/// The prior counts as so many batches.
const WEIGHT: f64 = 3.0;

/// The completion times of one provider's batches of one model.
#[derive(Clone, Debug)]
pub struct Completions {
    took_us: VecDeque<i64>,
    /// Log-logistic: half of the imagined batches end by then.
    prior_median_us: f64,
    prior_shape: f64,
}

impl Completions {
    /// `median_us`: what is believed before anything was seen; choose it late rather than early.
    pub fn new(median_us: i64) -> Self {
        Self {
            took_us: VecDeque::new(),
            prior_median_us: median_us.max(1) as f64,
            prior_shape: 1.3,
        }
    }

    /// One more batch has ended, `took_us` after it was submitted.
    pub fn ended(&mut self, took_us: i64) {
        if self.took_us.len() == KEPT {
            self.took_us.pop_front();
        }
        self.took_us.push_back(took_us.max(0));
    }

    pub fn seen(&self) -> usize {
        self.took_us.len()
    }

    /// The chance that a batch of age `age_us` ends within `within_us` from now, while batches of the ages `running_us`
    /// have not ended yet (itself among them or not).
    pub fn within(&self, running_us: &[i64], age_us: i64, within_us: i64) -> f64 {
        if within_us <= 0 {
            return 0.0;
        }
        let curve = self.survival(running_us);
        let now = at(&curve, age_us as f64);
        if now <= 0.0 {
            return 0.0;
        }
        (1.0 - at(&curve, age_us.saturating_add(within_us) as f64) / now).clamp(0.0, 1.0)
    }

    /// The chance to be still running at each edge of the grid.
    fn survival(&self, running_us: &[i64]) -> [f64; STEPS + 1] {
        let mut ended = [0.0; STEPS];
        let mut at_risk = [0.0; STEPS];
        for took in &self.took_us {
            let step = step(*took as f64);
            ended[step] += 1.0;
            at_risk[..=step].iter_mut().for_each(|count| *count += 1.0);
        }
        for age in running_us {
            // Whole steps only: in the step it is in, it has not yet had its chance.
            let step = step(*age as f64);
            at_risk[..step].iter_mut().for_each(|count| *count += 1.0);
        }
        let mut curve = [1.0; STEPS + 1];
        for step in 0..STEPS {
            let prior = 1.0 - self.prior(edge(step + 1)) / self.prior(edge(step));
            let chance = (ended[step] + WEIGHT * prior) / (at_risk[step] + WEIGHT);
            curve[step + 1] = curve[step] * (1.0 - chance.clamp(0.0, 1.0));
        }
        curve
    }

    /// The prior chance to be still running at an age.
    fn prior(&self, age_us: f64) -> f64 {
        1.0 / (1.0 + (age_us / self.prior_median_us).powf(self.prior_shape))
    }
}

/// Where step `index` of the grid begins; the first begins at nothing.
fn edge(index: usize) -> f64 {
    if index == 0 {
        0.0
    } else {
        FIRST_US * RATIO.powi(i32::try_from(index - 1).unwrap_or(i32::MAX))
    }
}

fn step(age_us: f64) -> usize {
    if age_us < FIRST_US {
        return 0;
    }
    let steps = ((age_us / FIRST_US).ln() / RATIO.ln()).floor() as usize + 1;
    steps.min(STEPS - 1)
}

/// The curve at an age, straight between two edges.
fn at(curve: &[f64; STEPS + 1], age_us: f64) -> f64 {
    let step = step(age_us);
    let (from, to) = (edge(step), edge(step + 1));
    let part = ((age_us - from) / (to - from)).clamp(0.0, 1.0);
    curve[step] + (curve[step + 1] - curve[step]) * part
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SECOND;
    use proptest::prelude::*;

    const MINUTE: i64 = 60 * SECOND;

    #[test]
    fn nothing_seen_is_late_and_much_seen_is_believed() {
        let mut times = Completions::new(240 * MINUTE);
        assert!(times.within(&[], 0, 60 * MINUTE) < 0.2);
        for _ in 0..100 {
            times.ended(10 * MINUTE);
        }
        assert!(times.within(&[], 0, 20 * MINUTE) > 0.9);
        assert!(times.within(&[], 0, 5 * MINUTE) < 0.1);
    }

    #[test]
    fn a_provider_that_stands_still_is_noticed_by_what_still_runs() {
        let mut times = Completions::new(240 * MINUTE);
        for _ in 0..20 {
            times.ended(10 * MINUTE);
        }
        let before = times.within(&[30 * MINUTE], 30 * MINUTE, 30 * MINUTE);
        let stalled = times.within(&[60 * MINUTE; 30], 30 * MINUTE, 30 * MINUTE);
        assert!(stalled < before / 2.0, "{stalled} after {before}");
    }

    proptest! {
        #[test]
        fn more_time_is_never_less_likely(
            took in prop::collection::vec(0i64..200_000 * SECOND, 0..40),
            age in 0i64..100_000 * SECOND, first in 0i64..90_000 * SECOND, more in 0i64..90_000 * SECOND,
        ) {
            let mut times = Completions::new(120 * MINUTE);
            took.iter().for_each(|took| times.ended(*took));
            let (short, long) = (times.within(&[], age, first), times.within(&[], age, first + more));
            prop_assert!((0.0..=1.0).contains(&short));
            prop_assert!(long >= short - 1e-12);
        }
    }
}
