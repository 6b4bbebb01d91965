//! Slices of budgets: taken with one conditional statement, given back, written off with a node that is gone.
//!
//! A lease has `taken` (all it was ever granted, less what it gave back) and `used` (what its node has posted); what is
//! left of it is the difference, and a window's `leased` is the sum of what is left. Only its own node changes `taken`
//! while it lives, so the node's memory can be set from the answer of any call that succeeds, whatever became of calls
//! whose answers were lost.
//!
//! A node that is silent for long may be dead or cut off, and what it spent since is in its journal alone. Its leases are
//! therefore written off, not given out: what was left counts as spent until the node comes back with its journal, has
//! posted what it really spent, and is given the difference.

use super::sql::{Row, Sql, Transaction, Value};
use super::{Store, StoreError, unread, written};
use crate::budget::{Budget, Target};
use crate::settlement::CellName;
use exchange::{BackendClass, Money};
use std::sync::{Arc, LazyLock};

/// What a node wants of one budget window.
#[derive(Clone, Debug)]
pub(crate) struct LeaseAsk {
    pub(crate) cell: CellName,
    pub(crate) give_back: Money,
    pub(crate) want: Money,
    /// Less than this would be of no use: then nothing is taken.
    pub(crate) least: Money,
}

/// What came of it, and how the window stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeaseState {
    pub(crate) cell: CellName,
    pub(crate) taken: Money,
    pub(crate) used: Money,
    pub(crate) limit: Money,
    /// By everyone.
    pub(crate) spent: Money,
    /// With everyone.
    pub(crate) leased: Money,
}

/// For so long after it was asked for in vain the others keep no more of a window than they need.
const NEEDED_US: i64 = 3_000_000;

const LIMIT: &str = "amount + CASE WHEN {now} < increase_until_us THEN increase ELSE 0 END";

static LOCK_NODE: LazyLock<Sql> =
    LazyLock::new(|| Sql::new("SELECT lapsed FROM nodes WHERE node = $1 {lock}"));
static LOCK_LEASE: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new("SELECT taken, used FROM leases WHERE node = $1 AND budget = $2 AND starts_us = $3 {lock}")
});
/// The slice is at most its share of what is free, so that slices shrink as the limit nears; but never less than what is
/// asked for at least, if that is there.
static TAKE: LazyLock<Sql> = LazyLock::new(|| {
    let free = format!("({LIMIT} - spent - leased + $3)");
    let grant = format!(
        "CASE WHEN $4 = 0 OR {free} < $5 THEN 0 ELSE {{max}}({{min}}($4, {{max}}($5, {free} / $6)), 0) END"
    );
    Sql::new(&format!(
        "UPDATE budget_windows SET leased = leased - $3 + {grant}, last_grant = {grant}, \
         needed_us = CASE WHEN $5 > 0 AND {grant} = 0 AND leased > $3 THEN {{now}} ELSE needed_us END \
         WHERE budget = $1 AND starts_us = $2 RETURNING last_grant, {LIMIT}, spent, leased"
    ))
});
static SET_TAKEN: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "INSERT INTO leases (node, budget, starts_us, taken, used, written_off) VALUES ($1, $2, $3, $4, 0, 0) \
         ON CONFLICT (node, budget, starts_us) DO UPDATE SET taken = excluded.taken",
    )
});
pub(super) static BEGIN_WINDOW: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "INSERT INTO budget_windows SELECT id, $2, $3, amount, increase, increase_until_us, $4, 0, 0, 0 FROM budgets WHERE id = $1 \
         ON CONFLICT DO NOTHING",
    )
});
/// By the hour, the first one whole.
static SPENT_BEFORE: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "SELECT model, class, CAST(sum(charge) AS BIGINT) FROM hourly WHERE hour_us > $1 - 3600000000 AND hour_us < $2 AND org = $3 \
         AND ($4 = '' OR team = $4) AND ($5 = '' OR workflow = $5) AND ($6 = '' OR key = $6) AND charge > 0 GROUP BY model, class",
    )
});
static BEAT: LazyLock<Sql> =
    LazyLock::new(|| Sql::new("UPDATE nodes SET heartbeat_us = {now} WHERE node = $1 RETURNING lapsed"));
