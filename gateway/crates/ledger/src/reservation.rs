//! Money held for one request, from the grant to the settlement.

use crate::books::{Cost, Short, Transfer};
use crate::budget::Target;
use crate::crash;
use crate::journal::{Entry, JournalError, Shared};
use crate::ledger::{Denied, Ledger};
use crate::settlement::CellName;
use exchange::{
    AccountPath, BackendClass, Charge, Dialect, Ending, Envelope, LatencyTier, Money, Origin, Phase, Record,
    RequestId, Surface, Thinking, Timings, Usage, ValueTier,
};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// The longest that a stream stands still for more money to come from the store.
const STAND_STILL: Duration = Duration::from_millis(250);

/// How often a request may stand still so.
const PATIENCE: u8 = 4;

/// What is known of a request before its first attempt: enough to write its row should the process die.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Opening {
    pub started_unix_us: i64,
    pub account: Arc<AccountPath>,
    pub dialect: Dialect,
    pub surface: Surface,
    pub origin: Origin,
    pub model_asked: Box<str>,
    pub stream: bool,
    pub value: ValueTier,
    pub latency: LatencyTier,
    pub thinking: Option<Thinking>,
    pub policy_version: Arc<str>,
}

impl Opening {
    /// The row of a request of which no more is known than this: it was cut off. Whoever knows more says so.
    pub fn record(&self, request: RequestId) -> Record {
        Record {
            request,
            started_unix_us: self.started_unix_us,
            account: Some(self.account.clone()),
            dialect: self.dialect,
            surface: self.surface,
            origin: self.origin,
            model_asked: self.model_asked.clone(),
            stream: self.stream,
            value: self.value,
            latency: self.latency,
            thinking: self.thinking,
            policy_version: self.policy_version.clone(),
            ending: Ending::Crashed,
            phase: Phase::Stream,
            refusal: None,
            status: 0,
            timings: Timings::default(),
            attempts: SmallVec::new(),
        }
    }
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

impl Intent {
    fn target(&self) -> Target<'_> {
        Target {
            model: &self.model,
            model_asked: &self.opening.model_asked,
            class: self.class,
        }
    }
}

/// Why an attempt must not be made.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// Its cost could be lost.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A budget for such targets has not enough left; another target may do.
    #[error(transparent)]
    Denied(#[from] Denied),
}

/// Money held in every budget on an account's path. Ends by [`Reservation::settle`]; dropped, it gives everything
/// back if no attempt had begun, and else charges what was held, since the provider may.
#[must_use = "money stays held until the reservation is settled or dropped"]
#[derive(Debug)]
pub struct Reservation {
    ledger: Ledger,
    transfer: Transfer,
    request: RequestId,
    remaining: Money,
    intents: SmallVec<[Intent; 1]>,
    /// Journal segments that hold entries of this request.
    segments: SmallVec<[u64; 2]>,
    /// How often it may still stand still.
    patience: u8,
    settled: bool,
    /// What the decision depended on, where that is kept.
    decision: Option<Box<str>>,
}

impl Reservation {
    pub(crate) fn new(ledger: Ledger, transfer: Transfer, request: RequestId, remaining: Money) -> Self {
        Self {
            ledger,
            transfer,
            request,
            remaining,
            intents: SmallVec::new(),
            segments: SmallVec::new(),
            patience: PATIENCE,
            settled: false,
            decision: None,
        }
    }

    /// What is held, and what the tightest budget had left beyond it when last looked at.
    pub fn envelope(&self) -> Envelope {
        Envelope {
            granted: self.transfer.held(),
            remaining: self.remaining,
        }
    }

    /// What the decision depended on is kept beside the request's row.
    pub fn keep_decision(&mut self, decision: Box<str>) {
        self.decision = Some(decision);
    }

    /// Holds up to `more`; returns how much of it was granted, which may be nothing. Stands still for a moment, a few times
    /// at most, where this node's slice of a budget is used up, for the store or for requests that give back what they held.
    pub async fn extend(&mut self, more: Money) -> Money {
        let short = match self.extend_now(more) {
            Ok(granted) => return granted,
            Err(Some(short)) if self.patience > 0 => short,
            Err(_) => return Money::ZERO,
        };
        self.patience -= 1;
        let ledger = self.ledger.clone();
        ledger.wake();
        let granted = timeout(STAND_STILL, async {
            let mut told = short.told;
            loop {
                told.await;
                match self.extend_now(more) {
                    Ok(granted) => return granted,
                    Err(Some(short)) => told = short.told,
                    Err(None) => return Money::ZERO,
                }
            }
        });
        let granted = granted.await.unwrap_or(Money::ZERO);
        // Whoever is next in line may do with what this one could not, or left.
        short.released.notify_one();
        granted
    }

