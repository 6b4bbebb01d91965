//! The task that keeps this node's slices of budgets: takes more before they are used up, gives back what lies idle, says
//! that the node is alive, and hears of changed definitions and of nodes that are gone.

use crate::books::Round;
use crate::definitions::Definitions;
use crate::store::{Kept, StoreError};
use crate::writer::{Desk, Writer};
use exchange::Money;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, sleep, timeout};

/// How often everything is looked through and the node says that it lives.
const BEAT: Duration = Duration::from_millis(500);
/// After asking in vain, or of a store that is away.
const BACK_OFF: Duration = Duration::from_millis(50);
/// A store that has not answered for so long is away.
const SILENCE: Duration = Duration::from_secs(5);
/// Beats, an hour of them, after which old rows end and partitions are made.
const UPKEEP: u32 = 7200;
/// A node that has not been heard of for so long does not share in what is free.
const ABSENT_US: i64 = 5_000_000;

/// What to do when a slice is used up while the store is away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenAway {
    /// Refuse.
    #[default]
    FailClosed,
    /// Let each node spend so much more of each budget. It may exceed the limit by that much for every node.
    AllowUpTo(Money),
}

/// How this node shares budgets with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leases {
    pub when_away: WhenAway,
    /// A node that has been silent for so long is given up: what it had leased counts as spent until it comes back.
    pub lapse_after: Duration,
    /// For so long a node is to go on while the store is away: it keeps as much of each budget as it has lately used in
    /// that time, where the limit leaves room.
    pub outage: Duration,
    pub kept: Kept,
}

impl Default for Leases {
    fn default() -> Self {
        Self {
            when_away: WhenAway::FailClosed,
            lapse_after: Duration::from_secs(600),
            outage: Duration::from_secs(60),
            kept: Kept::default(),
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    /// Something is wanted.
    wake: Notify,
    /// The store answered, or did not.
    answered: Notify,
    problem: Mutex<Option<String>>,
}

#[derive(Debug)]
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    closing: watch::Sender<bool>,
    task: tokio::sync::Mutex<JoinSet<()>>,
}

struct Task {
    desk: Desk,
    writer: Arc<Writer>,
    shared: Arc<Shared>,
    leases: Leases,
    nodes: u32,
    definitions: Arc<Definitions>,
    /// Since the store was last tidied.
    beats: u32,
}

impl Keeper {
    pub(crate) fn start(
        desk: Desk,
        writer: Arc<Writer>,
        leases: Leases,
        definitions: Arc<Definitions>,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let (closing, closed) = watch::channel(false);
        let mut task = JoinSet::new();
        let state = Task {
            desk,
            writer,
            shared: shared.clone(),
            leases,
            nodes: 1,
            definitions,
            beats: 0,
        };
        task.spawn(state.run(closed));
        Self {
            shared,
            closing,
            task: tokio::sync::Mutex::new(task),
        }
    }

    pub(crate) fn wake(&self) {
        self.shared.wake.notify_one();
    }

    /// Resolves when the store has answered once more, or has turned out to be away.
    pub(crate) fn answered(&self) -> impl Future<Output = ()> + '_ {
        self.shared.answered.notified()
    }

    /// Why the store does not answer, if it does not.
    pub(crate) fn problem(&self) -> Option<String> {
        self.shared
            .problem
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) async fn close(&self) {
        let _ = self.closing.send(true);
        while self.task.lock().await.join_next().await.is_some() {}
    }
}

