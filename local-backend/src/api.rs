//! The OpenAI chat completion format: requests in, chunks and whole answers out.

use crate::tools::{self, Parser, Piece};
use engine::engine::{Counts, Event, Finish, Request, TokenLogprob};
use engine::sample::Sampling;
use engine::text::{ChatTemplate, Tokenizer};
use serde_json::{Map, Value, json};

/// What is wrong with a request.
#[derive(Debug)]
pub(crate) struct BadRequest {
    pub(crate) message: String,
    pub(crate) param: Option<&'static str>,
    pub(crate) code: Option<&'static str>,
}

fn bad(message: impl Into<String>, param: &'static str) -> BadRequest {
    BadRequest {
        message: message.into(),
        param: Some(param),
        code: None,
    }
}

/// A request, read.
pub(crate) struct Chat {
    pub(crate) engine: Request,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) has_tools: bool,
}

/// What reading needs of the model.
pub(crate) struct Reading<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) template: Option<&'a ChatTemplate>,
    pub(crate) context_tokens: usize,
}

impl Chat {
    /// Reads a chat request: checks it, renders the template, tokenizes.
    pub(crate) fn read(body: &[u8], reading: &Reading<'_>) -> Result<Self, BadRequest> {
        let body: Value = serde_json::from_slice(body).map_err(|error| BadRequest {
            message: format!("the body is not valid JSON: {error}"),
            param: None,
            code: None,
        })?;
        let messages = body["messages"]
            .as_array()
            .filter(|messages| !messages.is_empty());
        let messages = messages.ok_or_else(|| bad("`messages` is missing or empty", "messages"))?;
        if body["n"].as_u64().is_some_and(|n| n != 1) {
            return Err(bad("this server gives one answer per request", "n"));
        }
        let template = reading
            .template
            .ok_or_else(|| bad("this model has no chat template", "messages"))?;
        let is_off = body["tool_choice"] == "none";
        let tools = Some(&body["tools"])
            .filter(|tools| tools.as_array().is_some_and(|tools| !tools.is_empty()) && !is_off);
        let told = if template.knows_tools { None } else { tools };
        let messages = tools::messages(messages, told).map_err(|message| bad(message, "messages"))?;
        let text = template
            .render(&messages, tools.filter(|_| template.knows_tools))
            .map_err(|error| bad(error, "messages"))?;
        let tokens = reading.tokenizer.encode(&text, true);
        if tokens.len() >= reading.context_tokens {
            return Err(BadRequest {
                message: format!(
                    "the prompt has {} tokens; this model reads {}",
                    tokens.len(),
                    reading.context_tokens
                ),
                param: Some("messages"),
                code: Some("context_length_exceeded"),
            });
        }
        let max = [&body["max_completion_tokens"], &body["max_tokens"]]
            .into_iter()
            .find_map(Value::as_u64);
        Ok(Self {
            engine: Request {
                tokens,
                max_tokens: max
                    .map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX))
                    .max(1),
                sampling: sampling(&body)?,
                stop: stops(&body["stop"])?,
                ignore_eos: body["ignore_eos"] == true,
                ..Request::default()
            },
            stream: body["stream"] == true,
            include_usage: body["stream_options"]["include_usage"] == true,
            has_tools: tools.is_some(),
        })
    }
}

fn number(
    body: &Value,
    name: &'static str,
    range: std::ops::RangeInclusive<f64>,
) -> Result<Option<f32>, BadRequest> {
    match &body[name] {
        Value::Null => Ok(None),
        value => match value.as_f64().filter(|value| range.contains(value)) {
            Some(value) => Ok(Some(value as f32)),
            None => Err(bad(
                format!(
                    "`{name}` must be a number from {} to {}",
                    range.start(),
                    range.end()
                ),
                name,
            )),
        },
    }
}

