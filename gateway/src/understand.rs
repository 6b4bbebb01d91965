//! The request as the pipeline knows it: the body as read by `dialect`, and what the headers add to its facts.

use crate::client::Client;
use bytes::Bytes;
use dialect::Request;
use exchange::{Facts, Refusal, RefusalKind, Surface};
use http::{HeaderMap, HeaderName};
use ledger::Labels;

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
    let mut labels = declared(client, label_headers)?;
    if let Some(errand) = &client.errand {
        labels.extend(errand.labels.iter().cloned());
    }
    let facts = &mut request.facts;
    declare(facts, label_headers, &labels);
    for (name, value) in &client.session.req_header().headers {
        let Some(name) = name.as_str().strip_prefix("x-tollgate-") else {
            continue;
        };
        let value = value.to_str().map_err(|_| unreadable(name))?;
        match name {
            "workflow" => facts.workflow = Some(value.into()),
            "deadline-ms" => facts.deadline_ms = Some(value.trim().parse().map_err(|_| unreadable(name))?),
            _ => {}
        }
    }
    Ok(request)
}

/// The labels that the head of a request declares: those of the operator's headers, and `x-tollgate-tag-*`.
///
/// # Errors
/// A tag that is no text.
pub(crate) fn declared(client: &Client, label_headers: &[HeaderName]) -> Result<Labels, Refusal> {
    let headers = &client.session.req_header().headers;
    let listed = label_headers.iter();
    let mut labels: Labels = listed.filter_map(|name| label(headers, name)).collect();
    for (name, value) in headers {
        let name = name.as_str();
        if let Some(tag) = name.strip_prefix("x-tollgate-tag-") {
            let value = value.to_str();
            let value = value.map_err(|_| unreadable(name.trim_start_matches("x-tollgate-")))?;
            labels.push((tag.into(), value.into()));
        }
    }
    Ok(labels)
}

/// Puts declared labels after those of the body. What a body says under the name of an operator's header does not count.
pub(crate) fn declare(facts: &mut Facts, label_headers: &[HeaderName], labels: &Labels) {
    let is_listed = |key: &str| label_headers.iter().any(|name| name.as_str() == key);
    facts.labels.retain(|(key, _)| !is_listed(key));
    for label in labels {
        if !facts.labels.contains(label) {
            facts.labels.push(label.clone());
        }
    }
}

/// The label of a header, or none. A value that is no text, or long, says nothing that a condition could ask for.
fn label(headers: &HeaderMap, name: &HeaderName) -> Option<(Box<str>, Box<str>)> {
    let value = headers.get(name)?.to_str().ok()?.trim();
    (value.len() <= LONGEST_LABEL).then(|| (name.as_str().into(), value.into()))
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
            let name = [HeaderName::from_static("x-customer")];
            let labels: Labels = label(&headers, &name[0]).into_iter().collect();
            declare(&mut facts, &name, &labels);
            declare(&mut facts, &name[..0], &labels);
            assert_eq!(facts.label("task"), Some("a"));
            assert_eq!(facts.labels.len(), 1 + labels.len(), "each once");
            facts.label("x-customer").map(str::to_owned)
        };
        assert_eq!(facts(Some(" silver ")).as_deref(), Some("silver"));
        assert_eq!(facts(None), None);
        assert_eq!(facts(Some(&"x".repeat(LONGEST_LABEL + 1))), None);
    }
}
