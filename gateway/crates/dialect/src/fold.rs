//! A stream folded into the whole answer that the same API gives without streaming.

use serde_json::{Map, Value, json};

/// Folds events of one dialect.
#[derive(Debug)]
pub(crate) enum Fold {
    OpenaiChat(Value),
    Anthropic(Value),
}

impl Fold {
    pub(crate) fn openai() -> Self {
        Self::OpenaiChat(json!({}))
    }

    pub(crate) fn anthropic() -> Self {
        Self::Anthropic(json!({}))
    }

    /// Takes one event's data.
    pub(crate) fn push(&mut self, data: &[u8]) {
        let Ok(event) = serde_json::from_slice::<Value>(data) else {
            return;
        };
        match self {
            Self::OpenaiChat(whole) => openai(whole, event),
            Self::Anthropic(whole) => anthropic(whole, event),
        }
    }

    /// The answer so far, with `finish` where the stream did not come to one.
    pub(crate) fn into_answer(self, finish: Option<&str>) -> Value {
        match self {
            Self::OpenaiChat(mut whole) => {
                whole["object"] = "chat.completion".into();
                for choice in whole["choices"].as_array_mut().into_iter().flatten() {
                    close_choice(choice, finish);
                }
                whole
            }
            Self::Anthropic(mut whole) => {
                for block in whole["content"].as_array_mut().into_iter().flatten() {
                    if let Some(json) = block
                        .as_object_mut()
                        .and_then(|block| block.remove("partial_json"))
                    {
                        let parsed = json.as_str().and_then(|json| serde_json::from_str(json).ok());
                        block["input"] = parsed.unwrap_or_else(|| json!({}));
                    }
                }
                if let Some(finish) = finish {
                    whole["stop_reason"] = finish.into();
                }
                whole
            }
        }
    }
}

/// What only a stream has is taken out, what only a whole answer has is put in.
fn close_choice(choice: &mut Value, finish: Option<&str>) {
    if let Some(finish) = finish.filter(|_| choice["finish_reason"].is_null()) {
        choice["finish_reason"] = finish.into();
    }
    let message = &mut choice["message"];
    for call in message["tool_calls"].as_array_mut().into_iter().flatten() {
        if let Some(call) = call.as_object_mut() {
            call.remove("index");
        }
    }
    let has_calls = message["tool_calls"]
        .as_array()
        .is_some_and(|calls| !calls.is_empty());
    if message.get("content").is_none() || (has_calls && message["content"] == "") {
        message["content"] = Value::Null;
    }
    if !has_calls && let Some(message) = message.as_object_mut() {
        message.remove("tool_calls");
    }
}

fn openai(whole: &mut Value, mut chunk: Value) {
    let Some(fields) = chunk.as_object_mut() else {
        return;
    };
    let choices = fields.remove("choices");
    let Value::Object(target) = whole else { return };
    for (name, value) in std::mem::take(fields) {
        if !value.is_null() || !target.contains_key(&name) {
            target.insert(name, value);
        }
    }
    let folded = target.entry("choices").or_insert_with(|| json!([]));
    let Some(folded) = folded.as_array_mut() else {
        return;
    };
    let Some(Value::Array(choices)) = choices else {
        return;
    };
    for mut choice in choices {
        let index = choice["index"].as_u64().unwrap_or(0);
        let position = folded
            .iter()
            .position(|known| known["index"] == index)
            .unwrap_or_else(|| {
                folded
                    .push(json!({ "index": index, "message": {}, "logprobs": null, "finish_reason": null }));
                folded.len() - 1
            });
        let target = &mut folded[position];
        let delta = choice.as_object_mut().and_then(|choice| choice.remove("delta"));
        if let (Some(Value::Object(delta)), Some(message)) = (delta, target["message"].as_object_mut()) {
            merge(message, delta);
        }
        if let (Value::Object(rest), Some(target)) = (choice, target.as_object_mut()) {
            merge(target, rest);
        }
    }
}

/// Adds a delta to what there is: texts grow, lists grow by index or at their end, objects field by field, all else is
/// replaced. Names, ids and roles come whole and once, so that a repetition is not added to them.
fn merge(target: &mut Map<String, Value>, delta: Map<String, Value>) {
    for (name, value) in delta {
        let known = target.get_mut(&name);
        match (known, value) {
            (Some(_), Value::Null) => {}
            (Some(Value::String(text)), Value::String(more))
                if !matches!(name.as_str(), "role" | "id" | "type" | "name" | "finish_reason") =>
            {
                text.push_str(&more);
            }
            (Some(Value::Object(known)), Value::Object(more)) => merge(known, more),
            (Some(Value::Array(known)), Value::Array(more)) => merge_list(known, more),
            (_, value) => {
                target.insert(name, value);
            }
        }
    }
}

fn merge_list(known: &mut Vec<Value>, more: Vec<Value>) {
    for item in more {
        let index = item.get("index").cloned();
        let same = known
            .iter_mut()
            .find(|known| index.is_some() && known.get("index") == index.as_ref());
        match (same, item) {
            (Some(Value::Object(known)), Value::Object(item)) => merge(known, item),
            (_, item) => known.push(item),
        }
    }
}

fn anthropic(whole: &mut Value, mut event: Value) {
    match event["type"].as_str().unwrap_or_default() {
        "message_start" => *whole = event["message"].take(),
        "content_block_start" => {
            if let Some(content) = whole["content"].as_array_mut() {
                content.push(event["content_block"].take());
            }
        }
        "content_block_delta" => {
            let index = event["index"].as_u64().unwrap_or(0) as usize;
            let Some(Value::Object(block)) = whole["content"].get_mut(index) else {
                return;
            };
            if let Value::Object(mut delta) = event["delta"].take() {
                delta.remove("type");
                merge(block, delta);
            }
        }
        "message_delta" => {
            let Value::Object(whole) = whole else { return };
            if let Value::Object(delta) = event["delta"].take() {
                whole.extend(delta);
            }
            if let (Some(Value::Object(usage)), Value::Object(more)) =
                (whole.get_mut("usage"), event["usage"].take())
            {
                usage.extend(more);
            }
        }
        _ => {}
    }
}