static LIVE: LazyLock<Sql> =
    LazyLock::new(|| Sql::new("SELECT count(*) FROM nodes WHERE NOT lapsed AND heartbeat_us > {now} - $1"));
static REGISTER: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "INSERT INTO nodes (node, started_us, heartbeat_us, lapsed) VALUES ($1, {now}, {now}, $2) \
         ON CONFLICT (node) DO UPDATE SET started_us = {now}, heartbeat_us = {now}",
    )
});
static WAS_LAPSED: LazyLock<Sql> = LazyLock::new(|| Sql::new("SELECT lapsed FROM nodes WHERE node = $1"));
static REVIVE: LazyLock<Sql> =
    LazyLock::new(|| Sql::new("UPDATE nodes SET lapsed = $2, heartbeat_us = {now} WHERE node = $1"));
static LEAVE: LazyLock<Sql> = LazyLock::new(|| Sql::new("UPDATE nodes SET heartbeat_us = 0 WHERE node = $1"));
static LAPSE: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "UPDATE nodes SET lapsed = $3 WHERE NOT lapsed AND heartbeat_us > 0 AND heartbeat_us < {now} - $1 AND node <> $2 RETURNING node",
    )
});
static LEASES_OF: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "SELECT budget, starts_us, taken, used, written_off FROM leases WHERE node = $1 ORDER BY budget, starts_us {lock}",
    )
});
static WRITE_OFF: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "UPDATE leases SET written_off = written_off + $4, taken = 0, used = 0 WHERE node = $1 AND budget = $2 AND starts_us = $3",
    )
});
static NEEDED: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "SELECT budget, starts_us FROM budget_windows WHERE needed_us > 0 AND needed_us > (SELECT {now} - $1)",
    )
});
static MOVE: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "UPDATE budget_windows SET spent = spent + $3, leased = leased - $4 WHERE budget = $1 AND starts_us = $2",
    )
});
static END_LEASES: LazyLock<Sql> = LazyLock::new(|| Sql::new("DELETE FROM leases WHERE node = $1"));

/// What a node still has of a window.
struct Held {
    budget: String,
    starts_us: i64,
    left: i64,
    written_off: i64,
}

impl Store {
    /// Gives back and takes, all in one transaction. Windows that nobody has used yet are begun. `nodes`: how many share
    /// what is free. Asks must be in order of their cells.
    pub(crate) async fn lease(
        &self,
        asks: &[LeaseAsk],
        budget_of: impl Fn(&str) -> Option<Arc<Budget>>,
        nodes: u32,
    ) -> Result<Vec<LeaseState>, StoreError> {
        debug_assert!(asks.is_sorted_by(|a, b| a.cell <= b.cell));
        let divisor = if self.is_exclusive() {
            1
        } else {
            2 * i64::from(nodes.max(1))
        };
        let mut transaction = self.pool.begin().await.map_err(written)?;
        // One that has been given up must hear of it first: what it takes now would not be written off.
        let rows = transaction.fetch(&LOCK_NODE, &[Value::Text(&self.node)]).await;
        if let Some(row) = rows.map_err(unread)?.first()
            && row.flag(0).map_err(unread)?
        {
            return Err(StoreError::GivenUp);
        }
        let mut states = Vec::with_capacity(asks.len());
        for ask in asks {
            let state = self.lease_one(&mut transaction, ask, (&budget_of, divisor)).await;
            states.extend(state.map_err(written)?);
        }
        transaction.commit().await.map_err(StoreError::Unsure)?;
        Ok(states)
    }

