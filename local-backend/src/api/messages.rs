//! Anthropic messages: rewritten as chat requests on the way in, and answered in blocks.

use super::{Answer, Ask, BadRequest, Ended, Head, Part, Summary, Writer, bad, event, fields};
use crate::tools::Piece;
use engine::engine::Finish;
use serde_json::{Value, json};

/// The chat request that says the same.
///
/// # Errors
/// Names the field that is wrong.
pub(crate) fn to_chat(body: &Value) -> Result<Value, BadRequest> {
    let mut messages = Vec::new();
    match &body["system"] {
        Value::Null => {}
        system => messages.push(json!({ "role": "system", "content": texts(system, "system")? })),
    }
    let given = body["messages"].as_array().filter(|given| !given.is_empty());
    for message in given.ok_or_else(|| bad("`messages` is missing or empty", "messages"))? {
        rewrite(message, &mut messages)?;
    }
    fields::whole(body, "max_tokens", 1..=i64::MAX)?
        .ok_or_else(|| bad("`max_tokens` is missing", "max_tokens"))?;
    let mut chat =
        json!({ "messages": messages, "max_tokens": body["max_tokens"], "stop": body["stop_sequences"] });
    for name in [
        "temperature",
        "top_p",
        "top_k",
        "stream",
        "seed",
        "thinking_token_budget",
        "priority",
    ] {
        if !body[name].is_null() {
            chat[name] = body[name].clone();
        }
    }
    let thinking = &body["thinking"];
    match thinking["type"].as_str() {
        Some("enabled") => {
            let budget = fields::whole(thinking, "budget_tokens", 1..=i64::MAX)?;
            let missing = || bad("`thinking.budget_tokens` is missing", "thinking");
            chat["thinking_token_budget"] = budget.ok_or_else(missing)?.into();
            chat["chat_template_kwargs"] = json!({ "enable_thinking": true });
        }
        Some("disabled") => {
            chat["thinking_token_budget"] = 0.into();
            chat["chat_template_kwargs"] = json!({ "enable_thinking": false });
        }
        _ => {}
    }
    tools(body, &mut chat)?;
    Ok(chat)
}

fn tools(body: &Value, chat: &mut Value) -> Result<(), BadRequest> {
    let Some(tools) = body["tools"].as_array().filter(|tools| !tools.is_empty()) else {
        return Ok(());
    };
    let function = |tool: &Value| {
        if !tool["name"].is_string() || !tool["input_schema"].is_object() {
            return Err(bad("every tool needs a `name` and an `input_schema`", "tools"));
        }
        let function = json!({ "name": tool["name"], "description": tool["description"], "parameters": tool["input_schema"] });
        Ok(json!({ "type": "function", "function": function }))
    };
    chat["tools"] = tools.iter().map(function).collect::<Result<Vec<_>, _>>()?.into();
    let choice = &body["tool_choice"];
    chat["tool_choice"] = match choice["type"].as_str() {
        None if choice.is_null() => Value::Null,
        Some(word @ ("auto" | "any" | "none")) => word.into(),
        Some("tool") => json!({ "type": "function", "function": { "name": choice["name"] } }),
        _ => {
            return Err(bad(
                "`tool_choice.type` must be auto, any, none or tool",
                "tool_choice",
            ));
        }
    };
    Ok(())
}

fn texts(content: &Value, param: &'static str) -> Result<String, BadRequest> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Array(blocks) => {
            let text = |block: &Value| {
                let kind = block["type"].as_str().unwrap_or("?");
                let text = block["text"].as_str().map(ToOwned::to_owned);
                text.ok_or_else(|| {
                    bad(
                        format!("this model reads text only; a block of type `{kind}` was given"),
                        param,
                    )
                })
            };
            Ok(blocks.iter().map(text).collect::<Result<Vec<_>, _>>()?.join("\n"))
        }
        Value::Null => Ok(String::new()),
        _ => Err(bad(
            format!("`{param}` must be a text or a list of blocks"),
            param,
        )),
    }
}

