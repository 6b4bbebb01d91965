//! OpenAI's batches: a file of requests, `/batches`, files of answers and of errors. The pack's id is in the metadata.

use super::{
    Api, Each, Likeness, Outcome, RemoteError, Sent, Standing, Upload, Wanted, lines, one_line, parse,
};
use crate::upstream::control::Control;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

pub(super) struct Openai;

impl Api for Openai {
    fn upload(&self, (pack, endpoint): (&str, &str), sent: &[Sent]) -> Upload {
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
            body.extend(one_line(&one.body));
            body.extend_from_slice(b"}\n");
        }
        body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        Upload::Whole(Control {
            content_type: Some(format!("multipart/form-data; boundary={boundary}")),
            ..Control::post("/files".into(), body.into())
        })
    }

    fn create(&self, (pack, endpoint): (&str, &str), file: &str, _: &[Sent]) -> Control {
        let ask = json!({
            "input_file_id": file, "endpoint": endpoint, "completion_window": "24h",
            "metadata": {"tollgate_pack": pack},
        });
        Control::post("/batches".into(), ask.to_string().into())
    }

    fn list(&self, after: &str) -> Control {
        let after = match after {
            "" => String::new(),
            last => format!("&after={last}"),
        };
        Control::get(format!("/batches?limit=100{after}"))
    }

    fn likeness(&self, batch: &Value, wanted: &Wanted<'_>) -> Likeness {
        if batch["metadata"]["tollgate_pack"] == wanted.pack {
            Likeness::Same
        } else {
            Likeness::Other
        }
    }

    fn ask(&self, batch: &str) -> Control {
        Control::get(format!("/batches/{batch}"))
    }

    fn standing(&self, told: &Value) -> Standing {
        match told["status"].as_str().unwrap_or_default() {
            "completed" | "expired" | "cancelled" => {
                let files = [&told["output_file_id"], &told["error_file_id"]];
                let files = files.into_iter().filter_map(Value::as_str);
                Standing::Ended(files.map(str::to_owned).collect())
            }
            "failed" => {
                let message = told["errors"]["data"][0]["message"].as_str();
                Standing::Failed(message.unwrap_or("it failed").into())
            }
            _ => Standing::Running,
        }
    }

    fn cancel(&self, batch: &str) -> Control {
        Control::post(format!("/batches/{batch}/cancel"), Bytes::from_static(b"{}"))
    }

    fn results(&self, place: &str) -> Result<Control, RemoteError> {
        Ok(Control::get(format!("/files/{place}/content")))
    }

    fn read(&self, _: &str, body: &Bytes, each: Each<'_>) -> Result<(), RemoteError> {
        lines(body).try_for_each(|line| result(&line, each))
    }
}

#[derive(Deserialize)]
struct Line<'a> {
    custom_id: String,
    #[serde(borrow)]
    response: Option<Response<'a>>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Response<'a> {
    status_code: u16,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
}

fn result(line: &Bytes, each: Each<'_>) -> Result<(), RemoteError> {
    let read: Line<'_> = parse(line)?;
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
