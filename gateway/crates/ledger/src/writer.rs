//! Moves settlements into the store, many at a time, and lets the journal forget what has arrived.

use crate::books::Books;
use crate::budget::Enforcement;
use crate::journal::{Fsync, Journal, JournalError};
use crate::settlement::Settlement;
use crate::store::{Alert, Posted, Spend, Store, StoreError};
use exchange::Money;
use smallvec::SmallVec;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Settlements that may wait for the store. Beyond it no more money is given out: every one of them is in the journal,
/// but a gateway that can no longer tell what it spent has no business spending. At 5,000 a second they last for 80 s and
/// take half a gigabyte.
const BACKLOG: usize = 400_000;
/// Settlements per transaction.
const BATCH: usize = 2_000;
/// How long they gather before they are written; what a dashboard lags behind.
const GATHER: Duration = Duration::from_millis(50);
/// How long a settlement may wait for an intent to go to the kernel with.
const HAND_OVER: Duration = Duration::from_millis(5);
const RETRY: Duration = Duration::from_millis(500);
/// A transaction that takes longer has been lost with its connection.
const SILENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) struct Posting {
    pub(crate) settlement: Settlement,
    pub(crate) segments: SmallVec<[u64; 2]>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Posting>,
    /// Pushed in all.
    pushed: u64,
    closing: bool,
    problem: Option<String>,
    /// Beyond hard limits.
    overspent: Money,
}

/// What the writer works with.
#[derive(Clone, Debug)]
pub(crate) struct Desk {
    pub(crate) store: Store,
    pub(crate) journal: Arc<Journal>,
    pub(crate) books: Arc<Mutex<Books>>,
    pub(crate) alerts: mpsc::Sender<Alert>,
    /// Held while the store takes a batch, or while this node learns that it has been given up.
    pub(crate) turn: Arc<tokio::sync::Mutex<()>>,
    pub(crate) clock: fn() -> i64,
}

impl Desk {
    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(crate) struct Writer {
    queue: Arc<(Mutex<Queue>, Notify)>,
    written: watch::Receiver<u64>,
    task: tokio::sync::Mutex<JoinSet<()>>,
}

impl Writer {
    pub(crate) fn start(desk: Desk) -> Self {
        let queue = Arc::new((Mutex::new(Queue::default()), Notify::new()));
        let (progress, written) = watch::channel(0);
        let mut task = JoinSet::new();
        let (closed, closing) = watch::channel(());
        task.spawn(keep(desk.journal.clone(), closing));
        task.spawn(run(desk, queue.clone(), (progress, closed)));
        Self {
            queue,
            written,
            task: tokio::sync::Mutex::new(task),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue.0)
    }

    pub(crate) fn push(&self, posting: Posting) {
        let mut queue = self.queue();
        // A posting without a journal entry is a refusal: it costs nothing, and goes first when there is no room.
        if queue.waiting.len() >= BACKLOG && posting.segments.is_empty() {
            return;
        }
        queue.waiting.push(posting);
        queue.pushed += 1;
        if queue.waiting.len() == 1 {
            self.queue.1.notify_one();
        }
    }

    /// What waits was held under leases that have been written off.
    pub(crate) fn mark_late(&self) {
        for posting in &mut self.queue().waiting {
            posting.settlement.late = true;
        }
    }

    /// Settlements that wait, and what was spent beyond hard limits.
    pub(crate) fn standing(&self) -> (u64, Money) {
        let queue = self.queue();
        (
            queue.pushed.saturating_sub(*self.written.borrow()),
            queue.overspent,
        )
    }

    pub(crate) fn healthy(&self) -> Result<(), String> {
        let queue = self.queue();
        if queue.waiting.len() < BACKLOG {
            return Ok(());
        }
        Err(queue
            .problem
            .clone()
            .unwrap_or_else(|| "it is slower than the requests that come".into()))
    }

    pub(crate) async fn flush(&self) {
        let wanted = self.queue().pushed;
        let mut written = self.written.clone();
        let _ = written.wait_for(|count| *count >= wanted).await;
    }

