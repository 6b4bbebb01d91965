//! The OpenAI chat completions wire format, as `api.openai.com` sends it.

use super::call::{Call, Content, Stop};
use super::play::Event;
use serde_json::{Value, json};
use std::sync::Arc;

fn finish_reason(call: &Call) -> &'static str {
    match call.stop {
        Stop::Natural => "stop",
        Stop::Limit => "length",
        Stop::Tool => "tool_calls",
    }
}

fn usage(call: &Call) -> Value {
    let output = call.reported_output();
    json!({
        "prompt_tokens": call.input_tokens,
        "completion_tokens": output,
        "total_tokens": call.input_tokens + output,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": call.thinking, "audio_tokens": 0,
            "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
        },
    })
}

fn tool_id(call: &Call) -> String {
    format!("call_{:024x}", call.id)
}

/// The answer in one piece.
pub fn whole(call: &Call) -> Vec<u8> {
    let mut message =
        json!({"role": "assistant", "content": call.whole(), "refusal": null, "annotations": []});
    if let Content::Tool { name, arguments } = &call.content {
        message["content"] = Value::Null;
        message["tool_calls"] = json!([
            {"id": tool_id(call), "type": "function", "function": {"name": name, "arguments": arguments}}
        ]);
    }
    if call.thinking > 0 {
        message["reasoning_content"] = call.thought().into();
    }
    let mut answer = json!({
        "id": format!("chatcmpl-{:029x}", call.id),
        "object": "chat.completion",
        "created": call.created,
        "model": call.model,
        "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": finish_reason(call)}],
        "service_tier": call.served_tier(),
        "system_fingerprint": "fp_44709d6fcb",
    });
    if call.reports_usage() {
        answer["usage"] = usage(call);
    }
    serde_json::to_vec(&answer).unwrap()
}

/// Formats chunks with the fields every chunk of one answer repeats.
struct Chunks {
    head: String,
    tail: &'static str,
}

impl Chunks {
    fn new(call: &Call) -> Self {
        let head = format!(
            "data: {{\"id\":\"chatcmpl-{:029x}\",\"object\":\"chat.completion.chunk\",\"created\":{},\"model\":{},\
             \"service_tier\":\"{}\",\"system_fingerprint\":\"fp_44709d6fcb\",",
            call.id,
            call.created,
            json!(call.model),
            call.served_tier()
        );
        let tail = if call.include_usage {
            ",\"usage\":null}\n\n"
        } else {
            "}\n\n"
        };
        Self { head, tail }
    }

    fn delta(&self, delta: &str, finish: Option<&str>) -> String {
        let finish = finish.map_or_else(|| "null".to_owned(), |reason| format!("\"{reason}\""));
        format!(
            "{}\"choices\":[{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{finish}}}]{}",
            self.head, self.tail
        )
    }
}

/// The answer as events: the role first, then content, the reason, usage if it was asked for, and `[DONE]`.
pub fn events(call: Arc<Call>) -> impl Iterator<Item = Event> + Send {
    let chunks = Arc::new(Chunks::new(&call));
    let mut open = json!({"role": "assistant", "content": "", "refusal": null});
    if let Content::Tool { name, .. } = &call.content {
        let function = json!({"name": name, "arguments": ""});
        open["content"] = Value::Null;
        open["tool_calls"] =
            json!([{"index": 0, "id": tool_id(&call), "type": "function", "function": function}]);
    }
    let first = Event::plain(chunks.delta(&open.to_string(), None));

    let thoughts = {
        let chunks = chunks.clone();
        (0..call.thinking).map(move |index| {
            Event::token(chunks.delta(&format!("{{\"reasoning_content\":\"think{index} \"}}"), None))
        })
    };
    let content = {
        let (chunks, call) = (chunks.clone(), call.clone());
        (0..call.pieces()).map(move |index| {
            let piece = json!(call.piece(index));
            let delta = match call.content {
                Content::Tool { .. } => {
                    format!("{{\"tool_calls\":[{{\"index\":0,\"function\":{{\"arguments\":{piece}}}}}]}}")
                }
                _ => format!("{{\"content\":{piece}}}"),
            };
            Event::token(chunks.delta(&delta, None))
        })
    };
    let mut last = vec![Event::plain(chunks.delta("{}", Some(finish_reason(&call))))];
    if call.include_usage && call.reports_usage() {
        last.push(Event::plain(format!(
            "{}\"choices\":[],\"usage\":{}}}\n\n",
            chunks.head,
            usage(&call)
        )));
    }
    last.push(Event::plain("data: [DONE]\n\n".to_owned()));
    std::iter::once(first).chain(thoughts).chain(content).chain(last)
}

/// The answer of an endpoint that is not chat.
pub fn plain(endpoint: &str, call: &Call) -> Value {
    let (input, output) = (call.input_tokens, call.reported_output());
    match endpoint {
        "/v1/embeddings" => {
            let one =
                |index| json!({"object": "embedding", "index": index, "embedding": [index, 0.5, -0.25]});
            json!({
                "object": "list", "model": call.model, "data": (0..call.texts).map(one).collect::<Vec<_>>(),
                "usage": {"prompt_tokens": input, "total_tokens": input},
            })
        }
        "/v1/completions" => json!({
            "id": format!("cmpl-{:029x}", call.id), "object": "text_completion", "created": call.created,
            "model": call.model,
            "choices": [{"index": 0, "text": call.whole(), "logprobs": null, "finish_reason": finish_reason(call)}],
            "usage": {"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output},
        }),
        _ => response(call),
    }
}

/// A finished response.
pub fn response(call: &Call) -> Value {
    let (input, output) = (call.input_tokens, call.reported_output());
    let (status, details) = match call.stop {
        Stop::Limit => ("incomplete", json!({"reason": "max_output_tokens"})),
        _ => ("completed", Value::Null),
    };
    json!({
        "id": format!("resp_{:048x}", call.id), "object": "response", "created_at": call.created, "status": status,
        "error": null, "incomplete_details": details, "model": call.model, "service_tier": call.served_tier(),
        "output": [{
            "id": format!("msg_{:048x}", call.id), "type": "message", "role": "assistant", "status": status,
            "content": [{"type": "output_text", "text": call.whole(), "annotations": []}],
        }],
        "usage": {
            "input_tokens": input, "output_tokens": output, "total_tokens": input + output,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": call.thinking},
        },
    })
}

/// Flex has no room now.
pub fn crowded_out() -> Vec<u8> {
    let message = "Flex processing has no resources available for this request. Try again later.";
    let error = json!({"message": message, "type": "rate_limit_error", "param": null, "code": "resource_unavailable"});
    json!({"error": error}).to_string().into_bytes()
}

/// An error body with the type and code the service uses for `status`.
pub fn error(status: u16, message: &str) -> Vec<u8> {
    let (kind, code) = match status {
        400 => ("invalid_request_error", Value::Null),
        401 => ("invalid_request_error", json!("invalid_api_key")),
        403 => ("invalid_request_error", json!("permission_denied")),
        404 => ("invalid_request_error", json!("model_not_found")),
        429 => ("requests", json!("rate_limit_exceeded")),
        _ => ("server_error", Value::Null),
    };
    let error = json!({"error": {"message": message, "type": kind, "param": null, "code": code}});
    serde_json::to_vec(&error).unwrap()
}
