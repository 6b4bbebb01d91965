//! `/v1/jobs`: one request that may wait, of any kind the gateway serves, with a deadline. Answered at once with an id; the
//! result by polling, long polling (`Prefer: wait=`), server-sent events or a signed webhook.

use super::openai::window;
use super::take::{Taking, blank, fresh, start};
use super::{BATCHED, Desk, Reply, Visit, pack, seconds, store_error, webhook};
use crate::clock;
use bytes::Bytes;
use exchange::{Refusal, RefusalKind, Surface};
use ledger::{Job, JobKind, StoredItem};
use pingora_http::ResponseHeader;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// The longest that a poll waits.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// A change at another node is seen within this.
const GLANCE: Duration = Duration::from_millis(500);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask<'a> {
    /// `/v1/chat/completions` if left out.
    #[serde(default)]
    endpoint: Option<String>,
    #[serde(borrow)]
    body: &'a RawValue,
    #[serde(default)]
    deadline_s: Option<i64>,
    #[serde(default)]
    completion_window: Option<String>,
    #[serde(default)]
    metadata: Option<Value>,
    #[serde(default)]
    webhook: Option<webhook::Ask>,
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(RefusalKind::InvalidRequest, message)
}

pub(super) async fn create(visit: &mut Visit<'_>) -> Result<Reply, Refusal> {
    let limits = &visit.desk.gateway.config.limits;
    let body = match visit
        .client
        .read_body(limits.body_bytes, limits.body_timeout)
        .await
    {
        Ok(body) => body,
        Err(Some(refusal)) => return Err(refusal),
        Err(None) => return Ok(Reply::Written),
    };
    let ask: Ask<'_> = serde_json::from_slice(&body).map_err(|error| {
        invalid(format!("that is no job: {error}")).hint(
            "send {\"endpoint\": \"/v1/chat/completions\", \"body\": {…}, \"completion_window\": \"2h\"}",
        )
    })?;
    let endpoint = ask.endpoint.as_deref().unwrap_or("/v1/chat/completions");
    let surface = Surface::of_endpoint(endpoint).ok_or_else(|| {
        let problem = format!("`{endpoint}` cannot be a job; /v1/messages, {BATCHED}");
        invalid(problem).param("endpoint")
    })?;
    let window = match (ask.deadline_s, ask.completion_window.as_deref()) {
        (Some(seconds), None) if (1..=172_800).contains(&seconds) => seconds * 1_000_000,
        (None, Some(text)) => window(text).ok_or_else(|| {
            invalid("`completion_window` is a time such as 30m or 24h").param("completion_window")
        })?,
        (None, None) => 24 * 3_600_000_000,
        _ => {
            let problem = "give `deadline_s`, from 1 to 172800, or `completion_window`, not both";
            return Err(invalid(problem).param("deadline_s"));
        }
    };
    let desk = visit.desk.clone();
    let asked = Asked {
        surface,
        body: body.slice_ref(ask.body.get().as_bytes()),
        deadline_us: clock::unix_us() + window,
        metadata: ask.metadata.unwrap_or(Value::Null),
        webhook: match &ask.webhook {
            Some(hook) => webhook::sealed(&desk.gateway, hook)?,
            None => String::new(),
        },
        idempotency: visit
            .client
            .header("idempotency-key")
            .unwrap_or_default()
            .to_owned(),
    };
    let (job, is_new) = make(&desk, asked).await?;
    let shown = object(&desk, &job).await?;
    Ok(Reply::Json(if is_new { 202 } else { 200 }, shown))
}

/// A request that is to become a job.
pub(super) struct Asked {
    pub(super) surface: Surface,
    pub(super) body: Bytes,
    pub(super) deadline_us: i64,
    pub(super) metadata: Value,
    pub(super) webhook: String,
    pub(super) idempotency: String,
}

