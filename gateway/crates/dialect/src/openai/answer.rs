//! OpenAI answers: stream chunks and whole completions, to neutral steps and from them.

use super::{usage, usage_value};
use crate::neutral::{Finish, Step};
use crate::sse;
use exchange::Usage;
use serde_json::{Value, json};

/// The steps of one chunk's data.
pub(crate) fn steps(data: &[u8], out: &mut Vec<Step>) {
    if data == b"[DONE]" {
        out.push(Step::End);
        return;
    }
    let Ok(chunk) = serde_json::from_slice::<Value>(data) else {
        return;
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let delta = &chunk["choices"][0]["delta"];
    if delta["role"].is_string() {
        out.push(Step::Begin {
            id: text(&chunk["id"]),
            model: text(&chunk["model"]),
        });
    }
    pieces(delta, out);
    if let Some(reason) = chunk["choices"][0]["finish_reason"].as_str() {
        out.push(Step::Finish(finish(reason)));
    }
    if let Some(usage) = usage(&chunk["usage"]) {
        out.push(Step::Usage(usage));
    }
}

/// The steps of a whole completion.
pub(crate) fn explode(body: &Value) -> Vec<Step> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut out = vec![Step::Begin {
        id: text(&body["id"]),
        model: text(&body["model"]),
    }];
    pieces(&body["choices"][0]["message"], &mut out);
    out.push(Step::Finish(finish(
        body["choices"][0]["finish_reason"].as_str().unwrap_or("stop"),
    )));
    out.extend(usage(&body["usage"]).map(Step::Usage));
    out.push(Step::End);
    out
}

/// What a delta and a message have in common.
fn pieces(message: &Value, out: &mut Vec<Step>) {
    let text = |value: &Value| {
        value
            .as_str()
            .filter(|text| !text.is_empty())
            .map(ToOwned::to_owned)
    };
    let thinking = text(&message["reasoning_content"]).or_else(|| text(&message["reasoning"]));
    out.extend(thinking.map(Step::Thinking));
    out.extend(text(&message["content"]).map(Step::Text));
    out.extend(text(&message["refusal"]).map(Step::Text));
    for call in message["tool_calls"].as_array().into_iter().flatten() {
        if let Some(name) = text(&call["function"]["name"]) {
            out.push(Step::Tool {
                id: text(&call["id"]).unwrap_or_default(),
                name,
            });
        }
        out.extend(text(&call["function"]["arguments"]).map(Step::Arguments));
    }
}

fn finish(reason: &str) -> Finish {
    match reason {
        "length" => Finish::Length,
        "tool_calls" | "function_call" => Finish::ToolUse,
        "content_filter" => Finish::Refusal,
        _ => Finish::Stop,
    }
}

pub(crate) fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::ToolUse => "tool_calls",
        Finish::Refusal => "content_filter",
    }
}

/// Writes neutral steps as OpenAI chunks.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    id: String,
    model: String,
    /// Tool calls begun.
    tools: usize,
    include_usage: bool,
    /// The last one told; it goes out once, at the end.
    usage: Option<Usage>,
}

impl Writer {
    pub(crate) fn new(include_usage: bool) -> Self {
        Self {
            include_usage,
            ..Self::default()
        }
    }

    fn chunk(&self, delta: &Value, finish: Option<&str>) -> Value {
        json!({
            "id": self.id, "object": "chat.completion.chunk", "created": 0, "model": self.model,
            "choices": [{ "index": 0, "delta": delta, "finish_reason": finish }],
        })
    }

    pub(crate) fn write(&mut self, step: Step, out: &mut Vec<u8>) {
        let delta = match step {
            Step::Begin { id, model } => {
                (self.id, self.model) = (format!("chatcmpl-{id}"), model);
                json!({ "role": "assistant", "content": "" })
            }
            Step::Text(text) => json!({ "content": text }),
            Step::Thinking(text) => json!({ "reasoning_content": text }),
            Step::Tool { id, name } => {
                self.tools += 1;
                json!({ "tool_calls": [{ "index": self.tools - 1, "id": id, "type": "function",
                    "function": { "name": name, "arguments": "" } }] })
            }
            Step::Arguments(json) => {
                let index = self.tools.saturating_sub(1);
                json!({ "tool_calls": [{ "index": index, "function": { "arguments": json } }] })
            }
            Step::Finish(finish) => {
                sse::write(out, None, &self.chunk(&json!({}), Some(finish_reason(finish))));
                return;
            }
            Step::Usage(usage) => {
                self.usage = Some(usage);
                return;
            }
            Step::End => {
                if let Some(usage) = self.usage.filter(|_| self.include_usage) {
                    let mut chunk = self.chunk(&json!({}), None);
                    chunk["choices"] = json!([]);
                    chunk["usage"] = usage_value(&usage);
                    sse::write(out, None, &chunk);
                }
                out.extend_from_slice(b"data: [DONE]\n\n");
                return;
            }
        };
        sse::write(out, None, &self.chunk(&delta, None));
    }
}
