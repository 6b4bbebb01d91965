//! Keys of callers and of administrators.

use super::form::{Moment, Nothing, Page, PageQuery, Path, Why, given, one_more, rows};
use super::problem::Problem;
use super::rates::{NewRateLimits, RateLimits};
use super::route::{Answer, Call};
use crate::clock;
use crate::config;
use exchange::{AccountPath, BackendClass, Grants, KeyHash, is_account_name};
use ledger::{KeyChange, Role, StoredKey, StoredSecret, parse_network};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// How long an old secret works where nobody says.
const OVERLAP_S: u32 = 3_600;
/// The longest that it may: 30 days.
const LONGEST_S: u32 = 30 * 86_400;

/// What the holder of a key may do. `caller` calls models; the others use the admin API: `admin` does everything,
/// `finance` reads everything, `team_owner` administers what is below its account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum KeyRole {
    #[default]
    Caller,
    Admin,
    Finance,
    TeamOwner,
}

impl KeyRole {
    const fn role(self) -> Role {
        match self {
            Self::Caller => Role::Caller,
            Self::Admin => Role::Admin,
            Self::Finance => Role::Finance,
            Self::TeamOwner => Role::TeamOwner,
        }
    }

    const fn of(role: Role) -> Self {
        match role {
            Role::Caller => Self::Caller,
            Role::Admin => Self::Admin,
            Role::Finance => Self::Finance,
            Role::TeamOwner => Self::TeamOwner,
        }
    }
}

/// A key. Its secrets are known by their hashes, and are never shown again.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Key")]
pub(super) struct KeyView {
    id: String,
    name: String,
    /// Whose it is. Absent: the whole installation's.
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<Path>,
    role: KeyRole,
    /// Names, which may end in `*`; empty: all.
    models: Vec<String>,
    /// `frontier`, `cheap`, `local`, `batch`; empty: all.
    #[schemars(with = "Vec<super::form::Class>")]
    classes: Vec<BackendClass>,
    /// CIDR; empty: anywhere.
    networks: Vec<String>,
    created_at: Moment,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Moment>,
    rate_limits: RateLimits,
    disabled: bool,
    /// For good.
    revoked: bool,
    /// `config`: declared by a configuration file, and changed there. `api`: made here.
    source: &'static str,
    /// The latest first.
    secrets: Vec<SecretView>,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Secret")]
struct SecretView {
    /// Its beginning and its end.
    hint: String,
    created_at: Moment,
    /// Set when another secret took its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Moment>,
}

/// A key with its secret, which is shown this once.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "KeyWithSecret")]
pub(super) struct Made {
    /// What its holder sends as `Authorization: Bearer` or `x-api-key`.
    secret: String,
    key: KeyView,
}

/// A key to be made.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewKey {
    /// Whose it is: an organisation, a team or a workflow. Left out, for `admin` and `finance`: the whole installation's.
    #[serde(default)]
    account: Option<Path>,
    /// Unique in its account.
    #[schemars(length(min = 1), regex(pattern = "^[^/]+$"))]
    name: String,
    #[serde(default)]
    role: KeyRole,
    /// Models it may use; a name may end in `*`. Left out: all.
    #[serde(default)]
    models: Vec<String>,
    /// Backend classes it may reach. Left out: all.
    #[serde(default)]
    #[schemars(with = "Vec<super::form::Class>")]
    classes: Vec<BackendClass>,
    /// Where it may be used, as `10.0.0.0/8`, `2001:db8::/32` or one address. Left out: anywhere.
    #[serde(default)]
    networks: Vec<String>,
    /// Left out: never.
    #[serde(default)]
    expires_at: Option<Moment>,
    #[serde(default)]
    rate_limits: RateLimits,
    /// For the audit trail.
    #[serde(default)]
    reason: Option<String>,
}

