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
    /// What became of the thinking that was asked for.
    pub thinking_note: ThinkingNote,
}

/// What became of the caller's thinking setting at one deployment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ThinkingNote {
    /// Nothing was asked, nothing is sent.
    #[default]
    Untouched,
    /// As asked.
    Honoured,
    /// Set by the policy where nothing was asked.
    Granted,
    /// More was asked than the policy allows.
    Capped,
    /// Less was asked than the policy demands.
    Raised,
    /// The deployment does not know the level: the nearest lower one that it knows, or its lowest.
    Mapped,
    /// The deployment cannot think.
    Unable,
    /// As in the turn before, so that the cache stays good.
    Kept,
    /// Worth its tokens, or off because it is not.
    ByGain,
}

spelled!(ThinkingNote {
    Untouched => "untouched",
    Honoured => "honoured",
    Granted => "granted",
    Capped => "capped",
    Raised => "raised",
    Mapped => "mapped",
    Unable => "unable",
    Kept => "kept",
    ByGain => "by_gain",
});

/// Why the first candidate is the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The caller named the model.
    #[default]
    Named,
    /// The best expected outcome among those the route allows.
    Objective,
    /// The route's order.
    Preferred,
    /// The route allows nothing else.
    Pinned,
    /// The seed fell into a percentage split.
    Split,
    /// The seed fell into the share of traffic that explores.
    Explored,
    /// The conversation's cache is worth more than the switch.
    Sticky,
    /// Everything better was down, full, too slow or too dear.
    Fallback,
}

spelled!(Reason {
    Named => "named",
    Objective => "objective",
    Preferred => "preferred",
    Pinned => "pinned",
    Split => "split",
    Explored => "explored",
    Sticky => "sticky",
    Fallback => "fallback",
});

/// Who made an estimate of success, from weakest to strongest evidence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EstimateSource {
    /// A quality prior written in the policy, or the class's default.
    #[default]
    Prior,
    /// The learned predictor, from prompt and facts.
    Predictor,
    /// Outcomes reported for this workflow.
    Outcomes,
}

spelled!(EstimateSource { Prior => "prior", Predictor => "predictor", Outcomes => "outcomes" });

/// The terms of the objective for one candidate. Probabilities are in parts per million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Score {
    pub success_ppm: u32,
    /// The standard error of the above.
    pub error_ppm: u32,
    /// P(success) as it was believed before outcomes corrected it and caution was taken off.
    #[serde(default)]
    pub believed_ppm: u32,
    pub source: EstimateSource,
    pub thinking: Option<Thinking>,
    /// Tokens that it is expected to use.
    pub thinking_tokens: u64,
    /// value · P(success)
    pub worth: Money,
    /// failure cost · (1 − P)
    pub risk: Money,
    /// Expected price with retries, escalation, thinking and what the cache saves.
    pub price: Money,
    /// What leaving the conversation's deployment costs; already in `price` as a saving not had.
    pub cache_lost: Money,
    /// Milliseconds until something can be read, thinking included.
    pub first_token_ms: u32,
    /// Milliseconds until the answer is whole.
    pub latency_ms: u32,
    /// λ · expected latency
    pub waiting: Money,
    /// worth − risk − price − waiting, the price weighted where the budget is thin.
    pub utility: Money,
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
    NotAllowed,
    WrongRegion,
    WrongDataClass,
    TooSlow,
    BelowServiceLevel,
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
    NotAllowed => "not_allowed",
    WrongRegion => "wrong_region",
    WrongDataClass => "wrong_data_class",
    TooSlow => "too_slow",
    BelowServiceLevel => "below_service_level",
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
    /// `None` for what was ruled out before it was scored.
    #[serde(default)]
    pub score: Option<Score>,
}

/// Every deployment considered and the route that ruled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The route whose `when` matched; `None` for an explicitly named model without a route of its own.
    pub route: Option<Arc<str>>,
    /// Thinking rules and budget pressure that applied, in order.
    #[serde(default)]
    pub notes: Vec<Arc<str>>,
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
    pub reason: Reason,
    /// The caller named another model than the one that answers, and the policy substituted it.
    pub substituted: bool,
    pub trace: Trace,
}
