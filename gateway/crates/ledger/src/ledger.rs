//! The ledger itself: opened once, shared by all requests.

mod learning;

use crate::books::{Balance, Books, Settled};
use crate::budget::{Budget, BudgetSpec};
use crate::crash;
use crate::definitions::Definitions;
use crate::journal::{Entry, Fsync, Journal, JournalError, Shared};
use crate::keeper::{Keeper, Leases};
use crate::keys::{KeySpec, Keyring, NotAccepted, Operator, Principal};
use crate::rates::{Limited, Registry};
use crate::reservation::Reservation;
use crate::settlement::{Settlement, settled_at};
use crate::store::{Alert, Change, Database, Store, StoreError, StoredRequest};
use crate::writer::{Desk, Posting, Writer};
use exchange::{AccountPath, KeyHash, Money, Record, RequestId};
use smallvec::SmallVec;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::sleep;

/// Alerts that may wait for someone to take them.
const ALERTS: usize = 1024;
/// Settlements per transaction when a journal is replayed.
const REPLAY: usize = 2_000;

/// What a ledger is opened with.
#[derive(Clone, Debug)]
pub struct Settings {
    pub database: Database,
    /// The journal's folder; created when missing. One process at a time.
    pub journal: PathBuf,
    pub fsync: Fsync,
    pub leases: Leases,
    pub accounts: Vec<AccountSpec>,
    pub keys: Vec<KeySpec>,
    /// Microseconds since the epoch.
    pub clock: fn() -> i64,
}

/// An account, with its budgets.
#[derive(Clone, Debug)]
pub struct AccountSpec {
    pub path: AccountPath,
    pub budgets: Vec<BudgetSpec>,
}

/// How much to hold, and for what.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub want: Money,
    /// Below this the request cannot start.
    pub least: Money,
    /// The workflow that the request belongs to, where that is not the key's own.
    pub workflow: Option<&'a Arc<str>>,
    /// What the caller declared, for budgets on labels.
    pub labels: &'a [(Box<str>, Box<str>)],
    /// How long to wait where money is not spent, but held by requests that run now.
    pub patience: Duration,
    pub now_unix_us: i64,
}

/// What a ledger has done since it was opened, and how it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that a budget refused.
    pub refused: u64,
    /// Those among them that would have fitted into what was not spent, with more than a tenth of the limit left: money
    /// that others held and did not use.
    pub starved: u64,
    /// Spent beyond hard limits, by what this node posted.
    pub overspent: Money,
    /// Settlements that wait for the store.
    pub waiting: u64,
    /// The store does not answer.
    pub is_away: bool,
}

/// Why no money was held.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error(
        "the {} budget of {} is used up: {} of {} spent, {} held by running requests, {} left, {needed} needed",
        .balance.budget.spec.period.as_str(), .balance.budget.account, .balance.spent, .balance.limit,
        .balance.reserved.plus(.balance.elsewhere), .balance.remaining().max(Money::ZERO)
    )]
    Budget { balance: Balance, needed: Money },
    #[error("the ledger cannot use its store: {problem}")]
    Store { problem: String },
}

/// Why the ledger did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The ledger. Clones share one state.
#[derive(Clone, Debug)]
pub struct Ledger(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    keyring: Arc<Keyring>,
    definitions: Arc<Definitions>,
    desk: Desk,
    writer: Arc<Writer>,
    keeper: Keeper,
    refused: AtomicU64,
    starved: AtomicU64,
    alerts: Mutex<Option<mpsc::Receiver<Alert>>>,
}

/// Brings the schema up to date, and nothing else.
///
/// # Errors
/// The store cannot be used; the message says what to do.
pub async fn migrate(database: &Database) -> Result<(), StoreError> {
    let store = Store::open(database, "".into()).await?;
    store.close().await;
    Ok(())
}

/// Looks whether the store can be reached, and changes nothing.
///
/// # Errors
/// It cannot; [`StoreError::is_away`] tells whether it may be tried again.
pub async fn reach(database: Database) -> Result<(), StoreError> {
    Store::reach(&database).await
}

