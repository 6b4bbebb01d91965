//! Tools: told in the system message where a template cannot tell them, found again in the answer, and, where a call is
//! demanded, the grammar of one. Owns the formats of calls; refuses to know the APIs that carry them.

mod bare;

use serde_json::{Value, json};
use std::sync::Arc;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// How a model writes calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    /// `<tool_call>{…}</tool_call>`, as Qwen and Hermes do.
    #[default]
    Tagged,
    /// `[TOOL_CALLS][{…}]`, as Mistral does.
    Listed,
}

impl Format {
    /// What the model's own template shows it.
    pub(crate) fn of(template: &str) -> Self {
        match template.contains("[TOOL_CALLS]") && !template.contains(OPEN) {
            true => Self::Listed,
            false => Self::Tagged,
        }
    }

    /// The marks before and after a call; without one, it is the rest of the answer.
    fn marks(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Tagged => (OPEN, Some(CLOSE)),
            Self::Listed => ("[TOOL_CALLS]", None),
        }
    }
}

/// Calls that an answer may hold.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) format: Format,
    /// Of the tools that were given.
    pub(crate) names: Arc<[String]>,
}

impl Expected {
    /// `tools` as in chat completions.
    pub(crate) fn of(tools: &Value, format: Format) -> Self {
        let tools = tools.as_array().into_iter().flatten();
        let names = tools.filter_map(|tool| Some(tool["function"]["name"].as_str()?.to_owned()));
        Self {
            format,
            names: names.collect(),
        }
    }
}

/// Special tokens that mark calls or thinking, and are to be seen as text.
pub(crate) const MARKS: [&str; 5] = ["<think>", "</think>", OPEN, CLOSE, "[TOOL_CALLS]"];

/// Messages with contents as plain text. For a template that knows tools, calls stay where they are; for others they are
/// written out, and `told` is told in the first message.
pub(crate) fn messages(given: &[Value], knows_tools: bool, told: Option<&Value>) -> Result<Value, String> {
    let mut out = Vec::new();
    for message in given {
        out.push(if knows_tools {
            native(message)?
        } else {
            written(message)?
        });
    }
    if let Some(tools) = told {
        let listed = tools
            .as_array()
            .into_iter()
            .flatten()
            .map(|tool| tool["function"].to_string());
        let told = format!(
            "You may call these functions:\n{}\nTo call one, answer with only\n{OPEN}\n{{\"name\": …, \"arguments\": {{…}}}}\n{CLOSE}",
            listed.collect::<Vec<_>>().join("\n")
        );
        match out.first_mut().filter(|first| first["role"] == "system") {
            Some(first) => {
                let said = first["content"].as_str().unwrap_or_default();
                first["content"] = format!("{said}\n\n{told}").into();
            }
            None => out.insert(0, json!({ "role": "system", "content": told })),
        }
    }
    Ok(out.into())
}

fn role(message: &Value) -> Result<&str, String> {
    match message["role"].as_str() {
        Some("developer") => Ok("system"),
        Some(role @ ("system" | "user" | "assistant" | "tool")) => Ok(role),
        Some(other) => Err(format!(
            "`{other}` is no role: system, user, assistant and tool are"
        )),
        None => Err("every message needs a `role`".into()),
    }
}

/// As templates with tools expect it: calls with arguments as objects.
fn native(message: &Value) -> Result<Value, String> {
    let mut out = json!({ "role": role(message)?, "content": text(&message["content"])? });
    let calls = message["tool_calls"].as_array().into_iter().flatten().map(|call| {
        let arguments = arguments(&call["function"]["arguments"]);
        json!({ "id": call["id"], "type": "function", "function": { "name": call["function"]["name"], "arguments": arguments } })
    });
    let calls: Vec<Value> = calls.collect();
    if !calls.is_empty() {
        out["tool_calls"] = calls.into();
    }
    for name in ["name", "tool_call_id"] {
        if message[name].is_string() {
            out[name] = message[name].clone();
        }
    }
    Ok(out)
}

fn arguments(given: &Value) -> Value {
    let parsed = given.as_str().and_then(|text| serde_json::from_str(text).ok());
    parsed.unwrap_or_else(|| {
        if given.is_object() {
            given.clone()
        } else {
            json!({})
        }
    })
}

fn written(message: &Value) -> Result<Value, String> {
    let mut content = text(&message["content"])?;
    for call in message["tool_calls"].as_array().into_iter().flatten() {
        let (name, arguments) = (
            &call["function"]["name"],
            arguments(&call["function"]["arguments"]),
        );
        content.push_str(&format!(
            "{OPEN}\n{{\"name\": {name}, \"arguments\": {arguments}}}\n{CLOSE}"
        ));
    }
    let (role, content) = match role(message)? {
        "tool" => ("user", format!("<tool_response>\n{content}\n</tool_response>")),
        role => (role, content),
    };
    Ok(json!({ "role": role, "content": content }))
}

