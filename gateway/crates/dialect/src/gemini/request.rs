//! A chat completion request as a `GenerateContentRequest`.

use super::GeminiError;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Fields that are translated below, or whose loss changes no answer.
const KNOWN: [&str; 27] = [
    "model",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "stream",
    "stream_options",
    "temperature",
    "top_p",
    "stop",
    "n",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "reasoning_effort",
    "modalities",
    "user",
    "safety_identifier",
    "metadata",
    "store",
    "service_tier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "logprobs",
];

/// Thinking tokens of each level for models that take a budget: the table of Google's surface that speaks OpenAI's dialect.
const BUDGETS: [(&str, u64); 7] = [
    ("none", 0),
    ("minimal", 1_024),
    ("low", 1_024),
    ("medium", 8_192),
    ("high", 24_576),
    ("xhigh", 24_576),
    ("max", 24_576),
];

type Told<T> = Result<T, GeminiError>;

/// Translates the body of a chat completion request. `model`: as the provider calls it.
///
/// # Errors
/// Names the first field that Gemini's form cannot say.
pub fn to_gemini(body: &[u8], model: &str) -> Told<Bytes> {
    let body: Value =
        serde_json::from_slice(body).map_err(|error| GeminiError::Unreadable(error.to_string()))?;
    for (name, value) in body.as_object().into_iter().flatten() {
        let asks_nothing = matches!(value, Value::Null | Value::Bool(false));
        if !asks_nothing && !KNOWN.contains(&name.as_str()) {
            return Err(GeminiError::unsayable(name, "Gemini has no such parameter"));
        }
    }
    let (system, contents) = conversation(&body["messages"])?;
    let mut out = Map::new();
    out.insert("contents".into(), contents.into());
    if !system.is_empty() {
        out.insert("systemInstruction".into(), json!({ "parts": system }));
    }
    tools(&body, &mut out)?;
    let config = config(&body, model)?;
    if !config.is_empty() {
        out.insert("generationConfig".into(), config.into());
    }
    Ok(Value::Object(out).to_string().into())
}

/// The system's parts, and the turns: neighbours of one role are one turn.
fn conversation(messages: &Value) -> Told<(Vec<Value>, Vec<Value>)> {
    let (mut system, mut turns): (Vec<Value>, Vec<(&str, Vec<Value>)>) = (Vec::new(), Vec::new());
    let mut names = HashMap::new();
    for message in messages.as_array().into_iter().flatten() {
        let content = &message["content"];
        let (role, parts) = match message["role"].as_str().unwrap_or_default() {
            "system" | "developer" => {
                system.extend(parts(content)?);
                continue;
            }
            "assistant" => ("model", assistant(message, &mut names)?),
            "tool" => ("user", vec![result(message, &names)?]),
            "user" => ("user", parts(content)?),
            other => {
                return Err(GeminiError::unsayable(
                    "messages",
                    format!("there is no role `{other}`"),
                ));
            }
        };
        match turns.last_mut() {
            Some((last, known)) if *last == role => known.extend(parts),
            _ => turns.push((role, parts)),
        }
    }
    let filled = turns.into_iter().filter(|(_, parts)| !parts.is_empty());
    let contents: Vec<Value> = filled
        .map(|(role, parts)| json!({ "role": role, "parts": parts }))
        .collect();
    if contents.is_empty() {
        return Err(GeminiError::unsayable(
            "messages",
            "nothing is said beside the system's",
        ));
    }
    Ok((system, contents))
}

fn parts(content: &Value) -> Told<Vec<Value>> {
    match content {
        Value::String(text) if text.is_empty() => Ok(Vec::new()),
        Value::String(text) => Ok(vec![json!({ "text": text })]),
        Value::Array(blocks) => blocks.iter().map(part).collect(),
        _ => Ok(Vec::new()),
    }
}

