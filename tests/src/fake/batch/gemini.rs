//! Gemini's `files` (resumable uploads, downloads) and `batchGenerateContent`, whose batches are operations.
//!
//! What has expired has no results, as the service documents it; of what is cancelled those that were done are there.

use super::{Batch, Batches, Fate, Inner, Item, Phase};
use crate::fake::gemini::{as_call, code, error, whole};
use http::request::Parts;
use http::{HeaderMap, Method};
use serde_json::{Value, json};
use std::collections::HashMap;

/// The service's bound on what stands in the call that makes a batch.
const INLINE_BYTES: usize = 20 << 20;
const PREFIX: &str = "gemini-";

/// Status, further fields of the head, and body.
pub(crate) struct Told {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
}

type Outcome = Result<Vec<u8>, (u16, String)>;

pub(crate) fn answer(batches: &Batches, head: &Parts, body: &[u8]) -> Told {
    let told = |(status, body): (u16, Vec<u8>), fields| Told { status, fields, body };
    let path = head.uri.path();
    let query: HashMap<&str, &str> = head
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .collect();
    // Whoever knows an upload's id may send to it.
    let has_key = head.headers.contains_key("x-goog-api-key") || query.contains_key("upload_id");
    if !has_key || head.headers.contains_key("authorization") {
        let message = "API keys are sent in x-goog-api-key; authorization is for OAuth 2 access tokens.";
        return told((401, error(401, message)), Vec::new());
    }
    let mut fields = Vec::new();
    let outcome = batches.locked(|inner| {
        if path == "/upload/v1beta/files" {
            return upload(
                inner,
                (&head.headers, query.get("upload_id").copied()),
                body,
                &mut fields,
            );
        }
        // The reference names the first, Google's own clients take the second.
        let served = ["/download/v1beta/files/", "/v1beta/files/"];
        if let Some(name) = served.iter().find_map(|lead| path.strip_prefix(lead)) {
            return download(inner, name);
        }
        operation(inner, (&head.method, path), &query, body)
    });
    match outcome {
        Ok(body) => told((200, body), fields),
        Err((status, message)) => told((status, error(status, &message)), Vec::new()),
    }
}

fn operation(
    inner: &mut Inner,
    (method, path): (&Method, &str),
    query: &HashMap<&str, &str>,
    body: &[u8],
) -> Outcome {
    let missing = || (404, format!("{path} is not there"));
    let path = path.strip_prefix("/v1beta/").ok_or_else(missing)?;
    let post = method == Method::POST;
    if let Some(model) = path.strip_prefix("models/") {
        let model = model.strip_suffix(":batchGenerateContent").filter(|_| post);
        return create(inner, model.ok_or_else(missing)?, body);
    }
    let id = path.strip_prefix("batches").ok_or_else(missing)?;
    match (id.strip_prefix('/'), post) {
        (None, false) => Ok(list(inner, query)),
        (Some(id), true) => {
            let id = id.strip_suffix(":cancel").ok_or_else(missing)?;
            let batch = inner.find(&format!("{PREFIX}{id}")).ok_or_else(missing)?;
            if batch.phase.is_over() {
                return Err((400, "The batch has ended and cannot be cancelled.".into()));
            }
            batch.cancel_us.get_or_insert_with(super::unix_us);
            Ok(b"{}".to_vec())
        }
        (Some(id), false) => {
            let batch = inner.find(&format!("{PREFIX}{id}")).ok_or_else(missing)?;
            Ok(shown(batch).to_string().into_bytes())
        }
        _ => Err(missing()),
    }
}

