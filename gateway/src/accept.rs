//! Which endpoint a request is for, who says it is, and in which dialect an answer must be.

use crate::client::Client;
use crate::clock;
use crate::gateway::Gateway;
use exchange::{Dialect, KeyHash, Refusal, RefusalKind, Surface};
use ledger::{IpNet, NotAccepted, Principal};
use sha2::{Digest, Sha256};
use std::net::IpAddr;
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
            "/v1/embeddings" | "/embeddings" => (Self::Generate(Surface::Embeddings), "POST"),
            "/v1/completions" | "/completions" => (Self::Generate(Surface::Completions), "POST"),
            "/v1/responses" | "/responses" => (Self::Generate(Surface::Responses), "POST"),
            "/v1/messages" | "/messages" => (Self::Generate(Surface::Messages), "POST"),
            "/v1/outcomes" => (Self::Outcomes, "POST"),
            "/v1/models" | "/models" => (Self::Models, "GET"),
            "/health" => (Self::Health, "GET"),
            path => {
                let message = format!("there is nothing at {path}");
                let hint = "the gateway serves /v1/chat/completions, /v1/messages, /v1/embeddings, /v1/completions, /v1/responses, /v1/models, /v1/outcomes, /v1/files, /v1/batches, /v1/messages/batches and /v1/jobs";
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

/// Finds who the caller is.
///
/// # Errors
/// No key, one that is not accepted, or one that may not be used from there.
pub(crate) async fn authenticate(gateway: &Gateway, client: &mut Client) -> Result<Arc<Principal>, Refusal> {
    if let Some(errand) = &client.errand {
        return Ok(errand.who.clone());
    }
    let secret = secret(client).ok_or_else(|| refused("the request carries no key".into()))?;
    let who = if gateway.issuers.is_token(secret) {
        let token = secret.to_owned();
        let who = gateway.issuers.authenticate(&token, clock::unix_us()).await?;
        if gateway.ledger.is_closed(&who.account) {
            return Err(refused(NotAccepted::AccountDisabled.to_string()));
        }
        who
    } else {
        let hash = KeyHash(Sha256::digest(secret.as_bytes()).into());
        let known = gateway.ledger.authenticate(&hash, clock::unix_us());
        known.map_err(|reason| refused(reason.to_string()))?
    };
    if !who.networks.is_empty() {
        let address = address(client, &gateway.config.trusted_proxies);
        if !who.may_come_from(address) {
            let from = address.map_or_else(|| "there".to_owned(), |address| address.to_string());
            let message = format!("the key may not be used from {from}");
            return Err(Refusal::new(RefusalKind::PermissionDenied, message)
                .hint("it is restricted to certain networks; whoever runs the gateway can change that"));
        }
    }
    Ok(who)
}

/// The key of a request that will be worked on later, as it is known here.
///
/// # Errors
/// There is none, or a token that will have ended by then.
pub(crate) fn key_hash(gateway: &Gateway, client: &Client) -> Result<KeyHash, Refusal> {
    let secret = secret(client).ok_or_else(|| refused("the request carries no key".into()))?;
    if gateway.issuers.is_token(secret) {
        let message = "a token of an identity provider ends before a job does";
        return Err(Refusal::new(RefusalKind::PermissionDenied, message).hint("send jobs with a gateway key"));
    }
    Ok(KeyHash(Sha256::digest(secret.as_bytes()).into()))
}

fn refused(message: String) -> Refusal {
    Refusal::new(RefusalKind::InvalidKey, message)
        .hint("send a gateway key as `Authorization: Bearer` or `x-api-key`")
        .should_retry(false)
}

/// What the caller sends to say who it is.
fn secret(client: &Client) -> Option<&str> {
    let bearer = client
        .header("authorization")
        .and_then(|value| value.split_once(' '));
    let bearer = bearer
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, key)| key.trim());
    client
        .header("x-api-key")
        .or(bearer)
        .filter(|key| !key.is_empty())
}

/// Where the caller is: the peer of the connection or, where that is a proxy that is trusted, the last address in
/// `X-Forwarded-For` that is not one. What an untrusted peer says of itself counts for nothing.
fn address(client: &Client, trusted: &[IpNet]) -> Option<IpAddr> {
    let is_trusted = |address: &IpAddr| {
        let address = address.to_canonical();
        trusted.iter().any(|network| network.contains(&address))
    };
    let peer = client.session.client_addr()?.as_inet()?.ip();
    if !is_trusted(&peer) {
        return Some(peer);
    }
    let headers = &client.session.req_header().headers;
    let told: Vec<&str> = headers
        .get_all("x-forwarded-for")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .collect();
    let mut nearest = peer;
    for hop in told.iter().rev() {
        // What cannot be read was not written by a proxy that is trusted: nothing beyond it is believed.
        nearest = hop.trim().parse().ok()?;
        if !is_trusted(&nearest) {
            break;
        }
    }
    Some(nearest)
}
