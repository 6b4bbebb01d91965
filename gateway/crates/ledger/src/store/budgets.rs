//! Budgets: made by configurations and by the admin API, changed, retired.

use super::accounts::{Subtree, levels, must_exist, path};
use super::edit::{Change, Edit, EditError, Source};
use super::sql::{Row, Sql, Value};
use super::{Store, StoreError, unread, written};
use crate::budget::{Budget, BudgetSpec, Enforcement, Increase, Scope};
use crate::window::{Period, Zone};
use exchange::Money;
use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

const COLUMNS: &str = "id, org, team, workflow, key, amount, period, zone, enforcement, thresholds, scope, increase, \
                       increase_until_us, source, retired";

/// A budget as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBudget {
    pub budget: Budget,
    pub source: Source,
    pub retired: bool,
}

/// What to change of a budget; what is `None` stays. The rest says which budget it is.
#[derive(Clone, Debug, Default)]
pub struct BudgetChange {
    pub limit: Option<Money>,
    pub thresholds: Option<Vec<u16>>,
    pub increase: Option<Increase>,
}

static CHANGED: LazyLock<Sql> =
    LazyLock::new(|| Sql::new(&format!("SELECT {COLUMNS} FROM budgets WHERE version > $1")));
static PAGE: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(&format!(
        "SELECT {COLUMNS} FROM budgets WHERE NOT retired AND ($1 = '' OR org = $1) AND ($2 = '' OR team = $2) \
         AND ($3 = '' OR workflow = $3) AND id > $4 ORDER BY id LIMIT $5"
    ))
});
static LOCK_BUDGET: LazyLock<Sql> =
    LazyLock::new(|| Sql::new(&format!("SELECT {COLUMNS} FROM budgets WHERE id = $1 {{lock}}")));
static PUT_BUDGET: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(&format!(
        "INSERT INTO budgets ({COLUMNS}, changed_us, version) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17) \
         ON CONFLICT (id) DO UPDATE SET amount = excluded.amount, thresholds = excluded.thresholds, increase = excluded.increase, \
         increase_until_us = excluded.increase_until_us, source = excluded.source, retired = excluded.retired, \
         changed_us = excluded.changed_us, version = excluded.version"
    ))
});
static SET_WINDOWS: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "UPDATE budget_windows SET amount = $2, increase = $3, increase_until_us = $4 WHERE budget = $1 AND ends_us > {now}",
    )
});
/// What was spent while a budget was retired is not in its windows: they begin again, with what the hours say, unless a node
/// still has something of them.
static FORGET_WINDOWS: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "DELETE FROM budget_windows WHERE budget = $1 AND leased = 0 AND NOT EXISTS (SELECT 1 FROM leases l \
         WHERE l.budget = budget_windows.budget AND l.starts_us = budget_windows.starts_us AND l.written_off > 0)",
    )
});

fn missing(id: &str) -> EditError {
    EditError::Missing(format!("budget `{id}`"))
}

fn read_all(rows: &[Row]) -> Result<Vec<StoredBudget>, StoreError> {
    rows.iter()
        .map(budget)
        .collect::<sqlx::Result<_>>()
        .map_err(unread)
}

impl Store {
    /// Budgets whose version is above this one, retired ones too; -1 for all.
    pub(crate) async fn budgets_since(&self, version: i64) -> Result<Vec<StoredBudget>, StoreError> {
        let rows = self.pool.fetch(&CHANGED, &[Value::Int(version)]).await;
        read_all(&rows.map_err(unread)?)
    }

    /// As the books take them.
    pub(crate) async fn changed_budgets(&self, version: i64) -> Result<Vec<(Budget, bool)>, StoreError> {
        let changed = self.budgets_since(version).await?.into_iter();
        Ok(changed.map(|stored| (stored.budget, stored.retired)).collect())
    }

