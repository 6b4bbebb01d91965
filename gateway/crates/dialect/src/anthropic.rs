//! Anthropic messages.

pub(crate) mod answer;
pub(crate) mod request;

use exchange::{TokenClass, Usage, UsageSource};
use serde_json::{Value, json};

/// The counts of one message, which come in parts: the input at its start, the output at its end, and at the end
/// whatever of the input has changed. Input classes are disjoint here; thinking is part of the output.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    input: u64,
    cache_read: u64,
    cache_write: u64,
    cache_write_hour: u64,
    output: u64,
    thinking: u64,
}

impl Counts {
    /// Takes the counts of the input that are told; the others stay.
    pub(crate) fn input(&mut self, usage: &Value) {
        let hour = &usage["cache_creation"]["ephemeral_1h_input_tokens"];
        for (count, told) in [
            (&mut self.input, &usage["input_tokens"]),
            (&mut self.cache_read, &usage["cache_read_input_tokens"]),
            (&mut self.cache_write, &usage["cache_creation_input_tokens"]),
            (&mut self.cache_write_hour, hour),
        ] {
            *count = told.as_u64().unwrap_or(*count);
        }
    }

    /// Takes the counts of the output. At the start of a message they are placeholders, and not to be taken.
    pub(crate) fn output(&mut self, usage: &Value) {
        self.output = usage["output_tokens"].as_u64().unwrap_or(self.output);
        let thinking = &usage["output_tokens_details"]["thinking_tokens"];
        self.thinking = thinking.as_u64().unwrap_or(self.thinking);
    }

    pub(crate) fn usage(&self) -> Usage {
        let hour = self.cache_write_hour.min(self.cache_write);
        let thinking = self.thinking.min(self.output);
        Usage::new(UsageSource::Reported)
            .with(TokenClass::Input, self.input)
            .with(TokenClass::CacheRead, self.cache_read)
            .with(TokenClass::CacheWrite, self.cache_write - hour)
            .with(TokenClass::CacheWriteHour, hour)
            .with(TokenClass::Output, self.output - thinking)
            .with(TokenClass::Reasoning, thinking)
    }
}

/// The usage of a whole message.
pub(crate) fn usage(value: &Value) -> Option<Usage> {
    value.is_object().then(|| {
        let mut counts = Counts::default();
        counts.input(value);
        counts.output(value);
        counts.usage()
    })
}

/// The same, for a caller.
pub(crate) fn usage_value(usage: &Usage) -> Value {
    let cached = usage.get(TokenClass::CacheRead);
    let written = usage.get(TokenClass::CacheWrite) + usage.get(TokenClass::CacheWriteHour);
    json!({
        "input_tokens": usage.input_total() - cached - written,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": written,
        "output_tokens": usage.output_total(),
    })
}

/// The bytes that the model generated for a block or a delta of one.
pub(crate) fn generated_bytes(block: &Value) -> usize {
    let texts = ["text", "thinking", "partial_json", "name"];
    let texts: usize = texts
        .iter()
        .filter_map(|name| block[*name].as_str())
        .map(str::len)
        .sum();
    let input = block["input"].as_object().filter(|input| !input.is_empty());
    texts + input.map_or(0, |_| block["input"].to_string().len())
}
