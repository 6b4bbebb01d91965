//! How likely a right answer is: the plain value through which quality priors, the learned predictor and the users'
//! own outcomes all speak to the decision.
//!
//! Owns: probabilities of success with their uncertainty, gains of thinking, familiarity. Refuses to know: how an
//! estimate was made, prompt text, money. Invariants: after [`Estimate::new`] every number is finite, probabilities
//! lie in 0 … 1, a standard error is never negative and not thinking gains nothing.

use exchange::{BackendClass, EstimateSource, ThinkingLevel};
use serde::{Deserialize, Serialize};

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
        }
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
}

/// What is believed about one request, before the policy's own priors fill the gaps. The most specific estimate that
/// exists is used: the deployment's, else its class's, else the prior.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Estimates {
    /// By `BackendClass as usize`.
    pub classes: [Option<Estimate>; BackendClass::ALL.len()],
    /// In the policy's deployment order; shorter than the policy's list where the rest is unknown.
    pub deployments: Vec<Option<Estimate>>,
    /// How much this prompt is like those the estimator has seen, 0 … 1. Below the policy's
    /// `objective.familiarity` estimates of the predictor are set aside and the priors rule; outcomes stand.
    pub familiarity: f64,
}

impl Default for Estimates {
    /// Nothing is known beyond the priors.
    fn default() -> Self {
        Self {
            classes: [None; BackendClass::ALL.len()],
            deployments: Vec::new(),
            familiarity: 1.0,
        }
    }
}

impl Estimates {
    #[must_use]
    pub fn with_class(mut self, class: BackendClass, estimate: Estimate) -> Self {
        self.classes[class as usize] = Some(estimate);
        self
    }

    #[must_use]
    pub fn with_deployment(mut self, index: usize, estimate: Estimate) -> Self {
        if self.deployments.len() <= index {
            self.deployments.resize(index + 1, None);
        }
        self.deployments[index] = Some(estimate);
        self
    }

    /// The most specific estimate for a deployment that may be used for a prompt this familiar.
    pub fn of(&self, index: usize, class: BackendClass, least_familiarity: f64) -> Option<&Estimate> {
        let usable = |estimate: &&Estimate| {
            estimate.source != EstimateSource::Predictor || self.familiarity >= least_familiarity
        };
        let own = self.deployments.get(index).and_then(Option::as_ref);
        own.filter(usable)
            .or_else(|| self.classes[class as usize].as_ref().filter(usable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_usable_estimate_speaks() {
        let class = Estimate::new(0.7, 0.05, EstimateSource::Predictor);
        let own = Estimate::new(0.9, 0.01, EstimateSource::Outcomes);
        let mut estimates = Estimates::default()
            .with_class(BackendClass::Cheap, class)
            .with_deployment(2, own);
        assert_eq!(estimates.of(2, BackendClass::Cheap, 0.5), Some(&own));
        assert_eq!(estimates.of(0, BackendClass::Cheap, 0.5), Some(&class));
        assert_eq!(estimates.of(0, BackendClass::Local, 0.5), None);
        estimates.familiarity = 0.2;
        assert_eq!(estimates.of(0, BackendClass::Cheap, 0.5), None);
        assert_eq!(estimates.of(2, BackendClass::Cheap, 0.5), Some(&own));
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
}
