//! What must hold for every request and every answer: patches leave all other bytes, streams fold into the answer they
//! were cut from, and neither the cuts of the network nor the spelling of a server makes a difference.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use dialect::{Answer, AnswerError, Delivery, Progress, Request, Target, encode, read_answer, read_request};
use exchange::{Dialect, Thinking, ThinkingLevel};
use proptest::prelude::*;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const DIALECTS: [Dialect; 2] = [Dialect::OpenaiChat, Dialect::Anthropic];

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zé€😀 \"\\\\\n{}:,]{1,24}",
        "[ -~]{1,40}",
        Just("\"usage\":{\"finish_reason\":\"".to_owned())
    ]
}

/// A JSON value that is no text: texts grow in a stream, so that an unknown one has no single meaning.
fn label() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        Just(json!({ "deep": [1, null] }))
    ]
}

fn arguments() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-z]{1,4}", text(), 0..3).prop_map(|map| json!(map))
}

/// How a server spells its stream.
#[derive(Clone, Copy, Debug)]
struct Spelling {
    spaced: bool,
    crlf: bool,
    bare: bool,
    comments: bool,
    padded: bool,
}

fn spelling() -> impl Strategy<Value = Spelling> {
    let flag = any::<bool>;
    (flag(), flag(), flag(), flag(), flag()).prop_map(|(spaced, crlf, bare, comments, padded)| Spelling {
        spaced,
        crlf,
        bare,
        comments,
        padded,
    })
}

impl Spelling {
    fn stream(self, events: &[Value], done: bool) -> String {
        let newline = if self.crlf { "\r\n" } else { "\n" };
        let mut out = String::new();
        let mut write = |name: Option<&str>, data: &str| {
            if self.comments {
                out.push_str(&format!(": keep-alive{newline}{newline}"));
            }
            if let Some(name) = name {
                out.push_str(&format!("event: {name}{newline}"));
            }
            let space = if self.bare { "" } else { " " };
            out.push_str(&format!("data:{space}{data}{newline}{newline}"));
        };
        for event in events {
            let mut data = if self.spaced {
                spaced(event)
            } else {
                event.to_string()
            };
            if self.padded {
                data.insert_str(data.len() - 1, "   ");
            }
            write(event["type"].as_str(), &data);
        }
        if done {
            write(None, "[DONE]");
        }
        out
    }
}

