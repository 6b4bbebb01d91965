//! What came of a request, as it travels from the reservation to journal and store.

use crate::window::Window;
use exchange::{Money, Record};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::sync::Arc;

/// A budget in one of its windows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct CellName {
    pub(crate) budget: Arc<str>,
    pub(crate) window: Window,
}

/// Spend to add to a budget window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Post {
    pub(crate) cell: CellName,
    pub(crate) amount: Money,
}

/// A record with what it does to budgets. Idempotent by request: the store takes each once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settlement {
    pub(crate) record: Record,
    /// What was held when it ended.
    pub(crate) held: Money,
    /// Its hold had expired, since its node had been given up.
    pub(crate) late: bool,
    pub(crate) posts: SmallVec<[Post; 4]>,
    /// What the decision depended on, for replays. Not worth its room in the journal.
    #[serde(skip)]
    pub(crate) decision: Option<Box<str>>,
}

impl Settlement {
    /// A record for which nothing was held.
    pub(crate) fn free(record: Record) -> Self {
        Self {
            record,
            held: Money::ZERO,
            late: false,
            posts: SmallVec::new(),
            decision: None,
        }
    }
}

/// When a request ended, microseconds since the epoch.
pub(crate) fn settled_at(record: &Record) -> i64 {
    record
        .started_unix_us
        .saturating_add_unsigned(record.timings.total_us)
}
