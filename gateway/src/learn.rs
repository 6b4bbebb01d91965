//! What is learned from callers, kept with the ledger, so that it outlives this process and reaches the others.
//!
//! Owns: when outcomes and counts are written and read. Refuses to know: what follows from them (`memory`). Invariants: no
//! exchange waits for it; while the store is away, what was counted waits in memory.

use crate::clock;
use crate::gateway::Gateway;
use crate::memory::{Answer, OutcomeForm, request_id};
use exchange::Worth;
use ledger::{Database, Outcome, StoreError};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::interval;

/// Outcomes older than this say little of what a model does today.
const OUTCOME_DAYS: i64 = 90;
const ANSWERED_DAYS: i64 = 30;
const DAY_US: i64 = 86_400_000_000;
/// Outcomes that a new process begins with, the latest.
const MOST: i64 = 50_000;
/// How often counts are written, and other nodes' outcomes read.
const KEEP: Duration = Duration::from_secs(5);
/// Every so many times, the counts of all nodes are read.
const READ_EVERY: u32 = 12;
/// An outcome may be written so long after it was told.
const LATE_US: i64 = 60_000_000;
/// Outcomes told by headers that may wait.
pub(crate) const WAITING: usize = 1024;

/// Keeps outcomes and learns from those that are the first of their request.
///
/// # Errors
/// The store cannot be written; nothing was kept or learned.
pub(crate) async fn tell(gateway: &Gateway, outcomes: &[Outcome]) -> Result<(), StoreError> {
    if outcomes.is_empty() {
        return Ok(());
    }
    let first: HashSet<_> = gateway.ledger.tell(outcomes).await?;
    let first = outcomes.iter().filter(|outcome| first.contains(&outcome.request));
    gateway.memory.learn(first);
    Ok(())
}

/// The outcomes that a caller tells, of requests that this process or the ledger remembers.
///
/// # Errors
/// The store cannot be read.
pub(crate) async fn told(
    gateway: &Gateway,
    org: &Arc<str>,
    form: &OutcomeForm,
) -> Result<Vec<Outcome>, StoreError> {
    let known = gateway.memory.told(org, form);
    let id = form.request_id.as_deref().and_then(request_id);
    let Some(id) = id.filter(|_| known.is_empty()) else {
        return Ok(known);
    };
    let served = gateway.ledger.served_by(id).await?;
    let Some(served) = served.filter(|served| *served.org == **org && !served.workflow.is_empty()) else {
        return Ok(known);
    };
    // What was believed then is not known any more; the prior is what it began with.
    let rules = gateway.rules.now();
    let position = rules
        .policy
        .deployments()
        .iter()
        .position(|one| *one.id == *served.deployment);
    let (believed_ppm, worth) = position.map_or((500_000, Worth::default()), |index| {
        rules.policy.expected_of(index, &served.workflow)
    });
    let (workflow, deployment) = (served.workflow.into(), served.deployment.into());
    let answer = Answer {
        workflow: &workflow,
        deployment: &deployment,
        believed_ppm,
        worth,
    };
    Ok(vec![form.elsewhere(id, org, &answer)])
}

/// What has been read of other nodes' outcomes, and of those before the start.
pub(crate) struct Heard {
    since_us: i64,
    /// Nothing was read yet: the store did not answer.
    began: bool,
}

impl Heard {
    async fn listen(&mut self, gateway: &Gateway) {
        match gateway.ledger.told(self.since_us, MOST).await {
            Ok(outcomes) => {
                self.began = true;
                if let Some(last) = outcomes.last() {
                    self.since_us = self.since_us.max(last.told_us - LATE_US);
                }
                gateway.memory.learn(&outcomes);
            }
            Err(error) => tracing::warn!(%error, "outcomes could not be read; the next look tries again"),
        }
    }
}

/// Learns what was learned before, so that the first request is already decided by it.
pub(crate) async fn begin(gateway: &Gateway) -> Heard {
    let mut heard = Heard {
        since_us: clock::unix_us() - OUTCOME_DAYS * DAY_US,
        began: false,
    };
    heard.listen(gateway).await;
    keep_counts(gateway, true).await;
    heard
}

/// Keeps what is learned until the gateway stops.
pub(crate) async fn keep(
    gateway: Arc<Gateway>,
    mut heard: Heard,
    mut told: mpsc::Receiver<Vec<Outcome>>,
    mut stop: watch::Receiver<bool>,
) {
    let is_shared = matches!(gateway.config.database, Database::Postgres { .. });
    let mut ticks = interval(KEEP);
    // The first tick of an interval is at once.
    ticks.tick().await;
    for number in 1_u32.. {
        loop {
            tokio::select! {
                _ = ticks.tick() => break,
                Some(outcomes) = told.recv() => {
                    if let Err(error) = tell(&gateway, &outcomes).await {
                        tracing::error!(%error, lost = outcomes.len(), "outcomes told by a header could not be kept");
                    }
                }
                _ = stop.changed() => return,
            }
        }
        if !heard.began || is_shared {
            heard.listen(&gateway).await;
        }
        keep_counts(&gateway, number % READ_EVERY == 0).await;
    }
}

/// Writes what has been counted; reads what all nodes counted.
pub(crate) async fn keep_counts(gateway: &Gateway, and_read: bool) {
    let taken = gateway.memory.take_answered();
    if !taken.is_empty() {
        match gateway.ledger.add_answered(&taken).await {
            Ok(()) => gateway.memory.add_kept(&taken),
            Err(error) => {
                tracing::debug!(%error, "counts could not be kept; the next time tries again");
                gateway.memory.give_back(&taken);
            }
        }
    }
    if and_read {
        let since = clock::unix_us() - ANSWERED_DAYS * DAY_US;
        match gateway.ledger.answered(since).await {
            Ok(answered) => gateway.memory.set_kept(&answered),
            Err(error) => tracing::debug!(%error, "counts could not be read"),
        }
    }
}
