//! What callers said of answers, and how often answers were asked for again: kept, so that what a gateway has learned
//! outlives it and reaches the others.
//!
//! Invariants: the first word on a request is the one that counts, whichever node took it; counts are added up, so that
//! nodes never overwrite each other.

use super::post::{Inserts, inserts, statements};
use super::sql::{Row, Sql, Value};
use super::{Store, StoreError, unread, written};
use exchange::{Money, RequestId};
use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

const DAY_US: i64 = 86_400_000_000;

/// What a caller said of one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub request: RequestId,
    /// When, in microseconds since the epoch.
    pub told_us: i64,
    pub org: Arc<str>,
    pub workflow: Arc<str>,
    pub deployment: Arc<str>,
    pub success: bool,
    /// What it was worth.
    pub value: Money,
    /// The caller named the value; else it is the policy's.
    pub stated: bool,
    /// P(success) that was believed before outcomes had their word, in parts per million.
    pub believed_ppm: u32,
    /// The caller's own words.
    pub note: Option<String>,
}

/// Who answered a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedBy {
    pub org: String,
    pub workflow: String,
    pub deployment: String,
}

/// Answers of one deployment to one workflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    pub org: Arc<str>,
    pub workflow: Arc<str>,
    pub deployment: Arc<str>,
    pub calls: u64,
    /// Asked for again, there.
    pub retries: u64,
    /// Asked for again, elsewhere.
    pub escalations: u64,
}

const COLUMNS: usize = 11;
static OUTCOMES: Inserts = LazyLock::new(|| {
    inserts(
        "outcomes (request, told_us, org, workflow, deployment, success, value, stated, believed_ppm, note, node)",
        COLUMNS,
        "ON CONFLICT (request) DO NOTHING RETURNING request",
    )
});
static ANSWERED: Inserts = LazyLock::new(|| {
    let sums =
        ["calls", "retries", "escalations"].map(|sum| format!("{sum} = answered.{sum} + excluded.{sum}"));
    let tail = format!(
        "ON CONFLICT (day_us, org, workflow, deployment) DO UPDATE SET {}",
        sums.join(", ")
    );
    inserts("answered", 7, &tail)
});
static TOLD: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "SELECT request, told_us, org, workflow, deployment, success, value, stated, believed_ppm, note FROM outcomes \
         WHERE told_us >= $1 ORDER BY told_us DESC LIMIT $2",
    )
});
static SERVED: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "SELECT r.org, coalesce(r.workflow, ''), a.deployment FROM requests r JOIN attempts a ON a.request = r.id \
         WHERE r.id = $1 AND r.org IS NOT NULL AND a.outcome = 'answered' ORDER BY a.number DESC LIMIT 1",
    )
});
static SUMS: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "SELECT org, workflow, deployment, CAST(sum(calls) AS BIGINT), CAST(sum(retries) AS BIGINT), \
             CAST(sum(escalations) AS BIGINT) \
         FROM answered WHERE day_us >= $1 GROUP BY org, workflow, deployment",
    )
});

impl Store {
    /// Keeps outcomes; returns of which requests they are the first.
    pub(crate) async fn tell(&self, outcomes: &[Outcome]) -> Result<HashSet<RequestId>, StoreError> {
        let mut sorted: Vec<&Outcome> = outcomes.iter().collect();
        sorted.sort_unstable_by_key(|outcome| outcome.request.0);
        sorted.dedup_by_key(|outcome| outcome.request.0);
        let mut values = Vec::with_capacity(sorted.len() * COLUMNS);
        for outcome in sorted {
            values.extend([
                Value::Id(outcome.request.0),
                Value::Int(outcome.told_us),
                Value::Text(&outcome.org),
                Value::Text(&outcome.workflow),
                Value::Text(&outcome.deployment),
                Value::Bool(outcome.success),
                Value::Int(outcome.value.nanos()),
                Value::Bool(outcome.stated),
                Value::Int(i64::from(outcome.believed_ppm)),
                Value::Maybe(outcome.note.as_deref()),
                Value::Text(self.node()),
            ]);
        }
        let mut first = HashSet::new();
        let mut transaction = self.pool.begin().await.map_err(written)?;
        for (statement, values) in statements(&OUTCOMES, COLUMNS, &values) {
            for row in transaction.fetch(statement, values).await.map_err(written)? {
                first.insert(RequestId(row.id(0).map_err(written)?));
            }
        }
        transaction.commit().await.map_err(written)?;
        Ok(first)
    }

