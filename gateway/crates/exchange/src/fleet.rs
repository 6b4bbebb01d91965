//! What the policy may know of a backend at the moment of decision: numbers, never a price book or a socket.

use crate::{Money, spelled};
use serde::{Deserialize, Serialize};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Breaker closed and room below the concurrency limit.
    pub available: bool,
    /// What this request is expected to cost here: input plus the expected output. `None`: no price is known.
    pub expected: Option<Money>,
    /// The least money with which it makes sense to start here: input plus a first slice of output.
    pub minimum: Option<Money>,
    /// Requests running now.
    pub in_flight: u32,
}
