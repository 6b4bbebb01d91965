//! What `classify` concludes: what the answer is worth, when it is needed, and how much thinking it deserves.

use crate::spelled;
use serde::{Deserialize, Serialize};

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

/// The classification of one request and the evidence for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    pub value: ValueTier,
    pub latency: LatencyTier,
    /// What the policy grants. `None` leaves the caller's or the provider's default in place.
    pub thinking: Option<Thinking>,
    /// The workflow the request was matched to.
    pub workflow: Option<std::sync::Arc<str>>,
    /// Names of the rules that set the fields above, in the order they applied.
    pub evidence: Vec<std::sync::Arc<str>>,
}
