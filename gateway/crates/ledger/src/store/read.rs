//! Reading rows back.

use super::accounts::{Subtree, levels};
use super::sql::{Row, Sql, Value};
use super::{Store, StoreError, unread};
use exchange::{AccountPath, Money, RequestId};
use std::sync::{Arc, LazyLock};
use uuid::Uuid;

/// From a moment to before another, microseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub from_us: i64,
    pub to_us: i64,
}

impl Range {
    /// The smallest ids of its first moment and of the first after it.
    fn ids(self) -> (Uuid, Uuid) {
        let first = |us: i64| {
            let unix_ms = u64::try_from(us.saturating_add(999) / 1000).unwrap_or(0);
            Uuid::from_u128(u128::from(unix_ms & 0xffff_ffff_ffff) << 80)
        };
        (first(self.from_us), first(self.to_us))
    }
}

/// A request in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub id: RequestId,
    pub account: Option<AccountPath>,
    pub model_asked: String,
    pub ending: String,
    pub refusal: Option<String>,
    pub status: i64,
    pub started_us: i64,
    pub total_us: i64,
    pub charge: Money,
}

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

static LIST: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "SELECT id, org, team, workflow, key, model_asked, ending, refusal, status, started_us, total_us, charge FROM requests \
         WHERE id >= $1 AND id < $2 AND ($3 = '' OR org = $3) AND ($4 = '' OR team = $4) AND ($5 = '' OR workflow = $5) \
         AND ($6 = '' OR key = $6) ORDER BY id DESC LIMIT $7",
    )
});

impl Store {
    /// Requests of a subtree that arrived in a range, the latest first, those before `before`.
    pub(crate) async fn requests(
        &self,
        within: &Subtree,
        range: Range,
        (before, limit): (Option<RequestId>, i64),
    ) -> Result<Vec<Summary>, StoreError> {
        let (first, end) = range.ids();
        let [org, team, workflow, key] = levels(within.root());
        let values = [
            Value::Id(first),
            Value::Id(before.map_or(end, |before| before.0.min(end))),
            Value::Text(org),
            Value::Text(team),
            Value::Text(workflow),
            Value::Text(key),
            Value::Int(limit),
        ];
        let rows = self.pool.fetch(&LIST, &values).await.map_err(unread)?;
        rows.iter()
            .map(summary)
            .collect::<sqlx::Result<_>>()
            .map_err(unread)
    }

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

fn account(row: &Row, first: usize) -> sqlx::Result<Option<AccountPath>> {
    let part = |at: usize| row.maybe(first + at).map(|part| part.map(Arc::from));
    Ok(match part(0)? {
        Some(org) => Some(AccountPath {
            org,
            team: part(1)?,
            workflow: part(2)?,
            key: part(3)?,
        }),
        None => None,
    })
}

fn summary(row: &Row) -> sqlx::Result<Summary> {
    Ok(Summary {
        id: RequestId(row.id(0)?),
        account: account(row, 1)?,
        model_asked: row.text(5)?,
        ending: row.text(6)?,
        refusal: row.maybe(7)?,
        status: row.int(8)?,
        started_us: row.int(9)?,
        total_us: row.int(10)?,
        charge: Money::from_nanos(row.int(11)?),
    })
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