impl Task {
    async fn run(mut self, mut closed: watch::Receiver<bool>) {
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let whole = tokio::select! {
                biased;
                _ = closed.wait_for(|closed| *closed) => return,
                _ = beat.tick() => true,
                () = self.shared.wake.notified() => false,
            };
            if whole {
                self.beat().await;
            }
            if (whole || self.desk.books().is_wanting()) && !self.round(whole).await {
                tokio::select! {
                    _ = closed.wait_for(|closed| *closed) => return,
                    () = sleep(BACK_OFF) => {}
                }
            }
        }
    }

    /// Asks the store for what is wanted; false if that was in vain.
    async fn round(&self, whole: bool) -> bool {
        let round = Round {
            now_us: (self.desk.clock)(),
            whole,
            exclusive: self.desk.store.is_exclusive(),
            nodes: self.nodes,
            outage_us: i64::try_from(self.leases.outage.as_micros()).unwrap_or(i64::MAX),
        };
        let asks = self.desk.books().asks(round);
        if asks.is_empty() {
            return true;
        }
        let wanting = asks.iter().any(|ask| !ask.want.is_zero());
        let before: Money = asks.iter().map(|ask| ask.least).sum();
        let books = self.desk.books.clone();
        let definition = move |id: &str| {
            books
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .definition(id)
        };
        let said = timeout(SILENCE, self.desk.store.lease(&asks, definition, self.nodes)).await;
        match said {
            Ok(Ok(states)) => {
                {
                    let mut books = self.desk.books();
                    books.lend(Money::ZERO);
                    books.leased(&states);
                }
                if self.found(None) {
                    tracing::info!("the store answers again");
                }
                // Whoever is still short asks again at once, and would do so until another node gives something back.
                !wanting || before.is_zero() || !self.desk.books().is_wanting()
            }
            // The next beat says so too, and takes what follows from it.
            Ok(Err(StoreError::GivenUp)) => {
                self.desk.books().undone(&asks);
                false
            }
            Ok(Err(error)) => {
                if !matches!(error, StoreError::Unsure(_)) {
                    self.desk.books().undone(&asks);
                }
                self.away(error.to_string());
                false
            }
            Err(_) => {
                self.away(format!("it has not answered for {} s", SILENCE.as_secs()));
                false
            }
        }
    }

    fn away(&self, problem: String) {
        if self.found(Some(problem.clone())) {
            tracing::warn!(%problem, "the store is away; budgets are spent from what this node has leased");
        }
        let mut books = self.desk.books();
        if let WhenAway::AllowUpTo(amount) = self.leases.when_away {
            books.lend(amount);
        }
        books.unheard();
    }

    /// True if that is news.
    fn found(&self, problem: Option<String>) -> bool {
        let mut known = self.shared.problem.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = known.is_some() != problem.is_some();
        *known = problem;
        drop(known);
        self.shared.answered.notify_waiters();
        is_news
    }

    /// Says that this node lives, and hears what is new.
    async fn beat(&mut self) {
        self.beats += 1;
        if self.beats >= UPKEEP {
            self.beats = 0;
            let now_us = (self.desk.clock)();
            self.definitions
                .forget(self.leases.kept.secrets_since(now_us))
                .await;
            if let Err(error) = self.desk.store.upkeep(now_us, self.leases.kept).await {
                tracing::warn!(%error, "the store could not be tidied; it is tried again in an hour");
            }
        }
        match timeout(SILENCE, self.hear()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.away(error.to_string()),
            Err(_) => self.away(format!("it has not answered for {} s", SILENCE.as_secs())),
        }
    }

    async fn hear(&mut self) -> Result<(), StoreError> {
        let store = &self.desk.store;
        let (nodes, lapsed) = store.beat(ABSENT_US).await?;
        self.nodes = nodes;
        if lapsed {
            let _turn = self.desk.turn.lock().await;
            tracing::warn!("the other nodes had given this one up: what is running counts as written off");
            self.desk.books().lapse();
            self.writer.mark_late();
            store.revive().await?;
        }
        let silent_us = i64::try_from(self.leases.lapse_after.as_micros()).unwrap_or(i64::MAX);
        if !store.is_exclusive() {
            for node in store.lapse(silent_us).await? {
                tracing::warn!(
                    node,
                    "a node is given up: what it had leased counts as spent until it comes back"
                );
            }
        }
        if self.nodes > 1 {
            let needed = store.needed().await?;
            self.desk.books().need_elsewhere(&needed);
        }
        self.definitions.refresh().await?;
        Ok(())
    }
}
