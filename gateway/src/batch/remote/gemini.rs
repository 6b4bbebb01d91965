//! Gemini's batches: `batchGenerateContent`, an operation to ask, results within it or in a file.
//!
//! The provider itself is called on its surface that speaks OpenAI's dialect; its own lies beside that, under the base
//! URL's path without `/openai`. Items are chat completions on our side of this file and `GenerateContent` beyond it. A
//! batch's display name is its pack's id, an item's key its custom id. Shapes as in Google's `v1beta` reference of
//! `BatchGenerateContent`, `Operation` and `files`.

use super::{
    Api, Each, Likeness, Outcome, RemoteError, Sent, Standing, Upload, Wanted, lines, one_line, parse,
};
use crate::clock;
use crate::upstream::control::{Authority, Control, Root};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// Up to so many bytes a batch's requests stand in the call that makes it, and its answers in the operation and in every
/// list of them; Gemini's own bound is twenty times that. More goes by file.
const INLINE_BYTES: usize = 1 << 20;
/// Around each request.
const FRAME_BYTES: usize = 120;

pub(super) struct Gemini<'a> {
    /// The base URL's path, which ends in `/openai`.
    pub(super) base: &'a str,
    /// As the provider calls it.
    pub(super) model: &'a str,
}

impl Gemini<'_> {
    /// A path of Gemini's own surface. `service`: what stands before the version, `/upload` and `/download` for content.
    fn path(&self, service: &str, path: &str) -> String {
        let base = self.base.strip_suffix("/openai").unwrap_or(self.base);
        let (before, version) = base.split_at(base.rfind('/').unwrap_or(0));
        [before, service, version, path].concat()
    }

    fn get(&self, path: &str) -> Control {
        own(Control::get(self.path("", path)))
    }

    fn post(&self, path: &str, body: Bytes) -> Control {
        own(Control::post(self.path("", path), body))
    }
}

/// A call of Gemini's own surface.
fn own(call: Control) -> Control {
    Control {
        root: Root::Origin,
        authority: Authority::Google,
        ..call
    }
}

