//! How likely a right answer is: the plain value through which quality priors, the learned predictor and the users'
//! own outcomes all speak to the decision.
//!
//! Owns: probabilities of success with their uncertainty, gains of thinking, familiarity, and how the three sources are
//! put together. Refuses to know: how an estimate was made, prompt text, money. Invariants: after [`Estimate::new`]
//! every number is finite, probabilities lie in 0 … 1, a standard error is never negative and not thinking gains
//! nothing; what is recorded of a request is what each source said, not what came of it, so that another policy can
//! put it together in its own way.
//!
//! The order, argued. A *prior* says how often a deployment is right on its usual traffic. The *predictor* knows classes
//! of models, not deployments, and says how much easier or harder than usual a prompt is for a class: so it moves the
//! odds of the deployment's own prior, which keeps two deployments of one class apart. *Outcomes* say how much better or
//! worse a deployment does at a workflow than was believed, and have the last word.

use crate::predict::Predictor;
use crate::predict::correction::Surprise;
use exchange::{BackendClass, EstimateSource, ThinkingLevel};
use serde::{Deserialize, Serialize};

/// The share of a predicted gain that each level of thinking is believed to bring, by `ThinkingLevel as usize`. An
/// assumption: what was recorded is models that always think and models that never do.
const SHARES: [f64; ThinkingLevel::ALL.len()] = [0.0, 0.25, 0.5, 0.8, 1.0, 1.0, 1.0];
/// Odds are taken of probabilities within these bounds.
const CERTAIN: f64 = 0.995;

/// What thinking adds to P(success) at each level of the dial, in probability: 0.05 is five points. Indexed by
/// `ThinkingLevel as usize`; `none` is 0 by definition. Gains may be negative: thinking can hurt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ThinkingGain([f64; ThinkingLevel::ALL.len()]);

impl ThinkingGain {
    /// No gain at any level.
    pub const ZERO: Self = Self([0.0; ThinkingLevel::ALL.len()]);

    #[must_use]
    pub fn with(mut self, level: ThinkingLevel, gain: f64) -> Self {
        if level != ThinkingLevel::None && gain.is_finite() {
            self.0[level as usize] = gain.clamp(-1.0, 1.0);
        }
        self
    }

    pub const fn at(&self, level: ThinkingLevel) -> f64 {
        self.0[level as usize]
    }

    /// The gain at each level, where `most` is that of a model that always thinks.
    fn up_to(most: f64) -> Self {
        ThinkingLevel::ALL.iter().fold(Self::ZERO, |gain, level| {
            gain.with(*level, most * SHARES[*level as usize])
        })
    }
}

/// P(success) of one deployment or of one class of deployments for one request.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Without thinking, 0 … 1.
    pub p_success: f64,
    /// Of `p_success`, ≥ 0. A prior that nobody measured has about 0.15.
    pub standard_error: f64,
    pub thinking_gain: ThinkingGain,
    pub source: EstimateSource,
    /// `p_success` before outcomes corrected it: what the next outcome is compared with.
    pub believed: f64,
}

impl Estimate {
    /// Brings the numbers into their ranges; a number that is none counts as complete ignorance (0.5 ± 0.5).
    pub fn new(p_success: f64, standard_error: f64, source: EstimateSource) -> Self {
        let known = p_success.is_finite() && standard_error.is_finite();
        let (p, error) = if known {
            (p_success, standard_error)
        } else {
            (0.5, 0.5)
        };
        Self {
            p_success: p.clamp(0.0, 1.0),
            standard_error: error.clamp(0.0, 1.0),
            thinking_gain: ThinkingGain::ZERO,
            source,
            believed: p.clamp(0.0, 1.0),
        }
    }

    #[must_use]
    pub fn before(mut self, believed: f64) -> Self {
        self.believed = believed;
        self
    }

    #[must_use]
    pub fn thinking(mut self, gain: ThinkingGain) -> Self {
        self.thinking_gain = gain;
        self
    }

    /// P(success) at a level of thinking, 0 … 1.
    pub fn at(&self, level: ThinkingLevel) -> f64 {
        (self.p_success + self.thinking_gain.at(level)).clamp(0.0, 1.0)
    }

    /// The same before outcomes corrected it.
    pub fn believed_at(&self, level: ThinkingLevel) -> f64 {
        (self.believed + self.thinking_gain.at(level)).clamp(0.0, 1.0)
    }
}

/// What the predictor says of a class of backends for one prompt. Numbers of at most six decimals, which survive JSON.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Predicted {
    /// P(success) without thinking, 0 … 1.
    pub p: f64,
    /// The standard error of `p`.
    pub error: f64,
    /// P(success) of the class over all that the predictor was trained on.
    pub usual: f64,
    /// What thinking adds to P(success), where it is known.
    #[serde(default)]
    pub thinking_gain: Option<f64>,
}

