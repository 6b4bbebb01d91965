//! What the policy may know of a backend at the moment of decision: numbers, never a price book or a socket.

use crate::{Money, Rate, Thinking, spelled};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The kind of backend, which is what floors and preferences speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackendClass {
    Frontier,
    Cheap,
    Local,
    Batch,
}

spelled!(BackendClass { Frontier => "frontier", Cheap => "cheap", Local => "local", Batch => "batch" });

/// One deployment's standing for one request. The fleet view is a slice of these, in the policy's deployment order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Offer {
    /// Breaker closed and room below the concurrency limit.
    pub available: bool,
    /// What this request is expected to cost here, without a cached prefix and without thinking: input plus the
    /// expected output; on owned hardware the marginal cost. `None`: no price is known.
    pub expected: Option<Money>,
    /// The least money with which it makes sense to start here: input plus a first slice of output.
    pub minimum: Option<Money>,
    /// Requests running now.
    pub in_flight: u32,
    /// What one more token of output costs, thinking included.
    pub output_rate: Rate,
    /// What this request saves here because the provider still holds the conversation's prefix; zero elsewhere.
    pub cache_saving: Money,
    /// Expected milliseconds until a slot is free.
    pub wait_ms: u32,
    /// Measured milliseconds from the call to the first token; `None` where nothing was measured yet.
    pub first_token_ms: Option<u32>,
    /// Measured milliseconds for a thousand tokens of output.
    pub kilotoken_ms: Option<u32>,
    /// Of a thousand calls of this workflow here, so many are made again.
    pub retry_permille: u16,
    /// Of a thousand calls of this workflow here, so many end at the dearest deployment after all.
    pub escalation_permille: u16,
}

/// Where the last turn of this conversation was answered, and what would be lost by leaving.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversation {
    /// Deployment id.
    pub deployment: Arc<str>,
    /// Tokens of prefix that the provider is believed to hold.
    pub cached_tokens: u64,
    /// How the last turn thought; a change voids the provider's cache.
    pub thinking: Option<Thinking>,
}