/// Makes the job, unless one of the same idempotency key is there; true if it is new.
pub(super) async fn make(desk: &Desk, asked: Asked) -> Result<(Job, bool), Refusal> {
    let mut job = blank(desk, (fresh("job_"), JobKind::Request), asked.surface);
    job.deadline_us = asked.deadline_us;
    job.metadata = asked.metadata.to_string();
    job.labels.splice(0..0, desk.labels_in(&asked.metadata));
    job.webhook = asked.webhook;
    job.idempotency = asked.idempotency;
    if !job.idempotency.is_empty() {
        let known = desk
            .jobs()
            .job_by_idempotency(&job.account, job.kind, &job.idempotency)
            .await;
        if let Some(known) = known.map_err(|error| store_error(&error))? {
            return Ok((known, false));
        }
    }
    let (id, idempotency) = (job.id.clone(), job.idempotency.clone());
    let account = job.account.clone();
    let mut taking = Taking::begin(desk, job, asked.surface).await?;
    if !taking.is_first {
        // Another call with the same key was faster.
        let known = desk
            .jobs()
            .job_by_idempotency(&account, JobKind::Request, &idempotency)
            .await;
        let known = known.map_err(|error| store_error(&error))?;
        return known
            .map(|job| (job, false))
            .ok_or_else(|| invalid("the idempotency key is in use"));
    }
    taking.push(desk, (id.clone(), asked.body), "body").await?;
    let job = taking.finish(desk, "starting").await?;
    Ok((start(desk, job, &id).await?, true))
}

pub(super) async fn list(visit: &mut Visit<'_>) -> Result<Reply, Refusal> {
    let (found, has_more) = visit.list("after", JobKind::Request).await?;
    let mut data = Vec::with_capacity(found.len());
    for job in &found {
        data.push(object(&visit.desk, job).await?);
    }
    Ok(Reply::Json(
        200,
        json!({"object": "list", "data": data, "has_more": has_more}),
    ))
}

pub(super) async fn cancel(visit: &mut Visit<'_>, id: &str) -> Result<Reply, Refusal> {
    let job = visit.desk.job(id, JobKind::Request).await?;
    visit.desk.cancel(&job).await?;
    let job = visit.desk.job(id, JobKind::Request).await?;
    object(&visit.desk, &job)
        .await
        .map(|value| Reply::Json(200, value))
}

pub(super) async fn show(visit: &mut Visit<'_>, id: &str) -> Result<Reply, Refusal> {
    let job = visit.desk.job(id, JobKind::Request).await?;
    let wants_events = visit
        .client
        .header("accept")
        .is_some_and(|accept| accept.contains("text/event-stream"));
    if wants_events {
        return events(visit, job).await;
    }
    let wait = visit.client.header("prefer").and_then(|prefer| {
        let mut parts = prefer.split(',').map(str::trim);
        parts.find_map(|part| part.strip_prefix("wait=")?.parse().ok())
    });
    let job = match wait {
        Some(seconds) => {
            let until = Instant::now() + Duration::from_secs(seconds).min(LONGEST_WAIT);
            let desk = visit.desk.clone();
            tokio::select! {
                biased;
                job = ended(&desk, job, until) => job?,
                _ = visit.client.gone() => {
                    visit.client.reusable = false;
                    return Ok(Reply::Written);
                }
            }
        }
        None => job,
    };
    let shown = object(&visit.desk, &job).await?;
    visit.desk.was_read(&job).await;
    Ok(Reply::Json(200, shown))
}

/// The job when it has ended, or as it is at the end of waiting.
pub(super) async fn ended(desk: &Desk, mut job: Job, until: Instant) -> Result<Job, Refusal> {
    while job.ended_us == 0 && Instant::now() < until {
        let changed = desk.gateway.batch.changed.notified();
        let glance = (Instant::now() + GLANCE).min(until);
        let _ = timeout_at(glance, changed).await;
        job = desk.job(&job.id, job.kind).await?;
    }
    Ok(job)
}

