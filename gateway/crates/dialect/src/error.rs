//! Errors in the shapes that the official SDKs turn into their own classes, both ways.

use crate::sse;
use bytes::Bytes;
use exchange::{Dialect, Refusal, RefusalKind};
use serde_json::{Value, json};

/// The most of a provider's words that is passed on, in bytes.
const LONGEST_MESSAGE: usize = 2_000;

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
    if dialect == Dialect::Anthropic {
        let kind = anthropic_type(refusal.status);
        return json!({ "type": "error", "error": { "type": kind, "message": message } });
    }
    let kind = match (refusal.kind, refusal.status) {
        (RefusalKind::BudgetExceeded, _) => "insufficient_quota",
        (_, 401) => "authentication_error",
        (_, 403) => "permission_error",
        (_, 429) => "rate_limit_error",
        (_, 400..=499) => "invalid_request_error",
        _ => "server_error",
    };
    let code = refusal.kind.as_str();
    json!({ "error": { "message": message, "type": kind, "param": refusal.param, "code": code } })
}

const fn anthropic_type(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        504 => "timeout_error",
        503 | 529 => "overloaded_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    }
}

/// Reads a provider's error, in whatever shape it came. The status decides its kind; a provider that rejects our own
/// credential or account has failed, as far as the caller is concerned, and its words on that are not the caller's.
pub fn upstream_error(upstream: Dialect, status: u16, body: &[u8]) -> UpstreamError {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &value["error"];
    // A code may be a number too: servers that put the status there say nothing new by it.
    let text = |name: &str| error[name].as_str().map(ToOwned::to_owned);
    let code = if upstream == Dialect::Anthropic {
        text("type")
    } else {
        text("code").or_else(|| text("type"))
    };
    let said = said(error).or_else(|| said(&value)).or_else(|| plain(body));
    let ours = matches!(status, 401..=403);
    let kind = match status {
        401..=403 => RefusalKind::UpstreamFailed,
        408 | 504 => RefusalKind::UpstreamTimeout,
        // 498 is what Groq says when a tier is full.
        429 | 498 => RefusalKind::UpstreamRateLimited,
        400 if is_too_long(code.as_deref(), said.as_deref()) => RefusalKind::ContextTooLong,
        400..=499 => RefusalKind::UpstreamRejected,
        _ => RefusalKind::UpstreamFailed,
    };
    let message = match said {
        _ if ours => "the provider does not accept the gateway's own credential or account".into(),
        Some(said) => said,
        None => format!("the provider answered with status {status}"),
    };
    let param = text("param").filter(|_| !ours);
    UpstreamError {
        kind,
        message,
        param,
        code,
    }
}

fn is_too_long(code: Option<&str>, said: Option<&str>) -> bool {
    let said = said.unwrap_or_default();
    code == Some("context_length_exceeded")
        || said.contains("prompt is too long")
        || said.contains("maximum context length")
}

/// The message in an error of any shape: `{"message"}` (OpenAI and Anthropic, inside `error`), a bare text, FastAPI's
/// `{"detail"}`.
pub(crate) fn said(error: &Value) -> Option<String> {
    let detail = &error["detail"];
    let message = error
        .as_str()
        .or_else(|| error["message"].as_str())
        .or_else(|| detail.as_str())
        .or_else(|| detail[0]["msg"].as_str());
    message
        .filter(|message| !message.trim().is_empty())
        .map(shortened)
}

/// A short text that is no page and no JSON.
fn plain(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?.trim();
    let is_plain = !text.is_empty() && text.len() <= 300 && !text.starts_with(['<', '{', '[']);
    is_plain.then(|| text.to_owned())
}

fn shortened(message: &str) -> String {
    if message.len() <= LONGEST_MESSAGE {
        return message.to_owned();
    }
    format!("{}…", &message[..message.floor_char_boundary(LONGEST_MESSAGE)])
}

