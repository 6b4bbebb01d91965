//! OpenAI responses, the part that needs no memory: rewritten as chat requests on the way in, and answered in items.

use super::{Answer, Ask, BadRequest, Ended, Head, Part, Summary, Writer, bad, event};
use crate::tools::Piece;
use engine::engine::Finish;
use serde_json::{Value, json};

/// The chat request that says the same.
///
/// # Errors
/// Names the field that is wrong.
pub(crate) fn to_chat(body: &Value) -> Result<Value, BadRequest> {
    for name in ["previous_response_id", "conversation", "prompt"] {
        if !body[name].is_null() {
            return Err(bad(
                format!(
                    "`{name}` needs stored responses, which this server does not keep: send the whole input"
                ),
                "previous_response_id",
            ));
        }
    }
    if body["background"] == true {
        return Err(bad(
            "`background` needs stored responses, which this server does not keep",
            "background",
        ));
    }
    let mut messages = Vec::new();
    if let Some(instructions) = body["instructions"].as_str() {
        messages.push(json!({ "role": "system", "content": instructions }));
    }
    match &body["input"] {
        Value::String(text) => messages.push(json!({ "role": "user", "content": text })),
        Value::Array(items) => items.iter().try_for_each(|item| rewrite(item, &mut messages))?,
        _ => return Err(bad("`input` must be a text or a list of items", "input")),
    }
    let mut chat = json!({ "messages": messages });
    for (name, value) in [
        ("max_tokens", &body["max_output_tokens"]),
        ("reasoning_effort", &body["reasoning"]["effort"]),
        ("response_format", &body["text"]["format"]),
    ] {
        if !value.is_null() {
            chat[name] = value.clone();
        }
    }
    for name in [
        "temperature",
        "top_p",
        "top_logprobs",
        "stream",
        "seed",
        "thinking_token_budget",
        "priority",
    ] {
        if !body[name].is_null() {
            chat[name] = body[name].clone();
        }
    }
    tools(body, &mut chat)?;
    Ok(chat)
}

fn tools(body: &Value, chat: &mut Value) -> Result<(), BadRequest> {
    let Some(tools) = body["tools"].as_array().filter(|tools| !tools.is_empty()) else {
        return Ok(());
    };
    let function = |tool: &Value| match tool["type"].as_str() {
        Some("function") => Ok(json!({ "type": "function",
            "function": { "name": tool["name"], "description": tool["description"], "parameters": tool["parameters"] } })),
        kind => Err(bad(
            format!(
                "tools of type `{}` are not served here; functions are",
                kind.unwrap_or("?")
            ),
            "tools",
        )),
    };
    chat["tools"] = tools.iter().map(function).collect::<Result<Vec<_>, _>>()?.into();
    chat["tool_choice"] = match &body["tool_choice"] {
        Value::Object(choice) => json!({ "type": "function", "function": { "name": choice.get("name") } }),
        choice => choice.clone(),
    };
    Ok(())
}

fn rewrite(item: &Value, out: &mut Vec<Value>) -> Result<(), BadRequest> {
    match item["type"].as_str() {
        None | Some("message") => out.push(json!({ "role": item["role"], "content": item["content"] })),
        Some("function_call") => {
            let function = json!({ "name": item["name"], "arguments": item["arguments"] });
            let call = json!({ "id": item["call_id"], "type": "function", "function": function });
            // Calls that were made together stand in one message.
            match out.last_mut().filter(|last| last["tool_calls"].is_array()) {
                Some(last) => {
                    if let Some(calls) = last["tool_calls"].as_array_mut() {
                        calls.push(call);
                    }
                }
                None => out.push(json!({ "role": "assistant", "content": null, "tool_calls": [call] })),
            }
        }
        Some("function_call_output") => {
            out.push(json!({ "role": "tool", "tool_call_id": item["call_id"], "content": item["output"] }));
        }
        Some("reasoning") => {}
        Some(other) => {
            return Err(bad(
                format!("items of type `{other}` are not served here"),
                "input",
            ));
        }
    }
    Ok(())
}

/// An item that is being written.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Open {
    Message(String),
    Reasoning(String),
}

/// Writes events and answers.
pub(crate) struct Responses {
    head: Head,
    sequence: usize,
    open: Option<Open>,
    /// Items that are done.
    items: Vec<Value>,
    ended: Option<Ended>,
}

impl Responses {
    pub(crate) fn new(head: Head, _ask: &Ask) -> Self {
        Self {
            head: Head {
                id: format!("resp_{}", head.id),
                ..head
            },
            sequence: 0,
            open: None,
            items: Vec::new(),
            ended: None,
        }
    }