/// The job's state whenever it changes, and its result.
async fn events(visit: &mut Visit<'_>, mut job: Job) -> Result<Reply, Refusal> {
    let Ok(mut head) = ResponseHeader::build(200, Some(3)) else {
        return Ok(Reply::Written);
    };
    let _ = head.insert_header("content-type", "text/event-stream");
    let _ = head.insert_header("cache-control", "no-cache");
    if visit.client.begin(head).await.is_err() {
        return Ok(Reply::Written);
    }
    let mut told = Value::Null;
    loop {
        let shown = object(&visit.desk, &job).await?;
        let event = if shown["status"] == told && job.ended_us == 0 {
            // A comment, so that proxies keep the connection and a caller that has gone is noticed.
            Bytes::from_static(b": waiting\n\n")
        } else {
            told = shown["status"].clone();
            Bytes::from(format!(
                "event: {}\ndata: {shown}\n\n",
                if job.ended_us > 0 { "result" } else { "status" }
            ))
        };
        if visit.client.write(event).await.is_err() {
            visit.client.reusable = false;
            return Ok(Reply::Written);
        }
        if job.ended_us > 0 {
            visit.desk.was_read(&job).await;
            break;
        }
        let desk = visit.desk.clone();
        tokio::select! {
            _ = visit.client.gone() => {
                visit.client.reusable = false;
                return Ok(Reply::Written);
            }
            () = async { tokio::select! { () = desk.gateway.batch.changed.notified() => {} () = sleep(GLANCE) => {} } } => {}
        }
        job = desk.job(&job.id, job.kind).await?;
    }
    if visit.client.end(Bytes::new()).await.is_err() {
        visit.client.reusable = false;
    }
    Ok(Reply::Written)
}

/// The one item of a job.
pub(super) async fn item(desk: &Desk, job: &Job) -> Result<Option<StoredItem>, Refusal> {
    let items = desk
        .jobs()
        .items(&job.id, (0, 1))
        .await
        .map_err(|error| store_error(&error))?;
    Ok(items.into_iter().next())
}

/// A job as its maker sees it.
pub(super) async fn object(desk: &Desk, job: &Job) -> Result<Value, Refusal> {
    let item = item(desk, job).await?;
    let state = item.as_ref().map_or("queued", |item| item.state.as_str());
    let status = match (job.state.as_str(), state) {
        ("failed", _) => "failed",
        (_, "succeeded" | "rescued") => "succeeded",
        (_, "errored") => "failed",
        (_, "filed") => "queued",
        (_, state) => state,
    };
    let mut result = Value::Null;
    if let Some(item) = item.as_ref().filter(|item| item.ended_us > 0 && item.status > 0) {
        let body = pack::open(&desk.gateway, item.output.as_deref()).ok();
        let body: Value = body
            .and_then(|body| serde_json::from_slice(&body).ok())
            .unwrap_or_default();
        result = json!({"status_code": item.status, "body": body});
    }
    let problem = item
        .as_ref()
        .map(|item| item.problem.clone())
        .filter(|_| status == "failed");
    let problem = if job.problem.is_empty() {
        problem
    } else {
        Some(job.problem.clone())
    };
    Ok(json!({
        "id": job.id, "object": "job", "status": status, "endpoint": job.endpoint,
        "created_at": job.created_us / 1_000_000, "deadline_at": job.deadline_us / 1_000_000,
        "ended_at": seconds(job.ended_us), "way": item.as_ref().map(|item| item.way.clone()),
        "rescued": item.as_ref().is_some_and(|item| item.rescue),
        "cost": item.as_ref().map(|item| item.charge.to_string()),
        "saved": item.as_ref().map(|item| item.saved.to_string()),
        "result": result, "error": problem,
        "metadata": serde_json::from_str::<Value>(&job.metadata).unwrap_or_default(),
    }))
}
