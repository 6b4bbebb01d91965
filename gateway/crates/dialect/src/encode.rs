//! The request for one candidate: patched where the dialect is the same, translated where it is not.

use crate::request::Request;
use crate::scan::Span;
use crate::{anthropic, openai};
use bytes::Bytes;
use exchange::{Dialect, Thinking, ThinkingLevel};
use serde_json::{Value, json};

/// What a candidate needs.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub dialect: Dialect,
    pub model: &'a str,
    /// The most output tokens the money pays for; `None` leaves the caller's own limit.
    pub max_output_tokens: Option<u64>,
    /// What the policy decided; `None` leaves the caller's own setting.
    pub thinking: Option<Thinking>,
    /// Ask for a stream, whatever the caller asked for.
    pub stream: bool,
}

/// Ready to send.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Behind the provider's base URL.
    pub path: &'static str,
    pub body: Bytes,
    pub losses: Vec<Loss>,
}

/// Something a translation could not carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    pub field: &'static str,
    pub reason: String,
}

impl Loss {
    pub(crate) fn new(field: &'static str, reason: impl Into<String>) -> Self {
        Self {
            field,
            reason: reason.into(),
        }
    }
}

/// The request cannot be put into the candidate's dialect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("requests cannot be put into the dialect {0} yet")]
    Unsupported(Dialect),
    #[error("the body is not valid JSON: {0}")]
    Invalid(String),
}

/// Encodes a request for a candidate.
///
/// # Errors
/// The dialect is not served, or the body is broken where only a full parse sees it.
pub fn encode(request: &Request, target: &Target<'_>) -> Result<Encoded, EncodeError> {
    let path = match target.dialect {
        Dialect::OpenaiChat => "/chat/completions",
        Dialect::Anthropic => "/messages",
        other => return Err(EncodeError::Unsupported(other)),
    };
    if request.dialect == target.dialect {
        return Ok(Encoded {
            path,
            body: patch(request, target),
            losses: Vec::new(),
        });
    }
    let body: Value =
        serde_json::from_slice(&request.raw).map_err(|error| EncodeError::Invalid(error.to_string()))?;
    let mut losses = Vec::new();
    let mut out = match target.dialect {
        Dialect::Anthropic => openai::request::to_anthropic(&body, &mut losses),
        _ => anthropic::request::to_openai(&body, &mut losses),
    };
    out["model"] = target.model.into();
    out["stream"] = target.stream.into();
    if let (Some(cap), Some(fields)) = (target.max_output_tokens, out.as_object_mut()) {
        let asked = fields
            .get("max_tokens")
            .and_then(Value::as_u64)
            .unwrap_or(u64::MAX);
        fields.insert("max_tokens".into(), cap.min(asked).into());
    }
    let thinking = target.thinking.or(request.facts.thinking);
    if target.dialect == Dialect::OpenaiChat {
        if target.stream {
            out["stream_options"] = json!({ "include_usage": true });
        }
        if let Some(thinking) = thinking {
            out["reasoning_effort"] = effort(thinking).as_str().into();
        }
    } else if let (Some(thinking), Some(fields)) = (thinking, out.as_object_mut()) {
        openai::request::set_thinking(fields, thinking);
    }
    Ok(Encoded {
        path,
        body: out.to_string().into(),
        losses,
    })
}

/// The share of the output limit that each level may think for.
pub(crate) fn effort_tokens(level: ThinkingLevel, max_tokens: u64) -> u64 {
    let percent = match level {
        ThinkingLevel::None => 0,
        ThinkingLevel::Minimal => 10,
        ThinkingLevel::Low => 20,
        ThinkingLevel::Medium => 50,
        ThinkingLevel::High => 80,
        ThinkingLevel::Xhigh | ThinkingLevel::Max => 95,
    };
    max_tokens * percent / 100
}

