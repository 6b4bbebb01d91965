//! An ordinary request that may wait: its policy tier says so, and its caller has agreed by `x-tollgate-defer`, or the
//! policy has for callers that say nothing.
//!
//! `wait` holds the connection until the answer is there; `accept` is answered with 202 and the job's id; `never` is served
//! at once. By policy the connection is held for as long as the policy says, and then answered with 202.

use super::requests::{self, Asked};
use super::{Desk, declared};
use crate::accept::key_hash;
use crate::client::Client;
use crate::clock;
use crate::gateway::Gateway;
use dialect::Request;
use exchange::{LatencyTier, Money, Refusal, RefusalKind, RequestId};
use ledger::{Job, Labels, Principal};
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

/// How a caller takes its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// On the connection, however long it takes.
    Wait,
    /// On the connection if it comes within this, else by the job's id.
    Within(Duration),
}

/// What the caller says of waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Nothing,
    Never,
    Agreed(How),
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
    let said = said(client)?;
    if said == Said::Never || client.errand.is_some() || request.facts.stream {
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
    let by_policy = || {
        Some(How::Within(Duration::from_secs(
            policy.deferral(&profile)?.wait_s,
        )))
    };
    let (how, is_asked) = match said {
        Said::Agreed(how) => (how, true),
        _ => match by_policy() {
            Some(how) => (how, false),
            None => return Ok(false),
        },
    };
    let micros = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX / 1000).saturating_mul(1000);
    let asked = Asked {
        surface: request.facts.surface,
        body: request.raw.clone(),
        deadline_us: now.saturating_add(profile.deadline_ms.map_or(DAY_US, micros)),
        metadata: Value::Null,
        webhook: String::new(),
        idempotency: client.header("idempotency-key").unwrap_or_default().to_owned(),
    };
    let labels = request.facts.labels.clone();
    let (desk, job) = match begin((gateway, labels), client, who, asked).await {
        Ok(begun) => begun,
        // Who did not ask to wait is not refused what can be had at once: a token ends before a job does, and jobs need
        // the store.
        Err(refusal) if !is_asked && may_be_served(refusal.kind) => return Ok(false),
        Err(refusal) => return Err(refusal),
    };
    wait(&desk, client, (job, how), id).await?;
    Ok(true)
}

async fn begin(
    (gateway, labels): (&Arc<Gateway>, Labels),
    client: &Client,
    who: &Arc<Principal>,
    asked: Asked,
) -> Result<(Desk, Job), Refusal> {
    let desk = Desk {
        gateway: gateway.clone(),
        workflow: declared(client, who),
        labels,
        who: who.clone(),
        key_hash: key_hash(gateway, client)?.to_hex(),
    };
    let (job, _) = requests::make(&desk, asked).await?;
    Ok((desk, job))
}

const fn may_be_served(kind: RefusalKind) -> bool {
    matches!(
        kind,
        RefusalKind::PermissionDenied | RefusalKind::StoreUnavailable
    )
}

fn said(client: &Client) -> Result<Said, Refusal> {
    match client.header(DEFER) {
        None => Ok(Said::Nothing),
        Some("never") => Ok(Said::Never),
        Some("wait") => Ok(Said::Agreed(How::Wait)),
        Some("accept") => Ok(Said::Agreed(How::Within(Duration::ZERO))),
        Some(other) => {
            let message = format!("`x-tollgate-defer: {other}` is none of `wait`, `accept` and `never`");
            Err(Refusal::new(RefusalKind::InvalidRequest, message).param("x-tollgate-defer"))
        }
    }
}

/// Holds the connection. Whoever hangs up no longer wants the answer.
async fn wait(
    desk: &Desk,
    client: &mut Client,
    (job, how): (Job, How),
    id: RequestId,
) -> Result<(), Refusal> {
    let left = u64::try_from(job.deadline_us - clock::unix_us()).unwrap_or(0);
    let held = match how {
        How::Wait => Duration::from_micros(left) + Duration::from_secs(60),
        How::Within(held) => held,
    };
    let until = Instant::now() + held;
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
    if job.ended_us == 0 && how != How::Wait {
        return accepted(desk, client, &job, id).await;
    }
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

/// The answer will be had by the job's id.
async fn accepted(desk: &Desk, client: &mut Client, job: &Job, id: RequestId) -> Result<(), Refusal> {
    let shown = requests::object(desk, job).await?;
    let Ok(mut head) = ResponseHeader::build(202, Some(4)) else {
        return Ok(());
    };
    let _ = head.insert_header("content-type", "application/json");
    let _ = head.insert_header("location", format!("/v1/jobs/{}", job.id));
    let _ = head.insert_header("x-tollgate-job", job.id.as_str());
    let _ = head.insert_header("x-tollgate-request-id", id.to_string());
    if client.answer(head, shown.to_string().into()).await.is_err() {
        client.reusable = false;
    }
    Ok(())
}
