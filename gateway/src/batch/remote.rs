//! Providers' batch APIs: send, find again, ask, cancel, fetch. OpenAI's files and `/batches`, Anthropic's
//! `/messages/batches`. What a provider's batch is called is the pack's id wherever the provider lets it have a name.

use crate::config::batch::BatchApi;
use crate::upstream::Upstream;
use crate::upstream::control::Control;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// The most that is read of an answer that is not results.
const ANSWER_BYTES: usize = 4 << 20;
/// The most that is read of results.
const RESULT_BYTES: usize = 1 << 30;

/// What went wrong between us and the provider.
#[derive(Debug, thiserror::Error)]
pub(super) enum RemoteError {
    #[error("{0}")]
    Open(#[from] crate::upstream::OpenError),
    /// It understood, and does not want it.
    #[error("the provider refused with {status}: {message}")]
    Refused { status: u16, message: String },
    #[error("the provider's answer cannot be read: {0}")]
    Unreadable(String),
}

impl RemoteError {
    /// To send the same again is no use.
    pub(super) const fn is_final(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status >= 400 && *status < 500 && *status != 429 && *status != 408 && *status != 409)
    }
}

/// How a batch stands.
#[derive(Debug)]
pub(super) enum Standing {
    Running,
    /// It has ended; where the results are.
    Ended(Vec<String>),
    /// It never ran.
    Failed(String),
}

/// One item's result.
#[derive(Debug)]
pub(super) enum Outcome {
    Answered(u16, Bytes),
    /// Not answered, and not billed.
    Expired,
    Cancelled,
}

/// A request as it goes into a batch.
pub(super) struct Sent {
    pub(super) custom_id: String,
    pub(super) body: Bytes,
}

/// A provider's batch API.
#[derive(Clone, Copy)]
pub(super) struct Remote<'a> {
    pub(super) upstream: &'a Upstream,
    pub(super) api: BatchApi,
}