fn text(content: &Value) -> Result<String, String> {
    match content {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => {
            let texts = parts.iter().map(|part| {
                let kind = part["type"].as_str().unwrap_or("?");
                part["text"]
                    .as_str()
                    .ok_or_else(|| format!("this model reads text only; a part of type `{kind}` was given"))
            });
            texts.collect::<Result<Vec<_>, _>>().map(|texts| texts.join("\n"))
        }
        _ => Err("`content` must be a string or an array of parts".into()),
    }
}

/// Whether and which tools are to be called.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Demand {
    /// As the model likes.
    Auto,
    /// Some call.
    Any,
    /// This one.
    Named(String),
}

/// What a `tool_choice` demands; `None` where tools are not to be used at all.
///
/// # Errors
/// It is none, or names a tool that is not there.
pub(crate) fn demand(choice: &Value, tools: &Value) -> Result<Option<Demand>, String> {
    match choice {
        Value::Null => Ok(Some(Demand::Auto)),
        Value::String(word) => match word.as_str() {
            "auto" => Ok(Some(Demand::Auto)),
            "required" | "any" => Ok(Some(Demand::Any)),
            "none" => Ok(None),
            other => Err(format!(
                "`tool_choice` is `{other}`; it can be none, auto, required or a function"
            )),
        },
        choice => {
            let name = choice["function"]["name"]
                .as_str()
                .ok_or("`tool_choice` must name a function")?;
            let is_there = tools
                .as_array()
                .into_iter()
                .flatten()
                .any(|tool| tool["function"]["name"] == name);
            match is_there {
                true => Ok(Some(Demand::Named(name.to_owned()))),
                false => Err(format!(
                    "`tool_choice` names `{name}`, which is not among `tools`"
                )),
            }
        }
    }
}

/// llguidance's grammar of a call that is demanded. `is_special` says whether a mark is a token of its own.
pub(crate) fn grammar(
    tools: &Value,
    demand: &Demand,
    format: Format,
    is_special: impl Fn(&str) -> bool,
) -> Option<String> {
    let wanted = |tool: &&Value| match demand {
        Demand::Auto => false,
        Demand::Any => true,
        Demand::Named(name) => tool["function"]["name"] == name.as_str(),
    };
    let calls = tools.as_array().into_iter().flatten().filter(wanted).map(|tool| {
        let function = &tool["function"];
        let parameters = match &function["parameters"] {
            Value::Object(schema) => Value::Object(schema.clone()),
            _ => json!({ "type": "object" }),
        };
        json!({ "type": "object", "properties": { "name": { "const": function["name"] }, "arguments": parameters },
            "required": ["name", "arguments"], "additionalProperties": false })
    });
    let calls: Vec<Value> = calls.collect();
    if calls.is_empty() {
        return None;
    }
    let schema = engine::grammar::tight(&json!({ "anyOf": calls }));
    let mark = |mark: &str| match is_special(mark) && mark.starts_with('<') {
        true => mark.to_owned(),
        false => format!("{mark:?}"),
    };
    let (open, close) = format.marks();
    Some(match close {
        Some(close) => format!(
            "start: {} \"\\n\" call \"\\n\" {}\ncall: %json {schema}\n",
            mark(open),
            mark(close)
        ),
        None => format!("start: {} \"[\" call \"]\"\ncall: %json {schema}\n", mark(open)),
    })
}

/// Tells tool calls from text as it comes. Without tools everything is text.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    expected: Option<Expected>,
    /// Something was let out, or the answer cannot be a bare call any more.
    has_begun: bool,
    held: String,
    inside: bool,
    pub(crate) calls: usize,
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Text(String),
    Reasoning(String),
    Call {
        index: usize,
        name: String,
        /// JSON.
        arguments: String,
    },
}

impl Parser {
    /// `None`: no tools were given.
    pub(crate) fn new(expected: Option<Expected>) -> Self {
        Self {
            expected,
            ..Self::default()
        }
    }

