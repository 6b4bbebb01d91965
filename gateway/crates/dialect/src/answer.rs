//! An upstream's answer on its way to the caller: passed through or translated, folded or streamed, and tapped for
//! what it used.
//!
//! Invariant: however the upstream's bytes are cut into chunks, the caller gets the same bytes, and whole events only,
//! so that an ending of our own can follow at any moment.

use crate::fold::Fold;
use crate::neutral::{Seen, Step};
use crate::request::Request;
use crate::sse::{self, Splitter};
use crate::tap::{Need, Progress, Tap};
use crate::{anthropic, error, openai, plain};
use bytes::Bytes;
use exchange::{Dialect, Refusal, Surface, TokenClass, Usage, UsageSource};
use serde_json::Value;
use std::ops::Range;

/// What the caller asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    Stream,
    Whole,
}

/// The answer cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    #[error("the provider reported an error in its answer: {0}")]
    Reported(String),
    #[error("the provider's stream ended before its answer did")]
    Cut,
    #[error("the provider's answer is not one: {0}")]
    Invalid(String),
}

/// One answer, from the first byte of the upstream's stream to the last of the caller's.
#[derive(Debug)]
pub struct Answer {
    upstream: Dialect,
    caller: Dialect,
    surface: Surface,
    splitter: Splitter,
    tap: Tap,
    /// `None`: the events pass as they are.
    translation: Option<Translation>,
    fold: Option<Fold>,
    /// The usage was asked for by us alone: its event does not go on.
    hide_usage: bool,
    /// The caller wants the usage in its stream.
    include_usage: bool,
    choices: u32,
    input_tokens: u64,
    /// Told once everything before it has been passed on.
    broken: Option<AnswerError>,
}

impl Answer {
    pub fn new(request: &Request, upstream: Dialect, delivery: Delivery) -> Self {
        let caller = request.dialect;
        let translation = (caller != upstream).then(|| Translation::new(request, upstream));
        let fold = (delivery == Delivery::Whole).then(|| Fold::new(caller));
        let need = if translation.is_none() && fold.is_none() {
            Need::Counts
        } else {
            Need::Events
        };
        let include_usage = request.spots.include_usage;
        Self {
            upstream,
            caller,
            splitter: Splitter::default(),
            tap: Tap::new((upstream, request.facts.surface), need),
            surface: request.facts.surface,
            translation,
            fold,
            hide_usage: upstream == Dialect::OpenaiChat && !include_usage,
            include_usage,
            choices: request.spots.choices,
            input_tokens: request.facts.input_tokens,
            broken: None,
        }
    }

    /// What has been seen so far.
    pub fn progress(&self) -> &Progress {
        &self.tap.progress
    }

