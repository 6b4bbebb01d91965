//! Wire formats, without a socket in sight: requests read and patched or translated, answers relayed, folded and
//! metered, errors told in the caller's own shape.
//!
//! Owns: OpenAI chat completions and Anthropic messages, in both directions; OpenAI's embeddings, completions and
//! responses, which pass as they are; what goes into Gemini's batches. Refuses to know: sockets, prices,
//! accounts, time. Invariants: between equal dialects unknown fields survive byte for byte; what a translation cannot
//! carry is listed as a `Loss`; usage leaves here in disjoint classes.

mod answer;
mod anthropic;
mod encode;
mod error;
mod fold;
mod gemini;
mod models;
mod neutral;
mod openai;
mod patch;
mod plain;
mod request;
mod scan;
mod sse;
mod tap;
mod thinking;
mod whole;

pub use answer::{Answer, AnswerError, Delivery, read_answer};
pub use encode::{EncodeError, Encoded, Loss, Target, encode};
pub use error::{UpstreamError, error_body, upstream_error};
pub use gemini::{GeminiError, from_gemini, to_gemini};
pub use models::{ModelEntry, model_list};
pub use neutral::Finish;
pub use request::{ReadError, Request, read_request, read_surface};
pub use tap::Progress;
