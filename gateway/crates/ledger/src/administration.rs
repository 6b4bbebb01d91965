//! What administrators do with a ledger: keys, accounts and budgets made, changed and ended, and everything read.
//!
//! Every change is in the store, with its audit entry, before it is answered, and in force on this node; the other nodes
//! have it with their next beat.

use crate::books::Balance;
use crate::budget::Budget;
use crate::keys::{StoredKey, StoredSecret};
use crate::ledger::Ledger;
use crate::rates::Rates;
use crate::store::{
    Account, AccountChange, Alert, AuditEntry, BudgetChange, Change, EditError, KeyChange, Range, Reply,
    StoreError, StoredAlert, StoredBudget, Subtree, Summary, UsageQuery, UsageRow,
};
use exchange::{AccountPath, RequestId};

/// After a change that was made.
async fn known<T>(ledger: &Ledger, made: T) -> Result<T, EditError> {
    // The change stands, whatever becomes of the look at it: the next beat looks again.
    if let Err(error) = ledger.definitions().refresh().await {
        tracing::warn!(%error, "a change was made, and is in force here with the next beat");
    }
    Ok(made)
}

/// Changes. Errors are told by [`EditError`]: nothing was changed then.
impl Ledger {
    /// # Errors
    /// See [`EditError`].
    pub async fn create_account(
        &self,
        (path, title, rates): (&AccountPath, &str, Rates),
        change: Change<'_>,
    ) -> Result<Account, EditError> {
        let made = self.store().create_account((path, title, rates), change).await?;
        known(self, made).await
    }

    /// # Errors
    /// See [`EditError`].
    pub async fn change_account(
        &self,
        path: &AccountPath,
        wanted: AccountChange,
        change: Change<'_>,
    ) -> Result<Account, EditError> {
        let made = self.store().change_account(path, wanted, change).await?;
        known(self, made).await
    }

    /// # Errors
    /// See [`EditError`].
    pub async fn create_key(&self, key: StoredKey, change: Change<'_>) -> Result<StoredKey, EditError> {
        let made = self.store().create_key(key, change).await?;
        known(self, made).await
    }

    /// Gives a key another secret; the ones before it end at `old_until_us`.
    ///
    /// # Errors
    /// See [`EditError`].
    pub async fn rotate_key(
        &self,
        id: &str,
        (secret, old_until_us): (StoredSecret, i64),
        change: Change<'_>,
    ) -> Result<StoredKey, EditError> {
        let made = self
            .store()
            .rotate_key(id, (secret, old_until_us), change)
            .await?;
        known(self, made).await
    }

    /// # Errors
    /// See [`EditError`].
    pub async fn change_key(
        &self,
        id: &str,
        wanted: KeyChange,
        change: Change<'_>,
    ) -> Result<StoredKey, EditError> {
        let made = self.store().change_key(id, wanted, change).await?;
        known(self, made).await
    }

    /// # Errors
    /// See [`EditError`].
    pub async fn revoke_key(&self, id: &str, change: Change<'_>) -> Result<(), EditError> {
        self.store().revoke_key(id, change).await?;
        known(self, ()).await
    }

    /// # Errors
    /// See [`EditError`].
    pub async fn create_budget(
        &self,
        budget: &Budget,
        change: Change<'_>,
    ) -> Result<StoredBudget, EditError> {
        let made = self.store().create_budget(budget, change).await?;
        known(self, made).await
    }

    /// # Errors
    /// See [`EditError`].
    pub async fn change_budget(
        &self,
        id: &str,
        wanted: BudgetChange,
        change: Change<'_>,
    ) -> Result<StoredBudget, EditError> {
        let made = self.store().change_budget(id, wanted, change).await?;
        known(self, made).await
    }

    /// # Errors
    /// See [`EditError`].
    pub async fn retire_budget(&self, id: &str, change: Change<'_>) -> Result<(), EditError> {
        self.store().retire_budget(id, change).await?;
        known(self, ()).await
    }
}

/// Readings. Lists go from `after`, the last of the page before, on.
impl Ledger {
    /// # Errors
    /// It is not there, or the store cannot be read.
    pub async fn account(&self, path: &AccountPath) -> Result<Account, EditError> {
        self.store().account(path).await
    }

