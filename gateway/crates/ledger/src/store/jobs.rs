//! Jobs and their items in the store. Contents are sealed before they come here; this file never looks into them.
//!
//! Invariants: an item that has ended is not changed again; what a provider answered is posted in the transaction that
//! ends the item; whoever works on a pack or an item holds it for a limited time, by the database's clock.

mod pack;
mod report;
mod row;
mod settle;

pub use pack::Waiting;

use super::sql::{Sql, Value};
use super::{Store, StoreError, unread, written};
use crate::jobs::{Escrow, Job, JobKind, Jobs, Labels, Need, NewItem, StoredItem, Tally};
use crate::settlement::CellName;
use exchange::{AccountPath, Money};
use row::{ITEM, JOB, item, job};
use std::sync::LazyLock;

const ITEM_COLUMNS: usize = 29;
/// Rows per statement, the largest first.
const SIZES: [usize; 3] = [64, 8, 1];

macro_rules! sql {
    ($name:ident, $text:expr) => {
        static $name: LazyLock<Sql> = LazyLock::new(|| Sql::new(&$text));
    };
}
pub(super) use sql;

sql!(
    CREATE,
    "INSERT INTO jobs VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17,'[]',{now},$18,0,0,$19,0,0,'',0,{now},$20) \
     ON CONFLICT DO NOTHING RETURNING id"
);
sql!(JOB_BY_ID, format!("SELECT {JOB} FROM jobs WHERE id = $1"));
sql!(
    JOB_BY_IDEMPOTENCY,
    format!(
        "SELECT {JOB} FROM jobs WHERE org = $1 AND team = $2 AND workflow = $3 AND key = $4 AND kind = $5 AND idempotency = $6"
    )
);
sql!(
    JOBS_OF,
    format!(
        "SELECT {JOB} FROM jobs WHERE org = $1 AND team = $2 AND kind = $3 AND created_us < $4 \
         ORDER BY created_us DESC, id LIMIT $5"
    )
);
sql!(
    ALL_JOBS,
    format!(
        "SELECT {JOB} FROM jobs WHERE kind <> 'file' AND created_us < $1 ORDER BY created_us DESC, id LIMIT $2"
    )
);
sql!(
    RECEIVED,
    "UPDATE jobs SET state = $2, endpoint = $3, total = $4, bytes = $5, labels = $6, starting_us = {now} WHERE id = $1"
);
sql!(PUT_CELLS, "UPDATE jobs SET cells = $2 WHERE id = $1");
sql!(CELLS, "SELECT cells FROM jobs WHERE id = $1");
sql!(
    NEEDS,
    "SELECT deployment, model, class, CAST(sum(held) AS BIGINT), count(*) FROM job_items WHERE job = $1 AND state = 'filed' \
     AND number <= $2 GROUP BY deployment, model, class ORDER BY deployment"
);
sql!(
    COPY,
    "INSERT INTO job_items SELECT $1, number, custom_id, CASE WHEN number <= $3 THEN 'queued' ELSE 'errored' END, way, rescue, \
     pool, provider, deployment, model, class, '', '', prefix, bytes, CASE WHEN number <= $3 THEN held ELSE 0 END, 0, 0, 0, $4, \
     {now}, '', 0, CASE WHEN number <= $3 THEN 0 ELSE 429 END, CASE WHEN number <= $3 THEN '' ELSE 'budget_exceeded' END, \
     CASE WHEN number <= $3 THEN 0 ELSE {now} END, input, NULL, decision FROM job_items WHERE job = $2 AND state = 'filed'"
);
sql!(
    QUEUE,
    "UPDATE job_items SET state = CASE WHEN number <= $2 THEN 'queued' ELSE 'errored' END, deadline_us = $3, ready_us = {now}, \
     held = CASE WHEN number <= $2 THEN held ELSE 0 END, status = CASE WHEN number <= $2 THEN 0 ELSE 429 END, \
     problem = CASE WHEN number <= $2 THEN '' ELSE 'budget_exceeded' END, ended_us = CASE WHEN number <= $2 THEN 0 ELSE {now} END \
     WHERE job = $1 AND state = 'filed'"
);
sql!(
    START,
    "UPDATE jobs SET state = 'running', deadline_us = $2 WHERE id = $1 AND state IN ('starting', 'receiving') RETURNING id"
);
sql!(
    FAIL,
    "UPDATE jobs SET state = 'failed', problem = $2, ended_us = {now} WHERE id = $1 AND state IN ('starting', 'receiving')"
);
sql!(
    TALLY,
    "SELECT state, count(*), CAST(coalesce(sum(charge), 0) AS BIGINT), CAST(coalesce(sum(saved), 0) AS BIGINT), \
     CAST(coalesce(sum(held), 0) AS BIGINT), CAST(coalesce(sum(CASE WHEN ended_us > deadline_us THEN 1 ELSE 0 END), 0) AS BIGINT), \
     CAST(coalesce(sum(CASE WHEN rescue THEN 1 ELSE 0 END), 0) AS BIGINT) FROM job_items WHERE job = $1 GROUP BY state"
);
sql!(
    ITEMS,
    format!("SELECT {ITEM} FROM job_items WHERE job = $1 AND number > $2 ORDER BY number LIMIT $3")
);
sql!(
    HELD,
    "SELECT held FROM job_items WHERE job = $1 AND state = 'filed' ORDER BY number"
);
sql!(
    CANCEL,
    "UPDATE jobs SET state = 'cancelling', cancelled_us = {now} WHERE id = $1 AND state = 'running' RETURNING id"
);
sql!(
    CANCEL_QUEUED,
    "UPDATE job_items SET state = 'cancelled', ended_us = {now} WHERE job = $1 AND state = 'queued'"
);
sql!(
    PURGE_ITEMS,
    "DELETE FROM job_items WHERE job IN (SELECT id FROM jobs WHERE expires_us < {now} AND state IN ('ready', 'ended', 'failed', 'receiving'))"
);
sql!(
    PURGE_JOBS,
    "DELETE FROM jobs WHERE expires_us < {now} AND state IN ('ready', 'ended', 'failed', 'receiving')"
);
sql!(
    PURGE_PACKS,
    "DELETE FROM packs WHERE state IN ('settled', 'void') AND ended_us < {now} - $1"
);
sql!(
    DELETE_ITEMS,
    "DELETE FROM job_items WHERE job = $1 AND state IN ('filed')"
);
sql!(
    DELETE_ENDED_ITEMS,
    "DELETE FROM job_items WHERE job = (SELECT id FROM jobs WHERE id = $1 AND state IN ('ended', 'failed'))"
);
sql!(
    DELETE_ENDED,
    "DELETE FROM jobs WHERE id = $1 AND state IN ('ended', 'failed')"
);
sql!(DELETE_JOB, "DELETE FROM jobs WHERE id = $1 AND kind = 'file'");

