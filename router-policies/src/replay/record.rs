//! What is kept of a decision so that it can be made again: numbers and declared names, never prompt text.

use crate::estimates::Estimates;
use exchange::{
    AccountPath, BackendClass, Conversation, Decision, Envelope, Facts, Grants, Money, Offer, Reason,
    RefusalKind, Score, Thinking,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One request, everything its decision depended on, and what came of it. A line of JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// The request's id.
    pub id: String,
    /// Seconds since the epoch.
    pub unix_s: i64,
    pub facts: Facts,
    pub account: AccountPath,
    #[serde(default)]
    pub grants: Grants,
    /// Deployment id and offer, in the order of the policy that decided.
    pub offers: Vec<(Arc<str>, Offer)>,
    #[serde(default)]
    pub conversation: Option<Conversation>,
    /// What was believed beyond the priors, deployments in the order of `offers`.
    #[serde(default)]
    pub estimates: Option<Estimates>,
    /// The numbers that the predictor saw, where it was asked: what `policy train --from` learns from.
    #[serde(default)]
    pub features: Vec<f32>,
    pub envelope: Envelope,
    pub seed: u64,
    pub decided: Decided,
    /// What its caller said of the answer, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<RecordedOutcome>,
    /// What was charged in the end.
    pub charged: Money,
    /// How long it took in the end.
    #[serde(default)]
    pub latency_ms: Option<u64>,
}

/// What a caller said of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedOutcome {
    pub workflow: Arc<str>,
    /// Who answered.
    pub deployment: Arc<str>,
    pub success: bool,
}

impl Decided {
    /// Nobody was to serve it.
    pub fn refused(policy_version: Arc<str>, kind: RefusalKind) -> Self {
        Self {
            policy_version,
            refused: Some(kind),
            ..Self::default()
        }
    }
}

/// The part of a decision that a replay compares.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Decided {
    pub policy_version: Arc<str>,
    #[serde(default)]
    pub deployment: Option<Arc<str>>,
    #[serde(default)]
    pub class: Option<BackendClass>,
    #[serde(default)]
    pub thinking: Option<Thinking>,
    #[serde(default)]
    pub refused: Option<RefusalKind>,
    /// Why the first was the first; tells what a split or exploration did.
    #[serde(default)]
    pub reason: Option<Reason>,
    /// The terms of the deployment that was chosen.
    #[serde(default)]
    pub score: Option<Score>,
}

impl From<&Decision> for Decided {
    fn from(decision: &Decision) -> Self {
        let first = decision.plan.first();
        let entry = decision
            .trace
            .entries
            .iter()
            .find(|entry| entry.deployment == first.deployment);
        Self {
            policy_version: decision.policy_version.clone(),
            deployment: Some(first.deployment.clone()),
            class: Some(first.class),
            thinking: first.thinking,
            refused: None,
            reason: Some(decision.reason),
            score: entry.and_then(|entry| entry.score),
        }
    }
}
