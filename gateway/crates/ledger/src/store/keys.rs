//! Keys and their secrets.

use super::accounts::{Subtree, levels, must_exist, path, rate_values, rates};
use super::edit::{Change, Edit, EditError, Source};
use super::sql::{Row, Sql, Value};
use super::{Store, StoreError, unread, written};
use crate::keys::{KeySpec, Role, StoredKey, StoredSecret};
use crate::rates::{Rates, RatesChange};
use exchange::{BackendClass, Grants, KeyHash};
use ipnet::IpNet;
use serde::de::DeserializeOwned;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};

/// What to change of a key; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub struct KeyChange {
    pub models: Option<Vec<Box<str>>>,
    pub classes: Option<Vec<BackendClass>>,
    pub networks: Option<Vec<IpNet>>,
    /// `Some(None)`: never.
    pub expires_us: Option<Option<i64>>,
    pub disabled: Option<bool>,
    pub rates: RatesChange,
}

const COLUMNS: &str = "id, org, team, workflow, key, role, models, classes, networks, created_us, expires_us, disabled, revoked, \
                       source, requests_per_minute, tokens_per_minute, concurrency";

static CHANGED: LazyLock<Sql> =
    LazyLock::new(|| Sql::new(&format!("SELECT {COLUMNS} FROM keys WHERE version > $1")));
static CHANGED_SECRETS: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "SELECT s.hash, s.key, s.hint, s.created_us, s.expires_us FROM key_secrets s JOIN keys k ON k.id = s.key \
         WHERE k.version > $1 ORDER BY s.created_us DESC",
    )
});
static PAGE: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(&format!(
        "SELECT {COLUMNS} FROM keys WHERE ($1 = '' OR org = $1) AND ($2 = '' OR team = $2) AND ($3 = '' OR workflow = $3) \
         AND NOT revoked AND ($4 = '' OR id < $4) ORDER BY id DESC LIMIT $5"
    ))
});
static SECRETS: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "SELECT hash, key, hint, created_us, expires_us FROM key_secrets WHERE key = $1 ORDER BY created_us DESC",
    )
});
static LOCK: LazyLock<Sql> =
    LazyLock::new(|| Sql::new(&format!("SELECT {COLUMNS} FROM keys WHERE id = $1 {{lock}}")));
static TAKEN: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "SELECT id FROM keys WHERE org = $1 AND team = $2 AND workflow = $3 AND key = $4 AND NOT revoked",
    )
});
static PUT: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(&format!(
        "INSERT INTO keys ({COLUMNS}, version) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18) \
         ON CONFLICT (id) DO UPDATE SET org = excluded.org, team = excluded.team, workflow = excluded.workflow, \
         key = excluded.key, models = excluded.models, classes = excluded.classes, networks = excluded.networks, \
         expires_us = excluded.expires_us, disabled = excluded.disabled, revoked = excluded.revoked, \
         requests_per_minute = excluded.requests_per_minute, tokens_per_minute = excluded.tokens_per_minute, \
         concurrency = excluded.concurrency, \
         version = excluded.version"
    ))
});
static PUT_SECRET: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "INSERT INTO key_secrets (hash, key, hint, created_us, expires_us) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (hash) DO NOTHING",
    )
});
static END_SECRETS: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "UPDATE key_secrets SET expires_us = $2 WHERE key = $1 AND hash <> $3 AND (expires_us = 0 OR expires_us > $2)",
    )
});

/// Ended by rotation, with their key's term, or by its revocation (before that was dated: at once). A configuration's keys
/// are in its file, whatever is forgotten here.
pub(super) static PURGE_SECRETS: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "DELETE FROM key_secrets WHERE EXISTS (SELECT 1 FROM keys k WHERE k.id = key_secrets.key AND k.source = 'api' AND \
         (key_secrets.expires_us <> 0 AND key_secrets.expires_us < $1 OR k.expires_us <> 0 AND k.expires_us < $1 \
         OR k.revoked AND key_secrets.expires_us = 0))",
    )
});

/// 0 stands for never.
fn term(us: i64) -> Option<i64> {
    (us != 0).then_some(us)
}

fn list<T: DeserializeOwned>(row: &Row, at: usize) -> sqlx::Result<T> {
    serde_json::from_str(&row.text(at)?).map_err(|error| sqlx::Error::ColumnDecode {
        index: at.to_string(),
        source: error.into(),
    })
}