static INSERT: LazyLock<[Sql; 3]> =
    LazyLock::new(|| SIZES.map(|rows| Sql::insert("job_items", (rows, ITEM_COLUMNS), "")));

fn json(labels: &Labels) -> String {
    serde_json::to_string(labels).unwrap_or_else(|_| "[]".into())
}

/// An absent level is the empty text.
fn levels(account: &AccountPath) -> [&str; 4] {
    [
        &account.org,
        account.team.as_deref().unwrap_or(""),
        account.workflow.as_deref().unwrap_or(""),
        account.key.as_deref().unwrap_or(""),
    ]
}

impl Jobs {
    /// Stores a new job; false if its account has one of the same idempotency key already.
    ///
    /// # Errors
    /// The store cannot be written, as for the methods below.
    pub async fn create(&self, job: &Job) -> Result<bool, StoreError> {
        let [org, team, workflow, key] = levels(&job.account);
        let text = Value::Text;
        let labels = json(&job.labels);
        let values = [
            text(&job.id),
            text(job.kind.as_str()),
            text(org),
            text(team),
            text(workflow),
            text(key),
            text(&job.key_hash),
            text(&job.dialect),
            text(&job.endpoint),
            text(&job.state),
            text(&job.input),
            text(&job.name),
            text(&job.metadata),
            text(&job.webhook),
            text(&job.idempotency),
            Value::Int(job.total),
            Value::Int(job.bytes),
            Value::Int(job.deadline_us),
            Value::Int(job.expires_us),
            text(&labels),
        ];
        let rows = self.store.pool.fetch(&CREATE, &values).await.map_err(written)?;
        Ok(!rows.is_empty())
    }