impl Predicted {
    /// A deployment's usual probability, moved by how this prompt differs from the usual one.
    fn moved(&self, usual: &Estimate, written: ThinkingGain) -> Estimate {
        let p = chance(odds(usual.p_success) + odds(self.p) - odds(self.usual));
        let slope = |from: f64| {
            let from = held(from);
            p * (1.0 - p) / (from * (1.0 - from))
        };
        let error = (self.error * slope(self.p)).hypot(usual.standard_error * slope(usual.p_success));
        let gain = match self.thinking_gain {
            // What a policy says of a task's thinking it knows better.
            Some(gain) if written == ThinkingGain::ZERO => ThinkingGain::up_to(gain),
            _ => written,
        };
        Estimate::new(p, error.min(0.5), EstimateSource::Predictor).thinking(gain)
    }
}

/// What is believed of a class that was never recorded on such prompts: that they are as hard for it as for the others.
fn like_the_others(classes: &[Option<Predicted>]) -> Option<Predicted> {
    let known: Vec<&Predicted> = classes.iter().flatten().collect();
    let mean = |of: fn(&Predicted) -> f64| known.iter().map(|one| of(one)).sum::<f64>() / known.len() as f64;
    let usual = mean(|one| one.usual);
    (!known.is_empty()).then(|| Predicted {
        p: rounded(chance(odds(usual) + mean(|one| odds(one.p) - odds(one.usual)))),
        error: rounded(mean(|one| one.error)),
        usual: rounded(usual),
        thinking_gain: known.iter().find_map(|one| one.thinking_gain),
    })
}

fn held(p: f64) -> f64 {
    p.clamp(1.0 - CERTAIN, CERTAIN)
}

/// The logarithm of the odds.
fn odds(p: f64) -> f64 {
    let p = held(p);
    (p / (1.0 - p)).ln()
}

fn chance(odds: f64) -> f64 {
    1.0 / (1.0 + (-odds).exp())
}

/// To six decimals: a number that is the same after a round through JSON.
pub(crate) fn rounded(number: f64) -> f64 {
    (number * 1e6).round() / 1e6
}

/// What each source beyond the policy's priors says of one request. Safe to store: numbers only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Estimates {
    /// By `BackendClass as usize`; none where the predictor was not asked.
    pub classes: [Option<Predicted>; BackendClass::ALL.len()],
    /// How much this prompt is like those the predictor has seen, 0 … 1. Below the policy's `objective.familiarity`
    /// the request is decided as if nothing had been predicted; outcomes stand.
    pub familiarity: f64,
    /// What outcomes said of each deployment in this workflow, in the policy's deployment order; shorter than the policy's
    /// list where there were none.
    pub surprises: Vec<Option<Surprise>>,
}

impl Default for Estimates {
    /// Nothing is known beyond the priors.
    fn default() -> Self {
        Self {
            classes: [None; BackendClass::ALL.len()],
            familiarity: 1.0,
            surprises: Vec::new(),
        }
    }
}

impl Estimates {
    /// What the predictor says of a prompt, and the numbers it saw, which `policy train --from` learns from.
    pub fn predicted(predictor: &Predictor, prompt: &str) -> (Self, Vec<f32>) {
        let prediction = predictor.predict(prompt);
        let number = |value: f32| rounded(f64::from(value));
        let mut estimates = Self {
            familiarity: number(prediction.familiarity),
            ..Self::default()
        };
        let known = predictor.classes(&prediction);
        for one in &known {
            estimates.classes[one.class as usize] = Some(Predicted {
                p: number(one.success.p),
                error: number(one.success.error),
                usual: number(one.usual),
                thinking_gain: one.thinking_gain.map(|gain| number(gain.p)),
            });
        }
        let others = like_the_others(&estimates.classes);
        for class in [BackendClass::Frontier, BackendClass::Cheap, BackendClass::Local] {
            let slot = &mut estimates.classes[class as usize];
            *slot = slot.or(others);
        }
        (estimates, prediction.features)
    }

    #[must_use]
    pub fn with_class(mut self, class: BackendClass, predicted: Predicted) -> Self {
        self.classes[class as usize] = Some(predicted);
        self
    }

    #[must_use]
    pub fn with_surprise(mut self, index: usize, surprise: Surprise) -> Self {
        if self.surprises.len() <= index {
            self.surprises.resize(index + 1, None);
        }
        self.surprises[index] = Some(surprise);
        self
    }

    pub fn is_predicted(&self) -> bool {
        self.classes.iter().any(Option::is_some)
    }