    /// The latest outcomes told since, at most so many, in the order of telling.
    pub(crate) async fn told(&self, since_us: i64, most: i64) -> Result<Vec<Outcome>, StoreError> {
        let values = [Value::Int(since_us), Value::Int(most)];
        let rows = self.pool.fetch(&TOLD, &values).await.map_err(unread)?;
        let outcomes = rows.iter().rev().map(outcome);
        outcomes.collect::<sqlx::Result<_>>().map_err(unread)
    }

    /// Who answered a request, as far as its row is written.
    pub(crate) async fn served_by(&self, request: RequestId) -> Result<Option<ServedBy>, StoreError> {
        let rows = self.pool.fetch(&SERVED, &[Value::Id(request.0)]).await;
        let rows = rows.map_err(unread)?;
        let read = |row: &Row| {
            Ok(ServedBy {
                org: row.text(0)?,
                workflow: row.text(1)?,
                deployment: row.text(2)?,
            })
        };
        rows.first().map(read).transpose().map_err(unread)
    }

    /// Adds to the counts of the day.
    pub(crate) async fn add_answered(&self, now_us: i64, answered: &[Answered]) -> Result<(), StoreError> {
        let mut sorted: Vec<&Answered> = answered.iter().collect();
        sorted.sort_unstable_by_key(|one| (&one.org, &one.workflow, &one.deployment));
        let count = |count: u64| Value::Int(count.cast_signed());
        let mut values = Vec::with_capacity(sorted.len() * 7);
        for one in sorted {
            values.push(Value::Int(now_us - now_us.rem_euclid(DAY_US)));
            values.extend([&one.org, &one.workflow, &one.deployment].map(|name| Value::Text(name)));
            values.extend([one.calls, one.retries, one.escalations].map(count));
        }
        let mut transaction = self.pool.begin().await.map_err(written)?;
        for (statement, values) in statements(&ANSWERED, 7, &values) {
            transaction.execute(statement, values).await.map_err(written)?;
        }
        transaction.commit().await.map_err(written)
    }

    /// The counts of all nodes since a moment.
    pub(crate) async fn answered(&self, since_us: i64) -> Result<Vec<Answered>, StoreError> {
        let rows = self.pool.fetch(&SUMS, &[Value::Int(since_us)]).await;
        let read = |row: &Row| {
            Ok(Answered {
                org: row.text(0)?.into(),
                workflow: row.text(1)?.into(),
                deployment: row.text(2)?.into(),
                calls: row.int(3)?.cast_unsigned(),
                retries: row.int(4)?.cast_unsigned(),
                escalations: row.int(5)?.cast_unsigned(),
            })
        };
        let rows = rows.map_err(unread)?;
        rows.iter().map(read).collect::<sqlx::Result<_>>().map_err(unread)
    }
}

fn outcome(row: &Row) -> sqlx::Result<Outcome> {
    Ok(Outcome {
        request: RequestId(row.id(0)?),
        told_us: row.int(1)?,
        org: row.text(2)?.into(),
        workflow: row.text(3)?.into(),
        deployment: row.text(4)?.into(),
        success: row.flag(5)?,
        value: Money::from_nanos(row.int(6)?),
        stated: row.flag(7)?,
        believed_ppm: row.int(8)?.try_into().unwrap_or(0),
        note: row.maybe(9)?,
    })
}
