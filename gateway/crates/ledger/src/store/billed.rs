//! What was billed in a span of time, for exports: every call that cost something, with the lines of its charge.

use super::sql::{Row, Sql, Value};
use super::{Database, Store, StoreError, unread};
use exchange::{Money, Rate};
use serde::Deserialize;
use std::ops::Range;
use std::sync::LazyLock;
use uuid::Uuid;

/// Calls read at a time.
const PAGE: i64 = 2_000;

/// A call that cost something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Billed {
    /// When its request arrived, in microseconds since the epoch.
    pub started_us: i64,
    /// Organisation, team, workflow, key.
    pub account: [Option<String>; 4],
    pub deployment: String,
    pub provider: String,
    pub model: String,
    pub class: String,
    /// The service tier that was served.
    pub tier: String,
    pub value: String,
    pub origin: String,
    pub outcome: String,
    pub price_version: String,
    pub charge: Money,
    /// They add up to the charge; empty where it was set as a whole.
    pub lines: Vec<BilledLine>,
}

/// A line of a charge.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct BilledLine {
    pub item: String,
    pub quantity: u64,
    pub rate: Rate,
    pub amount: Money,
}

static CALLS: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "SELECT a.request, a.number, r.started_us, r.org, r.team, r.workflow, r.key, a.deployment, a.provider, a.model, a.class, \
             a.tier, r.value, r.origin, a.outcome, a.price_version, a.charge, a.lines \
         FROM requests r JOIN attempts a ON a.request = r.id \
         WHERE r.started_us >= $1 AND r.started_us < $2 AND a.charge <> 0 \
             AND (a.request > $3 OR (a.request = $3 AND a.number > $4)) \
         ORDER BY a.request, a.number LIMIT $5",
    )
});
static TOTAL: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "SELECT CAST(coalesce(sum(charge), 0) AS BIGINT) FROM requests WHERE started_us >= $1 AND started_us < $2",
    )
});

/// Hands every call that was billed for requests of the span to `each`, in the order of their ids. Returns what the requests
/// of the span cost by their own rows.
///
/// # Errors
/// The store cannot be opened or read.
pub async fn billed(
    database: &Database,
    span: Range<i64>,
    mut each: impl FnMut(Billed),
) -> Result<Money, StoreError> {
    let store = Store::open(database, "export".into()).await?;
    let (from, until) = (Value::Int(span.start), Value::Int(span.end));
    let mut last = (Uuid::nil(), 0);
    loop {
        let values = [
            from,
            until,
            Value::Id(last.0),
            Value::Int(last.1),
            Value::Int(PAGE),
        ];
        let rows = store.pool.fetch(&CALLS, &values).await.map_err(unread)?;
        for row in &rows {
            let (at, call) = call(row).map_err(unread)?;
            last = at;
            each(call);
        }
        if rows.is_empty() {
            break;
        }
    }
    let total = store.pool.fetch(&TOTAL, &[from, until]).await.map_err(unread)?;
    store.close().await;
    let total = total.first().map_or(Ok(0), |row| row.int(0)).map_err(unread)?;
    Ok(Money::from_nanos(total))
}

fn call(row: &Row) -> sqlx::Result<((Uuid, i64), Billed)> {
    let lines = row.text(17)?;
    let billed = Billed {
        started_us: row.int(2)?,
        account: [row.maybe(3)?, row.maybe(4)?, row.maybe(5)?, row.maybe(6)?],
        deployment: row.text(7)?,
        provider: row.text(8)?,
        model: row.text(9)?,
        class: row.text(10)?,
        tier: row.text(11)?,
        value: row.text(12)?,
        origin: row.text(13)?,
        outcome: row.text(14)?,
        price_version: row.text(15)?,
        charge: Money::from_nanos(row.int(16)?),
        lines: serde_json::from_str(&lines).map_err(|error| sqlx::Error::Decode(error.into()))?,
    };
    Ok(((row.id(0)?, row.int(1)?), billed))
}
