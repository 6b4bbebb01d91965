//! The keys of the batch tier.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Work that may wait.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Batch {
    /// What seals prompts and answers that wait in the store: `env:NAME` or `file:PATH`, at least 16 characters, the same
    /// at every gateway. Left out: they are kept in memory only, and are lost with the process.
    pub(crate) content_key: Option<String>,
    /// How long files and answers are kept.
    pub(crate) keep_hours: u64,
    /// How often providers are asked how their batches stand.
    pub(crate) poll_ms: u64,
    /// The longest that an item waits for company.
    pub(crate) gather_ms: u64,
    /// A batch goes when so many items are there, whatever their age.
    pub(crate) pack_items: usize,
    pub(crate) pack_mib: usize,
    /// Synchronous calls for items at once: rescues, flex, the own engine.
    pub(crate) parallel: u32,
    /// What the guard reckons one synchronous call takes at worst.
    pub(crate) rescue_call_ms: u64,
    /// After flex had no room, how long until it is asked again.
    pub(crate) flex_again_ms: u64,
    /// How long a provider is given to end a batch that is cancelled.
    pub(crate) cancel_ms: u64,
    /// In percent: waiting for a batch that is less likely than this to be in time is given up early.
    pub(crate) give_up_percent: u8,
    /// Where the budget does not pay for a whole job. `refuse`: it is not taken. `trim`: as many items from its first as
    /// the budget pays for.
    pub(crate) over_budget: OverBudget,
    /// Hosts that may be told of the ends of jobs, as `host` or `host:port`.
    pub(crate) webhook_hosts: Vec<String>,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            content_key: None,
            keep_hours: 720,
            poll_ms: 5_000,
            gather_ms: 60_000,
            pack_items: 10_000,
            pack_mib: 32,
            parallel: 32,
            rescue_call_ms: 90_000,
            flex_again_ms: 30_000,
            cancel_ms: 600_000,
            give_up_percent: 2,
            over_budget: OverBudget::Refuse,
            webhook_hosts: Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OverBudget {
    Refuse,
    Trim,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BatchApi {
    /// Files and `/batches`.
    Openai,
    /// `/messages/batches`.
    Anthropic,
    /// `batchGenerateContent`, beside Gemini's surface that speaks OpenAI's dialect, whose base URL ends in `/openai`.
    Gemini,
}