/// One message becomes one or, where it holds results of tools, several.
fn rewrite(message: &Value, out: &mut Vec<Value>) -> Result<(), BadRequest> {
    let role = message["role"]
        .as_str()
        .filter(|role| matches!(*role, "user" | "assistant"));
    let role = role.ok_or_else(|| bad("every message needs the `role` user or assistant", "messages"))?;
    let Some(blocks) = message["content"].as_array() else {
        let content = texts(&message["content"], "messages")?;
        out.push(json!({ "role": role, "content": content }));
        return Ok(());
    };
    let (mut said, mut calls) = (Vec::new(), Vec::new());
    for block in blocks {
        match block["type"].as_str() {
            Some("tool_use") => {
                let function = json!({ "name": block["name"], "arguments": block["input"].to_string() });
                calls.push(json!({ "id": block["id"], "type": "function", "function": function }));
            }
            Some("tool_result") => {
                let content = texts(&block["content"], "messages")?;
                out.push(json!({ "role": "tool", "tool_call_id": block["tool_use_id"], "content": content }));
            }
            // What was thought before is not shown again.
            Some("thinking" | "redacted_thinking") => {}
            _ => said.push(block.clone()),
        }
    }
    if said.is_empty() && calls.is_empty() {
        return Ok(());
    }
    let mut message = json!({ "role": role, "content": texts(&said.into(), "messages")? });
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    out.push(message);
    Ok(())
}

/// What an open block is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    Text,
    Thinking,
    Tool,
}

/// Writes events and answers.
pub(crate) struct Messages {
    head: Head,
    stop: Vec<String>,
    prompt_tokens: usize,
    open: Option<Block>,
    /// Blocks that were begun.
    blocks: usize,
    calls: usize,
    ended: Option<Ended>,
}

impl Messages {
    pub(crate) fn new(head: Head, ask: &Ask) -> Self {
        Self {
            head: Head {
                id: format!("msg_{}", head.id),
                ..head
            },
            stop: ask.stop.clone(),
            prompt_tokens: ask.requests.first().map_or(0, |request| request.tokens.len()),
            open: None,
            blocks: 0,
            calls: 0,
            ended: None,
        }
    }

    fn close(&mut self) -> String {
        match self.open.take() {
            None => String::new(),
            Some(_) => event(
                "content_block_stop",
                &json!({ "type": "content_block_stop", "index": self.blocks - 1 }),
            ),
        }
    }

    /// Opens a block of this kind unless one is open.
    fn in_block(&mut self, block: Block, start: &Value) -> String {
        if self.open == Some(block) && block != Block::Tool {
            return String::new();
        }
        let mut out = self.close();
        let start = json!({ "type": "content_block_start", "index": self.blocks, "content_block": start });
        out.push_str(&event("content_block_start", &start));
        self.open = Some(block);
        self.blocks += 1;
        out
    }

    fn delta(&self, delta: &Value) -> String {
        let delta = json!({ "type": "content_block_delta", "index": self.blocks - 1, "delta": delta });
        event("content_block_delta", &delta)
    }

    fn message(&self, content: &[Value], ended: Option<&Ended>, summary: &Summary) -> Value {
        let (reason, sequence) = self.reason(ended);
        json!({ "id": self.head.id, "type": "message", "role": "assistant", "model": self.head.model, "content": content,
            "stop_reason": reason, "stop_sequence": sequence, "usage": usage(summary) })
    }

    fn reason(&self, ended: Option<&Ended>) -> (Option<&'static str>, Option<&str>) {
        match ended.map(|ended| ended.finish) {
            None => (None, None),
            Some(Finish::Length) => (Some("max_tokens"), None),
            Some(_) if self.calls > 0 => (Some("tool_use"), None),
            Some(Finish::Stop) => (Some("end_turn"), None),
            Some(Finish::Sequence(index)) => {
                (Some("stop_sequence"), self.stop.get(index).map(String::as_str))
            }
        }
    }
}

/// Anthropic counts what came from the cache apart.
fn usage(summary: &Summary) -> Value {
    let counts = summary.counts;
    json!({ "input_tokens": counts.prompt - counts.cached, "cache_read_input_tokens": counts.cached,
        "cache_creation_input_tokens": 0, "output_tokens": counts.output,
        "x_local_cost_nanodollars": summary.nanodollars })
}

impl Writer for Messages {
    fn begin(&mut self) -> String {
        let mut summary = Summary::default();
        summary.counts.prompt = self.prompt_tokens;
        let message = self.message(&[], None, &summary);
        event(
            "message_start",
            &json!({ "type": "message_start", "message": message }),
        )
    }

    fn part(&mut self, part: &Part<'_>) -> String {
        match part.piece {
            Piece::Text(text) => {
                let out = self.in_block(Block::Text, &json!({ "type": "text", "text": "" }));
                out + &self.delta(&json!({ "type": "text_delta", "text": text }))
            }
            Piece::Reasoning(text) => {
                let start = json!({ "type": "thinking", "thinking": "", "signature": "" });
                let out = self.in_block(Block::Thinking, &start);
                out + &self.delta(&json!({ "type": "thinking_delta", "thinking": text }))
            }
            Piece::Call {
                index,
                name,
                arguments,
            } => {
                self.calls += 1;
                let id = self.head.call_id(part.choice, *index);
                let start = json!({ "type": "tool_use", "id": id, "name": name, "input": {} });
                let out = self.in_block(Block::Tool, &start);
                out + &self.delta(&json!({ "type": "input_json_delta", "partial_json": arguments }))
            }
        }
    }

