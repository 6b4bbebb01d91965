//! The immutable row of one exchange: one for every ending, refusals included, with one row per upstream attempt.

use crate::{
    AccountPath, BackendClass, Dialect, LatencyTier, Money, Rate, RequestId, ServiceTier, Surface, Thinking,
    TokenClass, Unit, Usage, ValueTier, spelled,
};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::sync::Arc;

/// Where in its life a request was when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    Accept,
    Queue,
    Connect,
    FirstByte,
    Stream,
}

spelled!(Phase {
    Accept => "accept", Queue => "queue", Connect => "connect", FirstByte => "first_byte", Stream => "stream",
});

/// Where a request comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A caller waits for its answer.
    #[default]
    Live,
    /// A line of a batch job.
    Batch,
    /// Sent by the gateway itself, to learn something of a deployment.
    Probe,
}

spelled!(Origin { Live => "live", Batch => "batch", Probe => "probe" });

/// How the request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// The answer was relayed whole.
    Completed,
    /// Refused before any upstream attempt was answered; `Record::refusal` says why.
    Refused,
    /// The caller hung up; the upstream was stopped.
    ClientGone,
    /// The upstream broke off, stalled or answered nonsense after its answer had begun.
    UpstreamBroken,
    /// The budget ended the answer before the model did.
    BudgetEnded,
    /// The gateway was shut down and the drain deadline passed.
    Drained,
    /// The gateway process died; found in the journal at the next start.
    Crashed,
}

spelled!(Ending {
    Completed => "completed",
    Refused => "refused",
    ClientGone => "client_gone",
    UpstreamBroken => "upstream_broken",
    BudgetEnded => "budget_ended",
    Drained => "drained",
    Crashed => "crashed",
});

/// How one upstream attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttemptOutcome {
    Answered,
    Cancelled,
    ConnectFailed,
    TimedOut,
    RateLimited,
    Failed,
    Rejected,
    BrokeOff,
    Crashed,
}

spelled!(AttemptOutcome {
    Answered => "answered",
    Cancelled => "cancelled",
    ConnectFailed => "connect_failed",
    TimedOut => "timed_out",
    RateLimited => "rate_limited",
    Failed => "failed",
    Rejected => "rejected",
    BrokeOff => "broke_off",
    Crashed => "crashed",
});

/// What a line of a charge is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Item {
    Tokens(TokenClass),
    Units(Unit),
}

impl Item {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tokens(class) => class.as_str(),
            Self::Units(unit) => unit.as_str(),
        }
    }
}

/// One item and what it cost. The amounts of a charge's lines are the steps of its running total, so that they add up
/// to it to the nano-dollar although the exact sum is rounded only once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChargeLine {
    pub item: Item,
    pub quantity: u64,
    /// Per token or piece.
    pub rate: Rate,
    pub amount: Money,
}

/// What is owed for an attempt, at which service tier, and under which version of the price book.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charge {
    pub total: Money,
    pub lines: SmallVec<[ChargeLine; 4]>,
    pub price_version: Arc<str>,
    #[serde(default)]
    pub service_tier: ServiceTier,
}

/// Durations in microseconds from the moment the request head was read. Zero: the phase was never reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    pub body_read_us: u64,
    pub decided_us: u64,
    pub upstream_headers_us: u64,
    pub first_byte_us: u64,
    pub total_us: u64,
}

/// One upstream call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptRecord {
    /// From 1, in the order they started.
    pub number: u16,
    pub deployment: Arc<str>,
    pub provider: Arc<str>,
    pub model: Arc<str>,
    pub class: BackendClass,
    pub outcome: AttemptOutcome,
    /// Upstream HTTP status; 0 where none came.
    pub status: u16,
    pub usage: Usage,
    pub charge: Charge,
    /// Microseconds since the epoch.
    pub started_unix_us: i64,
    pub duration_us: u64,
}

/// The row of one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub request: RequestId,
    /// Microseconds since the epoch.
    pub started_unix_us: i64,
    /// `None` where the caller could not be told.
    pub account: Option<Arc<AccountPath>>,
    pub dialect: Dialect,
    pub surface: Surface,
    pub origin: Origin,
    pub model_asked: Box<str>,
    pub stream: bool,
    pub value: ValueTier,
    pub latency: LatencyTier,
    pub thinking: Option<Thinking>,
    pub policy_version: Arc<str>,
    pub ending: Ending,
    /// The phase in which it ended.
    pub phase: Phase,
    /// The refusal's code; `None` unless `ending` is `Refused`.
    pub refusal: Option<crate::RefusalKind>,
    /// HTTP status sent to the caller; 0 where none was.
    pub status: u16,
    pub timings: Timings,
    /// In order. The charge of the request is their sum.
    pub attempts: SmallVec<[AttemptRecord; 1]>,
}

impl Record {
    /// What the request cost over all its attempts.
    pub fn total(&self) -> Money {
        self.attempts.iter().map(|attempt| attempt.charge.total).sum()
    }
}
