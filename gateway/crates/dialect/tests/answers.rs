//! Answers on their way: passed through, folded, translated, cut anywhere, ended early.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use dialect::{Answer, AnswerError, Delivery, Finish, Request, read_answer, read_request};
use exchange::{Dialect, Refusal, RefusalKind, TokenClass};
use proptest::prelude::*;
use serde_json::{Value, json};

const OPENAI: &str = include_str!("fixtures/streams/openai_tools.txt");
const ANTHROPIC: &str = include_str!("fixtures/streams/anthropic_tools.txt");

fn request(dialect: Dialect, stream: bool) -> Request {
    let body = json!({ "model": "m", "max_tokens": 100, "stream": stream, "messages": [{ "role": "user", "content": "x" }] });
    read_request(dialect, body.to_string().into()).unwrap()
}

/// Runs a whole stream through, in pieces of the given sizes.
fn run(
    caller: Dialect,
    upstream: Dialect,
    delivery: Delivery,
    stream: &str,
    sizes: &[usize],
) -> (String, Answer) {
    let mut answer = Answer::new(&request(caller, delivery == Delivery::Stream), upstream, delivery);
    let (mut out, mut rest, mut sizes) = (Vec::new(), stream.as_bytes(), sizes.iter().cycle());
    while !rest.is_empty() {
        let size = (*sizes.next().unwrap()).min(rest.len());
        out.extend_from_slice(&answer.push(Bytes::copy_from_slice(&rest[..size])).unwrap());
        rest = &rest[size..];
    }
    out.extend_from_slice(&answer.finish().unwrap());
    (String::from_utf8(out).unwrap(), answer)
}

fn whole(caller: Dialect, upstream: Dialect, stream: &str) -> Value {
    serde_json::from_str(&run(caller, upstream, Delivery::Whole, stream, &[64]).0).unwrap()
}

#[test]
fn the_same_dialect_passes_and_only_our_own_usage_event_is_hidden() {
    let (out, answer) = run(
        Dialect::OpenaiChat,
        Dialect::OpenaiChat,
        Delivery::Stream,
        OPENAI,
        &[10_000],
    );
    assert!(!out.contains("\"choices\":[]"));
    let kept: Vec<&str> = OPENAI
        .split("\n\n")
        .filter(|event| !event.contains("\"choices\":[]"))
        .collect();
    assert_eq!(out, kept.join("\n\n"));
    let progress = answer.progress();
    let usage = progress.usage.unwrap();
    assert_eq!(
        (usage.get(TokenClass::Input), usage.get(TokenClass::CacheRead)),
        (4, 6)
    );
    assert_eq!(
        (usage.get(TokenClass::Output), usage.get(TokenClass::Reasoning)),
        (12, 3)
    );
    assert!(progress.complete && progress.started && progress.output_bytes > 10);
    assert_eq!(
        run(
            Dialect::Anthropic,
            Dialect::Anthropic,
            Delivery::Stream,
            ANTHROPIC,
            &[10_000]
        )
        .0,
        ANTHROPIC
    );
}

#[test]
fn folding_gives_the_answer_of_the_whole_api() {
    let folded = whole(Dialect::OpenaiChat, Dialect::OpenaiChat, OPENAI);
    assert_eq!(folded["object"], "chat.completion");
    let choice = &folded["choices"][0];
    assert_eq!(
        (&choice["message"]["content"], &choice["finish_reason"]),
        (&json!("Hello, \"wörld\""), &json!("tool_calls"))
    );
    assert_eq!(choice["message"]["x_unknown"], "kept");
    let call = json!([{ "id": "call_1", "type": "function", "function": { "name": "f", "arguments": "{\"a\":1}" } }]);
    assert_eq!(choice["message"]["tool_calls"], call);
    assert_eq!(
        (&folded["usage"]["prompt_tokens"], &folded["system_fingerprint"]),
        (&json!(10), &json!("fp"))
    );
    let folded = whole(Dialect::Anthropic, Dialect::Anthropic, ANTHROPIC);
    assert_eq!(
        folded["content"],
        json!([
            { "type": "thinking", "thinking": "hm", "signature": "sig==" },
            { "type": "text", "text": "Hello" },
            { "type": "tool_use", "id": "t1", "name": "f", "input": { "a": 1 } },
        ])
    );
    assert_eq!(
        (&folded["stop_reason"], &folded["usage"]["output_tokens"]),
        (&json!("tool_use"), &json!(15))
    );
    assert_eq!(folded["usage"]["input_tokens"], 25);
}