impl Ledger {
    /// Opens store and journal, accounts for whatever an earlier process left unfinished, and takes over budgets.
    ///
    /// # Errors
    /// The store or the journal cannot be used; the message says what to do.
    pub async fn open(settings: Settings) -> Result<Self, OpenError> {
        let (journal, left) = Journal::open(&settings.journal, settings.fsync)?;
        let store = Store::open(&settings.database, journal.node().clone()).await?;
        store.upkeep((settings.clock)(), settings.leases.kept).await?;
        let was_lapsed = store.register().await?;
        replay(&store, crash::recover(left.entries), was_lapsed).await?;
        for segment in left.segments {
            std::fs::remove_file(&segment).map_err(|source| JournalError::Io {
                path: segment,
                action: "removed",
                source,
            })?;
        }
        // Whatever the earlier process had leased and not spent goes back.
        store.release().await?;
        store.register().await?;
        store.revive().await?;
        let change = Change {
            actor: "configuration",
            reason: "start of a node",
            at_us: (settings.clock)(),
        };
        store.declare_accounts(&declared(&settings), change).await?;
        store.declare_budgets(&configured(&settings), change).await?;
        store.declare_keys(&settings.keys, change).await?;
        let mut books = Books::default();
        let keyring = Arc::new(Keyring::new(&settings.keys));
        let seen = store.version().await?;
        books.amend(store.changed_budgets(-1).await?);
        let (keys, known) = (store.keys_since(-1).await?, store.accounts_since(-1).await?);
        let rates = Registry::default();
        rates.amend(&keys, &known);
        keyring.amend(keys, &known);
        books.all((settings.clock)());
        let (alerts, receiver) = mpsc::channel(ALERTS);
        let desk = Desk {
            store,
            journal: Arc::new(journal),
            books: Arc::new(Mutex::new(books)),
            alerts,
            turn: Arc::default(),
            clock: settings.clock,
        };
        let writer = Arc::new(Writer::start(desk.clone()));
        let definitions = Arc::new(Definitions::new(&desk, (keyring.clone(), rates), seen));
        let keeper = Keeper::start(desk.clone(), writer.clone(), settings.leases, definitions.clone());
        let first = keeper.answered();
        keeper.wake();
        // The first look at the budgets; without it every account's first request would wait for the store.
        let _ = tokio::time::timeout(Duration::from_secs(10), first).await;
        Ok(Self(Arc::new(Inner {
            keyring,
            definitions,
            desk,
            writer,
            keeper,
            refused: AtomicU64::new(0),
            starved: AtomicU64::new(0),
            alerts: Mutex::new(Some(receiver)),
        })))
    }

    /// Who holds the key, which may call models.
    ///
    /// # Errors
    /// Nobody does, or it is not accepted now.
    pub fn authenticate(&self, hash: &KeyHash, now_unix_us: i64) -> Result<Arc<Principal>, NotAccepted> {
        self.0.keyring.caller(hash, now_unix_us)
    }

    /// Who holds the key that something was left with earlier: its secret may have been replaced since.
    ///
    /// # Errors
    /// Nobody does, or the key is no longer accepted.
    pub fn holder(&self, hash: &KeyHash, now_unix_us: i64) -> Result<Arc<Principal>, NotAccepted> {
        self.0.keyring.holder(hash, now_unix_us)
    }

    /// Who holds the key, which is for the admin API.
    ///
    /// # Errors
    /// Nobody does, or it is not accepted now.
    pub fn operator(&self, hash: &KeyHash, now_unix_us: i64) -> Result<Operator, NotAccepted> {
        self.0.keyring.operator(hash, now_unix_us)
    }

    /// The rate limits that administrators gave, as they change.
    pub fn rates(&self) -> watch::Receiver<Arc<Limited>> {
        self.0.definitions.rates()
    }

    /// Whether an account, or one above it, is switched off.
    pub fn is_closed(&self, account: &AccountPath) -> bool {
        self.0.keyring.is_closed(account)
    }