fn key(row: &Row) -> sqlx::Result<StoredKey> {
    let role = Role::parse(&row.text(5)?).ok_or_else(|| sqlx::Error::ColumnDecode {
        index: "5".into(),
        source: "not a role".into(),
    })?;
    Ok(StoredKey {
        id: row.text(0)?.into(),
        account: path(row, 1, 4)?,
        role,
        grants: Grants {
            models: list(row, 6)?,
            classes: list(row, 7)?,
        },
        networks: list(row, 8)?,
        created_us: row.int(9)?,
        expires_us: term(row.int(10)?),
        disabled: row.flag(11)?,
        revoked: row.flag(12)?,
        source: Source::read(row, 13)?,
        rates: rates(row, 14)?,
        secrets: Vec::new(),
    })
}

fn secret(row: &Row) -> sqlx::Result<StoredSecret> {
    let hash = KeyHash::from_hex(&row.text(0)?).ok_or_else(|| sqlx::Error::ColumnDecode {
        index: "0".into(),
        source: "not a hash".into(),
    })?;
    Ok(StoredSecret {
        hash,
        hint: row.text(2)?,
        created_us: row.int(3)?,
        expires_us: term(row.int(4)?),
    })
}

fn shown(key: &StoredKey) -> String {
    let hints: Vec<&str> = key.secrets.iter().map(|secret| &*secret.hint).collect();
    serde_json::json!({
        "account": key.account.to_string(),
        "role": key.role.as_str(),
        "models": key.grants.models,
        "classes": key.grants.classes,
        "networks": key.networks,
        "expires_us": key.expires_us,
        "disabled": key.disabled,
        "revoked": key.revoked,
        "rate_limits": key.rates.shown(),
        "secrets": hints,
    })
    .to_string()
}

fn missing(id: &str) -> EditError {
    EditError::Missing(format!("key {id}"))
}

async fn locked(edit: &mut Edit<'_>, id: &str) -> Result<StoredKey, EditError> {
    let rows = edit.transaction.fetch(&LOCK, &[Value::Text(id)]).await?;
    let mut found = key(rows.first().ok_or_else(|| missing(id))?)?;
    if found.source == Source::Config {
        return Err(EditError::Configured(format!("the key {}", found.account)));
    }
    if found.revoked {
        return Err(EditError::Ended(format!(
            "the key {} has been revoked",
            found.account
        )));
    }
    let rows = edit.transaction.fetch(&SECRETS, &[Value::Text(id)]).await?;
    found.secrets = rows.iter().map(secret).collect::<sqlx::Result<_>>()?;
    Ok(found)
}

/// Writes a key, and the secrets that are not yet there.
async fn put(edit: &mut Edit<'_>, after: &StoredKey, before: Option<&StoredKey>) -> sqlx::Result<()> {
    let [org, team, workflow, name] = levels(Some(&after.account));
    let [requests, tokens, concurrency] = rate_values(after.rates);
    let json = |value: serde_json::Value| value.to_string();
    let models = json(serde_json::json!(after.grants.models));
    let classes = json(serde_json::json!(after.grants.classes));
    let networks = json(serde_json::json!(after.networks));
    let values = [
        Value::Text(&after.id),
        Value::Text(org),
        Value::Text(team),
        Value::Text(workflow),
        Value::Text(name),
        Value::Text(after.role.as_str()),
        Value::Text(&models),
        Value::Text(&classes),
        Value::Text(&networks),
        Value::Int(after.created_us),
        Value::Int(after.expires_us.unwrap_or(0)),
        Value::Bool(after.disabled),
        Value::Bool(after.revoked),
        Value::Text(after.source.as_str()),
        requests,
        tokens,
        concurrency,
        Value::Int(edit.version),
    ];
    edit.transaction.execute(&PUT, &values).await?;
    for secret in &after.secrets {
        let hash = secret.hash.to_hex();
        let values = [
            Value::Text(&hash),
            Value::Text(&after.id),
            Value::Text(&secret.hint),
            Value::Int(secret.created_us),
            Value::Int(secret.expires_us.unwrap_or(0)),
        ];
        edit.transaction.execute(&PUT_SECRET, &values).await?;
    }
    let (before, shown) = (before.map(shown), shown(after));
    let subject = format!("key {} {}", after.id, after.account);
    let account = if after.account.org.is_empty() {
        String::new()
    } else {
        after.account.to_string()
    };
    edit.note((&subject, &account), (before.as_deref(), Some(&shown)))
        .await
}

