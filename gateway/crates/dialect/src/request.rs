//! Reading a request: one pass that checks the structure, collects the facts and remembers where the fields stand
//! that may have to be changed.
//!
//! Invariants: nothing is copied but the few short strings in the facts; a field that the gateway reads or changes
//! stands in the body once, and spelled plainly, so that no other parser finds another value than this one.

mod conversation;
mod words;

use crate::plain;
use crate::scan::{Broken, Cursor, Span};
use bytes::Bytes;
use conversation::Conversation;
use exchange::{Dialect, Facts, Surface, Thinking, ThinkingLevel};
use serde_json::Value;

/// A request as it came, with what was learnt from it.
#[derive(Clone, Debug)]
pub struct Request {
    pub dialect: Dialect,
    pub raw: Bytes,
    pub facts: Facts,
    /// When it arrived, in seconds since the epoch: the `created` of answers whose dialect has none. 0 until the
    /// gateway, which has the clock, sets it.
    pub received_unix_s: i64,
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

/// Where the values of fields stand that a gateway may have to change, and what else a change depends on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spots {
    pub(crate) model: Option<Span>,
    pub(crate) stream: Option<Span>,
    pub(crate) max_tokens: Option<Span>,
    pub(crate) max_completion_tokens: Option<Span>,
    pub(crate) max_output_tokens: Option<Span>,
    /// Texts in an `input`.
    pub(crate) inputs: u32,
    pub(crate) stream_options: Option<Span>,
    pub(crate) reasoning_effort: Option<Span>,
    pub(crate) thinking: Option<Span>,
    pub(crate) output_config: Option<Span>,
    /// The caller leaves the amount of thinking to the model (Anthropic's adaptive kinds).
    pub(crate) adaptive: bool,
    /// The closing brace.
    pub(crate) end: usize,
    /// The caller wants the usage in its stream.
    pub(crate) include_usage: bool,
    /// How many answers the caller wants (`n`); 0 where it did not say.
    pub(crate) choices: u32,
    /// The caller's own setting that excludes thinking at Anthropic.
    pub(crate) excludes_thinking: Option<&'static str>,
    /// The last message brings the result of a tool, in the middle of the model's turn.
    pub(crate) tool_loop: bool,
    /// Blocks of thinking without a signature: another dialect's, translated for the caller in an earlier turn.
    pub(crate) unsigned: Vec<Span>,
    /// The texts of the last message that the user wrote, quotes included.
    pub(crate) said: Vec<Span>,
}

/// Every top-level field that is read or changed here. Each may be given once.
const KNOWN: [&[u8]; 24] = [
    b"model",
    b"messages",
    b"system",
    b"tools",
    b"metadata",
    b"stream",
    b"max_tokens",
    b"max_completion_tokens",
    b"stream_options",
    b"reasoning_effort",
    b"thinking",
    b"service_tier",
    b"response_format",
    b"output_config",
    b"n",
    b"temperature",
    b"top_p",
    b"top_k",
    b"tool_choice",
    b"output_format",
    b"input",
    b"prompt",
    b"max_output_tokens",
    b"background",
];

/// More labels than this are not kept; what they label is passed on all the same.
const MOST_LABELS: usize = 64;

/// Reads a request body.
///
/// # Errors
/// Not JSON, or not a request: said in the caller's terms, with the byte or the field at fault.
pub fn read_request(dialect: Dialect, raw: Bytes) -> Result<Request, ReadError> {
    match dialect {
        Dialect::OpenaiChat => read_surface(Surface::ChatCompletions, raw),
        Dialect::Anthropic => read_surface(Surface::Messages, raw),
        other => Err(error(
            format!("requests in the dialect {other} are not served yet"),
            None,
        )),
    }
}

