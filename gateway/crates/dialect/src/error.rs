//! Errors in the shapes that the official SDKs turn into their own classes, both ways.

use crate::sse;
use bytes::Bytes;
use exchange::{Dialect, Refusal, RefusalKind};
use serde_json::{Value, json};

/// What a provider said was wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamError {
    pub kind: RefusalKind,
    pub message: String,
    pub param: Option<String>,
    pub code: Option<String>,
}

/// The body of a refusal.
pub fn error_body(dialect: Dialect, refusal: &Refusal, request_id: &str) -> Bytes {
    let mut value = error_value(dialect, refusal);
    if dialect == Dialect::Anthropic {
        value["request_id"] = request_id.into();
    }
    value.to_string().into()
}

/// The event that ends a stream with a refusal.
pub(crate) fn event(dialect: Dialect, refusal: &Refusal) -> Bytes {
    let mut out = Vec::new();
    let name = (dialect == Dialect::Anthropic).then_some("error");
    sse::write(&mut out, name, &error_value(dialect, refusal));
    out.into()
}

fn error_value(dialect: Dialect, refusal: &Refusal) -> Value {
    let message = match &refusal.hint {
        Some(hint) => format!("{}; {hint}", refusal.message),
        None => refusal.message.clone(),
    };
    match dialect {
        Dialect::Anthropic => {
            let kind = match refusal.status {
                401 => "authentication_error",
                402 => "billing_error",
                403 => "permission_error",
                404 => "not_found_error",
                413 => "request_too_large",
                429 => "rate_limit_error",
                504 => "timeout_error",
                529 => "overloaded_error",
                400..=499 => "invalid_request_error",
                _ => "api_error",
            };
            json!({ "type": "error", "error": { "type": kind, "message": message } })
        }
        _ => {
            let kind = match (refusal.kind, refusal.status) {
                (RefusalKind::BudgetExceeded, _) => "insufficient_quota",
                (_, 429) => "rate_limit_error",
                (_, 400..=499) => "invalid_request_error",
                _ => "server_error",
            };
            let code = refusal.kind.as_str();
            json!({ "error": { "message": message, "type": kind, "param": refusal.param, "code": code } })
        }
    }
}

/// Reads a provider's error, in whatever shape it came. The status decides its kind; a provider that rejects our own
/// credential has failed, as far as the caller is concerned.
pub fn upstream_error(upstream: Dialect, status: u16, body: &[u8]) -> UpstreamError {
    let kind = match status {
        401..=403 => RefusalKind::UpstreamFailed,
        429 => RefusalKind::UpstreamRateLimited,
        408 | 504 => RefusalKind::UpstreamTimeout,
        400..=499 => RefusalKind::UpstreamRejected,
        _ => RefusalKind::UpstreamFailed,
    };
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &value["error"];
    let text = |name: &str| error[name].as_str().map(ToOwned::to_owned);
    let said = text("message").or_else(|| error.as_str().map(ToOwned::to_owned));
    let message = match (kind, said) {
        (RefusalKind::UpstreamFailed, _) if (401..=403).contains(&status) => {
            "the provider does not accept the gateway's own credential".into()
        }
        (_, Some(said)) => said,
        (_, None) => format!("the provider answered with status {status}"),
    };
    let code = if upstream == Dialect::Anthropic {
        text("type")
    } else {
        text("code")
    };
    UpstreamError {
        kind,
        message,
        param: text("param"),
        code,
    }
}

/// The message of an error inside a stream, if the event is one.
pub(crate) fn in_stream(data: &[u8]) -> Option<String> {
    let is_error = data.starts_with(b"{\"error\"")
        || data.starts_with(b"{ \"error\"")
        || data.starts_with(b"{\"type\":\"error\"")
        || data.starts_with(b"{\"type\": \"error\"");
    if !is_error {
        return None;
    }
    let value: Value = serde_json::from_slice(data).ok()?;
    let message = value["error"]["message"]
        .as_str()
        .or_else(|| value["error"].as_str());
    Some(message.unwrap_or("no reason was given").to_owned())
}
