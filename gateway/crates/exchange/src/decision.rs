//! What `decide` returns: an ordered plan with the reasons for it. A pure value: stored, explained and replayed.

use crate::{BackendClass, Money, Thinking, spelled};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The money a decision must fit into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Reserved for this request now. May be less than was asked for: a partial grant is not an error.
    pub granted: Money,
    /// Left in the tightest budget on the path, beyond what is granted here.
    pub remaining: Money,
}

/// One deployment to try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Position in the policy's deployment list.
    pub index: usize,
    /// The deployment's name in the policy.
    pub deployment: Arc<str>,
    pub provider: Arc<str>,
    /// The model name to send upstream.
    pub model: Arc<str>,
    pub class: BackendClass,
    pub thinking: Option<Thinking>,
}

/// A non-empty ordered list of candidates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Candidate>", into = "Vec<Candidate>")]
pub struct Plan(Vec<Candidate>);

impl Plan {
    pub fn new(candidates: Vec<Candidate>) -> Option<Self> {
        if candidates.is_empty() {
            None
        } else {
            Some(Self(candidates))
        }
    }

    pub fn first(&self) -> &Candidate {
        &self.0[0]
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Candidate> {
        self.0.iter()
    }
}

impl TryFrom<Vec<Candidate>> for Plan {
    type Error = &'static str;
    fn try_from(candidates: Vec<Candidate>) -> Result<Self, Self::Error> {
        Self::new(candidates).ok_or("a plan names at least one candidate")
    }
}

impl From<Plan> for Vec<Candidate> {
    fn from(plan: Plan) -> Self {
        plan.0
    }
}

/// Why a deployment is or is not in the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    Chosen,
    Fallback,
    NotPreferred,
    WrongModel,
    NotGranted,
    Forbidden,
    BelowFloor,
    MissingCapability,
    ContextTooSmall,
    Unavailable,
    Unpriced,
    Unaffordable,
}

spelled!(Verdict {
    Chosen => "chosen",
    Fallback => "fallback",
    NotPreferred => "not_preferred",
    WrongModel => "wrong_model",
    NotGranted => "not_granted",
    Forbidden => "forbidden",
    BelowFloor => "below_floor",
    MissingCapability => "missing_capability",
    ContextTooSmall => "context_too_small",
    Unavailable => "unavailable",
    Unpriced => "unpriced",
    Unaffordable => "unaffordable",
});

/// One line of the trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceEntry {
    pub deployment: Arc<str>,
    pub verdict: Verdict,
    pub expected: Option<Money>,
}

/// Every deployment considered and the route that ruled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The route whose `when` matched; `None` for an explicitly named model without a route of its own.
    pub route: Option<Arc<str>>,
    pub entries: Vec<TraceEntry>,
}

/// The ruling on one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    pub plan: Plan,
    /// The most this request may cost.
    pub ceiling: Money,
    /// Milliseconds from arrival.
    pub deadline_ms: Option<u64>,
    /// Hash of the policy text that ruled.
    pub policy_version: Arc<str>,
    pub seed: u64,
    pub trace: Trace,
}
