//! OpenAI's endpoints whose requests and answers pass as they are: embeddings, completions, responses. Read for what they
//! weigh and cost, patched in the model, the output limit and the wish for usage, never translated.
//!
//! Invariant: what is refused here could not be accounted for: an answer that a provider finishes in the background has no
//! usage yet.

pub(crate) mod responses;

use crate::encode::Target;
use crate::patch::{self, Edits};
use crate::request::Request;
use crate::sse;
use bytes::Bytes;
use exchange::{Surface, TokenClass, Usage, UsageSource};
use serde_json::{Value, json};

/// The field that holds what the model is to read.
pub(crate) const fn content(surface: Surface) -> &'static str {
    match surface {
        Surface::Completions => "prompt",
        _ => "input",
    }
}

/// Estimated tokens of a value: text by its length, token ids by their number.
pub(crate) fn weight(value: &[u8]) -> u64 {
    if memchr::memchr(b'"', value).is_some() {
        return (value.len() as u64).div_ceil(4);
    }
    memchr::memchr_iter(b',', value).count() as u64 + 1
}

/// How many texts a value of `input` is.
pub(crate) fn inputs(value: &[u8]) -> u32 {
    let read: Value = serde_json::from_slice(value).unwrap_or_default();
    match read.as_array() {
        // One text as token ids.
        Some(items) if items.first().is_some_and(Value::is_number) => 1,
        Some(items) => items.len().try_into().unwrap_or(u32::MAX),
        None => 1,
    }
}

/// The body for a candidate.
pub(crate) fn patch(request: &Request, target: &Target<'_>) -> Bytes {
    let (spots, facts) = (&request.spots, &request.facts);
    let mut edits = Edits::default();
    if *facts.model != *target.model {
        edits.set(spots.model.as_ref(), "model", json!(target.model).to_string());
    }
    let asked = facts.max_output_tokens;
    let cap = target
        .max_output_tokens
        .filter(|cap| asked.is_none_or(|asked| *cap < asked));
    match (facts.surface, cap) {
        (Surface::Completions, Some(cap)) => {
            edits.set(spots.max_tokens.as_ref(), "max_tokens", cap.to_string());
        }
        (Surface::Responses, Some(cap)) => edits.set(
            spots.max_output_tokens.as_ref(),
            "max_output_tokens",
            cap.to_string(),
        ),
        _ => {}
    }
    if facts.surface == Surface::Completions && facts.stream && !spots.include_usage {
        patch::ask_for_usage(request, &mut edits);
    }
    edits.apply(request)
}

/// A whole answer as the stream that was asked for: one event, and the end.
pub(crate) fn as_stream(surface: Surface, answer: Value) -> Vec<u8> {
    if surface == Surface::Responses {
        return responses::as_stream(answer);
    }
    let mut out = Vec::new();
    sse::write(&mut out, None, &answer);
    out.extend_from_slice(b"data: [DONE]\n\n");
    out
}