    fn event(&mut self, kind: &str, mut value: Value) -> String {
        value["type"] = kind.into();
        value["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        event(kind, &value)
    }

    fn item_id(&self, kind: &str) -> String {
        format!("{kind}_{}_{}", self.head.id, self.items.len())
    }

    fn response(&self, items: &[Value], summary: Option<&Summary>) -> Value {
        let is_cut = self.ended.is_some_and(|ended| ended.finish == Finish::Length);
        let (status, details) = match (self.ended, is_cut) {
            (None, _) => ("in_progress", Value::Null),
            (Some(_), true) => ("incomplete", json!({ "reason": "max_output_tokens" })),
            (Some(_), false) => ("completed", Value::Null),
        };
        let mut response = json!({ "id": self.head.id, "object": "response", "created_at": self.head.created, "status": status,
            "model": self.head.model, "output": items, "incomplete_details": details, "error": null, "instructions": null,
            "metadata": {}, "parallel_tool_calls": true, "temperature": null, "top_p": null, "tool_choice": "auto", "tools": [] });
        response["usage"] = summary.map_or(Value::Null, usage);
        if let Some(summary) = summary {
            response["timings"] = summary.timings();
        }
        response
    }

    /// Ends the item that is open.
    fn close(&mut self) -> String {
        let at = self.items.len();
        let (item, mut out) = match self.open.take() {
            None => return String::new(),
            Some(Open::Message(text)) => {
                let id = self.item_id("msg");
                let part = json!({ "type": "output_text", "text": text, "annotations": [] });
                let place = json!({ "item_id": id, "output_index": at, "content_index": 0 });
                let mut done = place.clone();
                done["text"] = text.into();
                let mut out = self.event("response.output_text.done", done);
                let mut done = place;
                done["part"] = part.clone();
                out.push_str(&self.event("response.content_part.done", done));
                (message(&id, "completed", &[part]), out)
            }
            Some(Open::Reasoning(text)) => {
                let id = self.item_id("rs");
                (reasoning(&id, &text), String::new())
            }
        };
        let done = json!({ "output_index": at, "item": item });
        out.push_str(&self.event("response.output_item.done", done));
        self.items.push(item);
        out
    }

    fn text(&mut self, text: &str) -> String {
        let mut out = String::new();
        if !matches!(self.open, Some(Open::Message(_))) {
            out.push_str(&self.close());
            let (at, id) = (self.items.len(), self.item_id("msg"));
            let item = message(&id, "in_progress", &[]);
            out.push_str(&self.event(
                "response.output_item.added",
                json!({ "output_index": at, "item": item }),
            ));
            let part = json!({ "type": "output_text", "text": "", "annotations": [] });
            let added = json!({ "item_id": id, "output_index": at, "content_index": 0, "part": part });
            out.push_str(&self.event("response.content_part.added", added));
            self.open = Some(Open::Message(String::new()));
        }
        if let Some(Open::Message(whole)) = &mut self.open {
            whole.push_str(text);
        }
        let delta = json!({ "item_id": self.item_id("msg"), "output_index": self.items.len(), "content_index": 0, "delta": text, "logprobs": [] });
        out + &self.event("response.output_text.delta", delta)
    }

    fn reason(&mut self, text: &str) -> String {
        let mut out = String::new();
        if !matches!(self.open, Some(Open::Reasoning(_))) {
            out.push_str(&self.close());
            let (at, id) = (self.items.len(), self.item_id("rs"));
            let added = json!({ "output_index": at, "item": reasoning(&id, "") });
            out.push_str(&self.event("response.output_item.added", added));
            self.open = Some(Open::Reasoning(String::new()));
        }
        if let Some(Open::Reasoning(whole)) = &mut self.open {
            whole.push_str(text);
        }
        let delta = json!({ "item_id": self.item_id("rs"), "output_index": self.items.len(), "content_index": 0, "delta": text });
        out + &self.event("response.reasoning_text.delta", delta)
    }

    fn call(&mut self, call_id: &str, name: &str, arguments: &str) -> String {
        let mut out = self.close();
        let (at, id) = (self.items.len(), self.item_id("fc"));
        let item = |arguments: &str, status: &str| json!({ "id": id, "type": "function_call", "call_id": call_id, "name": name, "arguments": arguments, "status": status });
        let added = json!({ "output_index": at, "item": item("", "in_progress") });
        out.push_str(&self.event("response.output_item.added", added));
        let place = json!({ "item_id": id, "output_index": at });
        let (mut delta, mut done) = (place.clone(), place);
        delta["delta"] = arguments.into();
        done["arguments"] = arguments.into();
        out.push_str(&self.event("response.function_call_arguments.delta", delta));
        out.push_str(&self.event("response.function_call_arguments.done", done));
        let whole = item(arguments, "completed");
        out.push_str(&self.event(
            "response.output_item.done",
            json!({ "output_index": at, "item": whole }),
        ));
        self.items.push(whole);
        out
    }
}

fn message(id: &str, status: &str, parts: &[Value]) -> Value {
    json!({ "id": id, "type": "message", "role": "assistant", "status": status, "content": parts })
}

fn reasoning(id: &str, text: &str) -> Value {
    let content = if text.is_empty() {
        json!([])
    } else {
        json!([{ "type": "reasoning_text", "text": text }])
    };
    json!({ "id": id, "type": "reasoning", "summary": [], "content": content })
}

fn usage(summary: &Summary) -> Value {
    let counts = summary.counts;
    json!({ "input_tokens": counts.prompt, "input_tokens_details": { "cached_tokens": counts.cached },
        "output_tokens": counts.output, "output_tokens_details": { "reasoning_tokens": counts.reasoning },
        "total_tokens": counts.prompt + counts.output, "x_local_cost_nanodollars": summary.nanodollars })
}

impl Writer for Responses {
    fn begin(&mut self) -> String {
        let response = self.response(&[], None);
        let created = self.event("response.created", json!({ "response": response }));
        created + &self.event("response.in_progress", json!({ "response": response }))
    }

