//! Rate limits that administrators gave to accounts and keys: kept here with their definitions, counted elsewhere.

use crate::keys::StoredKey;
use crate::store::{Account, Source};
use exchange::AccountPath;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// What an account or a key may do, all requests under it together. What is left out is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    pub requests_per_minute: Option<u32>,
    /// Read and generated, together.
    pub tokens_per_minute: Option<u32>,
    /// Requests running at once.
    pub concurrency: Option<u32>,
}

/// What to change of limits; what is `None` stays, `Some(None)` takes a limit away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RatesChange {
    pub requests_per_minute: Option<Option<u32>>,
    pub tokens_per_minute: Option<Option<u32>>,
    pub concurrency: Option<Option<u32>>,
}

impl Rates {
    #[must_use]
    pub fn changed(self, wanted: RatesChange) -> Self {
        Self {
            requests_per_minute: wanted.requests_per_minute.unwrap_or(self.requests_per_minute),
            tokens_per_minute: wanted.tokens_per_minute.unwrap_or(self.tokens_per_minute),
            concurrency: wanted.concurrency.unwrap_or(self.concurrency),
        }
    }

    pub(crate) fn shown(&self) -> serde_json::Value {
        serde_json::json!({
            "requests_per_minute": self.requests_per_minute,
            "tokens_per_minute": self.tokens_per_minute,
            "concurrency": self.concurrency,
        })
    }
}

/// Who is limited, of all accounts and keys of the store.
pub type Limited = BTreeMap<AccountPath, Rates>;

/// The limits in force, kept up with the store.
#[derive(Debug)]
pub(crate) struct Registry(watch::Sender<Arc<Limited>>);

impl Default for Registry {
    fn default() -> Self {
        Self(watch::Sender::new(Arc::default()))
    }
}

impl Registry {
    /// Takes over what has changed. One caller at a time.
    pub(crate) fn amend(&self, keys: &[StoredKey], accounts: &[Account]) {
        let mut limited = Limited::clone(&self.0.borrow());
        for account in accounts {
            set(&mut limited, &account.path, account.rates);
        }
        // A key's successor of the same name may have come with its end: ends go first.
        let ours = |key: &&StoredKey| key.source == Source::Api && !key.account.org.is_empty();
        for key in keys.iter().filter(ours).filter(|key| key.revoked) {
            limited.remove(&key.account);
        }
        for key in keys.iter().filter(ours).filter(|key| !key.revoked) {
            set(&mut limited, &key.account, key.rates);
        }
        self.0.send_if_modified(|known| {
            let is_news = **known != limited;
            if is_news {
                *known = Arc::new(limited);
            }
            is_news
        });
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Limited>> {
        self.0.subscribe()
    }
}

fn set(limited: &mut Limited, path: &AccountPath, rates: Rates) {
    if rates == Rates::default() {
        limited.remove(path);
    } else {
        limited.insert(path.clone(), rates);
    }
}