    /// Holds money in every budget on the principal's path: `want`, or where little is left a part of that, at least `least`.
    /// Waits only where this node's slice of a budget is used up: for the store, or for money that is held but not spent.
    ///
    /// # Errors
    /// The budget in the way, or a store that is away or has been behind for too long.
    pub async fn reserve(
        &self,
        who: &Principal,
        request: RequestId,
        ask: Ask<'_>,
    ) -> Result<Reservation, Denied> {
        self.healthy().map_err(|problem| Denied::Store { problem })?;
        let mut waited: Option<Arc<Notify>> = None;
        // Begun with the first wait, since most have none.
        let mut patience = None;
        loop {
            let (reserved, wanting) = {
                let mut books = self.books();
                let path = books.path(&who.account, ask.workflow, ask.labels);
                let reserved = books.reserve(path, (ask.want, ask.least), ask.now_unix_us);
                (reserved, books.is_wanting())
            };
            if wanting {
                self.0.keeper.wake();
            }
            let short = match reserved {
                Ok((transfer, left)) => {
                    // There may be enough for the next in line too.
                    if let Some(released) = waited {
                        released.notify_one();
                    }
                    return Ok(Reservation::new(self.clone(), transfer, request, left));
                }
                Err(short) => short,
            };
            let denied = || self.refused(&short.balance, ask.least);
            if short.hopeless {
                return Err(denied());
            }
            // What running requests hold here comes back without the store; nothing else does.
            if !short.is_held_here
                && let Some(problem) = self.0.keeper.problem()
            {
                return Err(Denied::Store { problem });
            }
            let released = waited.insert(short.released.clone());
            let patience = patience.get_or_insert_with(|| Box::pin(sleep(ask.patience)));
            let is_over = tokio::select! {
                biased;
                () = short.told => false,
                () = patience.as_mut() => true,
            };
            if is_over {
                released.notify_one();
                return Err(self
                    .0
                    .keeper
                    .problem()
                    .map_or_else(denied, |problem| Denied::Store { problem }));
            }
        }
    }

    fn refused(&self, balance: &Balance, needed: Money) -> Denied {
        self.0.refused.fetch_add(1, Ordering::Relaxed);
        self.0
            .starved
            .fetch_add(u64::from(balance.starves(needed)), Ordering::Relaxed);
        Denied::Budget {
            balance: balance.clone(),
            needed,
        }
    }

    /// For metrics.
    pub fn counts(&self) -> Counts {
        let (waiting, overspent) = self.0.writer.standing();
        Counts {
            refused: self.0.refused.load(Ordering::Relaxed),
            starved: self.0.starved.load(Ordering::Relaxed),
            overspent,
            waiting,
            is_away: self.0.keeper.problem().is_some(),
        }
    }

    /// The row of a request for which nothing was ever held.
    pub fn note(&self, record: Record) {
        self.note_decided(record, None);
    }

    /// The same, with what the decision to refuse it depended on, where that is kept.
    pub fn note_decided(&self, record: Record, decision: Option<Box<str>>) {
        let mut settlement = Settlement::free(record);
        settlement.decision = decision;
        self.0.writer.push(Posting {
            settlement,
            segments: SmallVec::new(),
        });
    }

    /// The budgets on the principal's path.
    pub fn balances(&self, who: &Principal, now_unix_us: i64) -> Vec<Balance> {
        let mut books = self.books();
        let path = books.path(&who.account, None, &[]);
        books.balances(&path, now_unix_us)
    }

    /// Every budget.
    pub fn all_balances(&self, now_unix_us: i64) -> Vec<Balance> {
        self.books().all(now_unix_us)
    }

