//! Jobs as the gateway knows them: what is stored of a job, an item and a pack, and the money held for a job.
//!
//! A job's money is a lease of its own: what its items may cost is held like any request's, and the slice that pays for it
//! then passes from this node to the job, in the store. Whichever node settles an item posts it under the job's name, in
//! the transaction that ends the item; so neither a crash nor a second node can lose or double a charge, and a job may
//! outlive the node that took it. What is left goes back when the last item has ended.

use crate::budget::Target;
use crate::keys::Principal;
use crate::ledger::{Ask, Denied, Ledger};
use crate::settlement::CellName;
use crate::store::{Store, StoreError};
use exchange::{AccountPath, BackendClass, Money, Record, RequestId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How often, and how long each time, the store is asked what is left of a slice that has passed to a job.
const LOOKS: u32 = 2;
const LOOK: Duration = Duration::from_secs(2);
/// The longest that money takes to pass to a job once it is held.
pub const HAND_OVER: Duration = Duration::from_secs(LOOK.as_secs() * LOOKS as u64);

/// What a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobKind {
    /// Requests that wait for a batch to be made of them.
    File,
    /// OpenAI's batch.
    Batch,
    /// Anthropic's message batch.
    Messages,
    /// One request.
    Request,
}

impl JobKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Batch => "batch",
            Self::Messages => "messages",
            Self::Request => "request",
        }
    }

    pub(crate) fn parse(text: &str) -> Self {
        match text {
            "file" => Self::File,
            "messages" => Self::Messages,
            "request" => Self::Request,
            _ => Self::Batch,
        }
    }
}

/// Names of declared labels and their values.
pub type Labels = Vec<(Box<str>, Box<str>)>;

/// A job's row.
#[derive(Clone, Debug)]
pub struct Job {
    pub id: String,
    pub kind: JobKind,
    pub account: AccountPath,
    /// Of the gateway key that made it, hexadecimal.
    pub key_hash: String,
    pub dialect: String,
    pub endpoint: String,
    /// receiving, ready, starting, running, cancelling, ended or failed.
    pub state: String,
    /// The file that a batch is made of.
    pub input: String,
    pub name: String,
    /// JSON.
    pub metadata: String,
    /// What it was declared to be, as conditions and budgets see it.
    pub labels: Labels,
    /// Where to tell of its end, if anywhere.
    pub webhook: String,
    pub idempotency: String,
    pub total: i64,
    pub bytes: i64,
    /// Zero where it has not come to that.
    pub created_us: i64,
    pub deadline_us: i64,
    pub cancelled_us: i64,
    pub ended_us: i64,
    pub expires_us: i64,
    pub problem: String,
    /// When an answer was first read after its end.
    pub read_us: i64,
}

/// An item to be stored.
#[derive(Clone, Debug)]
pub struct NewItem {
    pub number: i64,
    pub custom_id: String,
    pub way: &'static str,
    pub pool: String,
    pub provider: Arc<str>,
    pub deployment: Arc<str>,
    pub model: Arc<str>,
    pub class: BackendClass,
    pub prefix: i64,
    pub bytes: i64,
    /// What is to be held for it.
    pub held: Money,
    /// Sealed.
    pub input: Option<Vec<u8>>,
    /// What the decision on it depended on, where that is kept.
    pub decision: Option<Box<str>>,
}

/// An item's row.
#[derive(Clone, Debug)]
pub struct StoredItem {
    pub job: String,
    pub number: i64,
    pub custom_id: String,
    pub state: String,
    pub way: String,
    pub rescue: bool,
    pub deployment: String,
    pub request: String,
    pub held: Money,
    pub charge: Money,
    pub saved: Money,
    pub tries: i64,
    pub deadline_us: i64,
    pub status: i64,
    pub problem: String,
    pub ended_us: i64,
    pub input: Option<Vec<u8>>,
    pub output: Option<Vec<u8>>,
    pub decision: Option<String>,
}