/// Reads the body of a request for an endpoint.
///
/// # Errors
/// Not JSON, or not a request: said in the caller's terms, with the byte or the field at fault.
pub fn read_surface(surface: Surface, raw: Bytes) -> Result<Request, ReadError> {
    let dialect = surface.dialect();
    simdutf8::basic::from_utf8(&raw).map_err(|_| {
        let valid = std::str::from_utf8(&raw).map_or_else(|invalid| invalid.valid_up_to(), str::len);
        error(format!("the body is not UTF-8: byte {valid} is invalid"), None)
    })?;
    let mut reader = Reader {
        text: &raw,
        spots: Spots::default(),
        facts: blank(dialect, surface),
        conversation: Conversation::new(&raw),
        effort: None,
        seen: 0,
        problem: None,
    };
    let mut cursor = Cursor::new(&raw);
    if cursor.peek() != b'{' {
        return Err(error("the body is not a JSON object".into(), None));
    }
    let read = cursor.object(|cursor, key| reader.field(cursor, key));
    reader.spots.end = cursor.at.saturating_sub(1);
    read.and_then(|()| cursor.end())
        .map_err(|Broken(at)| error(broken(&raw, at), None))?;
    let (facts, spots) = reader.finish()?;
    Ok(Request {
        dialect,
        raw,
        facts,
        received_unix_s: 0,
        spots,
    })
}

impl Request {
    /// How many texts an `input` holds; providers bound their sum over a batch of embeddings.
    pub fn inputs(&self) -> u32 {
        self.spots.inputs
    }
}

fn error(message: String, param: Option<&str>) -> ReadError {
    ReadError {
        message,
        param: param.map(ToOwned::to_owned),
    }
}

