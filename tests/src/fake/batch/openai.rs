//! OpenAI's `/v1/files` and `/v1/batches`.

use super::{Batch, Batches, Fate, Inner, Phase};
use crate::fake::call::Call;
use crate::fake::openai::{error, plain, whole};
use http::Method;
use serde_json::{Value, json};

/// What can be batched of what this fake serves.
const ENDPOINTS: [&str; 4] = [
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/completions",
    "/v1/responses",
];

/// Status and body; `None`: not one of these endpoints.
pub(crate) fn answer(
    batches: &Batches,
    method: &Method,
    (path, query): (&str, &str),
    body: &[u8],
) -> Option<(u16, Vec<u8>)> {
    let parts: Vec<&str> = path.trim_start_matches("/v1/").split('/').collect();
    let post = method == Method::POST;
    let told = batches.locked(|inner| match parts[..] {
        ["files"] if post => Some(upload(inner, body)),
        ["files", id, "content"] if !post => Some(content(inner, id)),
        ["batches"] if post => Some(create(inner, body)),
        ["batches"] => Some(Ok(list(inner, query))),
        ["batches", id] if !post => Some(with(inner, id, |_| Ok(()))),
        ["batches", id, "cancel"] if post => Some(with(inner, id, |batch| {
            if batch.phase.is_over() {
                return Err((
                    409,
                    format!("Cannot cancel a batch with status {:?}", batch.phase),
                ));
            }
            batch.cancel_us.get_or_insert_with(super::unix_us);
            Ok(())
        })),
        _ => None,
    })?;
    Some(match told {
        Ok(body) => (200, body),
        Err((status, message)) => (status, error(status, &message)),
    })
}

type Told = Result<Vec<u8>, (u16, String)>;

fn with(inner: &mut Inner, id: &str, work: impl FnOnce(&mut Batch) -> Result<(), (u16, String)>) -> Told {
    let batch = inner
        .find(id)
        .ok_or((404, format!("No batch found with id '{id}'.")))?;
    work(batch)?;
    Ok(object(batch).to_string().into_bytes())
}

/// The latest first, 100 to a page.
fn list(inner: &Inner, query: &str) -> Vec<u8> {
    let after = query.split('&').find_map(|pair| pair.strip_prefix("after="));
    let own = || {
        inner
            .batches
            .iter()
            .rev()
            .filter(|batch| batch.id.starts_with("batch_"))
    };
    let skip = after.and_then(|id| own().position(|batch| batch.id == id));
    let skip = skip.map_or(0, |at| at + 1);
    let data: Vec<Value> = own().skip(skip).take(100).map(object).collect();
    let has_more = own().count() > skip + 100;
    json!({"object": "list", "data": data, "has_more": has_more})
        .to_string()
        .into_bytes()
}

/// The file's part of a form.
fn upload(inner: &mut Inner, body: &[u8]) -> Told {
    let wrong = |what: &str| (400, format!("the form has no {what}"));
    let find = |what: &[u8], from: usize| memchr::memmem::find(&body[from..], what).map(|at| from + at);
    let line = find(b"\r\n", 0).ok_or(wrong("boundary"))?;
    let boundary = &body[..line];
    if find(b"name=\"purpose\"\r\n\r\nbatch\r\n", 0).is_none() {
        return Err((400, "'purpose' must be 'batch'".into()));
    }
    let part = find(b"name=\"file\"", 0).ok_or(wrong("file"))?;
    let start = find(b"\r\n\r\n", part).ok_or(wrong("file"))? + 4;
    let end = find(&[b"\r\n", boundary].concat(), start).ok_or(wrong("end"))?;
    let id = inner.id("file-");
    inner.files.insert(id.clone(), body[start..end].to_vec());
    let shown = json!({
        "id": id, "object": "file", "bytes": end - start, "created_at": super::unix_us() / 1_000_000,
        "filename": "batch.jsonl", "purpose": "batch", "status": "processed",
    });
    Ok(shown.to_string().into_bytes())
}

