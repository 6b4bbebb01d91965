//! A chat completion request as an Anthropic one.

use crate::encode::{Loss, effort_tokens};
use exchange::{Thinking, ThinkingLevel};
use serde_json::{Map, Value, json};

/// What Anthropic requires and OpenAI does not.
const USUAL_MAX_TOKENS: u64 = 4096;

/// Translates; what cannot be carried is listed.
pub(crate) fn to_anthropic(body: &Value, losses: &mut Vec<Loss>) -> Value {
    let mut out = Map::new();
    let (mut system, mut messages) = (Vec::new(), Vec::new());
    for message in body["messages"].as_array().into_iter().flatten() {
        match message["role"].as_str().unwrap_or_default() {
            "system" | "developer" => system.extend(texts(&message["content"])),
            "tool" => tool_result(message, &mut messages),
            "assistant" => messages.push(json!({ "role": "assistant", "content": assistant(message) })),
            _ => push_user(&mut messages, user(&message["content"], losses)),
        }
    }
    let max = [&body["max_completion_tokens"], &body["max_tokens"]]
        .into_iter()
        .find_map(Value::as_u64);
    out.insert("max_tokens".into(), max.unwrap_or(USUAL_MAX_TOKENS).into());
    if !system.is_empty() {
        out.insert("system".into(), system.join("\n\n").into());
    }
    out.insert("messages".into(), messages.into());
    for name in ["top_p", "stream"] {
        if !body[name].is_null() {
            out.insert(name.into(), body[name].clone());
        }
    }
    if let Some(temperature) = body["temperature"].as_f64() {
        if temperature > 1.0 {
            losses.push(Loss::new("temperature", "above 1, the most Anthropic takes"));
        }
        out.insert("temperature".into(), temperature.min(1.0).into());
    }
    match &body["stop"] {
        Value::String(stop) => drop(out.insert("stop_sequences".into(), json!([stop]))),
        Value::Array(stops) => drop(out.insert("stop_sequences".into(), json!(stops))),
        _ => {}
    }
    if let Some(user) = body["user"].as_str() {
        out.insert("metadata".into(), json!({ "user_id": user }));
    }
    tools(body, &mut out);
    for name in [
        "n",
        "logprobs",
        "top_logprobs",
        "logit_bias",
        "seed",
        "presence_penalty",
        "frequency_penalty",
        "response_format",
        "audio",
        "prediction",
        "modalities",
        "store",
    ] {
        let harmless = matches!(&body[name], Value::Null | Value::Bool(false))
            || body[name] == 0
            || (name == "n" && body[name] == 1);
        if !harmless && body[name]["type"] != "text" {
            losses.push(Loss::new(name, "Anthropic has no such parameter"));
        }
    }
    let level = body["reasoning_effort"]
        .as_str()
        .and_then(|level| level.parse::<ThinkingLevel>().ok());
    if let Some(level) = level {
        set_thinking(&mut out, Thinking::Level(level));
    }
    Value::Object(out)
}

/// Sets `thinking` within what `max_tokens` allows; below Anthropic's minimum there is none.
pub(crate) fn set_thinking(out: &mut Map<String, Value>, thinking: Thinking) {
    let max = out
        .get("max_tokens")
        .and_then(Value::as_u64)
        .unwrap_or(USUAL_MAX_TOKENS);
    let budget = match thinking {
        Thinking::Level(level) => effort_tokens(level, max),
        Thinking::Tokens(tokens) => u64::from(tokens),
    };
    if budget < 1024 || max <= 1024 {
        out.insert("thinking".into(), json!({ "type": "disabled" }));
        return;
    }
    let budget = budget.min(max - 1);
    out.insert(
        "thinking".into(),
        json!({ "type": "enabled", "budget_tokens": budget }),
    );
    // Manual thinking takes the default temperature only.
    out.remove("temperature");
    out.remove("top_p");
}

fn texts(content: &Value) -> Vec<String> {
    match content {
        Value::String(text) => vec![text.clone()],
        Value::Array(parts) => parts
            .iter()
            .filter_map(|part| part["text"].as_str().map(ToOwned::to_owned))
            .collect(),
        _ => Vec::new(),
    }
}

fn user(content: &Value, losses: &mut Vec<Loss>) -> Vec<Value> {
    let Value::Array(parts) = content else {
        return texts(content)
            .into_iter()
            .map(|text| json!({ "type": "text", "text": text }))
            .collect();
    };
    let mut out = Vec::new();
    for part in parts {
        match part["type"].as_str().unwrap_or_default() {
            "text" => out.push(json!({ "type": "text", "text": part["text"] })),
            "image_url" => {
                let url = part["image_url"]["url"].as_str().unwrap_or_default();
                let data = url
                    .strip_prefix("data:")
                    .and_then(|rest| rest.split_once(";base64,"));
                let source = match data {
                    Some((media_type, data)) => {
                        json!({ "type": "base64", "media_type": media_type, "data": data })
                    }
                    None => json!({ "type": "url", "url": url }),
                };
                out.push(json!({ "type": "image", "source": source }));
            }
            other => losses.push(Loss::new(
                "messages",
                format!("content of type `{other}` cannot be carried"),
            )),
        }
    }
    out
}

/// Turns of one role follow each other as one here.
fn push_user(messages: &mut Vec<Value>, content: Vec<Value>) {
    if let Some(last) = messages.last_mut().filter(|last| last["role"] == "user")
        && let Some(blocks) = last["content"].as_array_mut()
    {
        blocks.extend(content);
        return;
    }
    messages.push(json!({ "role": "user", "content": content }));
}

fn tool_result(message: &Value, messages: &mut Vec<Value>) {
    let content = texts(&message["content"]).join("\n");
    let result = json!({ "type": "tool_result", "tool_use_id": message["tool_call_id"], "content": content });
    push_user(messages, vec![result]);
}

fn assistant(message: &Value) -> Vec<Value> {
    let text = texts(&message["content"])
        .into_iter()
        .filter(|text| !text.is_empty());
    let mut out: Vec<Value> = text.map(|text| json!({ "type": "text", "text": text })).collect();
    for call in message["tool_calls"].as_array().into_iter().flatten() {
        let arguments = call["function"]["arguments"].as_str().unwrap_or("{}");
        let input: Value = serde_json::from_str(arguments).unwrap_or_else(|_| json!({}));
        out.push(
            json!({ "type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": input }),
        );
    }
    out
}

fn tools(body: &Value, out: &mut Map<String, Value>) {
    let Some(tools) = body["tools"].as_array().filter(|tools| !tools.is_empty()) else {
        return;
    };
    let tools: Vec<Value> = tools
        .iter()
        .map(|tool| {
            let function = &tool["function"];
            let empty = json!({ "type": "object", "properties": {} });
            let schema = if function["parameters"].is_object() {
                &function["parameters"]
            } else {
                &empty
            };
            let mut translated = json!({ "name": function["name"], "input_schema": schema });
            if function["description"].is_string() {
                translated["description"] = function["description"].clone();
            }
            translated
        })
        .collect();
    out.insert("tools".into(), tools.into());
    let mut choice = match &body["tool_choice"] {
        Value::String(choice) if choice == "required" => json!({ "type": "any" }),
        Value::String(choice) if choice == "none" => json!({ "type": "none" }),
        Value::Object(choice) => json!({ "type": "tool", "name": choice["function"]["name"] }),
        _ => json!({ "type": "auto" }),
    };
    if body["parallel_tool_calls"] == false && choice["type"] != "none" {
        choice["disable_parallel_tool_use"] = true.into();
    }
    out.insert("tool_choice".into(), choice);
}
