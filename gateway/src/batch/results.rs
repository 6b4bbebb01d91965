//! What a job's items came to, as lines in the form that the caller's SDK reads. Streamed; order means nothing.

use super::{Reply, Visit, store_error, surface};
use crate::batch::vault::VaultError;
use bytes::Bytes;
use exchange::Refusal;
use ledger::{Job, StoredItem};
use pingora_http::ResponseHeader;
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// Items that are read at a time.
const CHUNK: i64 = 200;

/// Which items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Input,
    Answered,
    Failed,
    All,
}

impl Which {
    fn takes(self, item: &StoredItem) -> bool {
        let answered = matches!(item.state.as_str(), "succeeded" | "rescued");
        match self {
            Self::Input => true,
            Self::Answered => answered,
            Self::Failed => !answered && item.ended_us > 0,
            Self::All => item.ended_us > 0,
        }
    }
}

/// How a line looks: the item, and what it holds.
pub(super) type Form = fn(&Job, &StoredItem, Option<&RawValue>) -> Value;

/// Writes the lines of a job.
pub(super) async fn write(
    visit: &mut Visit<'_>,
    job: &Job,
    (which, form): (Which, Form),
) -> Result<Reply, Refusal> {
    let first = lines(visit, job, (which, form), 0).await?;
    let Ok(mut head) = ResponseHeader::build(200, Some(2)) else {
        return Ok(Reply::Written);
    };
    let _ = head.insert_header("content-type", "application/jsonl");
    if visit.client.begin(head).await.is_err() {
        return Ok(Reply::Written);
    }
    let (mut text, mut after) = first;
    loop {
        if !text.is_empty() && visit.client.write(text).await.is_err() {
            visit.client.reusable = false;
            return Ok(Reply::Written);
        }
        let Some(last) = after else { break };
        match lines(visit, job, (which, form), last).await {
            Ok(next) => (text, after) = next,
            Err(_) => {
                visit.client.break_off(Bytes::new()).await;
                return Ok(Reply::Written);
            }
        }
    }
    if visit.client.end(Bytes::new()).await.is_err() {
        visit.client.reusable = false;
    }
    if which != Which::Input {
        visit.desk.was_read(job).await;
    }
    Ok(Reply::Written)
}

/// Some lines, and the number of the last item looked at, if there may be more.
async fn lines(
    visit: &Visit<'_>,
    job: &Job,
    (which, form): (Which, Form),
    after: i64,
) -> Result<(Bytes, Option<i64>), Refusal> {
    let items = visit.desk.jobs().items(&job.id, (after, CHUNK)).await;
    let items = items.map_err(|error| store_error(&error))?;
    let mut text = Vec::new();
    for item in items.iter().filter(|item| which.takes(item)) {
        let held = if which == Which::Input {
            &item.input
        } else {
            &item.output
        };
        let opened = open(visit, held.as_deref());
        let raw = opened
            .as_ref()
            .and_then(|bytes| serde_json::from_slice::<&RawValue>(bytes).ok());
        text.extend_from_slice(form(job, item, raw).to_string().as_bytes());
        text.push(b'\n');
    }
    let more = i64::try_from(items.len()).unwrap_or(0) == CHUNK;
    Ok((text.into(), items.last().filter(|_| more).map(|item| item.number)))
}

fn open(visit: &Visit<'_>, sealed: Option<&[u8]>) -> Option<Bytes> {
    match visit.desk.gateway.batch.vault.open(sealed?) {
        Ok(plain) => Some(plain),
        Err(error @ (VaultError::Key | VaultError::Forgotten | VaultError::Seal)) => {
            tracing::warn!(%error, "contents of a job are not there");
            None
        }
    }
}

fn value(raw: Option<&RawValue>) -> Value {
    raw.map_or(Value::Null, |raw| serde_json::to_value(raw).unwrap_or_default())
}

/// A line of the file that was uploaded.
pub(super) fn openai_input(job: &Job, item: &StoredItem, raw: Option<&RawValue>) -> Value {
    json!({"custom_id": item.custom_id, "method": "POST", "url": surface(job).endpoint(), "body": value(raw)})
}

/// A line of OpenAI's output or error file.
pub(super) fn openai_line(_job: &Job, item: &StoredItem, raw: Option<&RawValue>) -> Value {
    let id = format!(
        "batch_req_{}_{}",
        item.job.trim_start_matches("batch_"),
        item.number
    );
    if item.status == 0 || raw.is_none() {
        let (code, message) = why(item);
        return json!({
            "id": id, "custom_id": item.custom_id, "response": null, "error": {"code": code, "message": message},
        });
    }
    let response = json!({"status_code": item.status, "request_id": item.request, "body": value(raw)});
    json!({"id": id, "custom_id": item.custom_id, "response": response, "error": null})
}

/// Why there is no answer, in OpenAI's words.
fn why(item: &StoredItem) -> (&str, &str) {
    match (item.state.as_str(), item.problem.as_str()) {
        ("cancelled", _) => (
            "batch_cancelled",
            "This request was cancelled before it was answered.",
        ),
        ("expired", _) => (
            "batch_expired",
            "This request could not be answered before the completion window ended.",
        ),
        (_, "budget_exceeded") => ("budget_exceeded", "The budget does not pay for this request."),
        ("succeeded" | "rescued", _) => ("content_lost", "The answer is no longer there."),
        (_, "") => ("server_error", "The request failed."),
        (_, problem) => ("server_error", problem),
    }
}

/// A line of Anthropic's results.
pub(super) fn anthropic_line(_job: &Job, item: &StoredItem, raw: Option<&RawValue>) -> Value {
    let result = match item.state.as_str() {
        "succeeded" | "rescued" if raw.is_some() => json!({"type": "succeeded", "message": value(raw)}),
        "cancelled" => json!({"type": "canceled"}),
        "expired" => json!({"type": "expired"}),
        _ => {
            let told = value(raw);
            let error = if told["type"] == "error" {
                told
            } else {
                let kind = if item.problem == "budget_exceeded" {
                    "billing_error"
                } else {
                    "api_error"
                };
                json!({"type": "error", "error": {"type": kind, "message": why(item).1}})
            };
            json!({"type": "errored", "error": error})
        }
    };
    json!({"custom_id": item.custom_id, "result": result})
}
