//! A messages request as a chat completion one.

use crate::encode::Loss;
use serde_json::{Map, Value, json};

/// Translates; what cannot be carried is listed.
pub(crate) fn to_openai(body: &Value, losses: &mut Vec<Loss>) -> Value {
    let mut out = Map::new();
    let mut messages = Vec::new();
    let system = text_of(&body["system"]);
    if !system.is_empty() {
        messages.push(json!({ "role": "system", "content": system }));
    }
    for message in body["messages"].as_array().into_iter().flatten() {
        if message["role"] == "assistant" {
            messages.push(assistant(&message["content"]));
        } else {
            user(&message["content"], &mut messages, losses);
        }
    }
    out.insert("messages".into(), messages.into());
    for (from, to) in [
        ("max_tokens", "max_tokens"),
        ("temperature", "temperature"),
        ("top_p", "top_p"),
        ("stop_sequences", "stop"),
        ("stream", "stream"),
    ] {
        if !body[from].is_null() {
            out.insert(to.into(), body[from].clone());
        }
    }
    if let Some(user) = body["metadata"]["user_id"].as_str() {
        out.insert("user".into(), user.into());
    }
    for name in ["top_k", "container", "mcp_servers", "context_management"] {
        if !body[name].is_null() {
            losses.push(Loss::new(name, "OpenAI has no such parameter"));
        }
    }
    tools(body, &mut out, losses);
    Value::Object(out)
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

fn assistant(content: &Value) -> Value {
    let mut message = json!({ "role": "assistant", "content": text_of(content) });
    let calls: Vec<Value> = content
        .as_array()
        .into_iter()
        .flatten()
        .filter(|block| block["type"] == "tool_use")
        .map(|block| {
            let function = json!({ "name": block["name"], "arguments": block["input"].to_string() });
            json!({ "id": block["id"], "type": "function", "function": function })
        })
        .collect();
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
        if message["content"] == "" {
            message["content"] = Value::Null;
        }
    }
    message
}

/// Tool results are messages of their own there, and come before what the user says with them.
fn user(content: &Value, messages: &mut Vec<Value>, losses: &mut Vec<Loss>) {
    let Value::Array(blocks) = content else {
        messages.push(json!({ "role": "user", "content": content }));
        return;
    };
    let mut parts = Vec::new();
    for block in blocks {
        match block["type"].as_str().unwrap_or_default() {
            "text" => parts.push(json!({ "type": "text", "text": block["text"] })),
            "image" => {
                let source = &block["source"];
                let url = match source["type"].as_str() {
                    Some("url") => source["url"].as_str().unwrap_or_default().to_owned(),
                    _ => format!(
                        "data:{};base64,{}",
                        source["media_type"].as_str().unwrap_or_default(),
                        source["data"].as_str().unwrap_or_default()
                    ),
                };
                parts.push(json!({ "type": "image_url", "image_url": { "url": url } }));
            }
            "tool_result" => messages.push(json!({ "role": "tool", "tool_call_id": block["tool_use_id"],
                "content": text_of(&block["content"]) })),
            other => losses.push(Loss::new(
                "messages",
                format!("content of type `{other}` cannot be carried"),
            )),
        }
    }
    // One plain text is what every OpenAI-compatible server understands.
    match parts.as_slice() {
        [] => {}
        [only] if only["type"] == "text" => messages.push(json!({ "role": "user", "content": only["text"] })),
        _ => messages.push(json!({ "role": "user", "content": parts })),
    }
}

fn tools(body: &Value, out: &mut Map<String, Value>, losses: &mut Vec<Loss>) {
    let mut translated = Vec::new();
    for tool in body["tools"].as_array().into_iter().flatten() {
        if tool["input_schema"].is_object() {
            let mut function = json!({ "name": tool["name"], "parameters": tool["input_schema"] });
            if tool["description"].is_string() {
                function["description"] = tool["description"].clone();
            }
            translated.push(json!({ "type": "function", "function": function }));
        } else {
            losses.push(Loss::new(
                "tools",
                format!("the server tool {} cannot be carried", tool["type"]),
            ));
        }
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
