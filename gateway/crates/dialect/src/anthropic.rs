//! Anthropic messages.

pub(crate) mod answer;
pub(crate) mod request;

use exchange::{TokenClass, Unit, Usage, UsageSource};
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
    searches: u32,
}

impl Counts {
    /// Takes the counts of the input that are told; the others stay.
    pub(crate) fn input(&mut self, usage: &Value) {
        let written = &usage["cache_creation"];
        let (minutes, hour) = (
            written["ephemeral_5m_input_tokens"].as_u64(),
            written["ephemeral_1h_input_tokens"].as_u64(),
        );
        // The split is of the sum; a server that tells only the split has told the sum.
        let sum = usage["cache_creation_input_tokens"].as_u64();
        let split = minutes.or(hour).map(|_| minutes.unwrap_or(0) + hour.unwrap_or(0));
        for (count, told) in [
            (&mut self.input, usage["input_tokens"].as_u64()),
            (&mut self.cache_read, usage["cache_read_input_tokens"].as_u64()),
            (&mut self.cache_write, sum.max(split)),
            (&mut self.cache_write_hour, hour),
        ] {
            *count = told.unwrap_or(*count);
        }
    }

    /// Takes the counts of the output. At the start of a message they are placeholders, and not to be taken.
    pub(crate) fn output(&mut self, usage: &Value) {
        self.output = usage["output_tokens"].as_u64().unwrap_or(self.output);
        let thinking = &usage["output_tokens_details"]["thinking_tokens"];
        self.thinking = thinking.as_u64().unwrap_or(self.thinking);
        let searches = usage["server_tool_use"]["web_search_requests"].as_u64();
        self.searches = searches.map_or(self.searches, |count| u32::try_from(count).unwrap_or(u32::MAX));
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
            .with_unit(Unit::WebSearch, self.searches)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: &Value, expected: &[(TokenClass, u64)]) {
        let usage = usage(value).unwrap();
        assert_eq!(usage.lines().collect::<Vec<_>>(), expected, "{value}");
        let told = |name: &str| value[name].as_u64().unwrap_or(0);
        assert_eq!(usage.output_total(), told("output_tokens"));
    }

    #[test]
    fn cached_tokens_are_added_and_the_split_of_writes_is_of_their_sum() {
        use TokenClass::{CacheRead, CacheWrite, CacheWriteHour, Input, Output, Reasoning};
        check(
            &json!({ "input_tokens": 10, "cache_read_input_tokens": 1000, "cache_creation_input_tokens": 300,
                "cache_creation": { "ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200 },
                "output_tokens": 50, "output_tokens_details": { "thinking_tokens": 20 } }),
            &[
                (Input, 10),
                (CacheRead, 1000),
                (CacheWrite, 100),
                (CacheWriteHour, 200),
                (Output, 30),
                (Reasoning, 20),
            ],
        );
        // Older servers tell no split: all of it is the five-minute kind.
        check(
            &json!({ "input_tokens": 10, "cache_creation_input_tokens": 300, "output_tokens": 1 }),
            &[(Input, 10), (CacheWrite, 300), (Output, 1)],
        );
        check(
            &json!({ "input_tokens": 10, "output_tokens": 1,
                "cache_creation": { "ephemeral_5m_input_tokens": 5, "ephemeral_1h_input_tokens": 7 } }),
            &[(Input, 10), (CacheWrite, 5), (CacheWriteHour, 7), (Output, 1)],
        );
        check(
            &json!({ "input_tokens": 10, "cache_read_input_tokens": null, "cache_creation": null, "output_tokens": 1 }),
            &[(Input, 10), (Output, 1)],
        );
    }

    #[test]
    fn searches_by_the_provider_s_own_tool_are_counted() {
        let value =
            json!({ "input_tokens": 1, "output_tokens": 1, "server_tool_use": { "web_search_requests": 3 } });
        assert_eq!(usage(&value).unwrap().unit(Unit::WebSearch), 3);
    }
}
