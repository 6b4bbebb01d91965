//! Organisations, teams and workflows.

use super::edit::{Change, Edit, EditError, Source};
use super::sql::{Row, Sql, Value};
use super::{Store, StoreError, unread, written};
use crate::rates::{Rates, RatesChange};
use exchange::AccountPath;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};

/// An organisation, a team or a workflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Without a key.
    pub path: AccountPath,
    /// For people.
    pub title: String,
    /// No key under it is accepted.
    pub disabled: bool,
    pub rates: Rates,
    pub source: Source,
    /// Microseconds since the epoch.
    pub created_us: i64,
}

/// What to change of an account; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub struct AccountChange {
    pub title: Option<String>,
    pub disabled: Option<bool>,
    pub rates: RatesChange,
}

/// A part of the tree: an account and all below it, or everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subtree(Option<AccountPath>);

impl Subtree {
    pub const fn everything() -> Self {
        Self(None)
    }

    pub const fn of(root: AccountPath) -> Self {
        Self(Some(root))
    }

    pub const fn root(&self) -> Option<&AccountPath> {
        self.0.as_ref()
    }

    pub fn holds(&self, path: &AccountPath) -> bool {
        self.0.as_ref().is_none_or(|root| {
            let fits = |root: &Option<Arc<str>>, own: &Option<Arc<str>>| root.is_none() || root == own;
            root.org == path.org
                && fits(&root.team, &path.team)
                && fits(&root.workflow, &path.workflow)
                && fits(&root.key, &path.key)
        })
    }

    /// As the audit trail names it.
    pub(crate) fn shown(&self) -> String {
        self.0.as_ref().map(AccountPath::to_string).unwrap_or_default()
    }
}

/// The levels of a path as columns: an absent one is the empty text.
pub(super) fn levels(path: Option<&AccountPath>) -> [&str; 4] {
    path.map_or([""; 4], |path| {
        [
            &path.org,
            path.team.as_deref().unwrap_or(""),
            path.workflow.as_deref().unwrap_or(""),
            path.key.as_deref().unwrap_or(""),
        ]
    })
}

/// A path from four columns, of which the last may be missing.
pub(super) fn path(row: &Row, first: usize, columns: usize) -> sqlx::Result<AccountPath> {
    let part = |at: usize| -> sqlx::Result<Option<Arc<str>>> {
        if at >= columns {
            return Ok(None);
        }
        let text = row.text(first + at)?;
        Ok((!text.is_empty()).then(|| text.into()))
    };
    Ok(AccountPath {
        org: row.text(first)?.into(),
        team: part(1)?,
        workflow: part(2)?,
        key: part(3)?,
    })
}

const COLUMNS: &str = "org, team, workflow, title, disabled, source, created_us, requests_per_minute, tokens_per_minute, \
                       concurrency";

static LOCK: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(&format!(
        "SELECT {COLUMNS} FROM accounts WHERE org = $1 AND team = $2 AND workflow = $3 {{lock}}"
    ))
});
static CHANGED: LazyLock<Sql> =
    LazyLock::new(|| Sql::new(&format!("SELECT {COLUMNS} FROM accounts WHERE version > $1")));
static PAGE: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(&format!(
        "SELECT {COLUMNS} FROM accounts WHERE ($1 = '' OR org = $1) AND ($2 = '' OR team = $2) AND ($3 = '' OR workflow = $3) \
         AND (org, team, workflow) > ($4, $5, $6) ORDER BY org, team, workflow LIMIT $7"
    ))
});
static PUT: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(&format!(
        "INSERT INTO accounts ({COLUMNS}, version) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
         ON CONFLICT (org, team, workflow) DO UPDATE SET title = excluded.title, disabled = excluded.disabled, \
         source = excluded.source, requests_per_minute = excluded.requests_per_minute, \
         tokens_per_minute = excluded.tokens_per_minute, concurrency = excluded.concurrency, version = excluded.version"
    ))
});