/// The message of an error inside a stream, if the event is one.
pub(crate) fn in_stream(event: &Value) -> Option<String> {
    let error = &event["error"];
    let is_error = match error {
        Value::Null | Value::Bool(false) => event["object"] == "error" || event["type"] == "error",
        _ => true,
    };
    is_error.then(|| {
        said(error)
            .or_else(|| said(event))
            .unwrap_or_else(|| "no reason was given".into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: u16, body: &str, kind: RefusalKind, message: &str) {
        let error = upstream_error(Dialect::OpenaiChat, status, body.as_bytes());
        assert_eq!(
            (error.kind, error.message.as_str()),
            (kind, message),
            "{status} {body}"
        );
    }

    #[test]
    fn every_shape_of_error_is_read_and_the_status_decides() {
        use RefusalKind::{
            ContextTooLong, UpstreamFailed, UpstreamRateLimited, UpstreamRejected, UpstreamTimeout,
        };
        let openai =
            r#"{"error":{"message":"bad field","type":"invalid_request_error","param":"x","code":null}}"#;
        check(400, openai, UpstreamRejected, "bad field");
        check(
            404,
            r#"{"type":"error","error":{"type":"not_found_error","message":"model: x"}}"#,
            UpstreamRejected,
            "model: x",
        );
        check(
            422,
            r#"{"detail":[{"loc":["body"],"msg":"Field required"}]}"#,
            UpstreamRejected,
            "Field required",
        );
        check(
            413,
            "<html>too large</html>",
            UpstreamRejected,
            "the provider answered with status 413",
        );
        check(429, r#"{"error":"slow down"}"#, UpstreamRateLimited, "slow down");
        check(
            500,
            "upstream connect error",
            UpstreamFailed,
            "upstream connect error",
        );
        check(
            529,
            r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
            UpstreamFailed,
            "Overloaded",
        );
        check(504, "", UpstreamTimeout, "the provider answered with status 504");
        check(
            502,
            "{\"error\":",
            UpstreamFailed,
            "the provider answered with status 502",
        );
        let long = r#"{"error":{"message":"too many","code":"context_length_exceeded"}}"#;
        check(400, long, ContextTooLong, "too many");
    }

    #[test]
    fn words_about_our_own_credential_are_not_passed_on() {
        let body = r#"{"error":{"message":"Incorrect API key provided: sk-abc","param":"key","code":"invalid_api_key"}}"#;
        for status in [401, 402, 403] {
            let error = upstream_error(Dialect::OpenaiChat, status, body.as_bytes());
            assert_eq!((error.kind, error.param), (RefusalKind::UpstreamFailed, None));
            assert!(!error.message.contains("sk-"));
        }
    }

    #[test]
    fn bodies_have_the_shape_the_sdks_read() {
        let refusal = Refusal::new(RefusalKind::BudgetExceeded, "spent")
            .hint("resets at noon")
            .param("model");
        let body: Value = serde_json::from_slice(&error_body(Dialect::OpenaiChat, &refusal, "r1")).unwrap();
        let error = json!({ "message": "spent; resets at noon", "type": "insufficient_quota", "param": "model", "code": "budget_exceeded" });
        assert_eq!(body, json!({ "error": error }));
        let body: Value = serde_json::from_slice(&error_body(Dialect::Anthropic, &refusal, "r1")).unwrap();
        let error = json!({ "type": "rate_limit_error", "message": "spent; resets at noon" });
        assert_eq!(
            body,
            json!({ "type": "error", "error": error, "request_id": "r1" })
        );
    }

    #[test]
    fn errors_in_streams_are_told_from_chunks_without_one() {
        assert_eq!(
            in_stream(&json!({ "id": "c", "choices": [], "error": null })),
            None
        );
        assert_eq!(
            in_stream(&json!({ "choices": [], "error": { "message": "gone" } })).as_deref(),
            Some("gone")
        );
        assert_eq!(
            in_stream(&json!({ "type": "error", "error": { "message": "m" } })).as_deref(),
            Some("m")
        );
        assert_eq!(
            in_stream(&json!({ "object": "error", "message": "old" })).as_deref(),
            Some("old")
        );
    }
}
