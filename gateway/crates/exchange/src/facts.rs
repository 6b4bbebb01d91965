//! What is known of a request without reading its meaning: numbers, flags and declared labels, never prompt text.

use crate::{ServiceTier, Thinking, spelled};
use serde::{Deserialize, Serialize};

/// A provider's wire format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    OpenaiChat,
    OpenaiResponses,
    Anthropic,
    Gemini,
}

spelled!(Dialect {
    OpenaiChat => "openai_chat",
    OpenaiResponses => "openai_responses",
    Anthropic => "anthropic",
    Gemini => "gemini",
});

/// The endpoint family a request came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Surface {
    ChatCompletions,
    Messages,
    Embeddings,
    /// OpenAI's completions of before chat.
    Completions,
    Responses,
}

spelled!(Surface {
    ChatCompletions => "chat_completions",
    Messages => "messages",
    Embeddings => "embeddings",
    Completions => "completions",
    Responses => "responses",
});

impl Surface {
    /// The path that callers, batches and providers name it by.
    pub const fn endpoint(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Messages => "/v1/messages",
            Self::Embeddings => "/v1/embeddings",
            Self::Completions => "/v1/completions",
            Self::Responses => "/v1/responses",
        }
    }

    pub fn of_endpoint(endpoint: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|one| one.endpoint() == endpoint)
    }

    /// Whose shape its requests and errors have.
    pub const fn dialect(self) -> Dialect {
        match self {
            Self::Messages => Dialect::Anthropic,
            _ => Dialect::OpenaiChat,
        }
    }

    /// Its requests and answers pass as they are, whole, between a caller and a provider of the same kind.
    pub const fn is_plain(self) -> bool {
        matches!(self, Self::Embeddings | Self::Completions | Self::Responses)
    }
}

/// Everything routing may depend on. Safe to store and to replay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    pub dialect: Dialect,
    pub surface: Surface,
    /// The model name the caller wrote, or a virtual one such as `auto`.
    pub model: Box<str>,
    pub stream: bool,
    pub body_bytes: u64,
    /// Estimated input tokens, from text length; the provider's count replaces it at settlement.
    pub input_tokens: u64,
    /// The caller's own output limit (`max_tokens`, `max_completion_tokens`).
    pub max_output_tokens: Option<u64>,
    pub turns: u32,
    pub tools: u32,
    pub images: u32,
    /// A JSON schema or JSON mode was asked for.
    pub structured_output: bool,
    /// The caller's own thinking setting, if any.
    pub thinking: Option<Thinking>,
    /// `service_tier` as the caller wrote it.
    pub service_tier: Option<Box<str>>,
    /// It may ask for the hour-long prompt cache, whose writes are the dearest way to read a token.
    #[serde(default)]
    pub hour_cache: bool,
    /// The workflow the caller declared (`x-tollgate-workflow`), before the key's own is applied.
    pub workflow: Option<Box<str>>,
    /// Milliseconds from arrival until the answer is worthless, if the caller said so.
    pub deadline_ms: Option<u64>,
    /// Declared labels: body `metadata` strings and `x-tollgate-tag-*` headers, in order, keys in lower case.
    pub labels: Vec<(Box<str>, Box<str>)>,
    /// Hash of the stable prefix (system, tools, first user turn): equal for turns of one conversation.
    pub prefix_hash: u64,
}

impl Facts {
    /// The service tier that the caller wishes for; what is served is the provider's to choose.
    pub fn asked_tier(&self) -> ServiceTier {
        self.service_tier
            .as_deref()
            .map_or(ServiceTier::Standard, ServiceTier::from_wire)
    }

    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels
            .iter()
            .find(|(key, _)| &**key == name)
            .map(|(_, value)| &**value)
    }
}
