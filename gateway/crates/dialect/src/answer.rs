//! An upstream's answer on its way to the caller: passed through or translated, folded or streamed, and tapped for
//! what it used.

use crate::fold::Fold;
use crate::neutral::{Finish, Step};
use crate::request::Request;
use crate::sse::{self, Splitter};
use crate::{anthropic, error, openai};
use bytes::Bytes;
use exchange::{Dialect, Refusal, Usage};
use memchr::memmem;
use serde_json::Value;
use std::sync::LazyLock;

/// What the caller asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    Stream,
    Whole,
}

/// What has been seen of an answer.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Bytes of text, thinking and tool arguments.
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
}

/// The answer cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    #[error("the provider reported an error in its stream: {0}")]
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
    splitter: Splitter,
    progress: Progress,
    /// `None`: the events pass as they are.
    writer: Option<Writer>,
    fold: Option<Fold>,
    /// The usage was asked for by us alone: its event does not go on.
    hide_usage: bool,
    steps: Vec<Step>,
}

#[derive(Debug)]
enum Writer {
    OpenaiChat(openai::answer::Writer),
    Anthropic(anthropic::answer::Writer),
}

impl Writer {
    fn new(request: &Request) -> Self {
        match request.dialect {
            Dialect::Anthropic => Self::Anthropic(anthropic::answer::Writer::default()),
            _ => {
                let include_usage = request.spots.include_usage || !request.facts.stream;
                Self::OpenaiChat(openai::answer::Writer::new(include_usage))
            }
        }
    }

    fn write(&mut self, steps: &mut Vec<Step>) -> Vec<u8> {
        let mut out = Vec::new();
        for step in steps.drain(..) {
            match self {
                Self::OpenaiChat(writer) => writer.write(step, &mut out),
                Self::Anthropic(writer) => writer.write(step, &mut out),
            }
        }
        out
    }
}

impl Answer {
    pub fn new(request: &Request, upstream: Dialect, delivery: Delivery) -> Self {
        let caller = request.dialect;
        let fold = (delivery == Delivery::Whole).then(|| fold_of(caller));
        let writer = (caller != upstream).then(|| Writer::new(request));
        let hide_usage = upstream == Dialect::OpenaiChat && !request.spots.include_usage && fold.is_none();
        let (splitter, progress, steps) = (Splitter::default(), Progress::default(), Vec::new());
        Self {
            upstream,
            caller,
            splitter,
            progress,
            writer,
            fold,
            hide_usage,
            steps,
        }
    }

    /// What has been seen so far.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Takes bytes of the upstream's stream; returns those for the caller, which are the same ones where nothing has
    /// to change, and none where the answer is folded.
    ///
    /// # Errors
    /// The provider reported an error in its stream.
    pub fn push(&mut self, chunk: Bytes) -> Result<Bytes, AnswerError> {
        let block = self.splitter.take(chunk);
        self.block(block)
    }

    fn block(&mut self, block: Bytes) -> Result<Bytes, AnswerError> {
        let mut hidden = false;
        for event in sse::events(&block) {
            if !event.data.is_empty() {
                hidden |= self.event(&event.data)?;
            }
        }
        match (&mut self.writer, &mut self.fold) {
            (Some(writer), fold) => {
                let out = writer.write(&mut self.steps);
                let Some(fold) = fold else { return Ok(out.into()) };
                for event in sse::events(&out) {
                    fold.push(&event.data);
                }
                Ok(Bytes::new())
            }
            (None, Some(fold)) => {
                for event in sse::events(&block) {
                    fold.push(&event.data);
                }
                Ok(Bytes::new())
            }
            (None, None) if hidden => {
                let shown = sse::events(&block).filter(|event| !is_usage_alone(&event.data));
                Ok(shown.flat_map(|event| event.raw.iter().copied()).collect())
            }
            (None, None) => Ok(block),
        }
    }

    /// Notes what an event says; true if it is one to hide.
    fn event(&mut self, data: &[u8]) -> Result<bool, AnswerError> {
        if let Some(message) = error::in_stream(data) {
            return Err(AnswerError::Reported(message));
        }
        if self.writer.is_some() {
            let before = self.steps.len();
            match self.upstream {
                Dialect::Anthropic => anthropic::answer::steps(data, &mut self.steps),
                _ => openai::answer::steps(data, &mut self.steps),
            }
            for step in &mut self.steps[before..] {
                self.progress.note(step);
                if let (Step::Usage(usage), Some(merged)) = (step, self.progress.usage) {
                    *usage = merged;
                }
            }
            return Ok(false);
        }
        match self.upstream {
            Dialect::Anthropic => self.progress.tap_anthropic(data),
            _ => self.progress.tap_openai(data),
        }
        Ok(self.hide_usage && is_usage_alone(data))
    }

    /// The upstream's stream has ended. Returns the tail of the caller's stream, or the whole folded answer.
    ///
    /// # Errors
    /// It ended before the answer did.
    pub fn finish(&mut self) -> Result<Bytes, AnswerError> {
        let rest = self.splitter.rest();
        let mut tail = if rest.is_empty() {
            Bytes::new()
        } else {
            self.block(rest)?
        };
        // Some servers end with the finish reason and leave the terminal event out.
        if !self.progress.complete && self.progress.finish.is_some() && self.upstream == Dialect::OpenaiChat {
            self.progress.complete = true;
            let end = self.block(Bytes::from_static(b"data: [DONE]\n\n"))?;
            tail = [tail, end].concat().into();
        }
        if !self.progress.complete {
            return Err(AnswerError::Cut);
        }
        Ok(match self.fold.take() {
            Some(fold) => fold.into_answer(None).to_string().into(),
            None => tail,
        })
    }

