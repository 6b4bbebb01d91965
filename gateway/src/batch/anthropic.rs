//! Anthropic's `/v1/messages/batches`: requests in one JSON body that is read as it comes, never held whole.

use super::take::{Taking, blank, fresh, start};
use super::{Reply, Visit, results, store_error};
use bytes::{Bytes, BytesMut};
use exchange::{Refusal, RefusalKind, Surface};
use ledger::{Job, JobKind};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Anthropic's caps.
const REQUESTS: i64 = 100_000;
const BODY_BYTES: usize = 256_000_000;
/// The longest request that is read.
const REQUEST_BYTES: usize = 32 << 20;

#[derive(Deserialize)]
struct One<'a> {
    custom_id: Option<String>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(RefusalKind::InvalidRequest, message)
}

pub(super) async fn create(visit: &mut Visit<'_>) -> Result<Reply, Refusal> {
    if visit.client.invite().await.is_err() {
        return Ok(Reply::Written);
    }
    let desk = visit.desk.clone();
    let job = blank(&desk, (fresh("msgbatch_"), JobKind::Messages), Surface::Messages);
    let mut taking = Taking::begin(&desk, job, Surface::Messages).await?;
    match receive(visit, &mut taking).await {
        Ok(true) => {}
        Ok(false) => {
            taking.abandon(&desk, "its caller left before it was whole").await;
            return Ok(Reply::Written);
        }
        Err(refusal) => {
            taking.abandon(&desk, &refusal.message).await;
            return Err(refusal);
        }
    }
    let job = taking.finish(&desk, "starting").await?;
    let id = job.id.clone();
    let job = start(&desk, job, &id).await?;
    object(visit, &job).await.map(|value| Reply::Json(200, value))
}

/// Reads the body to its end; false where the caller has gone.
async fn receive(visit: &mut Visit<'_>, taking: &mut Taking) -> Result<bool, Refusal> {
    let desk = visit.desk.clone();
    let (mut array, mut total, mut number) = (Array::default(), 0usize, 0usize);
    loop {
        let Ok(piece) = visit.client.next_piece().await else {
            return Ok(false);
        };
        let Some(piece) = piece else { break };
        total += piece.len();
        if total > BODY_BYTES {
            return Err(Refusal::new(
                RefusalKind::RequestTooLarge,
                "a batch has at most 256 MB",
            ));
        }
        array.push(&piece);
        while let Some(one) = array.next()? {
            if taking.count >= REQUESTS {
                return Err(invalid(format!("requests: a batch has at most {REQUESTS}")));
            }
            let at = format!("requests.{number}");
            number += 1;
            let read: One<'_> = match serde_json::from_slice(&one) {
                Ok(read) => read,
                Err(error) => {
                    taking.mistake(&at, &error.to_string());
                    continue;
                }
            };
            let Some(params) = read.params else {
                taking.mistake(&at, "params: Field required");
                continue;
            };
            let custom_id = read.custom_id.unwrap_or_default();
            let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if custom_id.is_empty() || custom_id.len() > 64 || !custom_id.chars().all(fits) {
                taking.mistake(&at, "custom_id: 1 to 64 letters, digits, `_` and `-`");
                continue;
            }
            let params = one.slice_ref(params.get().as_bytes());
            taking.push(&desk, (custom_id, params), &at).await?;
        }
        if taking.is_hopeless() {
            return Ok(true);
        }
    }
    if array.is_whole() {
        Ok(true)
    } else {
        Err(invalid("the body is no JSON object with an array `requests`"))
    }
}

/// Hands out the objects of the first array in a JSON object, as its bytes come.
#[derive(Default)]
struct Array {
    text: BytesMut,
    /// Up to here it was looked at.
    at: usize,
    depth: u32,
    in_string: bool,
    escaped: bool,
    inside: bool,
    closed: bool,
}

impl Array {
    fn push(&mut self, piece: &[u8]) {
        self.text.extend_from_slice(piece);
    }

    fn is_whole(&self) -> bool {
        self.closed
    }

    /// The next object that is whole.
    fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        while let Some(byte) = self.text.get(self.at).copied() {
            self.at += 1;
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'[' if !self.inside && !self.closed => {
                    self.inside = true;
                    self.depth = 0;
                    let _ = self.text.split_to(std::mem::take(&mut self.at));
                }
                b'{' | b'[' if self.inside => {
                    if self.depth == 0 {
                        // What stands between two of them is a comma and white space.
                        let _ = self.text.split_to(self.at - 1);
                        self.at = 1;
                    }
                    self.depth += 1;
                }
                b']' if self.inside && self.depth == 0 => {
                    self.inside = false;
                    self.closed = true;
                }
                b'}' | b']' if self.inside => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        let whole = self.text.split_to(std::mem::take(&mut self.at));
                        return Ok(Some(whole.freeze()));
                    }
                }
                _ => {}
            }
        }
        if self.text.len() > REQUEST_BYTES {
            return Err(invalid(format!(
                "a request is longer than {} MiB",
                REQUEST_BYTES >> 20
            )));
        }
        Ok(None)
    }
}

