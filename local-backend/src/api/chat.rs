//! OpenAI chat completions: requests in, chunks and whole answers out. The other chat APIs come through here: they are
//! rewritten as such requests first.

use super::{
    Answer, Ask, BadRequest, Ended, Head, Part, Summary, Writer, bad, data, error, fields, finish_reason,
    usage,
};
use crate::registry::Model;
use crate::tools::{self, Demand, Expected, Piece};
use engine::engine::{Order, Request, TokenLogprob};
use engine::grammar::Grammar;
use serde_json::{Map, Value, json};

/// Alternatives told for each token.
const TOP_LOGPROBS: i64 = 20;

/// Reads a chat request: checks it, renders the template, tokenizes.
///
/// # Errors
/// Names the field that is wrong.
pub(crate) fn read(body: &Value, model: &Model, order: &Order) -> Result<Ask, BadRequest> {
    let n = fields::whole(body, "n", 1..=model.limits.max_n as i64)?.unwrap_or(1);
    let (given, demand) = wanted_tools(body)?;
    let text = prompt(body, model, given)?;
    let tokens = model.tokenizer.encode(&text, true);
    model.check_length(tokens.len(), "messages")?;
    let budget = fields::thinking_budget(body)?.flatten();
    let form = form(body, model, given.zip(demand.as_ref()))?;
    let mut sampling = fields::sampling(body)?;
    let alternatives = fields::whole(body, "top_logprobs", 0..=TOP_LOGPROBS)?;
    sampling.logprobs = fields::flag(body, "logprobs")?.then_some(alternatives.unwrap_or(0) as usize);
    let stop = fields::stops(&body["stop"], "stop")?;
    let order = Order {
        priority: fields::priority(body)?,
        ..order.clone()
    };
    let max_tokens = fields::limit(body, &["max_completion_tokens", "max_tokens"])?;
    let ignore_eos = fields::flag(body, "ignore_eos")?;
    let request = |index: u64| {
        let mut sampling = sampling.clone();
        sampling.seed = sampling.seed.wrapping_add(index);
        Request {
            tokens: tokens.clone(),
            max_tokens,
            sampling,
            stop: stop.clone(),
            ignore_eos,
            shown: model.marks.clone(),
            thinking: fields::thinking(model, &text, budget),
            grammar: form.as_ref().map(Grammar::fork),
            order: order.clone(),
        }
    };
    Ok(Ask {
        requests: (0..n.cast_unsigned()).map(request).collect(),
        n: n as usize,
        stream: fields::flag(body, "stream")?,
        include_usage: body["stream_options"]["include_usage"] == true,
        tools: given.map(|tools| Expected::of(tools, model.tool_format)),
        stop,
    })
}

/// The tools that may be called, and what is demanded of them.
fn wanted_tools(body: &Value) -> Result<(Option<&Value>, Option<Demand>), BadRequest> {
    let tools = &body["tools"];
    match tools {
        Value::Null => return Ok((None, None)),
        Value::Array(list) if list.is_empty() => return Ok((None, None)),
        Value::Array(list) if list.iter().all(|tool| tool["function"]["name"].is_string()) => {}
        _ => return Err(bad("`tools` must be a list of functions with names", "tools")),
    }
    let demand = tools::demand(&body["tool_choice"], tools).map_err(|problem| bad(problem, "tool_choice"))?;
    Ok((demand.is_some().then_some(tools), demand))
}

/// The prompt that the model's template makes of the messages.
///
/// # Errors
/// Names the field that is wrong.
pub(crate) fn prompt(body: &Value, model: &Model, tools: Option<&Value>) -> Result<String, BadRequest> {
    let messages = body["messages"]
        .as_array()
        .filter(|messages| !messages.is_empty());
    let messages = messages.ok_or_else(|| bad("`messages` is missing or empty", "messages"))?;
    let template = model.template.as_ref();
    let template =
        template.ok_or_else(|| bad("this model has no chat template: use /v1/completions", "messages"))?;
    let told = if template.knows_tools { None } else { tools };
    let messages =
        tools::messages(messages, template.knows_tools, told).map_err(|problem| bad(problem, "messages"))?;
    let variables = match &body["chat_template_kwargs"] {
        Value::Null => json!({}),
        Value::Object(variables) => Value::Object(variables.clone()),
        _ => {
            return Err(bad(
                "`chat_template_kwargs` must be an object",
                "chat_template_kwargs",
            ));
        }
    };
    template
        .render_with(&messages, tools.filter(|_| template.knows_tools), &variables)
        .map_err(|problem| bad(problem, "messages"))
}

/// The form of the answer: a call that is demanded, or JSON.
fn form(
    body: &Value,
    model: &Model,
    tools: Option<(&Value, &Demand)>,
) -> Result<Option<Grammar>, BadRequest> {
    let is_special = |mark: &str| model.is_special(mark);
    let call = tools.and_then(|(tools, demand)| tools::grammar(tools, demand, model.tool_format, is_special));
    if let Some(call) = call {
        return fields::grammar(model, "tools", |grammars| grammars.lark(call.clone())).map(Some);
    }
    match fields::schema(body)? {
        Some(schema) => {
            fields::grammar(model, "response_format", |grammars| grammars.json(&schema)).map(Some)
        }
        None => Ok(None),
    }
}