impl Api for Gemini<'_> {
    fn item(&self, body: Bytes) -> Result<Bytes, String> {
        dialect::to_gemini(&body, self.model).map_err(|error| error.to_string())
    }

    fn upload(&self, (pack, _): (&str, &str), sent: &[Sent]) -> Upload {
        let size: usize = sent.iter().map(|one| one.body.len() + FRAME_BYTES).sum();
        if size <= INLINE_BYTES {
            return Upload::Unneeded;
        }
        let mut content = Vec::with_capacity(size);
        for one in sent {
            content.extend_from_slice(format!("{{\"key\":\"{}\",\"request\":", one.custom_id).as_bytes());
            content.extend(one_line(&one.body));
            content.extend_from_slice(b"}\n");
        }
        let about = json!({ "file": { "displayName": pack, "mimeType": "application/jsonl" } });
        let about = Control::post(self.path("/upload", "/files"), about.to_string().into());
        let open = Control {
            fields: vec![
                ("x-goog-upload-protocol", "resumable".into()),
                ("x-goog-upload-command", "start".into()),
                ("x-goog-upload-header-content-length", content.len().to_string()),
                ("x-goog-upload-header-content-type", "application/jsonl".into()),
            ],
            ..own(about)
        };
        let send = Control {
            content_type: Some("application/jsonl".into()),
            fields: vec![
                ("x-goog-upload-command", "upload, finalize".into()),
                ("x-goog-upload-offset", "0".into()),
            ],
            ..own(Control::post(String::new(), content.into()))
        };
        Upload::Session {
            open,
            place: "x-goog-upload-url",
            send,
        }
    }

    fn create(&self, (pack, _): (&str, &str), file: &str, sent: &[Sent]) -> Control {
        let model = self.model.trim_start_matches("models/");
        let path = format!("/models/{model}:batchGenerateContent");
        if !file.is_empty() {
            let ask = json!({ "batch": { "displayName": pack, "inputConfig": { "fileName": file } } });
            return self.post(&path, ask.to_string().into());
        }
        let mut body = format!(
            "{{\"batch\":{{\"displayName\":\"{pack}\",\"inputConfig\":{{\"requests\":{{\"requests\":["
        )
        .into_bytes();
        for (at, one) in sent.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            let key = &one.custom_id;
            body.extend_from_slice(
                format!("{comma}{{\"metadata\":{{\"key\":\"{key}\"}},\"request\":").as_bytes(),
            );
            body.extend_from_slice(&one.body);
            body.push(b'}');
        }
        body.extend_from_slice(b"]}}}}");
        self.post(&path, body.into())
    }

    fn list(&self, after: &str) -> Control {
        let token = percent_encoding::utf8_percent_encode(after, percent_encoding::NON_ALPHANUMERIC);
        let token = match after {
            "" => String::new(),
            _ => format!("&pageToken={token}"),
        };
        self.get(&format!("/batches?pageSize=100{token}"))
    }

    fn listed<'v>(&self, page: &'v Value) -> (&'v [Value], Option<String>) {
        let batches = page["operations"].as_array().map_or(&[][..], Vec::as_slice);
        (batches, page["nextPageToken"].as_str().map(str::to_owned))
    }

    fn likeness(&self, batch: &Value, wanted: &Wanted<'_>) -> Likeness {
        if batch["metadata"]["displayName"] == wanted.pack {
            Likeness::Same
        } else {
            Likeness::Other
        }
    }

    fn id<'v>(&self, told: &'v Value) -> Option<&'v str> {
        let name = told["file"]["name"].as_str();
        name.or_else(|| told["name"].as_str())
    }

    fn ask(&self, batch: &str) -> Control {
        self.get(&format!("/{batch}"))
    }

    fn standing(&self, told: &Value) -> Standing {
        let state = told["metadata"]["state"].as_str().unwrap_or_default();
        // Spelt `BATCH_STATE_…` or `JOB_STATE_…`, as the version has it.
        let state = state.rsplit_once("STATE_").map_or(state, |(_, state)| state);
        let failed = |or: &str| {
            let message = told["error"]["message"].as_str();
            Standing::Failed(message.unwrap_or(or).into())
        };
        match (state, place(told)) {
            ("SUCCEEDED" | "PARTIALLY_SUCCEEDED" | "CANCELLED" | "EXPIRED", Some(place)) => {
                Standing::Ended(vec![place])
            }
            // Without results none of it was answered.
            ("CANCELLED" | "EXPIRED", None) => Standing::Ended(Vec::new()),
            ("SUCCEEDED" | "PARTIALLY_SUCCEEDED", None) => failed("it has ended and has no results"),
            ("FAILED", _) => failed("it failed"),
            // Queued, pending, running, paused, cancelling, and what may be added.
            _ => Standing::Running,
        }
    }

    fn cancel(&self, batch: &str) -> Control {
        self.post(&format!("/{batch}:cancel"), Bytes::from_static(b"{}"))
    }

    fn results(&self, place: &str) -> Result<Control, RemoteError> {
        Ok(match place.strip_prefix("files/") {
            Some(_) => own(Control::get(
                self.path("/download", &format!("/{place}:download?alt=media")),
            )),
            None => self.ask(place),
        })
    }

    fn read(&self, place: &str, body: &Bytes, each: Each<'_>) -> Result<(), RemoteError> {
        let said = (self.model, clock::unix_us() / 1_000_000);
        if place.starts_with("files/") {
            return lines(body).try_for_each(|line| result(parse(&line)?, said, each));
        }
        let told: Operation<'_> = parse(body)?;
        let outputs = [told.response, told.metadata.and_then(|about| about.output)];
        let inline = outputs.into_iter().flatten().find_map(|output| output.inlined);
        let inline = inline.ok_or_else(|| RemoteError::Unreadable("it has no results".into()))?;
        inline
            .inlined
            .into_iter()
            .try_for_each(|one| result(one, said, each))
    }
}

/// Where the results of a batch are: a file's name, or its own where they stand in the operation.
fn place(told: &Value) -> Option<String> {
    let outputs = [&told["response"], &told["metadata"]["output"]];
    let file = outputs.iter().find_map(|output| output["responsesFile"].as_str());
    let inline = || {
        let mut answers = outputs
            .iter()
            .map(|output| &output["inlinedResponses"]["inlinedResponses"]);
        answers.any(Value::is_array).then(|| told["name"].as_str())?
    };
    file.or_else(inline).map(str::to_owned)
}

