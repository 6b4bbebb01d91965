//! A `GenerateContentResponse` as a chat completion.

use super::GeminiError;
use bytes::Bytes;
use serde_json::{Value, json};

/// Translates an answer. `(model, created_unix_s)`: what is said where the answer does not say it. Output tokens are the
/// candidates' and the thoughts' together, as they are billed.
///
/// # Errors
/// It is no JSON object.
pub fn from_gemini(body: &[u8], (model, created_unix_s): (&str, i64)) -> Result<Bytes, GeminiError> {
    let read: Value =
        serde_json::from_slice(body).map_err(|error| GeminiError::Unreadable(error.to_string()))?;
    if !read.is_object() {
        return Err(GeminiError::Unreadable("it is another kind of value".into()));
    }
    let id = read["responseId"].as_str().unwrap_or("batched");
    let candidates = read["candidates"].as_array().map_or(&[][..], Vec::as_slice);
    let mut choices: Vec<Value> = candidates
        .iter()
        .enumerate()
        .map(|(at, candidate)| choice(candidate, (id, at)))
        .collect();
    if choices.is_empty() {
        // The prompt itself was blocked.
        let message = json!({ "role": "assistant", "content": null, "refusal": blocked(&read) });
        choices.push(json!({ "index": 0, "message": message, "finish_reason": "content_filter" }));
    }
    let mut answer = json!({
        "id": format!("chatcmpl-{id}"),
        "object": "chat.completion",
        "created": created_unix_s,
        "model": read["modelVersion"].as_str().unwrap_or(model),
        "choices": choices,
    });
    // Without it the answer is counted, not taken for free.
    if read["usageMetadata"].is_object() {
        answer["usage"] = usage(&read["usageMetadata"]);
    }
    Ok(answer.to_string().into())
}

fn blocked(read: &Value) -> String {
    let reason = read["promptFeedback"]["blockReason"].as_str();
    format!(
        "the provider blocked the prompt: {}",
        reason.unwrap_or("it does not say why")
    )
}

fn choice(candidate: &Value, (id, at): (&str, usize)) -> Value {
    let (mut text, mut thought, mut calls) = (String::new(), String::new(), Vec::new());
    for part in candidate["content"]["parts"].as_array().into_iter().flatten() {
        if let Some(more) = part["text"].as_str() {
            let is_thought = part["thought"] == true;
            if is_thought { &mut thought } else { &mut text }.push_str(more);
        }
        let call = &part["functionCall"];
        if let Some(name) = call["name"].as_str() {
            // Gemini gives ids to some calls only.
            let number = calls.len();
            let made = format!("call_{id}_{at}_{number}");
            let arguments = if call["args"].is_object() {
                call["args"].to_string()
            } else {
                "{}".into()
            };
            let mut one = json!({
                "id": call["id"].as_str().unwrap_or(&made), "type": "function",
                "function": { "name": name, "arguments": arguments },
            });
            if part["thoughtSignature"].is_string() {
                one["extra_content"] = json!({ "google": { "thought_signature": part["thoughtSignature"] } });
            }
            calls.push(one);
        }
    }
    let finish = finish(candidate["finishReason"].as_str(), !calls.is_empty());
    let content = if text.is_empty() && !calls.is_empty() {
        Value::Null
    } else {
        text.into()
    };
    let mut message = json!({ "role": "assistant", "content": content });
    if !thought.is_empty() {
        message["reasoning_content"] = thought.into();
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    json!({ "index": candidate["index"].as_u64().unwrap_or(at as u64), "message": message, "finish_reason": finish })
}

fn finish(reason: Option<&str>, has_calls: bool) -> &'static str {
    match reason.unwrap_or("STOP") {
        "MAX_TOKENS" => "length",
        "SAFETY" | "RECITATION" | "LANGUAGE" | "BLOCKLIST" | "PROHIBITED_CONTENT" | "SPII"
        | "IMAGE_SAFETY" => "content_filter",
        _ if has_calls => "tool_calls",
        _ => "stop",
    }
}

fn usage(told: &Value) -> Value {
    let count = |name: &str| told[name].as_u64().unwrap_or(0);
    let prompt = count("promptTokenCount") + count("toolUsePromptTokenCount");
    let thoughts = count("thoughtsTokenCount");
    let output = count("candidatesTokenCount") + thoughts;
    json!({
        "prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output,
        "prompt_tokens_details": { "cached_tokens": count("cachedContentTokenCount") },
        "completion_tokens_details": { "reasoning_tokens": thoughts },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(body: Value) -> Value {
        serde_json::from_slice(&from_gemini(body.to_string().as_bytes(), ("m", 7)).unwrap()).unwrap()
    }

    #[test]
    fn text_thoughts_calls_and_tokens() {
        let out = translated(json!({
            "responseId": "r1", "modelVersion": "gemini-2.5-flash",
            "candidates": [{"content": {"role": "model", "parts": [
                {"text": "hm", "thought": true}, {"text": "so"},
                {"functionCall": {"name": "f", "args": {"a": 1}}, "thoughtSignature": "c2ln"}]}, "finishReason": "STOP"}],
            "usageMetadata": {"promptTokenCount": 100, "candidatesTokenCount": 20, "thoughtsTokenCount": 30,
                "cachedContentTokenCount": 64, "toolUsePromptTokenCount": 5, "totalTokenCount": 155},
        }));
        assert_eq!(
            out,
            json!({
                "id": "chatcmpl-r1", "object": "chat.completion", "created": 7, "model": "gemini-2.5-flash",
                "choices": [{"index": 0, "finish_reason": "tool_calls", "message": {
                    "role": "assistant", "content": "so", "reasoning_content": "hm",
                    "tool_calls": [{"id": "call_r1_0_0", "type": "function",
                        "function": {"name": "f", "arguments": "{\"a\":1}"},
                        "extra_content": {"google": {"thought_signature": "c2ln"}}}]}}],
                "usage": {"prompt_tokens": 105, "completion_tokens": 50, "total_tokens": 155,
                    "prompt_tokens_details": {"cached_tokens": 64}, "completion_tokens_details": {"reasoning_tokens": 30}},
            })
        );
    }

    #[test]
    fn reasons_to_stop() {
        for (reason, expected) in [
            ("STOP", "stop"),
            ("MAX_TOKENS", "length"),
            ("SAFETY", "content_filter"),
            ("MALFORMED_FUNCTION_CALL", "stop"),
        ] {
            let out = translated(
                json!({"candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": reason}]}),
            );
            assert_eq!(out["choices"][0]["finish_reason"], expected);
        }
        let out = translated(
            json!({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 4}}),
        );
        assert_eq!(out["choices"][0]["finish_reason"], "content_filter");
        assert_eq!(out["usage"]["prompt_tokens"], 4);
    }

    #[test]
    fn an_answer_that_does_not_say_what_it_used() {
        let out = translated(json!({"candidates": [{"content": {"parts": [{"text": "x"}]}}]}));
        assert!(out.get("usage").is_none());
    }

    #[test]
    fn what_is_no_answer() {
        assert!(from_gemini(b"[]", ("m", 0)).is_err() && from_gemini(b"{", ("m", 0)).is_err());
    }
}
