//! What keeps a store usable for years: partitions by day in Postgres, and an end for rows that need not be kept.
//!
//! Hours, budgets, their windows, alerts and the audit trail are kept for good: they are small. In Postgres a day that is
//! no longer kept is dropped as three tables; in SQLite its rows are deleted.

use super::sql::{Pool, Sql, Transaction, Value};
use super::{Store, StoreError, keys, replies, unread, written};
use std::sync::LazyLock;

const DAY_US: i64 = 86_400_000_000;
/// Partitions are there so many days before they are needed.
const AHEAD_DAYS: i64 = 3;
const PARTITIONED: [(&str, &str); 3] = [
    ("requests", "id"),
    ("attempts", "request"),
    ("decisions", "request"),
];

/// Several nodes do this; one at a time, and never for long in anyone's way.
static TURN: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new("SELECT set_config('lock_timeout', '3s', true), pg_advisory_xact_lock(7163455)::text")
});
static PARTITIONS: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "SELECT child.relname::text FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid \
         JOIN pg_class parent ON parent.oid = inhparent WHERE parent.relname IN ('requests', 'attempts', 'decisions')",
    )
});
static LEASES: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "DELETE FROM leases WHERE taken <= used AND written_off = 0 AND EXISTS (SELECT 1 FROM budget_windows w \
         WHERE w.budget = leases.budget AND w.starts_us = leases.starts_us AND w.ends_us < {now} - 86400000000)",
    )
});

/// How long things are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Days, of requests, attempts, decisions and outcomes; for good where there is no number.
    pub rows_days: Option<u32>,
    /// Days for which the hash of a secret of a key is kept after its end.
    pub secrets_days: u32,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            rows_days: None,
            secrets_days: 30,
        }
    }
}

impl Kept {
    /// Secrets that ended before this are forgotten.
    pub(crate) fn secrets_since(self, now_us: i64) -> i64 {
        now_us.saturating_sub(i64::from(self.secrets_days) * DAY_US)
    }
}

impl Store {
    /// Makes the partitions of the days to come, and ends what is older than it is kept.
    pub(crate) async fn upkeep(&self, now_us: i64, kept: Kept) -> Result<(), StoreError> {
        let keep_days = kept.rows_days;
        let today = now_us.div_euclid(DAY_US);
        let first_kept = keep_days.map(|days| today - i64::from(days));
        let mut transaction = self.pool.begin().await.map_err(written)?;
        transaction.execute(&LEASES, &[]).await.map_err(written)?;
        if let Some(day) = first_kept {
            // They may hold the words of people.
            let old = Sql::new(&format!("DELETE FROM outcomes WHERE told_us < {}", day * DAY_US));
            transaction.execute(&old, &[]).await.map_err(written)?;
        }
        let ended = [Value::Int(kept.secrets_since(now_us))];
        transaction
            .execute(&keys::PURGE_SECRETS, &ended)
            .await
            .map_err(written)?;
        let forgotten = [Value::Int(now_us - replies::KEPT_US)];
        let purged = transaction.execute(&replies::PURGE, &forgotten).await;
        purged.map_err(written)?;
        match self.pool {
            Pool::Sqlite(_) => {
                if let Some(day) = first_kept {
                    // By the id, which the rows are in the order of.
                    let id = first_id(day).replace('-', "");
                    for (table, key) in PARTITIONED {
                        let old = Sql::new(&format!("DELETE FROM {table} WHERE {key} < x'{id}'"));
                        transaction.execute(&old, &[]).await.map_err(written)?;
                    }
                }
            }
            Pool::Postgres(_) => {
                transaction.fetch(&TURN, &[]).await.map_err(written)?;
                make_partitions(&mut transaction, today).await?;
                if let Some(day) = first_kept {
                    drop_partitions(&mut transaction, day).await?;
                }
            }
        }
        transaction.commit().await.map_err(written)
    }
}

async fn make_partitions(transaction: &mut Transaction, today: i64) -> Result<(), StoreError> {
    let rows = transaction.fetch(&PARTITIONS, &[]).await.map_err(unread)?;
    let mut known = Vec::with_capacity(rows.len());
    for row in rows {
        known.push(row.text(0).map_err(unread)?);
    }
    for day in today - 1..=today + AHEAD_DAYS {
        for (table, _) in PARTITIONED {
            if known.contains(&format!("{table}_{day}")) {
                continue;
            }
            let (from, to) = (first_id(day), first_id(day + 1));
            let make = format!(
                "CREATE TABLE {table}_{day} PARTITION OF {table} FOR VALUES FROM ('{from}') TO ('{to}')"
            );
            transaction
                .execute(&Sql::new(&make), &[])
                .await
                .map_err(written)?;
        }
    }
    Ok(())
}

async fn drop_partitions(transaction: &mut Transaction, first_kept: i64) -> Result<(), StoreError> {
    for row in transaction.fetch(&PARTITIONS, &[]).await.map_err(unread)? {
        let name = row.text(0).map_err(unread)?;
        let day: Option<i64> = name.rsplit_once('_').and_then(|(_, day)| day.parse().ok());
        if day.is_some_and(|day| day < first_kept) {
            let drop = Sql::new(&format!("DROP TABLE {name}"));
            transaction.execute(&drop, &[]).await.map_err(written)?;
        }
    }
    for (table, key) in PARTITIONED {
        let id = first_id(first_kept);
        let strays = Sql::new(&format!("DELETE FROM {table}_other WHERE {key} < '{id}'"));
        transaction.execute(&strays, &[]).await.map_err(written)?;
    }
    Ok(())
}

/// The smallest UUIDv7 of a day, counted from the epoch.
fn first_id(day: i64) -> String {
    let unix_ms = day * (DAY_US / 1000);
    format!(
        "{:08x}-{:04x}-0000-0000-000000000000",
        unix_ms >> 16,
        unix_ms & 0xffff
    )
}
