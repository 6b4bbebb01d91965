//! Keys: what they may do, who holds them, and the index that every request looks into.
//!
//! A key has a name in the tree, a role, grants, and one secret; two while it is rotated. Secrets are known by their
//! SHA-256 alone. The index is a hash map behind one atomic pointer: readers take no lock and wait for nobody; a change
//! is made in a copy by whoever heard of it.

use crate::rates::Rates;
use crate::store::{Account, Source};
use arc_swap::ArcSwap;
use exchange::{AccountPath, Grants, KeyHash};
use ipnet::IpNet;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Reads `10.0.0.0/8`, `2001:db8::/32`, or one address.
///
/// # Errors
/// It is neither.
pub fn parse_network(text: &str) -> Result<IpNet, String> {
    let one = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse::<IpNet>()
        .map(|network| network.trunc())
        .or_else(|_| one())
        .map_err(|_| format!("`{text}` is no network: write it as 10.0.0.0/8, 2001:db8::/32 or one address"))
}

/// What the holder of a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Call models.
    Caller,
    /// Administer everything.
    Admin,
    /// Read everything that is administered.
    Finance,
    /// Administer what is below an account.
    TeamOwner,
}

impl Role {
    pub const ALL: [Self; 4] = [Self::Caller, Self::Admin, Self::Finance, Self::TeamOwner];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Admin => "admin",
            Self::Finance => "finance",
            Self::TeamOwner => "team_owner",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }
}

/// A gateway key of a configuration, known by its hash alone.
#[derive(Clone, Debug)]
pub struct KeySpec {
    pub hash: KeyHash,
    /// Down to the key's own name.
    pub account: AccountPath,
    pub grants: Grants,
    /// Where it may be used; empty: anywhere.
    pub networks: Vec<IpNet>,
    pub budgets: Vec<crate::BudgetSpec>,
    pub disabled: bool,
}

/// A key as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredKey {
    /// Hexadecimal; sorts by the time it was made.
    pub id: Arc<str>,
    /// Down to the key's own name. The organisation is empty for a key to everything.
    pub account: AccountPath,
    pub role: Role,
    pub grants: Grants,
    pub networks: Vec<IpNet>,
    /// Microseconds since the epoch, as all times.
    pub created_us: i64,
    pub expires_us: Option<i64>,
    pub disabled: bool,
    pub rates: Rates,
    /// For good.
    pub revoked: bool,
    pub source: Source,
    /// The latest first.
    pub secrets: Vec<StoredSecret>,
}

/// A secret of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSecret {
    pub hash: KeyHash,
    /// Its beginning and its end.
    pub hint: String,
    pub created_us: i64,
    /// Set when another one took its place.
    pub expires_us: Option<i64>,
}

/// Who a key turned out to be.
#[derive(Debug)]
pub struct Principal {
    pub account: Arc<AccountPath>,
    pub grants: Grants,
    /// Empty: anywhere.
    pub networks: Vec<IpNet>,
}

impl Principal {
    /// Someone of an account, whom nothing narrows.
    pub fn of(account: AccountPath) -> Self {
        Self {
            account: Arc::new(account),
            grants: Grants::default(),
            networks: Vec::new(),
        }
    }

    /// Whether it may come from there. An address that is not known is in no network.
    pub fn may_come_from(&self, address: Option<IpAddr>) -> bool {
        self.networks.is_empty()
            || address.is_some_and(|address| {
                // An IPv4 caller of a listener for both kinds.
                let address = address.to_canonical();
                self.networks.iter().any(|network| network.contains(&address))
            })
    }
}

/// Whom the admin API has before it.
#[derive(Clone, Debug)]
pub struct Operator {
    pub id: Arc<str>,
    pub name: Arc<str>,
    pub role: Role,
    pub principal: Arc<Principal>,
}

/// Why a key is not accepted. Its holder knows the secret, so that the reason tells nobody else anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAccepted {
    #[error("the key is not known here")]
    Unknown,
    #[error("the key has expired")]
    Expired,
    #[error("the key is switched off")]
    Disabled,
    #[error("the account of the key is switched off")]
    AccountDisabled,
    #[error("the key is for another purpose")]
    OtherRole,
}

