//! From logits to a token, reproducibly: token n of an answer is drawn with random number n of its seed. Owns penalties and
//! likelihoods, and says whether a device may draw by itself; refuses to know text and other sequences. Invariant: a token whose
//! logit is minus infinity is never chosen.

pub use kernels::likeliest;
use kernels::{Candidates, Draw};
use std::collections::{HashMap, HashSet};

/// How to choose.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// 0 takes the likeliest token.
    pub temperature: f32,
    pub top_p: f32,
    /// 0 is no limit.
    pub top_k: usize,
    pub min_p: f32,
    /// Once for each token that was produced.
    pub presence_penalty: f32,
    /// As often as it was produced.
    pub frequency_penalty: f32,
    /// For tokens produced or in the prompt; 1 is none.
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

impl Sampling {
    fn repeats(&self) -> bool {
        (self.repetition_penalty - 1.0).abs() > f32::EPSILON
    }

    /// Whether logits change by what came before.
    fn penalizes(&self) -> bool {
        self.repeats() || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
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
    /// Tokens chosen so far.
    chosen: u64,
    /// How often each token was produced.
    counts: HashMap<u32, u32>,
    /// Those of the prompt, where they matter.
    prompt: HashSet<u32>,
    candidates: Candidates,
}

impl Sampler {
    /// For an answer to `prompt`.
    #[must_use]
    pub fn new(settings: Sampling, prompt: &[u32]) -> Self {
        let repeats = settings.repeats();
        Self {
            chosen: 0,
            prompt: prompt.iter().copied().filter(|_| repeats).collect(),
            settings,
            counts: HashMap::new(),
            candidates: Candidates::default(),
        }
    }

    /// How the token after `ahead` more is drawn, where that is all there is to do: nothing is told of likelihoods, and no logit
    /// is changed by what came before.
    #[must_use]
    pub fn draw_alone(&self, ahead: usize) -> Option<Draw> {
        let settings = &self.settings;
        let is_plain = settings.logprobs.is_none() && settings.logit_bias.is_empty() && !settings.penalizes();
        is_plain.then(|| self.draw(ahead))
    }

    fn draw(&self, ahead: usize) -> Draw {
        let settings = &self.settings;
        Draw {
            temperature: settings.temperature.max(0.0),
            top_p: settings.top_p,
            min_p: settings.min_p,
            top_k: u32::try_from(settings.top_k).unwrap_or(u32::MAX),
            seed: settings.seed,
            index: self.chosen + ahead as u64,
        }
    }

    /// Chooses a token; `logits` are changed by biases and penalties.
    pub fn choose(&mut self, logits: &mut [f32]) -> Choice {
        self.penalize(logits);
        let token = self.draw(0).choose(logits, &mut self.candidates);
        self.take(token, logits)
    }

    /// Takes a token that is prescribed or was drawn elsewhere, as if it had been chosen; no logits are there where
    /// [`Sampler::draw_alone`] said so.
    pub fn take(&mut self, token: u32, logits: &[f32]) -> Choice {
        self.chosen += 1;
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
        let repetition = settings.repetition_penalty;
        let repeated = self
            .prompt
            .iter()
            .chain(self.counts.keys().filter(|token| !self.prompt.contains(token)));
        for token in repeated {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit = if *logit > 0.0 {
                    *logit / repetition
                } else {
                    *logit * repetition
                };
            }
        }
        for (token, count) in &self.counts {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit -= settings.presence_penalty + settings.frequency_penalty * *count as f32;
            }
        }
    }
}

/// As likely as OpenAI says of what is not.
const UNLIKELY: f32 = -9999.0;