/// Opens an upload, or takes what is uploaded.
fn upload(
    inner: &mut Inner,
    (headers, upload): (&HeaderMap, Option<&str>),
    body: &[u8],
    fields: &mut Vec<(&'static str, String)>,
) -> Outcome {
    let field = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let Some(id) = upload else {
        let starts =
            field("x-goog-upload-protocol") == "resumable" && field("x-goog-upload-command") == "start";
        if !starts
            || field("x-goog-upload-header-content-length")
                .parse::<usize>()
                .is_err()
        {
            return Err((
                400,
                "an upload begins with its protocol, its command and its length".into(),
            ));
        }
        let id = inner.id("up");
        inner.files.insert(id.clone(), Vec::new());
        let place = format!(
            "http://{}/upload/v1beta/files?upload_id={id}&upload_protocol=resumable",
            field("host")
        );
        fields.push(("x-goog-upload-url", place));
        fields.push(("x-goog-upload-status", "active".into()));
        return Ok(Vec::new());
    };
    let so_far = inner
        .files
        .get_mut(id)
        .ok_or((404, "no such upload".to_owned()))?;
    if field("x-goog-upload-offset").parse() != Ok(so_far.len()) {
        return Err((400, format!("{} bytes have been received", so_far.len())));
    }
    so_far.extend_from_slice(body);
    if !field("x-goog-upload-command").contains("finalize") {
        fields.push(("x-goog-upload-status", "active".into()));
        return Ok(Vec::new());
    }
    let content = inner.files.remove(id).unwrap();
    let (name, size) = (inner.id("files/"), content.len());
    inner.files.insert(name.clone(), content);
    fields.push(("x-goog-upload-status", "final".into()));
    let file = json!({"file": {
        "name": name, "mimeType": "application/jsonl", "sizeBytes": size.to_string(), "state": "ACTIVE", "source": "UPLOADED",
    }});
    Ok(file.to_string().into_bytes())
}

fn create(inner: &mut Inner, model: &str, body: &[u8]) -> Outcome {
    let wrong = |message: &str| (400, message.to_owned());
    let ask: Value = serde_json::from_slice(body).map_err(|error| (400, error.to_string()))?;
    let batch = &ask["batch"];
    let name = batch["displayName"]
        .as_str()
        .ok_or(wrong("batch.display_name is required"))?;
    let input = &batch["inputConfig"];
    let file = input["fileName"].as_str().unwrap_or_default().to_owned();
    let requests: Vec<(String, Value)> = if file.is_empty() {
        if body.len() >= INLINE_BYTES {
            return Err(wrong("Request payload size exceeds the limit: 20971520 bytes."));
        }
        let inline = input["requests"]["requests"]
            .as_array()
            .ok_or(wrong("there is no input"))?;
        let key = |one: &Value| one["metadata"]["key"].as_str().unwrap_or_default().to_owned();
        inline
            .iter()
            .map(|one| (key(one), one["request"].clone()))
            .collect()
    } else {
        let lines = inner
            .files
            .get(&file)
            .ok_or((404, format!("File {file} does not exist.")))?;
        let mut read = Vec::new();
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let line: Value = serde_json::from_slice(line).map_err(|error| (400, error.to_string()))?;
            read.push((
                line["key"].as_str().unwrap_or_default().to_owned(),
                line["request"].clone(),
            ));
        }
        read
    };
    if requests.is_empty() {
        return Err(wrong("a batch has at least one request"));
    }
    // A request that it cannot read is an error of its item.
    let unreadable = |_| json!({"model": "fake-400"}).to_string().into_bytes();
    let read = |(key, request): (String, Value)| (key, as_call(model, &request).unwrap_or_else(unreadable));
    let items = requests.into_iter().map(read).collect();
    let name = name.to_owned();
    let made = inner.make(PREFIX, items).map_err(|message| (400, message))?;
    made.input_file = file;
    made.metadata = json!({"display_name": name, "model": model});
    made.endpoint = "batchGenerateContent".into();
    if made.script.batch.expires {
        made.script.batch.part_permille = 0;
    }
    Ok(shown(made).to_string().into_bytes())
}

/// The latest first, a page at a time.
fn list(inner: &Inner, query: &HashMap<&str, &str>) -> Vec<u8> {
    let number = |name: &str| query.get(name).and_then(|text| text.parse::<usize>().ok());
    let (size, skip) = (
        number("pageSize").unwrap_or(50).min(100),
        number("pageToken").unwrap_or(0),
    );
    let own = inner
        .batches
        .iter()
        .rev()
        .filter(|batch| batch.id.starts_with(PREFIX));
    let page: Vec<Value> = own.clone().skip(skip).take(size).map(shown).collect();
    let mut told = json!({ "operations": page });
    if own.count() > skip + size {
        told["nextPageToken"] = (skip + size).to_string().into();
    }
    told.to_string().into_bytes()
}