impl Remote<'_> {
    /// Uploads what is to be batched, where the API wants that apart; its name there.
    pub(super) async fn upload(
        &self,
        (pack, endpoint): (&str, &str),
        sent: &[Sent],
    ) -> Result<String, RemoteError> {
        if self.api == BatchApi::Anthropic {
            return Ok(String::new());
        }
        let boundary = format!("tollgate-{pack}");
        let mut body = Vec::with_capacity(sent.iter().map(|one| one.body.len() + 160).sum());
        body.extend_from_slice(
            format!(
                "--{boundary}\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--{boundary}\r\n\
                 content-disposition: form-data; name=\"file\"; filename=\"{pack}.jsonl\"\r\n\
                 content-type: application/jsonl\r\n\r\n"
            )
            .as_bytes(),
        );
        for one in sent {
            let id = &one.custom_id;
            let lead =
                format!("{{\"custom_id\":\"{id}\",\"method\":\"POST\",\"url\":\"{endpoint}\",\"body\":");
            body.extend_from_slice(lead.as_bytes());
            // A line is a line, however the caller wrote its JSON: line ends stand only between tokens.
            body.extend(one.body.iter().map(|byte| {
                if matches!(byte, b'\n' | b'\r') {
                    b' '
                } else {
                    *byte
                }
            }));
            body.extend_from_slice(b"}\n");
        }
        body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        let call = Control {
            content_type: Some(format!("multipart/form-data; boundary={boundary}")),
            ..Control::post("/files".into(), body.into())
        };
        name(&self.call(&call).await?)
    }

    /// Makes the batch; its name there.
    pub(super) async fn create(
        &self,
        (pack, endpoint): (&str, &str),
        file: &str,
        sent: &[Sent],
    ) -> Result<String, RemoteError> {
        let call = match self.api {
            BatchApi::Openai => {
                let ask = json!({
                    "input_file_id": file, "endpoint": endpoint, "completion_window": "24h",
                    "metadata": {"tollgate_pack": pack},
                });
                Control::post("/batches".into(), ask.to_string().into())
            }
            BatchApi::Anthropic => {
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
        };
        name(&self.call(&call).await?)
    }

    /// The batch that a pack was made into, should it have been: by its name, or, where the API keeps none, by what its
    /// results speak of. `since_unix_s`: it cannot be older. `known`: those that belong to other packs.
    pub(super) async fn find(
        &self,
        pack: &str,
        (since_unix_s, items): (i64, i64),
        known: &[String],
    ) -> Result<Found, RemoteError> {
        let path = match self.api {
            BatchApi::Openai => "/batches?limit=100",
            BatchApi::Anthropic => "/messages/batches?limit=100",
        };
        let listed = self.call(&Control::get(path.into())).await?;
        let listed: Value = parse(&listed)?;
        let batches = listed["data"].as_array().map_or(&[][..], Vec::as_slice);
        for batch in batches {
            let id = batch["id"].as_str().unwrap_or_default();
            match self.api {
                BatchApi::Openai if batch["metadata"]["tollgate_pack"] == pack => {
                    return Ok(Found::It(id.into()));
                }
                BatchApi::Openai => {}
                BatchApi::Anthropic => {
                    let counts = &batch["request_counts"];
                    let total: i64 = ["processing", "succeeded", "errored", "canceled", "expired"]
                        .iter()
                        .filter_map(|count| counts[*count].as_i64())
                        .sum();
                    let created = batch["created_at"].as_str().unwrap_or_default();
                    let format = &time::format_description::well_known::Rfc3339;
                    let created =
                        time::OffsetDateTime::parse(created, format).map_or(0, |at| at.unix_timestamp());
                    let unknown = !known.iter().any(|known| known == id);
                    if !unknown || total != items || created + 60 < since_unix_s {
                        continue;
                    }
                    let Some(path) = batch["results_url"].as_str() else {
                        // It still runs, and only its results tell whose it is.
                        return Ok(Found::Perhaps);
                    };
                    let mut ours = false;
                    self.results(&[path.to_owned()], |custom_id, _| {
                        ours |= custom_id.starts_with(pack)
                    })
                    .await?;
                    if ours {
                        return Ok(Found::It(id.into()));
                    }
                }
            }
        }
        Ok(Found::Nothing)
    }

    pub(super) async fn standing(&self, batch: &str) -> Result<Standing, RemoteError> {
        let path = match self.api {
            BatchApi::Openai => format!("/batches/{batch}"),
            BatchApi::Anthropic => format!("/messages/batches/{batch}"),
        };
        let told: Value = parse(&self.call(&Control::get(path)).await?)?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Ok(match self.api {
            BatchApi::Openai => match told["status"].as_str().unwrap_or_default() {
                "completed" | "expired" | "cancelled" => {
                    let files = [&told["output_file_id"], &told["error_file_id"]];
                    Standing::Ended(files.into_iter().filter_map(text).collect())
                }
                "failed" => Standing::Failed(
                    told["errors"]["data"][0]["message"]
                        .as_str()
                        .unwrap_or("it failed")
                        .into(),
                ),
                _ => Standing::Running,
            },
            BatchApi::Anthropic => match told["processing_status"].as_str().unwrap_or_default() {
                "ended" => Standing::Ended(text(&told["results_url"]).into_iter().collect()),
                _ => Standing::Running,
            },
        })
    }

    pub(super) async fn cancel(&self, batch: &str) -> Result<(), RemoteError> {
        let path = match self.api {
            BatchApi::Openai => format!("/batches/{batch}/cancel"),
            BatchApi::Anthropic => format!("/messages/batches/{batch}/cancel"),
        };
        match self.call(&Control::post(path, Bytes::from_static(b"{}"))).await {
            // It has ended meanwhile.
            Err(RemoteError::Refused {
                status: 400 | 409, ..
            }) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Hands each result to `each`, in whatever order they stand.
    pub(super) async fn results(
        &self,
        places: &[String],
        mut each: impl FnMut(&str, Outcome),
    ) -> Result<(), RemoteError> {
        for place in places {
            let path = match self.api {
                BatchApi::Openai => format!("/files/{place}/content"),
                // A whole URL: what follows the base's own path is asked of the base.
                BatchApi::Anthropic => match place.find("/messages/batches/") {
                    Some(at) => place[at..].to_owned(),
                    None => return Err(RemoteError::Unreadable(format!("results at {place}"))),
                },
            };
            let (status, body) = self.upstream.control(&Control::get(path), RESULT_BYTES).await?;
            if status != 200 {
                return Err(refused(status, &body));
            }
            for line in body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let line = body.slice_ref(line);
                match self.api {
                    BatchApi::Openai => openai_result(&line, &mut each)?,
                    BatchApi::Anthropic => anthropic_result(&line, &mut each)?,
                }
            }
        }
        Ok(())
    }

    async fn call(&self, call: &Control) -> Result<Bytes, RemoteError> {
        let (status, body) = self.upstream.control(call, ANSWER_BYTES).await?;
        if (200..300).contains(&status) {
            Ok(body)
        } else {
            Err(refused(status, &body))
        }
    }
}

/// Whether a batch was found again.
pub(super) enum Found {
    It(String),
    Nothing,
    /// One that runs may be it.
    Perhaps,
}

fn refused(status: u16, body: &[u8]) -> RemoteError {
    let told: Value = serde_json::from_slice(body).unwrap_or_default();
    let message = told["error"]["message"]
        .as_str()
        .unwrap_or("it does not say why")
        .to_owned();
    RemoteError::Refused { status, message }
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, RemoteError> {
    serde_json::from_slice(body).map_err(|error| RemoteError::Unreadable(error.to_string()))
}

fn name(body: &[u8]) -> Result<String, RemoteError> {
    let told: Value = parse(body)?;
    let id = told["id"].as_str().filter(|id| !id.is_empty());
    id.map(str::to_owned)
        .ok_or_else(|| RemoteError::Unreadable("it has no id".into()))
}

#[derive(Deserialize)]
struct OpenaiLine<'a> {
    custom_id: String,
    #[serde(borrow)]
    response: Option<OpenaiResponse<'a>>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct OpenaiResponse<'a> {
    status_code: u16,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
}

fn openai_result(line: &Bytes, each: &mut impl FnMut(&str, Outcome)) -> Result<(), RemoteError> {
    let read: OpenaiLine<'_> = parse(line)?;
    let code = read
        .error
        .as_ref()
        .and_then(|error| error["code"].as_str())
        .unwrap_or_default();
    let outcome = match read.response {
        Some(response) => {
            let body = response
                .body
                .map_or(Bytes::new(), |body| line.slice_ref(body.get().as_bytes()));
            Outcome::Answered(response.status_code, body)
        }
        None if code == "batch_cancelled" => Outcome::Cancelled,
        None if code == "batch_expired" => Outcome::Expired,
        None => Outcome::Answered(500, Bytes::from(json!({"error": read.error}).to_string())),
    };
    each(&read.custom_id, outcome);
    Ok(())
}

#[derive(Deserialize)]
struct AnthropicLine<'a> {
    custom_id: String,
    #[serde(borrow)]
    result: AnthropicResult<'a>,
}

#[derive(Deserialize)]
struct AnthropicResult<'a> {
    r#type: String,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

fn anthropic_result(line: &Bytes, each: &mut impl FnMut(&str, Outcome)) -> Result<(), RemoteError> {
    let read: AnthropicLine<'_> = parse(line)?;
    let raw = |raw: Option<&RawValue>| raw.map_or(Bytes::new(), |raw| line.slice_ref(raw.get().as_bytes()));
    let outcome = match read.result.r#type.as_str() {
        "succeeded" => Outcome::Answered(200, raw(read.result.message)),
        "canceled" => Outcome::Cancelled,
        "expired" => Outcome::Expired,
        _ => {
            let error = raw(read.result.error);
            let told: Value = serde_json::from_slice(&error).unwrap_or_default();
            let kind = told["error"]["type"]
                .as_str()
                .or(told["type"].as_str())
                .unwrap_or_default();
            let status = match kind {
                "invalid_request_error" => 400,
                "rate_limit_error" => 429,
                "overloaded_error" => 529,
                "not_found_error" => 404,
                _ => 500,
            };
            Outcome::Answered(status, error)
        }
    };
    each(&read.custom_id, outcome);
    Ok(())
}
