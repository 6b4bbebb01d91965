//! OpenAI chat completions.

pub(crate) mod answer;
pub(crate) mod request;

use exchange::{TokenClass, Usage, UsageSource};
use serde_json::Value;

/// Counts overlap here: cached and audio tokens are part of the prompt, reasoning and audio of the completion.
pub(crate) fn usage(value: &Value) -> Option<Usage> {
    let prompt = value["prompt_tokens"].as_u64()?;
    let completion = value["completion_tokens"].as_u64().unwrap_or(0);
    let detail = |group: &str, name: &str| value[group][name].as_u64().unwrap_or(0);
    let cached = detail("prompt_tokens_details", "cached_tokens").min(prompt);
    let audio_in = detail("prompt_tokens_details", "audio_tokens").min(prompt - cached);
    let reasoning = detail("completion_tokens_details", "reasoning_tokens").min(completion);
    let audio_out = detail("completion_tokens_details", "audio_tokens").min(completion - reasoning);
    Some(
        Usage::new(UsageSource::Reported)
            .with(TokenClass::Input, prompt - cached - audio_in)
            .with(TokenClass::CacheRead, cached)
            .with(TokenClass::AudioInput, audio_in)
            .with(TokenClass::Output, completion - reasoning - audio_out)
            .with(TokenClass::Reasoning, reasoning)
            .with(TokenClass::AudioOutput, audio_out),
    )
}

/// The same, for a caller.
pub(crate) fn usage_value(usage: &Usage) -> Value {
    serde_json::json!({
        "prompt_tokens": usage.input_total(),
        "completion_tokens": usage.output_total(),
        "total_tokens": usage.input_total() + usage.output_total(),
        "prompt_tokens_details": { "cached_tokens": usage.get(TokenClass::CacheRead) },
        "completion_tokens_details": { "reasoning_tokens": usage.get(TokenClass::Reasoning) },
    })
}
