//! Which endpoint a request is for, who says it is, and in which dialect an answer must be.

use crate::client::Client;
use exchange::{Dialect, KeyHash, Refusal, RefusalKind, Surface};
use ledger::{Ledger, Principal};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// What the public listeners serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Generate(Surface),
    Models,
    Outcomes,
    /// Files, batches and jobs; which of their methods there are is `batch`'s to know.
    Batch,
    Health,
}

impl Endpoint {
    /// # Errors
    /// No such path, or the wrong method for it.
    pub(crate) fn of(client: &Client) -> Result<Self, Refusal> {
        let path = client.path();
        let path = path.strip_prefix("/v1").unwrap_or(path);
        let is_job = ["/files", "/batches", "/messages/batches", "/jobs"]
            .iter()
            .any(|lead| {
                path.strip_prefix(lead)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            });
        if is_job {
            return Ok(Self::Batch);
        }
        let (endpoint, method) = match client.path() {
            "/v1/chat/completions" | "/chat/completions" => {
                (Self::Generate(Surface::ChatCompletions), "POST")
            }
            "/v1/messages" | "/messages" => (Self::Generate(Surface::Messages), "POST"),
            "/v1/outcomes" => (Self::Outcomes, "POST"),
            "/v1/models" | "/models" => (Self::Models, "GET"),
            "/health" => (Self::Health, "GET"),
            path => {
                let message = format!("there is nothing at {path}");
                let hint = "the gateway serves /v1/chat/completions, /v1/messages, /v1/models, /v1/outcomes, /v1/files, /v1/batches, /v1/messages/batches and /v1/jobs";
                return Err(Refusal::new(RefusalKind::RouteNotFound, message).hint(hint));
            }
        };
        if client.session.req_header().method.as_str() == method {
            Ok(endpoint)
        } else {
            Err(Refusal::new(
                RefusalKind::MethodNotAllowed,
                format!("{} takes {method}", client.path()),
            ))
        }
    }
}

/// The dialect of the caller, which even a refusal of an unknown path must be in.
pub(crate) fn dialect_of(client: &Client) -> Dialect {
    let is_anthropic = client.path().ends_with("/messages")
        || client.path().contains("/messages/batches")
        || client.header("anthropic-version").is_some();
    if is_anthropic {
        Dialect::Anthropic
    } else {
        Dialect::OpenaiChat
    }
}

/// Finds who holds the key of the request.
///
/// # Errors
/// No key, or one that nobody holds.
pub(crate) fn authenticate(ledger: &Ledger, client: &Client) -> Result<Arc<Principal>, Refusal> {
    if let Some(errand) = &client.errand {
        return Ok(errand.who.clone());
    }
    ledger
        .authenticate(&key_hash(client)?)
        .ok_or_else(|| refused("the key is not known here, or is switched off"))
}

fn refused(message: &str) -> Refusal {
    Refusal::new(RefusalKind::InvalidKey, message)
        .hint("send a gateway key as `Authorization: Bearer` or `x-api-key`")
        .should_retry(false)
}

/// The key of a request, as it is known here.
///
/// # Errors
/// There is none.
pub(crate) fn key_hash(client: &Client) -> Result<KeyHash, Refusal> {
    let bearer = client
        .header("authorization")
        .and_then(|value| value.split_once(' '));
    let bearer = bearer
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, key)| key.trim());
    let key = client
        .header("x-api-key")
        .or(bearer)
        .filter(|key| !key.is_empty());
    let key = key.ok_or_else(|| refused("the request carries no key"))?;
    Ok(KeyHash(Sha256::digest(key.as_bytes()).into()))
}