    /// Ends the answer where it is, as if the caller's limit had been reached.
    pub fn end_by_budget(&mut self) -> Bytes {
        let finish = match self.caller {
            Dialect::Anthropic => anthropic::answer::stop_reason(Finish::Length),
            _ => openai::answer::finish_reason(Finish::Length),
        };
        if let Some(fold) = self.fold.take() {
            return fold.into_answer(Some(finish)).to_string().into();
        }
        if let Some(writer) = &mut self.writer {
            self.steps.extend([Step::Finish(Finish::Length), Step::End]);
            return writer.write(&mut self.steps).into();
        }
        let mut out = Vec::new();
        if self.caller == Dialect::Anthropic {
            let delta = serde_json::json!({ "stop_reason": finish, "stop_sequence": null });
            let usage = serde_json::json!({ "output_tokens": self.progress.deltas.max(self.progress.output_bytes / 4) });
            let event = serde_json::json!({ "type": "message_delta", "delta": delta, "usage": usage });
            anthropic::answer::event(&mut out, event);
            anthropic::answer::event(&mut out, serde_json::json!({ "type": "message_stop" }));
        } else {
            let choice = serde_json::json!({ "index": 0, "delta": {}, "finish_reason": finish });
            let chunk = serde_json::json!({ "object": "chat.completion.chunk", "choices": [choice] });
            sse::write(&mut out, None, &chunk);
            out.extend_from_slice(b"data: [DONE]\n\n");
        }
        out.into()
    }

    /// The event that tells the caller why its stream breaks off.
    pub fn error_event(&mut self, refusal: &Refusal) -> Bytes {
        error::event(self.caller, refusal)
    }
}

fn fold_of(dialect: Dialect) -> Fold {
    match dialect {
        Dialect::Anthropic => Fold::anthropic(),
        _ => Fold::openai(),
    }
}

/// Reads an answer that came as one JSON body. Returns it as the caller asked for it: whole or as a stream.
///
/// # Errors
/// The body is not an answer.
pub fn read_answer(
    request: &Request,
    upstream: Dialect,
    body: Bytes,
) -> Result<(Bytes, Progress), AnswerError> {
    let value: Value =
        serde_json::from_slice(&body).map_err(|error| AnswerError::Invalid(error.to_string()))?;
    let mut steps = match upstream {
        Dialect::Anthropic => anthropic::answer::explode(&value),
        _ => openai::answer::explode(&value),
    };
    let mut progress = Progress::default();
    steps.iter().for_each(|step| progress.note(step));
    if request.dialect == upstream && !request.facts.stream {
        return Ok((body, progress));
    }
    let stream = Writer::new(request).write(&mut steps);
    if request.facts.stream {
        return Ok((stream.into(), progress));
    }
    let mut fold = fold_of(request.dialect);
    sse::events(&stream).for_each(|event| fold.push(&event.data));
    Ok((fold.into_answer(None).to_string().into(), progress))
}

macro_rules! finder {
    ($name:ident, $needle:literal) => {
        static $name: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new($needle));
    };
}

finder!(CONTENT, b"\"content\":\"");
finder!(USAGE, b"\"usage\":{");
finder!(FINISH, b"\"finish_reason\":\"");
finder!(NO_CHOICES, b"\"choices\":[]");

/// An OpenAI chunk that carries the usage and nothing else.
fn is_usage_alone(data: &[u8]) -> bool {
    USAGE.find(data).is_some() && NO_CHOICES.find(data).is_some()
}

/// The length of the JSON string that begins at `start`.
fn string_length(data: &[u8], start: usize) -> usize {
    let mut at = start;
    while let Some(found) = memchr::memchr2(b'"', b'\\', &data[at.min(data.len())..]) {
        at += found;
        if data[at] == b'"' {
            return at - start;
        }
        at += 2;
    }
    data.len().saturating_sub(start)
}

impl Progress {
    fn generated(&mut self, bytes: usize) {
        if bytes > 0 {
            self.output_bytes += bytes as u64;
            self.deltas += 1;
            self.started = true;
        }
    }

    fn note(&mut self, step: &Step) {
        match step {
            Step::Text(text) | Step::Thinking(text) | Step::Arguments(text) => self.generated(text.len()),
            Step::Tool { name, .. } => self.generated(name.len()),
            Step::Finish(finish) => self.finish = Some(*finish),
            Step::Usage(usage) => self.report(*usage),
            Step::End => self.complete = true,
            Step::Begin { .. } => {}
        }
    }

    /// Later reports complete earlier ones: Anthropic tells the input first and the output last.
    fn report(&mut self, usage: Usage) {
        let mut merged = usage;
        if let Some(before) = self.usage {
            for (class, tokens) in before.lines() {
                merged.set(class, merged.get(class).max(tokens));
            }
        }
        self.usage = Some(merged);
    }

    /// Looks for the few things that matter; parses only the events that have them.
    fn tap_openai(&mut self, data: &[u8]) {
        if data == b"[DONE]" {
            self.complete = true;
            return;
        }
        let finishes = FINISH.find(data).is_some();
        if finishes || USAGE.find(data).is_some() {
            let mut steps = Vec::new();
            openai::answer::steps(data, &mut steps);
            steps.iter().for_each(|step| self.note(step));
            return;
        }
        match CONTENT.find(data) {
            // The usual spelling of the usual chunk.
            Some(at) => self.generated(string_length(data, at + 11)),
            None => {
                let mut steps = Vec::new();
                openai::answer::steps(data, &mut steps);
                steps.iter().for_each(|step| self.note(step));
            }
        }
    }

    fn tap_anthropic(&mut self, data: &[u8]) {
        let mut steps = Vec::new();
        anthropic::answer::steps(data, &mut steps);
        steps.iter().for_each(|step| self.note(step));
    }
}