    /// Budgets in force within a subtree, in the order of their ids, those after `after`.
    pub(crate) async fn budgets(
        &self,
        within: &Subtree,
        after: &str,
        limit: i64,
    ) -> Result<Vec<StoredBudget>, StoreError> {
        let [org, team, workflow, _] = levels(within.root());
        let values = [
            Value::Text(org),
            Value::Text(team),
            Value::Text(workflow),
            Value::Text(after),
            Value::Int(limit),
        ];
        let rows = self.pool.fetch(&PAGE, &values).await.map_err(unread)?;
        read_all(&rows)
    }

    /// A budget in force.
    pub(crate) async fn budget(&self, id: &str) -> Result<StoredBudget, EditError> {
        let rows = self
            .pool
            .fetch(&LOCK_BUDGET, &[Value::Text(id)])
            .await
            .map_err(unread)?;
        let found = rows.first().map(budget).transpose().map_err(unread)?;
        found.filter(|found| !found.retired).ok_or_else(|| missing(id))
    }

    /// Takes over what a configuration declares: its budgets are made or changed, those that one declared and this one does
    /// not end. Increases are never a configuration's, and stay. Returns how many were new or different.
    pub(crate) async fn declare_budgets(
        &self,
        declared: &[Budget],
        change: Change<'_>,
    ) -> Result<usize, StoreError> {
        let stored = self.budgets_since(-1).await?;
        let by_id: HashMap<&str, &StoredBudget> =
            stored.iter().map(|stored| (&*stored.budget.id, stored)).collect();
        let is_declared: HashSet<&str> = declared.iter().map(|budget| &*budget.id).collect();
        let mut wanted = Vec::new();
        for budget in declared {
            let mut stored = StoredBudget {
                budget: budget.clone(),
                source: Source::Config,
                retired: false,
            };
            let before = by_id.get(&*budget.id).copied();
            if let Some(before) = before {
                stored.budget.spec.increase = before.budget.spec.increase;
            }
            if before != Some(&stored) {
                wanted.push(stored);
            }
        }
        for before in &stored {
            let is_ours = before.source == Source::Config && !before.retired;
            if is_ours && !is_declared.contains(&*before.budget.id) {
                let mut ended = before.clone();
                ended.retired = true;
                wanted.push(ended);
            }
        }
        if wanted.is_empty() {
            return Ok(0);
        }
        wanted.sort_unstable_by(|a, b| a.budget.id.cmp(&b.budget.id));
        let mut edit = Edit::begin(self, change).await.map_err(written)?;
        for stored in &wanted {
            put(&mut edit, stored, by_id.get(&*stored.budget.id).copied())
                .await
                .map_err(written)?;
        }
        edit.commit().await.map_err(written)
    }

    /// # Errors
    /// There is one already, or its account does not exist.
    pub(crate) async fn create_budget(
        &self,
        budget: &Budget,
        change: Change<'_>,
    ) -> Result<StoredBudget, EditError> {
        let mut edit = Edit::begin(self, change).await?;
        must_exist(&mut edit, &budget.account).await?;
        let before = locked(&mut edit, &budget.id).await?;
        if before.as_ref().is_some_and(|before| !before.retired) {
            return Err(EditError::Exists(format!("a budget `{}`", budget.id)));
        }
        let after = StoredBudget {
            budget: budget.clone(),
            source: Source::Api,
            retired: false,
        };
        put(&mut edit, &after, before.as_ref()).await?;
        edit.commit().await?;
        Ok(after)
    }

