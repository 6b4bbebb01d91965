//! A refusal as an HTTP answer, in the caller's dialect: the only place where one becomes the other.

use crate::client::{Client, Gone};
use exchange::{Dialect, Refusal, RefusalKind, RequestId};
use ledger::Denied;
use pingora_http::ResponseHeader;
use std::time::Duration;

/// Why no money could be held, for the caller: which budget, what is left of it, when it resets.
pub(crate) fn denied(denied: &Denied, now_unix_us: i64) -> Refusal {
    match denied {
        Denied::Budget { balance, .. } => {
            let wait = balance.resets_unix_us.saturating_sub(now_unix_us);
            let resets = match u64::try_from(wait / 1_000_000) {
                Ok(seconds) if balance.resets_unix_us < i64::MAX => {
                    format!("it resets in {} h", seconds / 3600 + 1)
                }
                _ => "it does not reset".into(),
            };
            Refusal::new(RefusalKind::BudgetExceeded, denied.to_string())
                .hint(format!("{resets}; whoever runs the gateway can raise it"))
                // Waiting a moment does not help, whatever the status makes an SDK believe.
                .should_retry(false)
        }
        Denied::Store { .. } => Refusal::new(RefusalKind::StoreUnavailable, denied.to_string())
            .retry_after(Some(Duration::from_secs(5))),
    }
}

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
