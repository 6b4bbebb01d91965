//! A chat completion request as an Anthropic one.

use crate::encode::{Loss, Target, USUAL_MAX_TOKENS, unknown_fields};
use crate::thinking;
use serde_json::{Map, Value, json};

/// Fields that are translated below, or that ask for nothing that could be lost.
const KNOWN: [&str; 21] = [
    "model",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "stream",
    "stream_options",
    "temperature",
    "top_p",
    "stop",
    "user",
    "safety_identifier",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "reasoning_effort",
    "service_tier",
    // Read by the gateway as labels, or reported below.
    "metadata",
    "n",
    "modalities",
    "prompt_cache_key",
];

/// Translates; what cannot be carried is listed.
pub(crate) fn to_anthropic(body: &Value, target: &Target<'_>, losses: &mut Vec<Loss>) -> Value {
    let mut out = Map::new();
    let asked = [&body["max_completion_tokens"], &body["max_tokens"]]
        .into_iter()
        .find_map(Value::as_u64);
    let max = match (asked, target.max_output_tokens) {
        (Some(asked), cap) => asked.min(cap.unwrap_or(asked)),
        (None, cap) => cap.unwrap_or(USUAL_MAX_TOKENS),
    };
    out.insert("model".into(), target.model.into());
    out.insert("max_tokens".into(), max.into());
    out.insert("stream".into(), target.stream.into());
    let (system, messages) = conversation(body, losses);
    if !system.is_empty() {
        out.insert("system".into(), system.join("\n\n").into());
    }
    out.insert("messages".into(), messages.into());
    sampling(body, &mut out, losses);
    tools(body, &mut out, losses);
    others(body, &mut out, losses);
    unknown_fields(body, &KNOWN, losses);
    set_thinking(&mut out, target, max, losses);
    Value::Object(out)
}

fn sampling(body: &Value, out: &mut Map<String, Value>, losses: &mut Vec<Loss>) {
    if let Some(temperature) = body["temperature"].as_f64() {
        if temperature > 1.0 {
            losses.push(Loss::new("temperature", "above 1, the most Anthropic takes"));
            out.insert("temperature".into(), 1.into());
        } else {
            out.insert("temperature".into(), body["temperature"].clone());
        }
    }
    match (body["top_p"].is_number(), out.contains_key("temperature")) {
        (true, true) => losses.push(Loss::new(
            "top_p",
            "Anthropic takes it or the temperature, not both",
        )),
        (true, false) => drop(out.insert("top_p".into(), body["top_p"].clone())),
        (false, _) => {}
    }
    match &body["stop"] {
        Value::String(stop) => drop(out.insert("stop_sequences".into(), json!([stop]))),
        Value::Array(stops) => drop(out.insert("stop_sequences".into(), json!(stops))),
        _ => {}
    }
    if body["n"].as_u64().is_some_and(|n| n > 1) {
        losses.push(Loss::new("n", "Anthropic gives one answer"));
    }
    if body["modalities"]
        .as_array()
        .is_some_and(|kinds| kinds.iter().any(|kind| kind != "text"))
    {
        losses.push(Loss::new("modalities", "Anthropic answers in text"));
    }
}

fn others(body: &Value, out: &mut Map<String, Value>, losses: &mut Vec<Loss>) {
    let user = body["user"]
        .as_str()
        .or_else(|| body["safety_identifier"].as_str());
    if let Some(user) = user {
        out.insert("metadata".into(), json!({ "user_id": user }));
    }
    match body["service_tier"].as_str() {
        None => {}
        Some("auto") => drop(out.insert("service_tier".into(), "auto".into())),
        Some("default") => drop(out.insert("service_tier".into(), "standard_only".into())),
        Some(other) => losses.push(Loss::new(
            "service_tier",
            format!("Anthropic has no tier `{other}`"),
        )),
    }
    let format = &body["response_format"];
    match format["type"].as_str() {
        Some("json_schema") if format["json_schema"]["schema"].is_object() => {
            let schema = &format["json_schema"]["schema"];
            out.insert(
                "output_config".into(),
                json!({ "format": { "type": "json_schema", "schema": schema } }),
            );
        }
        None | Some("text") => {}
        Some(other) => losses.push(Loss::new(
            "response_format",
            format!("Anthropic has no format `{other}` without a schema"),
        )),
    }
}

