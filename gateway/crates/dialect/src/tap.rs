//! The tap on an upstream's stream: what was generated, used and served, read off the events as they pass.
//!
//! The usual event is counted without being parsed; all others are parsed once, and the parsed form is handed on to
//! whoever translates or folds. Invariant: both ways count alike.

use crate::answer::AnswerError;
use crate::neutral::{Finish, Kind, Seen};
use crate::plain::responses::Response;
use crate::scan::{Span, string_lengths};
use crate::{anthropic, error, openai};
use exchange::{Dialect, Surface, Usage};
use memchr::memmem::Finder;
use serde_json::Value;
use std::sync::LazyLock;

/// What has been seen of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of text, thinking and tool arguments, in UTF-8.
    pub output_bytes: u64,
    /// Events that carried any of it.
    pub deltas: u64,
    /// Something was generated.
    pub started: bool,
    /// What the provider reported; of its input alone until the answer is complete.
    pub usage: Option<Usage>,
    pub finish: Option<Finish>,
    /// The answer came to its own end.
    pub complete: bool,
    /// The model that the provider says it used.
    pub model_served: Option<Box<str>>,
    /// The tier that the provider says it served, which is the one it charges.
    pub service_tier: Option<Box<str>>,
    /// What the provider says the answer cost, in nano-dollars: our own engine does.
    pub cost_nanodollars: Option<i64>,
}

impl Progress {
    pub(crate) fn generated(&mut self, bytes: usize) {
        if bytes > 0 {
            self.output_bytes += bytes as u64;
            self.deltas += 1;
            self.started = true;
        }
    }

    /// Takes the cost that a `usage` tells, if it tells one: an engine that was given no price says 0, and its answers
    /// are charged by the price book.
    pub(crate) fn told_cost(&mut self, usage: &Value) {
        if let Some(cost) = usage["x_local_cost_nanodollars"]
            .as_i64()
            .filter(|cost| *cost > 0)
        {
            self.cost_nanodollars = Some(cost);
        }
    }

    pub(crate) fn served(&mut self, model: &Value, tier: &Value) {
        if let Some(model) = model.as_str().filter(|model| !model.is_empty()) {
            self.model_served = Some(model.into());
        }
        if let Some(tier) = tier.as_str() {
            self.service_tier = Some(tier.into());
        }
    }
}

/// What whoever reads behind the tap needs of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Counts,
    Events,
}

#[derive(Debug)]
pub(crate) struct Tap {
    pub(crate) progress: Progress,
    /// The id, the model and the time in the first event.
    pub(crate) head: Option<Value>,
    /// Anthropic's content blocks that have begun and not ended.
    pub(crate) open: Vec<u64>,
    dialect: Dialect,
    need: Need,
    counts: anthropic::Counts,
    shape: Shape,
    /// Of a response, whose events are of their own kind.
    pub(crate) response: Option<Response>,
}

impl Tap {
    pub(crate) fn new((dialect, surface): (Dialect, Surface), need: Need) -> Self {
        Self {
            progress: Progress::default(),
            head: None,
            open: Vec::new(),
            dialect,
            need,
            counts: anthropic::Counts::default(),
            shape: Shape::default(),
            response: (surface == Surface::Responses).then(Response::default),
        }
    }

    /// Notes what one event's data says.
    ///
    /// # Errors
    /// It is the provider's error.
    pub(crate) fn event(&mut self, data: &[u8]) -> Result<Seen, AnswerError> {
        if let Some(response) = &mut self.response {
            return response.event(data, &mut self.progress);
        }
        if data == b"[DONE]" {
            self.progress.complete |= self.dialect == Dialect::OpenaiChat;
            return Ok(Seen::Done);
        }
        if let Some((seen, bytes)) = self.usual(data) {
            self.progress.generated(bytes);
            return Ok(seen);
        }
        let event = match serde_json::from_slice::<Value>(data) {
            Ok(event) => event,
            // A stream that is passed on is the caller's to judge; one that is read must not lose a part unnoticed.
            Err(error) if self.need == Need::Events && data.starts_with(b"{") => {
                return Err(AnswerError::Invalid(error.to_string()));
            }
            Err(_) => return Ok(Seen::Counted),
        };
        if let Some(message) = error::in_stream(&event) {
            return Err(AnswerError::Reported(message));
        }
        match self.dialect {
            Dialect::Anthropic => self.anthropic(&event),
            _ => self.openai(data, &event),
        }
        Ok(Seen::Event(event))
    }

    /// The event that makes up nearly all of a stream: a piece of text and nothing else.
    fn usual(&self, data: &[u8]) -> Option<(Seen, usize)> {
        self.head.as_ref()?;
        if self.dialect == Dialect::Anthropic {
            return anthropic_piece(data);
        }
        if self.need == Need::Counts {
            return Some((Seen::Counted, openai_text(data)?));
        }
        let (span, bytes) = self.shape.text(data)?;
        let (kind, index) = (Kind::Text, self.shape.choice);
        Some((Seen::Piece { kind, index, span }, bytes))
    }

    fn openai(&mut self, data: &[u8], chunk: &Value) {
        let progress = &mut self.progress;
        progress.served(&chunk["model"], &chunk["service_tier"]);
        let mut bytes = 0;
        for choice in chunk["choices"].as_array().into_iter().flatten() {
            // Completions have a text where chat has a delta.
            bytes += openai::generated_bytes(&choice["delta"]) + choice["text"].as_str().map_or(0, str::len);
            // Where there are several answers, the first one's reason is told.
            let counts = choice["index"] == 0 || progress.finish.is_none();
            if let Some(reason) = choice["finish_reason"].as_str().filter(|_| counts) {
                progress.finish = Some(openai::answer::finish(reason));
            }
        }
        progress.generated(bytes);
        if let Some(usage) = openai::usage(&chunk["usage"]) {
            progress.usage = Some(usage);
            progress.told_cost(&chunk["usage"]);
        }
        if self.head.is_none() {
            let field = |name: &str| (name.to_owned(), chunk[name].clone());
            self.head = Some(["id", "created", "model"].map(field).into_iter().collect());
        }
        if self.need == Need::Events {
            self.shape.learn(data, chunk);
        }
    }

