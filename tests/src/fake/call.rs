//! One request to a fake provider, read as far as the fake needs it, and the pieces its answer will consist of.

use super::script::{STAMP, Script, UsageReport, token_text};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// Bytes of tool arguments per streamed piece, close to what providers send.
const ARGUMENT_PIECE: usize = 8;

/// The fields of either wire format that change what a fake does.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(default)]
    model: String,
    #[serde(default)]
    stream: bool,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    max_output_tokens: Option<u32>,
    service_tier: Option<String>,
    /// Of embeddings and responses.
    input: Option<Value>,
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
    #[serde(default)]
    tools: Vec<Value>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// Why the answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    Natural,
    Limit,
    Tool,
}

/// What the pieces carry.
#[derive(Clone, Debug)]
pub enum Content {
    Tokens { count: u32, size: usize },
    Text(String),
    Tool { name: String, arguments: String },
}

/// A parsed request together with the answer planned for it.
#[derive(Clone, Debug)]
pub struct Call {
    /// Makes the ids in the answer.
    pub id: u64,
    pub model: String,
    pub stream: bool,
    /// Only OpenAI sends usage on request; Anthropic always does.
    pub include_usage: bool,
    pub max_tokens: Option<u32>,
    pub script: Script,
    pub input_tokens: u64,
    pub thinking: u32,
    pub content: Content,
    pub stop: Stop,
    pub created: i64,
    /// The tier that it asks for.
    pub service_tier: Option<String>,
    /// How many texts it wants embedded.
    pub texts: usize,
}

impl Call {
    /// Reads a request. `scripted`: the `x-fake` header, which wins over the model's name.
    pub fn read(id: u64, body: &[u8], scripted: Option<&str>) -> Result<Self, String> {
        let read: Body<'_> = serde_json::from_slice(body)
            .map_err(|error| format!("We could not parse the JSON body of your request. ({error})"))?;
        let script = Script::parse(scripted.unwrap_or(&read.model))?;
        let messages = read.messages.map(RawValue::get).unwrap_or_default();
        let mut content = Content::Tokens {
            count: script.tokens,
            size: script.token_bytes,
        };
        if script.echo {
            content = Content::Text(echo(body, messages));
        }
        let mut stop = Stop::Natural;
        if script.tools
            && let Some(tool) = read.tools.first()
            && !ends_with_tool_result(messages)
        {
            content = tool_call(tool);
            stop = Stop::Tool;
        }
        let texts = match &read.input {
            Some(Value::Array(items)) if items.first().is_some_and(|item| !item.is_number()) => items.len(),
            _ => 1,
        };
        let mut call = Self {
            id,
            service_tier: read.service_tier,
            texts,
            stream: read.stream,
            include_usage: read.stream_options.is_some_and(|options| options.include_usage),
            max_tokens: read
                .max_completion_tokens
                .or(read.max_tokens)
                .or(read.max_output_tokens),
            input_tokens: script.input_tokens.unwrap_or(body.len() as u64 / 4),
            thinking: script.think,
            model: read.model,
            script,
            content,
            stop,
            created: super::log::unix_us() / 1_000_000,
        };
        call.apply_limit();
        Ok(call)
    }

    /// The same for an endpoint: what is embedded is read and nothing is generated.
    pub fn at(mut self, endpoint: &str) -> Self {
        if endpoint == "/v1/embeddings" {
            self.content = Content::Tokens { count: 0, size: 0 };
            self.thinking = 0;
        }
        self
    }

    /// Flex has no room for the `seen`-th call (from 0) of a model that asks for it.
    pub fn is_crowded_out(&self, seen: u32) -> bool {
        self.service_tier.as_deref() == Some("flex") && seen < self.script.flex_busy
    }