    async fn lease_one(
        &self,
        transaction: &mut Transaction,
        ask: &LeaseAsk,
        (budget_of, divisor): (&impl Fn(&str) -> Option<Arc<Budget>>, i64),
    ) -> sqlx::Result<Option<LeaseState>> {
        let CellName { budget, window } = &ask.cell;
        let name = [
            Value::Text(&self.node),
            Value::Text(budget),
            Value::Int(window.starts_us),
        ];
        let row = transaction.fetch(&LOCK_LEASE, &name).await?;
        let (taken, used) = match row.first() {
            Some(row) => (row.int(0)?, row.int(1)?),
            None => (0, 0),
        };
        // What was used beyond the lease has been posted as spent: it is not to be covered again.
        let had = taken.max(used);
        let back = ask.give_back.nanos().min(had - used).max(0);
        let values = [
            name[1],
            name[2],
            Value::Int(back),
            Value::Int(ask.want.nanos().max(ask.least.nanos())),
            Value::Int(ask.least.nanos()),
            Value::Int(divisor),
        ];
        let mut rows = transaction.fetch(&TAKE, &values).await?;
        if rows.is_empty() {
            let Some(definition) = budget_of(budget) else {
                return Ok(None);
            };
            self.begin_window(transaction, &definition, &ask.cell).await?;
            rows = transaction.fetch(&TAKE, &values).await?;
        }
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let after = had - back + row.int(0)?;
        if after != taken {
            let values = [name[0], name[1], name[2], Value::Int(after)];
            transaction.execute(&SET_TAKEN, &values).await?;
        }
        let money = |at| row.int(at).map(Money::from_nanos);
        Ok(Some(LeaseState {
            cell: ask.cell.clone(),
            taken: Money::from_nanos(after),
            used: Money::from_nanos(used),
            limit: money(1)?,
            spent: money(2)?,
            leased: money(3)?,
        }))
    }

    /// A budget that is made in the middle of a window begins with what was spent in it before. Labels are not kept by
    /// the hour: a budget for some of them begins at nothing.
    async fn begin_window(
        &self,
        transaction: &mut Transaction,
        budget: &Budget,
        cell: &CellName,
    ) -> sqlx::Result<()> {
        let part = |part: &Option<Arc<str>>| part.clone().unwrap_or_default();
        let account = &budget.account;
        let (team, workflow, key) = (part(&account.team), part(&account.workflow), part(&account.key));
        let (starts, ends) = (Value::Int(cell.window.starts_us), Value::Int(cell.window.ends_us));
        let path = [
            Value::Text(&account.org),
            Value::Text(&team),
            Value::Text(&workflow),
            Value::Text(&key),
        ];
        let values = [starts, ends, path[0], path[1], path[2], path[3]];
        let mut spent = 0i64;
        if budget.spec.scope.tags.is_empty() {
            for row in transaction.fetch(&SPENT_BEFORE, &values).await? {
                let model = row.text(0)?;
                let class = row.text(1)?.parse().unwrap_or(BackendClass::Frontier);
                let target = Target {
                    model: &model,
                    model_asked: "",
                    class,
                };
                if budget.spec.scope.matches_target(target) {
                    spent = spent.saturating_add(row.int(2)?);
                }
            }
        }
        let values = [Value::Text(&budget.id), starts, ends, Value::Int(spent)];
        transaction.execute(&BEGIN_WINDOW, &values).await?;
        Ok(())
    }

    /// Makes this node known; true if it had been given up since it was last heard of.
    pub(crate) async fn register(&self) -> Result<bool, StoreError> {
        let node = Value::Text(&self.node);
        let lapsed = self.pool.fetch(&WAS_LAPSED, &[node]).await.map_err(unread)?;
        self.pool
            .fetch(&REGISTER, &[node, Value::Bool(false)])
            .await
            .map_err(written)?;
        lapsed
            .first()
            .map_or(Ok(false), |row| row.flag(0))
            .map_err(unread)
    }

