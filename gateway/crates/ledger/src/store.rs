//! The store: Postgres, shared by any number of nodes, or an SQLite file of one node's own. The only SQL in the project.
//!
//! Owns: the schema, the truth about what is spent and who holds which slice of a budget. Refuses to know: requests in
//! flight, journals, the clock of the machine (lapses are told by the database's own). Invariants: a grant never takes
//! `spent + leased` of a budget window above its limit; a record is posted once, however often it is sent; rows are
//! locked in the order definitions, nodes, leases, windows, hours, each by key, so that nodes never wait for each other in a ring.

mod accounts;
mod alerts;
mod billed;
mod budgets;
mod decisions;
mod edit;
mod jobs;
mod keys;
mod lease;
mod outcomes;
mod post;
mod read;
mod replies;
mod sql;
#[cfg(test)]
mod tests;
mod upkeep;
mod usage;

pub use accounts::{Account, AccountChange, Subtree};
pub use alerts::{Alert, StoredAlert};
pub use billed::{Billed, BilledLine, billed};
pub use budgets::{BudgetChange, StoredBudget};
pub use decisions::{StoredDecision, StoredOutcome, decisions};
pub use edit::{AuditEntry, Change, EditError, Source};
pub use jobs::Waiting;
pub use keys::KeyChange;
pub(crate) use lease::{LeaseAsk, LeaseState};
pub use outcomes::{Answered, Outcome, ServedBy};
pub(crate) use post::{Posted, Spend};
pub use read::{Range, StoredAttempt, StoredRequest, Summary};
pub use replies::Reply;
pub use upkeep::Kept;
pub use usage::{Dimension, UsageQuery, UsageRow};

use sql::Pool;
use sqlx::migrate::MigrateError;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// The longest that a statement may wait for a connection before the store counts as away.
const CONNECT: Duration = Duration::from_secs(3);

/// Where the store is.
#[derive(Clone, PartialEq, Eq)]
pub enum Database {
    /// A file; created when missing.
    Sqlite(PathBuf),
    /// `postgres://user:password@host:port/name`.
    Postgres { url: String, connections: u32 },
}

/// A URL holds a password.
impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Database({self})")
    }
}

impl std::fmt::Display for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "{}", path.display()),
            Self::Postgres { url, .. } => {
                write!(
                    f,
                    "Postgres at {}",
                    url.rsplit_once('@').map_or("its URL", |(_, place)| place)
                )
            }
        }
    }
}

/// The store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "the database {database} cannot be opened: {source}; check `store` in the configuration, and that it is running"
    )]
    Open { database: String, source: sqlx::Error },
    #[error(
        "the database {database} is at schema {found}, newer than this binary knows; install the version that wrote it, or a later one"
    )]
    Newer { database: String, found: i64 },
    #[error("the database {database} could not be migrated: {source}")]
    Migrate { database: String, source: MigrateError },
    #[error("the database could not be {action}: {source}")]
    Query {
        action: &'static str,
        source: sqlx::Error,
    },
    #[error("the database may or may not have done it: {0}")]
    Unsure(sqlx::Error),
    #[error("the other nodes have given this one up")]
    GivenUp,
    #[error("the database did not answer within {} s", .0.as_secs())]
    Silent(Duration),
}

fn written(source: sqlx::Error) -> StoreError {
    StoreError::Query {
        action: "written",
        source,
    }
}

fn unread(source: sqlx::Error) -> StoreError {
    StoreError::Query {
        action: "read",
        source,
    }
}

/// The store as one node sees it.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pool: Pool,
    node: Arc<str>,
}

impl StoreError {
    /// The store may answer later: it cannot be connected to, or it starts, stops or is full.
    pub fn is_away(&self) -> bool {
        let (Self::Open { source, .. } | Self::Query { source, .. } | Self::Unsure(source)) = self else {
            return matches!(self, Self::Silent(_));
        };
        match source {
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => true,
            // Connection exceptions, too many connections, shutting down and starting up.
            sqlx::Error::Database(error) => error.code().is_some_and(|code| {
                code.starts_with("08") || matches!(&*code, "53300" | "57P01" | "57P02" | "57P03")
            }),
            _ => false,
        }
    }
}

impl Store {
    /// Connects to a database of which others know, once. A file is there when it is opened.
    pub(crate) async fn reach(database: &Database) -> Result<(), StoreError> {
        let Database::Postgres { url, .. } = database else {
            return Ok(());
        };
        let open = |source| StoreError::Open {
            database: database.to_string(),
            source,
        };
        let options = PgConnectOptions::from_str(url).map_err(open)?;
        let connected = tokio::time::timeout(CONNECT, options.application_name("tollgate").connect()).await;
        let connection = connected
            .map_err(|_| StoreError::Silent(CONNECT))?
            .map_err(open)?;
        connection.close().await.map_err(open)
    }

    /// Connects and brings the schema up to date. `node` is whose leases and rows it works with.
    pub(crate) async fn open(database: &Database, node: Arc<str>) -> Result<Self, StoreError> {
        let shown = database.to_string();
        let open = |source| StoreError::Open {
            database: shown.clone(),
            source,
        };
        let (pool, migrated) = match database {
            Database::Sqlite(path) => {
                if let Some(folder) = path.parent() {
                    std::fs::create_dir_all(folder).map_err(|error| open(sqlx::Error::Io(error)))?;
                }
                let options = SqliteConnectOptions::new()
                    .filename(path)
                    .create_if_missing(true)
                    .journal_mode(SqliteJournalMode::Wal)
                    .busy_timeout(CONNECT)
                    .synchronous(SqliteSynchronous::Normal);
                let pool = SqlitePoolOptions::new()
                    .max_connections(2)
                    .acquire_timeout(CONNECT);
                let pool = pool.connect_with(options).await.map_err(open)?;
                let migrated = sqlx::migrate!("../../../migrations/sqlite").run(&pool).await;
                (Pool::Sqlite(pool), migrated)
            }
            Database::Postgres { url, connections } => {
                let options = PgConnectOptions::from_str(url).map_err(open)?;
                let pool = PgPoolOptions::new()
                    .max_connections((*connections).max(3))
                    .acquire_timeout(CONNECT);
                let pool = pool
                    .connect_with(options.application_name("tollgate"))
                    .await
                    .map_err(open)?;
                let migrated = sqlx::migrate!("../../../migrations").run(&pool).await;
                (Pool::Postgres(pool), migrated)
            }
        };
        migrated.map_err(|source| match source {
            MigrateError::VersionMissing(found) => StoreError::Newer {
                database: shown.clone(),
                found,
            },
            source => StoreError::Migrate {
                database: shown.clone(),
                source,
            },
        })?;
        Ok(Self { pool, node })
    }

    /// One process works with it, so that nothing needs to be left for others.
    pub(crate) fn is_exclusive(&self) -> bool {
        matches!(self.pool, Pool::Sqlite(_))
    }

    pub(crate) fn node(&self) -> &Arc<str> {
        &self.node
    }

    /// The same store, as someone else who holds slices of budgets sees it.
    pub(crate) fn as_node(&self, node: Arc<str>) -> Self {
        Self {
            pool: self.pool.clone(),
            node,
        }
    }

    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }
}
