//! The ends of items, with their money; the ends of jobs; and who is to be told.

use super::row::{ITEM, JOB, item, job};
use super::sql;
use crate::jobs::{Escrow, ItemEnd, Job, Jobs, StoredItem, lessee};
use crate::settlement::{Post, Settlement};
use crate::store::sql::{Row, Sql, Transaction, Value};
use crate::store::{Store, StoreError, unread, written};
use exchange::{Money, Record};
use std::collections::BTreeMap;
use std::sync::LazyLock;

sql!(
    STRAY,
    "UPDATE job_items SET charge = charge + $3, saved = saved - $3, \
     problem = 'its batch answered it after it was given up, and was paid too' WHERE job = $1 AND number = $2"
);
sql!(
    END,
    "UPDATE job_items SET state = $3, way = CASE WHEN $4 = '' THEN way ELSE $4 END, rescue = rescue OR $5, status = $6, \
     problem = $7, output = $8, charge = charge + $9, saved = saved + $10, request = $11, pack = CASE WHEN $3 = 'queued' THEN '' ELSE pack END, \
     lease_us = 0, ready_us = {now} + $12, \
     ended_us = CASE WHEN $3 = 'queued' THEN 0 ELSE {now} END \
     WHERE job = $1 AND number = $2 AND state IN ('packed', 'submitted') RETURNING deployment, held"
);
sql!(
    HOLD_NOTHING,
    "UPDATE job_items SET held = 0 WHERE job = $1 AND number = $2"
);
sql!(
    GIVE_BACK,
    "UPDATE leases SET taken = taken - $4 WHERE node = $1 AND budget = $2 AND starts_us = $3 AND taken - used >= $4"
);
sql!(
    GIVE_BACK_WINDOW,
    "UPDATE budget_windows SET leased = leased - $3 WHERE budget = $1 AND starts_us = $2"
);
sql!(
    FINISHED,
    "UPDATE jobs SET state = 'ended', ended_us = {now}, hook_us = CASE WHEN webhook = '' THEN 0 ELSE 1 END \
     WHERE state IN ('running', 'cancelling') AND NOT EXISTS (SELECT 1 FROM job_items i WHERE i.job = jobs.id \
     AND i.state IN ('queued', 'packed', 'submitted')) RETURNING id"
);
// Begun long ago and not running: whoever began it is gone. One that is starting has all its items and may hold money; what
// is left to do takes seconds, however long its upload took. One that is being received holds none.
sql!(
    ABANDONED,
    "UPDATE jobs SET state = 'failed', ended_us = {now}, problem = 'the gateway ended while it was being made' \
     WHERE (state = 'receiving' AND created_us < {now} - $1) \
     OR (state = 'starting' AND starting_us < {now} - $2 AND created_us < {now} - $2) RETURNING id"
);
sql!(
    LEFT_OVER,
    "SELECT DISTINCT jobs.id FROM jobs JOIN leases ON leases.node = 'job/' || jobs.id WHERE jobs.state IN ('ended', 'failed')"
);
sql!(
    HOOKS,
    format!(
        "UPDATE jobs SET hook_us = {{now}} + $1, hook_tries = hook_tries + 1 WHERE id = (SELECT id FROM jobs WHERE hook_us > 0 \
         AND hook_us <= {{now}} ORDER BY hook_us LIMIT 1 {{skip}}) RETURNING {JOB}, hook_tries"
    )
);
sql!(HOOKED, "UPDATE jobs SET hook_us = $2 WHERE id = $1");
// What waits for a batch: of one job, or of all that which is too late for one.
sql!(
    WAITING_OF,
    "SELECT job, number, deployment, held FROM job_items WHERE job = $1 AND state = 'queued' AND way = 'batch' \
     ORDER BY number LIMIT $2"
);
sql!(
    LATE,
    "SELECT job, number, deployment, held FROM job_items WHERE state = 'queued' AND way = 'batch' \
     AND deadline_us < {now} + $1 ORDER BY job, number LIMIT $2"
);
sql!(
    RESCUE,
    "UPDATE job_items SET ready_us = {now}, way = 'standard', rescue = $3, held = 0, problem = $4 \
     WHERE job = $1 AND number = $2 AND state = 'queued' AND way = 'batch'"
);
sql!(
    WITH_A_PROVIDER,
    format!(
        "SELECT {ITEM} FROM job_items WHERE job = $1 AND state IN ('packed', 'submitted') AND pack <> '' AND number > $2 \
         ORDER BY number LIMIT $3"
    )
);

