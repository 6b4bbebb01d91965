//! Reading rows back.

use super::sql::{Row, Sql, Value};
use super::{Store, StoreError, unread};
use exchange::{Money, RequestId};
use std::sync::LazyLock;

/// A request's row.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct StoredRequest {
    pub id: String,
    pub account: String,
    pub model_asked: String,
    pub ending: String,
    pub status: i64,
    pub value: String,
    pub latency: String,
    /// live, batch or probe.
    pub origin: String,
    pub started_us: i64,
    pub total_us: i64,
    pub total: String,
    /// What was held for it when it ended.
    pub held: String,
    /// It was settled after its hold had expired.
    pub late: bool,
    pub attempts: Vec<StoredAttempt>,
}

/// An attempt's row.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct StoredAttempt {
    pub number: i64,
    pub deployment: String,
    pub model: String,
    pub outcome: String,
    pub usage_source: String,
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub charge: String,
}

static REQUEST: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "SELECT org, team, workflow, key, model_asked, ending, status, value, latency, started_us, total_us, charge, held, late, origin \
         FROM requests WHERE id = $1",
    )
});
static ATTEMPTS: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "SELECT number, deployment, model, outcome, usage_source, input + cache_read + cache_write + cache_write_1h, \
         output + reasoning, charge FROM attempts WHERE request = $1 ORDER BY number",
    )
});

impl Store {
    pub(crate) async fn request(&self, id: RequestId) -> Result<Option<StoredRequest>, StoreError> {
        let rows = self
            .pool
            .fetch(&REQUEST, &[Value::Id(id.0)])
            .await
            .map_err(unread)?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let attempts = self
            .pool
            .fetch(&ATTEMPTS, &[Value::Id(id.0)])
            .await
            .map_err(unread)?;
        stored(id, row, &attempts).map(Some).map_err(unread)
    }
}

fn stored(id: RequestId, row: &Row, attempts: &[Row]) -> sqlx::Result<StoredRequest> {
    let mut account = Vec::new();
    for at in 0..4 {
        account.push(row.maybe(at)?.unwrap_or_else(|| "-".into()));
    }
    Ok(StoredRequest {
        id: id.to_string(),
        account: account.join("/"),
        model_asked: row.text(4)?,
        ending: row.text(5)?,
        status: row.int(6)?,
        value: row.text(7)?,
        latency: row.text(8)?,
        started_us: row.int(9)?,
        total_us: row.int(10)?,
        total: Money::from_nanos(row.int(11)?).to_string(),
        held: Money::from_nanos(row.int(12)?).to_string(),
        late: row.flag(13)?,
        origin: row.text(14)?,
        attempts: attempts.iter().map(attempt).collect::<sqlx::Result<_>>()?,
    })
}

fn attempt(row: &Row) -> sqlx::Result<StoredAttempt> {
    Ok(StoredAttempt {
        number: row.int(0)?,
        deployment: row.text(1)?,
        model: row.text(2)?,
        outcome: row.text(3)?,
        usage_source: row.text(4)?,
        input_tokens: row.int(5)?,
        output_tokens: row.int(6)?,
        charge: Money::from_nanos(row.int(7)?).to_string(),
    })
}
