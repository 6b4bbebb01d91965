//! OpenAI's `/v1/batches`.

use super::take::{blank, fresh, start};
use super::{BATCHED, Reply, Visit, files, openai_surface, seconds, store_error, surface};
use exchange::{Refusal, RefusalKind};
use ledger::{Job, JobKind, Tally};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Ask {
    input_file_id: String,
    endpoint: String,
    completion_window: String,
    #[serde(default)]
    metadata: Option<serde_json::Map<String, Value>>,
}

fn invalid(message: impl Into<String>, param: &str) -> Refusal {
    Refusal::new(RefusalKind::InvalidRequest, message).param(param)
}

/// `24h`, as OpenAI has it; here any number of seconds, minutes or hours up to two days will do. In microseconds.
pub(super) fn window(text: &str) -> Option<i64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit_s = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    let seconds = number.parse::<i64>().ok()?.checked_mul(unit_s)?;
    (1..=172_800).contains(&seconds).then_some(seconds * 1_000_000)
}

pub(super) async fn create(visit: &mut Visit<'_>) -> Result<Reply, Refusal> {
    let Some(body) = visit.json().await? else {
        return Ok(Reply::Written);
    };
    let ask: Ask = serde_json::from_value(body)
        .map_err(|error| Refusal::new(RefusalKind::InvalidRequest, format!("that is no batch: {error}")))?;
    let Some(endpoint) = openai_surface(&ask.endpoint) else {
        let message = format!("`{}` cannot be batched here; {BATCHED}", ask.endpoint);
        return Err(invalid(message, "endpoint"));
    };
    let window = window(&ask.completion_window).ok_or_else(|| {
        invalid(
            "`completion_window` is a time such as 24h, 2h, 30m or 90s, at most 48h",
            "completion_window",
        )
    })?;
    let desk = visit.desk.clone();
    let file = desk.job(&ask.input_file_id, JobKind::File).await?;
    if file.state != "ready" {
        return Err(invalid(
            format!("the file `{}` is not whole", file.id),
            "input_file_id",
        ));
    }
    if surface(&file) != endpoint {
        let message = format!(
            "the lines of the file `{}` are for {}, not for {}",
            file.id,
            surface(&file).endpoint(),
            ask.endpoint
        );
        return Err(invalid(message, "endpoint"));
    }
    let mut job = blank(&desk, (fresh("batch_"), JobKind::Batch), endpoint);
    job.state = "starting".into();
    job.input = file.id.clone();
    job.name = ask.completion_window;
    let metadata = ask.metadata.map_or(Value::Null, Value::Object);
    job.metadata = metadata.to_string();
    // The file was ruled on by its own.
    job.labels.splice(0..0, desk.labels_in(&metadata));
    job.labels.splice(0..0, file.labels.iter().cloned());
    job.deadline_us = job.created_us + window;
    job.total = file.total;
    job.bytes = file.bytes;
    desk.jobs()
        .create(&job)
        .await
        .map_err(|error| store_error(&error))?;
    let job = start(&desk, job, &file.id).await?;
    object(visit, &job).await.map(|value| Reply::Json(200, value))
}

pub(super) async fn show(visit: &mut Visit<'_>, id: &str) -> Result<Reply, Refusal> {
    let job = visit.desk.job(id, JobKind::Batch).await?;
    object(visit, &job).await.map(|value| Reply::Json(200, value))
}

pub(super) async fn list(visit: &mut Visit<'_>) -> Result<Reply, Refusal> {
    let (found, has_more) = visit.list("after", JobKind::Batch).await?;
    let mut data = Vec::with_capacity(found.len());
    for job in &found {
        data.push(object(visit, job).await?);
    }
    let ends = [data.first(), data.last()].map(|one| one.map_or(Value::Null, |one| one["id"].clone()));
    let shown = json!({"object": "list", "data": data, "has_more": has_more, "first_id": ends[0], "last_id": ends[1]});
    Ok(Reply::Json(200, shown))
}

pub(super) async fn cancel(visit: &mut Visit<'_>, id: &str) -> Result<Reply, Refusal> {
    let job = visit.desk.job(id, JobKind::Batch).await?;
    let cancelled = visit.desk.cancel(&job).await?;
    if !cancelled && job.state != "cancelling" {
        let message = format!(
            "the batch is {} and cannot be cancelled",
            status(&job, &Tally::default())
        );
        return Err(Refusal::new(RefusalKind::InvalidRequest, message).status(409));
    }
    show(visit, id).await
}

fn status(job: &Job, tally: &Tally) -> &'static str {
    match job.state.as_str() {
        "starting" | "receiving" => "validating",
        "running" => "in_progress",
        "cancelling" => "cancelling",
        "failed" => "failed",
        _ if job.cancelled_us > 0 => "cancelled",
        _ if tally.of("expired") > 0 => "expired",
        _ => "completed",
    }
}

/// As OpenAI shows a batch.
async fn object(visit: &Visit<'_>, job: &Job) -> Result<Value, Refusal> {
    let tally = visit
        .desk
        .jobs()
        .tally(&job.id)
        .await
        .map_err(|error| store_error(&error))?;
    let status = status(job, &tally);
    let answered = tally.of("succeeded") + tally.of("rescued");
    let failed = tally.of("errored") + tally.of("expired");
    let over = job.ended_us > 0 && job.state != "failed";
    let lost = failed + tally.of("cancelled");
    let file = |kind: &str, count: i64| {
        if over && count > 0 {
            files::output_id(kind, &job.id).into()
        } else {
            Value::Null
        }
    };
    let at = |name: &str| {
        if status == name {
            seconds(job.ended_us)
        } else {
            Value::Null
        }
    };
    let errors = if status == "failed" {
        json!({"object": "list", "data": [{"code": "failed", "message": job.problem, "line": null, "param": null}]})
    } else {
        Value::Null
    };
    Ok(json!({
        "id": job.id, "object": "batch", "endpoint": job.endpoint, "errors": errors,
        "input_file_id": job.input, "completion_window": job.name, "status": status,
        "output_file_id": file("out", answered), "error_file_id": file("err", lost),
        "created_at": job.created_us / 1_000_000, "in_progress_at": seconds(job.created_us),
        "expires_at": seconds(job.deadline_us), "finalizing_at": if over { seconds(job.ended_us) } else { Value::Null },
        "completed_at": at("completed"), "failed_at": at("failed"), "expired_at": at("expired"),
        "cancelling_at": seconds(job.cancelled_us), "cancelled_at": at("cancelled"),
        "request_counts": {"total": job.total, "completed": answered, "failed": failed},
        "metadata": serde_json::from_str::<Value>(&job.metadata).unwrap_or_default(),
    }))
}
