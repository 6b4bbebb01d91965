//! The request for one candidate: patched where the dialect is the same, translated where it is not.

use crate::patch::patch;
use crate::request::Request;
use crate::{anthropic, openai, plain};
use bytes::Bytes;
use exchange::{Dialect, Thinking};
use serde_json::Value;
use std::borrow::Cow;

/// The output limit where the caller gave none, the money sets none and the dialect requires one.
pub(crate) const USUAL_MAX_TOKENS: u64 = 4096;

/// What a candidate needs.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub dialect: Dialect,
    pub model: &'a str,
    /// The most output tokens the money pays for; `None` leaves the caller's own limit.
    pub max_output_tokens: Option<u64>,
    /// What the policy decided; `None` leaves the caller's own setting.
    pub thinking: Option<Thinking>,
    /// False takes the caller's own setting away: the model cannot think, and would refuse to be asked.
    pub can_think: bool,
    /// Ask for a stream, whatever the caller asked for.
    pub stream: bool,
}

/// Ready to send.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Behind the provider's base URL.
    pub path: &'static str,
    pub body: Bytes,
    /// Everything the caller asked for that this body does not carry.
    pub losses: Vec<Loss>,
}

/// Something that could not be carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    pub field: Cow<'static, str>,
    pub reason: String,
}

impl Loss {
    pub(crate) fn new(field: impl Into<Cow<'static, str>>, reason: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            reason: reason.into(),
        }
    }
}

/// The request cannot be put into the candidate's dialect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error(
        "requests cannot be put into the dialect {0} yet: choose a deployment that speaks openai_chat or anthropic"
    )]
    Unsupported(Dialect),
    #[error("a provider that speaks {0} has no {1}: choose a model of one that speaks openai_chat")]
    NoEndpoint(Dialect, &'static str),
    #[error("the body cannot be translated for this provider: {0}")]
    Invalid(String),
}

/// Encodes a request for a candidate.
///
/// # Errors
/// The dialect is not served, or the body is broken where only a full parse sees it.
pub fn encode(request: &Request, target: &Target<'_>) -> Result<Encoded, EncodeError> {
    let endpoint = request.facts.surface.endpoint();
    if request.facts.surface.is_plain() {
        if target.dialect != Dialect::OpenaiChat {
            return Err(EncodeError::NoEndpoint(target.dialect, endpoint));
        }
        return Ok(Encoded {
            path: endpoint.strip_prefix("/v1").unwrap_or(endpoint),
            body: plain::patch(request, target),
            losses: Vec::new(),
        });
    }
    let path = match target.dialect {
        Dialect::OpenaiChat => "/chat/completions",
        Dialect::Anthropic => "/messages",
        other => return Err(EncodeError::Unsupported(other)),
    };
    let mut losses = Vec::new();
    if request.dialect == target.dialect {
        let body = patch(request, target, &mut losses);
        return Ok(Encoded { path, body, losses });
    }
    let body: Value =
        serde_json::from_slice(&request.raw).map_err(|error| EncodeError::Invalid(error.to_string()))?;
    // The policy's word goes before the caller's.
    let target = Target {
        thinking: target
            .thinking
            .or(request.facts.thinking)
            .filter(|_| target.can_think),
        ..*target
    };
    let out = match target.dialect {
        Dialect::Anthropic => openai::request::to_anthropic(&body, &target, &mut losses),
        _ => {
            // Inside a text the quotes would be escaped.
            if memchr::memmem::find(&request.raw, b"\"cache_control\"").is_some() {
                losses.push(Loss::new(
                    "cache_control",
                    "OpenAI caches by itself, by equal beginnings",
                ));
            }
            anthropic::request::to_openai(&body, &target, &mut losses)
        }
    };
    Ok(Encoded {
        path,
        body: out.to_string().into(),
        losses,
    })
}

