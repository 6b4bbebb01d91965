//! Posting settlements: rows, spend and leases in one transaction, each request once.
//!
//! Many rows travel in one prepared statement: of all ways tried the one that costs least per row. What is added up goes
//! in key order, so that two nodes never wait for each other.

use super::lease::BEGIN_WINDOW;
use super::sql::{Sql, Transaction, Value};
use super::{Store, StoreError, written};
use crate::settlement::{CellName, Settlement, settled_at};
use exchange::{AccountPath, AttemptOutcome, AttemptRecord, Ending, Money, RefusalKind, TokenClass};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::LazyLock;
use uuid::Uuid;

/// What a batch did.
#[derive(Debug, Default)]
pub(crate) struct Posted {
    /// Requests that the store did not have.
    pub(crate) new: usize,
    pub(crate) spends: Vec<Spend>,
}

/// How a budget window stands after a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spend {
    pub(crate) budget: String,
    pub(crate) starts_us: i64,
    pub(crate) spent: Money,
    /// By this batch.
    pub(crate) added: Money,
}

/// Rows per statement, the largest first; these stay prepared for any number of rows.
const SIZES: [usize; 3] = [64, 8, 1];
const REQUEST_COLUMNS: usize = 29;
const ATTEMPT_COLUMNS: usize = 25;
const HOURLY_KEYS: usize = 11;
const HOURLY_SUMS: usize = 10;
const HOUR_US: i64 = 3_600_000_000;

/// The statements for [`SIZES`] rows.
pub(super) type Inserts = LazyLock<[Sql; 3]>;
static REQUESTS: Inserts = LazyLock::new(|| {
    inserts(
        "requests",
        REQUEST_COLUMNS,
        "ON CONFLICT (id) DO NOTHING RETURNING id",
    )
});
static ATTEMPTS: Inserts = LazyLock::new(|| {
    inserts(
        "attempts",
        ATTEMPT_COLUMNS,
        "ON CONFLICT (request, number) DO NOTHING",
    )
});
static LEASES: Inserts = LazyLock::new(|| {
    let tail = "ON CONFLICT (node, budget, starts_us) DO UPDATE SET used = leases.used + excluded.used \
                RETURNING budget, starts_us, taken, used, written_off";
    inserts(
        "leases (node, budget, starts_us, taken, used, written_off)",
        6,
        tail,
    )
});
static WINDOWS: Inserts = LazyLock::new(|| {
    let tail = "ON CONFLICT (budget, starts_us) DO UPDATE SET spent = budget_windows.spent + excluded.spent, \
                leased = budget_windows.leased + excluded.leased RETURNING budget, starts_us, spent";
    let columns =
        "budget, starts_us, ends_us, amount, increase, increase_until_us, spent, leased, last_grant";
    inserts(&format!("budget_windows ({columns})"), 9, tail)
});
static HOURS: Inserts = LazyLock::new(|| {
    let sums = [
        "requests",
        "refused",
        "attempts",
        "charge",
        "cancelled_charge",
        "failed_charge",
        "input_tokens",
        "cached_tokens",
        "output_tokens",
        "reasoning_tokens",
    ];
    let sums = sums.map(|sum| format!("{sum} = hourly.{sum} + excluded.{sum}"));
    let tail = format!(
        "ON CONFLICT (hour_us, org, team, workflow, key, provider, model, class, origin, tier, value) DO UPDATE SET {}",
        sums.join(", ")
    );
    inserts("hourly", HOURLY_KEYS + HOURLY_SUMS, &tail)
});
static USE_WRITTEN_OFF: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "UPDATE leases SET written_off = written_off - $4, used = used - $5 WHERE node = $1 AND budget = $2 AND starts_us = $3",
    )
});

pub(super) fn inserts(table: &str, columns: usize, tail: &str) -> [Sql; 3] {
    SIZES.map(|rows| Sql::insert(table, (rows, columns), tail))
}

