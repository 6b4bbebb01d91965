//! What is defined rather than spent: budgets, the audit trail of changes to them, alerts that were raised.

use super::sql::{Row, Sql, Transaction, Value};
use super::{Store, StoreError, unread, written};
use crate::budget::{Budget, BudgetSpec, Enforcement, Increase, Scope};
use crate::window::{Period, Zone};
use exchange::{AccountPath, Money};
use std::sync::{Arc, LazyLock};

/// Who changes something, and why: a line of the audit trail.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    pub actor: &'a str,
    pub reason: &'a str,
    /// Microseconds since the epoch.
    pub at_us: i64,
}

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

/// A change that was made.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct AuditEntry {
    pub id: i64,
    pub at_us: i64,
    pub actor: String,
    pub reason: String,
    pub subject: String,
    pub before: Option<String>,
    pub after: Option<String>,
}

const COLUMNS: &str = "id, org, team, workflow, key, amount, period, zone, enforcement, thresholds, scope, increase, \
                       increase_until_us, source, retired";

static BUDGETS: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(&format!(
        "SELECT {COLUMNS} FROM budgets WHERE NOT retired ORDER BY id"
    ))
});
static LOCK_BUDGET: LazyLock<Sql> =
    LazyLock::new(|| Sql::new(&format!("SELECT {COLUMNS} FROM budgets WHERE id = $1 {{lock}}")));
static PUT_BUDGET: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(&format!(
        "INSERT INTO budgets ({COLUMNS}, changed_us) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) \
         ON CONFLICT (id) DO UPDATE SET amount = excluded.amount, thresholds = excluded.thresholds, increase = excluded.increase, \
         increase_until_us = excluded.increase_until_us, source = excluded.source, retired = excluded.retired, \
         changed_us = excluded.changed_us"
    ))
});
static SET_WINDOWS: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "UPDATE budget_windows SET amount = $2, increase = $3, increase_until_us = $4 WHERE budget = $1 AND ends_us > {now}",
    )
});
static WRITE_AUDIT: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "INSERT INTO audit (at_us, actor, reason, subject, before, after) VALUES ($1, $2, $3, $4, $5, $6)",
    )
});
static VERSION: LazyLock<Sql> = LazyLock::new(|| Sql::new("SELECT coalesce(max(id), 0) FROM audit"));
static AUDIT: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "SELECT id, at_us, actor, reason, subject, before, after FROM audit WHERE id < $1 ORDER BY id DESC LIMIT $2",
    )
});
static RAISE: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new("INSERT INTO alerts VALUES ($1, $2, $3, $4, $5, {now}) ON CONFLICT DO NOTHING RETURNING budget")
});

/// Where a definition comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A configuration file, which has the last word at each start.
    Config,
    Api,
}

impl Source {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Api => "api",
        }
    }
}

impl Store {
    pub(crate) async fn budgets(&self) -> Result<Vec<Budget>, StoreError> {
        let rows = self.pool.fetch(&BUDGETS, &[]).await.map_err(unread)?;
        let budgets = rows.iter().map(|row| budget(row).map(|(budget, _)| budget));
        budgets.collect::<sqlx::Result<_>>().map_err(unread)
    }

    /// Grows with each change; a node that sees it grow reads definitions again.
    pub(crate) async fn version(&self) -> Result<i64, StoreError> {
        let rows = self.pool.fetch(&VERSION, &[]).await.map_err(unread)?;
        rows.first().map_or(Ok(0), |row| row.int(0)).map_err(unread)
    }

    /// Makes or changes budgets, with an audit entry for each that is new or different; returns how many were.
    pub(crate) async fn put_budgets(
        &self,
        budgets: &[Budget],
        source: Source,
        change: Change<'_>,
    ) -> Result<usize, StoreError> {
        let mut transaction = self.pool.begin().await.map_err(written)?;
        let mut changed = 0;
        for budget in budgets {
            let put = put(&mut transaction, (budget, false), source, change).await;
            changed += usize::from(put.map_err(written)?);
        }
        transaction.commit().await.map_err(written)?;
        Ok(changed)
    }

    /// Ends budgets that a configuration made and no longer has; returns how many.
    pub(crate) async fn retire_missing(
        &self,
        wanted: &[Budget],
        change: Change<'_>,
    ) -> Result<usize, StoreError> {
        let rows = self.pool.fetch(&BUDGETS, &[]).await.map_err(unread)?;
        let mut transaction = self.pool.begin().await.map_err(written)?;
        let mut retired = 0;
        for row in &rows {
            let (budget, source) = budget(row).map_err(unread)?;
            if source == Source::Config && wanted.iter().all(|wanted| wanted.id != budget.id) {
                let put = put(&mut transaction, (&budget, true), source, change).await;
                retired += usize::from(put.map_err(written)?);
            }
        }
        transaction.commit().await.map_err(written)?;
        Ok(retired)
    }

    /// Changes, the latest first, those with ids below `before`.
    pub(crate) async fn audit(&self, before: i64, limit: i64) -> Result<Vec<AuditEntry>, StoreError> {
        let values = [Value::Int(before), Value::Int(limit)];
        let rows = self.pool.fetch(&AUDIT, &values).await.map_err(unread)?;
        let entry = |row: &Row| {
            Ok(AuditEntry {
                id: row.int(0)?,
                at_us: row.int(1)?,
                actor: row.text(2)?,
                reason: row.text(3)?,
                subject: row.text(4)?,
                before: row.maybe(5)?,
                after: row.maybe(6)?,
            })
        };
        rows.iter()
            .map(entry)
            .collect::<sqlx::Result<_>>()
            .map_err(unread)
    }

