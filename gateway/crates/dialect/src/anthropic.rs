//! Anthropic messages.

pub(crate) mod answer;
pub(crate) mod request;

use exchange::{TokenClass, Usage, UsageSource};
use serde_json::Value;

/// Input counts are disjoint here; thinking is part of the output.
pub(crate) fn usage(value: &Value) -> Option<Usage> {
    if !value.is_object() {
        return None;
    }
    let count = |name: &str| value[name].as_u64().unwrap_or(0);
    let written = count("cache_creation_input_tokens");
    let hour = value["cache_creation"]["ephemeral_1h_input_tokens"]
        .as_u64()
        .unwrap_or(0)
        .min(written);
    let output = count("output_tokens");
    let thinking = value["output_tokens_details"]["thinking_tokens"]
        .as_u64()
        .unwrap_or(0)
        .min(output);
    Some(
        Usage::new(UsageSource::Reported)
            .with(TokenClass::Input, count("input_tokens"))
            .with(TokenClass::CacheRead, count("cache_read_input_tokens"))
            .with(TokenClass::CacheWrite, written - hour)
            .with(TokenClass::CacheWriteHour, hour)
            .with(TokenClass::Output, output - thinking)
            .with(TokenClass::Reasoning, thinking),
    )
}

/// The same, for a caller.
pub(crate) fn usage_value(usage: &Usage) -> Value {
    let cached = usage.get(TokenClass::CacheRead);
    let written = usage.get(TokenClass::CacheWrite) + usage.get(TokenClass::CacheWriteHour);
    serde_json::json!({
        "input_tokens": usage.input_total() - cached - written,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": written,
        "output_tokens": usage.output_total(),
    })
}
