//! Thresholds that were passed: each once over all nodes, and each on its way out until somebody has taken it.

use super::accounts::{Subtree, levels, path};
use super::sql::{Row, Sql, Value};
use super::{Store, StoreError, unread, written};
use exchange::{AccountPath, Money};
use std::sync::LazyLock;

/// A budget's threshold was passed for the first time in a window.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Alert {
    pub budget: String,
    pub account: String,
    pub window_starts_us: i64,
    /// Percent of the limit.
    pub threshold: u16,
    pub spent: Money,
    pub limit: Money,
}

/// An alert as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredAlert {
    pub alert: Alert,
    pub account: AccountPath,
    pub raised_us: i64,
    /// When the webhook took it.
    pub delivered_us: Option<i64>,
    /// How often it was sent.
    pub tries: i64,
}

const COLUMNS: &str = "a.budget, a.starts_us, a.threshold, a.spent, a.amount, a.raised_us, a.delivered_us, a.tries, \
                       b.org, b.team, b.workflow, b.key";

static RAISE: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "INSERT INTO alerts (budget, starts_us, threshold, spent, amount, raised_us) VALUES ($1, $2, $3, $4, $5, {now}) \
         ON CONFLICT DO NOTHING RETURNING budget",
    )
});
static PAGE: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(&format!(
        "SELECT {COLUMNS} FROM alerts a JOIN budgets b ON b.id = a.budget WHERE ($1 = '' OR b.org = $1) \
         AND ($2 = '' OR b.team = $2) AND ($3 = '' OR b.workflow = $3) AND (a.raised_us, a.threshold, a.budget) < ($4, $5, $6) \
         ORDER BY a.raised_us DESC, a.threshold DESC, a.budget DESC LIMIT $7"
    ))
});
/// Whoever changes the row has it until the time it says; nobody else sends it before.
static CLAIM: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "UPDATE alerts SET tries = tries + 1, next_try_us = {now} + $1 WHERE (budget, starts_us, threshold) = (\
         SELECT budget, starts_us, threshold FROM alerts WHERE delivered_us = 0 AND next_try_us <= {now} \
         AND raised_us > {now} - $2 ORDER BY raised_us LIMIT 1 {skip}) AND delivered_us = 0 AND next_try_us <= {now} \
         RETURNING budget, starts_us, threshold",
    )
});
static ONE: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(&format!(
        "SELECT {COLUMNS} FROM alerts a JOIN budgets b ON b.id = a.budget WHERE a.budget = $1 AND a.starts_us = $2 \
         AND a.threshold = $3"
    ))
});
static DELIVERED: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new("UPDATE alerts SET delivered_us = {now} WHERE budget = $1 AND starts_us = $2 AND threshold = $3")
});
static AGAIN: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "UPDATE alerts SET next_try_us = {now} + $4 WHERE budget = $1 AND starts_us = $2 AND threshold = $3 \
         AND delivered_us = 0",
    )
});

fn stored(row: &Row) -> sqlx::Result<StoredAlert> {
    let account = path(row, 8, 4)?;
    let delivered_us = row.int(6)?;
    Ok(StoredAlert {
        alert: Alert {
            budget: row.text(0)?,
            account: account.to_string(),
            window_starts_us: row.int(1)?,
            threshold: u16::try_from(row.int(2)?).unwrap_or(u16::MAX),
            spent: Money::from_nanos(row.int(3)?),
            limit: Money::from_nanos(row.int(4)?),
        },
        account,
        raised_us: row.int(5)?,
        delivered_us: (delivered_us != 0).then_some(delivered_us),
        tries: row.int(7)?,
    })
}

fn named(alert: &Alert) -> [Value<'_>; 3] {
    [
        Value::Text(&alert.budget),
        Value::Int(alert.window_starts_us),
        Value::Int(i64::from(alert.threshold)),
    ]
}

impl Store {
    /// Notes alerts; returns those that nobody had noted before.
    pub(crate) async fn raise(&self, alerts: Vec<Alert>) -> Result<Vec<Alert>, StoreError> {
        let mut new = Vec::new();
        for alert in alerts {
            let [budget, starts, threshold] = named(&alert);
            let (spent, limit) = (Value::Int(alert.spent.nanos()), Value::Int(alert.limit.nanos()));
            let values = [budget, starts, threshold, spent, limit];
            let rows = self.pool.fetch(&RAISE, &values).await.map_err(written)?;
            if !rows.is_empty() {
                new.push(alert);
            }
        }
        Ok(new)
    }

    /// Alerts of budgets within a subtree, the latest first, those before one: when it was raised, its threshold, its budget.
    pub(crate) async fn alerts(
        &self,
        within: &Subtree,
        before: Option<(i64, i64, String)>,
        limit: i64,
    ) -> Result<Vec<StoredAlert>, StoreError> {
        let (raised_us, threshold, budget) = before.unwrap_or((i64::MAX, 0, String::new()));
        let [org, team, workflow, _] = levels(within.root());
        let values = [
            Value::Text(org),
            Value::Text(team),
            Value::Text(workflow),
            Value::Int(raised_us),
            Value::Int(threshold),
            Value::Text(&budget),
            Value::Int(limit),
        ];
        let rows = self.pool.fetch(&PAGE, &values).await.map_err(unread)?;
        rows.iter()
            .map(stored)
            .collect::<sqlx::Result<_>>()
            .map_err(unread)
    }

    /// Takes an alert that nobody has delivered and nobody else works on, for `hold_us`. One older than `old_us` is given up.
    pub(crate) async fn claim_alert(
        &self,
        (hold_us, old_us): (i64, i64),
    ) -> Result<Option<StoredAlert>, StoreError> {
        let values = [Value::Int(hold_us), Value::Int(old_us)];
        let rows = self.pool.fetch(&CLAIM, &values).await.map_err(written)?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let budget = row.text(0).map_err(unread)?;
        let (starts_us, threshold) = (row.int(1).map_err(unread)?, row.int(2).map_err(unread)?);
        let values = [Value::Text(&budget), Value::Int(starts_us), Value::Int(threshold)];
        let rows = self.pool.fetch(&ONE, &values).await.map_err(unread)?;
        rows.first().map(stored).transpose().map_err(unread)
    }

    /// The webhook took it.
    pub(crate) async fn alert_delivered(&self, alert: &Alert) -> Result<(), StoreError> {
        self.pool
            .fetch(&DELIVERED, &named(alert))
            .await
            .map_err(written)?;
        Ok(())
    }

    /// The webhook did not take it: it is tried again after `wait_us`.
    pub(crate) async fn alert_again(&self, alert: &Alert, wait_us: i64) -> Result<(), StoreError> {
        let [budget, starts, threshold] = named(alert);
        let values = [budget, starts, threshold, Value::Int(wait_us)];
        self.pool.fetch(&AGAIN, &values).await.map_err(written)?;
        Ok(())
    }
}
