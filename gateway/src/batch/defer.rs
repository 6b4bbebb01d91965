//! An ordinary request that may wait: its policy tier says so, and its caller has agreed by `x-tollgate-defer`.
//!
//! `wait` holds the connection until the answer is there; `accept` is answered with 202 and the job's id.

use super::requests::{self, Asked};
use super::{Desk, write_json};
use crate::accept::key_hash;
use crate::client::Client;
use crate::clock;
use crate::gateway::Gateway;
use dialect::Request;
use exchange::{LatencyTier, Money, Refusal, RefusalKind, RequestId};
use ledger::{Job, Principal};
use pingora_http::ResponseHeader;
use router_policies::{Policy, Situation};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The header by which a caller agrees to wait.
pub(crate) const DEFER: &str = "x-tollgate-defer";
/// The deadline of a request that may wait and names none.
const DAY_US: i64 = 24 * 3_600_000_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Wait,
    Accept,
}

/// Makes a job of the request if it may wait; false: it is to be served at once.
///
/// # Errors
/// It may wait, but no job can be made of it.
pub(crate) async fn defer(
    gateway: &Arc<Gateway>,
    client: &mut Client,
    (who, request): (&Arc<Principal>, &Request),
    policy: &Policy,
    id: RequestId,
) -> Result<bool, Refusal> {
    let Some(how) = agreed(client)? else {
        return Ok(false);
    };
    if client.errand.is_some() || request.facts.stream {
        return Ok(false);
    }
    let now = clock::unix_us();
    let profile = policy.classify(&Situation {
        facts: &request.facts,
        account: &who.account,
        unix_s: now / 1_000_000,
        budget_left: Money::MAX,
    });
    if !matches!(profile.latency, LatencyTier::Deferred | LatencyTier::Batch) {
        return Ok(false);
    }
    let desk = Desk {
        gateway: gateway.clone(),
        who: who.clone(),
        key_hash: key_hash(gateway, client)?.to_hex(),
    };
    let micros = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX / 1000).saturating_mul(1000);
    let asked = Asked {
        dialect: request.dialect,
        body: request.raw.clone(),
        deadline_us: now.saturating_add(profile.deadline_ms.map_or(DAY_US, micros)),
        metadata: Value::Null,
        webhook: String::new(),
        idempotency: client.header("idempotency-key").unwrap_or_default().to_owned(),
    };
    let (job, _) = requests::make(&desk, asked).await?;
    match how {
        How::Accept => {
            let shown = requests::object(&desk, &job).await?;
            if write_json(client, 202, &shown).await.is_err() {
                client.reusable = false;
            }
        }
        How::Wait => wait(&desk, client, job, id).await?,
    }
    Ok(true)
}

fn agreed(client: &Client) -> Result<Option<How>, Refusal> {
    match client.header(DEFER) {
        None => Ok(None),
        Some("wait") => Ok(Some(How::Wait)),
        Some("accept") => Ok(Some(How::Accept)),
        Some(other) => {
            let message = format!("`x-tollgate-defer: {other}` is neither `wait` nor `accept`");
            Err(Refusal::new(RefusalKind::InvalidRequest, message).param("x-tollgate-defer"))
        }
    }
}

/// Holds the connection. Whoever hangs up no longer wants the answer.
async fn wait(desk: &Desk, client: &mut Client, job: Job, id: RequestId) -> Result<(), Refusal> {
    let left = u64::try_from(job.deadline_us - clock::unix_us()).unwrap_or(0);
    let until = Instant::now() + Duration::from_micros(left) + Duration::from_secs(60);
    let name = job.id.clone();
    let job = tokio::select! {
        biased;
        job = requests::ended(desk, job, until) => job?,
        _ = client.gone() => {
            client.reusable = false;
            let cancelled = desk.jobs().cancel(&name).await;
            if let Err(error) = cancelled {
                tracing::warn!(%error, job = name, "a job whose caller left could not be cancelled");
            }
            desk.gateway.batch.wake.notify_one();
            return Ok(());
        }
    };
    let item = requests::item(desk, &job).await?;
    let answer = item.filter(|item| item.status > 0);
    let body = answer
        .as_ref()
        .and_then(|item| super::pack::open(&desk.gateway, item.output.as_deref()).ok());
    let Some((item, body)) = answer.zip(body) else {
        let message = format!("the job {name} that was made of the request was not answered");
        return Err(Refusal::new(RefusalKind::UpstreamTimeout, message));
    };
    let status = u16::try_from(item.status).unwrap_or(502);
    let Ok(mut head) = ResponseHeader::build(status, Some(4)) else {
        return Ok(());
    };
    let _ = head.insert_header("content-type", "application/json");
    let _ = head.insert_header("x-tollgate-job", name);
    let _ = head.insert_header("x-tollgate-request-id", id.to_string());
    let _ = head.insert_header("x-tollgate-way", item.way);
    if client.answer(head, body).await.is_err() {
        client.reusable = false;
    }
    desk.was_read(&job).await;
    Ok(())
}
