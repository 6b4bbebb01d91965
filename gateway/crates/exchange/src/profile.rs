//! What `classify` concludes: what the answer is worth, when it is needed, and how much thinking it deserves.

use crate::{Money, spelled};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a right answer is worth. `Unvalued` is what nobody has put a value on: shown in reports, never hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ValueTier {
    Unvalued,
    Low,
    Standard,
    High,
    Critical,
}

spelled!(ValueTier {
    Unvalued => "unvalued", Low => "low", Standard => "standard", High => "high", Critical => "critical",
});

/// How soon the answer is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LatencyTier {
    Interactive,
    Standard,
    Deferred,
    Batch,
}

spelled!(LatencyTier {
    Interactive => "interactive", Standard => "standard", Deferred => "deferred", Batch => "batch",
});

/// The one dial of thinking; each provider spells it in its own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ThinkingLevel {
    None,
    Minimal,
    Low,
    Medium,
    High,
    Xhigh,
    Max,
}

spelled!(ThinkingLevel {
    None => "none", Minimal => "minimal", Low => "low", Medium => "medium", High => "high", Xhigh => "xhigh",
    Max => "max",
});

/// A thinking budget: a level of the dial or a number of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Thinking {
    Level(ThinkingLevel),
    Tokens(u32),
}

impl std::fmt::Display for Thinking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Thinking::Level(level) => level.fmt(f),
            Thinking::Tokens(tokens) => write!(f, "{tokens}"),
        }
    }
}

/// What a right and a wrong answer are worth, and what waiting costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worth {
    pub value_per_success: Money,
    pub failure_cost: Money,
    /// The price of one second of waiting: the objective's λ.
    pub second: Money,
}

/// How much thinking a request gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ThinkingGrant {
    /// What the caller asked for or the policy sets. `None` leaves the provider's default in place, unless `by_gain`.
    pub wanted: Option<Thinking>,
    /// Nobody said how much: think while the expected gain is worth more than its tokens.
    pub by_gain: bool,
    pub at_least: Option<ThinkingLevel>,
    pub at_most: Option<ThinkingLevel>,
}

/// The classification of one request and the evidence for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    pub value: ValueTier,
    pub latency: LatencyTier,
    pub worth: Worth,
    pub thinking: ThinkingGrant,
    /// Milliseconds from arrival; the sooner of the caller's and the workflow's.
    pub deadline_ms: Option<u64>,
    /// The task family, by which quality priors are kept.
    pub task: Option<Arc<str>>,
    /// `workflow` is one of the policy's, and its conditions held.
    pub matched: bool,
    /// The workflow the request was matched to, or the name that the caller or the key declared.
    pub workflow: Option<Arc<str>>,
    /// Names of the rules that set the fields above, in the order they applied.
    pub evidence: Vec<Arc<str>>,
}
