//! A stream folded into the whole answer that the same API gives without streaming.
//!
//! Fields that are not known here are merged by their kind, so that they survive.

use crate::neutral::{Kind, Seen, unescape};
use crate::openai;
use crate::{anthropic, neutral::Finish};
use exchange::{Dialect, Usage};
use serde_json::{Map, Value, json};

/// Folds the events of one dialect.
#[derive(Debug)]
pub(crate) struct Fold {
    dialect: Dialect,
    whole: Value,
}

impl Fold {
    pub(crate) fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            whole: json!({}),
        }
    }

    /// Takes one event, whose data is `data`.
    pub(crate) fn push(&mut self, seen: Seen, data: &[u8]) {
        let is_anthropic = self.dialect == Dialect::Anthropic;
        match seen {
            Seen::Event(event) if is_anthropic => message(&mut self.whole, event),
            Seen::Event(event) => completion(&mut self.whole, event),
            Seen::Piece { kind, index, span } => {
                let text = unescape(data, &span);
                let target = if is_anthropic {
                    block_text(&mut self.whole, index, kind)
                } else {
                    choice(&mut self.whole, index).and_then(|choice| choice["message"].get_mut("content"))
                };
                if let Some(Value::String(known)) = target {
                    known.push_str(&text);
                } else if let Some(target) = target {
                    *target = text.into();
                }
            }
            Seen::Done | Seen::Counted => {}
        }
    }

    /// The whole answer.
    pub(crate) fn into_answer(mut self) -> Value {
        if self.dialect == Dialect::Anthropic {
            for block in self.whole["content"].as_array_mut().into_iter().flatten() {
                close_block(block);
            }
        } else {
            self.whole["object"] = "chat.completion".into();
            for choice in self.whole["choices"].as_array_mut().into_iter().flatten() {
                close_choice(choice);
            }
        }
        self.whole
    }

    /// The answer so far, as if it had come to its limit, with what was counted of its usage.
    pub(crate) fn into_early_answer(self, usage: &Usage) -> Value {
        let is_anthropic = self.dialect == Dialect::Anthropic;
        let mut whole = self.into_answer();
        let nothing = if is_anthropic {
            json!({ "id": "msg_0", "type": "message", "role": "assistant", "model": "", "content": [], "stop_sequence": null })
        } else {
            let message = json!({ "role": "assistant", "content": "" });
            let choice = json!({ "index": 0, "message": message, "logprobs": null, "finish_reason": null });
            json!({ "id": "chatcmpl-0", "created": 0, "model": "", "choices": [choice] })
        };
        for (name, value) in nothing.as_object().into_iter().flatten() {
            if whole[name].is_null() || (name == "choices" && whole[name] == json!([])) {
                whole[name] = value.clone();
            }
        }
        if is_anthropic {
            whole["stop_reason"] = anthropic::answer::stop_reason(Finish::Length).into();
            whole["usage"] = anthropic::usage_value(usage);
            return whole;
        }
        for choice in whole["choices"].as_array_mut().into_iter().flatten() {
            if choice["finish_reason"].is_null() {
                choice["finish_reason"] = openai::answer::finish_reason(Finish::Length).into();
            }
        }
        whole["usage"] = openai::usage_value(usage);
        whole
    }
}

/// What only a stream has is taken out, what only a whole answer has is put in.
fn close_choice(choice: &mut Value) {
    let message = &mut choice["message"];
    if !message.is_object() {
        *message = json!({ "role": "assistant" });
    }
    for name in ["tool_calls", "thinking_blocks"] {
        let entries = message.get_mut(name).and_then(Value::as_array_mut);
        for entry in entries.into_iter().flatten() {
            entry.as_object_mut().map(|entry| entry.shift_remove("index"));
        }
    }
    let has_calls = message["tool_calls"]
        .as_array()
        .is_some_and(|calls| !calls.is_empty());
    if message.get("content").is_none() || (has_calls && message["content"] == "") {
        message["content"] = Value::Null;
    }
    if !has_calls && let Some(message) = message.as_object_mut() {
        message.shift_remove("tool_calls");
    }
}

/// The arguments of a tool come as text and are an object in the whole answer.
fn close_block(block: &mut Value) {
    let Some(json) = block
        .as_object_mut()
        .and_then(|block| block.shift_remove("partial_json"))
    else {
        return;
    };
    let parsed = json.as_str().and_then(|json| serde_json::from_str(json).ok());
    if let Some(parsed) = parsed {
        block["input"] = parsed;
    }
}

fn choice(whole: &mut Value, index: u64) -> Option<&mut Value> {
    let folded = whole
        .as_object_mut()?
        .entry("choices")
        .or_insert_with(|| json!([]));
    let folded = folded.as_array_mut()?;
    let known = folded.iter().position(|known| known["index"] == index);
    let position = known.unwrap_or_else(|| {
        folded.push(json!({ "index": index, "message": {}, "logprobs": null, "finish_reason": null }));
        folded.len() - 1
    });
    folded.get_mut(position)
}