/// Items that are rescued at a time.
const RESCUES: i64 = 200;

impl Jobs {
    /// Ends items, or puts them back, each once: an item that has ended already is left alone, and so is its money. What
    /// belongs to one job is done in one transaction. Returns how many were changed.
    ///
    /// # Errors
    /// The store cannot be written, as for the methods below. What was done is done; all of it may be sent again.
    pub async fn settle(&self, ends: &[ItemEnd]) -> Result<usize, StoreError> {
        let mut by_job: BTreeMap<&str, Vec<&ItemEnd>> = BTreeMap::new();
        for end in ends {
            by_job.entry(&end.job).or_default().push(end);
        }
        let mut changed = 0;
        for (job, ends) in by_job {
            let escrows = self.store.escrows(job).await?;
            let mut transaction = self.store.pool.begin().await.map_err(written)?;
            let lessee = self.store.as_node(lessee(job));
            let (mut settlements, mut free) = (Vec::new(), BTreeMap::<String, i64>::new());
            for end in ends {
                let Some((deployment, held)) = end_item(&mut transaction, end).await.map_err(written)? else {
                    continue;
                };
                changed += 1;
                if let Some(record) = &end.record {
                    settlements.push(Settlement {
                        decision: end.decision.clone(),
                        ..settlement(record, held, &deployment, &escrows)
                    });
                } else if end.rescue && end.state == "queued" {
                    *free.entry(deployment).or_default() += held.nanos();
                    let id = [Value::Text(job), Value::Int(end.number)];
                    transaction.execute(&HOLD_NOTHING, &id).await.map_err(written)?;
                }
            }
            let all: Vec<&Settlement> = settlements.iter().collect();
            lessee.post_in(&mut transaction, &all).await.map_err(written)?;
            for (deployment, amount) in free {
                lessee
                    .give_back(&mut transaction, (&deployment, amount), &escrows)
                    .await
                    .map_err(written)?;
            }
            transaction.commit().await.map_err(written)?;
        }
        self.ledger.look_again();
        Ok(changed)
    }

    /// A provider has answered, and billed, an item that was no longer waited for: its money is charged to whoever the item
    /// belongs to, marked `late`, once however often it is told. False: it was known.
    ///
    /// # Errors
    /// The store cannot be written; all of it may be sent again.
    pub async fn stray(&self, item: &StoredItem, record: &Record) -> Result<bool, StoreError> {
        let escrows = self.store.escrows(&item.job).await?;
        let mut transaction = self.store.pool.begin().await.map_err(written)?;
        let lessee = self.store.as_node(lessee(&item.job));
        // What was held for it went back when it was given up.
        let settled = Settlement {
            late: true,
            ..settlement(record, Money::ZERO, &item.deployment, &escrows)
        };
        let posted = lessee.post_in(&mut transaction, &[&settled]).await;
        let is_new = posted.map_err(written)?.new > 0;
        if is_new {
            let values = [
                Value::Text(&item.job),
                Value::Int(item.number),
                Value::Int(record.total().nanos()),
            ];
            transaction.execute(&STRAY, &values).await.map_err(written)?;
        }
        transaction.commit().await.map_err(written)?;
        self.ledger.look_again();
        Ok(is_new)
    }

