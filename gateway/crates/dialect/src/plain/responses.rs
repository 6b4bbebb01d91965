//! The events of a streamed response: what they say of usage and ending, and how to end one early.
//!
//! They pass as they are. Kept of them: the head and the items that are done, which an ending of our own has to repeat.

use crate::answer::AnswerError;
use crate::neutral::{Finish, Seen};
use crate::scan::string_lengths;
use crate::sse;
use crate::tap::Progress;
use crate::{error, plain};
use exchange::{Refusal, TokenClass, Usage};
use memchr::memmem::Finder;
use serde_json::{Value, json};
use std::sync::LazyLock;

/// The event that makes up nearly all of a stream.
const PIECE: &[u8] = b"{\"type\":\"response.output_text.delta\"";
static DELTA: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"delta\":\""));

/// What has been seen of a response.
#[derive(Debug, Default)]
pub(crate) struct Response {
    /// The response as its last event but the final one told it.
    head: Option<Value>,
    /// Items that are done.
    items: Vec<Value>,
    /// Events seen, which is the number of the next one.
    events: u64,
}

impl Response {
    /// Notes what one event's data says.
    ///
    /// # Errors
    /// The provider failed.
    pub(crate) fn event(&mut self, data: &[u8], progress: &mut Progress) -> Result<Seen, AnswerError> {
        self.events += 1;
        if let Some(bytes) = piece(data) {
            progress.generated(bytes);
            return Ok(Seen::Counted);
        }
        // What is no JSON is the caller's to judge.
        let Ok(event) = serde_json::from_slice::<Value>(data) else {
            return Ok(Seen::Counted);
        };
        if let Some(message) = error::in_stream(&event) {
            return Err(AnswerError::Reported(message));
        }
        let response = &event["response"];
        match event["type"].as_str().unwrap_or_default() {
            "response.created" | "response.queued" | "response.in_progress" => {
                progress.served(&response["model"], &Value::Null);
                self.head = Some(response.clone());
            }
            "response.output_item.done" => self.items.push(event["item"].clone()),
            "response.completed" | "response.incomplete" => {
                told(response, progress);
                progress.finish = Some(finish(response));
                progress.complete = true;
            }
            "response.failed" => {
                told(response, progress);
                let why = error::said(&response["error"]);
                let message = why.unwrap_or_else(|| "the response failed".into());
                return Err(AnswerError::Reported(message));
            }
            kind if kind.ends_with(".delta") => {
                progress.generated(event["delta"].as_str().map_or(0, str::len));
            }
            _ => {}
        }
        Ok(Seen::Event(event))
    }

    /// Ends the response where it is, as if its limit had been reached. The items in it are those that are done.
    pub(crate) fn end_early(&self, usage: &Usage) -> Vec<u8> {
        let (mut out, mut number) = (Vec::new(), self.events);
        let mut response = self.head.clone().unwrap_or_else(|| {
            json!({ "id": "resp_0", "object": "response", "created_at": 0, "model": "", "output": [], "error": null,
                "parallel_tool_calls": true, "tool_choice": "auto", "tools": [] })
        });
        if self.head.is_none() {
            response["status"] = "in_progress".into();
            write(
                &mut out,
                "response.created",
                number,
                &json!({ "response": response }),
            );
            number += 1;
        }
        response["status"] = "incomplete".into();
        response["incomplete_details"] = json!({ "reason": "max_output_tokens" });
        response["output"] = self.items.clone().into();
        response["usage"] = usage_value(usage);
        write(
            &mut out,
            "response.incomplete",
            number,
            &json!({ "response": response }),
        );
        out
    }

    /// The event that tells why the stream breaks off.
    pub(crate) fn error_event(&self, refusal: &Refusal) -> Vec<u8> {
        let mut out = Vec::new();
        let told =
            json!({ "code": refusal.kind.as_str(), "message": refusal.message, "param": refusal.param });
        write(&mut out, "error", self.events, &told);
        out
    }
}

/// A finished response as a stream: its last event says all there is.
pub(crate) fn as_stream(response: Value) -> Vec<u8> {
    let kind = match finish(&response) {
        Finish::Length | Finish::Refusal => "response.incomplete",
        _ => "response.completed",
    };
    let mut out = Vec::new();
    write(&mut out, kind, 0, &json!({ "response": response }));
    out
}

fn write(out: &mut Vec<u8>, kind: &str, number: u64, more: &Value) {
    let mut event = json!({ "type": kind, "sequence_number": number });
    for (name, value) in more.as_object().into_iter().flatten() {
        event[name] = value.clone();
    }
    sse::write(out, Some(kind), &event);
}

/// What a finished response says of itself.
fn told(response: &Value, progress: &mut Progress) {
    progress.served(&response["model"], &response["service_tier"]);
    if let Some(usage) = plain::responses_usage(&response["usage"]) {
        progress.usage = Some(usage);
        progress.told_cost(&response["usage"]);
    }
}

