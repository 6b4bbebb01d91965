//! OpenAI's `/v1/files` for batches: requests line by line, read as they arrive, never held whole.
//!
//! A file is stored as its requests; outputs are files by name only, made of what the batch's items came to.

use super::take::{Taking, blank, fresh};
use super::{BATCHED, Desk, Reply, Visit, openai_surface, results, seconds, store_error};
use crate::client::{Client, Gone};
use bytes::{Bytes, BytesMut};
use exchange::{Refusal, RefusalKind, Surface};
use futures_util::{Stream, stream};
use ledger::{Job, JobKind};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// OpenAI's caps.
const LINES: i64 = 50_000;
const FILE_BYTES: usize = 200_000_000;
/// The longest line that is read; a request with images is megabytes.
const LINE_BYTES: usize = 32 << 20;

/// One line of a file.
#[derive(Deserialize)]
struct Line<'a> {
    custom_id: Option<String>,
    method: Option<String>,
    url: Option<String>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(RefusalKind::InvalidRequest, message)
}

pub(super) async fn upload(visit: &mut Visit<'_>) -> Result<Reply, Refusal> {
    let kind = visit.client.header("content-type").unwrap_or_default();
    let boundary = multer::parse_boundary(kind).map_err(|_| {
        invalid("a file is sent as multipart/form-data").hint("as the SDKs do, with `purpose` and `file`")
    })?;
    if visit.client.invite().await.is_err() {
        return Ok(Reply::Written);
    }
    let job = blank(
        &visit.desk,
        (fresh("file-"), JobKind::File),
        Surface::ChatCompletions,
    );
    let mut taking = Taking::begin(&visit.desk, job, Surface::ChatCompletions).await?;
    match receive(visit, &boundary, &mut taking).await {
        Ok(()) => {}
        Err(refusal) => {
            taking.abandon(&visit.desk, &refusal.message).await;
            return Err(refusal);
        }
    }
    let job = taking.finish(&visit.desk, "ready").await?;
    Ok(Reply::Json(200, object(&job)))
}

/// The body's pieces as they come; the end of the stream is the end of the body.
fn pieces(client: &mut Client) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send + '_ {
    stream::unfold(Some(client), |client| async move {
        let client = client?;
        match client.next_piece().await {
            Ok(Some(piece)) => Some((Ok(piece), Some(client))),
            Ok(None) => None,
            Err(Gone) => Some((Err(std::io::ErrorKind::UnexpectedEof.into()), None)),
        }
    })
}

/// Reads the form; its requests go where they belong as they come.
async fn receive(visit: &mut Visit<'_>, boundary: &str, taking: &mut Taking) -> Result<(), Refusal> {
    let broken = |error: multer::Error| invalid(format!("the form cannot be read: {error}"));
    let desk = visit.desk.clone();
    let mut form = multer::Multipart::new(Box::pin(pieces(visit.client)), boundary);
    let (mut purpose, mut found) = (None, false);
    while let Some(mut field) = form.next_field().await.map_err(broken)? {
        match field.name() {
            Some("purpose") => purpose = Some(field.text().await.map_err(broken)?),
            Some("file") => {
                found = true;
                taking.job.name = field.file_name().unwrap_or("batch.jsonl").to_owned();
                let mut lines = Lines::default();
                while let Some(piece) = field.chunk().await.map_err(broken)? {
                    lines.push(&piece)?;
                    while let Some(line) = lines.next() {
                        take(&desk, taking, (lines.number, line)).await?;
                    }
                    if taking.is_hopeless() {
                        return Ok(());
                    }
                }
                if let Some(line) = lines.last() {
                    take(&desk, taking, (lines.number, line)).await?;
                }
            }
            _ => while field.chunk().await.map_err(broken)?.is_some() {},
        }
    }
    if !found {
        return Err(invalid("the form has no `file`").param("file"));
    }
    let problem = match purpose.as_deref() {
        Some("batch") => return Ok(()),
        Some(other) => format!("files of the purpose `{other}` are not kept here"),
        None => "the form has no `purpose`".into(),
    };
    Err(invalid(problem).hint("send purpose `batch`").param("purpose"))
}

/// Cuts a body into lines as it comes.
#[derive(Default)]
struct Lines {
    rest: BytesMut,
    /// Up to here there is no end of a line.
    searched: usize,
    total: usize,
    /// Of the line handed out last, from 1.
    number: u64,
}

impl Lines {
    fn push(&mut self, piece: &[u8]) -> Result<(), Refusal> {
        self.total += piece.len();
        let too_large = |message: String| Err(Refusal::new(RefusalKind::RequestTooLarge, message));
        if self.total > FILE_BYTES {
            return too_large("the file is larger than 200 MB".into());
        }
        if self.rest.len() + piece.len() > LINE_BYTES + (1 << 20) {
            return too_large(format!(
                "line {} is longer than {} MiB",
                self.number + 1,
                LINE_BYTES >> 20
            ));
        }
        self.rest.extend_from_slice(piece);
        Ok(())
    }

    fn next(&mut self) -> Option<Bytes> {
        match memchr::memchr(b'\n', &self.rest[self.searched..]) {
            None => {
                self.searched = self.rest.len();
                None
            }
            Some(at) => {
                let line = self.rest.split_to(self.searched + at + 1);
                self.searched = 0;
                self.number += 1;
                Some(line.freeze())
            }
        }
    }

    /// What follows the last end of a line.
    fn last(&mut self) -> Option<Bytes> {
        let rest = std::mem::take(&mut self.rest);
        self.number += 1;
        (!rest.iter().all(u8::is_ascii_whitespace)).then(|| rest.freeze())
    }
}

