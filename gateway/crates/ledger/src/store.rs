//! The embedded store: SQLite in write-ahead mode. Rows travel as one JSON array per statement.

use crate::reservation::settled_at;
use crate::window::day_of;
use exchange::{AccountPath, Money, Record, RequestId, TokenClass};
use sqlx::Row;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "the database {path} cannot be opened: {source}; check `store.database` and the folder's permissions"
    )]
    Open { path: PathBuf, source: sqlx::Error },
    #[error(
        "the database {path} could not be migrated: {source}; it may have been written by a newer version"
    )]
    Migrate {
        path: PathBuf,
        source: sqlx::migrate::MigrateError,
    },
    #[error("the database could not be {action}: {source}")]
    Query {
        action: &'static str,
        source: sqlx::Error,
    },
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
    pub started_us: i64,
    pub total_us: i64,
    pub total: String,
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

#[derive(Clone, Debug)]
pub(crate) struct Store {
    pool: SqlitePool,
}

const INSERT_REQUESTS: &str = "INSERT OR IGNORE INTO requests SELECT unhex(value->>0), value->>1, value->>2, value->>3, \
    value->>4, value->>5, value->>6, value->>7, value->>8, value->>9, value->>10, value->>11, value->>12, value->>13, \
    value->>14, value->>15, value->>16, value->>17, value->>18, value->>19, value->>20, value->>21, value->>22, \
    value->>23, value->>24 FROM json_each(?1) WHERE true RETURNING lower(hex(id))";

const INSERT_ATTEMPTS: &str = "INSERT OR IGNORE INTO attempts SELECT unhex(value->>0), value->>1, value->>2, value->>3, \
    value->>4, value->>5, value->>6, value->>7, value->>8, value->>9, value->>10, value->>11, value->>12, value->>13, \
    value->>14, value->>15, value->>16, value->>17, value->>18, value->>19, value->>20, value->>21, value->>22 \
    FROM json_each(?1)";

const ADD_SPEND: &str = "INSERT INTO daily_spend SELECT value->>0, value->>1, value->>2 FROM json_each(?1) WHERE true \
    ON CONFLICT (account, day) DO UPDATE SET charge = charge + excluded.charge";

impl Store {
    pub(crate) async fn open(path: &Path) -> Result<Self, StoreError> {
        let open = |source| StoreError::Open {
            path: path.to_owned(),
            source,
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| open(sqlx::Error::Io(error)))?;
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal);
        let pool = SqlitePoolOptions::new()
            .max_connections(2)
            .connect_with(options)
            .await
            .map_err(open)?;
        sqlx::migrate!("../../../migrations/sqlite")
            .run(&pool)
            .await
            .map_err(|source| StoreError::Migrate {
                path: path.to_owned(),
                source,
            })?;
        Ok(Self { pool })
    }

    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }

    /// Writes records in one transaction; those already there are left alone. Returns how many were new.
    pub(crate) async fn post(&self, records: impl IntoIterator<Item = &Record>) -> Result<usize, StoreError> {
        let failed = |source| StoreError::Query {
            action: "written",
            source,
        };
        let records: Vec<&Record> = records.into_iter().collect();
        let mut transaction = self.pool.begin().await.map_err(failed)?;
        let inserted = sqlx::query_scalar::<_, String>(INSERT_REQUESTS)
            .bind(rows(&records, request_row))
            .fetch_all(&mut *transaction)
            .await
            .map_err(failed)?;
        let inserted: HashSet<String> = inserted.into_iter().collect();
        let new: Vec<&Record> = records
            .into_iter()
            .filter(|record| inserted.contains(&record.request.to_string()))
            .collect();
        for (statement, data) in [
            (INSERT_ATTEMPTS, rows(&new, attempt_rows)),
            (ADD_SPEND, spend_rows(&new)),
        ] {
            if data != "[]" {
                sqlx::query(statement)
                    .bind(data)
                    .execute(&mut *transaction)
                    .await
                    .map_err(failed)?;
            }
        }
        transaction.commit().await.map_err(failed)?;
        Ok(new.len())
    }

    /// What an account spent from a day on.
    pub(crate) async fn spent_since(&self, account: &str, day: i64) -> Result<Money, StoreError> {
        sqlx::query_scalar::<_, i64>(
            "SELECT coalesce(sum(charge), 0) FROM daily_spend WHERE account = ?1 AND day >= ?2",
        )
        .bind(account)
        .bind(day)
        .fetch_one(&self.pool)
        .await
        .map(Money::from_nanos)
        .map_err(|source| StoreError::Query {
            action: "read",
            source,
        })
    }

    pub(crate) async fn request(&self, id: RequestId) -> Result<Option<StoredRequest>, StoreError> {
        let failed = |source| StoreError::Query {
            action: "read",
            source,
        };
        let key = id.0.as_bytes().as_slice();
        let found = sqlx::query("SELECT * FROM requests WHERE id = ?1").bind(key);
        let Some(row) = found.fetch_optional(&self.pool).await.map_err(failed)? else {
            return Ok(None);
        };
        let attempts = sqlx::query("SELECT * FROM attempts WHERE request = ?1 ORDER BY number").bind(key);
        let attempts = attempts.fetch_all(&self.pool).await.map_err(failed)?;
        let part = |name| row.get::<Option<String>, _>(name).unwrap_or_else(|| "-".into());
        let account = format!(
            "{}/{}/{}/{}",
            part("org"),
            part("team"),
            part("workflow"),
            part("key")
        );
        Ok(Some(StoredRequest {
            id: id.to_string(),
            account,
            model_asked: row.get("model_asked"),
            ending: row.get("ending"),
            status: row.get("status"),
            value: row.get("value"),
            latency: row.get("latency"),
            started_us: row.get("started_us"),
            total_us: row.get("total_us"),
            total: Money::from_nanos(row.get("charge")).to_string(),
            attempts: attempts.iter().map(stored_attempt).collect(),
        }))
    }
}

