//! Nothing that a caller or a provider sends makes this crate panic: real requests and streams, damaged in every way,
//! go through everything there is.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use dialect::{Answer, Delivery, Target, encode, read_answer, read_request, upstream_error};
use exchange::{Dialect, Refusal, RefusalKind, Thinking, ThinkingLevel};
use proptest::prelude::*;
use std::fs;
use std::path::Path;

const DIALECTS: [Dialect; 2] = [Dialect::OpenaiChat, Dialect::Anthropic];

fn fixtures(folder: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(folder);
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// One way to damage a text.
#[derive(Clone, Debug)]
enum Damage {
    Byte(prop::sample::Index, u8),
    Cut(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
    /// A JSON value is put where another begins.
    Value(prop::sample::Index, &'static str),
}

fn damage() -> impl Strategy<Value = Damage> {
    const VALUES: [&str; 9] = [
        "null",
        "[]",
        "{}",
        "\"\"",
        "-1",
        "1e999",
        "true",
        "[[{}]]",
        "{\"index\":99}",
    ];
    let at = any::<prop::sample::Index>;
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        (at(), 1usize..60).prop_map(|(at, length)| Damage::Cut(at, length)),
        (at(), 1usize..60).prop_map(|(at, length)| Damage::Repeat(at, length)),
        (at(), prop::sample::select(&VALUES[..])).prop_map(|(at, value)| Damage::Value(at, value)),
        (at(), prop::sample::select(&VALUES[..])).prop_map(|(at, value)| Damage::Value(at, value)),
    ]
}

fn damaged(text: &[u8], damages: &[Damage]) -> Vec<u8> {
    let mut text = text.to_vec();
    for damage in damages {
        let length = text.len().max(1);
        let place = |at: &prop::sample::Index| at.index(length);
        match damage {
            Damage::Byte(at, byte) => {
                let at = place(at);
                if let Some(target) = text.get_mut(at) {
                    *target = *byte;
                }
            }
            Damage::Cut(at, length) => {
                let at = place(at);
                text.drain(at..(at + length).min(text.len()));
            }
            Damage::Repeat(at, length) => {
                let at = place(at);
                let piece = text[at..(at + length).min(text.len())].to_vec();
                text.splice(at..at, piece);
            }
            Damage::Value(at, value) => replace_value(&mut text, place(at), value),
        }
    }
    text
}

/// Puts `value` in the place of the value behind the next colon.
fn replace_value(text: &mut Vec<u8>, from: usize, value: &str) {
    let Some(colon) = memchr::memmem::find(&text[from..], b"\":") else {
        return;
    };
    let start = from + colon + 2;
    let mut values =
        serde_json::Deserializer::from_slice(&text[start..]).into_iter::<serde::de::IgnoredAny>();
    if values.next().is_some_and(|read| read.is_ok()) {
        let end = start + values.byte_offset();
        text.splice(start..end, value.bytes());
    }
}

fn ask(body: &[u8]) {
    for dialect in DIALECTS {
        let Ok(request) = read_request(dialect, Bytes::copy_from_slice(body)) else {
            continue;
        };
        for target in DIALECTS {
            for thinking in [
                None,
                Some(Thinking::Level(ThinkingLevel::None)),
                Some(Thinking::Tokens(3_000)),
            ] {
                let target = Target {
                    dialect: target,
                    model: "m",
                    max_output_tokens: Some(4_000),
                    thinking,
                    stream: true,
                    can_think: true,
                };
                if let Ok(encoded) = encode(&request, &target) {
                    // What goes out is JSON, whatever came in.
                    serde_json::from_slice::<serde::de::IgnoredAny>(&encoded.body).unwrap();
                }
            }
        }
    }
}

fn answer(stream: &[u8], size: usize) {
    for caller in DIALECTS {
        for (upstream, delivery) in DIALECTS
            .into_iter()
            .flat_map(|dialect| [(dialect, Delivery::Stream), (dialect, Delivery::Whole)])
        {
            let body = format!(
                r#"{{"model":"m","stream":{},"messages":[{{}}]}}"#,
                delivery == Delivery::Stream
            );
            let request = read_request(caller, body.into()).unwrap();
            let start = || {
                let mut answer = Answer::new(&request, upstream, delivery);
                let told = stream
                    .chunks(size)
                    .try_for_each(|chunk| answer.push(Bytes::copy_from_slice(chunk)).map(drop));
                (answer, told)
            };
            let (mut finished, told) = start();
            let _ = finished.finish();
            if told.is_ok() {
                let (mut ended, _) = start();
                let end = ended.end_by_budget();
                assert!(!end.is_empty());
            }
            let refusal = Refusal::new(RefusalKind::Draining, "bye");
            assert!(!finished.error_event(&refusal).is_empty());
            let _ = read_answer(&request, upstream, Bytes::copy_from_slice(stream));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn damaged_requests_are_read_or_refused(damages in prop::collection::vec(damage(), 1..5)) {
        for body in fixtures("requests") {
            ask(&damaged(&body, &damages));
        }
    }

    #[test]
    fn damaged_streams_are_relayed_or_refused(damages in prop::collection::vec(damage(), 1..5), size in 1usize..400) {
        for stream in fixtures("streams") {
            answer(&damaged(&stream, &damages), size);
        }
    }

    #[test]
    fn bytes_of_no_meaning_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), status in 100u16..600) {
        ask(&bytes);
        answer(&bytes, 7);
        for dialect in DIALECTS {
            assert!(!upstream_error(dialect, status, &bytes).message.is_empty());
        }
    }

    /// The events of a whole answer, damaged the same way.
    #[test]
    fn damaged_answers_are_read_or_refused(damages in prop::collection::vec(damage(), 1..4)) {
        let openai = br#"{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"a","tool_calls":[{"id":"t","type":"function","function":{"name":"f","arguments":"{}"}}]},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2,"completion_tokens_details":{"reasoning_tokens":1}}}"#;
        let anthropic = br#"{"id":"m","type":"message","role":"assistant","model":"m","content":[{"type":"text","text":"a"},{"type":"tool_use","id":"t","name":"f","input":{"a":1}}],"stop_reason":"tool_use","stop_sequence":null,"usage":{"input_tokens":1,"cache_creation_input_tokens":3,"output_tokens":2}}"#;
        for body in [&openai[..], &anthropic[..]] {
            answer(&damaged(body, &damages), 64);
        }
    }
}
