//! Anthropic answers: stream events and whole messages, to neutral steps and from them.

use super::{usage, usage_value};
use crate::neutral::{Finish, Step};
use crate::sse;
use exchange::{Usage, UsageSource};
use serde_json::{Value, json};

/// The steps of one event's data.
pub(crate) fn steps(data: &[u8], out: &mut Vec<Step>) {
    let Ok(event) = serde_json::from_slice::<Value>(data) else {
        return;
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match event["type"].as_str().unwrap_or_default() {
        "message_start" => {
            let message = &event["message"];
            out.push(Step::Begin {
                id: text(&message["id"]),
                model: text(&message["model"]),
            });
            out.extend(usage(&message["usage"]).map(Step::Usage));
        }
        "content_block_start" => {
            let block = &event["content_block"];
            if block["type"] == "tool_use" {
                out.push(Step::Tool {
                    id: text(&block["id"]),
                    name: text(&block["name"]),
                });
            }
        }
        "content_block_delta" => {
            let delta = &event["delta"];
            match delta["type"].as_str().unwrap_or_default() {
                "text_delta" => out.push(Step::Text(text(&delta["text"]))),
                "thinking_delta" => out.push(Step::Thinking(text(&delta["thinking"]))),
                "input_json_delta" => out.push(Step::Arguments(text(&delta["partial_json"]))),
                _ => {}
            }
        }
        "message_delta" => {
            if let Some(reason) = event["delta"]["stop_reason"].as_str() {
                out.push(Step::Finish(finish(reason)));
            }
            out.extend(usage(&event["usage"]).map(Step::Usage));
        }
        "message_stop" => out.push(Step::End),
        _ => {}
    }
}

/// The steps of a whole message.
pub(crate) fn explode(body: &Value) -> Vec<Step> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut out = vec![Step::Begin {
        id: text(&body["id"]),
        model: text(&body["model"]),
    }];
    for block in body["content"].as_array().into_iter().flatten() {
        match block["type"].as_str().unwrap_or_default() {
            "text" => out.push(Step::Text(text(&block["text"]))),
            "thinking" => out.push(Step::Thinking(text(&block["thinking"]))),
            "tool_use" => {
                out.push(Step::Tool {
                    id: text(&block["id"]),
                    name: text(&block["name"]),
                });
                out.push(Step::Arguments(block["input"].to_string()));
            }
            _ => {}
        }
    }
    out.push(Step::Finish(finish(
        body["stop_reason"].as_str().unwrap_or("end_turn"),
    )));
    out.extend(usage(&body["usage"]).map(Step::Usage));
    out.push(Step::End);
    out
}

fn finish(reason: &str) -> Finish {
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
    Tool,
}

/// Writes neutral steps as Anthropic events. The end of a message names its stop reason and its usage together, so
/// both are kept until then.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    open: Option<Block>,
    /// Blocks begun.
    blocks: usize,
    finish: Option<Finish>,
    usage: Option<Usage>,
}

impl Writer {
    pub(crate) fn write(&mut self, step: Step, out: &mut Vec<u8>) {
        match step {
            Step::Begin { id, model } => {
                let none = usage_value(&Usage::new(UsageSource::Estimated));
                let message = json!({ "id": format!("msg_{id}"), "type": "message", "role": "assistant", "model": model,
                    "content": [], "stop_reason": null, "stop_sequence": null, "usage": none });
                event(out, json!({ "type": "message_start", "message": message }));
            }
            Step::Text(text) => {
                self.enter(Block::Text, &json!({ "type": "text", "text": "" }), out);
                self.delta(&json!({ "type": "text_delta", "text": text }), out);
            }
            Step::Thinking(text) => {
                self.enter(
                    Block::Thinking,
                    &json!({ "type": "thinking", "thinking": "", "signature": "" }),
                    out,
                );
                self.delta(&json!({ "type": "thinking_delta", "thinking": text }), out);
            }
            Step::Tool { id, name } => {
                self.leave(out);
                self.enter(
                    Block::Tool,
                    &json!({ "type": "tool_use", "id": id, "name": name, "input": {} }),
                    out,
                );
            }
            Step::Arguments(json) => {
                self.delta(&json!({ "type": "input_json_delta", "partial_json": json }), out)
            }
            Step::Finish(finish) => self.finish = Some(finish),
            Step::Usage(usage) => self.usage = Some(usage),
            Step::End => {
                self.leave(out);
                let usage = usage_value(&self.usage.unwrap_or_default());
                let reason = stop_reason(self.finish.unwrap_or(Finish::Stop));
                let delta = json!({ "stop_reason": reason, "stop_sequence": null });
                event(
                    out,
                    json!({ "type": "message_delta", "delta": delta, "usage": usage }),
                );
                event(out, json!({ "type": "message_stop" }));
            }
        }
    }

    fn enter(&mut self, block: Block, start: &Value, out: &mut Vec<u8>) {
        if self.open == Some(block) {
            return;
        }
        self.leave(out);
        event(
            out,
            json!({ "type": "content_block_start", "index": self.blocks, "content_block": start }),
        );
        self.blocks += 1;
        self.open = Some(block);
    }

    fn delta(&self, delta: &Value, out: &mut Vec<u8>) {
        let index = self.blocks.saturating_sub(1);
        event(
            out,
            json!({ "type": "content_block_delta", "index": index, "delta": delta }),
        );
    }

    fn leave(&mut self, out: &mut Vec<u8>) {
        if self.open.take().is_some() {
            event(
                out,
                json!({ "type": "content_block_stop", "index": self.blocks - 1 }),
            );
        }
    }
}

/// The event's name is its type.
#[expect(
    clippy::needless_pass_by_value,
    reason = "every caller builds the value for this call"
)]
pub(crate) fn event(out: &mut Vec<u8>, data: Value) {
    sse::write(out, data["type"].as_str(), &data);
}