/// Cuts rows of `columns` values into statements.
pub(super) fn statements<'a, 'v>(
    inserts: &'static Inserts,
    columns: usize,
    mut values: &'a [Value<'v>],
) -> impl Iterator<Item = (&'static Sql, &'a [Value<'v>])> {
    std::iter::from_fn(move || {
        let kind = SIZES.iter().position(|size| size * columns <= values.len())?;
        let (now, later) = values.split_at(SIZES[kind] * columns);
        values = later;
        Some((&inserts[kind], now))
    })
}

/// What a batch adds to one budget window.
#[derive(Clone, Copy, Default)]
struct Sum {
    /// Out of the lease.
    due: i64,
    /// By requests whose hold had expired: their share of the lease has been written off.
    late: i64,
}

impl Store {
    /// Writes settlements in one transaction; those already there are left alone.
    pub(crate) async fn post(&self, settlements: &[&Settlement]) -> Result<Posted, StoreError> {
        let mut transaction = self.pool.begin().await.map_err(written)?;
        let posted = self
            .post_in(&mut transaction, settlements)
            .await
            .map_err(written)?;
        transaction.commit().await.map_err(written)?;
        Ok(posted)
    }

    pub(super) async fn post_in(
        &self,
        transaction: &mut Transaction,
        settlements: &[&Settlement],
    ) -> sqlx::Result<Posted> {
        let mut values = Vec::with_capacity(settlements.len() * REQUEST_COLUMNS);
        let thinking: Vec<Option<String>> = settlements
            .iter()
            .map(|settlement| settlement.record.thinking.map(|thinking| thinking.to_string()))
            .collect();
        for (settlement, thinking) in settlements.iter().zip(&thinking) {
            request_row(&mut values, settlement, (thinking.as_deref(), self.node()));
        }
        let mut inserted: HashSet<Uuid> = HashSet::with_capacity(settlements.len());
        for (statement, values) in statements(&REQUESTS, REQUEST_COLUMNS, &values) {
            for row in transaction.fetch(statement, values).await? {
                inserted.insert(row.id(0)?);
            }
        }
        // One batch may hold a request twice, after a replay: the second is no more new than one of an earlier batch.
        let is_new = |settlement: &&Settlement| inserted.remove(&settlement.record.request.0);
        let new: Vec<&Settlement> = settlements.iter().copied().filter(is_new).collect();
        self.post_attempts(transaction, &new).await?;
        super::decisions::post(transaction, &new).await?;
        let spends = self.post_spend(transaction, &new).await?;
        post_hours(transaction, &new).await?;
        Ok(Posted {
            new: new.len(),
            spends,
        })
    }

    async fn post_attempts(&self, transaction: &mut Transaction, new: &[&Settlement]) -> sqlx::Result<()> {
        let attempts = || {
            let of = |settlement: &&'_ Settlement| settlement.record.attempts.len();
            new.iter().map(of).sum::<usize>()
        };
        let lines: Vec<String> = new
            .iter()
            .flat_map(|settlement| settlement.record.attempts.iter().map(charge_lines))
            .collect();
        let mut values = Vec::with_capacity(attempts() * ATTEMPT_COLUMNS);
        let rows = new.iter().flat_map(|settlement| {
            settlement
                .record
                .attempts
                .iter()
                .map(|attempt| (*settlement, attempt))
        });
        for (row, lines) in rows.zip(&lines) {
            attempt_row(&mut values, row, lines);
        }
        for (statement, values) in statements(&ATTEMPTS, ATTEMPT_COLUMNS, &values) {
            transaction.execute(statement, values).await?;
        }
        Ok(())
    }

    /// Leases first, then windows: what the lease does not cover was never leased, or has been written off.
    async fn post_spend(
        &self,
        transaction: &mut Transaction,
        new: &[&Settlement],
    ) -> sqlx::Result<Vec<Spend>> {
        let mut sums: BTreeMap<&CellName, Sum> = BTreeMap::new();
        for settlement in new {
            for post in &settlement.posts {
                let sum = sums.entry(&post.cell).or_default();
                if settlement.late {
                    sum.late += post.amount.nanos();
                } else {
                    sum.due += post.amount.nanos();
                }
            }
        }
        let node = Value::Text(&self.node);
        let mut values = Vec::with_capacity(sums.len() * 6);
        for (cell, sum) in &sums {
            let starts = Value::Int(cell.window.starts_us);
            values.extend([node, Value::Text(&cell.budget), starts]);
            values.extend([Value::Int(0), Value::Int(sum.due), Value::Int(0)]);
        }
        let mut leases = HashMap::with_capacity(sums.len());
        for (statement, values) in statements(&LEASES, 6, &values) {
            for row in transaction.fetch(statement, values).await? {
                leases.insert(
                    (row.text(0)?, row.int(1)?),
                    (row.int(2)?, row.int(3)?, row.int(4)?),
                );
            }
        }
        for cell in sums.keys().filter(|cell| {
            // Of a window that is in use there is a lease; any other may be new.
            let name = (cell.budget.to_string(), cell.window.starts_us);
            leases.get(&name).is_none_or(|(taken, ..)| *taken == 0)
        }) {
            let ends = Value::Int(cell.window.ends_us);
            let values = [
                Value::Text(&cell.budget),
                Value::Int(cell.window.starts_us),
                ends,
                Value::Int(0),
            ];
            transaction.execute(&BEGIN_WINDOW, &values).await?;
        }
        let mut values = Vec::with_capacity(sums.len() * 9);
        for (cell, sum) in &sums {
            let (budget, starts) = (Value::Text(&cell.budget), cell.window.starts_us);
            let name = (cell.budget.to_string(), starts);
            let (taken, used, written_off) = leases.get(&name).copied().unwrap_or_default();
            let leased = sum.due.min((taken - (used - sum.due)).max(0));
            let off = (sum.due - leased + sum.late).min(written_off).max(0);
            if off > 0 {
                // What the write-off has paid for was not used of what was taken since.
                let uncovered = Value::Int(off.min(sum.due - leased));
                let values = [node, budget, Value::Int(starts), Value::Int(off), uncovered];
                transaction.execute(&USE_WRITTEN_OFF, &values).await?;
            }
            values.extend([budget, Value::Int(starts), Value::Int(cell.window.ends_us)]);
            values.extend([Value::Int(0), Value::Int(0), Value::Int(0)]);
            values.extend([
                Value::Int(sum.due + sum.late - off),
                Value::Int(-leased),
                Value::Int(0),
            ]);
        }
        let added: HashMap<(&str, i64), i64> = sums
            .iter()
            .map(|(cell, sum)| ((&*cell.budget, cell.window.starts_us), sum.due + sum.late))
            .collect();
        let mut spends = Vec::with_capacity(sums.len());
        for (statement, values) in statements(&WINDOWS, 9, &values) {
            for row in transaction.fetch(statement, values).await? {
                let (budget, starts_us) = (row.text(0)?, row.int(1)?);
                let added = added
                    .get(&(budget.as_str(), starts_us))
                    .copied()
                    .unwrap_or_default();
                spends.push(Spend {
                    budget,
                    starts_us,
                    spent: Money::from_nanos(row.int(2)?),
                    added: Money::from_nanos(added),
                });
            }
        }
        Ok(spends)
    }
}

fn request_row<'a>(
    values: &mut Vec<Value<'a>>,
    settlement: &'a Settlement,
    (thinking, node): (Option<&'a str>, &'a str),
) {
    let record = &settlement.record;
    let account = record.account.as_deref();
    let part = |part: fn(&AccountPath) -> Option<&str>| Value::Maybe(account.and_then(part));
    let times = &record.timings;
    let micros = |time: u64| Value::Int(time.cast_signed());
    values.extend([
        Value::Id(record.request.0),
        Value::Int(record.started_unix_us),
        Value::Int(settled_at(record)),
        part(|account| Some(&account.org)),
        part(|account| account.team.as_deref()),
        part(|account| account.workflow.as_deref()),
        part(|account| account.key.as_deref()),
        Value::Text(record.dialect.as_str()),
        Value::Text(record.surface.as_str()),
        Value::Text(&record.model_asked),
        Value::Bool(record.stream),
        Value::Text(record.value.as_str()),
        Value::Text(record.latency.as_str()),
        Value::Maybe(thinking),
        Value::Text(&record.policy_version),
        Value::Text(record.ending.as_str()),
        Value::Text(record.phase.as_str()),
        Value::Maybe(record.refusal.map(RefusalKind::as_str)),
        Value::Int(i64::from(record.status)),
        micros(times.body_read_us),
        micros(times.decided_us),
        micros(times.upstream_headers_us),
        micros(times.first_byte_us),
        micros(times.total_us),
        Value::Int(record.total().nanos()),
        Value::Text(node),
        Value::Text(record.origin.as_str()),
        Value::Int(settlement.held.nanos()),
        Value::Bool(settlement.late),
    ]);
}