/// Switches thinking on where Anthropic takes it beside the rest of the request.
fn set_thinking(out: &mut Map<String, Value>, target: &Target<'_>, max: u64, losses: &mut Vec<Loss>) {
    let Some(wanted) = target.thinking.filter(|wanted| !thinking::is_off(*wanted)) else {
        return;
    };
    let Some(budget) = thinking::budget(wanted, max) else {
        losses.push(Loss::new(
            "reasoning_effort",
            format!("an answer of {max} tokens leaves no room for it"),
        ));
        return;
    };
    let choice = out.get("tool_choice").map(|choice| &choice["type"]);
    if choice.is_some_and(|choice| choice == "any" || choice == "tool") {
        losses.push(Loss::new(
            "reasoning_effort",
            "Anthropic does not think before a tool it is forced to use",
        ));
        return;
    }
    if out.get("messages").is_some_and(in_unsigned_tool_loop) {
        losses.push(Loss::new(
            "reasoning_effort",
            "the turn began without thinking, or without its signature",
        ));
        return;
    }
    out.insert("thinking".into(), thinking::enabled(budget));
    for name in ["temperature", "top_p"] {
        if out.remove(name).is_some_and(|value| value != 1) {
            losses.push(Loss::new(name, "Anthropic thinks at its own setting only"));
        }
    }
}

/// The last turn brings a tool's result, and the model's turn before it does not begin with its thinking.
fn in_unsigned_tool_loop(messages: &Value) -> bool {
    let Some([.., model, user]) = messages.as_array().map(Vec::as_slice) else {
        return false;
    };
    let has_result = user["content"]
        .as_array()
        .is_some_and(|blocks| blocks.iter().any(|block| block["type"] == "tool_result"));
    let kind = model["content"][0]["type"].as_str();
    has_result && !matches!(kind, Some("thinking" | "redacted_thinking"))
}

/// The system's words, and the turns.
fn conversation(body: &Value, losses: &mut Vec<Loss>) -> (Vec<String>, Vec<Value>) {
    let (mut system, mut messages) = (Vec::new(), Vec::new());
    for message in body["messages"].as_array().into_iter().flatten() {
        let content = &message["content"];
        match message["role"].as_str().unwrap_or_default() {
            "system" | "developer" => {
                if !messages.is_empty() {
                    losses.push(Loss::new(
                        "messages",
                        "a system message between turns has moved to the beginning",
                    ));
                }
                system.extend(texts(content));
            }
            "function" => losses.push(Loss::new(
                "messages",
                "a result of a function without an id cannot be carried",
            )),
            "tool" => push(&mut messages, "user", vec![tool_result(message)]),
            "assistant" => push(&mut messages, "assistant", assistant(message, losses)),
            _ => push(&mut messages, "user", user(content, losses)),
        }
        if message["name"].is_string() && message["role"] != "tool" {
            losses.push(Loss::new("messages", "the name of a speaker cannot be carried"));
        }
    }
    (system, messages)
}