#[derive(Deserialize)]
struct Operation<'a> {
    #[serde(borrow)]
    response: Option<Output<'a>>,
    #[serde(borrow)]
    metadata: Option<About<'a>>,
}

#[derive(Deserialize)]
struct About<'a> {
    #[serde(borrow)]
    output: Option<Output<'a>>,
}

#[derive(Deserialize)]
struct Output<'a> {
    #[serde(borrow, rename = "inlinedResponses")]
    inlined: Option<Inlined<'a>>,
}

#[derive(Deserialize)]
struct Inlined<'a> {
    #[serde(borrow, rename = "inlinedResponses", default)]
    inlined: Vec<Answer<'a>>,
}

/// One item's result: a line of a file has its key, one in an operation has it in its metadata.
#[derive(Deserialize)]
struct Answer<'a> {
    key: Option<String>,
    metadata: Option<Keyed>,
    #[serde(borrow)]
    response: Option<&'a RawValue>,
    #[serde(alias = "status")]
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Keyed {
    key: Option<String>,
}

fn result(read: Answer<'_>, (model, created): (&str, i64), each: Each<'_>) -> Result<(), RemoteError> {
    let key = read.key.or_else(|| read.metadata?.key);
    let key = key.ok_or_else(|| RemoteError::Unreadable("a result has no key".into()))?;
    let outcome = match read.response {
        Some(response) => {
            let translated = dialect::from_gemini(response.get().as_bytes(), (model, created));
            Outcome::Answered(
                200,
                translated.map_err(|error| RemoteError::Unreadable(error.to_string()))?,
            )
        }
        None => failed(&read.error.unwrap_or_default()),
    };
    each(&key, outcome);
    Ok(())
}