    /// # Errors
    /// There is none, or a configuration has the last word on it. An increase can be given to any.
    pub(crate) async fn change_budget(
        &self,
        id: &str,
        wanted: BudgetChange,
        change: Change<'_>,
    ) -> Result<StoredBudget, EditError> {
        let mut edit = Edit::begin(self, change).await?;
        let before = locked(&mut edit, id).await?.filter(|before| !before.retired);
        let before = before.ok_or_else(|| missing(id))?;
        if before.source == Source::Config && (wanted.limit.is_some() || wanted.thresholds.is_some()) {
            return Err(EditError::Configured(format!("the budget `{id}`")));
        }
        let mut after = before.clone();
        let spec = &mut after.budget.spec;
        spec.limit = wanted.limit.unwrap_or(spec.limit);
        spec.increase = wanted.increase.unwrap_or(spec.increase);
        if let Some(thresholds) = wanted.thresholds {
            spec.thresholds = thresholds;
        }
        if after != before {
            put(&mut edit, &after, Some(&before)).await?;
        }
        edit.commit().await?;
        Ok(after)
    }

    /// Ends a budget: nothing is held against it any more. What was spent stays in its rows.
    ///
    /// # Errors
    /// There is none, or a configuration has the last word on it.
    pub(crate) async fn retire_budget(&self, id: &str, change: Change<'_>) -> Result<(), EditError> {
        let mut edit = Edit::begin(self, change).await?;
        let before = locked(&mut edit, id).await?.filter(|before| !before.retired);
        let before = before.ok_or_else(|| missing(id))?;
        if before.source == Source::Config {
            return Err(EditError::Configured(format!("the budget `{id}`")));
        }
        let mut after = before.clone();
        after.retired = true;
        put(&mut edit, &after, Some(&before)).await?;
        edit.commit().await?;
        Ok(())
    }
}

async fn locked(edit: &mut Edit<'_>, id: &str) -> sqlx::Result<Option<StoredBudget>> {
    let rows = edit.transaction.fetch(&LOCK_BUDGET, &[Value::Text(id)]).await?;
    rows.first().map(budget).transpose()
}

/// Writes a budget that differs from what was before.
async fn put(edit: &mut Edit<'_>, after: &StoredBudget, before: Option<&StoredBudget>) -> sqlx::Result<()> {
    let (budget, spec) = (&after.budget, &after.budget.spec);
    let [org, team, workflow, key] = levels(Some(&budget.account));
    let thresholds = serde_json::json!(spec.thresholds).to_string();
    let scope = serde_json::json!(spec.scope).to_string();
    let (amount, increase) = (
        Value::Int(spec.limit.nanos()),
        Value::Int(spec.increase.amount.nanos()),
    );
    let until = Value::Int(spec.increase.until_us);
    let values = [
        Value::Text(&budget.id),
        Value::Text(org),
        Value::Text(team),
        Value::Text(workflow),
        Value::Text(key),
        amount,
        Value::Text(spec.period.as_str()),
        Value::Text(spec.zone.name()),
        Value::Text(enforcement(spec.enforcement)),
        Value::Text(&thresholds),
        Value::Text(&scope),
        increase,
        until,
        Value::Text(after.source.as_str()),
        Value::Bool(after.retired),
        Value::Int(edit.change.at_us),
        Value::Int(edit.version),
    ];
    edit.transaction.execute(&PUT_BUDGET, &values).await?;
    if before.is_some_and(|before| before.retired) && !after.retired {
        let id = [Value::Text(&budget.id)];
        edit.transaction.execute(&FORGET_WINDOWS, &id).await?;
    }
    let values = [Value::Text(&budget.id), amount, increase, until];
    edit.transaction.execute(&SET_WINDOWS, &values).await?;
    let told = |stored: &StoredBudget| (!stored.retired).then(|| shown(&stored.budget));
    let (before, shown) = (before.and_then(told), told(after));
    edit.note(
        (&format!("budget {}", budget.id), &budget.account.to_string()),
        (before.as_deref(), shown.as_deref()),
    )
    .await
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

fn budget(row: &Row) -> sqlx::Result<StoredBudget> {
    let text = |at| row.text(at);
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
    let budget = Budget {
        id: text(0)?.into(),
        account: path(row, 1, 4)?,
        spec,
    };
    Ok(StoredBudget {
        budget,
        source: Source::read(row, 13)?,
        retired: row.flag(14)?,
    })
}
