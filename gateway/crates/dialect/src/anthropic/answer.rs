//! Anthropic answers: stream events and whole messages, to neutral steps and from them.

use super::usage_value;
use crate::neutral::{Finish, Kind, Seen, Step, unescape};
use crate::sse;
use exchange::{Usage, UsageSource};
use serde_json::{Value, json};

/// Reads the events of one stream.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    /// Content indexes of the tool calls, in the order they began.
    calls: Vec<u64>,
    /// The last call has no arguments yet.
    is_bare: bool,
}

impl Reader {
    pub(crate) fn steps(&mut self, seen: &Seen, data: &[u8], out: &mut Vec<Step>) {
        match seen {
            Seen::Piece { kind, index, span } => {
                let text = unescape(data, span);
                match kind {
                    Kind::Text => out.push(Step::Text(text)),
                    Kind::Thinking => out.push(Step::Thinking(text)),
                    Kind::Arguments => self.arguments(*index, text, out),
                }
            }
            Seen::Event(event) => self.event(event, out),
            Seen::Done | Seen::Counted => {}
        }
    }

    fn arguments(&mut self, index: u64, json: String, out: &mut Vec<Step>) {
        if !json.is_empty() {
            self.is_bare = false;
            let call = self.calls.iter().position(|known| *known == index);
            out.extend(call.map(|call| Step::Arguments { call, json }));
        }
    }

    fn event(&mut self, event: &Value, out: &mut Vec<Step>) {
        let index = event["index"].as_u64().unwrap_or(0);
        match event["type"].as_str().unwrap_or_default() {
            "message_start" => out.push(begin(&event["message"])),
            "content_block_start" => self.block(&event["content_block"], index, out),
            "content_block_delta" => {
                let delta = &event["delta"];
                let text = |name: &str| delta[name].as_str().unwrap_or_default().to_owned();
                match delta["type"].as_str().unwrap_or_default() {
                    "text_delta" => out.push(Step::Text(text("text"))),
                    "thinking_delta" => out.push(Step::Thinking(text("thinking"))),
                    "signature_delta" => out.push(Step::Signature(text("signature"))),
                    "input_json_delta" => self.arguments(index, text("partial_json"), out),
                    _ => {}
                }
            }
            // A call without arguments is one with an empty object everywhere else.
            "content_block_stop" if self.is_bare => self.arguments(index, "{}".into(), out),
            "message_delta" => out.extend(stop(&event["delta"])),
            "message_stop" => out.push(Step::End),
            _ => {}
        }
    }

    /// A block's beginning, which in a whole message is all of it.
    fn block(&mut self, block: &Value, index: u64, out: &mut Vec<Step>) {
        let text = |name: &str| {
            block[name]
                .as_str()
                .filter(|text| !text.is_empty())
                .map(ToOwned::to_owned)
        };
        match block["type"].as_str().unwrap_or_default() {
            "text" => out.extend(text("text").map(Step::Text)),
            "thinking" => {
                out.extend(text("thinking").map(Step::Thinking));
                out.extend(text("signature").map(Step::Signature));
            }
            "redacted_thinking" => out.push(Step::Sealed(block.clone())),
            "tool_use" => {
                let call = self.calls.len();
                self.calls.push(index);
                self.is_bare = true;
                let (id, name) = (text("id").unwrap_or_default(), text("name").unwrap_or_default());
                out.push(Step::Tool { call, id, name });
                if block["input"].as_object().is_some_and(|input| !input.is_empty()) {
                    self.arguments(index, block["input"].to_string(), out);
                }
            }
            _ => {}
        }
    }
}

fn begin(message: &Value) -> Step {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Step::Begin {
        id: text(&message["id"]),
        model: text(&message["model"]),
        created_unix_s: None,
    }
}

fn stop(message: &Value) -> Option<Step> {
    message["stop_reason"]
        .as_str()
        .map(|reason| Step::Finish(finish(reason)))
}

/// The steps of a whole message.
pub(crate) fn explode(body: &Value) -> Vec<Step> {
    let (mut reader, mut out) = (Reader::default(), vec![begin(body)]);
    for (index, block) in body["content"].as_array().into_iter().flatten().enumerate() {
        reader.block(block, index as u64, &mut out);
        if std::mem::take(&mut reader.is_bare) {
            reader.arguments(index as u64, "{}".into(), &mut out);
        }
    }
    out.extend(stop(body));
    out.push(Step::End);
    out
}

pub(crate) fn finish(reason: &str) -> Finish {
    match reason {
        "max_tokens" | "model_context_window_exceeded" => Finish::Length,
        "tool_use" => Finish::ToolUse,
        "refusal" => Finish::Refusal,
        _ => Finish::Stop,
    }
}

