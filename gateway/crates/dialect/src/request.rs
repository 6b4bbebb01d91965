//! Reading a request: one pass that checks the structure, collects the facts and remembers where the fields stand
//! that may have to be changed.

use crate::scan::{Broken, Cursor, Span};
use bytes::Bytes;
use exchange::{Dialect, Facts, Surface, Thinking, ThinkingLevel};

/// A request as it came, with what was learnt from it.
#[derive(Clone, Debug)]
pub struct Request {
    pub dialect: Dialect,
    pub raw: Bytes,
    pub facts: Facts,
    pub(crate) spots: Spots,
}

/// The body is not a request in this dialect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ReadError {
    pub message: String,
    /// The field at fault, where it is one.
    pub param: Option<String>,
}

/// Where the values of fields stand that a gateway may have to change.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spots {
    pub(crate) model: Option<Span>,
    pub(crate) stream: Option<Span>,
    pub(crate) max_tokens: Option<Span>,
    pub(crate) max_completion_tokens: Option<Span>,
    pub(crate) stream_options: Option<Span>,
    pub(crate) reasoning_effort: Option<Span>,
    pub(crate) thinking: Option<Span>,
    /// The closing brace.
    pub(crate) end: usize,
    /// The caller wants the usage in its stream.
    pub(crate) include_usage: bool,
}

/// Tokens that a message costs beside its text, and an image at a usual size.
const MESSAGE_TOKENS: u64 = 4;
const IMAGE_TOKENS: u64 = 800;

/// Reads a request body.
///
/// # Errors
/// Not JSON, or not a request: said in the caller's terms.
pub fn read_request(dialect: Dialect, raw: Bytes) -> Result<Request, ReadError> {
    let surface = match dialect {
        Dialect::OpenaiChat => Surface::ChatCompletions,
        Dialect::Anthropic => Surface::Messages,
        other => {
            return Err(error(
                format!("requests in the dialect {other} are not served yet"),
                None,
            ));
        }
    };
    std::str::from_utf8(&raw).map_err(|invalid| {
        error(
            format!("the body is not UTF-8: byte {} is invalid", invalid.valid_up_to()),
            None,
        )
    })?;
    let mut reader = Reader {
        text: &raw,
        spots: Spots::default(),
        facts: blank(dialect, surface),
        problem: None,
        text_bytes: 0,
    };
    let mut cursor = Cursor::new(&raw);
    if cursor.peek() != b'{' {
        return Err(error("the body is not a JSON object".into(), None));
    }
    let read = cursor.object(|cursor, key| reader.field(cursor, key));
    reader.spots.end = cursor.at.saturating_sub(1);
    match read.and_then(|()| cursor.end()) {
        Err(_) if reader.problem.is_some() => {}
        Err(Broken(at)) => return Err(error(format!("the body is not valid JSON at byte {at}"), None)),
        Ok(()) => {}
    }
    let Reader {
        spots,
        mut facts,
        problem,
        text_bytes,
        ..
    } = reader;
    if let Some(problem) = problem {
        return Err(problem);
    }
    if spots.model.is_none() {
        return Err(error("the field `model` is missing".into(), Some("model")));
    }
    if facts.turns == 0 {
        return Err(error(
            "the field `messages` is missing or empty".into(),
            Some("messages"),
        ));
    }
    facts.body_bytes = raw.len() as u64;
    facts.input_tokens = text_bytes.div_ceil(4)
        + u64::from(facts.turns) * MESSAGE_TOKENS
        + u64::from(facts.images) * IMAGE_TOKENS;
    Ok(Request {
        dialect,
        raw,
        facts,
        spots,
    })
}

fn error(message: String, param: Option<&str>) -> ReadError {
    ReadError {
        message,
        param: param.map(ToOwned::to_owned),
    }
}

fn blank(dialect: Dialect, surface: Surface) -> Facts {
    Facts {
        dialect,
        surface,
        model: "".into(),
        stream: false,
        body_bytes: 0,
        input_tokens: 0,
        max_output_tokens: None,
        turns: 0,
        tools: 0,
        images: 0,
        structured_output: false,
        thinking: None,
        service_tier: None,
        workflow: None,
        deadline_ms: None,
        labels: Vec::new(),
        prefix_hash: 0,
    }
}

struct Reader<'a> {
    text: &'a [u8],
    spots: Spots,
    facts: Facts,
    /// What is wrong with a field, although the JSON is right.
    problem: Option<ReadError>,
    text_bytes: u64,
}