fn attempt_row<'a>(
    values: &mut Vec<Value<'a>>,
    (settlement, attempt): (&'a Settlement, &'a AttemptRecord),
    lines: &'a str,
) {
    values.extend([
        Value::Id(settlement.record.request.0),
        Value::Int(i64::from(attempt.number)),
        Value::Text(&attempt.deployment),
        Value::Text(&attempt.provider),
        Value::Text(&attempt.model),
        Value::Text(attempt.class.as_str()),
        Value::Text(attempt.outcome.as_str()),
        Value::Int(i64::from(attempt.status)),
        Value::Text(attempt.usage.source.as_str()),
    ]);
    values.extend(
        TokenClass::ALL
            .iter()
            .map(|class| Value::Int(attempt.usage.get(*class).cast_signed())),
    );
    values.extend([
        Value::Text(&attempt.charge.price_version),
        Value::Int(attempt.charge.total.nanos()),
        Value::Int(attempt.started_unix_us),
        Value::Int(attempt.duration_us.cast_signed()),
        Value::Text(attempt.charge.service_tier.as_str()),
        Value::Text(lines),
    ]);
}

fn charge_lines(attempt: &AttemptRecord) -> String {
    if attempt.charge.lines.is_empty() {
        return "[]".into();
    }
    let lines = attempt.charge.lines.iter().map(|line| {
        let (item, quantity) = (line.item.as_str(), line.quantity);
        let (rate, amount) = (line.rate.0, line.amount.nanos());
        format!(r#"{{"item":"{item}","quantity":{quantity},"rate":{rate},"amount":{amount}}}"#)
    });
    format!("[{}]", lines.collect::<Vec<_>>().join(","))
}

/// Hour, account, provider, model, class, origin and tier, value.
type HourKey<'a> = (i64, [&'a str; 4], [&'a str; 5], &'a str);