    /// The tier that serves it, which the answer says and the bill follows.
    pub fn served_tier(&self) -> &'static str {
        match self.service_tier.as_deref() {
            Some("flex") if !self.script.no_flex => "flex",
            _ => "default",
        }
    }

    /// The caller's output limit counts thinking and text together, as with the real services.
    fn apply_limit(&mut self) {
        let Some(limit) = self.max_tokens else { return };
        if self.thinking > limit {
            self.thinking = limit;
            self.stop = Stop::Limit;
        }
        if let Content::Tokens { count, .. } = &mut self.content
            && *count > limit - self.thinking
        {
            *count = limit - self.thinking;
            self.stop = Stop::Limit;
        }
    }

    /// Pieces of content, thinking not included.
    pub fn pieces(&self) -> u32 {
        let count = match &self.content {
            Content::Tokens { count, .. } => *count as usize,
            Content::Text(_) => 1,
            Content::Tool { arguments, .. } => arguments.len().div_ceil(ARGUMENT_PIECE),
        };
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    pub fn piece(&self, index: u32) -> String {
        match &self.content {
            Content::Tokens { .. } if self.script.stamp => format!("tok{index}{STAMP} "),
            Content::Tokens { size, .. } => token_text(index, *size),
            Content::Text(text) => text.clone(),
            Content::Tool { arguments, .. } => {
                let from = index as usize * ARGUMENT_PIECE;
                arguments[from..arguments.len().min(from + ARGUMENT_PIECE)].to_owned()
            }
        }
    }

    /// The whole text or the whole arguments.
    pub fn whole(&self) -> String {
        (0..self.pieces()).map(|index| self.piece(index)).collect()
    }

    pub fn thought(&self) -> String {
        (0..self.thinking).map(|index| format!("think{index} ")).collect()
    }

    /// Tokens generated in all: thinking and content.
    pub fn output_tokens(&self) -> u32 {
        self.thinking + self.pieces()
    }

    /// The output tokens to report.
    pub fn reported_output(&self) -> u64 {
        let tokens = u64::from(self.output_tokens());
        if self.script.usage == UsageReport::Wrong {
            tokens * 10
        } else {
            tokens
        }
    }

    pub fn reports_usage(&self) -> bool {
        self.script.usage != UsageReport::Missing
    }
}

/// The hash of the whole body, and of the messages alone: a gateway may patch the fields around them, never them.
fn echo(body: &[u8], messages: &str) -> String {
    json!({
        "body_bytes": body.len(),
        "body_sha256": super::sha256_hex(body),
        "messages_sha256": super::sha256_hex(messages.as_bytes()),
    })
    .to_string()
}

fn ends_with_tool_result(messages: &str) -> bool {
    let messages: Vec<Value> = serde_json::from_str(messages).unwrap_or_default();
    let Some(last) = messages.last() else { return false };
    let block = last["content"].as_array().and_then(|blocks| blocks.first());
    last["role"] == "tool" || block.is_some_and(|block| block["type"] == "tool_result")
}

/// A call of `tool` (in either format) with a value for every property its schema names.
fn tool_call(tool: &Value) -> Content {
    let function = tool.get("function").unwrap_or(tool);
    let schema = function
        .get("parameters")
        .or_else(|| function.get("input_schema"));
    let properties = schema.and_then(|schema| schema["properties"].as_object());
    let arguments: serde_json::Map<String, Value> = properties
        .into_iter()
        .flatten()
        .map(|(name, property)| (name.clone(), sample(property)))
        .collect();
    Content::Tool {
        name: function["name"].as_str().unwrap_or("tool").to_owned(),
        arguments: Value::Object(arguments).to_string(),
    }
}

fn sample(property: &Value) -> Value {
    if let Some(first) = property["enum"].as_array().and_then(|values| values.first()) {
        return first.clone();
    }
    match property["type"].as_str() {
        Some("integer") => json!(3),
        Some("number") => json!(2.5),
        Some("boolean") => json!(true),
        Some("array") => json!([]),
        Some("object") => json!({}),
        _ => json!("Paris \"75\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_covers_thinking_and_text() {
        let body = br#"{"model":"fake-n10-think4","max_tokens":6,"messages":[]}"#;
        let call = Call::read(1, body, None).unwrap();
        assert_eq!((call.thinking, call.pieces(), call.stop), (4, 2, Stop::Limit));
    }

    #[test]
    fn tools_are_called_once() {
        let tools = r#""tools":[{"name":"f","input_schema":{"properties":{"city":{"type":"string"}}}}]"#;
        let ask =
            format!(r#"{{"model":"fake-tools",{tools},"messages":[{{"role":"user","content":"hi"}}]}}"#);
        let call = Call::read(1, ask.as_bytes(), None).unwrap();
        assert_eq!(call.stop, Stop::Tool);
        assert_eq!(call.whole(), r#"{"city":"Paris \"75\""}"#);
        let reply = format!(
            r#"{{"model":"fake-tools",{tools},"messages":[{{"role":"user","content":[{{"type":"tool_result"}}]}}]}}"#
        );
        assert_eq!(Call::read(2, reply.as_bytes(), None).unwrap().stop, Stop::Natural);
    }
}