    pub async fn job(&self, id: &str) -> Result<Option<Job>, StoreError> {
        let rows = self.store.pool.fetch(&JOB_BY_ID, &[Value::Text(id)]).await;
        rows.map_err(unread)?.first().map(job).transpose().map_err(unread)
    }

    pub async fn job_by_idempotency(
        &self,
        account: &AccountPath,
        kind: JobKind,
        idempotency: &str,
    ) -> Result<Option<Job>, StoreError> {
        let mut values: Vec<Value<'_>> = levels(account).map(Value::Text).into();
        values.extend([Value::Text(kind.as_str()), Value::Text(idempotency)]);
        let rows = self.store.pool.fetch(&JOB_BY_IDEMPOTENCY, &values).await;
        rows.map_err(unread)?.first().map(job).transpose().map_err(unread)
    }

    /// The jobs of an account's team, the latest first, those made before a moment.
    pub async fn jobs_of(
        &self,
        account: &AccountPath,
        kind: JobKind,
        (before_us, limit): (i64, i64),
    ) -> Result<Vec<Job>, StoreError> {
        let [org, team, ..] = levels(account);
        let values = [
            Value::Text(org),
            Value::Text(team),
            Value::Text(kind.as_str()),
            Value::Int(before_us),
            Value::Int(limit),
        ];
        let rows = self.store.pool.fetch(&JOBS_OF, &values).await.map_err(unread)?;
        rows.iter().map(job).collect::<sqlx::Result<_>>().map_err(unread)
    }

    /// Everyone's jobs, the latest first.
    pub async fn all(&self, before_us: i64, limit: i64) -> Result<Vec<Job>, StoreError> {
        let values = [Value::Int(before_us), Value::Int(limit)];
        let rows = self.store.pool.fetch(&ALL_JOBS, &values).await.map_err(unread)?;
        rows.iter().map(job).collect::<sqlx::Result<_>>().map_err(unread)
    }

    /// Stores items of a job that is being received, all at once.
    pub async fn add_items(&self, job: &str, items: &[NewItem]) -> Result<(), StoreError> {
        let mut transaction = self.store.pool.begin().await.map_err(written)?;
        let mut rest = items;
        while let Some(kind) = SIZES.iter().position(|size| *size <= rest.len()) {
            let (now, later) = rest.split_at(SIZES[kind]);
            rest = later;
            let mut values = Vec::with_capacity(now.len() * ITEM_COLUMNS);
            now.iter().for_each(|item| push_item(&mut values, job, item));
            transaction
                .execute(&INSERT[kind], &values)
                .await
                .map_err(written)?;
        }
        transaction.commit().await.map_err(written)
    }

    /// All items of a job are there: its state, endpoint, items, bytes and labels are written down.
    pub async fn received(&self, job: &Job) -> Result<(), StoreError> {
        let labels = json(&job.labels);
        let values = [
            Value::Text(&job.id),
            Value::Text(&job.state),
            Value::Text(&job.endpoint),
            Value::Int(job.total),
            Value::Int(job.bytes),
            Value::Text(&labels),
        ];
        let done = self.store.pool.fetch(&RECEIVED, &values).await;
        done.map(drop).map_err(written)
    }

    /// What the first `upto` items of a file need, by deployment.
    pub async fn needs(&self, file: &str, upto: i64) -> Result<Vec<Need>, StoreError> {
        let values = [Value::Text(file), Value::Int(upto)];
        let rows = self.store.pool.fetch(&NEEDS, &values).await.map_err(unread)?;
        let need = |row: &super::sql::Row| {
            Ok(Need {
                deployment: row.text(0)?,
                model: row.text(1)?,
                class: row.text(2)?.parse().unwrap_or(exchange::BackendClass::Frontier),
                amount: Money::from_nanos(row.int(3)?),
                items: row.int(4)?,
            })
        };
        rows.iter().map(need).collect::<sqlx::Result<_>>().map_err(unread)
    }