fn state(batch: &Batch) -> &'static str {
    match batch.phase {
        Phase::Validating => "BATCH_STATE_PENDING",
        Phase::InProgress | Phase::Finalizing | Phase::Cancelling => "BATCH_STATE_RUNNING",
        Phase::Completed if batch.count(Fate::Errored) > 0 => "JOB_STATE_PARTIALLY_SUCCEEDED",
        Phase::Completed => "BATCH_STATE_SUCCEEDED",
        Phase::Failed => "BATCH_STATE_FAILED",
        Phase::Expired => "BATCH_STATE_EXPIRED",
        Phase::Cancelled => "BATCH_STATE_CANCELLED",
    }
}

/// The operation.
fn shown(batch: &Batch) -> Value {
    let id = batch.id.strip_prefix(PREFIX).unwrap();
    let at = |us: i64| {
        let at = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(us) * 1000).unwrap();
        at.format(&time::format_description::well_known::Rfc3339).unwrap()
    };
    let count = |fate: Fate| batch.count(fate).to_string();
    let mut told = json!({
        "name": format!("batches/{id}"),
        "metadata": {
            "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
            "name": format!("batches/{id}"), "model": format!("models/{}", batch.metadata["model"].as_str().unwrap()),
            "displayName": batch.metadata["display_name"], "state": state(batch), "createTime": at(batch.created_us),
            "batchStats": {
                "requestCount": batch.items.len().to_string(), "successfulRequestCount": count(Fate::Succeeded),
                "failedRequestCount": count(Fate::Errored), "pendingRequestCount": count(Fate::Open),
            },
        },
    });
    if let Some(ended) = batch.ended_us {
        told["done"] = true.into();
        told["metadata"]["endTime"] = at(ended).into();
    }
    match batch.phase {
        Phase::Failed => told["error"] = json!({"code": 3, "message": "scripted failure"}),
        Phase::Completed | Phase::Cancelled => {
            let output = if batch.input_file.is_empty() {
                json!({"inlinedResponses": {"inlinedResponses": inline(batch)}})
            } else {
                json!({"responsesFile": format!("files/batch-{id}")})
            };
            told["metadata"]["output"] = output.clone();
            told["response"] = output;
        }
        _ => {}
    }
    told
}

/// An item's answer, or its error.
fn result(item: &Item, at: usize) -> (&'static str, Value) {
    let error = |status: u16, message: &str| {
        let (code, name) = code(status);
        ("error", json!({"code": code, "message": message, "status": name}))
    };
    match item.fate {
        Fate::Succeeded => ("response", whole(&item.call(at))),
        Fate::Errored => error(item.status(), "scripted failure"),
        _ => (
            "error",
            json!({"code": 1, "message": "The operation was cancelled.", "status": "CANCELLED"}),
        ),
    }
}

/// Results in an order of their own: the last item first.
fn inline(batch: &Batch) -> Vec<Value> {
    let results = batch.items.iter().enumerate().rev().map(|(at, item)| {
        let (kind, value) = result(item, at);
        json!({kind: value, "metadata": {"key": item.custom_id}})
    });
    results.collect()
}

fn download(inner: &mut Inner, name: &str) -> Outcome {
    let missing = || (404, format!("File {name} does not exist."));
    let id = name
        .strip_prefix("batch-")
        .and_then(|rest| rest.strip_suffix(":download"));
    let batch = inner
        .find(&format!("{PREFIX}{}", id.ok_or_else(missing)?))
        .ok_or_else(missing)?;
    let lines = batch.items.iter().enumerate().rev().map(|(at, item)| {
        let (kind, value) = result(item, at);
        json!({"key": item.custom_id, kind: value}).to_string() + "\n"
    });
    Ok(lines.collect::<String>().into_bytes())
}
