//! What users' own outcomes say, per tenant and workflow: a correction of whatever was believed before.
//!
//! Owns: the running sums of one node and the arithmetic on them. Refuses to know: prompts, prices, floors, storage.
//! Invariants: with no outcomes a belief is returned unchanged; a corrected probability stays in 0 … 1; what one tenant
//! reports never moves another's estimates; memory is bounded.
//!
//! The policy, argued. An outcome is compared with what was predicted *for that prompt*, so that a workflow of hard
//! prompts does not make its model look bad: the mean of those surprises, drawn towards 0 by [`PRIOR_OUTCOMES`]
//! imaginary outcomes without surprise, is added to the next prediction. Old outcomes fade, for models change under
//! their name. Where the belief is a constant prior this is the mean of a Beta distribution worth so many outcomes.

use super::Success;
use crate::estimates::rounded;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// As many outcomes as the belief from before is worth.
pub const PRIOR_OUTCOMES: f64 = 20.0;

/// After this many further outcomes an outcome counts half.
pub const HALF_LIFE_OUTCOMES: f64 = 500.0;

/// Workflows remembered by a node; beyond them, those without news for longest are forgotten.
pub const MOST_WORKFLOWS: usize = 10_000;

/// Whose outcomes, and for which kind of work.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Scope {
    pub tenant: Box<str>,
    pub workflow: Box<str>,
}

/// One reported result of one deployment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// P(success) believed when the decision was made.
    pub believed: f32,
    pub success: bool,
    /// 1 for a reported outcome; less for a hint, such as a retry of the same request. Held within 0 … 1.
    pub weight: f32,
}

/// How outcomes of one deployment in one scope differed from what was believed: sums, whose older terms fade.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Surprise {
    /// Outcomes that still count.
    outcomes: f64,
    /// The sum of (success as 0 or 1, minus what was believed).
    sum: f64,
}

impl Surprise {
    /// Both to six decimals, so that a record of them is exact.
    pub fn new(outcomes: f64, sum: f64) -> Self {
        Self {
            outcomes: rounded(outcomes.max(0.0)),
            sum: rounded(sum),
        }
    }

    pub const fn outcomes(&self) -> f64 {
        self.outcomes
    }

    fn add(&mut self, weight: f64, surprise: f64) {
        let keep = 0.5_f64.powf(weight / HALF_LIFE_OUTCOMES);
        self.outcomes = self.outcomes * keep + weight;
        self.sum = self.sum * keep + weight * surprise;
    }

    /// P(success) and its standard error after these outcomes.
    pub fn correct(&self, (p, error): (f64, f64)) -> (f64, f64) {
        let total = self.outcomes + PRIOR_OUTCOMES;
        let corrected = (p + self.sum / total).clamp(0.0, 1.0);
        // The belief's own error fades as outcomes outweigh it; what outcomes leave open is binomial, with one success
        // and one failure added so that a run of successes is never taken for certainty.
        let open = (corrected * total + 1.0) / (total + 2.0);
        let before = error * PRIOR_OUTCOMES / total;
        let sampling = (open * (1.0 - open) * self.outcomes).sqrt() / total;
        (corrected, before.hypot(sampling))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Workflow {
    arms: BTreeMap<Box<str>, Surprise>,
    /// Of the last news, in order of arrival.
    news: u64,
}

/// All that a node has learned from outcomes. Serialisable, to be kept across restarts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Corrections {
    #[serde(with = "as_list")]
    workflows: HashMap<Scope, Workflow>,
    news: u64,
}

/// A belief after outcomes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Corrected {
    pub success: Success,
    /// Outcomes that still count, after fading. 0: the belief is what it was.
    pub outcomes: f64,
}

impl Corrections {
    pub fn observe(&mut self, scope: &Scope, deployment: &str, observed: Observed) {
        let weight = f64::from(observed.weight.clamp(0.0, 1.0));
        if weight <= 0.0 || !observed.believed.is_finite() {
            return;
        }
        self.news += 1;
        if !self.workflows.contains_key(scope) && self.workflows.len() >= MOST_WORKFLOWS {
            self.forget_oldest();
        }
        let workflow = self.workflows.entry(scope.clone()).or_default();
        workflow.news = self.news;
        let surprise = f64::from(u8::from(observed.success)) - f64::from(observed.believed.clamp(0.0, 1.0));
        let arm = workflow.arms.entry(deployment.into()).or_default();
        arm.add(weight, surprise);
    }

    /// Drops a tenth at once, so that a flood of new workflows costs little for each.
    fn forget_oldest(&mut self) {
        let mut ages: Vec<u64> = self.workflows.values().map(|workflow| workflow.news).collect();
        ages.sort_unstable();
        let limit = ages.get(ages.len() / 10).copied().unwrap_or_default();
        self.workflows.retain(|_, workflow| workflow.news > limit);
    }

    /// What outcomes said of a deployment in this scope, if there were any.
    pub fn surprise(&self, scope: &Scope, deployment: &str) -> Option<Surprise> {
        let arm = self.workflows.get(scope)?.arms.get(deployment)?;
        (arm.outcomes > 0.0).then(|| Surprise::new(arm.outcomes, arm.sum))
    }

    /// `belief`: P(success) of this deployment for the prompt at hand, and its standard error.
    pub fn correct(&self, scope: &Scope, deployment: &str, belief: Success) -> Corrected {
        let Some(surprise) = self.surprise(scope, deployment) else {
            return Corrected {
                success: belief,
                outcomes: 0.0,
            };
        };
        let (p, error) = surprise.correct((f64::from(belief.p), f64::from(belief.error)));
        Corrected {
            success: Success {
                p: p as f32,
                error: error as f32,
            },
            outcomes: surprise.outcomes,
        }
    }
}