#[test]
fn translations_carry_text_thinking_tools_stops_and_usage() {
    let folded = whole(Dialect::OpenaiChat, Dialect::Anthropic, ANTHROPIC);
    let message = &folded["choices"][0]["message"];
    assert_eq!(
        (&message["content"], &message["reasoning_content"]),
        (&json!("Hello"), &json!("hm"))
    );
    assert_eq!(
        message["tool_calls"][0]["function"],
        json!({ "name": "f", "arguments": "{\"a\":1}" })
    );
    assert_eq!(folded["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(folded["usage"]["prompt_tokens"], 30);
    let folded = whole(Dialect::Anthropic, Dialect::OpenaiChat, OPENAI);
    assert_eq!(
        folded["content"],
        json!([
            { "type": "text", "text": "Hello, \"wörld\"" },
            { "type": "tool_use", "id": "call_1", "name": "f", "input": { "a": 1 } },
        ])
    );
    assert_eq!(
        (
            &folded["stop_reason"],
            &folded["usage"]["cache_read_input_tokens"]
        ),
        (&json!("tool_use"), &json!(6))
    );
}

#[test]
fn a_body_instead_of_a_stream_is_read_too() {
    let body = whole(Dialect::Anthropic, Dialect::Anthropic, ANTHROPIC).to_string();
    let (out, progress) = read_answer(
        &request(Dialect::OpenaiChat, false),
        Dialect::Anthropic,
        body.clone().into(),
    )
    .unwrap();
    let out: Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(out["choices"][0]["message"]["content"], "Hello");
    assert!(progress.complete && progress.finish == Some(Finish::ToolUse));
    let (out, _) = read_answer(
        &request(Dialect::OpenaiChat, true),
        Dialect::Anthropic,
        body.into(),
    )
    .unwrap();
    assert!(out.ends_with(b"data: [DONE]\n\n"));
}

#[test]
fn a_cut_stream_is_never_a_complete_answer() {
    for end in 0..ANTHROPIC.len() - 30 {
        let mut answer = Answer::new(
            &request(Dialect::Anthropic, true),
            Dialect::Anthropic,
            Delivery::Stream,
        );
        answer
            .push(Bytes::copy_from_slice(&ANTHROPIC.as_bytes()[..end]))
            .unwrap();
        assert_eq!(answer.finish().unwrap_err(), AnswerError::Cut, "at byte {end}");
    }
}

#[test]
fn an_error_inside_a_stream_is_an_error() {
    let mut answer = Answer::new(
        &request(Dialect::OpenaiChat, true),
        Dialect::OpenaiChat,
        Delivery::Stream,
    );
    let told = answer
        .push(Bytes::from_static(
            b"data: {\"error\":{\"message\":\"overloaded\"}}\n\n",
        ))
        .unwrap_err();
    assert_eq!(told, AnswerError::Reported("overloaded".into()));
}

#[test]
fn early_ends_are_the_dialects_own() {
    let half = &OPENAI[..OPENAI.find("tool_calls").unwrap()];
    let mut answer = Answer::new(
        &request(Dialect::OpenaiChat, true),
        Dialect::OpenaiChat,
        Delivery::Stream,
    );
    answer.push(Bytes::copy_from_slice(half.as_bytes())).unwrap();
    let end = String::from_utf8(answer.end_by_budget().to_vec()).unwrap();
    assert!(
        end.contains("\"finish_reason\":\"length\"") && end.ends_with("[DONE]\n\n"),
        "{end}"
    );
    let mut answer = Answer::new(
        &request(Dialect::Anthropic, false),
        Dialect::OpenaiChat,
        Delivery::Whole,
    );
    answer.push(Bytes::copy_from_slice(half.as_bytes())).unwrap();
    let body: Value = serde_json::from_slice(&answer.end_by_budget()).unwrap();
    assert_eq!(body["stop_reason"], "max_tokens");
    let refusal = Refusal::new(RefusalKind::Draining, "bye");
    let event = answer.error_event(&refusal);
    assert!(event.starts_with(b"event: error\ndata: "));
}

proptest! {
    #[test]
    fn pieces_of_any_size_make_no_difference(sizes in prop::collection::vec(1usize..80, 1..6)) {
        for (caller, upstream, stream) in [
            (Dialect::OpenaiChat, Dialect::OpenaiChat, OPENAI), (Dialect::Anthropic, Dialect::Anthropic, ANTHROPIC),
            (Dialect::OpenaiChat, Dialect::Anthropic, ANTHROPIC), (Dialect::Anthropic, Dialect::OpenaiChat, OPENAI),
        ] {
            for delivery in [Delivery::Stream, Delivery::Whole] {
                let once = run(caller, upstream, delivery, stream, &[usize::MAX]).0;
                prop_assert_eq!(run(caller, upstream, delivery, stream, &sizes).0, once);
            }
        }
    }
}
