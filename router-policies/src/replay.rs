//! Recorded traffic under another policy: what it would have cost, who would have been refused, which work would have
//! moved, and how sure that is.
//!
//! Owns: the comparison and its intervals. Refuses to know: where records come from. Invariants: where the new
//! decision is the recorded one, its money is the recorded money to the nano-dollar; where it is not, the recorded
//! money is scaled by the ratio of the two expected prices, so that an answer longer than expected stays longer.

mod record;
mod sums;

pub use record::{Decided, Recorded, RecordedOutcome};
pub use sums::{Comparison, Interval, Summary};

use crate::decide::Ask;
use crate::estimates::Estimates;
use crate::policy::{Policy, Situation};
use exchange::{BackendClass, Money, Offer, RefusalKind, Score, Thinking};
use serde::Serialize;
use std::sync::Arc;
use sums::Sums;

/// One side of a replayed request.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Side {
    pub deployment: Option<Arc<str>>,
    pub class: Option<BackendClass>,
    pub thinking: Option<Thinking>,
    pub refused: Option<RefusalKind>,
    pub money: Money,
    pub latency_ms: u64,
    pub thinking_tokens: u64,
    pub cache_lost: Money,
    pub success_ppm: u32,
    pub error_ppm: u32,
}

/// A request that would be served differently.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Flip {
    pub id: String,
    pub workflow: Option<Arc<str>>,
    pub was: Side,
    pub is: Side,
    /// The trace's word on the deployment that was used.
    pub why: Option<exchange::Verdict>,
}

/// What a replay found.
#[derive(Clone, Debug, Serialize)]
pub struct Replay {
    pub policy_version: Arc<str>,
    pub summary: Summary,
    /// The first of the requests that flip; `summary.flips` is their number.
    pub flips: Vec<Flip>,
}

/// A replay under way: one record at a time, so that a month of traffic needs no room.
pub struct Replaying<'p> {
    policy: &'p Policy,
    sums: Sums,
    flips: Vec<Flip>,
    kept_flips: usize,
}

impl<'p> Replaying<'p> {
    /// `kept_flips`: how many flips to keep for showing.
    pub fn new(policy: &'p Policy, kept_flips: usize) -> Self {
        Self {
            policy,
            sums: Sums::default(),
            flips: Vec::new(),
            kept_flips,
        }
    }

    /// Rules again on one record.
    pub fn add(&mut self, record: &Recorded) {
        let (profile, was, is, why) = again(record, self.policy);
        let is_flip =
            (&was.deployment, was.thinking, was.refused) != (&is.deployment, is.thinking, is.refused);
        self.sums.add(profile.value, (&was, &is), is_flip);
        let is_predicted = record.estimates.as_ref().is_some_and(Estimates::is_predicted);
        if !is_predicted && self.policy.predicts(&profile, &record.facts) {
            self.sums.unpredicted();
        }
        if is_flip && self.flips.len() < self.kept_flips {
            self.flips.push(Flip {
                id: record.id.clone(),
                workflow: profile.workflow,
                was,
                is,
                why,
            });
        }
    }

    pub fn done(self) -> Replay {
        Replay {
            policy_version: self.policy.version().clone(),
            summary: self.sums.summary(),
            flips: self.flips,
        }
    }
}

/// Rules again on every record.
pub fn replay<'a>(
    records: impl IntoIterator<Item = &'a Recorded>,
    policy: &Policy,
    kept_flips: usize,
) -> Replay {
    let mut replaying = Replaying::new(policy, kept_flips);
    records.into_iter().for_each(|record| replaying.add(record));
    replaying.done()
}