/// One line; what is wrong with it is told with its number.
async fn take(desk: &Desk, taking: &mut Taking, (number, line): (u64, Bytes)) -> Result<(), Refusal> {
    if line.iter().all(u8::is_ascii_whitespace) {
        return Ok(());
    }
    if taking.count >= LINES {
        return Err(invalid(format!(
            "line {number}: a batch has at most {LINES} requests"
        )));
    }
    let at = format!("line {number}");
    let read: Line<'_> = match serde_json::from_slice(&line) {
        Ok(read) => read,
        Err(error) => {
            taking.count += 1;
            taking.mistake(
                &at,
                &format!("is no JSON object with custom_id, method, url and body: {error}"),
            );
            return Ok(());
        }
    };
    let Some(body) = read.body else {
        taking.mistake(&at, "has no `body`");
        return Ok(());
    };
    if read.method.as_deref() != Some("POST") {
        taking.mistake(&at, "`method` must be POST");
    }
    match read.url.as_deref() {
        Some(url) => match openai_surface(url) {
            Some(surface) if taking.agrees(surface) => {}
            Some(_) => {
                let problem =
                    format!("`url` {url} is not that of the lines before: a batch has one endpoint");
                taking.mistake(&at, &problem);
            }
            None => {
                taking.mistake(&at, &format!("`url` {url} cannot be batched here; {BATCHED}"));
                return Ok(());
            }
        },
        None => taking.mistake(&at, "has no `url`"),
    }
    let body = line.slice_ref(body.get().as_bytes());
    taking
        .push(desk, (read.custom_id.unwrap_or_default(), body), &at)
        .await
}

/// As OpenAI shows a file.
fn object(job: &Job) -> Value {
    json!({
        "id": job.id, "object": "file", "bytes": job.bytes, "created_at": job.created_us / 1_000_000,
        "expires_at": job.expires_us / 1_000_000, "filename": job.name, "purpose": "batch",
        "status": if job.state == "ready" { "processed" } else { "error" },
    })
}

/// An output or error file of a batch, by its name.
pub(super) fn output_id(kind: &str, batch: &str) -> String {
    format!("file-{kind}_{}", batch.trim_start_matches("batch_"))
}

/// The batch that an output file's name speaks of, and which of its items.
fn of_batch(id: &str) -> Option<(String, results::Which)> {
    let answered = id
        .strip_prefix("file-out_")
        .map(|id| (id, results::Which::Answered));
    let failed = || {
        id.strip_prefix("file-err_")
            .map(|id| (id, results::Which::Failed))
    };
    let (id, which) = answered.or_else(failed)?;
    Some((format!("batch_{id}"), which))
}

pub(super) async fn show(visit: &mut Visit<'_>, id: &str) -> Result<Reply, Refusal> {
    if let Some((batch, which)) = of_batch(id) {
        let job = visit.desk.job(&batch, JobKind::Batch).await?;
        let (name, at) = match which {
            results::Which::Failed => ("errors", job.ended_us),
            _ => ("output", job.ended_us),
        };
        let shown = json!({
            "id": id, "object": "file", "bytes": 0, "created_at": seconds(at), "expires_at": seconds(job.expires_us),
            "filename": format!("{batch}_{name}.jsonl"), "purpose": "batch_output", "status": "processed",
        });
        return Ok(Reply::Json(200, shown));
    }
    let job = visit.desk.job(id, JobKind::File).await?;
    Ok(Reply::Json(200, object(&job)))
}

pub(super) async fn list(visit: &mut Visit<'_>) -> Result<Reply, Refusal> {
    let (found, has_more) = visit.list("after", JobKind::File).await?;
    let data: Vec<Value> = found
        .iter()
        .filter(|job| job.state == "ready")
        .map(object)
        .collect();
    let ends = [data.first(), data.last()].map(|one| one.map_or(Value::Null, |one| one["id"].clone()));
    let shown = json!({"object": "list", "data": data, "has_more": has_more, "first_id": ends[0], "last_id": ends[1]});
    Ok(Reply::Json(200, shown))
}

pub(super) async fn content(visit: &mut Visit<'_>, id: &str) -> Result<Reply, Refusal> {
    if let Some((batch, which)) = of_batch(id) {
        let job = visit.desk.job(&batch, JobKind::Batch).await?;
        return results::write(visit, &job, (which, results::openai_line)).await;
    }
    let job = visit.desk.job(id, JobKind::File).await?;
    results::write(visit, &job, (results::Which::Input, results::openai_input)).await
}

pub(super) async fn delete(visit: &mut Visit<'_>, id: &str) -> Result<Reply, Refusal> {
    let job = visit.desk.job(id, JobKind::File).await?;
    visit
        .desk
        .jobs()
        .delete_file(&job.id)
        .await
        .map_err(|error| store_error(&error))?;
    Ok(Reply::Json(
        200,
        json!({"id": id, "object": "file", "deleted": true}),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_wherever_the_pieces_end() {
        let text = b"one\n\ntwo\nthree";
        for size in 1..text.len() {
            let (mut lines, mut found) = (Lines::default(), Vec::new());
            for piece in text.chunks(size) {
                lines.push(piece).unwrap();
                while let Some(line) = lines.next() {
                    found.push((lines.number, line));
                }
            }
            found.extend(lines.last().map(|line| (lines.number, line)));
            let expected: [(u64, &[u8]); 4] = [(1, b"one\n"), (2, b"\n"), (3, b"two\n"), (4, b"three")];
            assert_eq!(
                found,
                expected.map(|(number, line)| (number, Bytes::from_static(line))),
                "{size}"
            );
        }
    }
}
