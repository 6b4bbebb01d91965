//! One rate: so much a minute, which may be used all at once and comes back evenly.
//!
//! Whole numbers throughout: the level counts units × microseconds of a minute, so that a microsecond's refill is exactly
//! the rate. Over any stretch of `t` minutes no more than `rate × (1 + t)` is taken, and what was taken beyond what was
//! there (a true-up) is waited for.

pub(crate) const MINUTE_US: i64 = 60_000_000;

/// A token bucket. What it meters may be requests or LLM tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Units a minute; also the most that can be saved up.
    rate: u32,
    /// In units × [`MINUTE_US`]. Below zero: taken and not yet refilled.
    level: i64,
    at_us: i64,
}

const fn scaled(units: u64) -> i64 {
    // 2^32 units are far beyond any bucket, and keep the product within range.
    let units = if units > u32::MAX as u64 {
        u32::MAX as u64
    } else {
        units
    };
    units.cast_signed() * MINUTE_US
}

impl Bucket {
    /// A full one. A rate of 0 is taken as 1: nothing could ever pass it.
    pub fn new(rate: u32, now_us: i64) -> Self {
        let rate = if rate == 0 { 1 } else { rate };
        Self {
            rate,
            level: scaled(rate as u64),
            at_us: now_us,
        }
    }

    pub const fn rate(&self) -> u32 {
        self.rate
    }

    /// Lets in what has come since the last time. A clock that goes backwards brings nothing and takes nothing.
    pub(crate) fn refill(&mut self, now_us: i64) {
        let passed = now_us.saturating_sub(self.at_us);
        if passed <= 0 {
            return;
        }
        self.at_us = now_us;
        let gained = i64::from(self.rate).saturating_mul(passed);
        self.level = self.level.saturating_add(gained).min(self.full());
    }

    const fn full(&self) -> i64 {
        scaled(self.rate as u64)
    }

    /// Microseconds until `units` can be taken; 0: now. More than a bucket holds can be taken from a full one, which then
    /// owes the rest: it would never pass otherwise.
    pub(crate) fn wait_us(&self, units: u64) -> u64 {
        let missing = scaled(units).min(self.full()).saturating_sub(self.level);
        if missing <= 0 {
            return 0;
        }
        missing.unsigned_abs().div_ceil(u64::from(self.rate))
    }

    /// Takes `units`, whether or not they are there.
    pub(crate) fn take(&mut self, units: u64) {
        self.level = self.level.saturating_sub(scaled(units));
    }

    pub(crate) fn give_back(&mut self, units: u64) {
        self.level = self.level.saturating_add(scaled(units)).min(self.full());
    }

    pub(crate) fn forgive(&mut self) {
        self.level = self.level.max(0);
    }

    /// Whole units there now.
    pub(crate) fn remaining(&self) -> u64 {
        u64::try_from(self.level / MINUTE_US).unwrap_or(0)
    }

    /// Microseconds until it is full again.
    pub(crate) fn reset_us(&self) -> u64 {
        self.wait_us(u64::from(self.rate))
    }

    /// The same bucket at another rate, as full in proportion.
    pub(crate) fn at_rate(&self, rate: u32) -> Self {
        let mut changed = Self::new(rate, self.at_us);
        let level = i128::from(self.level) * i128::from(changed.rate) / i128::from(self.rate);
        changed.level = i64::try_from(level).unwrap_or(i64::MIN).min(changed.full());
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_used_at_once_comes_back_evenly() {
        let mut bucket = Bucket::new(60, 0);
        bucket.take(60);
        assert_eq!((bucket.remaining(), bucket.wait_us(1)), (0, 1_000_000));
        bucket.refill(999_999);
        assert_eq!(bucket.wait_us(1), 1);
        bucket.refill(1_000_000);
        assert_eq!(
            (bucket.remaining(), bucket.wait_us(1), bucket.reset_us()),
            (1, 0, 59_000_000)
        );
        bucket.refill(500_000);
        assert_eq!(
            bucket.remaining(),
            1,
            "a clock that goes backwards changes nothing"
        );
        bucket.refill(i64::MAX);
        assert_eq!(bucket.remaining(), 60);
    }

    #[test]
    fn more_than_a_minute_s_worth_passes_a_full_bucket_and_is_owed() {
        let mut bucket = Bucket::new(100, 0);
        assert_eq!(bucket.wait_us(250), 0);
        bucket.take(250);
        // 150 owed and the full 100 wanted: two and a half minutes.
        assert_eq!(bucket.wait_us(250), 150_000_000);
    }

    #[test]
    fn another_rate_keeps_the_proportion() {
        let mut bucket = Bucket::new(100, 0);
        bucket.take(50);
        assert_eq!(bucket.at_rate(10).remaining(), 5);
        assert_eq!(bucket.at_rate(10).at_rate(100).remaining(), 50);
    }

    proptest! {
        /// Over any stretch of time, what was taken when it was there is at most a full bucket and what came in.
        #[test]
        fn no_stretch_of_time_sees_more_than_the_rate(rate in 1u32..10_000, asks in proptest::collection::vec((0i64..5_000_000, 1u64..2_000), 1..80)) {
            let (mut bucket, mut now, mut taken) = (Bucket::new(rate, 0), 0, Vec::new());
            for (step, units) in asks {
                now += step;
                bucket.refill(now);
                let units = units.min(u64::from(rate));
                if bucket.wait_us(units) == 0 {
                    bucket.take(units);
                    taken.push((now, units));
                }
            }
            for start in 0..taken.len() {
                let mut sum = 0;
                for (at, units) in &taken[start..] {
                    sum += u128::from(*units);
                    let passed = u128::from((at - taken[start].0).unsigned_abs());
                    prop_assert!(sum * 60_000_000 <= u128::from(rate) * (60_000_000 + passed));
                }
            }
        }

        /// The wait that is told is the whole wait, and no more than it.
        #[test]
        fn the_wait_is_exact(rate in 1u32..1_000_000, used in 0u64..3_000_000, wanted in 1u64..2_000_000) {
            let mut bucket = Bucket::new(rate, 0);
            bucket.take(used);
            let wait = i64::try_from(bucket.wait_us(wanted)).unwrap();
            let after = |us: i64| { let mut later = bucket; later.refill(us); later.wait_us(wanted) };
            prop_assert_eq!(after(wait), 0);
            prop_assert!(wait == 0 || after(wait - 1) > 0);
        }

        /// Who asks for no more than the rate, evenly, is never refused.
        #[test]
        fn an_even_stream_at_the_rate_is_never_refused(rate in 1u32..100_000, requests in 1usize..300) {
            let mut bucket = Bucket::new(rate, 0);
            bucket.take(u64::from(rate));
            let step = 60_000_000i64.div_euclid(i64::from(rate)) + 1;
            for request in 1..=requests {
                bucket.refill(step * request as i64);
                prop_assert_eq!(bucket.wait_us(1), 0);
                bucket.take(1);
            }
        }
    }
}