fn part(block: &Value) -> Told<Value> {
    let inline = |mime: &str, data: &Value| json!({ "inlineData": { "mimeType": mime, "data": data } });
    match block["type"].as_str().unwrap_or_default() {
        "text" => Ok(json!({ "text": block["text"] })),
        "refusal" => Ok(json!({ "text": block["refusal"] })),
        "image_url" => data_url(&block["image_url"]["url"]).map_or_else(
            || {
                let hint = "send images as `data:` URLs, Gemini fetches none";
                Err(GeminiError::unsayable("messages.content.image_url", hint))
            },
            |(mime, data)| Ok(inline(mime, &data.into())),
        ),
        "input_audio" => {
            let audio = &block["input_audio"];
            let mime = format!("audio/{}", audio["format"].as_str().unwrap_or("wav"));
            Ok(inline(&mime, &audio["data"]))
        }
        "file" => data_url(&block["file"]["file_data"]).map_or_else(
            || {
                let hint = "send files as `file_data`, those uploaded elsewhere are not there";
                Err(GeminiError::unsayable("messages.content.file", hint))
            },
            |(mime, data)| Ok(inline(mime, &data.into())),
        ),
        other => Err(GeminiError::unsayable(
            "messages.content",
            format!("there is no part `{other}`"),
        )),
    }
}

/// Media type and base64 of a `data:` URL.
fn data_url(url: &Value) -> Option<(&str, &str)> {
    url.as_str()?.strip_prefix("data:")?.split_once(";base64,")
}

/// The model's turn; the names of its calls are kept for their results.
fn assistant(message: &Value, names: &mut HashMap<String, String>) -> Told<Vec<Value>> {
    let mut parts = parts(&message["content"])?;
    for call in message["tool_calls"].as_array().into_iter().flatten() {
        let function = &call["function"];
        let Some(name) = function["name"].as_str() else {
            let reason = "only calls of functions have a counterpart";
            return Err(GeminiError::unsayable("messages.tool_calls", reason));
        };
        let arguments = function["arguments"].as_str().unwrap_or("{}");
        let arguments: Value = match arguments.trim() {
            "" => json!({}),
            text => serde_json::from_str(text).unwrap_or_default(),
        };
        if !arguments.is_object() {
            let reason = format!("the arguments of the call of `{name}` are no JSON object");
            return Err(GeminiError::unsayable("messages.tool_calls", reason));
        }
        let mut part = json!({ "functionCall": { "name": name, "args": arguments } });
        // Without its seal a thinking model does not take its own call back.
        let seal = &call["extra_content"]["google"]["thought_signature"];
        if seal.is_string() {
            part["thoughtSignature"] = seal.clone();
        }
        parts.push(part);
        names.insert(call["id"].as_str().unwrap_or_default().into(), name.into());
    }
    Ok(parts)
}

fn result(message: &Value, names: &HashMap<String, String>) -> Told<Value> {
    let id = message["tool_call_id"].as_str().unwrap_or_default();
    let Some(name) = names.get(id) else {
        let reason = format!("no call before it has the id `{id}`");
        return Err(GeminiError::unsayable("messages.tool_call_id", reason));
    };
    let mut text = String::new();
    for part in parts(&message["content"])? {
        let Some(more) = part["text"].as_str() else {
            let reason = "a tool's result is text";
            return Err(GeminiError::unsayable("messages.content", reason));
        };
        text.push_str(more);
    }
    let read: Value = serde_json::from_str(&text).unwrap_or_default();
    let response = if read.is_object() {
        read
    } else {
        json!({ "result": text })
    };
    Ok(json!({ "functionResponse": { "name": name, "response": response } }))
}