pub(crate) fn stop_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "end_turn",
        Finish::Length => "max_tokens",
        Finish::ToolUse => "tool_use",
        Finish::Refusal => "refusal",
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    Text,
    Thinking,
    Tool(usize),
}

/// Writes neutral steps as Anthropic events. The end of a message names its stop reason and its usage together, so
/// both are kept until then.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    open: Option<Block>,
    /// Blocks begun.
    blocks: usize,
    /// The block of each tool call.
    calls: Vec<usize>,
    finish: Option<Finish>,
    pub(crate) usage: Option<Usage>,
}

impl Writer {
    pub(crate) fn write(&mut self, step: Step, out: &mut Vec<u8>) {
        match step {
            Step::Begin { id, model, .. } => event(out, &start(&format!("msg_{id}"), &model)),
            Step::Text(text) => {
                self.enter(Block::Text, &json!({ "type": "text", "text": "" }), out);
                self.delta(&json!({ "type": "text_delta", "text": text }), out);
            }
            Step::Thinking(text) => {
                let block = json!({ "type": "thinking", "thinking": "", "signature": "" });
                self.enter(Block::Thinking, &block, out);
                self.delta(&json!({ "type": "thinking_delta", "thinking": text }), out);
            }
            Step::Signature(signature) => {
                if self.open == Some(Block::Thinking) {
                    self.delta(&json!({ "type": "signature_delta", "signature": signature }), out);
                }
            }
            Step::Sealed(block) => {
                self.leave(out);
                self.enter(Block::Thinking, &block, out);
                self.leave(out);
            }
            Step::Tool { call, id, name } => {
                self.calls.push(self.blocks);
                let block = json!({ "type": "tool_use", "id": id, "name": name, "input": {} });
                self.enter(Block::Tool(call), &block, out);
            }
            // Nearly always the block that is open. Where calls come interleaved, it is one that has been left: the
            // index tells which.
            Step::Arguments { call, json } => {
                let index = self.calls.get(call).copied().unwrap_or_default();
                let delta = json!({ "type": "input_json_delta", "partial_json": json });
                event(
                    out,
                    &json!({ "type": "content_block_delta", "index": index, "delta": delta }),
                );
            }
            Step::Finish(finish) => self.finish = Some(finish),
            Step::End => self.end(out),
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        self.leave(out);
        let finish = match self.finish.unwrap_or(Finish::Stop) {
            // Some servers call it a stop although tools were called.
            Finish::Stop if !self.calls.is_empty() => Finish::ToolUse,
            finish => finish,
        };
        let usage = usage_value(&self.usage.unwrap_or_default());
        close(stop_reason(finish), &usage, out);
    }

    fn enter(&mut self, block: Block, start: &Value, out: &mut Vec<u8>) {
        if self.open == Some(block) {
            return;
        }
        self.leave(out);
        event(
            out,
            &json!({ "type": "content_block_start", "index": self.blocks, "content_block": start }),
        );
        self.blocks += 1;
        self.open = Some(block);
    }

    fn delta(&self, delta: &Value, out: &mut Vec<u8>) {
        let index = self.blocks.saturating_sub(1);
        event(
            out,
            &json!({ "type": "content_block_delta", "index": index, "delta": delta }),
        );
    }

    fn leave(&mut self, out: &mut Vec<u8>) {
        if self.open.take().is_some() {
            event(
                out,
                &json!({ "type": "content_block_stop", "index": self.blocks - 1 }),
            );
        }
    }
}

fn start(id: &str, model: &str) -> Value {
    let none = usage_value(&Usage::new(UsageSource::Estimated));
    let message = json!({ "id": id, "type": "message", "role": "assistant", "model": model, "content": [],
        "stop_reason": null, "stop_sequence": null, "usage": none });
    json!({ "type": "message_start", "message": message })
}

fn close(reason: &str, usage: &Value, out: &mut Vec<u8>) {
    let delta = json!({ "stop_reason": reason, "stop_sequence": null });
    event(
        out,
        &json!({ "type": "message_delta", "delta": delta, "usage": usage }),
    );
    event(out, &json!({ "type": "message_stop" }));
}

/// Ends a stream that passed unchanged, as if it had come to its limit. `open` are the blocks that have not ended.
pub(crate) fn end_early(begun: bool, open: &[u64], usage: &Usage) -> Vec<u8> {
    let mut out = Vec::new();
    if !begun {
        event(&mut out, &start("msg_0", ""));
    }
    for index in open {
        event(&mut out, &json!({ "type": "content_block_stop", "index": index }));
    }
    close(stop_reason(Finish::Length), &usage_value(usage), &mut out);
    out
}

/// The event's name is its type.
fn event(out: &mut Vec<u8>, data: &Value) {
    sse::write(out, data["type"].as_str(), data);
}
