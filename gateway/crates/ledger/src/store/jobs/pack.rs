//! Packs: formed of queued items by any node, worked on by one node at a time.

use super::row::{ITEM, PACK, item, pack, pool};
use super::sql;
use crate::jobs::{Jobs, Pack, Pool, StoredItem};
use crate::store::sql::{Row, Sql, Value};
use crate::store::{StoreError, unread, written};
use std::sync::LazyLock;

/// As `batch::slack_class`: what is in one pack has deadlines of one class.
const SLACK: &str = "CAST(CASE WHEN deadline_us - {now} < 3600000000 THEN 0 WHEN deadline_us - {now} < 10800000000 THEN 1 \
    WHEN deadline_us - {now} < 36000000000 THEN 2 ELSE 3 END AS BIGINT)";

sql!(
    POOLS,
    format!(
        "SELECT pool, slack, count(*), CAST(sum(bytes) AS BIGINT), min(ready_us), min(deadline_us), min(provider), min(deployment), \
         min(model), {{now}} FROM (SELECT pool, {SLACK} AS slack, bytes, ready_us, deadline_us, provider, deployment, model \
         FROM job_items WHERE state = 'queued' AND way = 'batch' AND ready_us <= {{now}}) AS waiting GROUP BY pool, slack"
    )
);
sql!(
    WAITING,
    format!(
        "SELECT job, number, bytes, prefix, deadline_us FROM job_items WHERE state = 'queued' AND way = 'batch' AND pool = $1 \
         AND ready_us <= {{now}} AND {SLACK} = $2 ORDER BY prefix, deadline_us, job, number LIMIT $3 {{skip}}"
    )
);
sql!(
    PUT,
    "INSERT INTO packs VALUES ($1,$2,$3,$4,$5,$6,'packed','','',$7,$9,0,{now},0,0,$8,0,$10,{now} + $11,'')"
);
sql!(
    CLAIM,
    format!(
        "UPDATE packs SET node = $1, lease_us = {{now}} + $2 WHERE id = (SELECT id FROM packs WHERE state NOT IN ('settled', 'void') \
         AND next_us <= {{now}} AND lease_us < {{now}} ORDER BY next_us LIMIT 1 {{skip}}) RETURNING {PACK}"
    )
);
sql!(
    SAVE,
    "UPDATE packs SET state = $3, file = $4, remote = $5, cancelling = $6, tries = $7, problem = $8, \
     submitted_us = CASE WHEN $3 = 'submitted' AND submitted_us = 0 THEN {now} ELSE submitted_us END, \
     ended_us = CASE WHEN $3 IN ('ended', 'void') AND ended_us = 0 THEN {now} ELSE ended_us END, \
     next_us = {now} + $9, lease_us = CASE WHEN $10 = 0 THEN 0 ELSE {now} + $10 END WHERE id = $1 AND node = $2 RETURNING id"
);
sql!(
    ITEMS_OF,
    format!(
        "SELECT {ITEM} FROM job_items WHERE pack = $1 AND state IN ('packed', 'submitted') ORDER BY prefix, deadline_us, job, number"
    )
);
sql!(
    LEFT,
    format!(
        "SELECT {ITEM} FROM job_items WHERE provider = $1 AND deployment = $2 AND (rescue OR state = 'cancelled') \
         AND (ended_us = 0 OR ended_us >= $3)"
    )
);
sql!(
    SUBMITTED,
    "UPDATE job_items SET state = 'submitted', tries = tries + 1 WHERE pack = $1 AND state = 'packed'"
);
sql!(
    UNPACK,
    "UPDATE job_items SET state = 'queued', pack = '', ready_us = {now} + $2, problem = $3 WHERE pack = $1 AND state IN ('packed', 'submitted')"
);
sql!(
    OPEN,
    "SELECT count(*), CAST(coalesce(sum(CASE WHEN j.state = 'cancelling' THEN 1 ELSE 0 END), 0) AS BIGINT) \
     FROM job_items i JOIN jobs j ON j.id = i.job WHERE i.pack = $1 AND i.state IN ('packed', 'submitted')"
);
sql!(
    RUNNING,
    "SELECT id, {now} - submitted_us FROM packs WHERE state = 'submitted' AND provider = $1 AND model = $2"
);
sql!(
    TOOK,
    "SELECT ended_us - submitted_us FROM packs WHERE state IN ('ended', 'settled') AND provider = $1 AND model = $2 \
     AND submitted_us > 0 AND NOT cancelling ORDER BY ended_us DESC LIMIT 100"
);
sql!(
    KNOWN,
    "SELECT remote FROM packs WHERE provider = $1 AND remote <> ''"
);
sql!(
    CLAIM_ITEMS,
    format!(
        "UPDATE job_items SET state = 'submitted', node = $1, lease_us = {{now}} + $2, tries = tries + 1 WHERE (job, number) IN \
         (SELECT job, number FROM job_items WHERE state = 'queued' AND way <> 'batch' AND ready_us <= {{now}} \
         ORDER BY deadline_us LIMIT $3 {{skip}}) RETURNING {ITEM}"
    )
);
// Whoever had called for them is gone: they are called for again, which their tries show.
sql!(
    REQUEUE,
    "UPDATE job_items SET state = 'queued', lease_us = 0 WHERE state = 'submitted' AND pack = '' AND lease_us < {now}"
);
sql!(
    LET_GO_ITEMS,
    "UPDATE job_items SET lease_us = 0 WHERE node = $1 AND state = 'submitted' AND pack = ''"
);
// What an earlier process has just asked a provider for may be on its way still.
sql!(
    LET_GO_PACKS,
    "UPDATE packs SET lease_us = CASE WHEN state = 'creating' THEN {now} + 2000000 ELSE 0 END WHERE node = $1"
);
/// Which items may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub bytes: u64,
    pub prefix: u64,
    pub deadline_us: i64,
}