    /// Takes bytes of the upstream's stream; returns those for the caller, which are the same ones where nothing has
    /// to change, and none where the answer is folded.
    ///
    /// # Errors
    /// The provider reported an error in its stream, or sent what is no answer. What came before it in the same chunk
    /// is returned first, and the error by the next call.
    pub fn push(&mut self, chunk: Bytes) -> Result<Bytes, AnswerError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        let too_long = |_| AnswerError::Invalid("one event of its stream has no end".into());
        let block = self.splitter.take(chunk).map_err(too_long)?;
        self.block(block)
    }

    /// Takes whole events.
    fn block(&mut self, block: Bytes) -> Result<Bytes, AnswerError> {
        let (mut translated, mut hidden, mut at) = (Vec::new(), Vec::new(), 0);
        for event in sse::events(&block) {
            let range = at..at + event.raw.len();
            if event.data.is_empty() {
                at = range.end;
                continue;
            }
            let seen = match self.tap.event(&event.data) {
                Ok(seen) => seen,
                Err(error) => {
                    self.broken = Some(error);
                    break;
                }
            };
            at = range.end;
            if let Some(translation) = &mut self.translation {
                translation.write(&seen, &event.data, &self.tap.progress, &mut translated);
            } else if let Some(fold) = &mut self.fold {
                fold.push(seen, &event.data);
            } else if self.hide_usage && is_usage_alone(&seen) {
                hidden.push(range);
            }
        }
        let out = match (&self.translation, &mut self.fold) {
            (Some(_), Some(fold)) => {
                fold_events(fold, &translated);
                Bytes::new()
            }
            (Some(_), None) => translated.into(),
            (None, Some(_)) => Bytes::new(),
            (None, None) => without(block.slice(..at), &hidden),
        };
        match &self.broken {
            Some(error) if out.is_empty() => Err(error.clone()),
            _ => Ok(out),
        }
    }

    /// The upstream's stream has ended. Returns the tail of the caller's stream, or the whole folded answer.
    ///
    /// # Errors
    /// It ended before the answer did.
    pub fn finish(&mut self) -> Result<Bytes, AnswerError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        let mut tail = Vec::new();
        let rest = self.splitter.rest();
        if !rest.is_empty() && !self.tap.progress.complete {
            // Some servers leave out the last blank line. What is no event is what was cut.
            let closed = Bytes::from([&rest, &b"\n\n"[..]].concat());
            let out = self.block(closed);
            match (out, self.broken.take()) {
                (_, Some(AnswerError::Reported(message))) => return Err(AnswerError::Reported(message)),
                (Ok(out), None) => tail.extend_from_slice(&out),
                _ => return Err(AnswerError::Cut),
            }
        }
        let progress = &self.tap.progress;
        // Some servers end with the finish reason and leave the terminal event out.
        if !progress.complete && progress.finish.is_some() && self.upstream == Dialect::OpenaiChat {
            tail.extend_from_slice(&self.block(Bytes::from_static(b"data: [DONE]\n\n"))?);
        }
        if !self.tap.progress.complete {
            return Err(AnswerError::Cut);
        }
        Ok(match self.fold.take() {
            Some(fold) => fold.into_answer().to_string().into(),
            None => tail.into(),
        })
    }

    /// Ends the answer where it is, as if the caller's limit had been reached.
    pub fn end_by_budget(&mut self) -> Bytes {
        let usage = self.usage_so_far();
        if let Some(fold) = self.fold.take() {
            return fold.into_early_answer(&usage).to_string().into();
        }
        if let Some(translation) = &mut self.translation {
            return translation.end_early(usage, self.tap.head.is_some()).into();
        }
        if let Some(response) = &self.tap.response {
            return response.end_early(&usage).into();
        }
        let shown = self.include_usage.then_some(&usage);
        match (self.caller, &self.tap.head) {
            (Dialect::Anthropic, head) => {
                anthropic::answer::end_early(head.is_some(), &self.tap.open, &usage)
            }
            (_, head) => {
                let head = head.as_ref().unwrap_or(&Value::Null);
                openai::answer::end_early(self.surface, (head, self.choices), shown)
            }
        }
        .into()
    }

    /// What the provider has said of the usage, and what was counted where it has not.
    fn usage_so_far(&self) -> Usage {
        let progress = &self.tap.progress;
        let told = progress.usage.unwrap_or_default();
        let input = if told.input_total() == 0 {
            Usage::default().with(TokenClass::Input, self.input_tokens)
        } else {
            told
        };
        let counted = progress.deltas.max(progress.output_bytes / 4);
        let mut usage = input
            .with(TokenClass::Output, counted.max(told.output_total()))
            .with(TokenClass::Reasoning, 0);
        usage.source = UsageSource::Counted;
        usage
    }

    /// The event that tells the caller why its stream breaks off.
    pub fn error_event(&mut self, refusal: &Refusal) -> Bytes {
        match &self.tap.response {
            Some(response) => response.error_event(refusal).into(),
            None => error::event(self.caller, refusal),
        }
    }
}

/// The bytes but for some ranges of them.
fn without(bytes: Bytes, hidden: &[Range<usize>]) -> Bytes {
    if hidden.is_empty() {
        return bytes;
    }
    let (mut out, mut from) = (Vec::with_capacity(bytes.len()), 0);
    for range in hidden {
        out.extend_from_slice(&bytes[from..range.start]);
        from = range.end;
    }
    out.extend_from_slice(&bytes[from..]);
    out.into()
}

/// An OpenAI chunk that carries the usage and nothing else.
fn is_usage_alone(seen: &Seen) -> bool {
    matches!(seen, Seen::Event(chunk) if chunk["usage"].is_object()
        && chunk["choices"].as_array().is_some_and(Vec::is_empty))
}

