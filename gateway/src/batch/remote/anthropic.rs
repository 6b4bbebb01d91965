//! Anthropic's message batches: the requests in the call that makes one, results at a URL of their own. A batch has no name
//! there: which one a pack was made into, its results tell.

use super::{Api, Each, Likeness, Outcome, RemoteError, Sent, Standing, Upload, Wanted, lines, parse};
use crate::upstream::control::Control;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// How far its clock may be behind ours.
const CLOCK_S: i64 = 60;

pub(super) struct Anthropic;

impl Api for Anthropic {
    fn upload(&self, _: (&str, &str), _: &[Sent]) -> Upload {
        Upload::Unneeded
    }

    fn create(&self, _: (&str, &str), _: &str, sent: &[Sent]) -> Control {
        let mut body = b"{\"requests\":[".to_vec();
        for (at, one) in sent.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            body.extend_from_slice(
                format!("{comma}{{\"custom_id\":\"{}\",\"params\":", one.custom_id).as_bytes(),
            );
            body.extend_from_slice(&one.body);
            body.push(b'}');
        }
        body.extend_from_slice(b"]}");
        Control::post("/messages/batches".into(), body.into())
    }

    fn list(&self, after: &str) -> Control {
        let after = match after {
            "" => String::new(),
            last => format!("&after_id={last}"),
        };
        Control::get(format!("/messages/batches?limit=100{after}"))
    }

    fn likeness(&self, batch: &Value, wanted: &Wanted<'_>) -> Likeness {
        let id = batch["id"].as_str().unwrap_or_default();
        let counts = &batch["request_counts"];
        let total: i64 = ["processing", "succeeded", "errored", "canceled", "expired"]
            .iter()
            .filter_map(|count| counts[*count].as_i64())
            .sum();
        let created = batch["created_at"].as_str().unwrap_or_default();
        let format = &time::format_description::well_known::Rfc3339;
        let created = time::OffsetDateTime::parse(created, format).map_or(0, |at| at.unix_timestamp());
        let is_known = wanted.known.iter().any(|known| known == id);
        if is_known || total != wanted.items || created + CLOCK_S < wanted.since_unix_s {
            return Likeness::Other;
        }
        match batch["results_url"].as_str() {
            Some(place) => Likeness::ByResults(place.to_owned()),
            None => Likeness::Unclear,
        }
    }

    fn ask(&self, batch: &str) -> Control {
        Control::get(format!("/messages/batches/{batch}"))
    }

    fn standing(&self, told: &Value) -> Standing {
        match told["processing_status"].as_str().unwrap_or_default() {
            "ended" => {
                let place = told["results_url"].as_str().map(str::to_owned);
                Standing::Ended(place.into_iter().collect())
            }
            _ => Standing::Running,
        }
    }

    fn cancel(&self, batch: &str) -> Control {
        let path = format!("/messages/batches/{batch}/cancel");
        Control::post(path, Bytes::from_static(b"{}"))
    }

    /// `place`: a whole URL; what follows the base's own path is asked of the base.
    fn results(&self, place: &str) -> Result<Control, RemoteError> {
        match place.find("/messages/batches/") {
            Some(at) => Ok(Control::get(place[at..].to_owned())),
            None => Err(RemoteError::Unreadable(format!("results at {place}"))),
        }
    }

    fn read(&self, _: &str, body: &Bytes, each: Each<'_>) -> Result<(), RemoteError> {
        lines(body).try_for_each(|line| result(&line, each))
    }
}

#[derive(Deserialize)]
struct Line<'a> {
    custom_id: String,
    #[serde(borrow)]
    result: Told<'a>,
}

#[derive(Deserialize)]
struct Told<'a> {
    r#type: String,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

fn result(line: &Bytes, each: Each<'_>) -> Result<(), RemoteError> {
    let read: Line<'_> = parse(line)?;
    let raw = |raw: Option<&RawValue>| raw.map_or(Bytes::new(), |raw| line.slice_ref(raw.get().as_bytes()));
    let outcome = match read.result.r#type.as_str() {
        "succeeded" => Outcome::Answered(200, raw(read.result.message)),
        "canceled" => Outcome::Cancelled,
        "expired" => Outcome::Expired,
        _ => failed(raw(read.result.error)),
    };
    each(&read.custom_id, outcome);
    Ok(())
}

/// What an item's error means, by its type.
fn failed(error: Bytes) -> Outcome {
    let told: Value = serde_json::from_slice(&error).unwrap_or_default();
    let kind = told["error"]["type"].as_str().or(told["type"].as_str());
    let status = match kind.unwrap_or_default() {
        "invalid_request_error" => 400,
        "rate_limit_error" => 429,
        "overloaded_error" => 529,
        "not_found_error" => 404,
        _ => 500,
    };
    Outcome::Answered(status, error)
}