    /// Ends jobs whose items have all ended; returns their ids.
    pub async fn finish(&self) -> Result<Vec<String>, StoreError> {
        let rows = self.store.pool.fetch(&FINISHED, &[]).await.map_err(written)?;
        rows.iter()
            .map(|row| row.text(0))
            .collect::<sqlx::Result<_>>()
            .map_err(unread)
    }

    /// Jobs that are over and still hold money, those among them that were never begun: received for longer, or starting for
    /// longer, than these microseconds.
    pub async fn left_over(
        &self,
        (receiving_us, starting_us): (i64, i64),
    ) -> Result<Vec<String>, StoreError> {
        let values = [Value::Int(receiving_us), Value::Int(starting_us)];
        self.store
            .pool
            .fetch(&ABANDONED, &values)
            .await
            .map_err(written)?;
        let rows = self.store.pool.fetch(&LEFT_OVER, &[]).await.map_err(unread)?;
        rows.iter()
            .map(|row| row.text(0))
            .collect::<sqlx::Result<_>>()
            .map_err(unread)
    }

    /// A job of whose end someone is to be told, and how often that was tried with this time.
    pub async fn hook(&self, again_us: i64) -> Result<Option<(Job, i64)>, StoreError> {
        let rows = self
            .store
            .pool
            .fetch(&HOOKS, &[Value::Int(again_us)])
            .await
            .map_err(written)?;
        let tries = JOB.split(',').count();
        let read = |row| Ok((job(row)?, Row::int(row, tries)?));
        rows.first()
            .map(read)
            .transpose()
            .map_err(|error: sqlx::Error| unread(error))
    }

    /// Told, or given up, at 0; else to be tried again then.
    pub async fn hooked(&self, job: &str, again_us: i64) -> Result<(), StoreError> {
        let values = [Value::Text(job), Value::Int(again_us)];
        self.store
            .pool
            .fetch(&HOOKED, &values)
            .await
            .map(drop)
            .map_err(written)
    }

    /// Items of a job that wait for a batch, or are in one, are answered by the synchronous tier instead; returns how
    /// many. What their batch answers all the same is charged as late.
    pub async fn rescue(&self, job: &str, why: &str) -> Result<usize, StoreError> {
        let limit = Value::Int(RESCUES);
        let mut count = self
            .rescue_all(&WAITING_OF, [Value::Text(job), limit], why)
            .await?;
        let mut after = 0;
        loop {
            let values = [Value::Text(job), Value::Int(after), limit];
            let rows = self.store.pool.fetch(&WITH_A_PROVIDER, &values).await;
            let rows = rows.map_err(unread)?;
            let items: Vec<StoredItem> = rows
                .iter()
                .map(item)
                .collect::<sqlx::Result<_>>()
                .map_err(unread)?;
            let Some(last) = items.last() else { break };
            after = last.number;
            let ends: Vec<ItemEnd> = items.iter().map(|item| ItemEnd::rescue(item, why)).collect();
            count += self.settle(&ends).await?;
        }
        Ok(count)
    }

    /// Items that waited for a batch until it is too late for one are called for one by one; returns how many.
    pub(super) async fn rescue_late(&self, needed_us: i64) -> Result<usize, StoreError> {
        let values = [Value::Int(needed_us), Value::Int(RESCUES)];
        self.rescue_all(
            &LATE,
            values,
            "it waited for a batch until it was too late for one",
        )
        .await
    }

