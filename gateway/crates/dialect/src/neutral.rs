//! The neutral form of an answer: the few kinds of event every dialect has in some spelling.

use exchange::Usage;

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
    /// The answer begins: its id and the model that gives it.
    Begin {
        id: String,
        model: String,
    },
    Text(String),
    Thinking(String),
    /// A tool call begins.
    Tool {
        id: String,
        name: String,
    },
    /// More of the last tool call's arguments, as JSON text.
    Arguments(String),
    Finish(Finish),
    Usage(Usage),
    /// Nothing follows.
    End,
}