/// Turns of one role follow each other as one at Anthropic.
fn push(messages: &mut Vec<Value>, role: &str, content: Vec<Value>) {
    if let Some(last) = messages.last_mut().filter(|last| last["role"] == role)
        && let Some(blocks) = last["content"].as_array_mut()
    {
        blocks.extend(content);
        return;
    }
    messages.push(json!({ "role": role, "content": content }));
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

/// Text blocks; Anthropic refuses empty ones.
fn text_blocks(content: &Value) -> Vec<Value> {
    let texts = texts(content).into_iter().filter(|text| !text.is_empty());
    texts
        .map(|text| json!({ "type": "text", "text": text }))
        .collect()
}

fn user(content: &Value, losses: &mut Vec<Loss>) -> Vec<Value> {
    let Value::Array(parts) = content else {
        return text_blocks(content);
    };
    let mut out = Vec::new();
    for part in parts {
        let kind = part["type"].as_str().unwrap_or_default();
        let file = part["file"]["file_data"].as_str().and_then(data_url);
        match (kind, file) {
            ("text", _) if part["text"] == "" => {}
            ("text", _) => out.push(json!({ "type": "text", "text": part["text"] })),
            ("image_url", _) => {
                let url = part["image_url"]["url"]
                    .as_str()
                    .or_else(|| part["image_url"].as_str());
                let url = url.unwrap_or_default();
                if !matches!(part["image_url"]["detail"].as_str(), None | Some("auto")) {
                    losses.push(Loss::new("messages", "the detail of an image cannot be chosen"));
                }
                let source = match data_url(url) {
                    Some((media_type, data)) => {
                        json!({ "type": "base64", "media_type": media_type, "data": data })
                    }
                    None => json!({ "type": "url", "url": url }),
                };
                out.push(json!({ "type": "image", "source": source }));
            }
            ("file", Some((media_type, data))) => {
                let source = json!({ "type": "base64", "media_type": media_type, "data": data });
                let mut document = json!({ "type": "document", "source": source });
                if part["file"]["filename"].is_string() {
                    document["title"] = part["file"]["filename"].clone();
                }
                out.push(document);
            }
            (other, _) => losses.push(Loss::new(
                "messages",
                format!("content of type `{other}` cannot be carried"),
            )),
        }
    }
    out
}

/// The media type and the data of a `data:` URL.
fn data_url(url: &str) -> Option<(&str, &str)> {
    url.strip_prefix("data:")?.split_once(";base64,")
}

fn tool_result(message: &Value) -> Value {
    let content = texts(&message["content"]).join("\n");
    json!({ "type": "tool_result", "tool_use_id": message["tool_call_id"], "content": content })
}

fn assistant(message: &Value, losses: &mut Vec<Loss>) -> Vec<Value> {
    // Signed thinking comes back in the field that gateways before this one have established.
    let thinking = message["thinking_blocks"].as_array().into_iter().flatten();
    let mut out: Vec<Value> = thinking
        .map(|block| {
            let mut block = block.clone();
            block.as_object_mut().map(|fields| fields.remove("index"));
            block
        })
        .collect();
    let unsigned = ["reasoning_content", "reasoning"]
        .iter()
        .any(|name| message[*name].is_string());
    if out.is_empty() && unsigned {
        losses.push(Loss::new(
            "messages",
            "thinking without a signature cannot be carried",
        ));
    }
    out.extend(text_blocks(&message["content"]));
    if let Some(refusal) = message["refusal"].as_str().filter(|refusal| !refusal.is_empty()) {
        out.push(json!({ "type": "text", "text": refusal }));
    }
    if message["function_call"].is_object() {
        losses.push(Loss::new(
            "messages",
            "a call of a function without an id cannot be carried",
        ));
    }
    for call in message["tool_calls"].as_array().into_iter().flatten() {
        let arguments = call["function"]["arguments"].as_str().unwrap_or_default();
        let input: Option<Value> = serde_json::from_str(arguments).ok().filter(Value::is_object);
        if input.is_none() && !arguments.trim().is_empty() {
            losses.push(Loss::new(
                "messages",
                "arguments of a tool call that are not a JSON object",
            ));
        }
        let (name, input) = (&call["function"]["name"], input.unwrap_or_else(|| json!({})));
        out.push(json!({ "type": "tool_use", "id": call["id"], "name": name, "input": input }));
    }
    out
}

fn tools(body: &Value, out: &mut Map<String, Value>, losses: &mut Vec<Loss>) {
    let mut translated = Vec::new();
    for tool in body["tools"].as_array().into_iter().flatten() {
        let function = &tool["function"];
        if !function.is_object() {
            losses.push(Loss::new(
                "tools",
                format!("a tool of type {} cannot be carried", tool["type"]),
            ));
            continue;
        }
        let schema = if function["parameters"].is_object() {
            function["parameters"].clone()
        } else {
            json!({ "type": "object", "properties": {} })
        };
        let mut tool = json!({ "name": function["name"], "input_schema": schema });
        if function["description"].is_string() {
            tool["description"] = function["description"].clone();
        }
        if function["strict"] == true {
            tool["strict"] = true.into();
        }
        translated.push(tool);
    }
    if translated.is_empty() {
        return;
    }
    out.insert("tools".into(), translated.into());
    let choice = &body["tool_choice"];
    let mut choice = match (choice.as_str(), choice["function"]["name"].as_str()) {
        (Some("required"), _) => json!({ "type": "any" }),
        (Some("none"), _) => json!({ "type": "none" }),
        (_, Some(name)) => json!({ "type": "tool", "name": name }),
        (None, None) if choice.is_object() => {
            losses.push(Loss::new(
                "tool_choice",
                format!("a choice of type {} cannot be carried", choice["type"]),
            ));
            json!({ "type": "auto" })
        }
        _ => json!({ "type": "auto" }),
    };
    if body["parallel_tool_calls"] == false && choice["type"] != "none" {
        choice["disable_parallel_tool_use"] = true.into();
    }
    out.insert("tool_choice".into(), choice);
}
