//! Tokens of identity providers, in place of keys: whose they are, whether they hold, and which account they stand for.
//!
//! Owns: the checks on a token and the meaning of its claims. Refuses to know: how a key set is fetched (`keys`), how a
//! signature is computed (`signing`). Invariants: a token is believed only after its signature was checked with a public key
//! of its issuer, by an algorithm that the configuration lists; none of those is symmetric, and "none" is not one. A token
//! that was checked is remembered until it ends or its issuer's keys change, so that the next request costs a hash.

mod keys;
mod signing;

use crate::config::{self, SigningAlgorithm};
use arc_swap::ArcSwap;
use exchange::{AccountPath, Refusal, RefusalKind, is_account_name};
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use keys::{KeySet, NoKey};
use ledger::Principal;
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Tokens that are remembered; then all are forgotten.
const REMEMBERED: usize = 20_000;
/// How often key sets are fetched again.
const RENEW: Duration = Duration::from_secs(600);

/// The identity providers of the configuration.
pub(crate) struct Issuers(Vec<Arc<Issuer>>);

struct Issuer {
    settings: config::Issuer,
    algorithms: Vec<Algorithm>,
    validation: Validation,
    keys: KeySet,
    known: Mutex<Known>,
}

/// Tokens that were checked, by their hash.
#[derive(Default)]
struct Known {
    /// The key set by which.
    edition: u64,
    tokens: HashMap<[u8; 32], (Arc<Principal>, i64)>,
}

/// What is read of a token before it is believed.
#[derive(Deserialize)]
struct Claimed {
    iss: String,
}

impl Issuers {
    pub(crate) fn new(settings: &[config::Issuer]) -> Self {
        signing::install();
        Self(
            settings
                .iter()
                .map(|one| Arc::new(Issuer::new(one.clone())))
                .collect(),
        )
    }

    /// It may be a token, and there is somebody whose it can be. Keys have no dots.
    pub(crate) fn is_token(&self, secret: &str) -> bool {
        !self.0.is_empty()
            && secret.starts_with("ey")
            && secret.bytes().filter(|byte| *byte == b'.').count() == 2
    }

    /// Whom the token stands for.
    ///
    /// # Errors
    /// It is not believed, and why; or the issuer's keys are not known and cannot be fetched now.
    pub(crate) async fn authenticate(&self, token: &str, now_us: i64) -> Result<Arc<Principal>, Refusal> {
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        for issuer in &self.0 {
            if let Some(who) = issuer.remembered(&hash, now_us) {
                return Ok(who);
            }
        }
        let claimed = jsonwebtoken::dangerous::insecure_decode::<Claimed>(token);
        let claimed = claimed.map_err(|_| refused("the token cannot be read, or names no issuer"))?;
        let issuer = self
            .0
            .iter()
            .find(|one| one.settings.issuer == claimed.claims.iss);
        let issuer = issuer.ok_or_else(|| refused("the token's issuer is not known here"))?;
        issuer.check((token, hash), now_us).await
    }

    /// Fetches the key sets, now and from time to time.
    pub(crate) fn keep_fresh(&self, mut stop: watch::Receiver<bool>) -> impl Future<Output = ()> + use<> {
        let issuers = self.0.clone();
        async move {
            if issuers.is_empty() {
                return;
            }
            loop {
                let mut fetches: JoinSet<()> = JoinSet::new();
                for issuer in issuers.clone() {
                    fetches.spawn(async move { issuer.keys.renew().await });
                }
                let all = async { while fetches.join_next().await.is_some() {} };
                tokio::select! {
                    _ = stop.wait_for(|stop| *stop) => return,
                    () = async { all.await; sleep(RENEW).await } => {}
                }
            }
        }
    }
}

fn refused(message: impl Into<String>) -> Refusal {
    Refusal::new(RefusalKind::InvalidKey, message)
        .hint("send a token of an identity provider that the gateway knows, or a gateway key")
        .should_retry(false)
}

impl Issuer {
    fn new(settings: config::Issuer) -> Self {
        let algorithms: Vec<Algorithm> = settings
            .algorithms
            .iter()
            .map(|one: &SigningAlgorithm| one.jwt())
            .collect();
        let mut validation = Validation::default();
        validation.leeway = settings.leeway_s;
        validation.validate_nbf = true;
        validation.set_issuer(&[&settings.issuer]);
        validation.set_audience(&settings.audiences);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        Self {
            keys: KeySet::new(&settings.issuer, settings.jwks_url.as_deref()),
            algorithms,
            validation,
            settings,
            known: Mutex::default(),
        }
    }

