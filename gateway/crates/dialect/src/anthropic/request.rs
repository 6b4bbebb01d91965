//! A messages request as a chat completion one.

use crate::encode::{Loss, Target, unknown_fields};
use crate::thinking;
use serde_json::{Map, Value, json};

/// Fields that are translated below.
const KNOWN: [&str; 15] = [
    "model",
    "messages",
    "system",
    "max_tokens",
    "stream",
    "temperature",
    "top_p",
    "stop_sequences",
    "metadata",
    "tools",
    "tool_choice",
    "thinking",
    "output_config",
    "output_format",
    "service_tier",
];
/// The most stop sequences OpenAI takes.
const MOST_STOPS: usize = 4;

/// Translates; what cannot be carried is listed.
pub(crate) fn to_openai(body: &Value, target: &Target<'_>, losses: &mut Vec<Loss>) -> Value {
    let mut out = Map::new();
    out.insert("model".into(), target.model.into());
    out.insert("stream".into(), target.stream.into());
    if target.stream {
        out.insert("stream_options".into(), json!({ "include_usage": true }));
    }
    out.insert("messages".into(), conversation(body, losses).into());
    let max = body["max_tokens"].as_u64();
    if let Some(max) = max.into_iter().chain(target.max_output_tokens).min() {
        out.insert("max_completion_tokens".into(), max.into());
    }
    for name in ["temperature", "top_p"] {
        if body[name].is_number() {
            out.insert(name.into(), body[name].clone());
        }
    }
    if let Some(stops) = body["stop_sequences"]
        .as_array()
        .filter(|stops| !stops.is_empty())
    {
        if stops.len() > MOST_STOPS {
            losses.push(Loss::new(
                "stop_sequences",
                format!("more than {MOST_STOPS}: the rest is left out"),
            ));
        }
        out.insert("stop".into(), stops.iter().take(MOST_STOPS).cloned().collect());
    }
    if let Some(wanted) = target.thinking {
        out.insert("reasoning_effort".into(), thinking::level(wanted).as_str().into());
    }
    others(body, &mut out);
    tools(body, &mut out, losses);
    unknown_fields(body, &KNOWN, losses);
    Value::Object(out)
}

fn others(body: &Value, out: &mut Map<String, Value>) {
    if let Some(user) = body["metadata"]["user_id"].as_str() {
        out.insert("user".into(), user.into());
    }
    match body["service_tier"].as_str() {
        Some("standard_only") => drop(out.insert("service_tier".into(), "default".into())),
        Some("auto") => drop(out.insert("service_tier".into(), "auto".into())),
        _ => {}
    }
    for format in [&body["output_config"]["format"], &body["output_format"]] {
        if format["schema"].is_object() {
            let schema = json!({ "name": "answer", "schema": format["schema"], "strict": true });
            out.insert(
                "response_format".into(),
                json!({ "type": "json_schema", "json_schema": schema }),
            );
        }
    }
}

fn conversation(body: &Value, losses: &mut Vec<Loss>) -> Vec<Value> {
    let mut messages = Vec::new();
    let system = text_of(&body["system"]);
    if !system.is_empty() {
        messages.push(json!({ "role": "system", "content": system }));
    }
    for message in body["messages"].as_array().into_iter().flatten() {
        if message["role"] == "assistant" {
            messages.push(assistant(&message["content"], losses));
        } else {
            user(&message["content"], &mut messages, losses);
        }
    }
    if messages.last().is_some_and(|last| last["role"] == "assistant") {
        losses.push(Loss::new(
            "messages",
            "the answer does not go on from the beginning given to it",
        ));
    }
    messages
}

/// The text of a string or of text blocks.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => {
            let texts: Vec<&str> = blocks.iter().filter_map(|block| block["text"].as_str()).collect();
            texts.join("\n\n")
        }
        _ => String::new(),
    }
}

fn assistant(content: &Value, losses: &mut Vec<Loss>) -> Value {
    let mut message = json!({ "role": "assistant", "content": text_of(content) });
    let mut calls = Vec::new();
    for block in content.as_array().into_iter().flatten() {
        match block["type"].as_str().unwrap_or_default() {
            "text" => {}
            "tool_use" => {
                let function = json!({ "name": block["name"], "arguments": block["input"].to_string() });
                calls.push(json!({ "id": block["id"], "type": "function", "function": function }));
            }
            other => losses.push(Loss::new(
                "messages",
                format!("a block of type `{other}` cannot be carried"),
            )),
        }
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
        if message["content"] == "" {
            message["content"] = Value::Null;
        }
    }
    message
}