    /// The stored row of a request, if it has reached the store.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn request(&self, request: RequestId) -> Result<Option<StoredRequest>, StoreError> {
        self.0.desk.store.request(request).await
    }

    /// Where thresholds that are passed are told, each once over all nodes. For one taker.
    pub fn alerts(&self) -> Option<mpsc::Receiver<Alert>> {
        self.0
            .alerts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Waits until everything handed over so far is in the store.
    pub async fn flush(&self) {
        self.0.writer.flush().await;
    }

    /// Flushes, gives back what is leased and stops. What cannot be stored stays in the journal for the next start.
    pub async fn close(&self) {
        self.0.keeper.close().await;
        let all = self.0.writer.close().await;
        if all && let Err(error) = self.0.desk.store.release().await {
            tracing::warn!(%error, "leases could not be given back; the next start of this node does");
        }
        self.0.desk.store.close().await;
    }

    /// # Errors
    /// What is wrong with the store, once it has been behind for too long to go on taking money.
    pub fn healthy(&self) -> Result<(), String> {
        self.0.writer.healthy()
    }

    pub(crate) fn desk(&self) -> &Desk {
        &self.0.desk
    }

    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        self.0.desk.books()
    }

    pub(crate) fn store(&self) -> &Store {
        &self.0.desk.store
    }

    pub(crate) fn definitions(&self) -> &Definitions {
        &self.0.definitions
    }

    pub(crate) fn now_us(&self) -> i64 {
        (self.0.desk.clock)()
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.0.desk.journal
    }

    /// More is wanted of the store.
    pub(crate) fn wake(&self) {
        self.0.keeper.wake();
    }

    /// Resolves when the store has answered once more.
    pub(crate) fn refilled(&self) -> impl Future<Output = ()> + '_ {
        self.0.keeper.answered()
    }

    /// Journals a settlement and queues it for the store.
    pub(crate) fn post(
        &self,
        (record, decision, held): (Record, Option<Box<str>>, Money),
        settled: Settled,
        mut segments: SmallVec<[u64; 2]>,
    ) {
        debug_assert!(settled_at(&record) >= record.started_unix_us);
        let settlement = Settlement {
            record,
            held,
            late: settled.late,
            posts: settled.posts,
            decision,
        };
        match self.journal().append_soon(&Entry::Settled {
            settlement: Shared::Borrowed(&settlement),
        }) {
            Ok(segment) => segments.push(segment),
            // The intent is in the journal and the record in the queue: only a crash before the queue is written
            // would turn the exact charge into the estimate.
            Err(error) => {
                tracing::error!(%error, request = %settlement.record.request, "a settlement is not in the journal")
            }
        }
        self.0.writer.push(Posting { settlement, segments });
    }
}

/// Posts what an earlier process left.
async fn replay(store: &Store, mut left: Vec<Settlement>, was_lapsed: bool) -> Result<(), StoreError> {
    left.iter_mut()
        .for_each(|settlement| settlement.late |= was_lapsed);
    let all: Vec<&Settlement> = left.iter().collect();
    let mut posted = 0;
    for batch in all.chunks(REPLAY) {
        posted += store.post(batch).await?.new;
    }
    if !all.is_empty() {
        tracing::info!(
            found = all.len(),
            posted,
            "the journal of an earlier process was replayed"
        );
    }
    Ok(())
}

/// The accounts that the configuration names, and those above them.
fn declared(settings: &Settings) -> Vec<AccountPath> {
    let of_accounts = settings.accounts.iter().map(|spec| &spec.path);
    let all = of_accounts.chain(settings.keys.iter().map(|key| &key.account));
    let levels = all
        .flat_map(AccountPath::ancestry)
        .filter(|path| path.key.is_none());
    levels.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The budgets that the configuration names, by id.
fn configured(settings: &Settings) -> Vec<Budget> {
    let of_keys = settings.keys.iter().map(|key| (&key.account, &key.budgets));
    let of_accounts = settings.accounts.iter().map(|spec| (&spec.path, &spec.budgets));
    let mut budgets: Vec<Budget> = of_accounts
        .chain(of_keys)
        .flat_map(|(path, budgets)| budgets.iter().map(|spec| Budget::new(path.clone(), spec.clone())))
        .collect();
    budgets.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    budgets
}