fn account(row: &Row) -> sqlx::Result<Account> {
    Ok(Account {
        path: path(row, 0, 3)?,
        title: row.text(3)?,
        disabled: row.flag(4)?,
        source: Source::read(row, 5)?,
        created_us: row.int(6)?,
        rates: rates(row, 7)?,
    })
}

/// Limits from three columns; 0 stands for none.
pub(super) fn rates(row: &Row, first: usize) -> sqlx::Result<Rates> {
    let limit = |at: usize| -> sqlx::Result<Option<u32>> {
        let stored = u32::try_from(row.int(first + at)?).unwrap_or(u32::MAX);
        Ok((stored > 0).then_some(stored))
    };
    Ok(Rates {
        requests_per_minute: limit(0)?,
        tokens_per_minute: limit(1)?,
        concurrency: limit(2)?,
    })
}

/// Limits as three columns.
pub(super) fn rate_values(rates: Rates) -> [Value<'static>; 3] {
    [
        rates.requests_per_minute,
        rates.tokens_per_minute,
        rates.concurrency,
    ]
    .map(|limit| Value::Int(limit.unwrap_or(0).into()))
}

fn shown(account: &Account) -> String {
    serde_json::json!({
        "title": account.title,
        "disabled": account.disabled,
        "source": account.source.as_str(),
        "rate_limits": account.rates.shown(),
    })
    .to_string()
}

/// The account without its key.
fn above_key(path: &AccountPath) -> AccountPath {
    AccountPath {
        key: None,
        ..path.clone()
    }
}

/// # Errors
/// The account that the path is on does not exist.
pub(super) async fn must_exist(edit: &mut Edit<'_>, path: &AccountPath) -> Result<Account, EditError> {
    let [org, team, workflow, _] = levels(Some(path));
    let values = [Value::Text(org), Value::Text(team), Value::Text(workflow)];
    let rows = edit.transaction.fetch(&LOCK, &values).await?;
    let missing = || EditError::Missing(format!("account {}", above_key(path)));
    Ok(account(rows.first().ok_or_else(missing)?)?)
}

async fn put(edit: &mut Edit<'_>, account: &Account, before: Option<&Account>) -> sqlx::Result<()> {
    let [org, team, workflow, _] = levels(Some(&account.path));
    let [requests, tokens, concurrency] = rate_values(account.rates);
    let values = [
        Value::Text(org),
        Value::Text(team),
        Value::Text(workflow),
        Value::Text(&account.title),
        Value::Bool(account.disabled),
        Value::Text(account.source.as_str()),
        Value::Int(account.created_us),
        requests,
        tokens,
        concurrency,
        Value::Int(edit.version),
    ];
    edit.transaction.execute(&PUT, &values).await?;
    let path = account.path.to_string();
    let (before, after) = (before.map(shown), shown(account));
    edit.note(
        (&format!("account {path}"), &path),
        (before.as_deref(), Some(&after)),
    )
    .await
}