/// A configuration's key as it is shown beside the others.
fn declared(key: &KeySpec, at_us: i64) -> StoredKey {
    let hash = key.hash.to_hex();
    StoredKey {
        id: format!("config-{}", &hash[..24]).into(),
        account: key.account.clone(),
        role: Role::Caller,
        grants: key.grants.clone(),
        networks: key.networks.clone(),
        created_us: at_us,
        expires_us: None,
        disabled: key.disabled,
        rates: Rates::default(),
        revoked: false,
        source: Source::Config,
        secrets: vec![StoredSecret {
            hash: key.hash,
            hint: format!("sha256:{}…", &hash[..8]),
            created_us: at_us,
            expires_us: None,
        }],
    }
}

impl Store {
    /// Shows a configuration's keys beside the others; those that it no longer has are revoked.
    pub(crate) async fn declare_keys(&self, keys: &[KeySpec], change: Change<'_>) -> Result<(), StoreError> {
        let stored = self.keys_since(-1).await?;
        let ours = stored.iter().filter(|key| key.source == Source::Config);
        let by_id: HashMap<&str, &StoredKey> = ours.map(|key| (&*key.id, key)).collect();
        let mut declared_ids = HashSet::new();
        let mut wanted: Vec<(StoredKey, Option<&StoredKey>)> = Vec::new();
        for spec in keys {
            let mut after = declared(spec, change.at_us);
            let before = by_id.get(&*after.id).copied();
            if let Some(before) = before {
                after.created_us = before.created_us;
                after.secrets.clone_from(&before.secrets);
            }
            declared_ids.insert(after.id.clone());
            if before != Some(&after) {
                wanted.push((after, before));
            }
        }
        for before in by_id.values() {
            if !before.revoked && !declared_ids.contains(&before.id) {
                let mut after = (*before).clone();
                after.revoked = true;
                wanted.push((after, Some(before)));
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let mut edit = Edit::begin(self, change).await.map_err(written)?;
        for (after, before) in &wanted {
            put(&mut edit, after, *before).await.map_err(written)?;
        }
        edit.commit().await.map_err(written)?;
        Ok(())
    }

    /// Keys whose version is above this one, revoked ones too, with all their secrets.
    pub(crate) async fn keys_since(&self, version: i64) -> Result<Vec<StoredKey>, StoreError> {
        let since = [Value::Int(version)];
        // The secrets last: one that is not there yet would leave its key without it until the key changes again.
        let rows = self.pool.fetch(&CHANGED, &since).await.map_err(unread)?;
        let secrets = self.pool.fetch(&CHANGED_SECRETS, &since).await.map_err(unread)?;
        let mut keys: Vec<StoredKey> = rows
            .iter()
            .map(key)
            .collect::<sqlx::Result<_>>()
            .map_err(unread)?;
        let at: HashMap<Arc<str>, usize> = keys.iter().map(|key| key.id.clone()).zip(0..).collect();
        for row in &secrets {
            let owner = row.text(1).map_err(unread)?;
            if let Some(at) = at.get(owner.as_str()) {
                keys[*at].secrets.push(secret(row).map_err(unread)?);
            }
        }
        Ok(keys)
    }

    /// Keys that are not revoked, the latest first, those before `before` (empty: from the first on).
    pub(crate) async fn keys(
        &self,
        within: &Subtree,
        before: &str,
        limit: i64,
    ) -> Result<Vec<StoredKey>, StoreError> {
        let [org, team, workflow, _] = levels(within.root());
        let values = [
            Value::Text(org),
            Value::Text(team),
            Value::Text(workflow),
            Value::Text(before),
            Value::Int(limit),
        ];
        let rows = self.pool.fetch(&PAGE, &values).await.map_err(unread)?;
        let mut keys: Vec<StoredKey> = rows
            .iter()
            .map(key)
            .collect::<sqlx::Result<_>>()
            .map_err(unread)?;
        for key in &mut keys {
            key.secrets = self.secrets(&key.id).await?;
        }
        Ok(keys)
    }

    async fn secrets(&self, id: &str) -> Result<Vec<StoredSecret>, StoreError> {
        let rows = self
            .pool
            .fetch(&SECRETS, &[Value::Text(id)])
            .await
            .map_err(unread)?;
        rows.iter()
            .map(secret)
            .collect::<sqlx::Result<_>>()
            .map_err(unread)
    }

    pub(crate) async fn key(&self, id: &str) -> Result<StoredKey, EditError> {
        let rows = self.pool.fetch(&LOCK, &[Value::Text(id)]).await.map_err(unread)?;
        let found = rows.first().map(key).transpose().map_err(unread)?;
        let mut found = found.ok_or_else(|| missing(id))?;
        found.secrets = self.secrets(id).await?;
        Ok(found)
    }

    /// # Errors
    /// Its name is taken, or its account does not exist.
    pub(crate) async fn create_key(
        &self,
        wanted: StoredKey,
        change: Change<'_>,
    ) -> Result<StoredKey, EditError> {
        let mut edit = Edit::begin(self, change).await?;
        if !wanted.account.org.is_empty() {
            must_exist(&mut edit, &wanted.account).await?;
        }
        let [org, team, workflow, name] = levels(Some(&wanted.account));
        let values = [
            Value::Text(org),
            Value::Text(team),
            Value::Text(workflow),
            Value::Text(name),
        ];
        if !edit.transaction.fetch(&TAKEN, &values).await?.is_empty() {
            return Err(EditError::Exists(format!("a key {}", wanted.account)));
        }
        put(&mut edit, &wanted, None).await?;
        edit.commit().await?;
        Ok(wanted)
    }

    /// Gives a key another secret; those before it end at `old_until_us`, if they do not end before.
    ///
    /// # Errors
    /// There is no such key, it is revoked, or it is a configuration's.
    pub(crate) async fn rotate_key(
        &self,
        id: &str,
        (secret, old_until_us): (StoredSecret, i64),
        change: Change<'_>,
    ) -> Result<StoredKey, EditError> {
        let mut edit = Edit::begin(self, change).await?;
        let before = locked(&mut edit, id).await?;
        let hash = secret.hash.to_hex();
        let values = [Value::Text(id), Value::Int(old_until_us), Value::Text(&hash)];
        edit.transaction.execute(&END_SECRETS, &values).await?;
        let mut after = before.clone();
        for old in &mut after.secrets {
            old.expires_us = Some(old.expires_us.unwrap_or(old_until_us).min(old_until_us));
        }
        after.secrets.insert(0, secret);
        put(&mut edit, &after, Some(&before)).await?;
        edit.commit().await?;
        Ok(after)
    }

    /// # Errors
    /// There is no such key, it is revoked, or it is a configuration's.
    pub(crate) async fn change_key(
        &self,
        id: &str,
        wanted: KeyChange,
        change: Change<'_>,
    ) -> Result<StoredKey, EditError> {
        let mut edit = Edit::begin(self, change).await?;
        let before = locked(&mut edit, id).await?;
        let mut after = before.clone();
        let grants = &mut after.grants;
        grants.models = wanted
            .models
            .unwrap_or_else(|| std::mem::take(&mut grants.models));
        grants.classes = wanted
            .classes
            .unwrap_or_else(|| std::mem::take(&mut grants.classes));
        after.networks = wanted.networks.unwrap_or(after.networks);
        after.expires_us = wanted.expires_us.unwrap_or(after.expires_us);
        after.disabled = wanted.disabled.unwrap_or(after.disabled);
        after.rates = after.rates.changed(wanted.rates);
        if after != before {
            put(&mut edit, &after, Some(&before)).await?;
        }
        edit.commit().await?;
        Ok(after)
    }

    /// Ends a key for good.
    ///
    /// # Errors
    /// There is no such key, it is revoked already, or it is a configuration's.
    pub(crate) async fn revoke_key(&self, id: &str, change: Change<'_>) -> Result<(), EditError> {
        let mut edit = Edit::begin(self, change).await?;
        let before = locked(&mut edit, id).await?;
        let mut after = before.clone();
        after.revoked = true;
        let at_us = change.at_us;
        let ended = [Value::Text(id), Value::Int(at_us), Value::Text("")];
        edit.transaction.execute(&END_SECRETS, &ended).await?;
        for secret in &mut after.secrets {
            secret.expires_us = Some(secret.expires_us.unwrap_or(at_us).min(at_us));
        }
        put(&mut edit, &after, Some(&before)).await?;
        edit.commit().await?;
        Ok(())
    }
}