    /// How many of a file's items, from the first, `money` pays for.
    pub async fn affordable(&self, file: &str, money: Money) -> Result<i64, StoreError> {
        let rows = self
            .store
            .pool
            .fetch(&HELD, &[Value::Text(file)])
            .await
            .map_err(unread)?;
        let (mut left, mut count) = (money.nanos(), 0);
        for row in rows {
            left -= row.int(0).map_err(unread)?;
            if left < 0 {
                break;
            }
            count += 1;
        }
        Ok(count)
    }

    /// Lets a job run: the first `upto` items of `file` (which may be the job itself) are queued, the others end as
    /// refused for want of money. False if the job was not waiting for it.
    pub async fn start(&self, job: &Job, file: &str, upto: i64) -> Result<bool, StoreError> {
        let mut transaction = self.store.pool.begin().await.map_err(written)?;
        let deadline = Value::Int(job.deadline_us);
        let started = [Value::Text(&job.id), deadline];
        if transaction
            .fetch(&START, &started)
            .await
            .map_err(written)?
            .is_empty()
        {
            return Ok(false);
        }
        if file == job.id {
            let values = [Value::Text(&job.id), Value::Int(upto), deadline];
            transaction.execute(&QUEUE, &values).await.map_err(written)?;
        } else {
            let values = [
                Value::Text(&job.id),
                Value::Text(file),
                Value::Int(upto),
                deadline,
            ];
            transaction.execute(&COPY, &values).await.map_err(written)?;
        }
        transaction.commit().await.map_err(written)?;
        Ok(true)
    }

    /// A job that never ran.
    pub async fn fail(&self, job: &str, problem: &str) -> Result<(), StoreError> {
        let values = [Value::Text(job), Value::Text(problem)];
        self.store
            .pool
            .fetch(&FAIL, &values)
            .await
            .map(drop)
            .map_err(written)
    }

    pub async fn tally(&self, job: &str) -> Result<Tally, StoreError> {
        let rows = self
            .store
            .pool
            .fetch(&TALLY, &[Value::Text(job)])
            .await
            .map_err(unread)?;
        let mut tally = Tally::default();
        for row in &rows {
            let read = || -> sqlx::Result<_> {
                let sums = [row.int(2)?, row.int(3)?, row.int(4)?];
                Ok((row.text(0)?, row.int(1)?, sums, row.int(5)?, row.int(6)?))
            };
            let (state, count, sums, late, rescued) = read().map_err(unread)?;
            tally.by_state.insert(state, count);
            tally.charge = tally.charge.plus(Money::from_nanos(sums[0]));
            tally.saved = tally.saved.plus(Money::from_nanos(sums[1]));
            tally.held = tally.held.plus(Money::from_nanos(sums[2]));
            tally.late += late;
            tally.rescued += rescued;
        }
        Ok(tally)
    }

    /// Items of a job in order, those after `number`, with what they hold.
    pub async fn items(&self, job: &str, (after, limit): (i64, i64)) -> Result<Vec<StoredItem>, StoreError> {
        let values = [Value::Text(job), Value::Int(after), Value::Int(limit)];
        let rows = self.store.pool.fetch(&ITEMS, &values).await.map_err(unread)?;
        rows.iter().map(item).collect::<sqlx::Result<_>>().map_err(unread)
    }

    /// Cancels what nobody has begun, and lets it be known that the rest is not wanted; false if there is nothing to
    /// cancel.
    pub async fn cancel(&self, job: &str) -> Result<bool, StoreError> {
        let mut transaction = self.store.pool.begin().await.map_err(written)?;
        let id = [Value::Text(job)];
        let cancelled = !transaction.fetch(&CANCEL, &id).await.map_err(written)?.is_empty();
        if cancelled {
            transaction.execute(&CANCEL_QUEUED, &id).await.map_err(written)?;
        }
        transaction.commit().await.map_err(written)?;
        Ok(cancelled)
    }