    pub(crate) fn surprise(&self, index: usize) -> Option<&Surprise> {
        self.surprises.get(index).and_then(Option::as_ref)
    }

    /// The prior for the task family, or, where the predictor knows such prompts, the deployment's default moved by it.
    /// `priors`: for the task, and the default.
    pub(crate) fn belief(
        &self,
        class: BackendClass,
        priors: (&Estimate, &Estimate),
        least_familiarity: f64,
    ) -> Estimate {
        let (prior, usual) = priors;
        // A batch is the same models, later.
        let class = match class {
            BackendClass::Batch => BackendClass::Frontier,
            other => other,
        };
        match &self.classes[class as usize] {
            Some(predicted) if self.familiarity >= least_familiarity => {
                predicted.moved(usual, prior.thinking_gain)
            }
            _ => *prior,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prior(p: f64) -> Estimate {
        Estimate::new(p, 0.1, EstimateSource::Prior)
    }

    fn known(p: f64, usual: f64) -> Predicted {
        Predicted {
            p,
            error: 0.05,
            usual,
            thinking_gain: Some(0.2),
        }
    }

    #[test]
    fn a_prompt_moves_the_odds_and_keeps_deployments_of_a_class_apart() {
        let estimates = Estimates::default().with_class(BackendClass::Cheap, known(0.95, 0.8));
        let belief = |p: f64| {
            let prior = prior(p);
            estimates.belief(BackendClass::Cheap, (&prior, &prior), 0.5)
        };
        let (better, worse) = (belief(0.85), belief(0.6));
        assert!(better.p_success > 0.95 && worse.p_success < better.p_success && worse.p_success > 0.8);
        assert_eq!(better.source, EstimateSource::Predictor);
        assert_eq!(better.thinking_gain.at(ThinkingLevel::High), 0.2);
        assert_eq!(better.thinking_gain.at(ThinkingLevel::Low), 0.1);
        // A prompt that is as hard as any leaves the prior.
        let usual = Estimates::default().with_class(BackendClass::Cheap, known(0.8, 0.8));
        let same = usual.belief(BackendClass::Cheap, (&prior(0.7), &prior(0.7)), 0.5);
        assert!((same.p_success - 0.7).abs() < 1e-9, "{same:?}");
    }

    #[test]
    fn an_unfamiliar_prompt_and_an_unknown_class_leave_the_prior_of_the_task() {
        let estimates = Estimates {
            familiarity: 0.2,
            ..Estimates::default().with_class(BackendClass::Cheap, known(0.95, 0.8))
        };
        let (task, usual) = (prior(0.4), prior(0.9));
        assert_eq!(estimates.belief(BackendClass::Cheap, (&task, &usual), 0.5), task);
        assert_eq!(estimates.belief(BackendClass::Local, (&task, &usual), 0.1), task);
    }

    #[test]
    fn what_a_policy_says_of_thinking_stands() {
        let hurts = ThinkingGain::ZERO.with(ThinkingLevel::High, -0.05);
        let estimates = Estimates::default().with_class(BackendClass::Cheap, known(0.95, 0.8));
        let task = prior(0.4).thinking(hurts);
        let belief = estimates.belief(BackendClass::Cheap, (&task, &prior(0.9)), 0.5);
        assert_eq!(belief.thinking_gain, hurts);
    }

    #[test]
    fn numbers_that_are_none_are_ignorance() {
        let unknown = Estimate::new(f64::NAN, 0.1, EstimateSource::Predictor);
        assert_eq!((unknown.p_success, unknown.standard_error), (0.5, 0.5));
        assert_eq!(Estimate::new(1.7, -1.0, EstimateSource::Prior).p_success, 1.0);
        let gain = ThinkingGain::ZERO
            .with(ThinkingLevel::High, 0.2)
            .with(ThinkingLevel::None, 0.3)
            .with(ThinkingLevel::Low, f64::INFINITY);
        let estimate = Estimate::new(0.9, 0.0, EstimateSource::Prior).thinking(gain);
        assert_eq!(estimate.at(ThinkingLevel::None), 0.9);
        assert_eq!(estimate.at(ThinkingLevel::Low), 0.9);
        assert_eq!(estimate.at(ThinkingLevel::High), 1.0);
    }

    #[test]
    fn what_is_recorded_survives_json() {
        let predictor = Predictor::shipped().unwrap();
        let (estimates, features) = Estimates::predicted(&predictor, "What is 17 times 23?");
        assert!(estimates.is_predicted() && !features.is_empty());
        let estimates = estimates.with_surprise(2, Surprise::new(37.123_456_789, -3.3));
        let text = serde_json::to_string(&estimates).unwrap();
        assert_eq!(serde_json::from_str::<Estimates>(&text).unwrap(), estimates);
    }
}
