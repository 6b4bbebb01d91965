//! Streams of OpenAI's endpoints that are not chat: completions and responses.

use super::call::Call;
use super::openai;
use super::play::Event;
use serde_json::{Value, json};
use std::sync::Arc;

/// The answer as events.
pub fn events(endpoint: &str, call: Arc<Call>) -> Box<dyn Iterator<Item = Event> + Send> {
    match endpoint {
        "/v1/completions" => Box::new(completion(call)),
        _ => Box::new(response(call)),
    }
}

fn completion(call: Arc<Call>) -> impl Iterator<Item = Event> + Send {
    let whole = openai::plain("/v1/completions", &call);
    let (wants_usage, reason) = (call.include_usage, whole["choices"][0]["finish_reason"].clone());
    let chunk = move |choices: Value, usage: Value| {
        let mut chunk = json!({"choices": choices});
        for name in ["id", "object", "created", "model"] {
            chunk[name] = whole[name].clone();
        }
        if wants_usage {
            chunk["usage"] = usage;
        }
        format!("data: {chunk}\n\n")
    };
    let part = |text: &str, reason: Value| json!([{"index": 0, "text": text, "logprobs": null, "finish_reason": reason}]);
    let mut last = vec![Event::plain(chunk(part("", reason), Value::Null))];
    if wants_usage {
        let usage = openai::plain("/v1/completions", &call)["usage"].clone();
        last.push(Event::plain(chunk(json!([]), usage)));
    }
    last.push(Event::plain("data: [DONE]\n\n".to_owned()));
    let pieces = (0..call.pieces())
        .map(move |index| Event::token(chunk(part(&call.piece(index), Value::Null), Value::Null)));
    pieces.chain(last)
}

fn response(call: Arc<Call>) -> impl Iterator<Item = Event> + Send {
    let whole = openai::response(&call);
    let mut head = whole.clone();
    (head["status"], head["output"], head["usage"]) = ("in_progress".into(), json!([]), Value::Null);
    head["incomplete_details"] = Value::Null;
    let item = whole["output"][0].clone();
    let mut begun = item.clone();
    (begun["status"], begun["content"]) = ("in_progress".into(), json!([]));
    let place = json!({"item_id": item["id"], "output_index": 0, "content_index": 0});
    let with = |kind: &str, base: &Value, (name, value): (&str, &Value)| {
        let mut event = base.clone();
        (event["type"], event[name]) = (kind.into(), value.clone());
        event
    };
    let empty = json!({"type": "output_text", "text": "", "annotations": []});
    let at = json!({"output_index": 0});
    let none = json!({});
    let first = vec![
        with("response.created", &none, ("response", &head)),
        with("response.in_progress", &none, ("response", &head)),
        with("response.output_item.added", &at, ("item", &begun)),
        with("response.content_part.added", &place, ("part", &empty)),
    ];
    let ended = match whole["status"].as_str() {
        Some("incomplete") => "response.incomplete",
        _ => "response.completed",
    };
    let part = &item["content"][0];
    let last = vec![
        with("response.output_text.done", &place, ("text", &part["text"])),
        with("response.content_part.done", &place, ("part", part)),
        with("response.output_item.done", &at, ("item", &item)),
        with(ended, &none, ("response", &whole)),
    ];
    let (beginning, pieces) = (first.len(), call.pieces() as usize);
    let written = |number: usize, mut event: Value| {
        event["sequence_number"] = number.into();
        format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap())
    };
    let begin = first
        .into_iter()
        .enumerate()
        .map(move |(number, event)| Event::plain(written(number, event)));
    // Spelled as the service spells it: the order of the fields is its own.
    let delta = move |index: u32| {
        format!(
            "event: response.output_text.delta\ndata: {{\"type\":\"response.output_text.delta\",\"sequence_number\":{},\
             \"item_id\":{},\"output_index\":0,\"content_index\":0,\"delta\":{},\"logprobs\":[]}}\n\n",
            beginning + index as usize,
            place["item_id"],
            json!(call.piece(index))
        )
    };
    let text = (0..pieces as u32).map(move |index| Event::token(delta(index)));
    let end = last
        .into_iter()
        .enumerate()
        .map(move |(at, event)| Event::plain(written(beginning + pieces + at, event)));
    begin.chain(text).chain(end)
}
