//! What decisions depended on: a text of the gateway's own making beside each request's row, and read back for replays.
//!
//! Refuses to know: what the text says. Invariants: it is written in the transaction that writes the request, and ends
//! with it; a request that an earlier process left in its journal has none.

use super::post::{Inserts, inserts, statements};
use super::sql::{Row, Sql, Transaction, Value};
use super::{Database, Store, StoreError, unread};
use crate::settlement::Settlement;
use exchange::{Money, RequestId};
use std::ops::Range;
use std::sync::LazyLock;
use uuid::Uuid;

/// Rows read at a time.
const PAGE: i64 = 2_000;

/// What one decision depended on, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredDecision {
    pub request: RequestId,
    pub decision: String,
    /// What the request cost in the end.
    pub charged: Money,
    pub total_us: i64,
    /// It came to an answer.
    pub answered: bool,
    /// What its caller said of it.
    pub outcome: Option<StoredOutcome>,
}

/// What a caller said of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredOutcome {
    pub workflow: String,
    pub deployment: String,
    pub success: bool,
}

static DECISIONS: Inserts = LazyLock::new(|| inserts("decisions", 3, "ON CONFLICT (request) DO NOTHING"));
static PAGES: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "SELECT d.request, d.decision, r.charge, r.total_us, r.refusal IS NULL AND r.first_byte_us > 0, o.workflow, \
             coalesce(o.deployment, ''), coalesce(o.success, 1 = 0) \
         FROM decisions d JOIN requests r ON r.id = d.request LEFT JOIN outcomes o ON o.request = d.request \
         WHERE d.started_us >= $1 AND d.started_us < $2 AND d.request > $3 ORDER BY d.request LIMIT $4",
    )
});

/// Writes what came with new settlements.
pub(super) async fn post(transaction: &mut Transaction, new: &[&Settlement]) -> sqlx::Result<()> {
    let mut values = Vec::new();
    for settlement in new {
        if let Some(decision) = &settlement.decision {
            let record = &settlement.record;
            values.extend([
                Value::Id(record.request.0),
                Value::Int(record.started_unix_us),
                Value::Text(decision),
            ]);
        }
    }
    for (statement, values) in statements(&DECISIONS, 3, &values) {
        transaction.execute(statement, values).await?;
    }
    Ok(())
}

/// Hands every decision on requests of the span, microseconds since the epoch, to `each`, in the order of their ids.
///
/// # Errors
/// The store cannot be opened or read.
pub async fn decisions(
    database: &Database,
    span: Range<i64>,
    mut each: impl FnMut(StoredDecision),
) -> Result<(), StoreError> {
    let store = Store::open(database, "replay".into()).await?;
    let mut last = Uuid::nil();
    loop {
        let values = [
            Value::Int(span.start),
            Value::Int(span.end),
            Value::Id(last),
            Value::Int(PAGE),
        ];
        let rows = store.pool.fetch(&PAGES, &values).await.map_err(unread)?;
        for row in &rows {
            let stored = stored(row).map_err(unread)?;
            last = stored.request.0;
            each(stored);
        }
        if rows.is_empty() {
            break;
        }
    }
    store.close().await;
    Ok(())
}

fn stored(row: &Row) -> sqlx::Result<StoredDecision> {
    let (deployment, success) = (row.text(6)?, row.flag(7)?);
    Ok(StoredDecision {
        request: RequestId(row.id(0)?),
        decision: row.text(1)?,
        charged: Money::from_nanos(row.int(2)?),
        total_us: row.int(3)?,
        answered: row.flag(4)?,
        outcome: row.maybe(5)?.map(|workflow| StoredOutcome {
            workflow,
            deployment,
            success,
        }),
    })
}