/// The profile under the new policy, both sides, and the new verdict on the deployment that was used.
fn again(record: &Recorded, policy: &Policy) -> (exchange::Profile, Side, Side, Option<exchange::Verdict>) {
    let situation = Situation {
        facts: &record.facts,
        account: &record.account,
        unix_s: record.unix_s,
        budget_left: record.envelope.remaining,
    };
    let profile = policy.classify(&situation);
    let offered = |id: &str| {
        record
            .offers
            .iter()
            .find(|(known, _)| **known == *id)
            .map(|(_, offer)| *offer)
    };
    // A deployment that was not there when the request was recorded is offered at the policy's own price.
    let reference = policy.reference_offers(&record.facts);
    let offers: Vec<Offer> = policy
        .deployments()
        .iter()
        .zip(reference)
        .map(|(deployment, reference)| offered(&deployment.id).unwrap_or(reference))
        .collect();
    let estimates = record
        .estimates
        .as_ref()
        .map_or_else(Estimates::default, |known| {
            let mut here = Estimates {
                surprises: Vec::new(),
                ..known.clone()
            };
            for (index, deployment) in policy.deployments().iter().enumerate() {
                let at = record.offers.iter().position(|(id, _)| *id == deployment.id);
                if let Some(surprise) = at.and_then(|at| known.surprise(at)) {
                    here = here.with_surprise(index, *surprise);
                }
            }
            here
        });
    let decided = policy.decide(&Ask {
        facts: &record.facts,
        account: &record.account,
        profile: &profile,
        grants: &record.grants,
        offers: &offers,
        conversation: record.conversation.as_ref(),
        estimates: &estimates,
        envelope: record.envelope,
        unix_s: record.unix_s,
        seed: record.seed,
    });
    let was = recorded_side(record);
    let trace = match &decided {
        Ok(decision) => &decision.trace,
        Err(no_route) => &no_route.trace,
    };
    let line = |id: &str| trace.entries.iter().find(|entry| *entry.deployment == *id);
    let why = was
        .deployment
        .as_deref()
        .and_then(line)
        .map(|entry| entry.verdict);
    let is = match &decided {
        Err(no_route) => Side {
            refused: Some(no_route.kind),
            ..nobody()
        },
        Ok(decision) => {
            let first = decision.plan.first();
            let score = line(&first.deployment)
                .and_then(|entry| entry.score)
                .unwrap_or_default();
            let same = was.deployment.as_ref() == Some(&first.deployment) && was.thinking == first.thinking;
            let side = Side {
                deployment: Some(first.deployment.clone()),
                class: Some(first.class),
                thinking: first.thinking,
                ..scored(&score)
            };
            if same {
                Side {
                    money: record.charged,
                    latency_ms: was.latency_ms,
                    ..side
                }
            } else {
                Side {
                    money: scaled(record, &score),
                    ..side
                }
            }
        }
    };
    (profile, was, is, why)
}

fn nobody() -> Side {
    scored(&Score::default())
}

fn scored(score: &Score) -> Side {
    Side {
        deployment: None,
        class: None,
        thinking: None,
        refused: None,
        money: score.price,
        latency_ms: score.latency_ms.into(),
        thinking_tokens: score.thinking_tokens,
        cache_lost: score.cache_lost,
        success_ppm: score.success_ppm,
        error_ppm: score.error_ppm,
    }
}

fn recorded_side(record: &Recorded) -> Side {
    let decided = &record.decided;
    let score = decided.score.unwrap_or_default();
    Side {
        deployment: decided.deployment.clone(),
        class: decided.class,
        thinking: decided.thinking,
        refused: decided.refused,
        money: record.charged,
        latency_ms: record.latency_ms.unwrap_or(score.latency_ms.into()),
        ..scored(&score)
    }
}

/// The recorded money times the ratio of the expected prices.
fn scaled(record: &Recorded, score: &Score) -> Money {
    let before = record.decided.score.map_or(Money::ZERO, |score| score.price);
    if before <= Money::ZERO || record.charged.is_zero() {
        return score.price;
    }
    let nanos =
        i128::from(record.charged.nanos()) * i128::from(score.price.nanos()) / i128::from(before.nanos());
    Money::from_nanos(i64::try_from(nanos).unwrap_or(i64::MAX))
}
