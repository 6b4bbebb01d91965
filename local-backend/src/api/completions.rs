//! OpenAI's older completions: a text, or several, and what follows.

use super::{
    Answer, Ask, BadRequest, Ended, Head, Part, Summary, Writer, bad, data, error, fields, finish_reason,
    usage,
};
use crate::registry::Model;
use crate::tools::Piece;
use engine::engine::{Order, Request, TokenLogprob};
use serde_json::{Value, json};

/// Prompts of a request.
const PROMPTS: usize = 64;
/// Alternatives told for each token.
const TOP_LOGPROBS: i64 = 20;

/// Reads a completion request.
///
/// # Errors
/// Names the field that is wrong.
pub(crate) fn read(body: &Value, model: &Model, order: &Order) -> Result<Ask, BadRequest> {
    for name in ["suffix", "best_of"] {
        if !body[name].is_null() && body[name] != 1 {
            return Err(bad(format!("`{name}` is not served here"), "prompt"));
        }
    }
    if fields::flag(body, "echo")? {
        return Err(bad("`echo` is not served here", "echo"));
    }
    let n = fields::whole(body, "n", 1..=model.limits.max_n as i64)?
        .unwrap_or(1)
        .cast_unsigned();
    let prompts = prompts(&body["prompt"], model)?;
    let form = match fields::schema(body)? {
        Some(schema) => Some(fields::grammar(model, "response_format", |grammars| {
            grammars.json(&schema)
        })?),
        None => None,
    };
    let mut sampling = fields::sampling(body)?;
    sampling.logprobs = fields::whole(body, "logprobs", 0..=TOP_LOGPROBS)?.map(|count| count as usize);
    let stop = fields::stops(&body["stop"], "stop")?;
    let order = Order {
        priority: fields::priority(body)?,
        ..order.clone()
    };
    // OpenAI's default here.
    let max_tokens = if body["max_tokens"].is_null() {
        16
    } else {
        fields::limit(body, &["max_tokens"])?
    };
    let ignore_eos = fields::flag(body, "ignore_eos")?;
    let mut requests = Vec::new();
    for tokens in prompts {
        model.check_length(tokens.len(), "prompt")?;
        for index in 0..n {
            let mut sampling = sampling.clone();
            sampling.seed = sampling.seed.wrapping_add(index);
            requests.push(Request {
                tokens: tokens.clone(),
                max_tokens,
                sampling,
                stop: stop.clone(),
                ignore_eos,
                grammar: form.as_ref().map(engine::grammar::Grammar::fork),
                order: order.clone(),
                ..Request::default()
            });
        }
    }
    Ok(Ask {
        requests,
        n: n as usize,
        stream: fields::flag(body, "stream")?,
        include_usage: body["stream_options"]["include_usage"] == true,
        tools: None,
        stop,
    })
}

/// One or several texts or lists of tokens.
///
/// # Errors
/// It is something else, or empty.
pub(crate) fn prompts(given: &Value, model: &Model) -> Result<Vec<Vec<u32>>, BadRequest> {
    let wrong = || bad("`prompt` must be a text, tokens, or a list of either", "prompt");
    let vocabulary = model.tokenizer.vocabulary() as u64;
    let one = |given: &Value| -> Result<Vec<u32>, BadRequest> {
        let tokens = match given {
            Value::String(text) => model.plain_tokens(text),
            Value::Array(ids) => {
                let id = |id: &Value| id.as_u64().filter(|id| *id < vocabulary).map(|id| id as u32);
                ids.iter().map(id).collect::<Option<_>>().ok_or_else(wrong)?
            }
            _ => return Err(wrong()),
        };
        if tokens.is_empty() {
            Err(bad("`prompt` is empty", "prompt"))
        } else {
            Ok(tokens)
        }
    };
    match given {
        Value::Array(list)
            if list.iter().all(|entry| entry.is_string() || entry.is_array()) && !list.is_empty() =>
        {
            if list.len() > PROMPTS {
                return Err(bad(
                    format!("at most {PROMPTS} prompts are taken at once"),
                    "prompt",
                ));
            }
            list.iter().map(one).collect()
        }
        given => Ok(vec![one(given)?]),
    }
}

/// Writes chunks and answers.
pub(crate) struct Completions {
    head: Head,
    include_usage: bool,
}

impl Completions {
    pub(crate) fn new(head: Head, ask: &Ask) -> Self {
        Self {
            head: Head {
                id: format!("cmpl-{}", head.id),
                ..head
            },
            include_usage: ask.include_usage,
        }
    }

    fn object(&self, choices: Value) -> Value {
        let Head { id, model, created } = &self.head;
        json!({ "id": id, "object": "text_completion", "created": created, "model": model, "choices": choices })
    }
}

fn told(logprobs: &[TokenLogprob]) -> Value {
    if logprobs.is_empty() {
        return Value::Null;
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let top = |token: &TokenLogprob| -> Value {
        token
            .top
            .iter()
            .map(|(bytes, logprob)| (text(bytes), json!(logprob)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    json!({
        "tokens": logprobs.iter().map(|token| text(&token.bytes)).collect::<Vec<_>>(),
        "token_logprobs": logprobs.iter().map(|token| token.logprob).collect::<Vec<_>>(),
        "top_logprobs": logprobs.iter().map(top).collect::<Vec<_>>(),
        "text_offset": [],
    })
}

impl Writer for Completions {
    fn begin(&mut self) -> String {
        String::new()
    }

    fn part(&mut self, part: &Part<'_>) -> String {
        let text = match part.piece {
            Piece::Text(text) | Piece::Reasoning(text) => text.as_str(),
            Piece::Call { .. } => "",
        };
        let choice = json!({ "index": part.choice, "text": text, "logprobs": told(part.logprobs), "finish_reason": null });
        data(&self.object(json!([choice])))
    }

    fn end_choice(&mut self, choice: usize, ended: &Ended) -> String {
        let finish = finish_reason(ended.finish, 0);
        data(
            &self.object(json!([{ "index": choice, "text": "", "logprobs": null, "finish_reason": finish }])),
        )
    }

    fn end(&mut self, summary: &Summary) -> String {
        let mut out = String::new();
        if self.include_usage {
            let mut last = self.object(json!([]));
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
            let finish = answer.ended.map(|ended| finish_reason(ended.finish, 0));
            json!({ "index": index, "text": answer.content, "logprobs": told(&answer.logprobs), "finish_reason": finish })
        };
        let mut whole = self.object(answers.iter().enumerate().map(choice).collect::<Vec<_>>().into());
        whole["usage"] = usage(summary);
        whole["timings"] = summary.timings();
        whole
    }
}
