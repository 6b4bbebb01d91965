//! The embedded store: SQLite in write-ahead mode. Many rows travel in one prepared statement: of all ways tried the one that
//! costs least per row.

use crate::reservation::settled_at;
use crate::window::day_of;
use exchange::{AccountPath, AttemptRecord, Money, Record, RefusalKind, RequestId, TokenClass};
use sqlx::query::Query;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{Row, Sqlite};
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

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

/// Rows per statement, the largest first; three statements stay prepared for any number of rows.
const SIZES: [usize; 3] = [64, 8, 1];
const REQUEST_COLUMNS: usize = 25;
const ATTEMPT_COLUMNS: usize = 23;

/// The statements for [`SIZES`] rows.
type Inserts = LazyLock<[String; 3]>;
static INSERT_REQUESTS: Inserts = LazyLock::new(|| inserts("requests", REQUEST_COLUMNS, " RETURNING id"));
static INSERT_ATTEMPTS: Inserts = LazyLock::new(|| inserts("attempts", ATTEMPT_COLUMNS, ""));

fn inserts(table: &str, columns: usize, tail: &str) -> [String; 3] {
    let row = format!("({})", vec!["?"; columns].join(","));
    SIZES.map(|rows| {
        format!(
            "INSERT OR IGNORE INTO {table} VALUES {}{tail}",
            vec![row.as_str(); rows].join(",")
        )
    })
}

/// Cuts rows into statements.
fn statements<'a, T>(
    inserts: &'static Inserts,
    mut rows: &'a [T],
) -> impl Iterator<Item = (&'static str, &'a [T])> {
    std::iter::from_fn(move || {
        let kind = SIZES.iter().position(|size| *size <= rows.len())?;
        let (now, later) = rows.split_at(SIZES[kind]);
        rows = later;
        Some((inserts[kind].as_str(), now))
    })
}

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
        let mut inserted: HashSet<Vec<u8>> = HashSet::with_capacity(records.len());
        for (statement, rows) in statements(&INSERT_REQUESTS, &records) {
            let query = rows
                .iter()
                .fold(sqlx::query(statement), |query, record| request_row(query, record));
            let new = query.fetch_all(&mut *transaction).await.map_err(failed)?;
            inserted.extend(new.iter().map(|row| row.get::<Vec<u8>, _>(0)));
        }
        let is_new = |record: &&Record| inserted.contains(record.request.0.as_bytes().as_slice());
        let new: Vec<&Record> = records.into_iter().filter(is_new).collect();
        let attempts: Vec<(&Record, &AttemptRecord)> = new
            .iter()
            .flat_map(|record| record.attempts.iter().map(|attempt| (*record, attempt)))
            .collect();
        for (statement, rows) in statements(&INSERT_ATTEMPTS, &attempts) {
            let query = rows
                .iter()
                .fold(sqlx::query(statement), |query, row| attempt_row(query, *row));
            query.execute(&mut *transaction).await.map_err(failed)?;
        }
        let spend = spend_rows(&new);
        if spend != "[]" {
            sqlx::query(ADD_SPEND)
                .bind(spend)
                .execute(&mut *transaction)
                .await
                .map_err(failed)?;
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

/// Appends a text as a JSON string, or null.
fn text(out: &mut String, value: Option<&str>) {
    match value.map(serde_json::to_string) {
        Some(Ok(quoted)) => out.push_str(&quoted),
        _ => out.push_str("null"),
    }
    out.push(',');
}

type Bound<'q> = Query<'q, Sqlite, SqliteArguments>;

fn request_row<'q>(query: Bound<'q>, record: &'q Record) -> Bound<'q> {
    let account = record.account.as_deref();
    let part = |part: fn(&AccountPath) -> Option<&str>| account.and_then(part);
    let times = &record.timings;
    query
        .bind(record.request.0.as_bytes().as_slice())
        .bind(record.started_unix_us)
        .bind(settled_at(record))
        .bind(part(|account| Some(&account.org)))
        .bind(part(|account| account.team.as_deref()))
        .bind(part(|account| account.workflow.as_deref()))
        .bind(part(|account| account.key.as_deref()))
        .bind(record.dialect.as_str())
        .bind(record.surface.as_str())
        .bind(&*record.model_asked)
        .bind(record.stream)
        .bind(record.value.as_str())
        .bind(record.latency.as_str())
        .bind(record.thinking.map(|thinking| thinking.to_string()))
        .bind(&*record.policy_version)
        .bind(record.ending.as_str())
        .bind(record.phase.as_str())
        .bind(record.refusal.map(RefusalKind::as_str))
        .bind(i64::from(record.status))
        .bind(times.body_read_us.cast_signed())
        .bind(times.decided_us.cast_signed())
        .bind(times.upstream_headers_us.cast_signed())
        .bind(times.first_byte_us.cast_signed())
        .bind(times.total_us.cast_signed())
        .bind(record.total().nanos())
}

fn attempt_row<'q>(query: Bound<'q>, (record, attempt): (&'q Record, &'q AttemptRecord)) -> Bound<'q> {
    let mut query = query
        .bind(record.request.0.as_bytes().as_slice())
        .bind(i64::from(attempt.number))
        .bind(&*attempt.deployment)
        .bind(&*attempt.provider)
        .bind(&*attempt.model)
        .bind(attempt.class.as_str())
        .bind(attempt.outcome.as_str())
        .bind(i64::from(attempt.status))
        .bind(attempt.usage.source.as_str());
    for class in TokenClass::ALL {
        query = query.bind(attempt.usage.get(*class).cast_signed());
    }
    query
        .bind(&*attempt.charge.price_version)
        .bind(attempt.charge.total.nanos())
        .bind(attempt.started_unix_us)
        .bind(attempt.duration_us.cast_signed())
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