fn broken(raw: &[u8], at: usize) -> String {
    match raw.get(at) {
        None => format!("the body is not valid JSON: it ends too early, at byte {at}"),
        Some(byte) => format!(
            "the body is not valid JSON at byte {at}: unexpected `{}`",
            byte.escape_ascii()
        ),
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
        hour_cache: false,
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
    conversation: Conversation<'a>,
    /// Anthropic's `output_config.effort`.
    effort: Option<ThinkingLevel>,
    /// One bit for each of `KNOWN`.
    seen: u32,
    /// The first thing wrong with a field, although the JSON is right.
    problem: Option<ReadError>,
}

impl Reader<'_> {
    fn finish(self) -> Result<(Facts, Spots), ReadError> {
        let Self {
            mut spots,
            mut facts,
            conversation,
            effort,
            problem,
            ..
        } = self;
        if let Some(problem) = problem {
            return Err(problem);
        }
        if spots.model.is_none() {
            return Err(error("the field `model` is missing".into(), Some("model")));
        }
        let surface = facts.surface;
        if surface.is_plain() {
            let content = plain::content(surface);
            // A response may go on from what the provider has kept.
            if facts.input_tokens == 0 && surface != Surface::Responses {
                return Err(error(format!("the field `{content}` is missing"), Some(content)));
            }
            if facts.stream && surface == Surface::Embeddings {
                let problem = format!("answers of {} are not streamed here", surface.endpoint());
                return Err(error(problem, Some("stream")));
            }
            if surface == Surface::Embeddings {
                facts.max_output_tokens = Some(0);
            }
        } else if conversation.messages == 0 {
            return Err(error(
                "the field `messages` is missing or empty".into(),
                Some("messages"),
            ));
        }
        facts.body_bytes = self.text.len() as u64;
        facts.input_tokens += conversation.input_tokens();
        // A text that only speaks of it makes more money be held, not charged.
        facts.hour_cache =
            facts.dialect == Dialect::Anthropic && memchr::memmem::find(self.text, b"\"1h\"").is_some();
        facts.prefix_hash = conversation.prefix_hash();
        (facts.turns, facts.images, facts.tools) =
            (conversation.turns, conversation.images, conversation.tools);
        // The effort says how much; the thinking, whether.
        facts.thinking = match (facts.thinking, effort) {
            (None | Some(Thinking::Level(ThinkingLevel::High)), Some(effort)) => {
                Some(Thinking::Level(effort))
            }
            (thinking, _) => thinking,
        };
        spots.tool_loop = conversation.tool_loop;
        spots.unsigned = conversation.unsigned;
        spots.said = conversation.said;
        Ok((facts, spots))
    }

    fn field(&mut self, cursor: &mut Cursor<'_>, key: Span) -> Result<(), Broken> {
        self.check_key(&key);
        let key = &self.text[key];
        match (key, cursor.peek()) {
            _ if self.facts.surface.is_plain() => {}
            (b"messages", b'[') => return cursor.array(|cursor| self.message(cursor)),
            (b"messages", _) => self.wrong("the field `messages` must be an array", "messages"),
            (b"system", _) => return self.conversation.system(cursor),
            (b"tools", b'[') => return self.conversation.tools(cursor),
            (b"metadata", b'{') => return self.metadata(cursor),
            _ => {}
        }
        let span = cursor.skip()?;
        let value = &self.text[span.clone()];
        match key {
            b"model" => {
                self.facts.model = self.string(value, "model").unwrap_or_default();
                if self.facts.model.is_empty() {
                    self.wrong("the field `model` must name a model", "model");
                }
                self.spots.model = Some(span);
            }
            b"stream" => {
                self.facts.stream = value == b"true";
                if !matches!(value, b"true" | b"false" | b"null") {
                    self.wrong("the field `stream` must be true or false", "stream");
                }
                self.spots.stream = Some(span);
            }
            b"max_tokens" => {
                let limit = self.limit(value, "max_tokens");
                self.facts.max_output_tokens = self.facts.max_output_tokens.or(limit);
                self.spots.max_tokens = Some(span);
            }
            _ if self.facts.surface.is_plain() && self.plain(key, &span) => {}
            b"max_completion_tokens" => {
                let limit = self.limit(value, "max_completion_tokens");
                self.facts.max_output_tokens = limit.or(self.facts.max_output_tokens);
                self.spots.max_completion_tokens = Some(span);
            }
            _ => self.option(key, span),
        }
        Ok(())
    }

    /// The fields of endpoints that pass as they are; false for those that all have.
    fn plain(&mut self, key: &[u8], span: &Span) -> bool {
        let value = &self.text[span.clone()];
        match key {
            b"input" | b"prompt" | b"instructions" | b"tools" if value != b"null" => {
                self.facts.input_tokens += plain::weight(value);
                if key == b"input" && self.facts.surface == Surface::Embeddings {
                    self.spots.inputs = plain::inputs(value);
                }
            }
            b"max_output_tokens" => {
                self.facts.max_output_tokens = self.limit(value, "max_output_tokens");
                self.spots.max_output_tokens = Some(span.clone());
            }
            b"background" if value == b"true" => {
                let problem = "`background` is not served here: send the request as a job or in a batch";
                self.wrong(problem, "background");
            }
            b"service_tier" | b"metadata" | b"n" | b"stream_options" => return false,
            _ => {}
        }
        true
    }

    /// The fields of which only a little matters.
    fn option(&mut self, key: &[u8], span: Span) {
        let value = &self.text[span.clone()];
        let parse = || serde_json::from_slice::<Value>(value).unwrap_or_default();
        match key {
            b"stream_options" => {
                self.spots.include_usage = parse()["include_usage"] == true;
                self.spots.stream_options = Some(span);
            }
            b"reasoning_effort" => {
                let level = self.string(value, "reasoning_effort");
                self.facts.thinking = level.and_then(|level| level.parse().ok()).map(Thinking::Level);
                self.spots.reasoning_effort = Some(span);
            }
            b"thinking" => {
                let value = parse();
                self.facts.thinking = thinking(&value).or(self.facts.thinking);
                self.spots.adaptive = !matches!(value["type"].as_str(), None | Some("enabled" | "disabled"));
                self.spots.thinking = Some(span);
            }
            b"service_tier" => self.facts.service_tier = self.string(value, "service_tier"),
            b"response_format" | b"output_format" => {
                let format = parse();
                self.facts.structured_output |= format.is_object() && format["type"] != "text";
            }
            b"output_config" => {
                let config = parse();
                self.facts.structured_output |= config["format"].is_object();
                self.effort = config["effort"].as_str().and_then(|level| level.parse().ok());
                self.spots.output_config = Some(span);
            }
            b"n" => self.spots.choices = parse().as_u64().and_then(|n| n.try_into().ok()).unwrap_or(0),
            b"temperature" if parse().as_f64().is_some_and(|given| given < 1.0) => {
                self.excludes("temperature")
            }
            b"top_p" if parse().as_f64().is_some_and(|given| given < 0.95) => self.excludes("top_p"),
            b"top_k" if value != b"null" => self.excludes("top_k"),
            b"tool_choice" if matches!(parse()["type"].as_str(), Some("any" | "tool")) => {
                self.excludes("tool_choice")
            }
            _ => {}
        }
    }

    fn excludes(&mut self, name: &'static str) {
        self.spots.excludes_thinking.get_or_insert(name);
    }

    /// A key given twice, or in disguise, could be read by the provider and overlooked here.
    fn check_key(&mut self, key: &Span) {
        let written = &self.text[key.clone()];
        if written.contains(&b'\\') {
            let plain: String =
                serde_json::from_slice(&self.text[key.start - 1..=key.end]).unwrap_or_default();
            if KNOWN.contains(&plain.as_bytes()) {
                self.wrong(
                    &format!("the key `{plain}` must be written without escapes"),
                    &plain,
                );
            }
            return;
        }
        let Some(bit) = KNOWN.iter().position(|known| *known == written) else {
            return;
        };
        if self.seen & (1 << bit) != 0 {
            let name = String::from_utf8_lossy(written).into_owned();
            self.wrong(&format!("the field `{name}` is given twice"), &name);
        }
        self.seen |= 1 << bit;
    }

    fn wrong(&mut self, message: &str, param: &str) {
        self.problem
            .get_or_insert_with(|| error(message.into(), Some(param)));
    }

    fn string(&mut self, value: &[u8], name: &str) -> Option<Box<str>> {
        if value == b"null" {
            return None;
        }
        let read = serde_json::from_slice(value).ok();
        if read.is_none() {
            self.wrong(&format!("the field `{name}` must be a string"), name);
        }
        read
    }

    fn limit(&mut self, value: &[u8], name: &str) -> Option<u64> {
        if value == b"null" {
            return None;
        }
        let limit = serde_json::from_slice::<u64>(value)
            .ok()
            .filter(|tokens| *tokens > 0);
        if limit.is_none() {
            self.wrong(
                &format!("the field `{name}` must be a whole number above 0"),
                name,
            );
        }
        limit
    }

    fn message(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Broken> {
        if cursor.peek() == b'{' {
            return self.conversation.message(cursor);
        }
        self.wrong("every message must be an object", "messages");
        cursor.skip().map(drop)
    }

    fn metadata(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Broken> {
        cursor.object(|cursor, key| {
            let span = cursor.skip()?;
            if self.facts.labels.len() < MOST_LABELS
                && let Ok(key) = serde_json::from_slice::<String>(&self.text[key.start - 1..=key.end])
                && let Ok(value) = serde_json::from_slice::<Box<str>>(&self.text[span])
            {
                self.facts.labels.push((key.to_lowercase().into(), value));
            }
            Ok(())
        })
    }
}

/// Anthropic's `thinking`: switched off, a number of tokens, or as much as the model likes, which is what it calls a
/// high effort.
fn thinking(value: &Value) -> Option<Thinking> {
    let budget = value["budget_tokens"]
        .as_u64()
        .and_then(|tokens| u32::try_from(tokens).ok());
    match (value["type"].as_str()?, budget) {
        ("disabled", _) => Some(Thinking::Level(ThinkingLevel::None)),
        (_, Some(tokens)) => Some(Thinking::Tokens(tokens)),
        (_, None) => Some(Thinking::Level(ThinkingLevel::High)),
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
            (1, 1, 1, true)
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