/// How an item ends, or goes back to the queue.
#[derive(Clone, Debug)]
pub struct ItemEnd {
    pub job: String,
    pub number: i64,
    /// One of the ends, or `queued` for another try.
    pub state: &'static str,
    pub way: Option<&'static str>,
    /// What it came to is that of a rescue.
    pub rescue: bool,
    pub status: i64,
    pub problem: String,
    pub output: Option<Vec<u8>>,
    pub charge: Money,
    pub saved: Money,
    /// The ledger's request that paid for it.
    pub request: Option<RequestId>,
    /// To be posted with it, where a provider has answered.
    pub record: Option<Record>,
    /// What the decision on it depended on, to be kept with the record.
    pub decision: Option<Box<str>>,
    /// Back in the queue, it is not to be looked at before so much later, in microseconds.
    pub later_us: i64,
}

impl ItemEnd {
    /// An end that costs nothing.
    pub fn free(item: &StoredItem, state: &'static str) -> Self {
        Self {
            job: item.job.clone(),
            number: item.number,
            state,
            way: None,
            rescue: false,
            status: 0,
            problem: String::new(),
            output: None,
            charge: Money::ZERO,
            saved: Money::ZERO,
            request: None,
            record: None,
            decision: None,
            later_us: 0,
        }
    }

    /// Back to the queue, for the synchronous tier to answer.
    pub fn rescue(item: &StoredItem, why: &str) -> Self {
        Self {
            way: Some("standard"),
            rescue: true,
            problem: why.into(),
            ..Self::free(item, "queued")
        }
    }
}

/// Items of one job by state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub by_state: BTreeMap<String, i64>,
    pub charge: Money,
    pub saved: Money,
    pub held: Money,
    pub late: i64,
    pub rescued: i64,
}

impl Tally {
    pub fn of(&self, state: &str) -> i64 {
        self.by_state.get(state).copied().unwrap_or_default()
    }

    /// Items that have not ended.
    pub fn open(&self) -> i64 {
        ["filed", "queued", "packed", "submitted"]
            .iter()
            .map(|state| self.of(state))
            .sum()
    }
}

/// A pool of items that wait to travel together.
#[derive(Clone, Debug)]
pub struct Pool {
    pub name: String,
    pub slack: i64,
    pub items: i64,
    pub bytes: i64,
    pub oldest_us: i64,
    pub deadline_us: i64,
    pub provider: String,
    pub deployment: String,
    pub model: String,
    /// By the database's clock.
    pub now_us: i64,
}

/// How a team's jobs stand.
#[derive(Clone, Debug)]
pub struct Standing {
    pub org: String,
    pub team: String,
    pub open: i64,
    /// Within a day, as for the next five.
    pub ended: i64,
    pub rescued: i64,
    pub missed: i64,
    pub charge: Money,
    pub saved: Money,
    /// Since the oldest that is open was made.
    pub age_us: i64,
    /// Until the earliest deadline of what is open.
    pub slack_us: i64,
}

/// Requests that were answered at once and could have waited.
#[derive(Clone, Debug)]
pub struct Waitable {
    pub org: String,
    pub team: String,
    pub workflow: String,
    pub provider: String,
    pub model: String,
    /// The latency tier that they had.
    pub latency: String,
    pub requests: i64,
    pub charge: Money,
    pub input_tokens: i64,
    pub output_tokens: i64,
    /// What an answer took.
    pub latency_us: i64,
    /// Hours of the day in which they came, and days.
    pub hours: i64,
    pub days: i64,
    /// What a batch takes, where one has been seen.
    pub batch_us: Option<i64>,
}

/// How long the answers of jobs lay before somebody read them.
#[derive(Clone, Debug)]
pub struct FirstRead {
    pub org: String,
    pub team: String,
    pub workflow: String,
    pub provider: String,
    pub model: String,
    /// Whose job's answers were read.
    pub items: i64,
    pub charge: Money,
    /// What rescues, made to be in time, cost more than a batch.
    pub left: Money,
    /// From request to answer, and from the answer to its first reading, on average.
    pub answer_us: i64,
    pub lay_us: i64,
}