/// What to change of a key; what is left out stays.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Wanted {
    models: Option<Vec<String>>,
    #[schemars(with = "Option<Vec<super::form::Class>>")]
    classes: Option<Vec<BackendClass>>,
    networks: Option<Vec<String>>,
    /// `null`: never.
    #[serde(deserialize_with = "given")]
    #[schemars(with = "Option<Moment>")]
    expires_at: Option<Option<Moment>>,
    rate_limits: NewRateLimits,
    disabled: Option<bool>,
    /// For the audit trail.
    reason: Option<String>,
}

/// How a key gets another secret.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Rotation {
    /// Seconds for which the old secret works, 0 to 2592000. Left out: 3600.
    #[schemars(range(min = 0, max = 2_592_000))]
    overlap_s: Option<u32>,
    /// For the audit trail.
    reason: Option<String>,
}

fn view(call: &Call, key: StoredKey) -> KeyView {
    let secrets = key.secrets.into_iter().map(|secret| SecretView {
        hint: secret.hint,
        created_at: Moment(secret.created_us),
        expires_at: secret.expires_us.map(Moment),
    });
    KeyView {
        id: key.id.to_string(),
        name: key.account.key.as_deref().unwrap_or("").to_owned(),
        account: (!key.account.org.is_empty()).then(|| Path(above(&key.account))),
        role: KeyRole::of(key.role),
        models: key.grants.models.iter().map(ToString::to_string).collect(),
        classes: key.grants.classes,
        networks: key.networks.iter().map(ToString::to_string).collect(),
        created_at: Moment(key.created_us),
        expires_at: key.expires_us.map(Moment),
        rate_limits: RateLimits::of(call, &key.account, key.rates),
        disabled: key.disabled,
        revoked: key.revoked,
        source: key.source.as_str(),
        secrets: secrets.collect(),
    }
}

fn above(path: &AccountPath) -> AccountPath {
    AccountPath {
        key: None,
        ..path.clone()
    }
}

/// A fresh secret: what to show, and what to keep.
fn fresh(now_us: i64) -> (String, StoredSecret) {
    let text = config::key::format(clock::entropy());
    let kept = StoredSecret {
        hash: KeyHash(Sha256::digest(text.as_bytes()).into()),
        hint: format!("{}…{}", &text[..7], &text[text.len() - 4..]),
        created_us: now_us,
        expires_us: None,
    };
    (text, kept)
}

fn networks(written: &[String]) -> Answer<Vec<ledger::IpNet>> {
    let read = written.iter().map(|text| parse_network(text));
    read.collect::<Result<_, _>>().map_err(Problem::invalid)
}

fn models(written: &[String]) -> Vec<Box<str>> {
    written.iter().map(|model| model.as_str().into()).collect()
}

/// # Errors
/// The term is over before it begins.
fn in_the_future(moment: Option<Moment>, now_us: i64) -> Answer<Option<i64>> {
    match moment {
        Some(Moment(us)) if us <= now_us => {
            Err(Problem::invalid("`expires_at` is in the past").hint("a key is ended at once by revoking it"))
        }
        moment => Ok(moment.map(|moment| moment.0)),
    }
}

/// A key that the visitor may see.
async fn found(call: &Call) -> Answer<StoredKey> {
    let id = call.parameter("id");
    let key = call.ledger().key(id).await?;
    call.who
        .must_own(&key.account)
        .map_err(|_| Problem::missing(format!("key {id}")))?;
    Ok(key)
}

/// A key that the visitor may change: a team owner changes keys that call models, not those that administer.
async fn changeable(call: &Call) -> Answer<StoredKey> {
    let key = found(call).await?;
    if call.who.role != Role::Admin && key.role != Role::Caller {
        return Err(Problem::forbidden(
            "keys of administrators are changed by administrators",
        ));
    }
    Ok(key)
}

pub(super) async fn list(call: Call, query: PageQuery) -> Answer<Page<KeyView>> {
    let (rows, within) = (rows(query.limit)?, query.within(&call)?);
    let found = call
        .ledger()
        .keys(&within, query.cursor(), one_more(rows))
        .await?;
    let cursor = |key: &StoredKey| key.id.to_string();
    Ok(Page::of(found, rows, cursor, |key| view(&call, key)))
}

