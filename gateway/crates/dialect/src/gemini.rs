//! Gemini's `GenerateContent`, as far as a batch needs it: a chat completion request as one of Gemini's, and Gemini's
//! answer as a chat completion. Synchronous calls go through Gemini's surface that speaks OpenAI's dialect instead.
//!
//! Invariant: what a request asks for and Gemini's form cannot say is an error that names the field, never left out in
//! silence. Shapes as in Google's `v1beta` reference of `GenerateContentRequest` and `GenerateContentResponse`.

mod answer;
mod request;

pub use answer::from_gemini;
pub use request::to_gemini;

/// A request or an answer that has no counterpart on the other side.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeminiError {
    #[error("`{field}` cannot be put into a Gemini batch: {reason}")]
    Unsayable { field: String, reason: String },
    #[error("that is no JSON object: {0}")]
    Unreadable(String),
}

impl GeminiError {
    fn unsayable(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unsayable {
            field: field.into(),
            reason: reason.into(),
        }
    }
}