/// Tool results are messages of their own at OpenAI, and come before what the user says with them.
fn user(content: &Value, messages: &mut Vec<Value>, losses: &mut Vec<Loss>) {
    let Value::Array(blocks) = content else {
        messages.push(json!({ "role": "user", "content": content }));
        return;
    };
    let mut parts = Vec::new();
    for block in blocks {
        if block["type"] == "tool_result" {
            let content = tool_result(block, &mut parts, losses);
            messages
                .push(json!({ "role": "tool", "tool_call_id": block["tool_use_id"], "content": content }));
        } else {
            parts.extend(part(block, losses));
        }
    }
    // One plain text is what every OpenAI-compatible server understands.
    match parts.as_slice() {
        [] => {}
        [only] if only["type"] == "text" => messages.push(json!({ "role": "user", "content": only["text"] })),
        _ => messages.push(json!({ "role": "user", "content": parts })),
    }
}

/// The text of a result; its images follow in the user's own words, for a tool's message has no place for them.
fn tool_result(block: &Value, parts: &mut Vec<Value>, losses: &mut Vec<Loss>) -> String {
    let inner = block["content"].as_array().into_iter().flatten();
    parts.extend(
        inner
            .filter(|inner| inner["type"] != "text")
            .filter_map(|inner| part(inner, losses)),
    );
    let text = text_of(&block["content"]);
    if block["is_error"] == true && !text.is_empty() {
        return format!("Error: {text}");
    }
    text
}

fn part(block: &Value, losses: &mut Vec<Loss>) -> Option<Value> {
    let source = &block["source"];
    let text = |name: &str| source[name].as_str().unwrap_or_default();
    let kinds = (
        block["type"].as_str().unwrap_or_default(),
        source["type"].as_str(),
    );
    Some(match kinds {
        ("text", _) => json!({ "type": "text", "text": block["text"] }),
        ("image", Some("url")) => json!({ "type": "image_url", "image_url": { "url": source["url"] } }),
        ("image", Some("base64")) => {
            let url = format!("data:{};base64,{}", text("media_type"), text("data"));
            json!({ "type": "image_url", "image_url": { "url": url } })
        }
        ("document", Some("text")) => json!({ "type": "text", "text": source["data"] }),
        ("document", Some("base64")) => {
            let data = format!("data:{};base64,{}", text("media_type"), text("data"));
            let name = block["title"].as_str().unwrap_or("document.pdf");
            json!({ "type": "file", "file": { "filename": name, "file_data": data } })
        }
        (other, _) => {
            losses.push(Loss::new(
                "messages",
                format!("content of type `{other}` cannot be carried"),
            ));
            return None;
        }
    })
}

fn tools(body: &Value, out: &mut Map<String, Value>, losses: &mut Vec<Loss>) {
    let mut translated = Vec::new();
    for tool in body["tools"].as_array().into_iter().flatten() {
        if !tool["input_schema"].is_object() {
            losses.push(Loss::new(
                "tools",
                format!("the server tool {} cannot be carried", tool["type"]),
            ));
            continue;
        }
        let mut function = json!({ "name": tool["name"], "parameters": tool["input_schema"] });
        for name in ["description", "strict"] {
            if !tool[name].is_null() {
                function[name] = tool[name].clone();
            }
        }
        translated.push(json!({ "type": "function", "function": function }));
    }
    if translated.is_empty() {
        return;
    }
    out.insert("tools".into(), translated.into());
    let choice = &body["tool_choice"];
    let value = match choice["type"].as_str() {
        Some("any") => json!("required"),
        Some("none") => json!("none"),
        Some("tool") => json!({ "type": "function", "function": { "name": choice["name"] } }),
        _ => json!("auto"),
    };
    out.insert("tool_choice".into(), value);
    if choice["disable_parallel_tool_use"] == true {
        out.insert("parallel_tool_calls".into(), false.into());
    }
}