pub(super) async fn read(call: Call, _: Nothing) -> Answer<KeyView> {
    let key = found(&call).await?;
    Ok(view(&call, key))
}

pub(super) async fn create(call: Call, new: NewKey) -> Answer<Made> {
    let role = new.role.role();
    if !is_account_name(&new.name) {
        return Err(Problem::invalid("`name` must not be empty or `-` or contain `/`"));
    }
    let account = match (&new.account, role) {
        (Some(Path(path)), Role::Caller | Role::TeamOwner) => {
            call.who.must_own(path)?;
            path.clone()
        }
        (None, Role::Admin | Role::Finance) => AccountPath {
            org: "".into(),
            team: None,
            workflow: None,
            key: None,
        },
        (None, _) => {
            return Err(Problem::invalid(format!(
                "a key with the role `{}` needs an `account`",
                role.as_str()
            )));
        }
        (Some(_), _) => {
            let role = role.as_str();
            return Err(
                Problem::invalid(format!("the role `{role}` is for the whole installation"))
                    .hint("leave `account` out, or use the role `team_owner`"),
            );
        }
    };
    if account.key.is_some() {
        return Err(
            Problem::invalid("`account` names a key").hint("write the account's path, and the key as `name`")
        );
    }
    if call.who.role != Role::Admin && role != Role::Caller {
        return Err(Problem::forbidden(
            "keys for administration are made by administrators",
        ));
    }
    let (secret, kept) = fresh(call.now_us);
    let (id, _) = clock::new_request(call.now_us);
    let key = StoredKey {
        id: id.to_string().into(),
        account: AccountPath {
            key: Some(new.name.as_str().into()),
            ..account
        },
        role,
        grants: Grants {
            models: models(&new.models),
            classes: new.classes,
        },
        networks: networks(&new.networks)?,
        created_us: call.now_us,
        expires_us: in_the_future(new.expires_at, call.now_us)?,
        disabled: false,
        rates: new.rate_limits.rates()?,
        revoked: false,
        source: ledger::Source::Api,
        secrets: vec![kept],
    };
    let made = call.ledger().create_key(key, call.change(&new.reason)).await?;
    call.gateway.limits.adopt(&call.ledger().rates());
    Ok(Made {
        secret,
        key: view(&call, made),
    })
}

pub(super) async fn change(call: Call, wanted: Wanted) -> Answer<KeyView> {
    let key = changeable(&call).await?;
    let expires_us = match wanted.expires_at {
        Some(moment) => Some(in_the_future(moment, call.now_us)?),
        None => None,
    };
    let change = KeyChange {
        models: wanted.models.as_deref().map(models),
        classes: wanted.classes,
        networks: wanted.networks.as_deref().map(networks).transpose()?,
        expires_us,
        disabled: wanted.disabled,
        rates: wanted.rate_limits.change(&call, &key.account)?,
    };
    let changed = call
        .ledger()
        .change_key(&key.id, change, call.change(&wanted.reason))
        .await?;
    call.gateway.limits.adopt(&call.ledger().rates());
    Ok(view(&call, changed))
}

pub(super) async fn revoke(call: Call, why: Why) -> Answer<()> {
    let key = changeable(&call).await?;
    Ok(call
        .ledger()
        .revoke_key(&key.id, call.change(&why.reason))
        .await?)
}

pub(super) async fn rotate(call: Call, rotation: Rotation) -> Answer<Made> {
    let key = changeable(&call).await?;
    let overlap_s = rotation.overlap_s.unwrap_or(OVERLAP_S);
    if overlap_s > LONGEST_S {
        return Err(Problem::invalid(format!(
            "`overlap_s` of {overlap_s}: it is 0 to {LONGEST_S}"
        )));
    }
    let (secret, kept) = fresh(call.now_us);
    let old_until_us = call.now_us + i64::from(overlap_s) * 1_000_000;
    let change = call.change(&rotation.reason);
    let rotated = call
        .ledger()
        .rotate_key(&key.id, (kept, old_until_us), change)
        .await?;
    Ok(Made {
        secret,
        key: view(&call, rotated),
    })
}