/// A pack's row.
#[derive(Clone, Debug)]
pub struct Pack {
    pub id: String,
    pub provider: String,
    pub deployment: String,
    pub model: String,
    pub endpoint: String,
    pub backend: String,
    /// packed, creating, submitted, ended, settled or void.
    pub state: String,
    /// The provider's name of the file it was uploaded as.
    pub file: String,
    /// The provider's name of the batch.
    pub remote: String,
    pub items: i64,
    pub cancelling: bool,
    pub tries: i64,
    pub created_us: i64,
    pub submitted_us: i64,
    pub ended_us: i64,
    pub deadline_us: i64,
    pub problem: String,
    /// By the database's clock.
    pub now_us: i64,
}

/// The budget windows in which money is held for one deployment's items.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Escrow {
    pub(crate) deployment: String,
    pub(crate) cells: Vec<CellName>,
}

/// What the items of one deployment need.
#[derive(Clone, Debug)]
pub struct Need {
    pub deployment: String,
    pub model: String,
    pub class: BackendClass,
    pub amount: Money,
    pub items: i64,
}

/// The lessee of a job's money.
pub(crate) fn lessee(job: &str) -> Arc<str> {
    format!("job/{job}").into()
}

impl Ledger {
    /// The store's side of jobs.
    pub fn jobs(&self) -> Jobs {
        Jobs {
            store: self.desk().store.clone(),
            ledger: self.clone(),
        }
    }

    /// Holds what a job's items may cost and lets it pass from this node to the job. All or nothing.
    ///
    /// # Errors
    /// The budget in the way, or a store that is away.
    pub async fn escrow(
        &self,
        who: &Principal,
        job: &Job,
        needs: &[Need],
        ask: Ask<'_>,
    ) -> Result<(), Denied> {
        let mut escrows = Vec::new();
        for need in needs {
            let target = Target {
                model: &need.model,
                model_asked: &need.model,
                class: need.class,
            };
            match self.hand_over(who, &job.id, (target, need.amount), ask).await {
                Ok(cells) => escrows.push(Escrow {
                    deployment: need.deployment.clone(),
                    cells,
                }),
                Err(denied) => {
                    if let Err(error) = self.release_job(&job.id).await {
                        tracing::warn!(%error, job = job.id, "money held for a job could not be given back; it is tried again");
                    }
                    return Err(denied);
                }
            }
        }
        let stored = self.desk().store.put_cells(&job.id, &escrows).await;
        stored.map_err(|error| Denied::Store {
            problem: error.to_string(),
        })
    }

    async fn hand_over(
        &self,
        who: &Principal,
        job: &str,
        (target, amount): (Target<'_>, Money),
        ask: Ask<'_>,
    ) -> Result<Vec<CellName>, Denied> {
        let ask = Ask {
            want: amount,
            least: amount,
            ..ask
        };
        let id = RequestId::new(0, [0; 10]);
        let mut reservation = self.reserve(who, id, ask).await?;
        let cells = reservation.aim_at(target, &who.account).await?;
        let leased: Vec<CellName> = cells
            .iter()
            .filter(|cell| cell.1)
            .map(|cell| cell.0.clone())
            .collect();
        let handed = self.desk().store.hand_over(job, &leased, amount).await;
        handed.map_err(|error| Denied::Store {
            problem: error.to_string(),
        })?;
        // The hold stays until the store has been asked what is left of this node's slice, which is then less: the first
        // answer may be to a question from before.
        for _ in 0..LOOKS {
            self.books().look_again(&leased);
            let answered = self.refilled();
            self.wake();
            let _ = tokio::time::timeout(LOOK, answered).await;
        }
        drop(reservation);
        // What this node has taken beyond the job's part goes back.
        self.books().look_again(&leased);
        self.wake();
        Ok(cells.into_iter().map(|cell| cell.0).collect())
    }

    /// Gives back what is left of a job's money.
    ///
    /// # Errors
    /// The store cannot be written; it may be tried again.
    pub async fn release_job(&self, job: &str) -> Result<(), StoreError> {
        let released = self.desk().store.as_node(lessee(job)).release().await;
        self.look_again();
        released
    }

    /// Others than this node have spent or given back: the store is to be asked how budgets stand.
    pub(crate) fn look_again(&self) {
        self.books().look_at_all();
        self.wake();
    }
}

/// Jobs, items and packs in the store. Clones share one pool of connections.
#[derive(Clone, Debug)]
pub struct Jobs {
    pub(crate) store: Store,
    pub(crate) ledger: Ledger,
}