    /// Takes a file away; batches made of it have copies.
    pub async fn delete_file(&self, file: &str) -> Result<(), StoreError> {
        let id = [Value::Text(file)];
        for statement in [&DELETE_ITEMS, &DELETE_JOB] {
            self.store.pool.fetch(statement, &id).await.map_err(written)?;
        }
        Ok(())
    }

    /// Takes an ended job away.
    pub async fn delete_ended(&self, job: &str) -> Result<(), StoreError> {
        let id = [Value::Text(job)];
        for statement in [&DELETE_ENDED_ITEMS, &DELETE_ENDED] {
            self.store.pool.fetch(statement, &id).await.map_err(written)?;
        }
        Ok(())
    }

    /// Deletes what has been kept for long enough.
    pub async fn purge(&self, packs_us: i64) -> Result<(), StoreError> {
        for statement in [&PURGE_ITEMS, &PURGE_JOBS] {
            self.store.pool.fetch(statement, &[]).await.map_err(written)?;
        }
        let done = self.store.pool.fetch(&PURGE_PACKS, &[Value::Int(packs_us)]).await;
        done.map(drop).map_err(written)
    }
}

fn push_item<'a>(values: &mut Vec<Value<'a>>, job: &'a str, item: &'a NewItem) {
    let text = Value::Text;
    values.extend([
        text(job),
        Value::Int(item.number),
        text(&item.custom_id),
        text("filed"),
        text(item.way),
        Value::Bool(false),
        text(&item.pool),
        text(&item.provider),
        text(&item.deployment),
        text(&item.model),
        text(item.class.as_str()),
        text(""),
        text(""),
        Value::Int(item.prefix),
        Value::Int(item.bytes),
        Value::Int(item.held.nanos()),
    ]);
    values.extend([Value::Int(0); 5]);
    values.extend([text(""), Value::Int(0), Value::Int(0), text(""), Value::Int(0)]);
    values.extend([Value::Bytes(item.input.as_deref()), Value::Bytes(None)]);
    values.push(Value::Maybe(item.decision.as_deref()));
}

sql!(
    PASS_ON,
    "UPDATE leases SET taken = taken - $4 WHERE node = $1 AND budget = $2 AND starts_us = $3 AND taken - used >= $4"
);
sql!(
    TAKE_OVER,
    "INSERT INTO leases (node, budget, starts_us, taken, used, written_off) VALUES ($1, $2, $3, $4, 0, 0) \
     ON CONFLICT (node, budget, starts_us) DO UPDATE SET taken = leases.taken + excluded.taken"
);

impl Store {
    /// A slice passes from this node to a job: what is leased in all stays as it is.
    pub(crate) async fn hand_over(
        &self,
        job: &str,
        cells: &[CellName],
        amount: Money,
    ) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await.map_err(written)?;
        let lessee = crate::jobs::lessee(job);
        for (statement, node) in [(&PASS_ON, &self.node), (&TAKE_OVER, &lessee)] {
            for cell in cells {
                let values = [
                    Value::Text(node),
                    Value::Text(&cell.budget),
                    Value::Int(cell.window.starts_us),
                    Value::Int(amount.nanos()),
                ];
                let touched = transaction.execute(statement, &values).await.map_err(written)?;
                if touched == 0 {
                    return Err(StoreError::GivenUp);
                }
            }
        }
        transaction.commit().await.map_err(written)
    }

    pub(crate) async fn put_cells(&self, job: &str, escrows: &[Escrow]) -> Result<(), StoreError> {
        let json = serde_json::to_string(escrows).unwrap_or_else(|_| "[]".into());
        let values = [Value::Text(job), Value::Text(&json)];
        self.pool
            .fetch(&PUT_CELLS, &values)
            .await
            .map(drop)
            .map_err(written)
    }

    async fn escrows(&self, job: &str) -> Result<Vec<Escrow>, StoreError> {
        let rows = self
            .pool
            .fetch(&CELLS, &[Value::Text(job)])
            .await
            .map_err(unread)?;
        let text = rows
            .first()
            .map_or(Ok(String::new()), |row| row.text(0))
            .map_err(unread)?;
        Ok(serde_json::from_str(&text).unwrap_or_default())
    }
}