/// JSON has no maps with keys of two parts.
mod as_list {
    use super::{HashMap, Scope, Workflow};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(map: &HashMap<Scope, Workflow>, to: S) -> Result<S::Ok, S::Error> {
        let mut list: Vec<(&Scope, &Workflow)> = map.iter().collect();
        list.sort_unstable_by_key(|(scope, _)| *scope);
        list.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<HashMap<Scope, Workflow>, D::Error> {
        Ok(Vec::<(Scope, Workflow)>::deserialize(from)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::draws::Draws;
    use super::*;
    use proptest::prelude::*;

    fn scope(workflow: &str) -> Scope {
        Scope {
            tenant: "acme".into(),
            workflow: workflow.into(),
        }
    }

    const BELIEF: Success = Success { p: 0.8, error: 0.1 };

    #[test]
    fn outcomes_that_are_worse_than_believed_lower_the_belief_and_settle_it() {
        let mut corrections = Corrections::default();
        let mut draws = Draws::new(7);
        for _ in 0..2000 {
            let success = draws.unit() < 0.5;
            corrections.observe(
                &scope("a"),
                "big",
                Observed {
                    believed: 0.8,
                    success,
                    weight: 1.0,
                },
            );
        }
        let corrected = corrections.correct(&scope("a"), "big", BELIEF);
        assert!((corrected.success.p - 0.5).abs() < 0.06, "{corrected:?}");
        assert!(corrected.success.error < 0.03, "{corrected:?}");
        let elsewhere = corrections.correct(&scope("b"), "big", BELIEF);
        assert_eq!(
            elsewhere,
            Corrected {
                success: BELIEF,
                outcomes: 0.0
            }
        );
    }

    #[test]
    fn a_hard_workflow_predicted_as_hard_is_no_surprise() {
        let mut corrections = Corrections::default();
        let mut draws = Draws::new(1);
        for _ in 0..1000 {
            let success = draws.unit() < 0.3;
            corrections.observe(
                &scope("hard"),
                "big",
                Observed {
                    believed: 0.3,
                    success,
                    weight: 1.0,
                },
            );
        }
        let easy = corrections.correct(&scope("hard"), "big", Success { p: 0.9, error: 0.05 });
        assert!((easy.success.p - 0.9).abs() < 0.05, "{easy:?}");
    }

    #[test]
    fn a_change_for_the_worse_is_learned_within_a_few_half_lives() {
        let mut corrections = Corrections::default();
        for at in 0..6000 {
            let observed = Observed {
                believed: 0.9,
                success: at < 3000,
                weight: 1.0,
            };
            corrections.observe(&scope("a"), "big", observed);
        }
        assert!(
            corrections
                .correct(&scope("a"), "big", Success { p: 0.9, error: 0.1 })
                .success
                .p
                < 0.1
        );
    }

    #[test]
    fn memory_is_bounded_and_the_newest_stay() {
        let mut corrections = Corrections::default();
        let observed = Observed {
            believed: 0.5,
            success: true,
            weight: 1.0,
        };
        for at in 0..MOST_WORKFLOWS + 10 {
            corrections.observe(&scope(&at.to_string()), "big", observed);
        }
        assert!(corrections.workflows.len() <= MOST_WORKFLOWS);
        let newest = (MOST_WORKFLOWS + 9).to_string();
        assert!(corrections.correct(&scope(&newest), "big", BELIEF).outcomes > 0.0);
        assert_eq!(corrections.correct(&scope("0"), "big", BELIEF).outcomes, 0.0);
    }

    #[test]
    fn what_is_kept_across_a_restart_is_the_same() {
        let mut corrections = Corrections::default();
        corrections.observe(
            &scope("a"),
            "big",
            Observed {
                believed: 0.5,
                success: true,
                weight: 0.5,
            },
        );
        let text = serde_json::to_string(&corrections).unwrap();
        assert_eq!(serde_json::from_str::<Corrections>(&text).unwrap(), corrections);
    }

    proptest! {
        #[test]
        fn corrected_beliefs_stay_probabilities_and_never_grow_less_sure_than_ignorance(
            outcomes in prop::collection::vec((0.0_f32..=1.0, any::<bool>(), 0.0_f32..2.0), 0..200),
            p in 0.0_f32..=1.0, error in 0.0_f32..=0.5,
        ) {
            let mut corrections = Corrections::default();
            for (believed, success, weight) in &outcomes {
                let observed = Observed { believed: *believed, success: *success, weight: *weight };
                corrections.observe(&scope("a"), "big", observed);
            }
            let corrected = corrections.correct(&scope("a"), "big", Success { p, error });
            prop_assert!((0.0..=1.0).contains(&corrected.success.p));
            prop_assert!((0.0..=0.6).contains(&corrected.success.error));
            prop_assert!(corrected.outcomes <= outcomes.len() as f64);
        }

        #[test]
        fn successes_never_lower_and_failures_never_raise_a_belief(
            believed in 0.0_f32..=1.0, success in any::<bool>(), count in 1_usize..100
        ) {
            let mut corrections = Corrections::default();
            for _ in 0..count {
                corrections.observe(&scope("a"), "big", Observed { believed, success, weight: 1.0 });
            }
            let p = corrections.correct(&scope("a"), "big", BELIEF).success.p;
            let holds = if success { p >= BELIEF.p - 1e-6 } else { p <= BELIEF.p + 1e-6 };
            prop_assert!(holds, "{} after {} of {}", p, count, success);
        }
    }
}
