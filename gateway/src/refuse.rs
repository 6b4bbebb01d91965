//! A refusal as an HTTP answer, in the caller's dialect: the only place where one becomes the other.

use crate::client::{Client, Gone};
use exchange::{Dialect, Refusal, RequestId};
use pingora_http::ResponseHeader;

/// Answers with the refusal. Returns the status sent, or 0 where the caller had gone.
pub(crate) async fn refuse(
    client: &mut Client,
    dialect: Dialect,
    refusal: &Refusal,
    request: RequestId,
) -> u16 {
    let id = request.to_string();
    let body = dialect::error_body(dialect, refusal, &id);
    let Ok(head) = head(refusal, dialect, &id) else {
        return 0;
    };
    match client.answer(head, body).await {
        Ok(()) => refusal.status,
        Err(Gone) => 0,
    }
}

fn head(refusal: &Refusal, dialect: Dialect, id: &str) -> pingora_error::Result<ResponseHeader> {
    let mut head = ResponseHeader::build(refusal.status, Some(6))?;
    head.insert_header("content-type", "application/json")?;
    head.insert_header("x-tollgate-request-id", id)?;
    head.insert_header("x-tollgate-refusal", refusal.kind.as_str())?;
    if dialect == Dialect::Anthropic {
        head.insert_header("request-id", id)?;
    }
    if let Some(after) = refusal.retry_after {
        head.insert_header("retry-after", after.as_secs_f64().ceil() as u64)?;
    }
    if let Some(retry) = refusal.should_retry {
        head.insert_header("x-should-retry", if retry { "true" } else { "false" })?;
    }
    Ok(head)
}