fn create(inner: &mut Inner, body: &[u8]) -> Told {
    let ask: Value = serde_json::from_slice(body).map_err(|error| (400, error.to_string()))?;
    let file = ask["input_file_id"].as_str().unwrap_or_default().to_owned();
    let lines = inner
        .files
        .get(&file)
        .ok_or((400, format!("no such file: {file}")))?;
    let mut items = Vec::new();
    for (number, line) in lines.split(|byte| *byte == b'\n').enumerate() {
        if line.is_empty() {
            continue;
        }
        let read: Value =
            serde_json::from_slice(line).map_err(|error| (400, format!("line {}: {error}", number + 1)))?;
        let custom_id = read["custom_id"]
            .as_str()
            .ok_or((400, "custom_id is missing".into()))?;
        if read["url"] != ask["endpoint"] || read["method"] != "POST" {
            return Err((400, format!("line {}: wrong url or method", number + 1)));
        }
        items.push((custom_id.to_owned(), read["body"].to_string().into_bytes()));
    }
    let endpoint = ask["endpoint"].as_str().unwrap_or_default();
    if !ENDPOINTS.contains(&endpoint) {
        return Err((400, format!("Invalid value for endpoint: {endpoint}")));
    }
    let texts = |body: &[u8]| Call::read(0, body, None).map_or(1, |call| call.texts);
    if endpoint == "/v1/embeddings" && items.iter().map(|(_, body)| texts(body)).sum::<usize>() > 50_000 {
        return Err((400, "a batch of embeddings has at most 50,000 inputs".into()));
    }
    if items.is_empty() || items.len() > 50_000 || lines.len() > 200_000_000 {
        return Err((400, "The batch is empty or exceeds the limits.".into()));
    }
    let batch = inner.make("batch_", items).map_err(|message| (400, message))?;
    batch.input_file = file;
    batch.metadata = ask["metadata"].clone();
    batch.endpoint = ask["endpoint"].as_str().unwrap_or_default().to_owned();
    Ok(object(batch).to_string().into_bytes())
}

fn object(batch: &Batch) -> Value {
    let over = batch.phase.is_over() && batch.phase != Phase::Failed;
    let done = batch.count(Fate::Succeeded);
    let lost = batch.items.len() - done;
    let file = |kind: &str, count: usize| {
        if over && count > 0 {
            json!(format!("file-{kind}-{}", batch.id))
        } else {
            Value::Null
        }
    };
    let errors = if batch.phase == Phase::Failed {
        json!({"object": "list", "data": [{"code": "invalid", "message": "scripted failure", "line": null}]})
    } else {
        Value::Null
    };
    json!({
        "id": batch.id, "object": "batch", "endpoint": batch.endpoint, "errors": errors,
        "input_file_id": batch.input_file, "completion_window": "24h", "status": batch.phase,
        "output_file_id": file("output", done), "error_file_id": file("error", lost),
        "created_at": batch.created_us / 1_000_000, "metadata": batch.metadata,
        "request_counts": {"total": batch.items.len(), "completed": done, "failed": batch.count(Fate::Errored)},
    })
}

/// Results in an order of their own: the last item first.
fn content(inner: &mut Inner, id: &str) -> Told {
    let (kind, batch) = match (id.strip_prefix("file-output-"), id.strip_prefix("file-error-")) {
        (Some(batch), _) => ("output", batch),
        (_, Some(batch)) => ("error", batch),
        _ => return Err((404, format!("No such File object: {id}"))),
    };
    let batch = inner
        .find(batch)
        .ok_or((404, format!("No such File object: {id}")))?;
    let mut out = Vec::new();
    for (at, item) in batch.items.iter().enumerate().rev() {
        if (item.fate == Fate::Succeeded) != (kind == "output") {
            continue;
        }
        let response =
            |status: u16, body: Value| json!({"status_code": status, "request_id": "req_1", "body": body});
        let (response, error) = match item.fate {
            Fate::Succeeded => {
                let call = item.call(at).at(&batch.endpoint);
                let body = match batch.endpoint.as_str() {
                    "/v1/chat/completions" => serde_json::from_slice(&whole(&call)).unwrap(),
                    endpoint => plain(endpoint, &call),
                };
                (response(200, body), Value::Null)
            }
            Fate::Errored => {
                let status = item.status();
                let body: Value = serde_json::from_slice(&error(status, "scripted failure")).unwrap();
                (response(status, body), Value::Null)
            }
            Fate::Cancelled => (
                Value::Null,
                json!({"code": "batch_cancelled", "message": "cancelled"}),
            ),
            _ => (
                Value::Null,
                json!({"code": "batch_expired", "message": "expired"}),
            ),
        };
        let line = json!({"id": format!("batch_req_{at}"), "custom_id": item.custom_id, "response": response, "error": error});
        out.extend_from_slice(line.to_string().as_bytes());
        out.push(b'\n');
    }
    Ok(out)
}