/// What an item's error means; its code is gRPC's or HTTP's, as it comes.
fn failed(error: &Value) -> Outcome {
    let status = match error["code"].as_u64().unwrap_or(500) {
        1 | 499 => return Outcome::Cancelled,
        4 | 504 => return Outcome::Expired,
        3 | 9 | 11 => 400,
        5 => 404,
        7 => 403,
        8 => 429,
        14 => 503,
        16 => 401,
        code => u16::try_from(code)
            .ok()
            .filter(|code| (400..600).contains(code))
            .unwrap_or(500),
    };
    let message = error["message"].as_str().unwrap_or("it does not say why");
    let body = json!({ "error": { "message": message, "type": "provider_error", "code": error["status"] } });
    Outcome::Answered(status, body.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const API: Gemini<'static> = Gemini {
        base: "/v1beta/openai",
        model: "gemini-2.5-flash",
    };

    fn sent(size: usize) -> Vec<Sent> {
        let item = |custom_id: &str, body: String| Sent {
            custom_id: custom_id.into(),
            body: body.into(),
        };
        let text = "x".repeat(size);
        vec![
            item("p_a", format!("{{\"contents\":[\n\"{text}\"]}}")),
            item("p_b", "{}".into()),
        ]
    }

    #[test]
    fn paths_stand_beside_the_surface_that_speaks_openai() {
        assert_eq!(API.path("/upload", "/files"), "/upload/v1beta/files");
        let behind = Gemini {
            base: "/google/v1beta/openai",
            ..API
        };
        assert_eq!(
            behind.path("/download", "/files/f"),
            "/google/download/v1beta/files/f"
        );
        assert_eq!(API.ask("batches/b").path, "/v1beta/batches/b");
        let made = API.create(("p", ""), "files/f", &[]);
        assert_eq!(made.path, "/v1beta/models/gemini-2.5-flash:batchGenerateContent");
        assert_eq!(
            API.list("a=b").path,
            "/v1beta/batches?pageSize=100&pageToken=a%3Db"
        );
    }

    #[test]
    fn what_is_small_stands_in_the_call_and_what_is_large_in_a_file() {
        assert!(matches!(API.upload(("p", ""), &sent(10)), Upload::Unneeded));
        let call = API.create(("p", ""), "", &sent(2));
        let told: Value = serde_json::from_slice(&call.body).unwrap();
        assert_eq!(
            told,
            json!({"batch": {"displayName": "p", "inputConfig": {"requests": {"requests": [
                {"metadata": {"key": "p_a"}, "request": {"contents": ["xx"]}}, {"metadata": {"key": "p_b"}, "request": {}}]}}}})
        );
        let Upload::Session { open, send, .. } = API.upload(("p", ""), &sent(INLINE_BYTES)) else {
            panic!("it is too large for the call");
        };
        assert_eq!(
            (&*open.path, open.authority),
            ("/upload/v1beta/files", Authority::Google)
        );
        let keys =
            lines(&send.body).map(|line| serde_json::from_slice::<Value>(&line).unwrap()["key"].clone());
        assert_eq!(keys.collect::<Vec<_>>(), ["p_a", "p_b"]);
    }

    #[test]
    fn states_in_either_spelling() {
        let file = json!({"responsesFile": "files/f"});
        let inline = json!({"inlinedResponses": {"inlinedResponses": []}});
        for (state, output, expected) in [
            ("BATCH_STATE_PENDING", Value::Null, "Running"),
            ("JOB_STATE_QUEUED", Value::Null, "Running"),
            ("JOB_STATE_PAUSED", Value::Null, "Running"),
            ("JOB_STATE_CANCELLING", Value::Null, "Running"),
            ("JOB_STATE_SUCCEEDED", file.clone(), "Ended([\"files/f\"])"),
            ("BATCH_STATE_SUCCEEDED", inline.clone(), "Ended([\"batches/b\"])"),
            (
                "BATCH_STATE_PARTIALLY_SUCCEEDED",
                file.clone(),
                "Ended([\"files/f\"])",
            ),
            ("BATCH_STATE_CANCELLED", file, "Ended([\"files/f\"])"),
            ("BATCH_STATE_CANCELLED", Value::Null, "Ended([])"),
            ("JOB_STATE_EXPIRED", Value::Null, "Ended([])"),
            ("BATCH_STATE_FAILED", Value::Null, "Failed(\"why\")"),
            ("BATCH_STATE_SUCCEEDED", Value::Null, "Failed(\"why\")"),
        ] {
            let about = json!({"state": state, "output": output});
            for told in [
                json!({"name": "batches/b", "metadata": about, "error": {"message": "why"}}),
                json!({"name": "batches/b", "metadata": {"state": state}, "response": output, "error": {"message": "why"}}),
            ] {
                assert_eq!(format!("{:?}", API.standing(&told)), expected, "{told}");
            }
        }
    }

    fn read(place: &str, body: &str) -> Vec<(String, u16)> {
        let mut seen = Vec::new();
        let mut each = |key: &str, outcome: Outcome| {
            let status = match outcome {
                Outcome::Answered(status, _) => status,
                Outcome::Expired => 1,
                Outcome::Cancelled => 0,
            };
            seen.push((key.to_owned(), status));
        };
        let body = Bytes::copy_from_slice(body.as_bytes());
        API.read(place, &body, &mut each).unwrap();
        seen
    }

    #[test]
    fn results_are_told_apart_by_their_keys_wherever_they_stand() {
        let lines = [
            r#"{"key":"a","response":{"candidates":[]}}"#,
            r#"{"key":"b","error":{"code":8,"message":"full"}}"#,
            r#"{"key":"c","status":{"code":400,"message":"bad"}}"#,
            r#"{"key":"d","error":{"code":1}}"#,
            r#"{"key":"e","error":{"code":4}}"#,
        ];
        let expected = [("a", 200), ("b", 429), ("c", 400), ("d", 0), ("e", 1)];
        assert_eq!(
            read("files/f", &lines.join("\n")),
            expected.map(|(key, status)| (key.to_owned(), status))
        );
        let operation = json!({"name": "batches/b", "metadata": {"state": "BATCH_STATE_SUCCEEDED"}, "done": true,
            "response": {"@type": "x", "inlinedResponses": {"inlinedResponses": [
                {"metadata": {"key": "b"}, "error": {"code": 3}},
                {"metadata": {"key": "a"}, "response": {"candidates": []}}]}}});
        assert_eq!(
            read("batches/b", &operation.to_string()),
            [("b".to_owned(), 400), ("a".to_owned(), 200)]
        );
    }
}