    /// # Errors
    /// The store cannot be read.
    pub async fn accounts(
        &self,
        within: &Subtree,
        after: Option<&AccountPath>,
        limit: i64,
    ) -> Result<Vec<Account>, StoreError> {
        self.store().accounts(within, after, limit).await
    }

    /// # Errors
    /// It is not there, or the store cannot be read.
    pub async fn key(&self, id: &str) -> Result<StoredKey, EditError> {
        self.store().key(id).await
    }

    /// The latest first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn keys(
        &self,
        within: &Subtree,
        after: &str,
        limit: i64,
    ) -> Result<Vec<StoredKey>, StoreError> {
        self.store().keys(within, after, limit).await
    }

    /// # Errors
    /// It is not there, or the store cannot be read.
    pub async fn budget(&self, id: &str) -> Result<StoredBudget, EditError> {
        self.store().budget(id).await
    }

    /// # Errors
    /// The store cannot be read.
    pub async fn budgets(
        &self,
        within: &Subtree,
        after: &str,
        limit: i64,
    ) -> Result<Vec<StoredBudget>, StoreError> {
        self.store().budgets(within, after, limit).await
    }

    /// A budget in force, as it stands.
    pub fn balance(&self, id: &str) -> Option<Balance> {
        let now_us = self.now_us();
        self.books().balance(id, now_us)
    }

    /// Changes to definitions that concern a subtree, the latest first, those with ids below `before`.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn audit(
        &self,
        within: &Subtree,
        before: i64,
        limit: i64,
    ) -> Result<Vec<AuditEntry>, StoreError> {
        self.store().audit(&within.shown(), (before, limit)).await
    }

    /// The latest first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn requests(
        &self,
        within: &Subtree,
        range: Range,
        (before, limit): (Option<RequestId>, i64),
    ) -> Result<Vec<Summary>, StoreError> {
        self.store().requests(within, range, (before, limit)).await
    }

    /// # Errors
    /// The store cannot be read.
    pub async fn usage(&self, asked: UsageQuery<'_>) -> Result<Vec<UsageRow>, StoreError> {
        self.store().usage(asked).await
    }

    /// Alerts, the latest first, those before one: when it was raised, its threshold, its budget.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn raised(
        &self,
        within: &Subtree,
        before: Option<(i64, i64, String)>,
        limit: i64,
    ) -> Result<Vec<StoredAlert>, StoreError> {
        self.store().alerts(within, before, limit).await
    }
}

/// Alerts on their way out, and answers kept for retries.
impl Ledger {
    /// Takes an alert to send it; for `hold_us` nobody else does. One older than `old_us` is given up.
    ///
    /// # Errors
    /// The store cannot be used.
    pub async fn claim_alert(&self, hold_us: i64, old_us: i64) -> Result<Option<StoredAlert>, StoreError> {
        self.store().claim_alert((hold_us, old_us)).await
    }

    /// # Errors
    /// The store cannot be used; the alert may be sent again.
    pub async fn alert_delivered(&self, alert: &Alert) -> Result<(), StoreError> {
        self.store().alert_delivered(alert).await
    }

    /// # Errors
    /// The store cannot be used; the alert is sent again when it is no longer held.
    pub async fn alert_again(&self, alert: &Alert, wait_us: i64) -> Result<(), StoreError> {
        self.store().alert_again(alert, wait_us).await
    }

    /// Takes a request of the admin API to answer it, or tells what was answered to it before.
    ///
    /// # Errors
    /// The store cannot be used.
    pub async fn claim_reply(&self, id: &str, fingerprint: &str) -> Result<Reply, StoreError> {
        self.store().claim_reply((id, fingerprint), self.now_us()).await
    }

    /// Keeps an answer (status and body); `None`: the request may be made again.
    ///
    /// # Errors
    /// The store cannot be used.
    pub async fn keep_reply(&self, id: &str, answer: Option<(u16, &str)>) -> Result<(), StoreError> {
        self.store().keep_reply(id, answer).await
    }
}
