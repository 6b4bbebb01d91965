//! What gateways learn from their callers, kept with the ledger.

use super::Ledger;
use crate::store::{Answered, Outcome, ServedBy, StoreError};
use exchange::RequestId;
use std::collections::HashSet;

impl Ledger {
    /// Keeps what callers said; returns the requests of which nobody had said anything before.
    ///
    /// # Errors
    /// The store cannot be written; nothing was kept.
    pub async fn tell(&self, outcomes: &[Outcome]) -> Result<HashSet<RequestId>, StoreError> {
        self.0.desk.store.tell(outcomes).await
    }

    /// The latest `most` outcomes told since, by any node, in the order of telling.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn told(&self, since_us: i64, most: i64) -> Result<Vec<Outcome>, StoreError> {
        self.0.desk.store.told(since_us, most).await
    }

    /// Who answered a request, where its row has reached the store.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn served_by(&self, request: RequestId) -> Result<Option<ServedBy>, StoreError> {
        self.flush().await;
        self.0.desk.store.served_by(request).await
    }

    /// Adds to the day's counts of answers and of those asked for again.
    ///
    /// # Errors
    /// The store cannot be written; nothing was added.
    pub async fn add_answered(&self, answered: &[Answered]) -> Result<(), StoreError> {
        let now = (self.0.desk.clock)();
        self.0.desk.store.add_answered(now, answered).await
    }

    /// The counts of all nodes since a moment.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn answered(&self, since_us: i64) -> Result<Vec<Answered>, StoreError> {
        self.0.desk.store.answered(since_us).await
    }
}
