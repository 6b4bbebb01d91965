//! The request as the pipeline knows it: the body as read by `dialect`, and what the headers add to its facts.

use crate::client::Client;
use bytes::Bytes;
use dialect::Request;
use exchange::{Facts, Refusal, RefusalKind, Surface};
use http::{HeaderMap, HeaderName};

/// Headers that reach a provider of the caller's own dialect.
const PASSED_ON: [&str; 4] = [
    "anthropic-version",
    "anthropic-beta",
    "openai-beta",
    "traceparent",
];

/// The longest value of a header that becomes a label, in bytes.
const LONGEST_LABEL: usize = 256;

/// Reads the body and the headers that speak of routing.
///
/// # Errors
/// A body that is no request for this endpoint, or a header that makes no sense.
pub(crate) fn understand(
    client: &Client,
    (surface, label_headers): (Surface, &[HeaderName]),
    body: Bytes,
) -> Result<Request, Refusal> {
    let mut request = dialect::read_surface(surface, body).map_err(|error| {
        let refusal = Refusal::new(RefusalKind::InvalidRequest, error.message);
        match error.param {
            Some(param) => refusal.param(param),
            None => refusal,
        }
    })?;
    let facts = &mut request.facts;
    let headers = &client.session.req_header().headers;
    for name in label_headers {
        label(facts, headers, name);
    }
    for (name, value) in headers {
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

/// The label of a header, or none: what a body says under its name does not count. A value that is no text, or long, says
/// nothing that a condition could ask for.
fn label(facts: &mut Facts, headers: &HeaderMap, name: &HeaderName) {
    facts.labels.retain(|(key, _)| **key != *name.as_str());
    let value = headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .map(str::trim);
    if let Some(value) = value.filter(|value| value.len() <= LONGEST_LABEL) {
        facts.labels.push((name.as_str().into(), value.into()));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_the_say_on_its_label() {
        let body = r#"{"model": "m", "messages": [{"role": "user", "content": "hi"}], "metadata": {"x-customer": "gold", "task": "a"}}"#;
        let facts = |value: Option<&str>| {
            let mut facts = dialect::read_surface(Surface::ChatCompletions, body.into())
                .unwrap()
                .facts;
            assert_eq!(facts.label("x-customer"), Some("gold"));
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert("X-Customer", value.parse().unwrap());
            }
            label(&mut facts, &headers, &HeaderName::from_static("x-customer"));
            assert_eq!(facts.label("task"), Some("a"));
            facts.label("x-customer").map(str::to_owned)
        };
        assert_eq!(facts(Some(" silver ")).as_deref(), Some("silver"));
        assert_eq!(facts(None), None);
        assert_eq!(facts(Some(&"x".repeat(LONGEST_LABEL + 1))), None);
    }
}