/// Writes chunks and answers.
pub(crate) struct Chat {
    head: Head,
    include_usage: bool,
    /// For each answer, whether its first chunk went out, and its calls.
    choices: Vec<(bool, usize)>,
}

impl Chat {
    pub(crate) fn new(head: Head, ask: &Ask) -> Self {
        Self {
            head: Head {
                id: format!("chatcmpl-{}", head.id),
                ..head
            },
            include_usage: ask.include_usage,
            choices: vec![(false, 0); ask.requests.len()],
        }
    }

    fn object(&self, kind: &str, choices: Value) -> Value {
        let Head { id, model, created } = &self.head;
        json!({ "id": id, "object": kind, "created": created, "model": model, "choices": choices })
    }

    fn chunk(&self, choice: usize, delta: &Value, logprobs: &[TokenLogprob], finish: Option<&str>) -> String {
        let choice =
            json!({ "index": choice, "delta": delta, "logprobs": told(logprobs), "finish_reason": finish });
        data(&self.object("chat.completion.chunk", json!([choice])))
    }

    fn opening(&mut self, choice: usize) -> String {
        match std::mem::replace(&mut self.choices[choice].0, true) {
            true => String::new(),
            false => self.chunk(choice, &json!({ "role": "assistant", "content": "" }), &[], None),
        }
    }

    fn call(&self, choice: usize, index: usize, (name, arguments): (&str, &str)) -> Value {
        json!({ "id": self.head.call_id(choice, index), "type": "function", "function": { "name": name, "arguments": arguments } })
    }
}

impl Writer for Chat {
    fn begin(&mut self) -> String {
        String::new()
    }

    fn part(&mut self, part: &Part<'_>) -> String {
        let mut out = self.opening(part.choice);
        let delta = match part.piece {
            Piece::Text(text) => json!({ "content": text }),
            Piece::Reasoning(text) => json!({ "reasoning_content": text }),
            Piece::Call {
                index,
                name,
                arguments,
            } => {
                self.choices[part.choice].1 += 1;
                let mut call = self.call(part.choice, *index, (name, arguments));
                call["index"] = (*index).into();
                json!({ "tool_calls": [call] })
            }
        };
        out.push_str(&self.chunk(part.choice, &delta, part.logprobs, None));
        out
    }

    fn end_choice(&mut self, choice: usize, ended: &Ended) -> String {
        let mut out = self.opening(choice);
        let finish = finish_reason(ended.finish, self.choices[choice].1);
        out.push_str(&self.chunk(choice, &json!({}), &[], Some(finish)));
        out
    }

    fn end(&mut self, summary: &Summary) -> String {
        let mut out = String::new();
        if self.include_usage {
            let mut last = self.object("chat.completion.chunk", json!([]));
            last["usage"] = usage(summary);
            last["timings"] = summary.timings();
            out.push_str(&data(&last));
        }
        out.push_str("data: [DONE]\n\n");
        out
    }

    fn broken(&mut self, message: &str) -> String {
        data(&error(message, "server_error", None, None))
    }

    fn whole(&mut self, answers: &[Answer], summary: &Summary) -> Value {
        let choice = |(index, answer): (usize, &Answer)| {
            let mut message = Map::new();
            message.insert("role".into(), "assistant".into());
            let is_silent = answer.content.is_empty() && !answer.calls.is_empty();
            let content = if is_silent {
                Value::Null
            } else {
                answer.content.as_str().into()
            };
            message.insert("content".into(), content);
            if !answer.reasoning.is_empty() {
                message.insert("reasoning_content".into(), answer.reasoning.as_str().into());
            }
            if !answer.calls.is_empty() {
                let calls = answer.calls.iter().enumerate();
                let calls: Vec<Value> = calls
                    .map(|(at, call)| self.call(index, at, (&call.name, &call.arguments)))
                    .collect();
                message.insert("tool_calls".into(), calls.into());
            }
            let finish = answer
                .ended
                .map(|ended| finish_reason(ended.finish, answer.calls.len()));
            json!({ "index": index, "message": message, "logprobs": told(&answer.logprobs), "finish_reason": finish })
        };
        let choices: Vec<Value> = answers.iter().enumerate().map(choice).collect();
        let mut answer = self.object("chat.completion", choices.into());
        answer["usage"] = usage(summary);
        answer["timings"] = summary.timings();
        answer
    }
}

fn told(logprobs: &[TokenLogprob]) -> Value {
    match logprobs {
        [] => Value::Null,
        logprobs => json!({ "content": logprobs.iter().map(logprob).collect::<Vec<_>>() }),
    }
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