    /// Takes what a statement finds out of the queue for batches. What was held for it goes back, so that its own call
    /// can hold it.
    async fn rescue_all(
        &self,
        statement: &Sql,
        values: [Value<'_>; 2],
        why: &str,
    ) -> Result<usize, StoreError> {
        let mut count = 0;
        loop {
            let rows = self.store.pool.fetch(statement, &values).await.map_err(unread)?;
            let mut by_job: BTreeMap<String, Vec<(i64, String, i64)>> = BTreeMap::new();
            for row in &rows {
                let read =
                    || -> sqlx::Result<_> { Ok((row.text(0)?, row.int(1)?, row.text(2)?, row.int(3)?)) };
                let (job, number, deployment, held) = read().map_err(unread)?;
                by_job.entry(job).or_default().push((number, deployment, held));
            }
            for (job, items) in &by_job {
                count += self.rescue_some(job, items, why).await?;
            }
            if i64::try_from(rows.len()).unwrap_or(0) < RESCUES {
                if count > 0 {
                    self.ledger.look_again();
                }
                return Ok(count);
            }
        }
    }

    /// Number, deployment and what is held, of items of one job.
    async fn rescue_some(
        &self,
        job: &str,
        items: &[(i64, String, i64)],
        why: &str,
    ) -> Result<usize, StoreError> {
        let escrows = self.store.escrows(job).await?;
        let lessee = self.store.as_node(lessee(job));
        let mut transaction = self.store.pool.begin().await.map_err(written)?;
        let (mut count, mut free) = (0, BTreeMap::<&str, i64>::new());
        for (number, deployment, held) in items {
            let values = [
                Value::Text(job),
                Value::Int(*number),
                Value::Bool(true),
                Value::Text(why),
            ];
            // Another node may have been faster.
            if transaction.execute(&RESCUE, &values).await.map_err(written)? > 0 {
                count += 1;
                *free.entry(deployment).or_default() += held;
            }
        }
        for (deployment, amount) in free {
            let given = lessee.give_back(&mut transaction, (deployment, amount), &escrows);
            given.await.map_err(written)?;
        }
        transaction.commit().await.map_err(written)?;
        Ok(count)
    }
}

async fn end_item(transaction: &mut Transaction, end: &ItemEnd) -> sqlx::Result<Option<(String, Money)>> {
    let request = end.request.map(|request| request.to_string()).unwrap_or_default();
    let values = [
        Value::Text(&end.job),
        Value::Int(end.number),
        Value::Text(end.state),
        Value::Text(end.way.unwrap_or_default()),
        Value::Bool(end.rescue),
        Value::Int(end.status),
        Value::Text(&end.problem),
        Value::Bytes(end.output.as_deref()),
        Value::Int(end.charge.nanos()),
        Value::Int(end.saved.nanos()),
        Value::Text(&request),
        Value::Int(end.later_us),
    ];
    let rows = transaction.fetch(&END, &values).await?;
    let row = rows.first();
    row.map(|row| Ok((row.text(0)?, Money::from_nanos(row.int(1)?))))
        .transpose()
}

fn settlement(record: &Record, held: Money, deployment: &str, escrows: &[Escrow]) -> Settlement {
    let amount = record.total();
    let cells = escrows.iter().filter(|escrow| escrow.deployment == deployment);
    let posts = cells.flat_map(|escrow| &escrow.cells).map(|cell| Post {
        cell: cell.clone(),
        amount,
    });
    Settlement {
        record: record.clone(),
        held,
        late: false,
        posts: if amount.is_zero() {
            smallvec::SmallVec::new()
        } else {
            posts.collect()
        },
        decision: None,
    }
}

impl Store {
    /// What was held for items that are now paid for elsewhere.
    async fn give_back(
        &self,
        transaction: &mut Transaction,
        (deployment, amount): (&str, i64),
        escrows: &[Escrow],
    ) -> sqlx::Result<()> {
        let cells = escrows.iter().filter(|escrow| escrow.deployment == deployment);
        for cell in cells.flat_map(|escrow| &escrow.cells) {
            let (budget, starts) = (Value::Text(&cell.budget), Value::Int(cell.window.starts_us));
            let values = [Value::Text(self.node()), budget, starts, Value::Int(amount)];
            if transaction.execute(&GIVE_BACK, &values).await? > 0 {
                let values = [budget, starts, Value::Int(amount)];
                transaction.execute(&GIVE_BACK_WINDOW, &values).await?;
            }
        }
        Ok(())
    }
}