fn sampling(body: &Value) -> Result<Sampling, BadRequest> {
    let usual = Sampling::default();
    let mut logit_bias = std::collections::HashMap::new();
    for (token, bias) in body["logit_bias"].as_object().into_iter().flatten() {
        let id = token
            .parse()
            .map_err(|_| bad("keys of `logit_bias` must be token ids", "logit_bias"))?;
        logit_bias.insert(id, bias.as_f64().unwrap_or(0.0) as f32);
    }
    Ok(Sampling {
        temperature: number(body, "temperature", 0.0..=2.0)?.unwrap_or(usual.temperature),
        top_p: number(body, "top_p", 0.0..=1.0)?.unwrap_or(usual.top_p),
        top_k: body["top_k"].as_u64().unwrap_or(0) as usize,
        min_p: number(body, "min_p", 0.0..=1.0)?.unwrap_or(usual.min_p),
        presence_penalty: number(body, "presence_penalty", -2.0..=2.0)?.unwrap_or(usual.presence_penalty),
        frequency_penalty: number(body, "frequency_penalty", -2.0..=2.0)?.unwrap_or(usual.frequency_penalty),
        repetition_penalty: number(body, "repetition_penalty", 0.01..=10.0)?
            .unwrap_or(usual.repetition_penalty),
        logit_bias,
        logprobs: (body["logprobs"] == true)
            .then(|| body["top_logprobs"].as_u64().unwrap_or(0).min(20) as usize),
        // Without a seed every answer should differ.
        seed: body["seed"].as_i64().map_or_else(clock_seed, i64::cast_unsigned),
    })
}

fn clock_seed() -> u64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    since.as_nanos() as u64
}

fn stops(value: &Value) -> Result<Vec<String>, BadRequest> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::String(stop) => Ok(vec![stop.clone()]),
        Value::Array(stops) => {
            let texts = stops.iter().map(|stop| stop.as_str().map(ToOwned::to_owned));
            texts
                .collect::<Option<_>>()
                .ok_or_else(|| bad("`stop` must be texts", "stop"))
        }
        _ => Err(bad("`stop` must be a text or several", "stop")),
    }
}

/// Turns engine events into the answer.
pub(crate) struct Writer {
    id: String,
    model: String,
    created: u64,
    include_usage: bool,
    parser: Parser,
    begun: bool,
}

/// Everything that an answer consists of, for those who want it whole.
#[derive(Default)]
pub(crate) struct Whole {
    content: String,
    calls: Vec<Value>,
    logprobs: Vec<Value>,
}

impl Writer {
    pub(crate) fn new(id: u64, model: &str, chat: &Chat) -> Self {
        let created = clock_seed() / 1_000_000_000;
        let (id, model) = (format!("chatcmpl-{created:x}{id:x}"), model.to_owned());
        Self {
            id,
            model,
            created,
            include_usage: chat.include_usage,
            parser: Parser::new(chat.has_tools),
            begun: false,
        }
    }

