//! Changes to definitions, one at a time over all nodes: each has a version, an audit entry and a reason.

use super::sql::{Row, Sql, Transaction, Value};
use super::{Store, StoreError, unread, written};
use std::sync::LazyLock;

/// Who changes something, and why: a line of the audit trail.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    pub actor: &'a str,
    pub reason: &'a str,
    /// Microseconds since the epoch.
    pub at_us: i64,
}

/// Why a definition was not changed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("there is no {0}")]
    Missing(String),
    #[error("there is already {0}")]
    Exists(String),
    /// A configuration file has the last word.
    #[error("{0} is declared by the configuration of the gateway")]
    Configured(String),
    #[error("{0}")]
    Ended(String),
}

impl From<sqlx::Error> for EditError {
    fn from(source: sqlx::Error) -> Self {
        Self::Store(written(source))
    }
}

/// A change that was made.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct AuditEntry {
    pub id: i64,
    pub at_us: i64,
    pub actor: String,
    pub reason: String,
    pub subject: String,
    pub account: String,
    pub before: Option<String>,
    pub after: Option<String>,
}

/// Where a definition comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A configuration file, which has the last word at each start.
    Config,
    Api,
}

impl Source {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Api => "api",
        }
    }

    pub(super) fn read(row: &Row, at: usize) -> sqlx::Result<Self> {
        Ok(if row.text(at)? == "api" {
            Self::Api
        } else {
            Self::Config
        })
    }
}

static VERSION: LazyLock<Sql> = LazyLock::new(|| Sql::new("SELECT version FROM definitions"));
static LOCK_VERSION: LazyLock<Sql> = LazyLock::new(|| Sql::new("SELECT version FROM definitions {lock}"));
static SET_VERSION: LazyLock<Sql> = LazyLock::new(|| Sql::new("UPDATE definitions SET version = $1"));
static WRITE_AUDIT: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "INSERT INTO audit (at_us, actor, reason, subject, account, before, after) VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
});
static AUDIT: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "SELECT id, at_us, actor, reason, subject, account, before, after FROM audit \
         WHERE id < $1 AND ($2 = '' OR account = $2 OR substr(account, 1, length($2) + 1) = $2 || '/') \
         ORDER BY id DESC LIMIT $3",
    )
});

/// A transaction on definitions. Dropped, it changes nothing.
pub(super) struct Edit<'a> {
    pub(super) transaction: Transaction,
    pub(super) change: Change<'a>,
    /// What the changed rows carry.
    pub(super) version: i64,
    changed: usize,
}

impl<'a> Edit<'a> {
    pub(super) async fn begin(store: &Store, change: Change<'a>) -> sqlx::Result<Self> {
        let mut transaction = store.pool.begin().await?;
        let rows = transaction.fetch(&LOCK_VERSION, &[]).await?;
        let version = rows.first().map_or(Ok(0), |row| row.int(0))? + 1;
        Ok(Self {
            transaction,
            change,
            version,
            changed: 0,
        })
    }

    /// Writes the audit entry of one change.
    pub(super) async fn note(
        &mut self,
        (subject, account): (&str, &str),
        (before, after): (Option<&str>, Option<&str>),
    ) -> sqlx::Result<()> {
        self.changed += 1;
        let values = [
            Value::Int(self.change.at_us),
            Value::Text(self.change.actor),
            Value::Text(self.change.reason),
            Value::Text(subject),
            Value::Text(account),
            Value::Maybe(before),
            Value::Maybe(after),
        ];
        self.transaction.execute(&WRITE_AUDIT, &values).await?;
        Ok(())
    }

    /// Returns how many changes were noted.
    pub(super) async fn commit(mut self) -> sqlx::Result<usize> {
        if self.changed > 0 {
            let version = [Value::Int(self.version)];
            self.transaction.execute(&SET_VERSION, &version).await?;
        }
        self.transaction.commit().await?;
        Ok(self.changed)
    }
}

impl Store {
    /// Grows with each change; a node that sees it grow reads what has changed.
    pub(crate) async fn version(&self) -> Result<i64, StoreError> {
        let rows = self.pool.fetch(&VERSION, &[]).await.map_err(unread)?;
        rows.first().map_or(Ok(0), |row| row.int(0)).map_err(unread)
    }

    /// Changes that concern the account or one below it (empty: all), the latest first, those with ids below `before`.
    pub(crate) async fn audit(
        &self,
        account: &str,
        (before, limit): (i64, i64),
    ) -> Result<Vec<AuditEntry>, StoreError> {
        let values = [Value::Int(before), Value::Text(account), Value::Int(limit)];
        let rows = self.pool.fetch(&AUDIT, &values).await.map_err(unread)?;
        let entry = |row: &Row| {
            Ok(AuditEntry {
                id: row.int(0)?,
                at_us: row.int(1)?,
                actor: row.text(2)?,
                reason: row.text(3)?,
                subject: row.text(4)?,
                account: row.text(5)?,
                before: row.maybe(6)?,
                after: row.maybe(7)?,
            })
        };
        rows.iter()
            .map(entry)
            .collect::<sqlx::Result<_>>()
            .map_err(unread)
    }
}