fn tools(body: &Value, out: &mut Map<String, Value>) -> Told<()> {
    let tools = body["tools"].as_array().map_or(&[][..], Vec::as_slice);
    let mut declared = Vec::with_capacity(tools.len());
    for tool in tools {
        let function = &tool["function"];
        if tool["type"] != "function" || !function["name"].is_string() {
            return Err(GeminiError::unsayable(
                "tools",
                "only functions have a counterpart",
            ));
        }
        let mut one = json!({ "name": function["name"] });
        if function["description"].is_string() {
            one["description"] = function["description"].clone();
        }
        if function["parameters"].is_object() {
            one["parametersJsonSchema"] = function["parameters"].clone();
        }
        declared.push(one);
    }
    if declared.is_empty() {
        return Ok(());
    }
    if body["parallel_tool_calls"] == false {
        let reason = "Gemini cannot be held to one call at a time";
        return Err(GeminiError::unsayable("parallel_tool_calls", reason));
    }
    out.insert("tools".into(), json!([{ "functionDeclarations": declared }]));
    let choice = &body["tool_choice"];
    let calling = match (choice.as_str(), choice["function"]["name"].as_str()) {
        (None, None) if choice.is_null() => return Ok(()),
        (Some("auto"), _) => json!({ "mode": "AUTO" }),
        (Some("none"), _) => json!({ "mode": "NONE" }),
        (Some("required"), _) => json!({ "mode": "ANY" }),
        (_, Some(name)) => json!({ "mode": "ANY", "allowedFunctionNames": [name] }),
        _ => {
            return Err(GeminiError::unsayable(
                "tool_choice",
                "it is auto, none, required or a function",
            ));
        }
    };
    out.insert("toolConfig".into(), json!({ "functionCallingConfig": calling }));
    Ok(())
}

fn config(body: &Value, model: &str) -> Told<Map<String, Value>> {
    let mut config = Map::new();
    for (name, theirs) in [
        ("temperature", "temperature"),
        ("top_p", "topP"),
        ("seed", "seed"),
        ("presence_penalty", "presencePenalty"),
        ("frequency_penalty", "frequencyPenalty"),
        ("n", "candidateCount"),
    ] {
        if body[name].is_number() {
            config.insert(theirs.into(), body[name].clone());
        }
    }
    let limits = [&body["max_completion_tokens"], &body["max_tokens"]];
    if let Some(max) = limits.into_iter().find_map(Value::as_u64) {
        config.insert("maxOutputTokens".into(), max.into());
    }
    match &body["stop"] {
        Value::String(stop) => drop(config.insert("stopSequences".into(), json!([stop]))),
        Value::Array(stops) => drop(config.insert("stopSequences".into(), json!(stops))),
        _ => {}
    }
    if body["logprobs"] == true {
        let reason = "a batch answers without log probabilities";
        return Err(GeminiError::unsayable("logprobs", reason));
    }
    let kinds = body["modalities"].as_array();
    if kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind != "text")) {
        return Err(GeminiError::unsayable("modalities", "a batch answers in text"));
    }
    format(&body["response_format"], &mut config)?;
    if let Some(effort) = body["reasoning_effort"].as_str() {
        config.insert("thinkingConfig".into(), thinking(effort, model)?);
    }
    Ok(config)
}

fn format(format: &Value, config: &mut Map<String, Value>) -> Told<()> {
    match format["type"].as_str() {
        None | Some("text") => return Ok(()),
        Some("json_object") => {}
        Some("json_schema") => drop(config.insert(
            "responseJsonSchema".into(),
            format["json_schema"]["schema"].clone(),
        )),
        Some(other) => {
            let reason = format!("there is no format `{other}`");
            return Err(GeminiError::unsayable("response_format", reason));
        }
    }
    config.insert("responseMimeType".into(), "application/json".into());
    Ok(())
}