    fn anthropic(&mut self, event: &Value) {
        let progress = &mut self.progress;
        let index = event["index"].as_u64().unwrap_or(0);
        match event["type"].as_str().unwrap_or_default() {
            "message_start" => {
                let message = &event["message"];
                progress.served(&message["model"], &message["usage"]["service_tier"]);
                self.counts.input(&message["usage"]);
                progress.usage = Some(self.counts.usage());
                let field = |name: &str| (name.to_owned(), message[name].clone());
                self.head = Some(["id", "model"].map(field).into_iter().collect());
            }
            "content_block_start" => {
                self.open.push(index);
                progress.generated(anthropic::generated_bytes(&event["content_block"]));
            }
            "content_block_delta" => progress.generated(anthropic::generated_bytes(&event["delta"])),
            "content_block_stop" => self.open.retain(|open| *open != index),
            "message_delta" => {
                if let Some(reason) = event["delta"]["stop_reason"].as_str() {
                    progress.finish = Some(anthropic::answer::finish(reason));
                }
                progress.served(&Value::Null, &event["usage"]["service_tier"]);
                self.counts.input(&event["usage"]);
                self.counts.output(&event["usage"]);
                progress.told_cost(&event["usage"]);
                progress.usage = Some(self.counts.usage());
            }
            "message_stop" => progress.complete = true,
            _ => {}
        }
    }
}

macro_rules! finder {
    ($name:ident, $needle:literal) => {
        static $name: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new($needle));
    };
}

finder!(CONTENT, b"\"delta\":{\"content\":\"");
finder!(KEY, b"\"content\"");
finder!(USAGE, b"\"usage\":{");
finder!(FINISH, b"\"finish_reason\":\"");

/// The bytes of text in an OpenAI chunk whose delta is text and nothing else. Inside a string the needles cannot be
/// found, for their quotes would be escaped there.
fn openai_text(data: &[u8]) -> Option<usize> {
    let start = CONTENT.find(data)? + CONTENT.needle().len();
    let (length, bytes) = string_lengths(&data[start..])?;
    let alone = data[start + length..].starts_with(b"\"}");
    (alone && FINISH.find(data).is_none() && USAGE.find(data).is_none()).then_some(bytes)
}

/// A delta of text, thinking or arguments in the spelling Anthropic uses, which pads some events with spaces.
fn anthropic_piece(data: &[u8]) -> Option<(Seen, usize)> {
    const KINDS: [(Kind, &[u8]); 3] = [
        (Kind::Text, b"text_delta\",\"text\":\""),
        (Kind::Thinking, b"thinking_delta\",\"thinking\":\""),
        (Kind::Arguments, b"input_json_delta\",\"partial_json\":\""),
    ];
    let rest = data.strip_prefix(b"{\"type\":\"content_block_delta\",\"index\":")?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let index = std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?;
    let rest = rest[digits..].strip_prefix(b",\"delta\":{\"type\":\"")?;
    let (kind, rest) = KINDS
        .iter()
        .find_map(|(kind, spelling)| Some((*kind, rest.strip_prefix(*spelling)?)))?;
    let start = data.len() - rest.len();
    let (length, bytes) = string_lengths(rest)?;
    let closing = rest[length..].iter().filter(|byte| **byte != b' ');
    let span = start..start + length;
    closing
        .eq(b"\"}}")
        .then_some((Seen::Piece { kind, index, span }, bytes))
}

/// The bytes around the text of the last chunk that was text and nothing else. A chunk that differs from it in the text
/// alone says nothing new beside the text.
#[derive(Debug, Default)]
struct Shape {
    head: Vec<u8>,
    tail: Vec<u8>,
    choice: u64,
}

impl Shape {
    fn text(&self, data: &[u8]) -> Option<(Span, usize)> {
        let inner = data.strip_prefix(self.head.as_slice())?;
        let length = inner.strip_suffix(self.tail.as_slice())?.len();
        let (written, bytes) = string_lengths(inner)?;
        let start = self.head.len();
        (!self.tail.is_empty() && written == length).then_some((start..start + written, bytes))
    }

    fn learn(&mut self, data: &[u8], chunk: &Value) {
        self.tail.clear();
        let Some([choice]) = chunk["choices"].as_array().map(Vec::as_slice) else {
            return;
        };
        let delta = choice["delta"].as_object().filter(|delta| delta.len() == 1);
        let Some(text) = delta.and_then(|delta| delta.get("content")?.as_str()) else {
            return;
        };
        let plain =
            choice["finish_reason"].is_null() && choice["logprobs"].is_null() && chunk["usage"].is_null();
        let Some(key) = KEY.find(data).filter(|_| plain) else {
            return;
        };
        let colon = key + KEY.needle().len();
        let Some(quote) = memchr::memchr(b'"', &data[colon..]) else {
            return;
        };
        let start = colon + quote + 1;
        let Some((length, _)) = string_lengths(&data[start..]) else {
            return;
        };
        if crate::neutral::unescape(data, &(start..start + length)) == text {
            self.head.clear();
            self.head.extend_from_slice(&data[..start]);
            self.tail.extend_from_slice(&data[start + length..]);
            self.choice = choice["index"].as_u64().unwrap_or(0);
        }
    }
}