/// Lists the fields of a body that a translation does not know, unless their value asks for nothing.
pub(crate) fn unknown_fields(body: &Value, known: &[&str], losses: &mut Vec<Loss>) {
    for (name, value) in body.as_object().into_iter().flatten() {
        let asks_nothing = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            Value::Bool(true) => false,
        };
        if !asks_nothing && !known.contains(&name.as_str()) {
            losses.push(Loss::new(
                name.clone(),
                "the provider's dialect has no such parameter",
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::read_request;
    use proptest::prelude::*;
    use serde_json::json;

    fn read(dialect: Dialect, text: &str) -> Request {
        read_request(dialect, Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    fn target(dialect: Dialect) -> Target<'static> {
        Target {
            dialect,
            model: "m",
            max_output_tokens: None,
            thinking: None,
            stream: false,
            can_think: true,
        }
    }

    #[test]
    fn nothing_to_change_is_the_same_bytes() {
        let request = read(
            Dialect::OpenaiChat,
            r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#,
        );
        let encoded = encode(&request, &target(Dialect::OpenaiChat)).unwrap();
        assert_eq!(encoded.body.as_ptr(), request.raw.as_ptr());
    }

    #[test]
    fn unknown_fields_and_spelling_survive_a_patch() {
        let text =
            r#"{ "x_new": [1e3, "\u00e9"],"model" : "auto", "messages":[{"content":"é"}], "stream":false }"#;
        let mut wanted = target(Dialect::OpenaiChat);
        wanted.stream = true;
        wanted.max_output_tokens = Some(7);
        let encoded = encode(&read(Dialect::OpenaiChat, text), &wanted).unwrap();
        assert_eq!(
            std::str::from_utf8(&encoded.body).unwrap(),
            r#"{ "x_new": [1e3, "\u00e9"],"model" : "m", "messages":[{"content":"é"}], "stream":true ,"max_completion_tokens":7,"stream_options":{"include_usage":true}}"#
        );
    }

    #[test]
    fn an_openai_request_becomes_an_anthropic_one() {
        let text = r#"{"model":"auto","max_tokens":9000,"stop":"END","temperature":1.5,"user":"u1","seed":1,
            "messages":[{"role":"system","content":"brief"},
              {"role":"user","content":[{"type":"text","text":"see"},{"type":"image_url","image_url":{"url":"data:image/png;base64,QUJD"}}]},
              {"role":"assistant","content":null,"tool_calls":[{"id":"t1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]},
              {"role":"tool","tool_call_id":"t1","content":"42"},{"role":"user","content":"and?"}],
            "tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],"tool_choice":"required"}"#;
        let encoded = encode(&read(Dialect::OpenaiChat, text), &target(Dialect::Anthropic)).unwrap();
        let body: Value = serde_json::from_slice(&encoded.body).unwrap();
        assert_eq!(encoded.path, "/messages");
        assert_eq!(body["system"], "brief");
        assert_eq!(
            body["messages"],
            json!([
                {"role":"user","content":[{"type":"text","text":"see"},
                    {"type":"image","source":{"type":"base64","media_type":"image/png","data":"QUJD"}}]},
                {"role":"assistant","content":[{"type":"tool_use","id":"t1","name":"f","input":{"a":1}}]},
                {"role":"user","content":[{"type":"tool_result","tool_use_id":"t1","content":"42"},{"type":"text","text":"and?"}]},
            ])
        );
        assert_eq!(
            body["tools"],
            json!([{"name":"f","input_schema":{"type":"object"}}])
        );
        assert_eq!(body["tool_choice"], json!({"type":"any"}));
        assert_eq!(
            (&body["stop_sequences"], &body["temperature"]),
            (&json!(["END"]), &json!(1))
        );
        let lost: Vec<_> = encoded.losses.iter().map(|loss| &*loss.field).collect();
        assert_eq!(lost, ["temperature", "seed"]);
    }

    #[test]
    fn an_anthropic_request_becomes_an_openai_one() {
        let text = r#"{"model":"auto","max_tokens":50,"stop_sequences":["END"],"top_k":5,"system":[{"type":"text","text":"brief"}],
            "messages":[{"role":"user","content":"hi"},
              {"role":"assistant","content":[{"type":"tool_use","id":"t1","name":"f","input":{"a":1}}]},
              {"role":"user","content":[{"type":"tool_result","tool_use_id":"t1","content":[{"type":"text","text":"42"}]},{"type":"text","text":"and?"}]}],
            "tools":[{"name":"f","input_schema":{"type":"object"}}],"tool_choice":{"type":"tool","name":"f"}}"#;
        let encoded = encode(&read(Dialect::Anthropic, text), &target(Dialect::OpenaiChat)).unwrap();
        let body: Value = serde_json::from_slice(&encoded.body).unwrap();
        assert_eq!(
            body["messages"],
            json!([
                {"role":"system","content":"brief"}, {"role":"user","content":"hi"},
                {"role":"assistant","content":null,"tool_calls":[{"id":"t1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]},
                {"role":"tool","tool_call_id":"t1","content":"42"}, {"role":"user","content":"and?"},
            ])
        );
        assert_eq!(
            body["tool_choice"],
            json!({"type":"function","function":{"name":"f"}})
        );
        assert_eq!((&body["stop"], encoded.losses.len()), (&json!(["END"]), 1));
    }

    proptest! {
        /// Whatever else is in the body, a patch changes the fields it must and leaves the values of all others.
        #[test]
        fn a_patch_leaves_all_other_fields(extra in "[a-z]{3,8}", text in ".*", number in any::<i32>(), stream in any::<bool>()) {
            prop_assume!(!["model", "stream", "messages", "system", "tools", "metadata", "thinking"].contains(&extra.as_str()));
            let body = json!({ "model": "auto", "messages": [{ "content": text }], extra.as_str(): { "n": number, "t": text } });
            let mut wanted = target(Dialect::OpenaiChat);
            wanted.stream = stream;
            let encoded = encode(&read(Dialect::OpenaiChat, &body.to_string()), &wanted).unwrap();
            let patched: Value = serde_json::from_slice(&encoded.body).unwrap();
            prop_assert_eq!(&patched[extra.as_str()], &body[extra.as_str()]);
            prop_assert_eq!(&patched["messages"], &body["messages"]);
            prop_assert_eq!(&patched["model"], "m");
            prop_assert_eq!(patched["stream"] == true, stream);
        }
    }
}
