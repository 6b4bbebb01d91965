//! From logits to a token, reproducibly: each sequence has a generator of its own.

use std::collections::HashMap;

/// How to choose.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// 0 takes the likeliest token.
    pub temperature: f32,
    pub top_p: f32,
    /// 0 is no limit.
    pub top_k: usize,
    pub min_p: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    /// 1 is none.
    pub repetition_penalty: f32,
    pub logit_bias: HashMap<u32, f32>,
    /// How many alternatives to tell of; `None`: no log-probabilities at all.
    pub logprobs: Option<usize>,
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: HashMap::new(),
            logprobs: None,
            seed: 0,
        }
    }
}

/// A token and how likely it was before temperature and cuts.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    pub token: u32,
    pub logprob: f32,
    /// The likeliest tokens, in order.
    pub top: Vec<(u32, f32)>,
}

/// One sequence's sampler.
#[derive(Clone, Debug)]
pub struct Sampler {
    settings: Sampling,
    state: u64,
    /// How often each token was produced.
    counts: HashMap<u32, u32>,
}

impl Sampler {
    pub fn new(settings: Sampling) -> Self {
        let state = settings.seed;
        Self {
            settings,
            state,
            counts: HashMap::new(),
        }
    }

    /// SplitMix64: a full period from any seed.
    fn uniform(&mut self) -> f32 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 40) as f32 / (1u32 << 24) as f32
    }

    /// Chooses a token; `logits` are changed by biases and penalties.
    pub fn choose(&mut self, logits: &mut [f32]) -> Choice {
        self.penalize(logits);
        let token = if self.settings.temperature <= 0.0 {
            likeliest(logits)
        } else {
            self.draw(logits)
        };
        *self.counts.entry(token).or_default() += 1;
        let (logprob, top) = match self.settings.logprobs {
            None => (0.0, Vec::new()),
            Some(count) => logprobs(logits, token, count),
        };
        Choice { token, logprob, top }
    }

    fn penalize(&self, logits: &mut [f32]) {
        let settings = &self.settings;
        for (token, bias) in &settings.logit_bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        for (token, count) in &self.counts {
            if let Some(logit) = logits.get_mut(*token as usize) {
                let repetition = settings.repetition_penalty;
                *logit = if *logit > 0.0 {
                    *logit / repetition
                } else {
                    *logit * repetition
                };
                *logit -= settings.presence_penalty + settings.frequency_penalty * *count as f32;
            }
        }
    }

    fn draw(&mut self, logits: &[f32]) -> u32 {
        let settings = &self.settings;
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |logit: f32| ((logit - largest) / settings.temperature).exp();
        let mut kept: Vec<(f32, u32)> = logits
            .iter()
            .enumerate()
            .map(|(id, logit)| (weight(*logit), id as u32))
            .collect();
        let is_cut = settings.top_k > 0 || settings.top_p < 1.0 || settings.min_p > 0.0;
        if is_cut {
            // The likeliest token weighs 1, so a minimum share of it is a minimum weight.
            kept.retain(|(weight, _)| *weight >= settings.min_p);
            if settings.top_k > 0 && settings.top_k < kept.len() {
                kept.select_nth_unstable_by(settings.top_k, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                kept.truncate(settings.top_k);
            }
            if settings.top_p < 1.0 {
                kept.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                let enough = kept.iter().map(|(weight, _)| weight).sum::<f32>() * settings.top_p;
                let mut sum = 0.0;
                let count = kept
                    .iter()
                    .take_while(|(weight, _)| {
                        let before = sum;
                        sum += weight;
                        before < enough
                    })
                    .count();
                kept.truncate(count.max(1));
            }
        }
        kept.sort_unstable_by_key(|(_, id)| *id);
        let total: f32 = kept.iter().map(|(weight, _)| weight).sum();
        let mut point = self.uniform() * total;
        for (weight, id) in &kept {
            point -= weight;
            if point < 0.0 {
                return *id;
            }
        }
        kept.iter()
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map_or_else(|| likeliest(logits), |(_, id)| *id)
    }
}

/// The largest logit; of equals, the first.
pub fn likeliest(logits: &[f32]) -> u32 {
    let mut best = (f32::NEG_INFINITY, 0);
    for (id, logit) in logits.iter().enumerate() {
        if *logit > best.0 {
            best = (*logit, id as u32);
        }
    }
    best.1
}

fn logprobs(logits: &[f32], token: u32, count: usize) -> (f32, Vec<(u32, f32)>) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total = logits
        .iter()
        .map(|logit| (logit - largest).exp())
        .sum::<f32>()
        .ln()
        + largest;
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let count = count.min(order.len());
    if count > 0 && count < order.len() {
        order.select_nth_unstable_by(count, by_logit);
    }
    order.truncate(count);
    order.sort_unstable_by(by_logit);
    let top = order
        .into_iter()
        .map(|id| (id, logits[id as usize] - total))
        .collect();
    (logits[token as usize] - total, top)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(settings: Sampling, count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(settings);
        (0..count)
            .map(|_| sampler.choose(&mut [0.0, 1.0, 2.0, 3.0]).token)
            .collect()
    }

    #[test]
    fn a_seed_gives_the_same_tokens_and_another_seed_others() {
        let with = |seed| {
            tokens(
                Sampling {
                    seed,
                    ..Sampling::default()
                },
                50,
            )
        };
        assert_eq!(with(1), with(1));
        assert_ne!(with(1), with(2));
    }

    #[test]
    fn shares_follow_the_distribution() {
        let drawn = tokens(Sampling::default(), 20_000);
        let share = drawn.iter().filter(|token| **token == 3).count() as f32 / 20_000.0;
        assert!((share - 0.6439).abs() < 0.02, "{share}");
    }

    #[test]
    fn cuts_leave_only_what_they_should() {
        let only = |settings| tokens(settings, 200).into_iter().min();
        assert_eq!(
            only(Sampling {
                top_k: 2,
                ..Sampling::default()
            }),
            Some(2)
        );
        assert_eq!(
            only(Sampling {
                top_p: 0.6,
                ..Sampling::default()
            }),
            Some(3)
        );
        assert_eq!(
            only(Sampling {
                min_p: 0.3,
                ..Sampling::default()
            }),
            Some(2)
        );
        assert_eq!(
            only(Sampling {
                temperature: 0.0,
                ..Sampling::default()
            }),
            Some(3)
        );
    }

    #[test]
    fn penalties_and_biases_move_the_choice() {
        let greedy = Sampling {
            temperature: 0.0,
            ..Sampling::default()
        };
        assert_eq!(
            tokens(
                Sampling {
                    presence_penalty: 1.5,
                    ..greedy.clone()
                },
                3
            ),
            [3, 2, 3]
        );
        assert_eq!(
            tokens(
                Sampling {
                    logit_bias: [(0, 100.0)].into(),
                    ..greedy
                },
                1
            ),
            [0]
        );
    }
}