async fn post_hours(transaction: &mut Transaction, new: &[&Settlement]) -> sqlx::Result<()> {
    let mut hours: BTreeMap<HourKey<'_>, [i64; HOURLY_SUMS]> = BTreeMap::new();
    for settlement in new {
        add_hours(&mut hours, settlement);
    }
    let mut values = Vec::with_capacity(hours.len() * (HOURLY_KEYS + HOURLY_SUMS));
    for ((hour, account, target, value), sums) in &hours {
        values.push(Value::Int(*hour));
        let parts = account.iter().chain(target).chain([value]);
        values.extend(parts.map(|part| Value::Text(part)));
        values.extend(sums.iter().map(|sum| Value::Int(*sum)));
    }
    for (statement, values) in statements(&HOURS, HOURLY_KEYS + HOURLY_SUMS, &values) {
        transaction.execute(statement, values).await?;
    }
    Ok(())
}

fn add_hours<'a>(hours: &mut BTreeMap<HourKey<'a>, [i64; HOURLY_SUMS]>, settlement: &'a Settlement) {
    let record = &settlement.record;
    let hour = record.started_unix_us - record.started_unix_us.rem_euclid(HOUR_US);
    let account = record.account.as_deref().map_or([""; 4], |account| {
        let part = |part: &'a Option<std::sync::Arc<str>>| part.as_deref().unwrap_or("");
        [
            &*account.org,
            part(&account.team),
            part(&account.workflow),
            part(&account.key),
        ]
    });
    let refused = i64::from(record.ending == Ending::Refused);
    let (origin, value) = (record.origin.as_str(), record.value.as_str());
    if record.attempts.is_empty() {
        let target = ["", "", "", origin, ""];
        let sums = hours.entry((hour, account, target, value)).or_default();
        sums[0] += 1;
        sums[1] += refused;
    }
    for (position, attempt) in record.attempts.iter().enumerate() {
        let target = [
            &*attempt.provider,
            &*attempt.model,
            attempt.class.as_str(),
            origin,
            attempt.charge.service_tier.as_str(),
        ];
        let sums = hours.entry((hour, account, target, value)).or_default();
        if position + 1 == record.attempts.len() {
            sums[0] += 1;
            sums[1] += refused;
        }
        let charge = attempt.charge.total.nanos();
        let (cancelled, failed) = match attempt.outcome {
            AttemptOutcome::Answered => (0, 0),
            AttemptOutcome::Cancelled => (charge, 0),
            _ => (0, charge),
        };
        let tokens = |classes: &[TokenClass]| {
            let of = |class: &TokenClass| attempt.usage.get(*class);
            classes.iter().map(of).sum::<u64>().cast_signed()
        };
        let added = [
            1,
            charge,
            cancelled,
            failed,
            tokens(&[TokenClass::Input, TokenClass::AudioInput, TokenClass::ImageInput]),
            tokens(&[
                TokenClass::CacheRead,
                TokenClass::CacheWrite,
                TokenClass::CacheWriteHour,
            ]),
            tokens(&[
                TokenClass::Output,
                TokenClass::AudioOutput,
                TokenClass::ImageOutput,
            ]),
            tokens(&[TokenClass::Reasoning]),
        ];
        for (sum, added) in sums[2..].iter_mut().zip(added) {
            *sum += added;
        }
    }
}
