//! The Anthropic messages wire format, as `api.anthropic.com` sends it.

use super::call::{Call, Content, Stop};
use super::play::Event;
use serde_json::{Value, json};
use std::sync::Arc;

fn stop_reason(call: &Call) -> &'static str {
    match call.stop {
        Stop::Natural => "end_turn",
        Stop::Limit => "max_tokens",
        Stop::Tool => "tool_use",
    }
}

fn usage(call: &Call, output: u64) -> Value {
    json!({
        "input_tokens": call.input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": output,
        "service_tier": "standard",
    })
}

fn message_id(call: &Call) -> String {
    format!("msg_{:024x}", call.id)
}

fn tool_id(call: &Call) -> String {
    format!("toolu_{:024x}", call.id)
}

/// Signatures are opaque base64 in the real service; callers must hand them back unchanged.
fn signature(call: &Call) -> String {
    format!("EqQBCkYIAxgCKkA{:032x}==", call.id)
}

/// The answer in one piece.
pub fn whole(call: &Call) -> Vec<u8> {
    let mut content = Vec::new();
    if call.thinking > 0 {
        content.push(json!({"type": "thinking", "thinking": call.thought(), "signature": signature(call)}));
    }
    content.push(match &call.content {
        Content::Tool { name, arguments } => {
            let input: Value = serde_json::from_str(arguments).unwrap();
            json!({"type": "tool_use", "id": tool_id(call), "name": name, "input": input})
        }
        _ => json!({"type": "text", "text": call.whole()}),
    });
    let mut answer = json!({
        "id": message_id(call),
        "type": "message",
        "role": "assistant",
        "model": call.model,
        "content": content,
        "stop_reason": stop_reason(call),
        "stop_sequence": null,
    });
    if call.reports_usage() {
        answer["usage"] = usage(call, call.reported_output());
    }
    serde_json::to_vec(&answer).unwrap()
}

fn event(name: &str, data: impl std::fmt::Display) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

fn block_start(index: u32, block: &Value) -> Event {
    let data = json!({"type": "content_block_start", "index": index, "content_block": block});
    Event::plain(event("content_block_start", data))
}

fn block_stop(index: u32) -> Event {
    Event::plain(event(
        "content_block_stop",
        json!({"type": "content_block_stop", "index": index}),
    ))
}

fn delta(index: u32, delta: impl std::fmt::Display) -> String {
    event(
        "content_block_delta",
        format_args!("{{\"type\":\"content_block_delta\",\"index\":{index},\"delta\":{delta}}}"),
    )
}

fn message_start(call: &Call) -> Event {
    let mut message = json!({
        "id": message_id(call), "type": "message", "role": "assistant", "model": call.model,
        "content": [], "stop_reason": null, "stop_sequence": null,
    });
    if call.reports_usage() {
        message["usage"] = usage(call, 1);
    }
    Event::plain(event(
        "message_start",
        json!({"type": "message_start", "message": message}),
    ))
}

fn thinking(call: &Arc<Call>) -> impl Iterator<Item = Event> + Send + use<> {
    let present = call.thinking > 0;
    let start =
        present.then(|| block_start(0, &json!({"type": "thinking", "thinking": "", "signature": ""})));
    let tokens = (0..call.thinking).map(|index| {
        Event::token(delta(
            0,
            format_args!("{{\"type\":\"thinking_delta\",\"thinking\":\"think{index} \"}}"),
        ))
    });
    let sign = json!({"type": "signature_delta", "signature": signature(call)});
    let stop = present.then(|| [Event::plain(delta(0, sign)), block_stop(0)]);
    start.into_iter().chain(tokens).chain(stop.into_iter().flatten())
}

/// The answer as events: `message_start`, the blocks with a `ping` after the first has started, `message_delta` with the
/// final usage, `message_stop`.
pub fn events(call: Arc<Call>) -> impl Iterator<Item = Event> + Send {
    let index = u32::from(call.thinking > 0);
    let block = match &call.content {
        Content::Tool { name, .. } => {
            json!({"type": "tool_use", "id": tool_id(&call), "name": name, "input": {}})
        }
        _ => json!({"type": "text", "text": ""}),
    };
    let open = [
        block_start(index, &block),
        Event::plain(event("ping", json!({"type": "ping"}))),
    ];
    let pieces = {
        let call = call.clone();
        (0..call.pieces()).map(move |piece| {
            let text = json!(call.piece(piece));
            Event::token(match call.content {
                Content::Tool { .. } => delta(
                    index,
                    format_args!("{{\"type\":\"input_json_delta\",\"partial_json\":{text}}}"),
                ),
                _ => delta(index, format_args!("{{\"type\":\"text_delta\",\"text\":{text}}}")),
            })
        })
    };
    let mut end = json!({
        "type": "message_delta",
        "delta": {"stop_reason": stop_reason(&call), "stop_sequence": null},
    });
    if call.reports_usage() {
        end["usage"] = usage(&call, call.reported_output());
    }
    let close = [
        block_stop(index),
        Event::plain(event("message_delta", end)),
        Event::plain(event("message_stop", json!({"type": "message_stop"}))),
    ];
    std::iter::once(message_start(&call))
        .chain(thinking(&call))
        .chain(open)
        .chain(pieces)
        .chain(close)
}

/// An error body with the type the service uses for `status`.
pub fn error(status: u16, message: &str) -> Vec<u8> {
    let kind = match status {
        400 => "invalid_request_error",
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        _ => "api_error",
    };
    let error = json!({
        "type": "error", "error": {"type": kind, "message": message}, "request_id": "req_011CSHoEeqs5C35K2UUqR7Fy",
    });
    serde_json::to_vec(&error).unwrap()
}
