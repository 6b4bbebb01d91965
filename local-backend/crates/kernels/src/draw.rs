//! Which token comes of logits: a temperature, cuts, and a random number. The reference of `cuda/sample.cu`, which gives the
//! same token to the bit: one exponential, sums in the order in which 512 threads take them, random numbers by their index.
//!
//! Owns: the rules. Refuses to know: sequences, penalties, grammars. Invariant: a token whose logit is minus infinity is drawn
//! only where there is no other.

use crate::lanes::{Isa, Lanes, dispatch, exp};

/// Below this share of the likeliest token's weight a token is not drawn: it could be once in a billion.
const NEGLIGIBLE: f32 = 1e-9;
/// Colder than this, the likeliest token is as good as certain, and is taken.
const COLDEST: f32 = 1e-6;
/// Threads of a row on a GPU, and so the number of sums that are taken side by side.
pub(crate) const THREADS: usize = 512;
/// Threads of a warp, whose sums are joined by halves.
const WARP: usize = 32;

/// How one token is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// The likeliest tokens that weigh so much of all together; 1 is all.
    pub top_p: f32,
    /// The least share of the likeliest token's weight.
    pub min_p: f32,
    /// The heaviest so many; 0 is no limit.
    pub top_k: u32,
    pub seed: u64,
    /// Which of the seed's random numbers.
    pub index: u64,
}

impl Default for Draw {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            min_p: 0.0,
            top_k: 0,
            seed: 0,
            index: 0,
        }
    }
}

/// Tokens that may be drawn, with their weights, in order of ids. Kept between draws so that its memory is.
#[derive(Clone, Debug, Default)]
pub struct Candidates(Vec<(f32, u32)>);

impl Draw {
    /// What logits are multiplied by; 0 where the likeliest is taken.
    pub(crate) fn inverse(&self) -> f32 {
        if self.temperature < COLDEST {
            0.0
        } else {
            1.0 / self.temperature
        }
    }

    /// The least weight that is kept, where the likeliest token's is 1.
    pub(crate) fn least(&self) -> f32 {
        self.min_p.max(NEGLIGIBLE)
    }

    /// Its random number, at least 0 and below 1: SplitMix64 as a counter, any number of a seed without the ones before it.
    #[must_use]
    pub fn uniform(&self) -> f32 {
        let count = self.index.wrapping_add(1);
        let mut mixed = self.seed.wrapping_add(count.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 40) as f32 / (1u32 << 24) as f32
    }

    /// The token.
    #[must_use]
    pub fn choose(&self, logits: &[f32], candidates: &mut Candidates) -> u32 {
        let best = likeliest(logits);
        let inverse = self.inverse();
        if inverse == 0.0 || logits.is_empty() {
            return best;
        }
        candidates.weigh(logits, logits[best as usize], (inverse, self.least()));
        if self.top_k > 0 {
            candidates.keep_heaviest(self.top_k as usize);
        }
        if self.top_p < 1.0 {
            candidates.keep_nucleus(self.top_p);
        }
        candidates.pick(self.uniform(), logits.len()).unwrap_or(best)
    }
}

impl Candidates {
    /// All that weigh at least `least`, where the likeliest weighs 1.
    fn weigh(&mut self, logits: &[f32], largest: f32, (inverse, least): (f32, f32)) {
        // A little less than the logit of the least weight, so that most of a vocabulary is passed over by a comparison.
        let least_logit = largest + (least.ln() - 0.01) / inverse - largest.abs() * 1e-6;
        let all = &mut self.0;
        all.clear();
        for (id, logit) in logits.iter().enumerate() {
            if *logit >= least_logit {
                all.push(((logit - largest) * inverse, id as u32));
            }
        }
        for chunk in all.chunks_mut(16) {
            let mut powers = [0.0f32; 16];
            powers
                .iter_mut()
                .zip(&*chunk)
                .for_each(|(to, (power, _))| *to = *power);
            raise(&mut powers);
            chunk
                .iter_mut()
                .zip(powers)
                .for_each(|((weight, _), power)| *weight = power);
        }
        all.retain(|(weight, _)| *weight >= least);
    }