    fn part(&mut self, part: &Part<'_>) -> String {
        match part.piece {
            Piece::Text(text) => self.text(text),
            Piece::Reasoning(text) => self.reason(text),
            Piece::Call {
                index,
                name,
                arguments,
            } => {
                let id = self.head.call_id(part.choice, *index);
                self.call(&id, name, arguments)
            }
        }
    }

    fn end_choice(&mut self, _choice: usize, ended: &Ended) -> String {
        self.ended = Some(*ended);
        self.close()
    }

    fn end(&mut self, summary: &Summary) -> String {
        let response = self.response(&self.items, Some(summary));
        let kind = if response["status"] == "incomplete" {
            "response.incomplete"
        } else {
            "response.completed"
        };
        self.event(kind, json!({ "response": response }))
    }

    fn broken(&mut self, message: &str) -> String {
        self.event(
            "error",
            json!({ "code": "server_error", "message": message, "param": null }),
        )
    }

    fn whole(&mut self, answers: &[Answer], summary: &Summary) -> Value {
        let Some(answer) = answers.first() else {
            return super::error("there is no answer", "server_error", None, None);
        };
        let mut items = Vec::new();
        if !answer.reasoning.is_empty() {
            items.push(reasoning(&format!("rs_{}_0", self.head.id), &answer.reasoning));
        }
        if !answer.content.is_empty() || answer.calls.is_empty() {
            let part = json!({ "type": "output_text", "text": answer.content, "annotations": [] });
            items.push(message(
                &format!("msg_{}_{}", self.head.id, items.len()),
                "completed",
                &[part],
            ));
        }
        for (index, call) in answer.calls.iter().enumerate() {
            items.push(json!({ "id": format!("fc_{}_{}", self.head.id, items.len()), "type": "function_call",
                "call_id": self.head.call_id(0, index), "name": call.name, "arguments": call.arguments, "status": "completed" }));
        }
        self.ended = answer.ended;
        self.response(&items, Some(summary))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_becomes_the_chat_request_that_says_the_same() {
        let body = json!({
            "instructions": "Be brief.", "max_output_tokens": 9, "reasoning": { "effort": "low" },
            "text": { "format": { "type": "json_schema", "name": "x", "schema": { "type": "object" } } },
            "tools": [{ "type": "function", "name": "f", "parameters": { "type": "object" } }],
            "tool_choice": { "type": "function", "name": "f" },
            "input": [
                { "role": "user", "content": [{ "type": "input_text", "text": "Hi" }] },
                { "type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}" },
                { "type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}" },
                { "type": "function_call_output", "call_id": "c1", "output": "rain" },
            ],
        });
        let chat = to_chat(&body).unwrap();
        assert_eq!(chat["messages"].as_array().unwrap().len(), 4);
        assert_eq!(chat["messages"][2]["tool_calls"].as_array().unwrap().len(), 2);
        assert_eq!(
            (&chat["max_tokens"], &chat["reasoning_effort"]),
            (&json!(9), &json!("low"))
        );
        assert_eq!(chat["tool_choice"]["function"]["name"], "f");
        assert!(super::super::fields::schema(&chat).unwrap().is_some());
        assert!(to_chat(&json!({ "input": 3 })).is_err());
        assert!(to_chat(&json!({ "input": "x", "previous_response_id": "r" })).is_err());
        assert!(to_chat(&json!({ "input": "x", "tools": [{ "type": "web_search" }] })).is_err());
    }
}
