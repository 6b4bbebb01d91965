//! Anthropic's `/v1/messages/batches`.

use super::{Batch, Batches, Fate, Inner, Phase};
use crate::fake::anthropic::{error, whole};
use http::Method;
use serde_json::{Value, json};

/// Status and body; `None`: not one of these endpoints.
pub(crate) fn answer(batches: &Batches, method: &Method, path: &str, body: &[u8]) -> Option<(u16, Vec<u8>)> {
    let path = path.strip_prefix("/v1/messages/batches")?;
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let post = method == Method::POST;
    let told = batches.locked(|inner| match parts[..] {
        [""] if post => create(inner, body),
        [""] => {
            let own = inner
                .batches
                .iter()
                .rev()
                .filter(|batch| batch.id.starts_with("msgbatch_"));
            let data: Vec<Value> = own.take(100).map(object).collect();
            Ok(json!({"data": data, "has_more": false}).to_string().into_bytes())
        }
        [id, "results"] => {
            let batch = inner.find(id).filter(|batch| batch.phase.is_over());
            batch
                .map(|batch| results(batch))
                .ok_or((404, "no results".to_owned()))
        }
        [id, "cancel"] if post => with(inner, id, |batch| {
            batch.cancel_us.get_or_insert_with(super::unix_us);
        }),
        [id] => with(inner, id, |_| {}),
        _ => Err((404, "Not Found".into())),
    });
    Some(match told {
        Ok(body) => (200, body),
        Err((status, message)) => (status, error(status, &message)),
    })
}

type Told = Result<Vec<u8>, (u16, String)>;

fn with(inner: &mut Inner, id: &str, work: impl FnOnce(&mut Batch)) -> Told {
    let batch = inner.find(id).ok_or((404, format!("no batch {id}")))?;
    work(batch);
    Ok(object(batch).to_string().into_bytes())
}

fn create(inner: &mut Inner, body: &[u8]) -> Told {
    let ask: Value = serde_json::from_slice(body).map_err(|error| (400, error.to_string()))?;
    let requests = ask["requests"]
        .as_array()
        .ok_or((400, "requests: Field required".to_owned()))?;
    let mut items = Vec::new();
    for (at, request) in requests.iter().enumerate() {
        let custom_id = request["custom_id"].as_str().unwrap_or_default();
        if custom_id.is_empty() || custom_id.len() > 64 {
            return Err((400, format!("requests.{at}.custom_id: 1 to 64 characters")));
        }
        if request["params"]["max_tokens"].is_null() {
            return Err((400, format!("requests.{at}.params.max_tokens: Field required")));
        }
        items.push((custom_id.to_owned(), request["params"].to_string().into_bytes()));
    }
    if items.is_empty() || items.len() > 100_000 {
        return Err((400, "requests: 1 to 100,000".into()));
    }
    let batch = inner.make("msgbatch_", items).map_err(|message| (400, message))?;
    Ok(object(batch).to_string().into_bytes())
}

fn object(batch: &Batch) -> Value {
    let over = batch.phase.is_over();
    let status = match batch.phase {
        _ if over => "ended",
        Phase::Cancelling => "canceling",
        _ => "in_progress",
    };
    let at = |us: i64| {
        let seconds = us / 1_000_000;
        let days = seconds.div_euclid(86_400);
        let (year, month, day) = civil(days);
        let rest = seconds.rem_euclid(86_400);
        format!(
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
            rest / 3600,
            rest / 60 % 60,
            rest % 60
        )
    };
    // Counts stay zero until the end, as with the real service.
    let count = |fate| if over { batch.count(fate) } else { 0 };
    json!({
        "id": batch.id, "type": "message_batch", "processing_status": status,
        "request_counts": {
            "processing": if over { 0 } else { batch.items.len() }, "succeeded": count(Fate::Succeeded),
            "errored": count(Fate::Errored), "canceled": count(Fate::Cancelled), "expired": count(Fate::Expired),
        },
        "created_at": at(batch.created_us), "ended_at": batch.ended_us.map(at),
        "results_url": over.then(|| format!("https://api.anthropic.com/v1/messages/batches/{}/results", batch.id)),
    })
}

/// Year, month and day of a day counted from the epoch (Howard Hinnant's `civil_from_days`).
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (
        yoe + era * 400 + i64::from(month <= 2),
        month,
        doy - (153 * mp + 2) / 5 + 1,
    )
}

/// Results in an order of their own: the last item first.
fn results(batch: &Batch) -> Vec<u8> {
    let mut out = Vec::new();
    for (at, item) in batch.items.iter().enumerate().rev() {
        let result = match item.fate {
            Fate::Succeeded => {
                let mut message: Value = serde_json::from_slice(&whole(&item.call(at))).unwrap();
                message["usage"]["service_tier"] = "batch".into();
                json!({"type": "succeeded", "message": message})
            }
            Fate::Errored => {
                let body: Value = serde_json::from_slice(&error(item.status(), "scripted failure")).unwrap();
                json!({"type": "errored", "error": body})
            }
            Fate::Cancelled => json!({"type": "canceled"}),
            _ => json!({"type": "expired"}),
        };
        out.extend_from_slice(
            json!({"custom_id": item.custom_id, "result": result})
                .to_string()
                .as_bytes(),
        );
        out.push(b'\n');
    }
    out
}
