//! Jobs in sum: how they stand, for operators; and what ran at once although it could have waited.

use super::sql;
use crate::jobs::{FirstRead, Jobs, Standing, Waitable};
use crate::store::sql::{Row, Sql, Value};
use crate::store::{StoreError, unread, written};
use exchange::Money;
use std::sync::LazyLock;

// What ended a day ago and before is in `finance.batch_daily`. A job that failed never began, and nothing of it is open.
sql!(
    STANDING,
    "SELECT j.org, j.team, CAST(sum(CASE WHEN i.ended_us = 0 THEN 1 ELSE 0 END) AS BIGINT), \
     CAST(sum(CASE WHEN i.ended_us > 0 THEN 1 ELSE 0 END) AS BIGINT), \
     CAST(sum(CASE WHEN i.state = 'rescued' THEN 1 ELSE 0 END) AS BIGINT), \
     CAST(sum(CASE WHEN i.ended_us > i.deadline_us AND i.state <> 'cancelled' THEN 1 ELSE 0 END) AS BIGINT), \
     CAST(sum(i.charge) AS BIGINT), CAST(sum(i.saved) AS BIGINT), \
     coalesce({now} - min(CASE WHEN i.ended_us = 0 THEN j.created_us END), 0), \
     coalesce(min(CASE WHEN i.ended_us = 0 THEN j.deadline_us END) - {now}, 0) \
     FROM job_items i JOIN jobs j ON j.id = i.job WHERE j.kind <> 'file' \
     AND ((i.ended_us = 0 AND j.ended_us = 0) OR i.ended_us > {now} - 86400000000) GROUP BY j.org, j.team"
);
// A schedule shows in few hours of the day over several days; whoever waits for an answer by hand reads it as it streams.
sql!(
    WAITABLE,
    "SELECT coalesce(r.org, ''), coalesce(r.team, ''), coalesce(r.workflow, ''), a.provider, a.model, r.latency, count(*), \
     CAST(sum(a.charge) AS BIGINT), CAST(sum(a.input + a.cache_read + a.cache_write + a.cache_write_1h) AS BIGINT), \
     CAST(sum(a.output + a.reasoning) AS BIGINT), CAST(avg(r.total_us) AS BIGINT), \
     count(DISTINCT (r.started_us / 3600000000) % 24), count(DISTINCT r.started_us / 86400000000) \
     FROM requests r JOIN attempts a ON a.request = r.id WHERE r.started_us > {now} - $1 AND r.origin = 'live' \
     AND NOT r.stream AND a.charge > 0 AND a.tier = 'standard' AND a.class <> 'local' GROUP BY 1, 2, 3, 4, 5, 6 \
     HAVING r.latency IN ('deferred', 'batch') OR (count(*) >= 50 AND count(DISTINCT (r.started_us / 3600000000) % 24) <= 3 \
     AND count(DISTINCT r.started_us / 86400000000) >= 2) ORDER BY 8 DESC"
);
sql!(
    TOOK,
    "SELECT CAST(avg(ended_us - submitted_us) AS BIGINT) FROM packs WHERE provider = $1 AND model = $2 AND submitted_us > 0 \
     AND state IN ('ended', 'settled') AND NOT cancelling"
);

sql!(
    READ,
    "UPDATE jobs SET read_us = {now} WHERE id = $1 AND read_us = 0 AND ended_us > 0"
);
sql!(
    FIRST_READS,
    "SELECT j.org, j.team, j.workflow, i.provider, i.model, count(*), CAST(sum(i.charge) AS BIGINT), \
     CAST(sum(CASE WHEN i.saved < 0 THEN -i.saved ELSE 0 END) AS BIGINT), CAST(avg(i.ended_us - j.created_us) AS BIGINT), \
     CAST(avg(j.read_us - i.ended_us) AS BIGINT) FROM job_items i JOIN jobs j ON j.id = i.job \
     WHERE j.kind <> 'file' AND j.read_us > 0 AND i.ended_us > {now} - $1 AND i.state IN ('succeeded', 'rescued') \
     GROUP BY 1, 2, 3, 4, 5 ORDER BY 8 DESC, 6 DESC"
);

impl Jobs {
    /// An answer of a job that has ended is read; only the first time counts.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn read(&self, job: &str) -> Result<(), StoreError> {
        let done = self.store.pool.fetch(&READ, &[Value::Text(job)]).await;
        done.map(drop).map_err(written)
    }

    /// How long answers lay before they were first read, by workflow and model, in the time since.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn first_reads(&self, since_us: i64) -> Result<Vec<FirstRead>, StoreError> {
        let rows = self.store.pool.fetch(&FIRST_READS, &[Value::Int(since_us)]).await;
        let read = |row: &Row| {
            Ok(FirstRead {
                org: row.text(0)?,
                team: row.text(1)?,
                workflow: row.text(2)?,
                provider: row.text(3)?,
                model: row.text(4)?,
                items: row.int(5)?,
                charge: Money::from_nanos(row.int(6)?),
                left: Money::from_nanos(row.int(7)?),
                answer_us: row.int(8)?,
                lay_us: row.int(9)?,
            })
        };
        let rows = rows.map_err(unread)?;
        rows.iter().map(read).collect::<sqlx::Result<_>>().map_err(unread)
    }

    /// How jobs stand, by team: what is open, and what ended within a day.
    ///
    /// # Errors
    /// The store cannot be read, as for the method below.
    pub async fn standing(&self) -> Result<Vec<Standing>, StoreError> {
        let rows = self.store.pool.fetch(&STANDING, &[]).await.map_err(unread)?;
        let read = |row: &Row| {
            Ok(Standing {
                org: row.text(0)?,
                team: row.text(1)?,
                open: row.int(2)?,
                ended: row.int(3)?,
                rescued: row.int(4)?,
                missed: row.int(5)?,
                charge: Money::from_nanos(row.int(6)?),
                saved: Money::from_nanos(row.int(7)?),
                age_us: row.int(8)?,
                slack_us: row.int(9)?,
            })
        };
        rows.iter().map(read).collect::<sqlx::Result<_>>().map_err(unread)
    }

    /// What was answered at once and at full price in the time since, although its declared tier or its schedule says
    /// that it could have waited; the dearest first.
    pub async fn waitable(&self, since_us: i64) -> Result<Vec<Waitable>, StoreError> {
        let rows = self
            .store
            .pool
            .fetch(&WAITABLE, &[Value::Int(since_us)])
            .await
            .map_err(unread)?;
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            let read = || -> sqlx::Result<Waitable> {
                Ok(Waitable {
                    org: row.text(0)?,
                    team: row.text(1)?,
                    workflow: row.text(2)?,
                    provider: row.text(3)?,
                    model: row.text(4)?,
                    latency: row.text(5)?,
                    requests: row.int(6)?,
                    charge: Money::from_nanos(row.int(7)?),
                    input_tokens: row.int(8)?,
                    output_tokens: row.int(9)?,
                    latency_us: row.int(10)?,
                    hours: row.int(11)?,
                    days: row.int(12)?,
                    batch_us: None,
                })
            };
            let mut one = read().map_err(unread)?;
            let values = [Value::Text(&one.provider), Value::Text(&one.model)];
            let took = self.store.pool.fetch(&TOOK, &values).await.map_err(unread)?;
            // The average of nothing is NULL.
            one.batch_us = took.first().and_then(|row| row.int(0).ok());
            found.push(one);
        }
        Ok(found)
    }
}