fn stored_attempt(row: &sqlx::sqlite::SqliteRow) -> StoredAttempt {
    StoredAttempt {
        number: row.get("number"),
        deployment: row.get("deployment"),
        model: row.get("model"),
        outcome: row.get("outcome"),
        usage_source: row.get("usage_source"),
        input_tokens: row.get::<i64, _>("input")
            + row.get::<i64, _>("cache_read")
            + row.get::<i64, _>("cache_write"),
        output_tokens: row.get::<i64, _>("output") + row.get::<i64, _>("reasoning"),
        charge: Money::from_nanos(row.get("charge")).to_string(),
    }
}

/// One JSON array of all rows.
fn rows(records: &[&Record], row: fn(&Record, &mut String)) -> String {
    let mut out = String::with_capacity(256 * records.len() + 2);
    out.push('[');
    for record in records {
        row(record, &mut out);
    }
    if out.ends_with(',') {
        out.pop();
    }
    out.push(']');
    out
}

/// Appends a text as a JSON string, or null.
fn text(out: &mut String, value: Option<&str>) {
    match value.map(serde_json::to_string) {
        Some(Ok(quoted)) => out.push_str(&quoted),
        _ => out.push_str("null"),
    }
    out.push(',');
}

fn request_row(record: &Record, out: &mut String) {
    let account = record.account.as_deref();
    let part = |part: fn(&AccountPath) -> Option<&str>| account.and_then(part);
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "[\"{}\",{},{},",
        record.request,
        record.started_unix_us,
        settled_at(record)
    );
    text(out, part(|account| Some(&account.org)));
    text(out, part(|account| account.team.as_deref()));
    text(out, part(|account| account.workflow.as_deref()));
    text(out, part(|account| account.key.as_deref()));
    let _ = write!(out, "\"{}\",\"{}\",", record.dialect, record.surface);
    text(out, Some(&record.model_asked));
    let _ = write!(
        out,
        "{},\"{}\",\"{}\",",
        u8::from(record.stream),
        record.value,
        record.latency
    );
    text(
        out,
        record.thinking.map(|thinking| thinking.to_string()).as_deref(),
    );
    text(out, Some(&record.policy_version));
    let _ = write!(out, "\"{}\",\"{}\",", record.ending, record.phase);
    text(out, record.refusal.map(exchange::RefusalKind::as_str));
    let times = record.timings;
    let _ = write!(
        out,
        "{},{},{},{},{},{},{}],",
        record.status,
        times.body_read_us,
        times.decided_us,
        times.upstream_headers_us,
        times.first_byte_us,
        times.total_us,
        record.total().nanos()
    );
}

fn attempt_rows(record: &Record, out: &mut String) {
    for attempt in &record.attempts {
        let _ = write!(out, "[\"{}\",{},", record.request, attempt.number);
        text(out, Some(&attempt.deployment));
        text(out, Some(&attempt.provider));
        text(out, Some(&attempt.model));
        let source = attempt.usage.source;
        let _ = write!(
            out,
            "\"{}\",\"{}\",{},\"{source}\",",
            attempt.class, attempt.outcome, attempt.status
        );
        for class in TokenClass::ALL {
            let _ = write!(out, "{},", attempt.usage.get(*class));
        }
        text(out, Some(&attempt.charge.price_version));
        let _ = write!(
            out,
            "{},{},{}],",
            attempt.charge.total.nanos(),
            attempt.started_unix_us,
            attempt.duration_us
        );
    }
}

/// What each account on each record's path spent on its day, added up.
fn spend_rows(records: &[&Record]) -> String {
    let mut spend: BTreeMap<(String, i64), i64> = BTreeMap::new();
    for record in records.iter().filter(|record| !record.total().is_zero()) {
        let day = day_of(settled_at(record));
        for account in record.account.iter().flat_map(|account| account.ancestry()) {
            *spend.entry((account.to_string(), day)).or_default() += record.total().nanos();
        }
    }
    let mut out = String::from("[");
    for ((account, day), charge) in &spend {
        out.push('[');
        text(&mut out, Some(account));
        let _ = write!(out, "{day},{charge}],");
    }
    if out.ends_with(',') {
        out.pop();
    }
    out.push(']');
    out
}
