//! What reading, patching and relaying cost: `cargo run --release -p dialect --example cost`. Prints microseconds per
//! operation, the best of several rounds.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a measuring program: it prints and may fail loudly"
)]

use bytes::Bytes;
use dialect::{Answer, Delivery, Target, encode, read_answer, read_request};
use exchange::Dialect;
use serde_json::json;
use std::hint::black_box;
use std::time::Instant;

const ROUNDS: usize = 15;

fn measure(name: &str, times: usize, mut operation: impl FnMut()) {
    let best = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            (0..times).for_each(|_| operation());
            start.elapsed().as_secs_f64() / times as f64
        })
        .fold(f64::INFINITY, f64::min);
    println!("{name:<48} {:>9.3} us", best * 1e6);
}

/// Messages of prose and code, with the escapes these have, of about `bytes` in all.
fn body(bytes: usize, piece: &str) -> Bytes {
    let text = piece.repeat(bytes / 4 / piece.len() + 1);
    let turn = |role: &str| json!({ "role": role, "content": &text[..text.floor_char_boundary(bytes / 4)] });
    let body = json!({ "model": "auto", "temperature": 0.2, "stream": true,
        "messages": [turn("system"), turn("user"), turn("assistant"), turn("user")] });
    body.to_string().into()
}

fn main() {
    let prose = "The quick brown fox jumps over the lazy dog and runs away.\n";
    let code = "    if x == \"a\\b\" {\n\t\treturn f(\"c\");\n    }\n";
    for (kind, piece) in [
        ("prose", prose),
        ("code", code),
        ("chinese", "敏捷的棕色狐狸跳过懒狗。"),
    ] {
        for size in [1_000, 100_000] {
            let raw = body(size, piece);
            let times = 20_000_000 / raw.len() / 10;
            measure(&format!("read_request {kind} {} B", raw.len()), times, || {
                black_box(read_request(Dialect::OpenaiChat, raw.clone()).unwrap());
            });
            let request = read_request(Dialect::OpenaiChat, raw.clone()).unwrap();
            for dialect in [Dialect::OpenaiChat, Dialect::Anthropic] {
                let target = Target {
                    dialect,
                    model: "gpt-4o-mini",
                    max_output_tokens: Some(512),
                    thinking: None,
                    stream: true,
                    can_think: true,
                };
                measure(
                    &format!("encode {kind} {} B to {dialect}", raw.len()),
                    times,
                    || {
                        black_box(encode(&request, &target).unwrap());
                    },
                );
            }
        }
    }
    answers();
}

fn answers() {
    let ask = |dialect, stream| {
        let body = json!({ "model": "m", "stream": stream, "max_tokens": 9, "messages": [{ "role": "user", "content": "x" }] });
        read_request(dialect, body.to_string().into()).unwrap()
    };
    let chunk = |delta: serde_json::Value| {
        let chunk = json!({ "id": "chatcmpl-123", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini",
            "choices": [{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": null }], "usage": null });
        Bytes::from(format!("data: {chunk}\n\n"))
    };
    let first = chunk(json!({ "role": "assistant", "content": "" }));
    let openai = chunk(json!({ "content": " token" }));
    let delta = r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":" token"}}"#;
    let anthropic = Bytes::from(format!("event: content_block_delta\ndata: {delta}\n\n"));
    let message = json!({ "type": "message_start", "message": { "id": "msg_1", "model": "m", "content": [], "usage": {} } });
    let block =
        json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } });
    let begin = Bytes::from(format!("data: {message}\n\ndata: {block}\n\n"));
    for caller in [Dialect::OpenaiChat, Dialect::Anthropic] {
        for (upstream, begin, event) in [
            (Dialect::OpenaiChat, &first, &openai),
            (Dialect::Anthropic, &begin, &anthropic),
        ] {
            for delivery in [Delivery::Stream, Delivery::Whole] {
                let request = ask(caller, delivery == Delivery::Stream);
                let mut answer = Answer::new(&request, upstream, delivery);
                answer.push(begin.clone()).unwrap();
                measure(
                    &format!("push {upstream} to {caller} {delivery:?}"),
                    2_000,
                    || {
                        black_box(answer.push(event.clone()).unwrap());
                    },
                );
            }
        }
    }
    for size in [1_000, 100_000] {
        let message = json!({ "role": "assistant", "content": "word ".repeat(size / 5) });
        let body = json!({ "id": "c", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{ "index": 0, "message": message, "finish_reason": "stop" }],
            "usage": { "prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12 } });
        let body = Bytes::from(body.to_string());
        let request = ask(Dialect::OpenaiChat, false);
        measure(&format!("read_answer {} B", body.len()), 500, || {
            black_box(read_answer(&request, Dialect::OpenaiChat, body.clone()).unwrap());
        });
    }
}