impl Store {
    /// Accounts that a configuration declares. One that it no longer does stays, as if made by the admin API: keys and
    /// budgets may hang on it.
    pub(crate) async fn declare_accounts(
        &self,
        declared: &[AccountPath],
        change: Change<'_>,
    ) -> Result<(), StoreError> {
        let rows = self
            .pool
            .fetch(&CHANGED, &[Value::Int(-1)])
            .await
            .map_err(unread)?;
        let known: Vec<Account> = rows
            .iter()
            .map(account)
            .collect::<sqlx::Result<_>>()
            .map_err(unread)?;
        let by_path: HashMap<&AccountPath, &Account> =
            known.iter().map(|known| (&known.path, known)).collect();
        let is_declared: HashSet<&AccountPath> = declared.iter().collect();
        let mut wanted: Vec<(Account, Option<&Account>)> = Vec::new();
        for path in declared {
            let before = by_path.get(path).copied();
            if before.is_none_or(|before| before.source != Source::Config) {
                let fresh = Account {
                    path: path.clone(),
                    title: String::new(),
                    disabled: false,
                    rates: Rates::default(),
                    source: Source::Config,
                    created_us: change.at_us,
                };
                let account = before.map_or(fresh, |before| Account {
                    source: Source::Config,
                    ..before.clone()
                });
                wanted.push((account, before));
            }
        }
        for before in known.iter().filter(|known| known.source == Source::Config) {
            if !is_declared.contains(&before.path) {
                let account = Account {
                    source: Source::Api,
                    ..before.clone()
                };
                wanted.push((account, Some(before)));
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let mut edit = Edit::begin(self, change).await.map_err(written)?;
        for (account, before) in &wanted {
            put(&mut edit, account, *before).await.map_err(written)?;
        }
        edit.commit().await.map_err(written)?;
        Ok(())
    }

    /// Accounts whose version is above this one.
    pub(crate) async fn accounts_since(&self, version: i64) -> Result<Vec<Account>, StoreError> {
        let rows = self.pool.fetch(&CHANGED, &[Value::Int(version)]).await;
        let rows = rows.map_err(unread)?;
        rows.iter()
            .map(account)
            .collect::<sqlx::Result<_>>()
            .map_err(unread)
    }

    pub(crate) async fn accounts(
        &self,
        within: &Subtree,
        after: Option<&AccountPath>,
        limit: i64,
    ) -> Result<Vec<Account>, StoreError> {
        let ([a, b, c, _], [d, e, f, _]) = (levels(within.root()), levels(after));
        let values = [
            Value::Text(a),
            Value::Text(b),
            Value::Text(c),
            Value::Text(d),
            Value::Text(e),
            Value::Text(f),
            Value::Int(limit),
        ];
        let rows = self.pool.fetch(&PAGE, &values).await.map_err(unread)?;
        rows.iter()
            .map(account)
            .collect::<sqlx::Result<_>>()
            .map_err(unread)
    }

    pub(crate) async fn account(&self, path: &AccountPath) -> Result<Account, EditError> {
        // An account sorts before what is below it.
        let found = self.accounts(&Subtree::of(path.clone()), None, 1).await?;
        let found = found.into_iter().find(|found| found.path == *path);
        found.ok_or_else(|| EditError::Missing(format!("account {path}")))
    }

    /// # Errors
    /// It is there already, or the account above it is not.
    pub(crate) async fn create_account(
        &self,
        (path, title, rates): (&AccountPath, &str, Rates),
        change: Change<'_>,
    ) -> Result<Account, EditError> {
        let mut edit = Edit::begin(self, change).await?;
        match must_exist(&mut edit, path).await {
            Err(EditError::Missing(_)) => {}
            Err(other) => return Err(other),
            Ok(_) => return Err(EditError::Exists(format!("an account {path}"))),
        }
        if let Some(above) = path.ancestry().iter().rev().nth(1) {
            must_exist(&mut edit, above).await?;
        }
        let account = Account {
            path: path.clone(),
            title: title.to_owned(),
            disabled: false,
            rates,
            source: Source::Api,
            created_us: change.at_us,
        };
        put(&mut edit, &account, None).await?;
        edit.commit().await?;
        Ok(account)
    }

    /// # Errors
    /// It is not there.
    pub(crate) async fn change_account(
        &self,
        path: &AccountPath,
        wanted: AccountChange,
        change: Change<'_>,
    ) -> Result<Account, EditError> {
        let mut edit = Edit::begin(self, change).await?;
        let before = must_exist(&mut edit, path).await?;
        let mut after = before.clone();
        after.title = wanted.title.unwrap_or(after.title);
        after.disabled = wanted.disabled.unwrap_or(after.disabled);
        after.rates = after.rates.changed(wanted.rates);
        if after != before {
            put(&mut edit, &after, Some(&before)).await?;
        }
        edit.commit().await?;
        Ok(after)
    }
}