/// As Python writes it: a space behind every comma and colon.
fn spaced(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(name, value)| format!("{}: {}", json!(name), spaced(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(spaced).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

/// A text in pieces of at most `size` characters.
fn pieces(text: &str, size: usize) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    characters
        .chunks(size.max(1))
        .map(|piece| piece.iter().collect())
        .collect()
}

/// A whole completion of a server, and the same as its stream.
fn completion() -> impl Strategy<Value = (Value, Vec<Value>)> {
    let calls = prop::collection::vec(("[a-z]{1,6}", arguments()), 0..3);
    let message = (text(), prop::option::of(text()), calls);
    (prop::collection::vec(message, 1..3), 1usize..9, label(), any::<bool>(), 0u64..500).prop_map(|(messages, size, label, hides, tokens)| {
        let head = json!({ "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "m-1", "x_label": label });
        let usage = json!({ "prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": 9 + tokens });
        let (mut choices, mut events, mut number) = (Vec::new(), Vec::new(), 0);
        let mut chunk = |index: usize, delta: Value, finish: Value| {
            let mut chunk = head.clone();
            chunk["choices"] = json!([{ "index": index, "delta": delta, "logprobs": null, "finish_reason": finish }]);
            number += 1;
            if hides {
                chunk["obfuscation"] = "x".repeat(number % 5).into();
            }
            events.push(chunk);
        };
        for (index, (content, thinking, calls)) in messages.into_iter().enumerate() {
            let mut message = json!({ "role": "assistant", "content": content, "refusal": null });
            chunk(index, json!({ "role": "assistant", "content": "", "refusal": null }), Value::Null);
            if let Some(thinking) = thinking {
                pieces(&thinking, size).into_iter().for_each(|piece| chunk(index, json!({ "reasoning_content": piece }), Value::Null));
                message["reasoning_content"] = thinking.into();
            }
            pieces(&content, size).into_iter().for_each(|piece| chunk(index, json!({ "content": piece }), Value::Null));
            let finish = if calls.is_empty() { "stop" } else { "tool_calls" };
            for (number, (name, arguments)) in calls.iter().enumerate() {
                let id = format!("call_{number}");
                let call = |part: &str| json!({ "name": name, "arguments": part });
                let whole = json!({ "id": id, "type": "function", "function": call(&arguments.to_string()) });
                let mut first = whole.clone();
                first["index"] = number.into();
                first["function"] = call("");
                chunk(index, json!({ "tool_calls": [first] }), Value::Null);
                for piece in pieces(&arguments.to_string(), size) {
                    let part = json!({ "index": number, "function": { "arguments": piece } });
                    chunk(index, json!({ "tool_calls": [part] }), Value::Null);
                }
                match message["tool_calls"].as_array_mut() {
                    Some(calls) => calls.push(whole),
                    None => message["tool_calls"] = json!([whole]),
                }
            }
            chunk(index, json!({}), finish.into());
            choices.push(json!({ "index": index, "message": message, "logprobs": null, "finish_reason": finish }));
        }
        let mut last = head.clone();
        (last["choices"], last["usage"]) = (json!([]), usage.clone());
        events.push(last);
        let mut whole = head;
        (whole["object"], whole["choices"], whole["usage"]) = ("chat.completion".into(), choices.into(), usage);
        (whole, events)
    })
}

/// A whole message, and the same as its stream.
fn message() -> impl Strategy<Value = (Value, Vec<Value>)> {
    let block = prop_oneof![
        text().prop_map(|text| json!({ "type": "text", "text": text })),
        text().prop_map(|text| json!({ "type": "thinking", "thinking": text, "signature": "c2ln" })),
        ("[a-z]{1,6}", arguments()).prop_map(|(name, input)| json!({ "type": "tool_use", "id": format!("toolu_{name}"), "name": name, "input": input })),
        Just(json!({ "type": "redacted_thinking", "data": "c2VhbGVk" })),
    ];
    (prop::collection::vec(block, 1..5), 1usize..9, label(), 1u64..500).prop_map(|(blocks, size, label, tokens)| {
        let head = json!({ "id": "msg_1", "type": "message", "role": "assistant", "model": "m-1", "content": [], "stop_reason": null,
            "stop_sequence": null, "x_label": label, "usage": { "input_tokens": 9, "cache_read_input_tokens": 4, "output_tokens": 1 } });
        let mut events = vec![json!({ "type": "message_start", "message": head })];
        for (index, block) in blocks.iter().enumerate() {
            let mut start = block.clone();
            let (field, kind, spelled) = match block["type"].as_str().unwrap() {
                "text" => ("text", "text_delta", block["text"].as_str().unwrap().to_owned()),
                "thinking" => ("thinking", "thinking_delta", block["thinking"].as_str().unwrap().to_owned()),
                "tool_use" => ("partial_json", "input_json_delta", block["input"].to_string()),
                _ => ("", "", String::new()),
            };
            match field {
                "partial_json" => start["input"] = json!({}),
                "" => {}
                field => start[field] = "".into(),
            }
            if field == "thinking" {
                start["signature"] = "".into();
            }
            events.push(json!({ "type": "content_block_start", "index": index, "content_block": start }));
            for piece in pieces(&spelled, size) {
                let mut delta = json!({ "type": kind });
                delta[field] = piece.into();
                events.push(json!({ "type": "content_block_delta", "index": index, "delta": delta }));
            }
            if field == "thinking" {
                let delta = json!({ "type": "signature_delta", "signature": "c2ln" });
                events.push(json!({ "type": "content_block_delta", "index": index, "delta": delta }));
            }
            events.push(json!({ "type": "content_block_stop", "index": index }));
        }
        let reason = if blocks.iter().any(|block| block["type"] == "tool_use") { "tool_use" } else { "end_turn" };
        let delta = json!({ "stop_reason": reason, "stop_sequence": null });
        events.push(json!({ "type": "message_delta", "delta": delta, "usage": { "output_tokens": tokens } }));
        events.push(json!({ "type": "message_stop" }));
        let mut whole = head;
        (whole["content"], whole["stop_reason"]) = (blocks.into(), reason.into());
        whole["usage"]["output_tokens"] = tokens.into();
        (whole, events)
    })
}

fn request(dialect: Dialect, stream: bool, include_usage: bool) -> Request {
    let body = json!({ "model": "m", "max_tokens": 100, "stream": stream, "stream_options": { "include_usage": include_usage },
        "messages": [{ "role": "user", "content": "x" }] });
    read_request(dialect, body.to_string().into()).unwrap()
}

fn run(request: &Request, upstream: Dialect, stream: &str, sizes: &[usize]) -> (String, Progress) {
    let delivery = if request.facts.stream {
        Delivery::Stream
    } else {
        Delivery::Whole
    };
    let mut answer = Answer::new(request, upstream, delivery);
    let (mut out, mut rest, mut sizes) = (Vec::new(), stream.as_bytes(), sizes.iter().cycle());
    while !rest.is_empty() {
        let (chunk, later) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
        out.extend_from_slice(&answer.push(Bytes::copy_from_slice(chunk)).unwrap());
        rest = later;
    }
    out.extend_from_slice(&answer.finish().unwrap());
    (String::from_utf8(out).unwrap(), answer.progress().clone())
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_stream_folds_into_the_answer_it_was_cut_from(
        openai in completion(), anthropic in message(), spelling in spelling(), sizes in prop::collection::vec(1usize..90, 1..5),
    ) {
        for (dialect, (whole, events)) in [(Dialect::OpenaiChat, &openai), (Dialect::Anthropic, &anthropic)] {
            let stream = spelling.stream(events, dialect == Dialect::OpenaiChat);
            let (folded, progress) = run(&request(dialect, false, false), dialect, &stream, &sizes);
            prop_assert_eq!(&parse(&folded), whole);
            let (_, read) = read_answer(&request(dialect, false, false), dialect, whole.to_string().into()).unwrap();
            prop_assert_eq!((progress.usage, progress.complete, &progress.model_served), (read.usage, read.complete, &read.model_served));
        }
    }

    #[test]
    fn counting_without_reading_counts_the_same_and_passes_every_byte(
        openai in completion(), anthropic in message(), spelling in spelling(), sizes in prop::collection::vec(1usize..90, 1..5),
    ) {
        for (dialect, (_, events)) in [(Dialect::OpenaiChat, &openai), (Dialect::Anthropic, &anthropic)] {
            let stream = spelling.stream(events, dialect == Dialect::OpenaiChat);
            let (passed, counted) = run(&request(dialect, true, true), dialect, &stream, &sizes);
            prop_assert_eq!(&passed, &stream);
            let (_, read) = run(&request(dialect, false, true), dialect, &stream, &sizes);
            prop_assert_eq!(counted, read);
        }
        // A usage nobody asked for is taken out, and nothing else.
        let stream = spelling.stream(&openai.1, true);
        let without = spelling.stream(&openai.1[..openai.1.len() - 1], true);
        let (passed, progress) = run(&request(Dialect::OpenaiChat, true, false), Dialect::OpenaiChat, &stream, &sizes);
        let comments = |text: &str| text.replace(": keep-alive\r\n\r\n", "").replace(": keep-alive\n\n", "");
        prop_assert_eq!(comments(&passed), comments(&without));
        prop_assert!(progress.usage.is_some());
    }

    /// Streamed or whole, cut anywhere, a translation says the same, and its own stream is one that can be read back.
    #[test]
    fn translations_agree_with_each_other(
        openai in completion(), anthropic in message(), spelling in spelling(), sizes in prop::collection::vec(1usize..90, 1..5),
    ) {
        for (upstream, caller, (whole, events)) in [
            (Dialect::OpenaiChat, Dialect::Anthropic, &openai), (Dialect::Anthropic, Dialect::OpenaiChat, &anthropic),
        ] {
            let stream = spelling.stream(events, upstream == Dialect::OpenaiChat);
            let (translated, progress) = run(&request(caller, true, true), upstream, &stream, &sizes);
            let (once, _) = run(&request(caller, true, true), upstream, &stream, &[usize::MAX]);
            prop_assert_eq!(&translated, &once);
            let (folded, _) = run(&request(caller, false, true), upstream, &stream, &sizes);
            let (refolded, passed) = run(&request(caller, false, true), caller, &translated, &sizes);
            prop_assert_eq!(parse(&folded), parse(&refolded));
            let (body, _) = read_answer(&request(caller, false, true), upstream, whole.to_string().into()).unwrap();
            prop_assert_eq!(parse(std::str::from_utf8(&body).unwrap()), parse(&folded));
            prop_assert_eq!(progress.finish, passed.finish);
            let total = |progress: &Progress| progress.usage.map(|usage| (usage.input_total(), usage.output_total()));
            prop_assert_eq!(total(&progress), total(&passed));
        }
    }

    #[test]
    fn a_stream_cut_short_is_an_error_and_can_be_ended_in_the_dialects_own_way(
        openai in completion(), anthropic in message(), spelling in spelling(), at in any::<prop::sample::Index>(), stream in any::<bool>(),
    ) {
        for (upstream, events) in [(Dialect::OpenaiChat, &openai.1), (Dialect::Anthropic, &anthropic.1)] {
            let ends = |event: &&Value| event["type"] == "message_delta" || !event["choices"][0]["finish_reason"].is_null();
            let unfinished: Vec<Value> = events[..events.len() - 1].iter().filter(|event| !ends(event)).cloned().collect();
            let text = spelling.stream(&unfinished, false);
            let end = at.index(text.len() + 1);
            for caller in DIALECTS {
                let request = request(caller, stream, true);
                let delivery = if stream { Delivery::Stream } else { Delivery::Whole };
                let start = |end: usize| {
                    let mut answer = Answer::new(&request, upstream, delivery);
                    let out = answer.push(Bytes::copy_from_slice(&text.as_bytes()[..end])).unwrap();
                    (answer, out)
                };
                prop_assert_eq!(start(end).0.finish(), Err(AnswerError::Cut));
                let (mut answer, mut out) = start(end);
                out = [out, answer.end_by_budget()].concat().into();
                let ended = String::from_utf8(out.to_vec()).unwrap();
                let whole = if stream { parse(&run(&self::request(caller, false, true), caller, &ended, &[64]).0) } else { parse(&ended) };
                let reason = if caller == Dialect::Anthropic { &whole["stop_reason"] } else { &whole["choices"][0]["finish_reason"] };
                prop_assert!(!reason.is_null(), "{whole}");
            }
        }
    }

    #[test]
    fn a_patch_changes_its_fields_and_no_other_byte(
        dialect in prop::sample::select(&DIALECTS[..]), pretty in any::<bool>(), extra in prop::collection::btree_map("x_[a-z]{1,5}", label(), 0..4),
        words in text(), given in prop::collection::vec(any::<bool>(), 6), cap in prop::option::of(1u64..9_000), stream in any::<bool>(),
        level in prop::option::of(prop::sample::select(ThinkingLevel::ALL)),
    ) {
        let mut body = json!({ "messages": [{ "role": "user", "content": words }] });
        for (name, value) in &extra {
            body[name] = value.clone();
        }
        let options = [("stream", json!(true)), ("max_tokens", json!(5_000)), ("max_completion_tokens", json!(6_000)),
            ("stream_options", json!({ "x": 1 })), ("reasoning_effort", json!("low")), ("thinking", json!({ "type": "enabled", "budget_tokens": 2_000 }))];
        for ((name, value), _) in options.into_iter().zip(given).filter(|(_, given)| *given) {
            body[name] = value;
        }
        body["model"] = "auto".into();
        let raw = if pretty { serde_json::to_string_pretty(&body).unwrap() } else { body.to_string() };
        let request = read_request(dialect, raw.clone().into()).unwrap();
        let thinking = level.map(Thinking::Level);
        let target = Target { dialect, model: "the \"model\"", max_output_tokens: cap, thinking, stream, can_think: true };
        let patched = encode(&request, &target).unwrap().body;
        let patched = std::str::from_utf8(&patched).unwrap();

        // The patched body again, with every value that may change put back, and what was added taken off.
        let after: BTreeMap<&str, &RawValue> = serde_json::from_str(patched).unwrap();
        let before: BTreeMap<&str, &RawValue> = serde_json::from_str(&raw).unwrap();
        let mut spans: Vec<_> = after.iter().map(|(name, value)| (value.get().as_ptr() as usize - patched.as_ptr() as usize, name, value.get())).collect();
        spans.sort_unstable();
        let (mut restored, mut from) = (String::new(), 0);
        for (start, name, value) in spans.iter().filter(|(_, name, _)| before.contains_key(**name)) {
            restored.push_str(&patched[from..*start]);
            restored.push_str(before[**name].get());
            from = start + value.len();
        }
        let added = spans.iter().any(|(_, name, _)| !before.contains_key(**name));
        let end = if added { raw.len() - (restored.len() + 1) } else { patched.len() - from };
        if added {
            restored.push_str(&patched[from..from + end]);
            restored.push('}');
        } else {
            restored.push_str(&patched[from..]);
        }
        prop_assert_eq!(&restored, &raw);

        let value = parse(patched);
        prop_assert_eq!(&value["model"], "the \"model\"");
        prop_assert_eq!(value["stream"] == true, stream);
        for (name, expected) in &extra {
            prop_assert_eq!(&value[name], expected);
        }
        prop_assert_eq!(&value["messages"], &body["messages"]);
        if let Some(cap) = cap {
            let limits = ["max_tokens", "max_completion_tokens"].map(|name| value[name].as_u64());
            let limit = limits[usize::from(limits[1].is_some())];
            prop_assert!(limit.is_some_and(|limit| limit <= cap), "{value}");
        }
        if dialect == Dialect::OpenaiChat && stream {
            prop_assert_eq!(&value["stream_options"]["include_usage"], true);
        }
    }
}