impl Reader<'_> {
    fn field(&mut self, cursor: &mut Cursor<'_>, key: Span) -> Result<(), Broken> {
        let key = &self.text[key];
        match key {
            b"messages" => return self.messages(cursor),
            b"system" => {
                let span = cursor.skip()?;
                self.text_bytes += span.len() as u64;
                self.prefix(&span);
                return Ok(());
            }
            b"tools" => return self.tools(cursor),
            b"metadata" => return self.metadata(cursor),
            _ => {}
        }
        // A key in disguise would be read by the provider and overlooked here.
        if key.contains(&b'\\') {
            self.wrong(
                "keys must be written without escapes",
                std::str::from_utf8(key).ok(),
            );
        }
        let span = cursor.skip()?;
        let value = &self.text[span.clone()];
        match key {
            b"model" => {
                self.facts.model = self.string(value, "model").unwrap_or_default().into();
                self.once("model", |spots| &mut spots.model, span);
            }
            b"stream" => {
                self.facts.stream = value == b"true";
                self.once("stream", |spots| &mut spots.stream, span);
            }
            b"max_tokens" => {
                self.limit(value, "max_tokens");
                self.once("max_tokens", |spots| &mut spots.max_tokens, span);
            }
            b"max_completion_tokens" => {
                self.limit(value, "max_completion_tokens");
                self.once(
                    "max_completion_tokens",
                    |spots| &mut spots.max_completion_tokens,
                    span,
                );
            }
            b"stream_options" => {
                let options: Option<serde_json::Value> = serde_json::from_slice(value).ok();
                self.spots.include_usage = options.is_some_and(|options| options["include_usage"] == true);
                self.once("stream_options", |spots| &mut spots.stream_options, span);
            }
            b"reasoning_effort" => {
                self.facts.thinking = self
                    .string(value, "reasoning_effort")
                    .and_then(|level| level.parse().ok().map(Thinking::Level));
                self.once("reasoning_effort", |spots| &mut spots.reasoning_effort, span);
            }
            b"thinking" => {
                self.facts.thinking = thinking(value);
                self.once("thinking", |spots| &mut spots.thinking, span);
            }
            b"service_tier" => self.facts.service_tier = self.string(value, "service_tier").map(Into::into),
            b"response_format" => {
                let format: Option<serde_json::Value> = serde_json::from_slice(value).ok();
                self.facts.structured_output =
                    format.is_some_and(|format| format["type"] != "text" && format.is_object());
            }
            _ => {}
        }
        Ok(())
    }

    fn once(&mut self, name: &str, spot: impl Fn(&mut Spots) -> &mut Option<Span>, span: Span) {
        if spot(&mut self.spots).replace(span).is_some() {
            self.wrong(&format!("the field `{name}` is given twice"), Some(name));
        }
    }

    fn wrong(&mut self, message: &str, param: Option<&str>) {
        self.problem.get_or_insert_with(|| error(message.into(), param));
    }

    fn string(&mut self, value: &[u8], name: &str) -> Option<String> {
        if value == b"null" {
            return None;
        }
        let read = serde_json::from_slice(value).ok();
        if read.is_none() {
            self.wrong(&format!("the field `{name}` must be a string"), Some(name));
        }
        read
    }

    fn limit(&mut self, value: &[u8], name: &str) {
        if value == b"null" {
            return;
        }
        match serde_json::from_slice::<u64>(value) {
            Ok(tokens) if tokens > 0 => self.facts.max_output_tokens = Some(tokens),
            _ => self.wrong(
                &format!("the field `{name}` must be a whole number above 0"),
                Some(name),
            ),
        }
    }

    /// Folds a piece of the conversation's stable beginning into the prefix hash (FNV-1a, eight bytes at a time).
    fn prefix(&mut self, span: &Span) {
        let mut hash = self.facts.prefix_hash ^ 0xcbf2_9ce4_8422_2325;
        for chunk in self.text[span.clone()].chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            hash = (hash ^ u64::from_le_bytes(word))
                .wrapping_mul(0x0000_0100_0000_01b3)
                .rotate_left(23);
        }
        self.facts.prefix_hash = hash;
    }

    fn messages(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Broken> {
        if cursor.peek() != b'[' {
            self.wrong("the field `messages` must be an array", Some("messages"));
            return cursor.skip().map(drop);
        }
        cursor.array(|cursor| {
            if cursor.peek() != b'{' {
                self.wrong("every message must be an object", Some("messages"));
                return cursor.skip().map(drop);
            }
            let start = cursor.at;
            self.facts.turns += 1;
            cursor.object(|cursor, key| match &self.text[key] {
                b"content" => self.content(cursor),
                _ => {
                    self.text_bytes += cursor.skip()?.len() as u64;
                    Ok(())
                }
            })?;
            // The system message and the first turn of the user stay the same for a whole conversation.
            if self.facts.turns <= 2 {
                self.prefix(&(start..cursor.at));
            }
            Ok(())
        })
    }

    fn content(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Broken> {
        if cursor.peek() != b'[' {
            self.text_bytes += cursor.skip()?.len() as u64;
            return Ok(());
        }
        cursor.array(|cursor| {
            if cursor.peek() != b'{' {
                return cursor.skip().map(drop);
            }
            let (start, mut is_image) = (cursor.at, false);
            cursor.object(|cursor, key| {
                let span = cursor.skip()?;
                if &self.text[key] == b"type" {
                    is_image = matches!(&self.text[span], b"\"image_url\"" | b"\"image\"");
                }
                Ok(())
            })?;
            if is_image {
                self.facts.images += 1;
            } else {
                self.text_bytes += (cursor.at - start) as u64;
            }
            Ok(())
        })
    }

    fn tools(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Broken> {
        if cursor.peek() != b'[' {
            return cursor.skip().map(drop);
        }
        let start = cursor.at;
        cursor.array(|cursor| {
            self.facts.tools += 1;
            cursor.skip().map(drop)
        })?;
        self.text_bytes += (cursor.at - start) as u64;
        self.prefix(&(start..cursor.at));
        Ok(())
    }

    fn metadata(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Broken> {
        if cursor.peek() != b'{' {
            return cursor.skip().map(drop);
        }
        cursor.object(|cursor, key| {
            let span = cursor.skip()?;
            let key = String::from_utf8_lossy(&self.text[key]).to_lowercase();
            if let Ok(value) = serde_json::from_slice::<String>(&self.text[span]) {
                self.facts.labels.push((key.into(), value.into()));
            }
            Ok(())
        })
    }
}

/// Anthropic's `thinking`: switched off, or a number of tokens.
fn thinking(value: &[u8]) -> Option<Thinking> {
    let value: serde_json::Value = serde_json::from_slice(value).ok()?;
    match value["type"].as_str()? {
        "disabled" => Some(Thinking::Level(ThinkingLevel::None)),
        _ => value["budget_tokens"]
            .as_u64()
            .and_then(|tokens| u32::try_from(tokens).ok())
            .map(Thinking::Tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Request, ReadError> {
        read_request(Dialect::OpenaiChat, Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn facts_are_collected_in_one_pass() {
        let request = read(
            r#"{"model": "gpt-4o", "stream": true, "max_tokens": 50, "stream_options": {"include_usage": true},
            "messages": [{"role": "system", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "what is this?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}],
            "tools": [{"type": "function", "function": {"name": "f"}}], "metadata": {"Feature": "chat"},
            "response_format": {"type": "json_object"}, "reasoning_effort": "low"}"#,
        )
        .unwrap();
        let facts = &request.facts;
        assert_eq!(
            (&*facts.model, facts.stream, facts.max_output_tokens),
            ("gpt-4o", true, Some(50))
        );
        assert_eq!(
            (facts.turns, facts.tools, facts.images, facts.structured_output),
            (2, 1, 1, true)
        );
        assert_eq!(facts.thinking, Some(Thinking::Level(ThinkingLevel::Low)));
        assert_eq!(facts.label("feature"), Some("chat"));
        assert!(request.spots.include_usage && facts.input_tokens > 800 && facts.input_tokens < 900);
    }

    #[test]
    fn mistakes_are_told_by_place() {
        let message = |text| read(text).unwrap_err().message;
        assert!(
            message("{\"model\": }").contains("byte 10"),
            "{}",
            message("{\"model\": }")
        );
        assert!(message("[]").contains("not a JSON object"));
        assert!(message(r#"{"messages": [{}]}"#).contains("`model` is missing"));
        assert!(message(r#"{"model": "m"}"#).contains("`messages` is missing"));
        assert!(message(r#"{"model": "m", "model": "n", "messages": [{}]}"#).contains("given twice"));
        assert!(
            message(r#"{"model": "m", "mod\u0065l": "n", "messages": [{}]}"#).contains("without escapes")
        );
        assert!(message(r#"{"model": 5, "messages": [{}]}"#).contains("must be a string"));
        assert!(message(r#"{"model": "m", "max_tokens": -1, "messages": [{}]}"#).contains("whole number"));
    }

    #[test]
    fn turns_of_one_conversation_share_their_prefix() {
        let turn = |more: &str| {
            read(&format!(r#"{{"model":"m","messages":[{{"role":"system","content":"s"}},{{"role":"user","content":"u"}}{more}]}}"#))
                .unwrap()
                .facts
                .prefix_hash
        };
        assert_eq!(
            turn(""),
            turn(r#",{"role":"assistant","content":"a"},{"role":"user","content":"v"}"#)
        );
        assert_ne!(
            turn(""),
            read(r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#)
                .unwrap()
                .facts
                .prefix_hash
        );
    }
}