pub(super) async fn show(visit: &mut Visit<'_>, id: &str) -> Result<Reply, Refusal> {
    let job = visit.desk.job(id, JobKind::Messages).await?;
    object(visit, &job).await.map(|value| Reply::Json(200, value))
}

pub(super) async fn list(visit: &mut Visit<'_>) -> Result<Reply, Refusal> {
    let (found, has_more) = visit.list("after_id", JobKind::Messages).await?;
    let mut data = Vec::with_capacity(found.len());
    for job in &found {
        data.push(object(visit, job).await?);
    }
    let ends = [data.first(), data.last()].map(|one| one.map_or(Value::Null, |one| one["id"].clone()));
    Ok(Reply::Json(
        200,
        json!({"data": data, "has_more": has_more, "first_id": ends[0], "last_id": ends[1]}),
    ))
}

pub(super) async fn cancel(visit: &mut Visit<'_>, id: &str) -> Result<Reply, Refusal> {
    let job = visit.desk.job(id, JobKind::Messages).await?;
    visit.desk.cancel(&job).await?;
    show(visit, id).await
}

pub(super) async fn delete(visit: &mut Visit<'_>, id: &str) -> Result<Reply, Refusal> {
    let job = visit.desk.job(id, JobKind::Messages).await?;
    if job.ended_us == 0 {
        return Err(invalid(
            "a batch that is still in progress cannot be deleted; cancel it first",
        ));
    }
    visit
        .desk
        .jobs()
        .delete_ended(&job.id)
        .await
        .map_err(|error| store_error(&error))?;
    Ok(Reply::Json(
        200,
        json!({"id": id, "type": "message_batch_deleted"}),
    ))
}

pub(super) async fn results(visit: &mut Visit<'_>, id: &str) -> Result<Reply, Refusal> {
    let job = visit.desk.job(id, JobKind::Messages).await?;
    if job.ended_us == 0 {
        return Err(invalid("the batch has no results before it has ended").status(404));
    }
    results::write(visit, &job, (results::Which::All, results::anthropic_line)).await
}

fn at(us: i64) -> Value {
    if us == 0 {
        return Value::Null;
    }
    let moment = OffsetDateTime::from_unix_timestamp(us / 1_000_000).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    moment.format(&Rfc3339).map_or(Value::Null, Value::String)
}

/// As Anthropic shows a batch. Its counts are of what has ended, whereas Anthropic's stay zero until the end.
async fn object(visit: &Visit<'_>, job: &Job) -> Result<Value, Refusal> {
    let tally = visit
        .desk
        .jobs()
        .tally(&job.id)
        .await
        .map_err(|error| store_error(&error))?;
    let over = job.ended_us > 0;
    let status = match job.state.as_str() {
        _ if over => "ended",
        "cancelling" => "canceling",
        _ => "in_progress",
    };
    let scheme = if visit.client.is_secure() { "https" } else { "http" };
    let host = visit.client.host().unwrap_or("localhost").to_owned();
    let results = format!("{scheme}://{host}/v1/messages/batches/{}/results", job.id);
    Ok(json!({
        "id": job.id, "type": "message_batch", "processing_status": status,
        "request_counts": {
            "processing": if over { 0 } else { tally.open() },
            "succeeded": tally.of("succeeded") + tally.of("rescued"), "errored": tally.of("errored"),
            "canceled": tally.of("cancelled"), "expired": tally.of("expired"),
        },
        "created_at": at(job.created_us), "expires_at": at(job.deadline_us), "ended_at": at(job.ended_us),
        "cancel_initiated_at": at(job.cancelled_us), "archived_at": null,
        "results_url": if over { Value::String(results) } else { Value::Null },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_come_out_wherever_the_pieces_end() {
        let text = br#" {"requests" : [ {"a":"[}]\"{"} ,{"b":[{"c":1},[2]]},{} ] } "#;
        for size in 1..text.len() {
            let (mut array, mut found) = (Array::default(), Vec::new());
            for piece in text.chunks(size) {
                array.push(piece);
                while let Some(one) = array.next().unwrap() {
                    found.push(String::from_utf8(one.to_vec()).unwrap());
                }
            }
            assert_eq!(
                found,
                [r#"{"a":"[}]\"{"}"#, r#"{"b":[{"c":1},[2]]}"#, "{}"],
                "{size}"
            );
            assert!(array.is_whole());
        }
    }
}
