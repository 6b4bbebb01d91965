//! Moves settled records into the store, many at a time, and lets the journal forget what has arrived.

use crate::journal::{Fsync, Journal, JournalError};
use crate::store::Store;
use exchange::Record;
use smallvec::SmallVec;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// Records that may wait while the store is down. Beyond it no more money is given out: every one of them is in the
/// journal, but a gateway that can no longer tell what it spent has no business spending.
const BACKLOG: usize = 100_000;
/// Records per transaction.
const BATCH: usize = 2_000;
/// How long records gather before they are written; what a dashboard lags behind.
const GATHER: Duration = Duration::from_millis(50);
/// How long a settlement may wait for an intent to go to the kernel with.
const HAND_OVER: Duration = Duration::from_millis(5);
const RETRY: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Posting {
    pub(crate) record: Record,
    pub(crate) segments: SmallVec<[u64; 2]>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Posting>,
    /// Pushed in all, and of these written.
    pushed: u64,
    closing: bool,
    problem: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Writer {
    queue: Arc<(Mutex<Queue>, Notify)>,
    written: watch::Receiver<u64>,
    task: tokio::sync::Mutex<JoinSet<()>>,
}

impl Writer {
    pub(crate) fn start(store: Store, journal: Arc<Journal>) -> Self {
        let queue = Arc::new((Mutex::new(Queue::default()), Notify::new()));
        let (progress, written) = watch::channel(0);
        let mut task = JoinSet::new();
        let (closed, closing) = watch::channel(());
        task.spawn(keep(journal.clone(), closing));
        task.spawn(run(store, journal, queue.clone(), (progress, closed)));
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
        if queue.waiting.len() >= 2 * BACKLOG && posting.segments.is_empty() {
            return;
        }
        queue.waiting.push(posting);
        queue.pushed += 1;
        if queue.waiting.len() == 1 {
            self.queue.1.notify_one();
        }
    }

    pub(crate) fn healthy(&self) -> Result<(), String> {
        let queue = self.queue();
        match &queue.problem {
            Some(problem) if queue.waiting.len() >= BACKLOG => Err(problem.clone()),
            _ => Ok(()),
        }
    }

    pub(crate) async fn flush(&self) {
        let wanted = self.queue().pushed;
        let mut written = self.written.clone();
        let _ = written.wait_for(|count| *count >= wanted).await;
    }

    pub(crate) async fn close(&self) {
        self.queue().closing = true;
        self.queue.1.notify_one();
        while self.task.lock().await.join_next().await.is_some() {}
    }
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn run(
    store: Store,
    journal: Arc<Journal>,
    queue: Arc<(Mutex<Queue>, Notify)>,
    // The second is dropped at the end, which is what it is for.
    (progress, _closed): (watch::Sender<u64>, watch::Sender<()>),
) {
    loop {
        let closing = lock(&queue.0).closing;
        if lock(&queue.0).waiting.is_empty() {
            if closing {
                return;
            }
            queue.1.notified().await;
        }
        if !closing {
            tokio::time::sleep(GATHER).await;
        }
        let batch: Vec<Posting> = {
            let mut queue = lock(&queue.0);
            let count = queue.waiting.len().min(BATCH);
            queue.waiting.drain(..count).collect()
        };
        if !write(&store, &queue.0, &batch).await {
            return;
        }
        let segments = batch.iter().flat_map(|posting| posting.segments.iter().copied());
        journal.forget(segments);
        progress.send_modify(|count| *count += batch.len() as u64);
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
                tokio::time::sleep(HAND_OVER).await;
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

/// Writes a batch, for as long as it takes; false when the ledger closes first. The journal still has it then.
async fn write(store: &Store, queue: &Mutex<Queue>, batch: &[Posting]) -> bool {
    loop {
        match store.post(batch.iter().map(|posting| &posting.record)).await {
            Ok(_) => {
                lock(queue).problem = None;
                return true;
            }
            Err(error) => {
                tracing::error!(%error, waiting = batch.len(), "the store cannot be written; records are kept in the journal");
                let mut queue = lock(queue);
                queue.problem = Some(error.to_string());
                if queue.closing {
                    return false;
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}