    /// Notes alerts; returns those that nobody had noted before.
    pub(crate) async fn raise(&self, alerts: Vec<Alert>) -> Result<Vec<Alert>, StoreError> {
        let mut new = Vec::new();
        for alert in alerts {
            let values = [
                Value::Text(&alert.budget),
                Value::Int(alert.window_starts_us),
                Value::Int(i64::from(alert.threshold)),
                Value::Int(alert.spent.nanos()),
                Value::Int(alert.limit.nanos()),
            ];
            if !self
                .pool
                .fetch(&RAISE, &values)
                .await
                .map_err(written)?
                .is_empty()
            {
                new.push(alert);
            }
        }
        Ok(new)
    }
}

/// Writes one budget where it differs; false where it did not.
async fn put(
    transaction: &mut Transaction,
    (budget, retired): (&Budget, bool),
    source: Source,
    change: Change<'_>,
) -> sqlx::Result<bool> {
    let rows = transaction
        .fetch(&LOCK_BUDGET, &[Value::Text(&budget.id)])
        .await?;
    let before = match rows.first() {
        Some(row) => {
            let was_retired = row.flag(14)?;
            let (before, came_from) = self::budget(row)?;
            if before == *budget && came_from == source && was_retired == retired {
                return Ok(false);
            }
            (!was_retired).then(|| shown(&before))
        }
        None => None,
    };
    let (account, spec) = (&budget.account, &budget.spec);
    let part = |part: &Option<Arc<str>>| part.clone().unwrap_or_default();
    let (team, workflow, key) = (part(&account.team), part(&account.workflow), part(&account.key));
    let thresholds = serde_json::json!(spec.thresholds).to_string();
    let scope = serde_json::json!(spec.scope).to_string();
    let (amount, increase) = (
        Value::Int(spec.limit.nanos()),
        Value::Int(spec.increase.amount.nanos()),
    );
    let until = Value::Int(spec.increase.until_us);
    let values = [
        Value::Text(&budget.id),
        Value::Text(&account.org),
        Value::Text(&team),
        Value::Text(&workflow),
        Value::Text(&key),
        amount,
        Value::Text(spec.period.as_str()),
        Value::Text(spec.zone.name()),
        Value::Text(enforcement(spec.enforcement)),
        Value::Text(&thresholds),
        Value::Text(&scope),
        increase,
        until,
        Value::Text(source.as_str()),
        Value::Bool(retired),
        Value::Int(change.at_us),
    ];
    transaction.execute(&PUT_BUDGET, &values).await?;
    let values = [Value::Text(&budget.id), amount, increase, until];
    transaction.execute(&SET_WINDOWS, &values).await?;
    let subject = format!("budget {}", budget.id);
    let after = (!retired).then(|| shown(budget));
    let values = [
        Value::Int(change.at_us),
        Value::Text(change.actor),
        Value::Text(change.reason),
        Value::Text(&subject),
        Value::Maybe(before.as_deref()),
        Value::Maybe(after.as_deref()),
    ];
    transaction.execute(&WRITE_AUDIT, &values).await?;
    Ok(true)
}

/// A budget for the audit trail.
fn shown(budget: &Budget) -> String {
    let spec = &budget.spec;
    serde_json::json!({
        "account": budget.account.to_string(),
        "limit": spec.limit,
        "period": spec.period,
        "zone": spec.zone.name(),
        "enforcement": spec.enforcement,
        "thresholds": spec.thresholds,
        "scope": spec.scope,
        "increase": spec.increase,
    })
    .to_string()
}

const fn enforcement(enforcement: Enforcement) -> &'static str {
    match enforcement {
        Enforcement::Hard => "hard",
        Enforcement::Soft => "soft",
    }
}

fn budget(row: &Row) -> sqlx::Result<(Budget, Source)> {
    let text = |at| row.text(at);
    let part = |at| text(at).map(|part| (!part.is_empty()).then(|| Arc::from(part)));
    let account = AccountPath {
        org: text(1)?.into(),
        team: part(2)?,
        workflow: part(3)?,
        key: part(4)?,
    };
    let bad = |at: usize, problem: String| sqlx::Error::ColumnDecode {
        index: at.to_string(),
        source: problem.into(),
    };
    let json = |error: serde_json::Error| error.to_string();
    let spec = BudgetSpec {
        limit: Money::from_nanos(row.int(5)?),
        period: Period::parse(&text(6)?).ok_or_else(|| bad(6, "not a period".into()))?,
        zone: Zone::parse(&text(7)?).map_err(|problem| bad(7, problem))?,
        enforcement: if text(8)? == "soft" {
            Enforcement::Soft
        } else {
            Enforcement::Hard
        },
        thresholds: serde_json::from_str(&text(9)?).map_err(|error| bad(9, json(error)))?,
        scope: serde_json::from_str::<Scope>(&text(10)?).map_err(|error| bad(10, json(error)))?,
        increase: Increase {
            amount: Money::from_nanos(row.int(11)?),
            until_us: row.int(12)?,
        },
    };
    let source = if text(13)? == "api" {
        Source::Api
    } else {
        Source::Config
    };
    let budget = Budget {
        id: text(0)?.into(),
        account,
        spec,
    };
    Ok((budget, source))
}