    /// Ends the writer; true if the store has everything.
    pub(crate) async fn close(&self) -> bool {
        self.queue().closing = true;
        self.queue.1.notify_one();
        while self.task.lock().await.join_next().await.is_some() {}
        *self.written.borrow() >= self.queue().pushed
    }
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn run(
    desk: Desk,
    queue: Arc<(Mutex<Queue>, Notify)>,
    // The second is dropped at the end, which is what it is for.
    (progress, _closed): (watch::Sender<u64>, watch::Sender<()>),
) {
    let mut raised = HashSet::new();
    loop {
        let closing = lock(&queue.0).closing;
        if lock(&queue.0).waiting.is_empty() {
            if closing {
                return;
            }
            queue.1.notified().await;
        }
        // A full batch has gathered long enough.
        if !closing && lock(&queue.0).waiting.len() < BATCH {
            sleep(GATHER).await;
        }
        let turn = desk.turn.lock().await;
        let batch: Vec<Posting> = {
            let mut queue = lock(&queue.0);
            let count = queue.waiting.len().min(BATCH);
            queue.waiting.drain(..count).collect()
        };
        let Some(posted) = write(&desk.store, &queue.0, &batch).await else {
            return;
        };
        drop(turn);
        let segments = batch.iter().flat_map(|posting| posting.segments.iter().copied());
        desk.journal.forget(segments);
        progress.send_modify(|count| *count += batch.len() as u64);
        let over = overspent(&desk, &posted.spends);
        if over > Money::ZERO {
            let mut queue = lock(&queue.0);
            queue.overspent = queue.overspent.plus(over);
        }
        raise(&desk, &mut raised, &posted.spends).await;
    }
}

/// Writes a batch, for as long as it takes; nothing when the ledger closes first. The journal still has it then.
async fn write(store: &Store, queue: &Mutex<Queue>, batch: &[Posting]) -> Option<Posted> {
    let settlements: Vec<&Settlement> = batch.iter().map(|posting| &posting.settlement).collect();
    loop {
        let posted = timeout(SILENCE, store.post(&settlements)).await;
        match posted.unwrap_or(Err(StoreError::Silent(SILENCE))) {
            Ok(posted) => {
                lock(queue).problem = None;
                return Some(posted);
            }
            Err(error) => {
                tracing::error!(%error, waiting = batch.len(), "the store cannot be written; records are kept in the journal");
                let mut queue = lock(queue);
                queue.problem = Some(error.to_string());
                if queue.closing {
                    return None;
                }
            }
        }
        sleep(RETRY).await;
    }
}

/// What a batch spent beyond hard limits.
fn overspent(desk: &Desk, spends: &[Spend]) -> Money {
    let books = desk.books();
    let now_us = (desk.clock)();
    let over = |spend: &Spend| {
        let budget = books.definition(&spend.budget)?;
        let limit = (budget.spec.enforcement == Enforcement::Hard).then(|| budget.limit(now_us))?;
        let beyond = |spent: Money| spent.minus(limit).max(Money::ZERO);
        Some(beyond(spend.spent).minus(beyond(spend.spent.minus(spend.added))))
    };
    spends.iter().filter_map(over).sum()
}

/// A budget window's threshold, as far as this process knows it was told.
type Raised = HashSet<(String, i64, u16)>;

/// Tells of thresholds that have been passed; the store knows which were told before.
async fn raise(desk: &Desk, raised: &mut Raised, spends: &[Spend]) {
    let mut alerts = Vec::new();
    for spend in spends {
        let Some(budget) = desk.books().definition(&spend.budget) else {
            continue;
        };
        let limit = budget.limit((desk.clock)());
        for threshold in &budget.spec.thresholds {
            let passed =
                i128::from(spend.spent.nanos()) * 100 >= i128::from(limit.nanos()) * i128::from(*threshold);
            if passed && raised.insert((spend.budget.clone(), spend.starts_us, *threshold)) {
                alerts.push(Alert {
                    budget: spend.budget.clone(),
                    account: budget.account.to_string(),
                    window_starts_us: spend.starts_us,
                    threshold: *threshold,
                    spent: spend.spent,
                    limit,
                });
            }
        }
    }
    if alerts.is_empty() {
        return;
    }
    let keys: Vec<_> = alerts
        .iter()
        .map(|alert| (alert.budget.clone(), alert.window_starts_us, alert.threshold))
        .collect();
    match desk.store.raise(alerts).await {
        Ok(new) => {
            for alert in new {
                if desk.alerts.try_send(alert).is_err() {
                    tracing::warn!("an alert was dropped: nobody takes them, or not fast enough");
                }
            }
        }
        Err(error) => {
            tracing::error!(%error, "alerts could not be noted; the next spend tries again");
            raised.retain(|key| !keys.contains(key));
        }
    }
}

/// Hands waiting settlements to the kernel, and the journal to the disk if that is wanted, until the writer ends.
async fn keep(journal: Arc<Journal>, mut closing: watch::Receiver<()>) {
    let mut disk = match journal.fsync() {
        Fsync::Every(interval) => Some(tokio::time::interval(interval.max(Duration::from_millis(1)))),
        Fsync::Never | Fsync::Each => None,
    };
    loop {
        let kept = tokio::select! {
            _ = closing.changed() => return told(journal.flush()),
            () = journal.waiting.notified() => {
                sleep(HAND_OVER).await;
                journal.flush()
            }
            () = tick(&mut disk) => {
                let journal = journal.clone();
                tokio::task::spawn_blocking(move || journal.sync()).await.unwrap_or(Ok(()))
            }
        };
        told(kept);
    }
}

async fn tick(interval: &mut Option<tokio::time::Interval>) {
    match interval {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}

fn told(kept: Result<(), JournalError>) {
    if let Err(error) = kept {
        tracing::error!(%error, "settlements wait in memory alone: a crash now charges what was held for them");
    }
}
