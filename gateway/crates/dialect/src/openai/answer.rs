//! OpenAI answers: stream chunks and whole completions, to neutral steps and from them.

use super::{thinking, usage_value};
use crate::neutral::{Finish, Kind, Seen, Step, unescape};
use crate::sse;
use exchange::{Surface, Usage};
use serde_json::{Value, json};

/// Reads the chunks of one stream, of which only the first choice has a place in other dialects.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    begun: bool,
    /// Upstream's own indexes of the tool calls, in the order they began.
    calls: Vec<u64>,
}

impl Reader {
    pub(crate) fn steps(&mut self, seen: &Seen, data: &[u8], out: &mut Vec<Step>) {
        match seen {
            Seen::Done => {
                if !self.begun {
                    out.push(begin(&Value::Null));
                }
                out.push(Step::End);
            }
            Seen::Piece {
                kind: Kind::Text,
                index: 0,
                span,
            } => out.push(Step::Text(unescape(data, span))),
            Seen::Event(chunk) => self.chunk(chunk, out),
            Seen::Piece { .. } | Seen::Counted => {}
        }
    }

    fn chunk(&mut self, chunk: &Value, out: &mut Vec<Step>) {
        let choices = chunk["choices"].as_array().into_iter().flatten();
        let mut firsts = choices.filter(|choice| choice["index"].as_u64().unwrap_or(0) == 0);
        let Some(choice) = firsts.next() else { return };
        if !self.begun {
            self.begun = true;
            out.push(begin(chunk));
        }
        self.pieces(&choice["delta"], out);
        out.extend(
            choice["finish_reason"]
                .as_str()
                .map(|reason| Step::Finish(finish(reason))),
        );
    }

    /// What a delta and a message have in common.
    fn pieces(&mut self, message: &Value, out: &mut Vec<Step>) {
        let text = |value: &Value| {
            value
                .as_str()
                .filter(|text| !text.is_empty())
                .map(ToOwned::to_owned)
        };
        out.extend(thinking(message).map(|text| Step::Thinking(text.to_owned())));
        out.extend(text(&message["content"]).map(Step::Text));
        out.extend(text(&message["refusal"]).map(Step::Text));
        for (position, tool) in message["tool_calls"].as_array().into_iter().flatten().enumerate() {
            let index = tool["index"].as_u64().unwrap_or(position as u64);
            let known = self.calls.iter().position(|known| *known == index);
            let call = known.unwrap_or(self.calls.len());
            if known.is_none() {
                self.calls.push(index);
                let id = text(&tool["id"]).unwrap_or_else(|| format!("call_{call}"));
                let name = text(&tool["function"]["name"]).unwrap_or_default();
                out.push(Step::Tool { call, id, name });
            }
            out.extend(text(&tool["function"]["arguments"]).map(|json| Step::Arguments { call, json }));
        }
    }
}

fn begin(body: &Value) -> Step {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Step::Begin {
        id: text(&body["id"]),
        model: text(&body["model"]),
        created_unix_s: body["created"].as_i64(),
    }
}

/// The steps of a whole completion.
pub(crate) fn explode(body: &Value) -> Vec<Step> {
    let choice = &body["choices"][0];
    let mut out = vec![begin(body)];
    Reader::default().pieces(&choice["message"], &mut out);
    out.push(Step::Finish(finish(
        choice["finish_reason"].as_str().unwrap_or("stop"),
    )));
    out.push(Step::End);
    out
}

pub(crate) fn finish(reason: &str) -> Finish {
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
    created_unix_s: i64,
    include_usage: bool,
    /// Thinking that has not been sealed yet.
    thinking: String,
    /// Blocks of sealed thinking so far.
    blocks: usize,
    pub(crate) usage: Option<Usage>,
}

impl Writer {
    pub(crate) fn new(include_usage: bool, created_unix_s: i64) -> Self {
        Self {
            include_usage,
            created_unix_s,
            ..Self::default()
        }
    }

    fn chunk(&self, delta: &Value, finish: Option<&str>) -> Value {
        json!({
            "id": self.id, "object": "chat.completion.chunk", "created": self.created_unix_s, "model": self.model,
            "choices": [{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish }],
        })
    }

    /// The field in which other gateways hand signed thinking to callers of this dialect, and take it back. Every entry
    /// of a list in a delta has an index: the official SDK insists on it.
    fn thinking_block(&mut self, mut block: Value) -> Value {
        block["index"] = self.blocks.into();
        self.blocks += 1;
        json!({ "thinking_blocks": [block] })
    }

    pub(crate) fn write(&mut self, step: Step, out: &mut Vec<u8>) {
        let delta = match step {
            Step::Begin {
                id,
                model,
                created_unix_s,
            } => {
                (self.id, self.model) = (format!("chatcmpl-{id}"), model);
                self.created_unix_s = created_unix_s.unwrap_or(self.created_unix_s);
                json!({ "role": "assistant", "content": "" })
            }
            Step::Text(text) => json!({ "content": text }),
            Step::Thinking(text) => {
                self.thinking.push_str(&text);
                json!({ "reasoning_content": text })
            }
            Step::Signature(signature) => {
                let thinking = std::mem::take(&mut self.thinking);
                self.thinking_block(
                    json!({ "type": "thinking", "thinking": thinking, "signature": signature }),
                )
            }
            Step::Sealed(block) => self.thinking_block(block),
            Step::Tool { call, id, name } => {
                json!({ "tool_calls": [{ "index": call, "id": id, "type": "function",
                    "function": { "name": name, "arguments": "" } }] })
            }
            Step::Arguments { call, json } => {
                json!({ "tool_calls": [{ "index": call, "function": { "arguments": json } }] })
            }
            Step::Finish(finish) => {
                sse::write(out, None, &self.chunk(&json!({}), Some(finish_reason(finish))));
                return;
            }
            Step::End => {
                self.end(out);
                return;
            }
        };
        sse::write(out, None, &self.chunk(&delta, None));
    }

    fn end(&self, out: &mut Vec<u8>) {
        if let Some(usage) = self.usage.filter(|_| self.include_usage) {
            let mut chunk = self.chunk(&json!({}), None);
            chunk["choices"] = json!([]);
            chunk["usage"] = usage_value(&usage);
            sse::write(out, None, &chunk);
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }
}

/// Ends a stream that passed unchanged, as if every choice had come to its limit. `head` is what its first chunk said.
pub(crate) fn end_early(surface: Surface, (head, choices): (&Value, u32), usage: Option<&Usage>) -> Vec<u8> {
    let mut out = Vec::new();
    let (object, part, none) = match surface {
        Surface::Completions => ("text_completion", "text", json!("")),
        _ => ("chat.completion.chunk", "delta", json!({})),
    };
    let mut chunk = json!({ "id": "chatcmpl-0", "object": object, "created": 0, "model": "" });
    for (name, value) in head.as_object().into_iter().flatten() {
        chunk[name] = value.clone();
    }
    let ends = (0..choices.max(1)).map(|index| {
        json!({ "index": index, part: none, "logprobs": null, "finish_reason": finish_reason(Finish::Length) })
    });
    for choice in ends {
        chunk["choices"] = json!([choice]);
        sse::write(&mut out, None, &chunk);
    }
    if let Some(usage) = usage {
        chunk["choices"] = json!([]);
        chunk["usage"] = usage_value(usage);
        sse::write(&mut out, None, &chunk);
    }
    out.extend_from_slice(b"data: [DONE]\n\n");
    out
}