/// Usage as Responses tells it.
pub(crate) fn responses_usage(value: &Value) -> Option<Usage> {
    let input = value["input_tokens"].as_u64()?;
    let output = value["output_tokens"].as_u64().unwrap_or(0);
    let details = &value["input_tokens_details"];
    let count = |value: &Value| value.as_u64().unwrap_or(0);
    let cached = count(&details["cached_tokens"]).min(input);
    let written = count(&details["cache_write_tokens"]).min(input - cached);
    let reasoning = count(&value["output_tokens_details"]["reasoning_tokens"]).min(output);
    Some(
        Usage::new(UsageSource::Reported)
            .with(TokenClass::Input, input - cached - written)
            .with(TokenClass::CacheRead, cached)
            .with(TokenClass::CacheWrite, written)
            .with(TokenClass::Output, output - reasoning)
            .with(TokenClass::Reasoning, reasoning),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{encode, read_answer, read_surface};
    use exchange::Dialect;

    fn read(surface: Surface, body: Value) -> Result<Request, String> {
        read_surface(surface, body.to_string().into()).map_err(|error| error.message)
    }

    fn target(dialect: Dialect, max_output_tokens: Option<u64>) -> Target<'static> {
        Target {
            dialect,
            model: "there",
            max_output_tokens,
            thinking: None,
            stream: false,
            can_think: true,
        }
    }

    #[test]
    fn each_endpoint_is_patched_in_its_own_fields() {
        let cases = [
            (
                Surface::Embeddings,
                json!({"model": "m", "input": ["a", "b"], "dimensions": 8}),
                json!(null),
            ),
            (
                Surface::Completions,
                json!({"model": "m", "prompt": "a", "max_tokens": 50}),
                json!(["max_tokens", 9]),
            ),
            (
                Surface::Responses,
                json!({"model": "m", "input": "a"}),
                json!(["max_output_tokens", 9]),
            ),
        ];
        for (surface, body, capped) in cases {
            let request = read(surface, body.clone()).unwrap();
            let encoded = encode(&request, &target(Dialect::OpenaiChat, Some(9))).unwrap();
            let sent: Value = serde_json::from_slice(&encoded.body).unwrap();
            assert_eq!(format!("/v1{}", encoded.path), surface.endpoint());
            assert_eq!(sent["model"], "there");
            let mut expected = body;
            expected["model"] = "there".into();
            if let Some(field) = capped[0].as_str() {
                expected[field] = capped[1].clone();
            }
            assert_eq!(sent, expected);
            let problem = encode(&request, &target(Dialect::Anthropic, None)).unwrap_err();
            assert!(problem.to_string().contains(surface.endpoint()), "{problem}");
        }
    }

    #[test]
    fn weights_and_counts() {
        let of = |input: Value| read(Surface::Embeddings, json!({"model": "m", "input": input})).unwrap();
        assert_eq!(of(json!("word ".repeat(40))).inputs(), 1);
        assert_eq!(of(json!([1, 2, 3])).facts.input_tokens, 3);
        assert_eq!(
            (of(json!([1, 2, 3])).inputs(), of(json!([[1], [2]])).inputs()),
            (1, 2)
        );
        assert_eq!(
            of(json!("a")).facts.max_output_tokens,
            Some(0),
            "nothing is generated"
        );
    }

    #[test]
    fn what_cannot_be_accounted_for_is_refused() {
        let told = |surface, body| read(surface, body).unwrap_err();
        assert!(told(Surface::Embeddings, json!({"model": "m"})).contains("`input` is missing"));
        let streamed = json!({"model": "m", "input": "a", "stream": true});
        assert!(told(Surface::Embeddings, streamed).contains("stream"));
        assert!(
            told(
                Surface::Responses,
                json!({"model": "m", "input": "a", "background": true})
            )
            .contains("job")
        );
        assert!(told(Surface::Completions, json!({"input": "a", "prompt": "b"})).contains("`model`"));
    }

    #[test]
    fn answers_tell_their_usage() {
        let answered = |surface, body: Value, answer: Value| {
            let request = read(surface, body).unwrap();
            read_answer(&request, Dialect::OpenaiChat, answer.to_string().into())
                .map(|(_, progress)| progress)
        };
        let embedded = json!({"object": "list", "data": [{"embedding": [0.5]}], "model": "there",
            "usage": {"prompt_tokens": 7, "total_tokens": 7, "x_local_cost_nanodollars": 5}});
        let progress = answered(Surface::Embeddings, json!({"model": "m", "input": "a"}), embedded).unwrap();
        let usage = progress.usage.unwrap();
        assert_eq!((usage.input_total(), usage.output_total()), (7, 0));
        assert_eq!(progress.cost_nanodollars, Some(5));
        let response = json!({"id": "resp_1", "status": "completed", "error": null, "service_tier": "flex",
            "output": [{"type": "message", "content": [{"type": "output_text", "text": "hi"}]}],
            "usage": {"input_tokens": 10, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 4},
                "output_tokens_details": {"reasoning_tokens": 2}}});
        let progress = answered(Surface::Responses, json!({"model": "m", "input": "a"}), response).unwrap();
        let usage = progress.usage.unwrap();
        assert_eq!(
            (usage.get(TokenClass::Input), usage.get(TokenClass::CacheRead)),
            (6, 4)
        );
        assert_eq!(
            (usage.get(TokenClass::Output), usage.get(TokenClass::Reasoning)),
            (3, 2)
        );
        assert_eq!(progress.service_tier.as_deref(), Some("flex"));
        let failed = json!({"output": [], "status": "failed", "error": {"code": "x", "message": "no"}});
        assert!(answered(Surface::Responses, json!({"model": "m", "input": "a"}), failed).is_err());
    }
}
