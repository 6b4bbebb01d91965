//! The request as the pipeline knows it: the body as read by `dialect`, and what the headers add to its facts.

use crate::client::Client;
use bytes::Bytes;
use dialect::Request;
use exchange::{Refusal, RefusalKind, Surface};

/// Headers that reach a provider of the caller's own dialect.
const PASSED_ON: [&str; 4] = [
    "anthropic-version",
    "anthropic-beta",
    "openai-beta",
    "traceparent",
];

/// Reads the body and the headers that speak of routing.
///
/// # Errors
/// A body that is no request for this endpoint, or a header that makes no sense.
pub(crate) fn understand(client: &Client, surface: Surface, body: Bytes) -> Result<Request, Refusal> {
    let mut request = dialect::read_surface(surface, body).map_err(|error| {
        let refusal = Refusal::new(RefusalKind::InvalidRequest, error.message);
        match error.param {
            Some(param) => refusal.param(param),
            None => refusal,
        }
    })?;
    let facts = &mut request.facts;
    for (name, value) in &client.session.req_header().headers {
        let Some(name) = name.as_str().strip_prefix("x-tollgate-") else {
            continue;
        };
        let value = value.to_str().map_err(|_| unreadable(name))?;
        match name {
            "workflow" => facts.workflow = Some(value.into()),
            "deadline-ms" => facts.deadline_ms = Some(value.trim().parse().map_err(|_| unreadable(name))?),
            _ => {
                if let Some(tag) = name.strip_prefix("tag-") {
                    facts.labels.push((tag.into(), value.into()));
                }
            }
        }
    }
    Ok(request)
}

fn unreadable(name: &str) -> Refusal {
    let header = format!("x-tollgate-{name}");
    Refusal::new(
        RefusalKind::InvalidRequest,
        format!("the header {header} cannot be read"),
    )
    .param(header)
}

/// The caller's headers that go to the provider with the request.
pub(crate) fn passed_on(client: &Client) -> Vec<(&'static str, Bytes)> {
    let headers = &client.session.req_header().headers;
    let found = PASSED_ON
        .iter()
        .filter_map(|name| Some((*name, headers.get(*name)?)));
    let background = client.errand.as_ref().is_some_and(|errand| errand.background);
    let class = background.then_some(("x-tollgate-class", Bytes::from_static(b"background")));
    found
        .map(|(name, value)| (name, Bytes::copy_from_slice(value.as_bytes())))
        .chain(class)
        .collect()
}
