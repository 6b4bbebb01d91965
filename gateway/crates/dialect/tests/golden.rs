//! Realistic requests and streams, and what becomes of them, kept as snapshots: `INSTA_UPDATE=always cargo test -p
//! dialect --test golden` writes them anew.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use dialect::{Answer, Delivery, Request, Target, encode, read_request};
use exchange::{Dialect, Thinking, ThinkingLevel, UsageSource};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

fn fixtures(folder: &str) -> Vec<(String, PathBuf)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(folder);
    let mut found: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), path))
        .collect();
    found.sort();
    assert!(found.len() >= 5, "the fixtures are gone");
    found
}

fn dialect_of(name: &str) -> Dialect {
    if name.starts_with("anthropic") {
        Dialect::Anthropic
    } else {
        Dialect::OpenaiChat
    }
}

fn snapshot(name: &str, value: &Value) {
    insta::with_settings!({ omit_expression => true }, { insta::assert_json_snapshot!(name, value) });
}

const fn other(dialect: Dialect) -> Dialect {
    match dialect {
        Dialect::Anthropic => Dialect::OpenaiChat,
        _ => Dialect::Anthropic,
    }
}

#[test]
fn requests_are_read_patched_and_translated() {
    for (name, path) in fixtures("requests") {
        let raw = Bytes::from(fs::read(path).unwrap());
        let request = read_request(dialect_of(&name), raw.clone()).unwrap();
        let mut target = Target {
            dialect: other(request.dialect),
            model: "the-model",
            max_output_tokens: Some(12_000),
            thinking: None,
            stream: true,
            can_think: true,
        };
        let translated = encode(&request, &target).unwrap();
        let body: Value = serde_json::from_slice(&translated.body).unwrap();
        let losses = translated
            .losses
            .iter()
            .map(|loss| format!("{}: {}", loss.field, loss.reason));
        target.dialect = request.dialect;
        target.thinking = Some(Thinking::Level(ThinkingLevel::Medium));
        let patched = encode(&request, &target).unwrap();
        let patched_losses = patched
            .losses
            .iter()
            .map(|loss| format!("{}: {}", loss.field, loss.reason));
        snapshot(
            &format!("request_{name}"),
            &json!({
                "facts": request.facts,
                "translated": body,
                "lost": losses.collect::<Vec<_>>(),
                "patched": changes(&raw, &patched.body),
                "patched_lost": patched_losses.collect::<Vec<_>>(),
            }),
        );
    }
}

/// The top-level fields that differ.
fn changes(before: &[u8], after: &[u8]) -> Value {
    let before: Value = serde_json::from_slice(before).unwrap();
    let after: Value = serde_json::from_slice(after).unwrap();
    let fields = after.as_object().unwrap().iter();
    let changed = fields.filter(|(name, value)| before.get(name.as_str()) != Some(*value));
    Value::Object(
        changed
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
    )
}

fn request(dialect: Dialect, stream: bool) -> Request {
    let body = json!({ "model": "m", "max_tokens": 100, "stream": stream, "stream_options": { "include_usage": stream },
        "messages": [{ "role": "user", "content": "x" }] });
    let mut request = read_request(dialect, body.to_string().into()).unwrap();
    request.received_unix_s = 1_764_000_099;
    request
}

fn run(caller: Dialect, upstream: Dialect, delivery: Delivery, stream: &Bytes) -> (String, Answer) {
    let mut answer = Answer::new(&request(caller, delivery == Delivery::Stream), upstream, delivery);
    let mut out = answer.push(stream.clone()).unwrap().to_vec();
    out.extend_from_slice(&answer.finish().unwrap());
    (String::from_utf8(out).unwrap(), answer)
}

#[test]
fn answers_are_passed_folded_and_translated() {
    for (name, path) in fixtures("streams") {
        let stream = Bytes::from(fs::read(path).unwrap());
        let upstream = dialect_of(&name);
        let (passed, answer) = run(upstream, upstream, Delivery::Stream, &stream);
        assert_eq!(
            passed.as_bytes(),
            stream,
            "{name}: the caller asked for all of it"
        );
        let progress = answer.progress();
        let usage = progress.usage.unwrap();
        assert_eq!(usage.source, UsageSource::Reported);
        let (folded, counted) = run(upstream, upstream, Delivery::Whole, &stream);
        assert_eq!(
            counted.progress(),
            progress,
            "{name}: counting and reading differ"
        );
        let (translated, counted) = run(other(upstream), upstream, Delivery::Stream, &stream);
        assert_eq!(
            counted.progress(),
            progress,
            "{name}: counting and reading differ"
        );
        let (whole, _) = run(other(upstream), upstream, Delivery::Whole, &stream);
        let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let usage: Vec<_> = usage
            .lines()
            .map(|(class, tokens)| format!("{class} {tokens}"))
            .collect();
        snapshot(
            &format!("answer_{name}"),
            &json!({
                "progress": { "output_bytes": progress.output_bytes, "deltas": progress.deltas, "usage": usage,
                    "finish": format!("{:?}", progress.finish), "complete": progress.complete,
                    "model_served": progress.model_served, "service_tier": progress.service_tier },
                "folded": parse(&folded),
                "translated": translated.split("\n\n").collect::<Vec<_>>(),
                "translated_whole": parse(&whole),
            }),
        );
    }
}