    pub(crate) fn push(&mut self, text: &str) -> Vec<Piece> {
        let mut out = Vec::new();
        let Some(expected) = &self.expected else {
            out.extend((!text.is_empty()).then(|| Piece::Text(text.into())));
            return out;
        };
        let (open, close) = expected.format.marks();
        self.held.push_str(text);
        self.has_begun = self.has_begun || !bare::may_be(&self.held, &expected.names);
        if !self.has_begun {
            return out;
        }
        while let Some(mark) = if self.inside { close } else { Some(open) } {
            let Some(at) = self.held.find(mark) else { break };
            let before = self.held[..at].to_owned();
            self.held.drain(..at + mark.len());
            if self.inside {
                let calls = self.read(&before);
                out.extend(calls.unwrap_or_else(|| vec![Piece::Text(format!("{open}{before}{mark}"))]));
            } else if !before.trim().is_empty() {
                out.push(Piece::Text(before.trim_end().into()));
            }
            self.inside = !self.inside;
        }
        if !self.inside {
            let partial = (1..open.len()).rev().find(|n| self.held.ends_with(&open[..*n]));
            // White space around a call is part of neither, so it waits for what follows it.
            let sure = self.held[..self.held.len() - partial.unwrap_or(0)]
                .trim_end()
                .len();
            let text: String = self.held.drain(..sure).collect();
            out.extend((!text.is_empty()).then_some(Piece::Text(text)));
        }
        out
    }

    /// The rest; a call that was not closed is one if it reads as one.
    pub(crate) fn finish(&mut self) -> Vec<Piece> {
        let held = std::mem::take(&mut self.held);
        if let Some(expected) = self.expected.as_ref().filter(|_| !self.has_begun)
            && let Some(pieces) = bare::read(&held, &expected.names).and_then(|calls| self.named(&calls))
        {
            return pieces;
        }
        let format = self.expected.as_ref().map(|expected| expected.format);
        let open = format.unwrap_or_default().marks().0;
        let is_blank = held.trim().is_empty();
        match (self.inside, is_blank && self.calls > 0) {
            (false, true) => Vec::new(),
            (false, false) if held.is_empty() => Vec::new(),
            (false, false) => vec![Piece::Text(held)],
            (true, _) => self
                .read(&held)
                .unwrap_or_else(|| vec![Piece::Text(format!("{open}{held}"))]),
        }
    }

    /// One call, or a list of them.
    fn read(&mut self, json: &str) -> Option<Vec<Piece>> {
        let read: Value = serde_json::from_str(json.trim()).ok()?;
        let calls = match read {
            Value::Array(calls) => calls,
            call => vec![call],
        };
        self.named(&calls)
    }