    fn end_choice(&mut self, _choice: usize, ended: &Ended) -> String {
        self.ended = Some(*ended);
        self.close()
    }

    fn end(&mut self, summary: &Summary) -> String {
        let (reason, sequence) = self.reason(self.ended.as_ref());
        let delta = json!({ "type": "message_delta", "delta": { "stop_reason": reason, "stop_sequence": sequence },
            "usage": usage(summary), "timings": summary.timings() });
        event("message_delta", &delta) + &event("message_stop", &json!({ "type": "message_stop" }))
    }

    fn broken(&mut self, message: &str) -> String {
        event("error", &error(message, "api_error"))
    }

    fn whole(&mut self, answers: &[Answer], summary: &Summary) -> Value {
        let Some(answer) = answers.first() else {
            return error("there is no answer", "api_error");
        };
        let mut content = Vec::new();
        if !answer.reasoning.is_empty() {
            content.push(json!({ "type": "thinking", "thinking": answer.reasoning, "signature": "" }));
        }
        if !answer.content.is_empty() || (answer.calls.is_empty() && content.is_empty()) {
            content.push(json!({ "type": "text", "text": answer.content }));
        }
        for (index, call) in answer.calls.iter().enumerate() {
            let input: Value = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
            content.push(json!({ "type": "tool_use", "id": self.head.call_id(0, index), "name": call.name, "input": input }));
        }
        self.calls = answer.calls.len();
        let mut message = self.message(&content, answer.ended.as_ref(), summary);
        message["timings"] = summary.timings();
        message
    }
}

/// An error in Anthropic's shape.
pub(crate) fn error(message: &str, kind: &str) -> Value {
    json!({ "type": "error", "error": { "type": kind, "message": message } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_becomes_the_chat_request_that_says_the_same() {
        let body = json!({
            "max_tokens": 9, "system": [{ "type": "text", "text": "Be brief." }], "stop_sequences": ["END"],
            "thinking": { "type": "enabled", "budget_tokens": 1024 },
            "tools": [{ "name": "f", "description": "d", "input_schema": { "type": "object" } }],
            "tool_choice": { "type": "tool", "name": "f" },
            "messages": [
                { "role": "user", "content": "Hi" },
                { "role": "assistant", "content": [{ "type": "thinking", "thinking": "…" }, { "type": "text", "text": "I look." },
                    { "type": "tool_use", "id": "t1", "name": "f", "input": { "a": 1 } }] },
                { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "t1", "content": [{ "type": "text", "text": "rain" }] },
                    { "type": "text", "text": "And now?" }] },
            ],
        });
        let chat = to_chat(&body).unwrap();
        let roles: Vec<&str> = chat["messages"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|m| m["role"].as_str())
            .collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool", "user"]);
        assert_eq!(
            chat["messages"][2]["tool_calls"][0]["function"]["arguments"],
            "{\"a\":1}"
        );
        assert_eq!(chat["messages"][3]["content"], "rain");
        assert_eq!(
            (&chat["stop"][0], &chat["thinking_token_budget"]),
            (&json!("END"), &json!(1024))
        );
        assert_eq!(chat["tool_choice"]["function"]["name"], "f");
    }

    #[test]
    fn what_is_missing_is_named() {
        let param = |body: Value| to_chat(&body).unwrap_err().param;
        let hello = json!([{ "role": "user", "content": "Hi" }]);
        assert_eq!(param(json!({ "messages": hello })), Some("max_tokens"));
        assert_eq!(param(json!({ "max_tokens": 3 })), Some("messages"));
        assert_eq!(
            param(json!({ "max_tokens": 3, "messages": [{ "role": "system", "content": "x" }] })),
            Some("messages")
        );
        let image = json!([{ "role": "user", "content": [{ "type": "image" }] }]);
        assert_eq!(
            param(json!({ "max_tokens": 3, "messages": image })),
            Some("messages")
        );
        let tools = json!([{ "name": "f" }]);
        assert_eq!(
            param(json!({ "max_tokens": 3, "messages": hello, "tools": tools })),
            Some("tools")
        );
    }
}