fn fold_events(fold: &mut Fold, stream: &[u8]) {
    for event in sse::events(stream) {
        if let Ok(value) = serde_json::from_slice(&event.data) {
            fold.push(Seen::Event(value), &event.data);
        }
    }
}

/// From the upstream's dialect to the caller's.
#[derive(Debug)]
struct Translation {
    reader: Reader,
    writer: Writer,
    steps: Vec<Step>,
}

#[derive(Debug)]
enum Reader {
    OpenaiChat(openai::answer::Reader),
    Anthropic(anthropic::answer::Reader),
}

#[derive(Debug)]
enum Writer {
    OpenaiChat(openai::answer::Writer),
    Anthropic(anthropic::answer::Writer),
}

impl Translation {
    fn new(request: &Request, upstream: Dialect) -> Self {
        let reader = match upstream {
            Dialect::Anthropic => Reader::Anthropic(anthropic::answer::Reader::default()),
            _ => Reader::OpenaiChat(openai::answer::Reader::default()),
        };
        Self {
            reader,
            writer: Writer::new(request),
            steps: Vec::new(),
        }
    }

    fn write(&mut self, seen: &Seen, data: &[u8], progress: &Progress, out: &mut Vec<u8>) {
        match &mut self.reader {
            Reader::OpenaiChat(reader) => reader.steps(seen, data, &mut self.steps),
            Reader::Anthropic(reader) => reader.steps(seen, data, &mut self.steps),
        }
        self.writer.write(self.steps.drain(..), progress.usage, out);
    }

    fn end_early(&mut self, usage: Usage, begun: bool) -> Vec<u8> {
        let (mut out, mut steps) = (Vec::new(), Vec::new());
        if !begun {
            let (id, model, created_unix_s) = ("0".to_owned(), String::new(), None);
            steps.push(Step::Begin {
                id,
                model,
                created_unix_s,
            });
        }
        steps.extend([Step::Finish(crate::neutral::Finish::Length), Step::End]);
        self.writer.write(steps, Some(usage), &mut out);
        out
    }
}

impl Writer {
    fn new(request: &Request) -> Self {
        match request.dialect {
            Dialect::Anthropic => Self::Anthropic(anthropic::answer::Writer::default()),
            _ => {
                let include_usage = request.spots.include_usage || !request.facts.stream;
                Self::OpenaiChat(openai::answer::Writer::new(
                    include_usage,
                    request.received_unix_s,
                ))
            }
        }
    }

    fn write(&mut self, steps: impl IntoIterator<Item = Step>, usage: Option<Usage>, out: &mut Vec<u8>) {
        match self {
            Self::OpenaiChat(writer) => writer.usage = usage,
            Self::Anthropic(writer) => writer.usage = usage,
        }
        for step in steps {
            match self {
                Self::OpenaiChat(writer) => writer.write(step, out),
                Self::Anthropic(writer) => writer.write(step, out),
            }
        }
    }
}

/// Reads an answer that came as one JSON body. Returns it as the caller asked for it: whole or as a stream.
///
/// # Errors
/// The body is not an answer, or is the provider's error.
pub fn read_answer(
    request: &Request,
    upstream: Dialect,
    body: Bytes,
) -> Result<(Bytes, Progress), AnswerError> {
    if request.facts.surface.is_plain() {
        let progress = crate::whole::read_plain(&body)?;
        if !request.facts.stream {
            return Ok((body, progress));
        }
        let answer = serde_json::from_slice(&body);
        let answer = answer.map_err(|error| AnswerError::Invalid(error.to_string()))?;
        return Ok((plain::as_stream(request.facts.surface, answer).into(), progress));
    }
    let progress = crate::whole::read(upstream, &body)?;
    if request.dialect == upstream && !request.facts.stream {
        return Ok((body, progress));
    }
    let value: Value =
        serde_json::from_slice(&body).map_err(|error| AnswerError::Invalid(error.to_string()))?;
    let steps = match upstream {
        Dialect::Anthropic => anthropic::answer::explode(&value),
        _ => openai::answer::explode(&value),
    };
    let mut stream = Vec::new();
    Writer::new(request).write(steps, progress.usage, &mut stream);
    if request.facts.stream {
        return Ok((stream.into(), progress));
    }
    let mut fold = Fold::new(request.dialect);
    fold_events(&mut fold, &stream);
    Ok((fold.into_answer().to_string().into(), progress))
}