fn finish(response: &Value) -> Finish {
    match response["incomplete_details"]["reason"].as_str() {
        Some("content_filter") => Finish::Refusal,
        Some(_) => Finish::Length,
        None => Finish::Stop,
    }
}

/// The bytes of text in a delta of text, in the spelling that OpenAI uses. Inside a string the needle cannot be found, for
/// its quotes would be escaped there.
fn piece(data: &[u8]) -> Option<usize> {
    let rest = data.strip_prefix(PIECE)?;
    let start = DELTA.find(rest)? + DELTA.needle().len();
    string_lengths(&rest[start..]).map(|(_, bytes)| bytes)
}

fn usage_value(usage: &Usage) -> Value {
    let (input, output) = (usage.input_total(), usage.output_total());
    json!({
        "input_tokens": input, "output_tokens": output, "total_tokens": input + output,
        "input_tokens_details": { "cached_tokens": usage.get(TokenClass::CacheRead) },
        "output_tokens_details": { "reasoning_tokens": usage.get(TokenClass::Reasoning) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Answer, Delivery, encode, read_answer, read_surface};
    use bytes::Bytes;
    use exchange::{Dialect, RefusalKind, Surface};

    fn answer(surface: Surface, body: &Value) -> Answer {
        let request = read_surface(surface, body.to_string().into()).unwrap();
        Answer::new(&request, Dialect::OpenaiChat, Delivery::Stream)
    }

    fn responses() -> Answer {
        answer(
            Surface::Responses,
            &json!({"model": "m", "input": "x", "stream": true}),
        )
    }

    /// A stream as OpenAI writes it, up to the end or without it.
    fn stream(end: Option<Value>) -> String {
        let head = json!({"id": "resp_1", "object": "response", "status": "in_progress", "model": "m-1", "output": []});
        let delta = |text: &str, number: u32| {
            format!(
                "event: response.output_text.delta\ndata: {{\"type\":\"response.output_text.delta\",\"sequence_number\":{number},\
                 \"item_id\":\"msg_1\",\"output_index\":0,\"content_index\":0,\"delta\":{},\"logprobs\":[],\"obfuscation\":\"xy\"}}\n\n",
                json!(text)
            )
        };
        let event = |value: Value| format!("event: {}\ndata: {value}\n\n", value["type"].as_str().unwrap());
        let mut out = event(json!({"type": "response.created", "sequence_number": 0, "response": head}));
        out += &delta("Hi \"delta\":\"", 1);
        out += &delta("ü\n", 2);
        out += &event(
            json!({"type": "response.function_call_arguments.delta", "sequence_number": 3, "item_id": "fc_1",
            "output_index": 1, "delta": "{}"}),
        );
        out += &event(
            json!({"type": "response.output_item.done", "sequence_number": 4, "output_index": 0,
            "item": {"id": "msg_1", "type": "message"}}),
        );
        if let Some(end) = end {
            let mut response = head;
            for (name, value) in end["response"].as_object().unwrap() {
                response[name] = value.clone();
            }
            out += &event(json!({"type": end["type"], "sequence_number": 5, "response": response}));
        }
        out
    }

    fn usage() -> Value {
        json!({"input_tokens": 9, "output_tokens": 4, "total_tokens": 13, "output_tokens_details": {"reasoning_tokens": 1}})
    }

    #[test]
    fn a_stream_passes_as_it_is_and_tells_its_usage_however_it_is_cut() {
        let end = json!({"type": "response.completed",
            "response": {"status": "completed", "service_tier": "flex", "usage": usage()}});
        let text = stream(Some(end));
        for size in [1, 7, 100, text.len()] {
            let (mut answer, mut passed) = (responses(), Vec::new());
            for piece in text.as_bytes().chunks(size) {
                passed.extend_from_slice(&answer.push(Bytes::copy_from_slice(piece)).unwrap());
            }
            passed.extend_from_slice(&answer.finish().unwrap());
            assert_eq!(String::from_utf8(passed).unwrap(), text);
            let progress = answer.progress();
            let told = progress.usage.unwrap();
            assert_eq!(
                (
                    told.input_total(),
                    told.output_total(),
                    told.get(TokenClass::Reasoning)
                ),
                (9, 4, 1)
            );
            assert_eq!((progress.deltas, progress.output_bytes), (3, 12 + 3 + 2));
            assert_eq!(progress.finish, Some(Finish::Stop));
            assert_eq!(progress.service_tier.as_deref(), Some("flex"));
            assert_eq!(progress.model_served.as_deref(), Some("m-1"));
        }
    }

    #[test]
    fn one_that_has_no_end_is_cut_and_one_that_failed_says_why() {
        let mut answer = responses();
        answer.push(stream(None).into()).unwrap();
        assert_eq!(answer.finish(), Err(AnswerError::Cut));
        let end = json!({"type": "response.failed",
            "response": {"status": "failed", "error": {"code": "server_error", "message": "no luck"}}});
        let mut answer = responses();
        let passed = answer.push(stream(Some(end)).into()).unwrap();
        assert_eq!(passed, stream(None), "what came before it");
        assert_eq!(answer.finish(), Err(AnswerError::Reported("no luck".into())));
        let refusal = Refusal::new(RefusalKind::UpstreamFailed, "no luck");
        let event = answer.error_event(&refusal);
        let data = event.strip_prefix(b"event: error\ndata: ").unwrap();
        let told: Value = serde_json::from_slice(data).unwrap();
        assert_eq!(
            told,
            json!({"type": "error", "sequence_number": 6, "code": refusal.kind.as_str(), "message": "no luck", "param": null})
        );
    }

    #[test]
    fn money_that_ends_is_a_limit_that_was_reached() {
        let mut answer = responses();
        answer.push(stream(None).into()).unwrap();
        let tail = answer.end_by_budget();
        let data = tail.strip_prefix(b"event: response.incomplete\ndata: ").unwrap();
        let told: Value = serde_json::from_slice(data).unwrap();
        let response = &told["response"];
        assert_eq!(
            (&told["sequence_number"], &response["id"]),
            (&json!(5), &json!("resp_1"))
        );
        assert_eq!(response["incomplete_details"]["reason"], "max_output_tokens");
        assert_eq!(response["output"], json!([{"id": "msg_1", "type": "message"}]));
        assert_eq!(response["usage"]["output_tokens"], 4);
        let early = responses().end_by_budget();
        assert!(early.starts_with(b"event: response.created\n"));
    }

    #[test]
    fn completions_are_asked_for_their_usage_which_does_not_go_on() {
        let body = json!({"model": "m", "prompt": "x", "stream": true});
        let request = read_surface(Surface::Completions, body.to_string().into()).unwrap();
        let target = crate::Target {
            dialect: Dialect::OpenaiChat,
            model: "m",
            max_output_tokens: None,
            thinking: None,
            stream: true,
            can_think: true,
        };
        let sent: Value = serde_json::from_slice(&encode(&request, &target).unwrap().body).unwrap();
        assert_eq!(sent["stream_options"], json!({"include_usage": true}));
        let mut answer = answer(Surface::Completions, &body);
        let chunk = |choices: Value, usage: Value| {
            let chunk = json!({"id": "cmpl-1", "object": "text_completion", "model": "m", "choices": choices, "usage": usage});
            format!("data: {chunk}\n\n")
        };
        let text = chunk(
            json!([{"index": 0, "text": "one two", "finish_reason": "stop"}]),
            json!(null),
        );
        let usage = chunk(json!([]), json!({"prompt_tokens": 3, "completion_tokens": 2}));
        let passed = answer
            .push(format!("{text}{usage}data: [DONE]\n\n").into())
            .unwrap();
        assert_eq!(passed, format!("{text}data: [DONE]\n\n"));
        assert_eq!(answer.finish().unwrap(), "");
        let progress = answer.progress();
        assert_eq!(
            (progress.output_bytes, progress.usage.unwrap().output_total()),
            (7, 2)
        );
        let early = String::from_utf8(answer.end_by_budget().to_vec()).unwrap();
        assert!(
            early.contains("text_completion") && early.contains(r#""text":"""#),
            "{early}"
        );
    }

    #[test]
    fn a_whole_answer_to_who_asked_for_a_stream_becomes_one() {
        let request = |surface, content: &str| {
            let body = json!({"model": "m", content: "x", "stream": true});
            read_surface(surface, body.to_string().into()).unwrap()
        };
        let read = |request: &crate::Request, body: Value| {
            let (stream, progress) =
                read_answer(request, Dialect::OpenaiChat, body.to_string().into()).unwrap();
            (String::from_utf8(stream.to_vec()).unwrap(), progress)
        };
        let whole = json!({"id": "resp_1", "status": "completed", "output": [], "usage": usage()});
        let asked = request(Surface::Responses, "input");
        let (stream, progress) = read(&asked, whole.clone());
        let data = stream.strip_prefix("event: response.completed\ndata: ").unwrap();
        let event: Value = serde_json::from_str(data).unwrap();
        assert_eq!(event["response"], whole);
        assert_eq!(progress.usage.unwrap().output_total(), 4);
        let whole = json!({"id": "cmpl-1", "choices": [{"index": 0, "text": "hi"}]});
        let asked = request(Surface::Completions, "prompt");
        let (stream, _) = read(&asked, whole.clone());
        assert_eq!(stream, format!("data: {whole}\n\ndata: [DONE]\n\n"));
    }
}