/// The level nearest to a thinking budget in tokens.
fn effort(thinking: Thinking) -> ThinkingLevel {
    match thinking {
        Thinking::Level(level) => level,
        Thinking::Tokens(0) => ThinkingLevel::None,
        Thinking::Tokens(1..2048) => ThinkingLevel::Low,
        Thinking::Tokens(2048..8192) => ThinkingLevel::Medium,
        Thinking::Tokens(_) => ThinkingLevel::High,
    }
}

/// Changes to a body: values replaced where they stand, and fields put before the closing brace.
#[derive(Default)]
struct Edits {
    replaced: Vec<(Span, String)>,
    added: String,
}

impl Edits {
    fn set(&mut self, spot: Option<&Span>, name: &str, value: String) {
        match spot {
            Some(span) => self.replaced.push((span.clone(), value)),
            None => {
                self.added.push_str(",\"");
                self.added.push_str(name);
                self.added.push_str("\":");
                self.added.push_str(&value);
            }
        }
    }
}

/// The caller's own bytes with the few fields changed that must be.
fn patch(request: &Request, target: &Target<'_>) -> Bytes {
    let (spots, facts) = (&request.spots, &request.facts);
    let mut edits = Edits::default();
    if *facts.model != *target.model {
        edits.set(spots.model.as_ref(), "model", json!(target.model).to_string());
    }
    if facts.stream != target.stream {
        edits.set(spots.stream.as_ref(), "stream", target.stream.to_string());
    }
    if let Some(cap) = target
        .max_output_tokens
        .filter(|cap| facts.max_output_tokens.is_none_or(|asked| *cap < asked))
    {
        match (&spots.max_completion_tokens, &spots.max_tokens) {
            (None, None) if request.dialect == Dialect::OpenaiChat => {
                edits.set(None, "max_completion_tokens", cap.to_string());
            }
            (Some(spot), _) => edits.set(Some(spot), "", cap.to_string()),
            (None, spot) => edits.set(spot.as_ref(), "max_tokens", cap.to_string()),
        }
    }
    if request.dialect == Dialect::OpenaiChat {
        if target.stream && !spots.include_usage {
            let given = spots
                .stream_options
                .as_ref()
                .map(|span| &request.raw[span.clone()]);
            let mut options: Value = given
                .and_then(|text| serde_json::from_slice(text).ok())
                .unwrap_or_default();
            if !options.is_object() {
                options = json!({});
            }
            options["include_usage"] = true.into();
            edits.set(
                spots.stream_options.as_ref(),
                "stream_options",
                options.to_string(),
            );
        }
        if let Some(thinking) = target.thinking {
            edits.set(
                spots.reasoning_effort.as_ref(),
                "reasoning_effort",
                json!(effort(thinking).as_str()).to_string(),
            );
        }
    } else if let Some(thinking) = target.thinking {
        let mut fields = serde_json::Map::new();
        let max = target
            .max_output_tokens
            .or(facts.max_output_tokens)
            .unwrap_or(4096);
        fields.insert("max_tokens".into(), max.into());
        openai::request::set_thinking(&mut fields, thinking);
        edits.set(
            spots.thinking.as_ref(),
            "thinking",
            fields["thinking"].to_string(),
        );
    }
    apply(request, edits)
}

fn apply(request: &Request, mut edits: Edits) -> Bytes {
    let raw = &request.raw;
    if edits.replaced.is_empty() && edits.added.is_empty() {
        return raw.clone();
    }
    edits
        .replaced
        .push((request.spots.end..request.spots.end, edits.added));
    edits.replaced.sort_by_key(|(span, _)| span.start);
    let mut out = Vec::with_capacity(raw.len() + 128);
    let mut from = 0;
    for (span, value) in &edits.replaced {
        out.extend_from_slice(&raw[from..span.start]);
        out.extend_from_slice(value.as_bytes());
        from = span.end;
    }
    out.extend_from_slice(&raw[from..]);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::read_request;
    use proptest::prelude::*;

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
            (&json!(["END"]), &json!(1.0))
        );
        let lost: Vec<_> = encoded.losses.iter().map(|loss| loss.field).collect();
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
