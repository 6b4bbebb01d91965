//! What will happen: how long a batch takes that is submitted in a given minute, whether flex has room then, how fast the
//! own engine works. A function of seed, provider and time, so that policy and oracle meet the same future.

use super::traffic::Model;
use super::{HOUR, MINUTE, Setup, Stall};
use batch::{SECOND, Way};

/// SplitMix64, with the shapes that are needed here.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ stream.wrapping_mul(0xd1b5_4a32_d192_ed03))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In (0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }
}

/// When the stalled provider's batches make no progress.
const STALL: (i64, i64) = (10 * HOUR, 13 * HOUR);
/// Tokens a minute that the own engine has to spare, by night and by day.
const IDLE: (i64, i64) = (90_000, 25_000);
/// What a call of the synchronous tier takes at worst, its retry included.
pub(crate) const CALL_US: i64 = 90 * SECOND;
/// Calls of the synchronous tier at once, for each provider.
pub(crate) const PARALLEL: u32 = 200;
/// How long a cancelled batch takes to end.
pub(crate) const CANCEL_US: i64 = 60 * SECOND;

pub(crate) struct Future {
    seed: u64,
    stall: Stall,
}

impl Future {
    pub(crate) fn new(setup: &Setup) -> Self {
        Self {
            seed: setup.seed,
            stall: setup.stall,
        }
    }

    fn dice(&self, model: Model, kind: u64, bucket: i64) -> Dice {
        Dice::new(self.seed, (model as u64 + 1) << 48 | kind << 40 | bucket as u64)
    }

    /// When a batch ends that is submitted at `at`: half an hour to an hour for most, a few for many hours.
    pub(crate) fn batch_ends(&self, model: Model, at: i64) -> i64 {
        let mut dice = self.dice(model, 1, at / MINUTE);
        let (median, spread) = match model {
            Model::Openai => (35.0, 0.8),
            Model::Anthropic => (14.0, 0.8),
            Model::Open => (25.0, 0.6),
        };
        let mut minutes = median * (spread * dice.normal()).exp();
        if dice.below(100) < 4 {
            // The tail: Pareto, cut at a provider's own expiry.
            minutes = 120.0 / dice.unit().powf(0.9);
        }
        let mut ends = at + (minutes.min(1440.0) * MINUTE as f64) as i64;
        let stalled = match self.stall {
            Stall::None => false,
            Stall::Openai => model == Model::Openai,
            Stall::Anthropic => model == Model::Anthropic,
        };
        if stalled && at < STALL.1 && ends > STALL.0 {
            ends += STALL.1 - STALL.0.max(at);
        }
        ends
    }

    /// Whether flex has room in the five minutes around `at`, and how long its call takes.
    pub(crate) fn flex(&self, at: i64) -> Option<i64> {
        let mut dice = self.dice(Model::Openai, 2, at / (5 * MINUTE));
        // Less room by day.
        let room = if (8 * HOUR..20 * HOUR).contains(&(at % (24 * HOUR))) {
            80
        } else {
            95
        };
        (dice.below(100) < room).then(|| {
            let seconds = 40.0 * (0.7 * dice.normal()).exp();
            (seconds.clamp(5.0, 300.0) * SECOND as f64) as i64
        })
    }

    /// When the own engine has worked off `tokens`, begun at `at`.
    pub(crate) fn local_ends(&self, at: i64, tokens: i64) -> i64 {
        let (mut now, mut left) = (at, tokens);
        while left > 0 {
            let by_day = (8 * HOUR..20 * HOUR).contains(&(now % (24 * HOUR)));
            let rate = if by_day { IDLE.1 } else { IDLE.0 };
            let step = left.min(rate);
            now += (step * MINUTE) / rate;
            left -= step;
        }
        now
    }

    /// The synchronous tier: seconds, and now and then a retry.
    pub(crate) fn standard(&self, model: Model, item: usize) -> i64 {
        let mut dice = self.dice(model, 3, item as i64);
        let seconds = 9.0 * (0.7 * dice.normal()).exp();
        (seconds.clamp(1.0, 85.0) * SECOND as f64) as i64
    }
}

/// Nano-dollars for a thousand tokens of a model, one way.
pub(crate) fn price(model: Model, way: Way) -> i64 {
    let standard = match model {
        Model::Openai => 4_000_000,
        Model::Anthropic => 6_000_000,
        Model::Open => 800_000,
    };
    let percent = match (way, model) {
        (Way::Standard, _) => 100,
        (Way::Flex | Way::Batch, _) => 50,
        (Way::Background, _) => 60,
        // Energy; the hardware is there anyway.
        (Way::Local, _) => 15,
    };
    standard * percent / 100
}