    /// # Errors
    /// There is nothing now; nothing to wait for either where none is told.
    fn extend_now(&mut self, more: Money) -> Result<Money, Option<Short>> {
        let extended = self.ledger.books().extend(&mut self.transfer, more);
        let (granted, remaining) = extended.inspect_err(|_| self.remaining = Money::ZERO)?;
        if !self.intents.is_empty() && !granted.is_zero() {
            let entry = Entry::Extended {
                request: self.request,
                held: self.transfer.held(),
            };
            match self.ledger.journal().append(&entry) {
                Ok(segment) => self.segments.push(segment),
                Err(error) => {
                    // Money that the journal does not know of is not money to spend.
                    tracing::error!(%error, "a reservation could not be extended");
                    self.ledger.books().unextend(&mut self.transfer, granted);
                    return Err(None);
                }
            }
        }
        self.remaining = remaining;
        Ok(granted)
    }

    /// Holds the money in the budgets for this target too, and writes the intent to the journal; only then may the
    /// upstream be called.
    ///
    /// # Errors
    /// [`BeginError`]: the attempt must not be made.
    pub async fn begin_attempt(&mut self, intent: Intent) -> Result<(), BeginError> {
        if let Err(short) = self.aim(&intent) {
            // The slice may just be empty.
            if !short.hopeless {
                self.ledger.wake();
                let _ = timeout(STAND_STILL, self.ledger.refilled()).await;
            }
            let needed = self.transfer.held();
            self.aim(&intent).map_err(|short| Denied::Budget {
                balance: short.balance,
                needed,
            })?;
        }
        let cells = self.ledger.books().names(&self.transfer);
        let entry = Entry::Began {
            request: self.request,
            held: self.transfer.held(),
            cells,
            intent: Shared::Borrowed(&intent),
        };
        self.segments.push(self.ledger.journal().append(&entry)?);
        self.intents.push(intent);
        Ok(())
    }

    /// Holds the money in the budgets for this target too; returns every budget window in which it is held, and whether
    /// that is of a hard budget.
    pub(crate) async fn aim_at(
        &mut self,
        target: Target<'_>,
        account: &AccountPath,
    ) -> Result<Vec<(CellName, bool)>, Denied> {
        let aim = |this: &mut Self| this.ledger.books().aim(&mut this.transfer, target, account);
        if aim(self).is_err() {
            self.ledger.wake();
            let _ = tokio::time::timeout(STAND_STILL, self.ledger.refilled()).await;
            let needed = self.transfer.held();
            aim(self).map_err(|short| Denied::Budget {
                balance: short.balance,
                needed,
            })?;
        }
        Ok(self.ledger.books().cells_of(&self.transfer))
    }

    fn aim(&mut self, intent: &Intent) -> Result<(), Short> {
        self.ledger
            .books()
            .aim(&mut self.transfer, intent.target(), &intent.opening.account)
    }

    /// Posts what the record says was spent, gives the rest back and hands the record to the store.
    pub fn settle(mut self, record: Record) {
        self.finish(record);
    }

    fn finish(&mut self, record: Record) {
        self.settled = true;
        let costs: SmallVec<[Cost<'_>; 2]> = record
            .attempts
            .iter()
            .map(|attempt| Cost {
                target: Target {
                    model: &attempt.model,
                    model_asked: &record.model_asked,
                    class: attempt.class,
                },
                amount: attempt.charge.total,
            })
            .collect();
        let settled = self.ledger.books().post(&self.transfer, &costs);
        drop(costs);
        let segments = std::mem::take(&mut self.segments);
        self.ledger.post(
            (record, self.decision.take(), self.transfer.held()),
            settled,
            segments,
        );
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        match crash::estimate(self.request, &self.intents, self.transfer.held()) {
            Some(record) => self.finish(record),
            None => self.ledger.books().void(&self.transfer),
        }
    }
}