fn completion(whole: &mut Value, mut chunk: Value) {
    let Some(fields) = chunk.as_object_mut() else {
        return;
    };
    let choices = fields.shift_remove("choices");
    // Padding against guessing a text from the length of its chunks.
    fields.shift_remove("obfuscation");
    if let Value::Object(target) = &mut *whole {
        replace(target, std::mem::take(fields));
        target.entry("choices").or_insert_with(|| json!([]));
    }
    let Some(Value::Array(choices)) = choices else {
        return;
    };
    for mut part in choices {
        let index = part["index"].as_u64().unwrap_or(0);
        let (Some(part), Some(Value::Object(target))) = (part.as_object_mut(), choice(whole, index)) else {
            continue;
        };
        if let (Some(Value::Object(delta)), Some(message)) = (
            part.shift_remove("delta"),
            target.get_mut("message").and_then(Value::as_object_mut),
        ) {
            grow(message, delta);
        }
        if let Some(Value::Object(logprobs)) = part.shift_remove("logprobs") {
            grow(
                target,
                Map::from_iter([("logprobs".into(), Value::Object(logprobs))]),
            );
        }
        replace(target, std::mem::take(part));
    }
}

/// Later values take the place of earlier ones; null takes no place.
fn replace(target: &mut Map<String, Value>, later: Map<String, Value>) {
    for (name, value) in later {
        if !value.is_null() || !target.contains_key(&name) {
            target.insert(name, value);
        }
    }
}

/// Adds a delta to what there is: texts grow, lists grow by index or at their end, objects field by field, all else is
/// replaced. Labels come whole, so that a repetition is not added to them.
fn grow(target: &mut Map<String, Value>, delta: Map<String, Value>) {
    const LABELS: [&str; 7] = ["role", "id", "type", "name", "format", "signature", "status"];
    for (name, value) in delta {
        match (target.get_mut(&name), value) {
            (Some(_), Value::Null) => {}
            (Some(Value::String(text)), Value::String(more)) => {
                if !LABELS.contains(&name.as_str()) {
                    text.push_str(&more);
                } else if !more.is_empty() {
                    *text = more;
                }
            }
            (Some(Value::Object(known)), Value::Object(more)) => grow(known, more),
            (Some(Value::Array(known)), Value::Array(more)) => grow_list(known, more),
            (_, value) => {
                target.insert(name, value);
            }
        }
    }
}

fn grow_list(known: &mut Vec<Value>, more: Vec<Value>) {
    for item in more {
        let index = item.get("index").filter(|index| !index.is_null());
        let same = known
            .iter_mut()
            .find(|known| index.is_some() && known.get("index") == index);
        match (same, item) {
            (Some(Value::Object(known)), Value::Object(item)) => grow(known, item),
            (_, item) => known.push(item),
        }
    }
}

fn block_text(whole: &mut Value, index: u64, kind: Kind) -> Option<&mut Value> {
    let block = whole
        .get_mut("content")?
        .get_mut(usize::try_from(index).ok()?)?
        .as_object_mut()?;
    let name = match kind {
        Kind::Text => "text",
        Kind::Thinking => "thinking",
        Kind::Arguments => "partial_json",
    };
    Some(block.entry(name).or_insert_with(|| "".into()))
}

fn message(whole: &mut Value, mut event: Value) {
    match event["type"].as_str().unwrap_or_default() {
        "message_start" if event["message"].is_object() => *whole = event["message"].take(),
        "content_block_start" => {
            if let Some(content) = whole.get_mut("content").and_then(Value::as_array_mut) {
                content.push(event["content_block"].take());
            }
        }
        "content_block_delta" => {
            let index = event["index"]
                .as_u64()
                .and_then(|index| usize::try_from(index).ok());
            let block = index.and_then(|index| whole.get_mut("content")?.get_mut(index));
            if let (Some(Value::Object(block)), Value::Object(mut delta)) = (block, event["delta"].take()) {
                delta.shift_remove("type");
                // One citation at a time, of a list.
                if let Some(citation) = delta.shift_remove("citation") {
                    match block.entry("citations").or_insert_with(|| json!([])) {
                        Value::Array(citations) => citations.push(citation),
                        other => *other = json!([citation]),
                    }
                }
                grow(block, delta);
            }
        }
        "message_delta" => {
            let (Value::Object(whole), Some(fields)) = (whole, event.as_object_mut()) else {
                return;
            };
            fields.shift_remove("type");
            if let Some(Value::Object(delta)) = fields.shift_remove("delta") {
                whole.extend(delta);
            }
            // The counts are totals, and those not told again still hold.
            if let (Some(Value::Object(usage)), Some(Value::Object(more))) =
                (whole.get_mut("usage"), fields.shift_remove("usage"))
            {
                replace(usage, more);
            }
            whole.extend(std::mem::take(fields));
        }
        _ => {}
    }
}
