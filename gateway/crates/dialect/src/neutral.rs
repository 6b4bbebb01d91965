//! The neutral form of an answer: the few kinds of event every dialect has in some spelling.

use crate::scan::Span;
use serde_json::Value;

/// Why the model stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    Stop,
    Length,
    ToolUse,
    /// Withheld by the provider.
    Refusal,
}

/// One step of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// The answer begins. `created_unix_s` is known where the dialect tells it.
    Begin {
        id: String,
        model: String,
        created_unix_s: Option<i64>,
    },
    Text(String),
    Thinking(String),
    /// The provider's seal on the thinking so far, without which it does not take it back.
    Signature(String),
    /// A block of thinking that only the provider can read, as it came.
    Sealed(Value),
    /// A tool call begins; `call` counts from 0.
    Tool {
        call: usize,
        id: String,
        name: String,
    },
    /// More of a tool call's arguments, as JSON text.
    Arguments {
        call: usize,
        json: String,
    },
    Finish(Finish),
    /// Nothing follows.
    End,
}

/// What a piece of generated text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Thinking,
    Arguments,
}

/// What was made of one event's data.
#[derive(Debug)]
pub(crate) enum Seen {
    /// Counted without being read; nothing else depends on it.
    Counted,
    /// One more piece of text and nothing else, at `span` of the data, escapes and all.
    Piece {
        kind: Kind,
        index: u64,
        span: Span,
    },
    /// OpenAI's `[DONE]`.
    Done,
    Event(Value),
}

/// The text of a piece.
pub(crate) fn unescape(data: &[u8], span: &Span) -> String {
    let written = &data[span.clone()];
    if !written.contains(&b'\\') {
        return String::from_utf8_lossy(written).into_owned();
    }
    // The span lies between quotes.
    serde_json::from_slice(&data[span.start - 1..=span.end]).unwrap_or_default()
}
