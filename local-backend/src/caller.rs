//! Who asks: keys, tenants, and what their headers say of a request. Owns authentication; refuses to know bodies.

use crate::settings::TenantSettings;
use anyhow::{Context, bail};
use engine::engine::Order;
use engine::scheduler::Class;
use http::HeaderMap;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// The longest name that a header may give a tenant.
const NAME_BYTES: usize = 128;

#[derive(Clone, Debug)]
struct Tenant {
    name: Arc<str>,
    weight: u32,
    speaks_for_others: bool,
}

/// Everybody who may ask.
#[derive(Debug, Default)]
pub(crate) struct Callers {
    by_key: HashMap<[u8; 32], Tenant>,
    weights: HashMap<Arc<str>, u32>,
    is_open: bool,
}

/// Why somebody may not.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// No key, or one that nobody has.
    Key,
    /// A header that makes no sense.
    Header(String),
}

impl Callers {
    /// From the settings; keys in files are read once.
    ///
    /// # Errors
    /// A key is not written as it must be, or its file cannot be read.
    pub(crate) fn new(tenants: &BTreeMap<String, TenantSettings>) -> anyhow::Result<Self> {
        let mut callers = Self {
            is_open: tenants.values().all(|tenant| tenant.keys.is_empty()),
            ..Self::default()
        };
        for (name, settings) in tenants {
            let name: Arc<str> = name.as_str().into();
            callers.weights.insert(name.clone(), settings.weight);
            for key in &settings.keys {
                let hash = hash_of(key).with_context(|| format!("tenant `{name}`"))?;
                let tenant = Tenant {
                    name: name.clone(),
                    weight: settings.weight,
                    speaks_for_others: settings.speaks_for_others,
                };
                callers.by_key.insert(hash, tenant);
            }
        }
        Ok(callers)
    }

    /// Whose a request is, and when it should run.
    ///
    /// # Errors
    /// The key is unknown, or a header makes no sense.
    pub(crate) fn order(&self, headers: &HeaderMap) -> Result<Order, Unknown> {
        let text = |name: &str| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::trim)
        };
        let mut tenant = self.tenant(&text)?;
        if let Some(named) = text("x-tollgate-tenant").filter(|named| !named.is_empty())
            && tenant.speaks_for_others
        {
            if named.len() > NAME_BYTES {
                return Err(Unknown::Header(format!(
                    "`x-tollgate-tenant` is longer than {NAME_BYTES} bytes"
                )));
            }
            tenant.name = named.into();
            tenant.weight = self.weights.get(named).copied().unwrap_or(1);
        }
        let class = match text("x-tollgate-class") {
            None | Some("" | "foreground" | "interactive") => Class::Foreground,
            Some("background" | "batch") => Class::Background,
            Some(other) => {
                return Err(Unknown::Header(format!(
                    "`x-tollgate-class` is `{other}`; it can be `foreground` or `background`"
                )));
            }
        };
        let deadline = match text("x-tollgate-deadline-ms").map(str::parse) {
            None => None,
            Some(Ok(ms)) => Some(Duration::from_millis(ms)),
            Some(Err(_)) => {
                return Err(Unknown::Header(
                    "`x-tollgate-deadline-ms` must be a number of milliseconds".into(),
                ));
            }
        };
        Ok(Order {
            tenant: tenant.name,
            weight: tenant.weight,
            class,
            priority: 0,
            deadline,
        })
    }

    fn tenant<'a>(&self, header: &impl Fn(&str) -> Option<&'a str>) -> Result<Tenant, Unknown> {
        if self.is_open {
            return Ok(Tenant {
                name: "default".into(),
                weight: 1,
                speaks_for_others: true,
            });
        }
        let bearer = header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let key = bearer.or_else(|| header("x-api-key")).ok_or(Unknown::Key)?;
        let hash: [u8; 32] = Sha256::digest(key.trim()).into();
        // A look-up by hash: its time tells nothing of the key.
        self.by_key.get(&hash).cloned().ok_or(Unknown::Key)
    }
}

fn hash_of(key: &str) -> anyhow::Result<[u8; 32]> {
    if let Some(path) = key.strip_prefix("file:") {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("the key file {path} cannot be read"))?;
        if text.trim().is_empty() {
            bail!("the key file {path} is empty");
        }
        return Ok(Sha256::digest(text.trim()).into());
    }
    let hex = key
        .strip_prefix("sha256:")
        .filter(|hex| hex.len() == 64 && hex.is_ascii());
    let bytes = hex.and_then(|hex| {
        let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok();
        (0..32).map(byte).collect::<Option<Vec<u8>>>()
    });
    match bytes.and_then(|bytes| bytes.try_into().ok()) {
        Some(hash) => Ok(hash),
        None => bail!("a key is written as `sha256:` and 64 hexadecimal digits, or `file:PATH`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn callers() -> Callers {
        let hash = |key: &str| {
            let digest: [u8; 32] = Sha256::digest(key).into();
            format!("sha256:{}", digest.map(|byte| format!("{byte:02x}")).concat())
        };
        let tenant = |key: &str, weight, speaks_for_others| TenantSettings {
            weight,
            keys: vec![hash(key)],
            speaks_for_others,
        };
        let tenants = [
            ("acme", tenant("one", 3, false)),
            ("gateway", tenant("two", 1, true)),
        ];
        Callers::new(&tenants.map(|(name, tenant)| (name.to_owned(), tenant)).into()).unwrap()
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn a_key_is_a_tenant_and_only_a_gateway_speaks_for_others() {
        let order = |pairs: &[(&'static str, &str)]| {
            callers()
                .order(&headers(pairs))
                .map(|order| (order.tenant.to_string(), order.weight))
        };
        assert_eq!(order(&[("authorization", "Bearer one")]), Ok(("acme".into(), 3)));
        assert_eq!(
            order(&[("x-api-key", "one"), ("x-tollgate-tenant", "other")]),
            Ok(("acme".into(), 3))
        );
        assert_eq!(
            order(&[("x-api-key", "two"), ("x-tollgate-tenant", "acme")]),
            Ok(("acme".into(), 3))
        );
        assert_eq!(
            order(&[("x-api-key", "two"), ("x-tollgate-tenant", "new")]),
            Ok(("new".into(), 1))
        );
        assert_eq!(order(&[("x-api-key", "three")]), Err(Unknown::Key));
        assert_eq!(order(&[]), Err(Unknown::Key));
    }

    #[test]
    fn without_keys_everybody_may_ask() {
        let open = Callers::new(&BTreeMap::new()).unwrap();
        let order = open
            .order(&headers(&[
                ("x-tollgate-tenant", "team"),
                ("x-tollgate-class", "background"),
                ("x-tollgate-deadline-ms", "250"),
            ]))
            .unwrap();
        assert_eq!((&*order.tenant, order.class), ("team", Class::Background));
        assert_eq!(order.deadline, Some(Duration::from_millis(250)));
        assert!(matches!(
            open.order(&headers(&[("x-tollgate-class", "soon")])),
            Err(Unknown::Header(_))
        ));
        assert!(matches!(
            open.order(&headers(&[("x-tollgate-deadline-ms", "soon")])),
            Err(Unknown::Header(_))
        ));
    }

    #[test]
    fn keys_that_are_not_hashes_are_refused() {
        assert!(
            hash_of("plain").is_err() && hash_of("sha256:zz").is_err() && hash_of("file:not/there").is_err()
        );
    }
}