fn logprobs(logits: &[f32], token: u32, count: usize) -> (f32, Vec<(u32, f32)>) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum = logits.iter().map(|logit| (logit - largest).exp()).sum::<f32>();
    let total = sum.ln() + largest;
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let count = count.min(order.len());
    if count > 0 && count < order.len() {
        order.select_nth_unstable_by(count, by_logit);
    }
    order.truncate(count);
    order.sort_unstable_by(by_logit);
    let of = |id: u32| (logits[id as usize] - total).max(UNLIKELY);
    let top = order.into_iter().map(|id| (id, of(id))).collect();
    (of(token), top)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(settings: Sampling, prompt: &[u32], count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(settings, prompt);
        (0..count)
            .map(|_| sampler.choose(&mut [0.0, 1.0, 2.0, 3.0]).token)
            .collect()
    }

    fn tokens(settings: Sampling, count: usize) -> Vec<u32> {
        after(settings, &[], count)
    }

    fn seeded(seed: u64) -> Sampling {
        Sampling {
            seed,
            ..Sampling::default()
        }
    }

    #[test]
    fn a_seed_gives_the_same_tokens_and_another_seed_others() {
        assert_eq!(tokens(seeded(1), 50), tokens(seeded(1), 50));
        assert_ne!(tokens(seeded(1), 50), tokens(seeded(2), 50));
    }

    #[test]
    fn shares_follow_the_distribution() {
        let drawn = tokens(Sampling::default(), 20_000);
        for (token, expected) in [(0, 0.0321), (1, 0.0871), (2, 0.2369), (3, 0.6439)] {
            let share = drawn.iter().filter(|drawn| **drawn == token).count() as f32 / 20_000.0;
            assert!((share - expected).abs() < 0.012, "{token}: {share}");
        }
    }

    #[test]
    fn cuts_leave_only_what_they_should() {
        let only = |settings| tokens(settings, 200).into_iter().min();
        let usual = Sampling::default;
        assert_eq!(only(Sampling { top_k: 2, ..usual() }), Some(2));
        assert_eq!(
            only(Sampling {
                top_p: 0.6,
                ..usual()
            }),
            Some(3)
        );
        assert_eq!(
            only(Sampling {
                top_p: 0.65,
                ..usual()
            }),
            Some(2)
        );
        assert_eq!(
            only(Sampling {
                min_p: 0.3,
                ..usual()
            }),
            Some(2)
        );
        let greedy = Sampling {
            temperature: 0.0,
            ..usual()
        };
        assert_eq!(only(greedy), Some(3));
    }

    /// The nucleus is the same whether or not the light ones were sorted.
    #[test]
    fn a_nucleus_of_a_large_vocabulary_is_what_sorting_all_would_give() {
        let logits: Vec<f32> = (0..2000u32)
            .map(|id| (id.wrapping_mul(2_654_435_761) >> 20) as f32 / 400.0)
            .collect();
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut weights: Vec<f32> = logits.iter().map(|logit| (logit - largest).exp()).collect();
        weights.sort_unstable_by(|a, b| b.total_cmp(a));
        let total: f32 = weights.iter().sum();
        for top_p in [0.1, 0.5, 0.9, 0.99] {
            let mut sum = 0.0;
            let least = weights.iter().find(|weight| {
                sum += **weight;
                sum >= total * top_p
            });
            let settings = Sampling {
                top_p,
                ..Sampling::default()
            };
            let mut sampler = Sampler::new(settings, &[]);
            let drawn = (0..2000).map(|_| sampler.choose(&mut logits.clone()).token);
            let lightest = drawn
                .map(|id| (logits[id as usize] - largest).exp())
                .fold(1.0, f32::min);
            assert!(lightest >= least.unwrap() * 0.999, "{top_p}: {lightest}");
        }
    }

    #[test]
    fn penalties_and_biases_move_the_choice() {
        let greedy = || Sampling {
            temperature: 0.0,
            ..Sampling::default()
        };
        let present = Sampling {
            presence_penalty: 1.5,
            ..greedy()
        };
        assert_eq!(tokens(present, 3), [3, 2, 3]);
        let frequent = Sampling {
            frequency_penalty: 0.6,
            ..greedy()
        };
        assert_eq!(tokens(frequent, 5), [3, 3, 2, 3, 2]);
        let repeated = Sampling {
            repetition_penalty: 2.0,
            ..greedy()
        };
        assert_eq!(after(repeated, &[3], 1), [2], "the prompt counts");
        let biased = Sampling {
            logit_bias: [(0, 100.0)].into(),
            ..greedy()
        };
        assert_eq!(tokens(biased, 1), [0]);
    }

    #[test]
    fn what_is_forbidden_is_never_chosen() {
        let mut sampler = Sampler::new(
            Sampling {
                temperature: 2.0,
                logprobs: Some(2),
                ..Sampling::default()
            },
            &[],
        );
        let no = f32::NEG_INFINITY;
        for _ in 0..1000 {
            let choice = sampler.choose(&mut [no, no, -40.0, no]);
            assert_eq!((choice.token, choice.top[1].1), (2, UNLIKELY));
        }
    }
}