    fn keep_heaviest(&mut self, count: usize) {
        let all = &mut self.0;
        if count < all.len() {
            all.select_nth_unstable_by(count, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            all.truncate(count);
            all.sort_unstable_by_key(|(_, id)| *id);
        }
    }

    /// The heaviest that are enough together, with the one that makes it enough; of equals those of the smallest ids.
    fn keep_nucleus(&mut self, share: f32) {
        let all = &mut self.0;
        let total = sum_from(all, 0.0);
        let enough = total * share;
        // All that are lighter than this weigh less together than what is cut off: they need not be looked at again.
        let light = total * (1.0 - share) / all.len().max(1) as f32 * 0.999;
        let mut low = 0;
        if sum_from(all, light) >= enough {
            all.retain(|(weight, _)| *weight >= light);
            low = light.to_bits();
        }
        // The smallest weight that has less than enough above it, by halving over its bits.
        let mut high = 1.0f32.to_bits();
        while low < high {
            let middle = low + (high - low) / 2;
            if sum_from(all, f32::from_bits(middle + 1)) < enough {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        let least = f32::from_bits(low);
        let left = enough - sum_from(all, f32::from_bits(low + 1));
        let mut equals = if least > 0.0 {
            (left / least).ceil().max(1.0)
        } else {
            1.0
        };
        all.retain(|(weight, _)| {
            let is_equal = *weight == least && equals > 0.0;
            equals -= f32::from(u8::from(is_equal));
            *weight > least || is_equal
        });
    }

    /// The token at a share of all weight; none where rounding puts it behind the last.
    fn pick(&self, share: f32, vocabulary: usize) -> Option<u32> {
        let run = vocabulary.div_ceil(THREADS);
        let mut sums = [0.0f32; THREADS];
        let (mut at, mut end, mut sum) = (0, run, 0.0);
        for (weight, id) in &self.0 {
            if *id as usize >= end {
                sums[at] = sum;
                (at, sum) = (*id as usize / run, 0.0);
                end = (at + 1) * run;
            }
            sum += weight;
        }
        sums[at] = sum;
        let point = share * sums.iter().sum::<f32>();
        let mut before = 0.0;
        for (at, sum) in sums.iter().enumerate() {
            let after = before + sum;
            if point < after {
                let first = self.0.partition_point(|(_, id)| (*id as usize) < at * run);
                let own = self.0[first..].iter();
                let own = own.take_while(|(_, id)| (*id as usize) < (at + 1) * run);
                let mut left = point - before;
                let mut last = None;
                for (weight, id) in own {
                    left -= weight;
                    last = Some(*id);
                    if left < 0.0 {
                        break;
                    }
                }
                return last;
            }
            before = after;
        }
        None
    }
}

/// e to the power of each.
fn raise(x: &mut [f32; 16]) {
    dispatch!(Isa::current(), raise_lanes(x: &mut [f32; 16]));
}

#[inline(always)]
unsafe fn raise_lanes<L: Lanes>(x: &mut [f32; 16]) {
    // SAFETY: the caller has the instruction set, and there are sixteen floats.
    unsafe { L::store(x.as_mut_ptr(), exp::<L>(L::load(x.as_ptr()))) }
}

/// What all that weigh at least `least` weigh together, in the order of a block of threads: each takes every 512th id, warps join
/// theirs by halves, and then one after the other.
fn sum_from(all: &[(f32, u32)], least: f32) -> f32 {
    let mut threads = [0.0f32; THREADS];
    for (weight, id) in all {
        if *weight >= least {
            threads[*id as usize % THREADS] += weight;
        }
    }
    let mut total = 0.0;
    for warp in threads.as_chunks_mut::<WARP>().0 {
        for half in [16, 8, 4, 2, 1] {
            for lane in 0..half {
                warp[lane] += warp[lane + half];
            }
        }
        total += warp[0];
    }
    total
}

/// The largest logit; of equals, the first.
#[must_use]
pub fn likeliest(logits: &[f32]) -> u32 {
    // First how large it is, in lanes, then where: one pass that remembers both is a chain of comparisons.
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (whole, rest) = logits.as_chunks::<16>();
    for chunk in whole {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *lane = if *logit > *lane { *logit } else { *lane };
        }
    }
    let largest = lanes
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, f32::max);
    let is_largest = |logit: &f32| *logit == largest;
    logits.iter().position(is_largest).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_weighed_is_the_likeliest_or_the_first() {
        let draw = Draw {
            temperature: 1.0,
            top_p: 0.5,
            top_k: 3,
            ..Draw::default()
        };
        let mut candidates = Candidates::default();
        let mut choose = |logits: &[f32]| draw.choose(logits, &mut candidates);
        assert_eq!(choose(&[]), 0);
        assert_eq!(choose(&[f32::NEG_INFINITY; 5]), 0);
        assert_eq!(choose(&[f32::NEG_INFINITY, -70.0, f32::NEG_INFINITY]), 1);
        assert_eq!(choose(&[f32::NAN, 2.0, f32::NAN]), 1);
        let cold = Draw {
            temperature: 1e-30,
            ..draw
        };
        assert_eq!(cold.choose(&[1.0, 3.0, 2.0], &mut candidates), 1);
    }
}
