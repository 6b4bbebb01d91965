//! What this node knows of accounts, keys and budgets, kept up with the store: only what changed is read.

use crate::books::Books;
use crate::keys::Keyring;
use crate::rates::{Limited, Registry};
use crate::store::{Store, StoreError};
use crate::writer::Desk;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

#[derive(Debug)]
pub(crate) struct Definitions {
    store: Store,
    books: Arc<Mutex<Books>>,
    keyring: Arc<Keyring>,
    rates: Registry,
    /// The version up to which everything is known.
    seen: tokio::sync::Mutex<i64>,
}

impl Definitions {
    pub(crate) fn new(desk: &Desk, (keyring, rates): (Arc<Keyring>, Registry), seen: i64) -> Self {
        Self {
            store: desk.store.clone(),
            books: desk.books.clone(),
            keyring,
            rates,
            seen: tokio::sync::Mutex::new(seen),
        }
    }

    /// The rate limits in force, as they change.
    pub(crate) fn rates(&self) -> watch::Receiver<Arc<Limited>> {
        self.rates.watch()
    }

    /// Forgets secrets that ended before this.
    pub(crate) async fn forget(&self, before_us: i64) {
        // One caller at a time changes the index.
        let _seen = self.seen.lock().await;
        self.keyring.forget(before_us);
    }

    /// Hears what has changed. Each node does so with every beat, and the one that changed something at once.
    pub(crate) async fn refresh(&self) -> Result<(), StoreError> {
        let mut seen = self.seen.lock().await;
        let version = self.store.version().await?;
        if version == *seen {
            return Ok(());
        }
        let budgets = self.store.changed_budgets(*seen).await?;
        let keys = self.store.keys_since(*seen).await?;
        let accounts = self.store.accounts_since(*seen).await?;
        if !budgets.is_empty() {
            let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
            books.amend(budgets);
        }
        self.rates.amend(&keys, &accounts);
        self.keyring.amend(keys, &accounts);
        *seen = version;
        Ok(())
    }
}