#[derive(Clone, Debug)]
struct Entry {
    id: Arc<str>,
    role: Role,
    principal: Arc<Principal>,
    /// When the secret ends.
    until_us: i64,
    /// When the key does.
    key_until_us: i64,
    disabled: bool,
}

impl Entry {
    fn caller(self) -> Result<Arc<Principal>, NotAccepted> {
        if self.role == Role::Caller {
            Ok(self.principal)
        } else {
            Err(NotAccepted::OtherRole)
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Index {
    by_hash: HashMap<KeyHash, Entry>,
    /// Accounts that are switched off; hardly ever any.
    closed: HashSet<AccountPath>,
}

/// The index.
#[derive(Debug, Default)]
pub(crate) struct Keyring {
    index: ArcSwap<Index>,
}

impl Keyring {
    /// Keys of this node's configuration: nothing of the store replaces them.
    pub(crate) fn new(keys: &[KeySpec]) -> Self {
        let mut index = Index::default();
        for key in keys {
            let entry = Entry {
                id: "configuration".into(),
                role: Role::Caller,
                principal: Arc::new(Principal {
                    account: Arc::new(key.account.clone()),
                    grants: key.grants.clone(),
                    networks: key.networks.clone(),
                }),
                until_us: i64::MAX,
                key_until_us: i64::MAX,
                disabled: key.disabled,
            };
            index.by_hash.insert(key.hash, entry);
        }
        Self {
            index: ArcSwap::from_pointee(index),
        }
    }

    fn find(
        &self,
        hash: &KeyHash,
        now_us: i64,
        until_us: impl FnOnce(&Entry) -> i64,
    ) -> Result<Entry, NotAccepted> {
        let index = self.index.load();
        let entry = index.by_hash.get(hash).ok_or(NotAccepted::Unknown)?;
        if entry.disabled {
            Err(NotAccepted::Disabled)
        } else if now_us >= until_us(entry) {
            Err(NotAccepted::Expired)
        } else if index.is_closed(&entry.principal.account) {
            Err(NotAccepted::AccountDisabled)
        } else {
            Ok(entry.clone())
        }
    }

    pub(crate) fn caller(&self, hash: &KeyHash, now_us: i64) -> Result<Arc<Principal>, NotAccepted> {
        self.find(hash, now_us, |entry| entry.until_us)?.caller()
    }

    pub(crate) fn holder(&self, hash: &KeyHash, now_us: i64) -> Result<Arc<Principal>, NotAccepted> {
        self.find(hash, now_us, |entry| entry.key_until_us)?.caller()
    }

    pub(crate) fn operator(&self, hash: &KeyHash, now_us: i64) -> Result<Operator, NotAccepted> {
        let found = self.find(hash, now_us, |entry| entry.until_us)?;
        if found.role == Role::Caller {
            return Err(NotAccepted::OtherRole);
        }
        let name = found.principal.account.key.clone();
        Ok(Operator {
            name: name.unwrap_or_else(|| found.id.clone()),
            id: found.id,
            role: found.role,
            principal: found.principal,
        })
    }

    pub(crate) fn is_closed(&self, account: &AccountPath) -> bool {
        self.index.load().is_closed(account)
    }

    /// Forgets secrets that ended before this. One caller at a time.
    pub(crate) fn forget(&self, before_us: i64) {
        let index = self.index.load();
        if index.by_hash.values().any(|entry| entry.until_us < before_us) {
            let mut index = Index::clone(&index);
            index.by_hash.retain(|_, entry| entry.until_us >= before_us);
            self.index.store(Arc::new(index));
        }
    }

    /// Takes over what has changed. One caller at a time.
    pub(crate) fn amend(&self, keys: Vec<StoredKey>, accounts: &[Account]) {
        let keys: Vec<StoredKey> = keys.into_iter().filter(|key| key.source == Source::Api).collect();
        if keys.is_empty() && accounts.is_empty() {
            return;
        }
        let mut index = Index::clone(&self.index.load());
        for account in accounts {
            if account.disabled {
                index.closed.insert(account.path.clone());
            } else {
                index.closed.remove(&account.path);
            }
        }
        for key in keys {
            index.take(key);
        }
        self.index.store(Arc::new(index));
    }
}

impl Index {
    fn is_closed(&self, account: &AccountPath) -> bool {
        !self.closed.is_empty() && account.ancestry().iter().any(|above| self.closed.contains(above))
    }

    /// Every secret that a key ever had comes with it, so that none is left behind.
    fn take(&mut self, key: StoredKey) {
        let never = i64::MAX;
        let principal = Arc::new(Principal {
            account: Arc::new(key.account),
            grants: key.grants,
            networks: key.networks,
        });
        for secret in key.secrets {
            if key.revoked {
                self.by_hash.remove(&secret.hash);
                continue;
            }
            let until_us = secret
                .expires_us
                .unwrap_or(never)
                .min(key.expires_us.unwrap_or(never));
            let entry = Entry {
                key_until_us: key.expires_us.unwrap_or(never),
                id: key.id.clone(),
                role: key.role,
                principal: principal.clone(),
                until_us,
                disabled: key.disabled,
            };
            self.by_hash.insert(secret.hash, entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(secrets: &[(u8, Option<i64>)]) -> StoredKey {
        let secret = |(hash, expires_us): &(u8, Option<i64>)| StoredSecret {
            hash: KeyHash([*hash; 32]),
            hint: "tg_…".into(),
            created_us: 0,
            expires_us: *expires_us,
        };
        StoredKey {
            id: "k1".into(),
            account: "acme/search/-/ci".parse().unwrap(),
            role: Role::Caller,
            grants: Grants::default(),
            networks: vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
            created_us: 0,
            expires_us: Some(1000),
            disabled: false,
            rates: Rates::default(),
            revoked: false,
            source: Source::Api,
            secrets: secrets.iter().map(secret).collect(),
        }
    }

    fn team(disabled: bool) -> Account {
        Account {
            path: "acme/search".parse().unwrap(),
            title: String::new(),
            disabled,
            rates: Rates::default(),
            source: Source::Api,
            created_us: 0,
        }
    }

    #[test]
    fn an_old_secret_ends_with_its_overlap_and_a_key_with_its_term() {
        let ring = Keyring::new(&[]);
        ring.amend(vec![key(&[(2, None), (1, Some(500))])], &[]);
        let ask = |hash, now| ring.caller(&KeyHash([hash; 32]), now).map(drop);
        assert_eq!((ask(1, 499), ask(1, 500)), (Ok(()), Err(NotAccepted::Expired)));
        assert_eq!((ask(2, 999), ask(2, 1000)), (Ok(()), Err(NotAccepted::Expired)));
        assert_eq!(ask(3, 0), Err(NotAccepted::Unknown));
        // What was left with the old secret is still its holder's, while the key lives.
        let left = |now| ring.holder(&KeyHash([1; 32]), now).map(drop);
        assert_eq!((left(999), left(1000)), (Ok(()), Err(NotAccepted::Expired)));
        assert!(ring.operator(&KeyHash([2; 32]), 0).is_err());
        ring.forget(501);
        assert_eq!((ask(1, 0), ask(2, 0)), (Err(NotAccepted::Unknown), Ok(())));
    }

    #[test]
    fn what_is_revoked_or_switched_off_is_not_accepted() {
        let ring = Keyring::new(&[]);
        let ask = || ring.caller(&KeyHash([1; 32]), 0).map(drop);
        ring.amend(vec![key(&[(1, None)])], &[team(true)]);
        assert_eq!(ask(), Err(NotAccepted::AccountDisabled));
        ring.amend(Vec::new(), &[team(false)]);
        assert_eq!(ask(), Ok(()));
        ring.amend(
            vec![StoredKey {
                disabled: true,
                ..key(&[(1, None)])
            }],
            &[],
        );
        assert_eq!(ask(), Err(NotAccepted::Disabled));
        ring.amend(
            vec![StoredKey {
                revoked: true,
                ..key(&[(1, None)])
            }],
            &[],
        );
        assert_eq!(ask(), Err(NotAccepted::Unknown));
    }

    #[test]
    fn a_key_is_used_in_its_networks_alone() {
        let ring = Keyring::new(&[]);
        ring.amend(vec![key(&[(1, None)])], &[]);
        let who = ring.caller(&KeyHash([1; 32]), 0).unwrap();
        let from = |text: &str| who.may_come_from(Some(text.parse().unwrap()));
        assert!(from("10.1.2.3") && from("::ffff:10.1.2.3") && from("2001:db8::1"));
        assert!(!from("11.0.0.1") && !from("2001:db9::1") && !who.may_come_from(None));
    }
}