    /// Returns how many nodes are alive, and whether this one has been given up meanwhile.
    pub(crate) async fn beat(&self, silent_us: i64) -> Result<(u32, bool), StoreError> {
        let node = Value::Text(&self.node);
        let row = self.pool.fetch(&BEAT, &[node]).await.map_err(written)?;
        let live = self
            .pool
            .fetch(&LIVE, &[Value::Int(silent_us)])
            .await
            .map_err(unread)?;
        let live = live.first().map_or(Ok(1), |row| row.int(0)).map_err(unread)?;
        let lapsed = row.first().map_or(Ok(false), |row| row.flag(0)).map_err(unread)?;
        Ok((u32::try_from(live).unwrap_or(1).max(1), lapsed))
    }

    /// The windows of which some node was lately refused what others hold.
    pub(crate) async fn needed(&self) -> Result<Vec<(String, i64)>, StoreError> {
        let rows = self
            .pool
            .fetch(&NEEDED, &[Value::Int(NEEDED_US)])
            .await
            .map_err(unread)?;
        let cell = |row: &Row| Ok((row.text(0)?, row.int(1)?));
        rows.iter().map(cell).collect::<sqlx::Result<_>>().map_err(unread)
    }

    /// This node lives after all: it takes new leases from here on.
    pub(crate) async fn revive(&self) -> Result<(), StoreError> {
        let values = [Value::Text(&self.node), Value::Bool(false)];
        self.pool.fetch(&REVIVE, &values).await.map(drop).map_err(written)
    }

    /// Writes off the leases of nodes that have been silent for so long; returns their names.
    pub(crate) async fn lapse(&self, silent_us: i64) -> Result<Vec<String>, StoreError> {
        let mut transaction = self.pool.begin().await.map_err(written)?;
        let values = [Value::Int(silent_us), Value::Text(&self.node), Value::Bool(true)];
        let mut names = Vec::new();
        for row in transaction.fetch(&LAPSE, &values).await.map_err(written)? {
            names.push(row.text(0).map_err(unread)?);
        }
        for node in &names {
            for held in leases_of(&mut transaction, node).await.map_err(written)? {
                let cell = [Value::Text(&held.budget), Value::Int(held.starts_us)];
                let left = Value::Int(held.left);
                let off = [Value::Text(node), cell[0], cell[1], left];
                transaction.execute(&WRITE_OFF, &off).await.map_err(written)?;
                let moved = [cell[0], cell[1], left, left];
                transaction.execute(&MOVE, &moved).await.map_err(written)?;
            }
        }
        transaction.commit().await.map_err(written)?;
        Ok(names)
    }

    /// Ends every lease of this node: what is left goes back, and so does what was written off and then not spent. Only
    /// to be called when everything that the node ever began is posted and nothing is running.
    pub(crate) async fn release(&self) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await.map_err(written)?;
        for held in leases_of(&mut transaction, &self.node).await.map_err(written)? {
            let values = [
                Value::Text(&held.budget),
                Value::Int(held.starts_us),
                Value::Int(-held.written_off),
                Value::Int(held.left),
            ];
            transaction.execute(&MOVE, &values).await.map_err(written)?;
        }
        let node = [Value::Text(&self.node)];
        transaction.execute(&END_LEASES, &node).await.map_err(written)?;
        transaction.execute(&LEAVE, &node).await.map_err(written)?;
        transaction.commit().await.map_err(written)
    }
}

async fn leases_of(transaction: &mut Transaction, node: &str) -> sqlx::Result<Vec<Held>> {
    let rows = transaction.fetch(&LEASES_OF, &[Value::Text(node)]).await?;
    let held = rows.iter().map(|row| {
        Ok(Held {
            budget: row.text(0)?,
            starts_us: row.int(1)?,
            left: (row.int(2)? - row.int(3)?).max(0),
            written_off: row.int(4)?,
        })
    });
    held.collect()
}
