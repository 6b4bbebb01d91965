//! Gemini's `GenerateContent`, as its batches answer it: requests read strictly, whole answers, errors.

use super::call::{Call, Content, Stop};
use serde_json::{Value, json};

/// The fields of a request, and of its settings; the service refuses any other by name.
const FIELDS: [&str; 7] = [
    "model",
    "contents",
    "systemInstruction",
    "tools",
    "toolConfig",
    "generationConfig",
    "safetySettings",
];
const SETTINGS: [&str; 12] = [
    "temperature",
    "topP",
    "topK",
    "seed",
    "presencePenalty",
    "frequencyPenalty",
    "candidateCount",
    "maxOutputTokens",
    "stopSequences",
    "responseMimeType",
    "responseJsonSchema",
    "thinkingConfig",
];

/// A request for `model` in the form that [`Call`] reads.
///
/// # Errors
/// What the service would object to.
pub fn as_call(model: &str, request: &Value) -> Result<Vec<u8>, String> {
    known(request, &FIELDS, "request")?;
    let settings = &request["generationConfig"];
    known(settings, &SETTINGS, "request.generation_config")?;
    let thinking = &settings["thinkingConfig"];
    if !thinking["thinkingBudget"].is_null() && !thinking["thinkingLevel"].is_null() {
        return Err("You can only set only one of thinking budget and thinking level.".into());
    }
    let turns = request["contents"].as_array().map_or(&[][..], Vec::as_slice);
    if turns.is_empty() {
        return Err("* GenerateContentRequest.contents: contents is not specified".into());
    }
    let mut messages = Vec::new();
    for turn in turns {
        let parts = turn["parts"].as_array().map_or(&[][..], Vec::as_slice);
        if parts.is_empty() {
            return Err("* GenerateContentRequest.contents: contents.parts must not be empty.".into());
        }
        let role = match turn["role"].as_str() {
            Some("user") => "user",
            Some("model") => "assistant",
            _ => return Err("Please use a valid role: user, model.".into()),
        };
        let result = parts.iter().any(|part| part["functionResponse"].is_object());
        let text: String = parts.iter().filter_map(|part| part["text"].as_str()).collect();
        messages.push(json!({"role": if result { "tool" } else { role }, "content": text}));
    }
    let declared = request["tools"][0]["functionDeclarations"].as_array();
    let tool =
        |one: &Value| json!({"function": {"name": one["name"], "parameters": one["parametersJsonSchema"]}});
    let tools: Vec<Value> = declared.into_iter().flatten().map(tool).collect();
    let read = json!({
        "model": model, "messages": messages, "tools": tools, "max_tokens": settings["maxOutputTokens"],
    });
    Ok(read.to_string().into_bytes())
}

fn known(value: &Value, fields: &[&str], at: &str) -> Result<(), String> {
    let mut names = value.as_object().into_iter().flat_map(|object| object.keys());
    match names.find(|name| !fields.contains(&name.as_str())) {
        Some(name) => Err(format!(
            "Invalid JSON payload received. Unknown name \"{name}\" at '{at}': Cannot find field."
        )),
        None => Ok(()),
    }
}

/// The answer in one piece. Thinking is counted apart from the text.
pub fn whole(call: &Call) -> Value {
    let mut parts = Vec::new();
    if call.thinking > 0 {
        parts.push(json!({"text": call.thought(), "thought": true}));
    }
    parts.push(match &call.content {
        Content::Tool { name, arguments } => {
            let arguments: Value = serde_json::from_str(arguments).unwrap();
            json!({"functionCall": {"name": name, "args": arguments}, "thoughtSignature": format!("c2ln{:016x}", call.id)})
        }
        _ => json!({"text": call.whole()}),
    });
    let reason = match call.stop {
        Stop::Natural | Stop::Tool => "STOP",
        Stop::Limit => "MAX_TOKENS",
    };
    let mut answer = json!({
        "candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": reason, "index": 0}],
        "modelVersion": call.model,
        "responseId": format!("{:022x}", call.id),
    });
    if call.reports_usage() {
        let thoughts = u64::from(call.thinking);
        let text = call.reported_output() - thoughts;
        let mut usage = json!({
            "promptTokenCount": call.input_tokens, "candidatesTokenCount": text,
            "totalTokenCount": call.input_tokens + text + thoughts,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": call.input_tokens}],
        });
        if thoughts > 0 {
            usage["thoughtsTokenCount"] = thoughts.into();
        }
        answer["usageMetadata"] = usage;
    }
    answer
}

/// gRPC's number and name of an HTTP status.
pub fn code(status: u16) -> (u16, &'static str) {
    match status {
        400 => (3, "INVALID_ARGUMENT"),
        401 => (16, "UNAUTHENTICATED"),
        403 => (7, "PERMISSION_DENIED"),
        404 => (5, "NOT_FOUND"),
        429 => (8, "RESOURCE_EXHAUSTED"),
        503 => (14, "UNAVAILABLE"),
        _ => (13, "INTERNAL"),
    }
}

pub fn error(status: u16, message: &str) -> Vec<u8> {
    let error = json!({"error": {"code": status, "message": message, "status": code(status).1}});
    error.to_string().into_bytes()
}
