//! One face for two databases: a statement, its values, its rows. Nothing above this file names a database.

use sqlx::postgres::{PgPool, PgRow};
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{AssertSqlSafe, Postgres, Row as _, SqlSafeStr, SqlStr, Sqlite};
use uuid::Uuid;

/// A statement, spelled for both. Both take `$1`, `$2`, … and know `ON CONFLICT` and `RETURNING`.
#[derive(Clone, Debug)]
pub(super) struct Sql {
    postgres: SqlStr,
    sqlite: SqlStr,
}

impl Sql {
    /// The same text for both, but for a few words: `{max}` and `{min}` of scalars, `{now}` in microseconds,
    /// `{lock}` for the rows that a `SELECT` found, `{skip}` for those of them that nobody else has locked, `{big}` integers.
    pub(super) fn new(text: &str) -> Self {
        let spelled = |words: [(&str, &str); 6]| {
            let text = words.iter().fold(text.to_owned(), |text, (word, spelling)| {
                text.replace(word, spelling)
            });
            AssertSqlSafe(text).into_sql_str()
        };
        Self {
            postgres: spelled([
                ("{max}", "GREATEST"),
                ("{min}", "LEAST"),
                (
                    "{now}",
                    "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
                ),
                ("{lock}", "FOR UPDATE"),
                ("{skip}", "FOR UPDATE SKIP LOCKED"),
                ("{big}", "BIGINT"),
            ]),
            sqlite: spelled([
                ("{max}", "max"),
                ("{min}", "min"),
                ("{now}", "CAST(unixepoch('subsec') * 1000000 AS INTEGER)"),
                ("{lock}", ""),
                ("{skip}", ""),
                ("{big}", "INTEGER"),
            ]),
        }
    }

    /// Inserts `rows` rows of `columns` values at once.
    pub(super) fn insert(into: &str, (rows, columns): (usize, usize), tail: &str) -> Self {
        let text = |value: &dyn Fn(usize) -> String| {
            let row = |row: usize| {
                let values: Vec<String> = (0..columns)
                    .map(|column| value(row * columns + column + 1))
                    .collect();
                format!("({})", values.join(","))
            };
            let all: Vec<String> = (0..rows).map(row).collect();
            AssertSqlSafe(format!("INSERT INTO {into} VALUES {} {tail}", all.join(","))).into_sql_str()
        };
        Self {
            postgres: text(&|number| format!("${number}")),
            // Finding a value by its number costs SQLite's driver a search by name.
            sqlite: text(&|_| "?".to_owned()),
        }
    }
}

/// What goes into a statement.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Int(i64),
    Bool(bool),
    Text(&'a str),
    Maybe(Option<&'a str>),
    Id(Uuid),
    Bytes(Option<&'a [u8]>),
}

/// What comes out of one, by position.
#[derive(Debug)]
pub(super) enum Row {
    Postgres(PgRow),
    Sqlite(SqliteRow),
}

macro_rules! column {
    ($name:ident, $kind:ty) => {
        pub(super) fn $name(&self, at: usize) -> sqlx::Result<$kind> {
            match self {
                Self::Postgres(row) => row.try_get(at),
                Self::Sqlite(row) => row.try_get(at),
            }
        }
    };
}

impl Row {
    column!(int, i64);
    column!(flag, bool);
    column!(text, String);
    column!(maybe, Option<String>);
    column!(id, Uuid);
    column!(bytes, Option<Vec<u8>>);
}

macro_rules! bound {
    ($sql:expr, $values:expr) => {{
        let mut query = sqlx::query($sql.clone());
        for value in $values {
            query = match *value {
                Value::Int(value) => query.bind(value),
                Value::Bool(value) => query.bind(value),
                Value::Text(value) => query.bind(value),
                Value::Maybe(value) => query.bind(value),
                Value::Id(value) => query.bind(value),
                Value::Bytes(value) => query.bind(value),
            };
        }
        query
    }};
}

#[derive(Clone, Debug)]
pub(super) enum Pool {
    Postgres(PgPool),
    Sqlite(SqlitePool),
}

impl Pool {
    pub(super) async fn fetch(&self, sql: &Sql, values: &[Value<'_>]) -> sqlx::Result<Vec<Row>> {
        Ok(match self {
            Self::Postgres(pool) => {
                let rows = bound!(sql.postgres, values).fetch_all(pool).await?;
                rows.into_iter().map(Row::Postgres).collect()
            }
            Self::Sqlite(pool) => {
                let rows = bound!(sql.sqlite, values).fetch_all(pool).await?;
                rows.into_iter().map(Row::Sqlite).collect()
            }
        })
    }

    /// Begins a transaction that will write.
    pub(super) async fn begin(&self) -> sqlx::Result<Transaction> {
        Ok(match self {
            Self::Postgres(pool) => Transaction::Postgres(pool.begin().await?),
            Self::Sqlite(pool) => Transaction::Sqlite(pool.begin_with("BEGIN IMMEDIATE").await?),
        })
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Postgres(pool) => pool.close().await,
            Self::Sqlite(pool) => pool.close().await,
        }
    }
}

/// Dropped, it changes nothing.
#[derive(Debug)]
pub(super) enum Transaction {
    Postgres(sqlx::Transaction<'static, Postgres>),
    Sqlite(sqlx::Transaction<'static, Sqlite>),
}

impl Transaction {
    pub(super) async fn fetch(&mut self, sql: &Sql, values: &[Value<'_>]) -> sqlx::Result<Vec<Row>> {
        Ok(match self {
            Self::Postgres(transaction) => {
                let rows = bound!(sql.postgres, values).fetch_all(&mut **transaction).await?;
                rows.into_iter().map(Row::Postgres).collect()
            }
            Self::Sqlite(transaction) => {
                let rows = bound!(sql.sqlite, values).fetch_all(&mut **transaction).await?;
                rows.into_iter().map(Row::Sqlite).collect()
            }
        })
    }

    /// Returns how many rows were touched.
    pub(super) async fn execute(&mut self, sql: &Sql, values: &[Value<'_>]) -> sqlx::Result<u64> {
        Ok(match self {
            Self::Postgres(transaction) => {
                let done = bound!(sql.postgres, values).execute(&mut **transaction).await?;
                done.rows_affected()
            }
            Self::Sqlite(transaction) => {
                let done = bound!(sql.sqlite, values).execute(&mut **transaction).await?;
                done.rows_affected()
            }
        })
    }

    pub(super) async fn commit(self) -> sqlx::Result<()> {
        match self {
            Self::Postgres(transaction) => transaction.commit().await,
            Self::Sqlite(transaction) => transaction.commit().await,
        }
    }
}