/// Models of the second generation take a budget in tokens, later ones a level.
fn thinking(effort: &str, model: &str) -> Told<Value> {
    let Some((_, budget)) = BUDGETS.iter().find(|(level, _)| *level == effort) else {
        let reason = format!("there is no level `{effort}`");
        return Err(GeminiError::unsayable("reasoning_effort", reason));
    };
    if model.trim_start_matches("models/").starts_with("gemini-2") {
        return Ok(json!({ "thinkingBudget": budget }));
    }
    let level = match effort {
        "none" | "minimal" => "MINIMAL",
        "low" => "LOW",
        "medium" => "MEDIUM",
        _ => "HIGH",
    };
    Ok(json!({ "thinkingLevel": level }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(body: Value) -> Value {
        serde_json::from_slice(&to_gemini(body.to_string().as_bytes(), "gemini-2.5-flash").unwrap()).unwrap()
    }

    #[test]
    fn a_whole_tool_loop_with_its_settings() {
        let out = translated(json!({
            "model": "m", "max_completion_tokens": 90, "temperature": 0.5, "top_p": 0.9, "stop": "END", "seed": 3,
            "reasoning_effort": "medium", "user": "u",
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
            "messages": [
                {"role": "system", "content": "brief"},
                {"role": "user", "content": [{"type": "text", "text": "see"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}]},
                {"role": "assistant", "content": null, "tool_calls": [{"id": "t1", "type": "function",
                    "extra_content": {"google": {"thought_signature": "c2ln"}},
                    "function": {"name": "f", "arguments": "{\"a\":1}"}}]},
                {"role": "tool", "tool_call_id": "t1", "content": "42"},
                {"role": "user", "content": "and?"}],
            "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
        }));
        assert_eq!(
            out,
            json!({
                "systemInstruction": {"parts": [{"text": "brief"}]},
                "contents": [
                    {"role": "user", "parts": [{"text": "see"}, {"inlineData": {"mimeType": "image/png", "data": "QUJD"}}]},
                    {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"a": 1}}, "thoughtSignature": "c2ln"}]},
                    {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"result": "42"}}}, {"text": "and?"}]},
                ],
                "tools": [{"functionDeclarations": [{"name": "f", "description": "d", "parametersJsonSchema": {"type": "object"}}]}],
                "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}},
                "generationConfig": {"temperature": 0.5, "topP": 0.9, "seed": 3, "maxOutputTokens": 90, "stopSequences": ["END"],
                    "responseJsonSchema": {"type": "object"}, "responseMimeType": "application/json",
                    "thinkingConfig": {"thinkingBudget": 8192}},
            })
        );
    }

    #[test]
    fn later_models_think_by_level() {
        assert_eq!(
            thinking("xhigh", "gemini-3-pro").unwrap(),
            json!({"thinkingLevel": "HIGH"})
        );
        assert_eq!(
            thinking("none", "models/gemini-2.5-flash").unwrap(),
            json!({"thinkingBudget": 0})
        );
        assert!(thinking("huge", "gemini-3-pro").is_err());
    }

    #[test]
    fn what_cannot_be_said_is_named() {
        let said = json!([{"role": "user", "content": "x"}]);
        let tool = json!([{"type": "function", "function": {"name": "f"}}]);
        for (body, field) in [
            (json!({"messages": said, "logit_bias": {"5": 1}}), "logit_bias"),
            (json!({"messages": said, "logprobs": true}), "logprobs"),
            (json!({"messages": said, "modalities": ["audio"]}), "modalities"),
            (json!({"messages": said, "tools": [{"type": "custom"}]}), "tools"),
            (
                json!({"messages": said, "tools": tool, "parallel_tool_calls": false}),
                "parallel_tool_calls",
            ),
            (
                json!({"messages": said, "response_format": {"type": "grammar"}}),
                "response_format",
            ),
            (
                json!({"messages": said, "reasoning_effort": "huge"}),
                "reasoning_effort",
            ),
            (
                json!({"messages": [{"role": "system", "content": "x"}]}),
                "messages",
            ),
            (
                json!({"messages": [{"role": "tool", "tool_call_id": "t", "content": "x"}]}),
                "messages.tool_call_id",
            ),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a/b"}}]}]}),
                "messages.content.image_url",
            ),
        ] {
            let error = to_gemini(body.to_string().as_bytes(), "m").unwrap_err();
            assert!(error.to_string().starts_with(&format!("`{field}` ")), "{error}");
        }
    }
}
