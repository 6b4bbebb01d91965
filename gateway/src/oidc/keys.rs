//! An issuer's public keys: fetched, kept, and fetched again when a token names one that is not among them.
//!
//! Requests wait for a fetch in two cases: none has ever succeeded, or their own token names an unknown key; and however
//! many do, there is one fetch in so many seconds. When the issuer is away, the keys that are known stay in use.

use super::Edition;
use crate::{clock, fetch};
use anyhow::Context;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, PublicKeyUse};
use jsonwebtoken::{DecodingKey, DecodingKeyKind};
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// How long the issuer has to answer.
const WITHIN: Duration = Duration::from_secs(5);
/// The least time between two fetches that requests ask for.
const APART_MS: u64 = 5_000;

/// By key id; the empty one for keys without.
type Keys = HashMap<String, DecodingKey>;

pub(super) enum NoKey {
    Unknown,
    /// No key set was ever fetched.
    Away,
}

pub(super) struct KeySet {
    source: Arc<Source>,
    keys: Edition<Option<Keys>>,
    /// Held while a fetch runs; when the last one began.
    turn: Mutex<Option<u64>>,
}

struct Source {
    issuer: String,
    /// `None`: by discovery.
    url: Option<String>,
    agent: ureq::Agent,
}

#[derive(Deserialize)]
struct Discovered {
    issuer: String,
    jwks_uri: String,
}

#[derive(Deserialize)]
struct Listed {
    keys: Vec<Value>,
}

impl KeySet {
    pub(super) fn new(issuer: &str, url: Option<&str>) -> Self {
        Self {
            source: Arc::new(Source {
                issuer: issuer.to_owned(),
                url: url.map(str::to_owned),
                agent: fetch::agent(WITHIN),
            }),
            keys: Edition::new(None),
            turn: Mutex::new(None),
        }
    }

    /// Grows when the keys change.
    pub(super) fn edition(&self) -> u64 {
        self.keys.number()
    }

    /// A token without a key id is of the only key, if there is one alone.
    fn known(&self, id: Option<&str>) -> Result<DecodingKey, NoKey> {
        let current = self.keys.value.load();
        let keys = current.1.as_ref().ok_or(NoKey::Away)?;
        let found = match id {
            Some(id) => keys.get(id),
            None if keys.len() == 1 => keys.values().next(),
            None => None,
        };
        found.cloned().ok_or(NoKey::Unknown)
    }

    pub(super) async fn find(&self, id: Option<&str>) -> Result<DecodingKey, NoKey> {
        if let Ok(key) = self.known(id) {
            return Ok(key);
        }
        let mut last = self.turn.lock().await;
        // Somebody may have fetched it meanwhile.
        let known = self.known(id);
        let now_ms = clock::monotonic_ms();
        if known.is_ok() || last.is_some_and(|last| now_ms < last + APART_MS) {
            return known;
        }
        *last = Some(now_ms);
        self.fetch().await;
        self.known(id)
    }

    /// Fetches the keys, whoever asks for which.
    pub(super) async fn renew(&self) {
        let mut last = self.turn.lock().await;
        *last = Some(clock::monotonic_ms());
        self.fetch().await;
    }

    async fn fetch(&self) {
        let source = self.source.clone();
        let fetched = tokio::task::spawn_blocking(move || source.fetch()).await;
        let issuer = &self.source.issuer;
        match fetched.unwrap_or_else(|error| Err(error.into())) {
            Ok(keys) => {
                let current = self.keys.value.load();
                // Tokens that were checked with the same keys need not be checked again.
                let is_same = current.1.as_ref().is_some_and(|known| is_same(known, &keys));
                if !is_same {
                    tracing::info!(issuer, keys = keys.len(), "the issuer's keys were fetched");
                    self.keys.replace(Some(keys));
                }
            }
            Err(error) if self.keys.value.load().1.is_some() => {
                tracing::warn!(
                    issuer,
                    "the issuer's keys cannot be fetched: {error:#}; those that are known stay in use"
                );
            }
            Err(error) => {
                tracing::error!(
                    issuer,
                    "the issuer's keys cannot be fetched: {error:#}; none is known, its tokens are refused"
                );
            }
        }
    }
}

fn is_same(known: &Keys, fetched: &Keys) -> bool {
    let same = |(id, key): (&String, &DecodingKey)| {
        let other = fetched.get(id).map(DecodingKey::kind);
        match (key.kind(), other) {
            (DecodingKeyKind::SecretOrDer(one), Some(DecodingKeyKind::SecretOrDer(other))) => one == other,
            (
                DecodingKeyKind::RsaModulusExponent { n, e },
                Some(DecodingKeyKind::RsaModulusExponent {
                    n: modulus,
                    e: exponent,
                }),
            ) => n == modulus && e == exponent,
            _ => false,
        }
    };
    known.len() == fetched.len() && known.iter().all(same)
}

impl Source {
    fn fetch(&self) -> anyhow::Result<Keys> {
        let url = match &self.url {
            Some(url) => url.clone(),
            None => {
                let place = format!(
                    "{}/.well-known/openid-configuration",
                    self.issuer.trim_end_matches('/')
                );
                let found: Discovered = self.read(&place)?;
                anyhow::ensure!(
                    found.issuer == self.issuer,
                    "{place} speaks of the issuer {}",
                    found.issuer
                );
                found.jwks_uri
            }
        };
        let listed: Listed = self.read(&url)?;
        let keys: Keys = listed.keys.into_iter().filter_map(public).collect();
        anyhow::ensure!(!keys.is_empty(), "{url} lists no key that can be used");
        Ok(keys)
    }

    fn read<T: for<'de> Deserialize<'de>>(&self, url: &str) -> anyhow::Result<T> {
        let answer = self.agent.get(url).call();
        let mut answer = answer.with_context(|| format!("{url} cannot be reached"))?;
        anyhow::ensure!(answer.status().is_success(), "{url} answered {}", answer.status());
        let text = answer
            .body_mut()
            .with_config()
            .limit(fetch::LONGEST)
            .read_to_string();
        let text = text.with_context(|| format!("{url} broke off"))?;
        serde_json::from_str(&text).with_context(|| format!("{url} cannot be read"))
    }
}

/// A key that checks signatures. One that could also make them (symmetric) is no public key, whatever the list says.
fn public(listed: Value) -> Option<(String, DecodingKey)> {
    let jwk: Jwk = serde_json::from_value(listed).ok()?;
    let is_symmetric = matches!(jwk.algorithm, AlgorithmParameters::OctetKey(_));
    let is_for_signing = jwk
        .common
        .public_key_use
        .as_ref()
        .is_none_or(|purpose| *purpose == PublicKeyUse::Signature);
    if is_symmetric || !is_for_signing {
        return None;
    }
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    Some((jwk.common.key_id.unwrap_or_default(), key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_public_keys_for_signatures_are_taken() {
        let rsa = json!({"kty": "RSA", "kid": "a", "n": "sXch", "e": "AQAB", "use": "sig"});
        assert_eq!(public(rsa.clone()).unwrap().0, "a");
        let mut other = rsa.clone();
        other["use"] = "enc".into();
        assert!(public(other).is_none());
        assert!(public(json!({"kty": "oct", "kid": "a", "k": "c2VjcmV0"})).is_none());
        assert!(public(json!({"kty": "new", "kid": "a"})).is_none());
    }
}