/// Statements with this many pairs of job and number.
const PAIRS: usize = 200;

impl Jobs {
    /// Pools of items that wait for a batch.
    ///
    /// # Errors
    /// The store cannot be used, as for the methods below.
    pub async fn pools(&self) -> Result<Vec<Pool>, StoreError> {
        let rows = self.store.pool.fetch(&POOLS, &[]).await.map_err(unread)?;
        rows.iter().map(pool).collect::<sqlx::Result<_>>().map_err(unread)
    }

    /// Forms a pack of a pool: at most `limit` items are looked at, and of these `choose` says which go together. Items
    /// that another node is packing are left alone. `made`: id, endpoint and backend.
    pub async fn form(
        &self,
        pool: &Pool,
        made: (&str, &str, &str),
        (limit, lease_us): (i64, i64),
        choose: impl FnOnce(&[Waiting]) -> Vec<usize>,
    ) -> Result<usize, StoreError> {
        let mut transaction = self.store.pool.begin().await.map_err(written)?;
        let values = [Value::Text(&pool.name), Value::Int(pool.slack), Value::Int(limit)];
        let rows = transaction.fetch(&WAITING, &values).await.map_err(unread)?;
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            let read = || -> sqlx::Result<_> {
                let waiting = Waiting {
                    bytes: row.int(2)?.unsigned_abs(),
                    prefix: row.int(3)?.cast_unsigned(),
                    deadline_us: row.int(4)?,
                };
                Ok((row.text(0)?, row.int(1)?, waiting))
            };
            found.push(read().map_err(unread)?);
        }
        let waiting: Vec<Waiting> = found.iter().map(|(_, _, waiting)| *waiting).collect();
        let chosen = if waiting.is_empty() {
            Vec::new()
        } else {
            choose(&waiting)
        };
        let Some(deadline) = chosen.iter().map(|at| waiting[*at].deadline_us).min() else {
            return Ok(0);
        };
        let (id, endpoint, backend) = made;
        let values = [
            Value::Text(id),
            Value::Text(&pool.provider),
            Value::Text(&pool.deployment),
            Value::Text(&pool.model),
            Value::Text(endpoint),
            Value::Text(backend),
            Value::Int(i64::try_from(chosen.len()).unwrap_or(i64::MAX)),
            Value::Int(deadline),
            Value::Bool(false),
            Value::Text(self.store.node()),
            Value::Int(lease_us),
        ];
        transaction.execute(&PUT, &values).await.map_err(written)?;
        for part in chosen.chunks(PAIRS) {
            let places: Vec<String> = (0..part.len())
                .map(|at| format!("(${}, ${})", 2 * at + 2, 2 * at + 3))
                .collect();
            let update = Sql::new(&format!(
                "UPDATE job_items SET state = 'packed', pack = $1 WHERE (job, number) IN (VALUES {})",
                places.join(", ")
            ));
            let mut values = vec![Value::Text(id)];
            for at in part {
                values.extend([Value::Text(&found[*at].0), Value::Int(found[*at].1)]);
            }
            transaction.execute(&update, &values).await.map_err(written)?;
        }
        transaction.commit().await.map_err(written)?;
        Ok(chosen.len())
    }

    /// A pack that is due and that nobody works on.
    pub async fn claim(&self, lease_us: i64) -> Result<Option<Pack>, StoreError> {
        let values = [Value::Text(self.store.node()), Value::Int(lease_us)];
        let rows = self.store.pool.fetch(&CLAIM, &values).await.map_err(written)?;
        rows.first().map(pack).transpose().map_err(unread)
    }

    /// Writes down how far a pack is; false if another node has taken it over meanwhile. `next_us`: look again so much
    /// later; `lease_us`: hold it for so much longer, or let go at 0.
    pub async fn save(&self, pack: &Pack, next_us: i64, lease_us: i64) -> Result<bool, StoreError> {
        let values = [
            Value::Text(&pack.id),
            Value::Text(self.store.node()),
            Value::Text(&pack.state),
            Value::Text(&pack.file),
            Value::Text(&pack.remote),
            Value::Bool(pack.cancelling),
            Value::Int(pack.tries),
            Value::Text(&pack.problem),
            Value::Int(next_us),
            Value::Int(lease_us),
        ];
        let rows = self.store.pool.fetch(&SAVE, &values).await.map_err(written)?;
        Ok(!rows.is_empty())
    }

    /// The items of a pack that have not ended, in the order in which they were sent.
    pub async fn items_of(&self, pack: &str) -> Result<Vec<StoredItem>, StoreError> {
        let rows = self
            .store
            .pool
            .fetch(&ITEMS_OF, &[Value::Text(pack)])
            .await
            .map_err(unread)?;
        rows.iter().map(item).collect::<sqlx::Result<_>>().map_err(unread)
    }

    /// Items that were given up since a pack was formed and may have been in it.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn left(&self, pack: &Pack) -> Result<Vec<StoredItem>, StoreError> {
        let values = [
            Value::Text(&pack.provider),
            Value::Text(&pack.deployment),
            Value::Int(pack.created_us),
        ];
        let rows = self.store.pool.fetch(&LEFT, &values).await.map_err(unread)?;
        let read: sqlx::Result<Vec<StoredItem>> = rows.iter().map(item).collect();
        read.map_err(unread)
    }

    /// The provider has taken the pack.
    pub async fn submitted(&self, pack: &str) -> Result<(), StoreError> {
        let done = self.store.pool.fetch(&SUBMITTED, &[Value::Text(pack)]).await;
        done.map(drop).map_err(written)
    }

    /// The pack came to nothing: its items wait again, `later_us` from now.
    pub async fn unpack(&self, pack: &str, later_us: i64, problem: &str) -> Result<(), StoreError> {
        let values = [Value::Text(pack), Value::Int(later_us), Value::Text(problem)];
        self.store
            .pool
            .fetch(&UNPACK, &values)
            .await
            .map(drop)
            .map_err(written)
    }

    /// A pack's items that have not ended, and how many of these belong to jobs that are being cancelled.
    pub async fn open(&self, pack: &str) -> Result<(i64, i64), StoreError> {
        let rows = self.store.pool.fetch(&OPEN, &[Value::Text(pack)]).await;
        let read = |row: &Row| Ok((row.int(0)?, row.int(1)?));
        let rows = rows.map_err(unread)?;
        rows.first()
            .map_or(Ok((0, 0)), read)
            .map_err(|error: sqlx::Error| unread(error))
    }

    /// The ages of a provider's running packs of a model, and what its last ended ones took.
    pub async fn times(&self, provider: &str, model: &str) -> Result<(Vec<i64>, Vec<i64>), StoreError> {
        let values = [Value::Text(provider), Value::Text(model)];
        let running = self.store.pool.fetch(&RUNNING, &values).await.map_err(unread)?;
        let took = self.store.pool.fetch(&TOOK, &values).await.map_err(unread)?;
        let ages = running.iter().map(|row| row.int(1)).collect::<sqlx::Result<_>>();
        let took = took.iter().map(|row| row.int(0)).collect::<sqlx::Result<_>>();
        Ok((ages.map_err(unread)?, took.map_err(unread)?))
    }

    /// A provider's batches that are known to belong to a pack.
    pub async fn known(&self, provider: &str) -> Result<Vec<String>, StoreError> {
        let rows = self
            .store
            .pool
            .fetch(&KNOWN, &[Value::Text(provider)])
            .await
            .map_err(unread)?;
        rows.iter()
            .map(|row| row.text(0))
            .collect::<sqlx::Result<_>>()
            .map_err(unread)
    }

    /// Items that are to be called for one by one.
    pub async fn claim_items(&self, limit: i64, lease_us: i64) -> Result<Vec<StoredItem>, StoreError> {
        let values = [
            Value::Text(self.store.node()),
            Value::Int(lease_us),
            Value::Int(limit),
        ];
        let rows = self
            .store
            .pool
            .fetch(&CLAIM_ITEMS, &values)
            .await
            .map_err(written)?;
        rows.iter().map(item).collect::<sqlx::Result<_>>().map_err(unread)
    }

    /// Items whose caller is gone, and items that waited for a batch until too late for one, are called for one by one.
    pub async fn recover(&self, rescue_us: i64) -> Result<usize, StoreError> {
        self.store.pool.fetch(&REQUEUE, &[]).await.map_err(written)?;
        self.rescue_late(rescue_us).await
    }

    /// What an earlier process of this node worked on is free.
    pub async fn let_go(&self) -> Result<(), StoreError> {
        let node = [Value::Text(self.store.node())];
        for statement in [&LET_GO_ITEMS, &LET_GO_PACKS] {
            self.store.pool.fetch(statement, &node).await.map_err(written)?;
        }
        Ok(())
    }
}