    fn object(&self, kind: &str, choices: Value) -> Value {
        json!({ "id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices })
    }

    fn chunk(&self, delta: &Value, logprobs: &[Value], finish: Option<&str>) -> String {
        let logprobs = if logprobs.is_empty() {
            Value::Null
        } else {
            json!({ "content": logprobs })
        };
        let choice = json!({ "index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish });
        format!(
            "data: {}\n\n",
            self.object("chat.completion.chunk", json!([choice]))
        )
    }

    /// The chunks for an event; after the last comes `[DONE]`.
    pub(crate) fn stream(&mut self, event: Event) -> String {
        let mut out = String::new();
        if !std::mem::replace(&mut self.begun, true) {
            out.push_str(&self.chunk(&json!({ "role": "assistant", "content": "" }), &[], None));
        }
        match event {
            Event::Text { text, logprobs, .. } => {
                let mut logprobs: Vec<Value> = logprobs.iter().map(logprob).collect();
                let pieces = self.parser.push(&text);
                if pieces.is_empty() && !logprobs.is_empty() {
                    out.push_str(&self.chunk(&json!({ "content": "" }), &logprobs, None));
                }
                for piece in pieces {
                    out.push_str(&self.chunk(&delta(&piece), &std::mem::take(&mut logprobs), None));
                }
            }
            Event::Finished {
                finish,
                counts,
                timings,
            } => {
                for piece in self.parser.finish() {
                    out.push_str(&self.chunk(&delta(&piece), &[], None));
                }
                let finish = reason(finish, self.parser.calls);
                out.push_str(&self.chunk(&json!({}), &[], Some(finish)));
                if self.include_usage {
                    let mut last = self.object("chat.completion.chunk", json!([]));
                    last["usage"] = usage(&counts);
                    last["timings"] = json!(timings);
                    out.push_str(&format!("data: {last}\n\n"));
                }
                out.push_str("data: [DONE]\n\n");
            }
            Event::Failed(message) => {
                out.push_str(&format!(
                    "data: {}\n\n",
                    error(&message, "server_error", None, None)
                ));
            }
        }
        out
    }

    /// Takes an event of an answer that is wanted whole; returns it when it is.
    pub(crate) fn whole(&mut self, whole: &mut Whole, event: Event) -> Option<Value> {
        let (pieces, finished) = match event {
            Event::Text { text, logprobs, .. } => {
                whole.logprobs.extend(logprobs.iter().map(logprob));
                (self.parser.push(&text), None)
            }
            Event::Finished {
                finish,
                counts,
                timings,
            } => (self.parser.finish(), Some((finish, counts, timings))),
            Event::Failed(message) => return Some(error(&message, "server_error", None, None)),
        };
        for piece in pieces {
            match piece {
                Piece::Text(text) => whole.content.push_str(&text),
                Piece::Call { .. } => {
                    let mut call = delta(&piece)["tool_calls"][0].take();
                    call.as_object_mut().map(|call| call.remove("index"));
                    whole.calls.push(call);
                }
            }
        }
        let (finish, counts, timings) = finished?;
        let mut message = Map::new();
        message.insert("role".into(), "assistant".into());
        let is_silent = whole.content.is_empty() && !whole.calls.is_empty();
        message.insert(
            "content".into(),
            if is_silent {
                Value::Null
            } else {
                whole.content.as_str().into()
            },
        );
        if !whole.calls.is_empty() {
            message.insert("tool_calls".into(), std::mem::take(&mut whole.calls).into());
        }
        let logprobs = std::mem::take(&mut whole.logprobs);
        let logprobs = if logprobs.is_empty() {
            Value::Null
        } else {
            json!({ "content": logprobs })
        };
        let finish = reason(finish, self.parser.calls);
        let choice = json!({ "index": 0, "message": message, "logprobs": logprobs, "finish_reason": finish });
        let mut answer = self.object("chat.completion", json!([choice]));
        answer["usage"] = usage(&counts);
        answer["timings"] = json!(timings);
        Some(answer)
    }
}

fn reason(finish: Finish, calls: usize) -> &'static str {
    match finish {
        Finish::Stop if calls > 0 => "tool_calls",
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

fn delta(piece: &Piece) -> Value {
    match piece {
        Piece::Text(text) => json!({ "content": text }),
        Piece::Call {
            index,
            name,
            arguments,
        } => {
            let function = json!({ "name": name, "arguments": arguments });
            json!({ "tool_calls": [{ "index": index, "id": format!("call_{index}"), "type": "function", "function": function }] })
        }
    }
}

fn usage(counts: &Counts) -> Value {
    json!({ "prompt_tokens": counts.prompt, "completion_tokens": counts.output, "total_tokens": counts.prompt + counts.output,
        "prompt_tokens_details": { "cached_tokens": counts.cached } })
}

fn logprob(token: &TokenLogprob) -> Value {
    let one = |bytes: &[u8], logprob: f32| json!({ "token": String::from_utf8_lossy(bytes), "logprob": logprob, "bytes": bytes });
    let mut shown = one(&token.bytes, token.logprob);
    shown["top_logprobs"] = token
        .top
        .iter()
        .map(|(bytes, logprob)| one(bytes, *logprob))
        .collect();
    shown
}

/// An error in OpenAI's shape.
pub(crate) fn error(message: &str, kind: &str, param: Option<&str>, code: Option<&str>) -> Value {
    json!({ "error": { "message": message, "type": kind, "param": param, "code": code } })
}
