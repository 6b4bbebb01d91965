//! The ledger itself: opened once, shared by all requests.

use crate::books::{Balance, Books, Path};
use crate::crash;
use crate::journal::{Entry, Fsync, Journal, JournalError, Shared};
use crate::reservation::{Reservation, settled_at};
use crate::store::{Store, StoreError, StoredRequest};
use crate::window::{Period, start_of};
use crate::writer::{Posting, Writer};
use exchange::{AccountPath, Envelope, Grants, KeyHash, Money, Record, RequestId};
use smallvec::SmallVec;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a ledger is opened with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The SQLite file; created when missing.
    pub database: PathBuf,
    /// The journal's folder; created when missing. One process at a time.
    pub journal: PathBuf,
    pub fsync: Fsync,
    pub accounts: Vec<AccountSpec>,
    pub keys: Vec<KeySpec>,
}

/// An account with budgets.
#[derive(Clone, Debug)]
pub struct AccountSpec {
    pub path: AccountPath,
    pub budgets: Vec<BudgetSpec>,
}

/// A limit per window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetSpec {
    pub limit: Money,
    pub period: Period,
}

/// A gateway key, known by its hash alone.
#[derive(Clone, Debug)]
pub struct KeySpec {
    pub hash: KeyHash,
    /// Down to the key's own name.
    pub account: AccountPath,
    pub grants: Grants,
    pub budgets: Vec<BudgetSpec>,
    pub disabled: bool,
}

/// Who a key turned out to be.
#[derive(Debug)]
pub struct Principal {
    pub account: Arc<AccountPath>,
    pub grants: Grants,
    path: Path,
}

/// How much to hold.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub want: Money,
    /// Below this the request cannot start.
    pub least: Money,
    pub now_unix_us: i64,
}

/// Why no money was held.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error(
        "the {} budget of {} is used up: {} of {} spent, {} held by running requests, {needed} needed",
        .balance.period.as_str(), .balance.account, .balance.spent, .balance.limit, .balance.reserved
    )]
    Budget { balance: Balance, needed: Money },
    #[error("the ledger cannot keep up with its store: {problem}")]
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
    principals: HashMap<KeyHash, Arc<Principal>>,
    books: Mutex<Books>,
    journal: Arc<Journal>,
    store: Store,
    writer: Writer,
}

impl Ledger {
    /// Opens store and journal, accounts for whatever an earlier process left unfinished, and loads the balances.
    ///
    /// # Errors
    /// The store or the journal cannot be used; the message says what to do.
    pub async fn open(settings: Settings, now_unix_us: i64) -> Result<Self, OpenError> {
        let store = Store::open(&settings.database).await?;
        let (journal, left) = Journal::open(&settings.journal, settings.fsync)?;
        let records = crash::recover(left.entries);
        if !records.is_empty() {
            let posted = store.post(&records).await?;
            tracing::info!(
                found = records.len(),
                posted,
                "the journal of an earlier process was replayed"
            );
        }
        for segment in left.segments {
            std::fs::remove_file(&segment).map_err(|source| JournalError::Io {
                path: segment,
                action: "removed",
                source,
            })?;
        }
        let mut books = Books::default();
        let of_keys = settings.keys.iter().map(|key| (&key.account, &key.budgets));
        for (path, budgets) in settings
            .accounts
            .iter()
            .map(|spec| (&spec.path, &spec.budgets))
            .chain(of_keys)
        {
            for budget in budgets {
                let account: Arc<str> = path.to_string().into();
                let (first, end) = budget.period.days(now_unix_us);
                let spent = store.spent_since(&account, first).await?;
                let (limit, period) = (budget.limit, budget.period);
                let resets_unix_us = start_of(end);
                books.add(Balance {
                    account,
                    period,
                    limit,
                    spent,
                    reserved: Money::ZERO,
                    resets_unix_us,
                });
            }
        }
        let principals = settings
            .keys
            .into_iter()
            .filter(|key| !key.disabled)
            .map(|key| {
                let names: Vec<String> = key.account.ancestry().iter().map(ToString::to_string).collect();
                let path = books.path(names.iter().map(String::as_str));
                (
                    key.hash,
                    Arc::new(Principal {
                        account: Arc::new(key.account),
                        grants: key.grants,
                        path,
                    }),
                )
            })
            .collect();
        let journal = Arc::new(journal);
        let writer = Writer::start(store.clone(), journal.clone());
        Ok(Self(Arc::new(Inner {
            principals,
            books: Mutex::new(books),
            journal,
            store,
            writer,
        })))
    }

    /// Who holds the key, if anyone does.
    pub fn authenticate(&self, hash: &KeyHash) -> Option<Arc<Principal>> {
        self.0.principals.get(hash).cloned()
    }

    /// Holds money in every budget on the principal's path: as much of `want` as there is, if that is at least
    /// `least`.
    ///
    /// # Errors
    /// The budget in the way, or a store that has been down for too long.
    pub fn reserve(&self, who: &Arc<Principal>, request: RequestId, ask: Ask) -> Result<Reservation, Denied> {
        self.healthy().map_err(|problem| Denied::Store { problem })?;
        let held = self
            .books()
            .hold(&who.path, ask.want, ask.least, ask.now_unix_us)
            .map_err(|balance| Denied::Budget {
                balance,
                needed: ask.least,
            })?;
        let envelope = Envelope {
            granted: held.granted,
            remaining: held.remaining,
        };
        Ok(Reservation::new(
            self.clone(),
            who.path.clone(),
            request,
            envelope,
        ))
    }

    /// The row of a request for which nothing was ever held.
    pub fn note(&self, record: Record) {
        self.0.writer.push(Posting {
            record,
            segments: SmallVec::new(),
        });
    }

    /// The budgets on the principal's path.
    pub fn balances(&self, who: &Principal, now_unix_us: i64) -> Vec<Balance> {
        self.books().balances(&who.path, now_unix_us)
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
        self.0.store.request(request).await
    }

    /// Waits until everything handed over so far is in the store.
    pub async fn flush(&self) {
        self.0.writer.flush().await;
    }

    /// Flushes and stops. What cannot be stored stays in the journal for the next start.
    pub async fn close(&self) {
        self.0.writer.close().await;
        self.0.store.close().await;
    }

    /// # Errors
    /// What is wrong with the store, once it has been behind for too long to go on taking money.
    pub fn healthy(&self) -> Result<(), String> {
        self.0.writer.healthy()
    }

    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        self.0.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.0.journal
    }

    /// Journals a settlement and queues it for the store.
    pub(crate) fn post(&self, record: Record, mut segments: SmallVec<[u64; 2]>) {
        debug_assert!(settled_at(&record) >= record.started_unix_us);
        match self.journal().append_soon(&Entry::Settled {
            record: Shared::Borrowed(&record),
        }) {
            Ok(segment) => segments.push(segment),
            // The intent is in the journal and the record in the queue: only a crash before the queue is written
            // would turn the exact charge into the estimate.
            Err(error) => {
                tracing::error!(%error, request = %record.request, "a settlement is not in the journal")
            }
        }
        self.0.writer.push(Posting { record, segments });
    }
}
