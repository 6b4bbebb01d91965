//! What this node knows of accounts, keys and budgets, kept up with the store: only what changed is read.

use crate::books::Books;
use crate::keys::Keyring;
use crate::store::{Store, StoreError};
use crate::writer::Desk;
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Debug)]
pub(crate) struct Definitions {
    store: Store,
    books: Arc<Mutex<Books>>,
    keyring: Arc<Keyring>,
    /// The version up to which everything is known.
    seen: tokio::sync::Mutex<i64>,
}

impl Definitions {
    pub(crate) fn new(desk: &Desk, keyring: Arc<Keyring>, seen: i64) -> Self {
        Self {
            store: desk.store.clone(),
            books: desk.books.clone(),
            keyring,
            seen: tokio::sync::Mutex::new(seen),
        }
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
        self.keyring.amend(keys, &accounts);
        *seen = version;
        Ok(())
    }
}
