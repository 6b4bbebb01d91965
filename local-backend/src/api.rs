//! What every API has in common: a request comes down to prompts and wishes, an answer to pieces. Owns that middle form;
//! the modules below turn one wire format into it and back. Refuses to know sockets and the engine's thread.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod fields;
pub(crate) mod messages;
pub(crate) mod responses;

use crate::tools::{Expected, Piece};
use engine::engine::{Counts, Finish, Request, Timings, TokenLogprob};
use serde_json::{Value, json};

/// What is wrong with a request.
#[derive(Debug)]
pub(crate) struct BadRequest {
    pub(crate) message: String,
    pub(crate) param: Option<&'static str>,
    pub(crate) code: Option<&'static str>,
}

pub(crate) fn bad(message: impl Into<String>, param: &'static str) -> BadRequest {
    BadRequest {
        message: message.into(),
        param: Some(param),
        code: None,
    }
}

/// A body as JSON.
///
/// # Errors
/// It is none, or no object.
pub(crate) fn json_of(body: &[u8]) -> Result<Value, BadRequest> {
    let wrong = |message: String| BadRequest {
        message,
        param: None,
        code: None,
    };
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| wrong(format!("the body is not valid JSON: {error}")))?;
    match value.is_object() {
        true => Ok(value),
        false => Err(wrong("the body must be a JSON object".into())),
    }
}

/// A request that is understood: one engine request for each answer that is wanted.
pub(crate) struct Ask {
    pub(crate) requests: Vec<Request>,
    /// So many of them, one after the other, answer the same prompt.
    pub(crate) n: usize,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    /// The calls that may come, where tools were given.
    pub(crate) tools: Option<Expected>,
    /// The stop strings, to tell which one came.
    pub(crate) stop: Vec<String>,
}

/// What one answer came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) content: String,
    pub(crate) reasoning: String,
    pub(crate) calls: Vec<Call>,
    pub(crate) logprobs: Vec<TokenLogprob>,
    pub(crate) ended: Option<Ended>,
}

/// A call of a tool.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) arguments: String,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) finish: Finish,
    pub(crate) counts: Counts,
    pub(crate) timings: Timings,
}

/// What all answers to a request came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) counts: Counts,
    pub(crate) timings: Timings,
    pub(crate) tokenize_ms: f64,
    /// What they cost, at the configured price of the machine.
    pub(crate) nanodollars: u64,
}

impl Summary {
    /// llama.cpp's `timings`, of the first answer, and what is ours.
    pub(crate) fn timings(&self) -> Value {
        let mut timings = json!(self.timings);
        timings["tokenize_ms"] = self.tokenize_ms.into();
        timings["cost_nanodollars"] = self.nanodollars.into();
        timings
    }
}

/// A piece of answer `choice`, with the likelihoods of its tokens.
pub(crate) struct Part<'a> {
    pub(crate) choice: usize,
    pub(crate) piece: &'a Piece,
    pub(crate) logprobs: &'a [TokenLogprob],
}

/// Writes an answer in the form of one API. A stream is `begin`, `part`s, an `end_choice` for each answer, `end`.
pub(crate) trait Writer: Send + Sync {
    fn begin(&mut self) -> String;
    fn part(&mut self, part: &Part<'_>) -> String;
    fn end_choice(&mut self, choice: usize, ended: &Ended) -> String;
    fn end(&mut self, summary: &Summary) -> String;
    /// The stream cannot go on.
    fn broken(&mut self, message: &str) -> String;
    /// The answer in one.
    fn whole(&mut self, answers: &[Answer], summary: &Summary) -> Value;
}

/// Names and times of an answer.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// A number that no other answer has.
    pub(crate) id: String,
    pub(crate) model: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
}

impl Head {
    /// The identity of a call: no other call, of this or another answer, has it.
    fn call_id(&self, choice: usize, index: usize) -> String {
        format!("call_{}_{choice}_{index}", self.id)
    }
}

/// An error in OpenAI's shape.
pub(crate) fn error(message: &str, kind: &str, param: Option<&str>, code: Option<&str>) -> Value {
    json!({ "error": { "message": message, "type": kind, "param": param, "code": code } })
}

/// OpenAI's word for an ending.
fn finish_reason(finish: Finish, calls: usize) -> &'static str {
    match finish {
        Finish::Length => "length",
        Finish::Stop | Finish::Sequence(_) if calls > 0 => "tool_calls",
        Finish::Stop | Finish::Sequence(_) => "stop",
    }
}

/// OpenAI's usage; with what it cost.
fn usage(summary: &Summary) -> Value {
    let Counts {
        prompt,
        cached,
        output,
        reasoning,
    } = summary.counts;
    json!({ "prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output,
        "prompt_tokens_details": { "cached_tokens": cached },
        "completion_tokens_details": { "reasoning_tokens": reasoning },
        "x_local_cost_nanodollars": summary.nanodollars })
}

fn data(value: &Value) -> String {
    format!("data: {value}\n\n")
}

fn event(name: &str, value: &Value) -> String {
    format!("event: {name}\ndata: {value}\n\n")
}