    fn named(&mut self, calls: &[Value]) -> Option<Vec<Piece>> {
        let named: Option<Vec<(String, String)>> = calls
            .iter()
            .map(|call| {
                let arguments = [&call["arguments"], &call["parameters"]]
                    .into_iter()
                    .find(|value| !value.is_null());
                let arguments = match arguments {
                    // Some models write the arguments as a text that holds JSON.
                    Some(Value::String(text)) => text.clone(),
                    Some(value) => value.to_string(),
                    None => "{}".into(),
                };
                Some((call["name"].as_str()?.to_owned(), arguments))
            })
            .collect();
        let first = self.calls;
        let pieces: Vec<Piece> = named?
            .into_iter()
            .enumerate()
            .map(|(at, (name, arguments))| Piece::Call {
                index: first + at,
                name,
                arguments,
            })
            .collect();
        self.calls += pieces.len();
        Some(pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text and calls of an answer that comes in pieces of `size` bytes.
    fn parse(format: Option<Format>, answer: &str, size: usize) -> (String, Vec<(String, String)>) {
        let names = ["f", "g"].map(String::from).into();
        let mut parser = Parser::new(format.map(|format| Expected { format, names }));
        let (mut text, mut calls) = (String::new(), Vec::new());
        let chunks: Vec<String> = answer
            .as_bytes()
            .chunks(size)
            .map(|c| String::from_utf8_lossy(c).into_owned())
            .collect();
        let pieces: Vec<Piece> = chunks.iter().flat_map(|chunk| parser.push(chunk)).collect();
        for piece in pieces.into_iter().chain(parser.finish()) {
            match piece {
                Piece::Text(more) | Piece::Reasoning(more) => text.push_str(&more),
                Piece::Call {
                    name,
                    arguments,
                    index,
                } => {
                    assert_eq!(index, calls.len());
                    calls.push((name, arguments));
                }
            }
        }
        (text, calls)
    }

    #[test]
    fn calls_are_found_however_they_are_cut() {
        let one = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";
        let answer = format!("I look.\n{one}\n{one}\n");
        for size in 1..answer.len() {
            let (text, calls) = parse(Some(Format::Tagged), &answer, size);
            let call = ("f".to_owned(), "{\"a\":1}".to_owned());
            assert_eq!(
                (text.as_str(), calls),
                ("I look.", vec![call.clone(), call]),
                "{size}"
            );
        }
    }

    #[test]
    fn lists_of_calls_and_arguments_in_texts_are_read() {
        let answer = "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {}}, {\"name\": \"g\", \"arguments\": \"{\\\"b\\\":2}\"}]";
        for size in [1, 7, answer.len()] {
            let (text, calls) = parse(Some(Format::Listed), answer, size);
            assert_eq!(text, "");
            assert_eq!(
                calls,
                [("f".into(), "{}".into()), ("g".into(), "{\"b\":2}".into())]
            );
        }
    }

    #[test]
    fn what_reads_as_no_call_is_text_and_an_unclosed_one_is_a_call() {
        let (text, calls) = parse(
            Some(Format::Tagged),
            "<tool_call>{nonsense}</tool_call> then <tool",
            3,
        );
        assert_eq!(
            (text.as_str(), calls.len()),
            ("<tool_call>{nonsense}</tool_call> then <tool", 0)
        );
        let (text, calls) = parse(Some(Format::Tagged), "<tool_call>{\"name\": \"f\"}", 4);
        assert_eq!((text.as_str(), calls), ("", vec![("f".into(), "{}".into())]));
        assert_eq!(parse(None, "<tool_call>", 4).0, "<tool_call>");
    }

    #[test]
    fn an_answer_that_is_a_call_without_marks_is_one_and_others_are_text() {
        let call = "{\"name\": \"f\", \"arguments\": {\"a\": 1}}";
        for answer in [
            call.to_owned(),
            format!("```json\n{call}\n```"),
            format!("{{{call}}}"),
        ] {
            for size in 1..answer.len() {
                let (text, calls) = parse(Some(Format::Tagged), &answer, size);
                assert_eq!(
                    (text.as_str(), calls),
                    ("", vec![("f".into(), "{\"a\":1}".into())]),
                    "{size}"
                );
            }
        }
        for answer in [
            "{\"name\": \"f\"",
            "{\"name\": \"Anna\", \"arguments\": {}}",
            "```json\n{\"a\": 1}\n```",
            "So: {\"name\": \"f\", \"arguments\": {}}",
        ] {
            for size in 1..answer.len() {
                assert_eq!(
                    parse(Some(Format::Tagged), answer, size),
                    (answer.to_owned(), Vec::new()),
                    "{size}"
                );
            }
        }
    }

    #[test]
    fn demands_are_read_and_become_grammars() {
        let tools = json!([{ "type": "function", "function": { "name": "f", "parameters": { "type": "object" } } }, { "function": { "name": "g" } }]);
        assert_eq!(demand(&Value::Null, &tools), Ok(Some(Demand::Auto)));
        assert_eq!(demand(&json!("none"), &tools), Ok(None));
        let named = demand(
            &json!({ "type": "function", "function": { "name": "g" } }),
            &tools,
        )
        .unwrap()
        .unwrap();
        assert!(demand(&json!({ "function": { "name": "h" } }), &tools).is_err());
        assert_eq!(grammar(&tools, &Demand::Auto, Format::Tagged, |_| true), None);
        let made = grammar(&tools, &named, Format::Tagged, |_| false).unwrap();
        assert!(
            made.contains("\"const\":\"g\"")
                && !made.contains("\"const\":\"f\"")
                && made.contains("\"<tool_call>\"")
        );
        let made = grammar(&tools, &Demand::Any, Format::Tagged, |_| true).unwrap();
        assert!(made.starts_with("start: <tool_call> \"\\n\" call"), "{made}");
    }

    #[test]
    fn templates_with_tools_get_calls_as_they_are_and_others_get_them_written() {
        let call = json!({ "role": "assistant", "content": null, "tool_calls": [{ "id": "1", "function": { "name": "f", "arguments": "{\"a\": 1}" } }] });
        let given = [
            call,
            json!({ "role": "tool", "tool_call_id": "1", "content": "rain" }),
        ];
        let native = messages(&given, true, None).unwrap();
        assert_eq!(native[0]["tool_calls"][0]["function"]["arguments"]["a"], 1);
        assert_eq!(native[1]["role"], "tool");
        let written = messages(&given, false, Some(&json!([{ "function": { "name": "f" } }]))).unwrap();
        assert!(written[0]["content"].as_str().unwrap().contains("You may call"));
        assert!(written[1]["content"].as_str().unwrap().starts_with("<tool_call>"));
        assert_eq!(written[2]["role"], "user");
        assert!(messages(&[json!({ "role": "robot" })], false, None).is_err());
    }
}
