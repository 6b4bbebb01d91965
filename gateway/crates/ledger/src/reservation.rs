//! Money held for one request, from the grant to the settlement.

use crate::books::Path;
use crate::crash;
use crate::journal::{Entry, JournalError, Shared};
use crate::ledger::Ledger;
use exchange::{
    AccountPath, BackendClass, Charge, Dialect, Envelope, LatencyTier, Money, Record, RequestId, Surface,
    Thinking, Usage, ValueTier,
};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::sync::Arc;

/// What is known of a request before its first attempt: enough to write its row should the process die.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Opening {
    pub started_unix_us: i64,
    pub account: Arc<AccountPath>,
    pub dialect: Dialect,
    pub surface: Surface,
    pub model_asked: Box<str>,
    pub stream: bool,
    pub value: ValueTier,
    pub latency: LatencyTier,
    pub thinking: Option<Thinking>,
    pub policy_version: Arc<str>,
}

/// An upstream attempt that is about to start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    pub opening: Arc<Opening>,
    /// From 1.
    pub number: u16,
    pub deployment: Arc<str>,
    pub provider: Arc<str>,
    pub model: Arc<str>,
    pub class: BackendClass,
    pub started_unix_us: i64,
    /// What it will cost at least, with the price version.
    pub estimate: Charge,
    /// The tokens behind the estimate.
    pub usage: Usage,
}

/// Money held in every budget on an account's path. Ends by [`Reservation::settle`]; dropped, it gives everything
/// back if no attempt had begun, and else charges what was held, since the provider may.
#[must_use = "money stays held until the reservation is settled or dropped"]
#[derive(Debug)]
pub struct Reservation {
    ledger: Ledger,
    path: Path,
    request: RequestId,
    granted: Money,
    remaining: Money,
    intents: SmallVec<[Intent; 1]>,
    /// Journal segments that hold entries of this request.
    segments: SmallVec<[u64; 2]>,
    settled: bool,
}

impl Reservation {
    pub(crate) fn new(ledger: Ledger, path: Path, request: RequestId, envelope: Envelope) -> Self {
        Self {
            ledger,
            path,
            request,
            granted: envelope.granted,
            remaining: envelope.remaining,
            intents: SmallVec::new(),
            segments: SmallVec::new(),
            settled: false,
        }
    }

    /// What is held, and what the tightest budget had left beyond it when last looked at.
    pub fn envelope(&self) -> Envelope {
        Envelope {
            granted: self.granted,
            remaining: self.remaining,
        }
    }

    /// Holds up to `more`; returns how much of it was granted, which may be nothing.
    pub fn extend(&mut self, more: Money, now_unix_us: i64) -> Money {
        let Ok(held) = self
            .ledger
            .books()
            .hold(&self.path, more, Money::ZERO, now_unix_us)
        else {
            return Money::ZERO;
        };
        let total = self.granted.plus(held.granted);
        if !self.intents.is_empty() && !held.granted.is_zero() {
            let entry = Entry::Extended {
                request: self.request,
                held: total,
            };
            match self.ledger.journal().append(&entry) {
                Ok(segment) => self.segments.push(segment),
                Err(error) => {
                    // Money that the journal does not know of is not money to spend.
                    tracing::error!(%error, "a reservation could not be extended");
                    self.ledger
                        .books()
                        .settle(&self.path, held.granted, Money::ZERO, now_unix_us);
                    return Money::ZERO;
                }
            }
        }
        self.granted = total;
        self.remaining = held.remaining;
        held.granted
    }

    /// Writes the intent to the journal; only then may the upstream be called.
    ///
    /// # Errors
    /// The journal cannot be written. The attempt must not be made: its cost could be lost.
    pub fn begin_attempt(&mut self, intent: Intent) -> Result<(), JournalError> {
        let entry = Entry::Began {
            request: self.request,
            held: self.granted,
            intent: Shared::Borrowed(&intent),
        };
        self.segments.push(self.ledger.journal().append(&entry)?);
        self.intents.push(intent);
        Ok(())
    }

    /// Posts what the record says was spent, gives the rest back and hands the record to the store.
    pub fn settle(mut self, record: Record) {
        self.finish(record);
    }

    fn finish(&mut self, record: Record) {
        self.settled = true;
        let settled_us = settled_at(&record);
        self.ledger
            .books()
            .settle(&self.path, self.granted, record.total(), settled_us);
        self.ledger.post(record, std::mem::take(&mut self.segments));
    }
}

/// A record belongs to the window in which it ended.
pub(crate) fn settled_at(record: &Record) -> i64 {
    record
        .started_unix_us
        .saturating_add_unsigned(record.timings.total_us)
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        match crash::estimate(self.request, &self.intents, self.granted) {
            Some(record) => self.finish(record),
            None => self
                .ledger
                .books()
                .settle(&self.path, self.granted, Money::ZERO, i64::MIN),
        }
    }
}