    fn remembered(&self, hash: &[u8; 32], now_us: i64) -> Option<Arc<Principal>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (who, until_us) = known.tokens.get(hash)?;
        (known.edition == self.keys.edition() && now_us < *until_us).then(|| who.clone())
    }

    async fn check(&self, (token, hash): (&str, [u8; 32]), now_us: i64) -> Result<Arc<Principal>, Refusal> {
        let header = decode_header(token).map_err(|_| refused("the token cannot be read"))?;
        if !self.algorithms.contains(&header.alg) {
            let message = format!("tokens signed with {:?} are not accepted", header.alg);
            return Err(refused(message));
        }
        let edition = self.keys.edition();
        let key = self
            .keys
            .find(header.kid.as_deref())
            .await
            .map_err(|no_key| match no_key {
                NoKey::Unknown => refused("the token is signed with a key that its issuer does not have"),
                NoKey::Away => Refusal::new(
                    RefusalKind::Internal,
                    "the keys of the token's issuer cannot be fetched now",
                )
                .status(503)
                .retry_after(Some(Duration::from_secs(5))),
            })?;
        let mut validation = self.validation.clone();
        validation.algorithms = vec![header.alg];
        let decoded = decode::<Map<String, Value>>(token, &key, &validation);
        let claims = decoded.map_err(|error| refused(said(&error)))?.claims;
        let who = Arc::new(Principal {
            account: Arc::new(self.account(&claims)?),
            grants: self.settings.grants.clone(),
            networks: Vec::new(),
        });
        let until_us = claims.get("exp").and_then(Value::as_f64).unwrap_or(0.0) * 1e6;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.edition != edition || known.tokens.len() >= REMEMBERED {
            known.tokens.retain(|_, (_, until_us)| now_us < *until_us);
            if known.edition != edition || known.tokens.len() >= REMEMBERED {
                known.tokens.clear();
            }
            known.edition = edition;
        }
        known.tokens.insert(hash, (who.clone(), until_us as i64));
        Ok(who)
    }

    /// The account that the claims name.
    fn account(&self, claims: &Map<String, Value>) -> Result<AccountPath, Refusal> {
        let named = |claim: &str| {
            let value = claim_of(claims, claim);
            value
                .and_then(name)
                .ok_or_else(|| refused(format!("the token's claim `{claim}` is missing, or is no name")))
        };
        let perhaps = |claim: &Option<String>| claim.as_deref().map(named).transpose();
        Ok(AccountPath {
            org: match (&self.settings.org, &self.settings.org_claim) {
                (Some(org), _) => org.as_str().into(),
                (None, claim) => named(claim.as_deref().unwrap_or("org"))?,
            },
            team: perhaps(&self.settings.team_claim)?,
            workflow: perhaps(&self.settings.workflow_claim)?,
            key: Some(named(&self.settings.user_claim)?),
        })
    }
}

/// A text, or a list of one; a dot goes into an object, unless a claim is named with it.
fn claim_of<'a>(claims: &'a Map<String, Value>, path: &str) -> Option<&'a str> {
    let whole = claims.get(path);
    let value = whole.or_else(|| {
        let (first, rest) = path.split_once('.')?;
        let inner = claims.get(first)?;
        rest.split('.').try_fold(inner, |value, part| value.get(part))
    })?;
    match value {
        Value::Array(list) => match &list[..] {
            [only] => only.as_str(),
            _ => None,
        },
        other => other.as_str(),
    }
}

/// As a level of an account; what cannot stand there is written as in a URL.
fn name(text: &str) -> Option<Arc<str>> {
    let escaped = if text == "-" {
        "%2D".to_owned()
    } else {
        text.replace('%', "%25").replace('/', "%2F")
    };
    is_account_name(&escaped).then(|| escaped.into())
}

/// What is wrong with a token, for whoever sent it.
fn said(error: &jsonwebtoken::errors::Error) -> String {
    use jsonwebtoken::errors::ErrorKind;
    match error.kind() {
        ErrorKind::ExpiredSignature => "the token has expired".into(),
        ErrorKind::ImmatureSignature => "the token is not valid yet".into(),
        ErrorKind::InvalidAudience => "the token is for another audience".into(),
        ErrorKind::InvalidSignature => "the token's signature is wrong".into(),
        ErrorKind::MissingRequiredClaim(claim) => format!("the token has no `{claim}`"),
        _ => "the token is not valid".into(),
    }
}

/// A value that is replaced as a whole, and how often it was.
struct Edition<T> {
    value: ArcSwap<(u64, T)>,
}

impl<T> Edition<T> {
    fn new(value: T) -> Self {
        Self {
            value: ArcSwap::from_pointee((0, value)),
        }
    }

    fn number(&self) -> u64 {
        self.value.load().0
    }

    /// One caller at a time.
    fn replace(&self, value: T) {
        let next = self.number() + 1;
        self.value.store(Arc::new((next, value)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn claims_are_found_by_path_and_become_names() {
        let claims = json!({"team": "search", "realm": {"org": "acme"}, "groups": ["one"], "many": ["a", "b"], "a.b": "dotted"});
        let claims = claims.as_object().unwrap();
        let found =
            ["team", "realm.org", "groups", "many", "nothing", "a.b"].map(|path| claim_of(claims, path));
        assert_eq!(
            found,
            [
                Some("search"),
                Some("acme"),
                Some("one"),
                None,
                None,
                Some("dotted")
            ]
        );
        let names = ["auth0|x", "a/b", "-", "", "50%"].map(|text| name(text).map(|name| name.to_string()));
        let names = names.each_ref().map(Option::as_deref);
        assert_eq!(
            names,
            [Some("auth0|x"), Some("a%2Fb"), Some("%2D"), None, Some("50%25")]
        );
    }
}
