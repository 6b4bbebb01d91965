//! Tools for models whose template knows none: told in the system message, found again in the answer.

use serde_json::{Value, json};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// Messages with contents as plain text, and the tools told in the first of them where the template cannot tell them.
pub(crate) fn messages(given: &[Value], tools: Option<&Value>) -> Result<Value, String> {
    let mut out = Vec::new();
    for message in given {
        let role = message["role"].as_str().ok_or("every message needs a `role`")?;
        let mut content = text(&message["content"])?;
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            let arguments = call["function"]["arguments"].as_str().unwrap_or("{}");
            content.push_str(&format!(
                "{OPEN}\n{{\"name\": {}, \"arguments\": {arguments}}}\n{CLOSE}",
                call["function"]["name"]
            ));
        }
        let (role, content) = match role {
            "developer" => ("system", content),
            "tool" => ("user", format!("<tool_response>\n{content}\n</tool_response>")),
            role => (role, content),
        };
        out.push(json!({ "role": role, "content": content }));
    }
    if let Some(tools) = tools {
        let listed: Vec<String> = tools
            .as_array()
            .into_iter()
            .flatten()
            .map(|tool| tool["function"].to_string())
            .collect();
        let told = format!(
            "You may call these functions:\n{}\nTo call one, answer with only\n{OPEN}\n{{\"name\": …, \"arguments\": {{…}}}}\n{CLOSE}",
            listed.join("\n")
        );
        match out.first_mut().filter(|first| first["role"] == "system") {
            Some(first) => {
                first["content"] =
                    format!("{}\n\n{told}", first["content"].as_str().unwrap_or_default()).into()
            }
            None => out.insert(0, json!({ "role": "system", "content": told })),
        }
    }
    Ok(out.into())
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

/// Tells tool calls from text as it comes. Without tools everything is text.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    watch: bool,
    held: String,
    inside: bool,
    pub(crate) calls: usize,
}

/// A piece of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Text(String),
    Call {
        index: usize,
        name: String,
        arguments: String,
    },
}

impl Parser {
    pub(crate) fn new(has_tools: bool) -> Self {
        Self {
            watch: has_tools,
            ..Self::default()
        }
    }

    pub(crate) fn push(&mut self, text: &str) -> Vec<Piece> {
        if !self.watch {
            return if text.is_empty() {
                Vec::new()
            } else {
                vec![Piece::Text(text.into())]
            };
        }
        self.held.push_str(text);
        let mut out = Vec::new();
        loop {
            let mark = if self.inside { CLOSE } else { OPEN };
            let Some(at) = self.held.find(mark) else { break };
            let before = self.held[..at].to_owned();
            self.held.drain(..at + mark.len());
            if self.inside {
                out.extend(self.call(&before));
            } else if !before.trim().is_empty() {
                out.push(Piece::Text(before));
            }
            self.inside = !self.inside;
        }
        if !self.inside {
            let mut sure = self.held.len()
                - (1..OPEN.len())
                    .rev()
                    .find(|n| self.held.ends_with(&OPEN[..*n]))
                    .unwrap_or(0);
            // White space before a call is part of neither.
            if sure < self.held.len() {
                sure = self.held[..sure].trim_end().len();
            }
            let text: String = self.held.drain(..sure).collect();
            if !text.is_empty() {
                out.push(Piece::Text(text));
            }
        }
        out
    }

    /// The rest; a call that was not closed is one if it reads as one.
    pub(crate) fn finish(&mut self) -> Vec<Piece> {
        let held = std::mem::take(&mut self.held);
        if held.is_empty() {
            return Vec::new();
        }
        match if self.inside { self.call(&held) } else { None } {
            Some(call) => vec![call],
            None => vec![Piece::Text(held)],
        }
    }

    fn call(&mut self, json: &str) -> Option<Piece> {
        let call: Value = serde_json::from_str(json.trim()).ok()?;
        let name = call["name"].as_str()?.to_owned();
        self.calls += 1;
        Some(Piece::Call {
            index: self.calls - 1,
            name,
            arguments: call["arguments"].to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_found_however_they_are_cut() {
        let answer = "I look.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";
        for size in 1..answer.len() {
            let mut parser = Parser::new(true);
            let (mut text, mut calls) = (String::new(), Vec::new());
            let chunks: Vec<String> = answer
                .as_bytes()
                .chunks(size)
                .map(|c| String::from_utf8_lossy(c).into_owned())
                .collect();
            let pieces: Vec<Piece> = chunks.iter().flat_map(|chunk| parser.push(chunk)).collect();
            for piece in pieces.into_iter().chain(parser.finish()) {
                match piece {
                    Piece::Text(more) => text.push_str(&more),
                    Piece::Call { name, arguments, .. } => calls.push((name, arguments)),
                }
            }
            assert_eq!(
                (text.trim(), calls),
                ("I look.", vec![("f".into(), "{\"a\":1}".into())]),
                "{size}"
            );
        }
    }

    #[test]
    fn without_tools_everything_is_text() {
        assert_eq!(
            Parser::new(false).push("<tool_call>"),
            [Piece::Text("<tool_call>".into())]
        );
    }
}
