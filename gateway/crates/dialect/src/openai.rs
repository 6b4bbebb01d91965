//! OpenAI chat completions, and what other servers of this dialect make of them.

pub(crate) mod answer;
pub(crate) mod request;

use exchange::{TokenClass, Usage, UsageSource};
use serde_json::Value;

/// Counts overlap here: cached, written, audio and image tokens are part of the prompt, reasoning and audio of the
/// completion. Servers that add the reasoning to the completion (xAI does) are told by their total.
pub(crate) fn usage(value: &Value) -> Option<Usage> {
    let prompt = value["prompt_tokens"].as_u64()?;
    let told = value["completion_tokens"].as_u64().unwrap_or(0);
    let detail = |group: &str, name: &str| value[group][name].as_u64().unwrap_or(0);
    // DeepSeek and Moonshot tell the cached tokens in places of their own.
    let elsewhere = value["prompt_cache_hit_tokens"]
        .as_u64()
        .or_else(|| value["cached_tokens"].as_u64());
    let cached = detail("prompt_tokens_details", "cached_tokens").max(elsewhere.unwrap_or(0));
    let reasoning = detail("completion_tokens_details", "reasoning_tokens");
    let is_apart = reasoning > 0 && value["total_tokens"].as_u64() == Some(prompt + told + reasoning);
    let completion = if is_apart { told + reasoning } else { told };

    let mut input = prompt;
    let mut take = |tokens: u64| {
        let taken = tokens.min(input);
        input -= taken;
        taken
    };
    let cached = take(cached);
    let written = take(detail("prompt_tokens_details", "cache_write_tokens"));
    let audio_in = take(detail("prompt_tokens_details", "audio_tokens"));
    let image_in = take(detail("prompt_tokens_details", "image_tokens"));
    let reasoning = reasoning.min(completion);
    let mut output = completion - reasoning;
    let audio_out = detail("completion_tokens_details", "audio_tokens").min(output);
    output -= audio_out;
    let image_out = detail("completion_tokens_details", "image_tokens").min(output);
    output -= image_out;
    Some(
        Usage::new(UsageSource::Reported)
            .with(TokenClass::Input, input)
            .with(TokenClass::CacheRead, cached)
            .with(TokenClass::CacheWrite, written)
            .with(TokenClass::AudioInput, audio_in)
            .with(TokenClass::ImageInput, image_in)
            .with(TokenClass::Output, output)
            .with(TokenClass::Reasoning, reasoning)
            .with(TokenClass::AudioOutput, audio_out)
            .with(TokenClass::ImageOutput, image_out),
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

/// The thinking in a message or a delta: two names are in use.
pub(crate) fn thinking(message: &Value) -> Option<&str> {
    let named = ["reasoning_content", "reasoning"].iter();
    named
        .filter_map(|name| message[*name].as_str())
        .find(|text| !text.is_empty())
}

/// The bytes that the model generated for a message or a delta.
pub(crate) fn generated_bytes(message: &Value) -> usize {
    let text = |value: &Value| value.as_str().map_or(0, str::len);
    let call = |function: &Value| text(&function["name"]) + text(&function["arguments"]);
    let calls = message["tool_calls"].as_array().into_iter().flatten();
    text(&message["content"])
        + text(&message["refusal"])
        + thinking(message).map_or(0, str::len)
        + call(&message["function_call"])
        + calls.map(|tool| call(&tool["function"])).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    proptest! {
        /// Whatever the details claim, every token of the prompt and of the completion is in exactly one class.
        #[test]
        fn classes_add_up_to_what_was_told(prompt in 0u64..10_000, completion in 0u64..10_000,
                                           inside in proptest::array::uniform7(0u64..12_000), apart: bool) {
            let [cached, written, audio_in, image_in, reasoning, audio_out, image_out] = inside;
            let total = prompt + completion + if apart { reasoning } else { 0 };
            let value = json!({ "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total,
                "prompt_tokens_details": { "cached_tokens": cached, "cache_write_tokens": written,
                    "audio_tokens": audio_in, "image_tokens": image_in },
                "completion_tokens_details": { "reasoning_tokens": reasoning, "audio_tokens": audio_out,
                    "image_tokens": image_out } });
            let usage = usage(&value).unwrap();
            prop_assert_eq!(usage.input_total(), prompt);
            prop_assert_eq!(usage.output_total(), total - prompt);
        }
    }

    fn check(value: &Value, expected: &[(TokenClass, u64)]) {
        let usage = usage(value).unwrap();
        assert_eq!(usage.lines().collect::<Vec<_>>(), expected, "{value}");
    }

    #[test]
    fn overlapping_counts_become_disjoint_ones() {
        use TokenClass::{AudioInput, CacheRead, CacheWrite, Input, Output, Reasoning};
        check(
            &json!({ "prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150,
                "prompt_tokens_details": { "cached_tokens": 60, "audio_tokens": 10, "cache_write_tokens": 5 },
                "completion_tokens_details": { "reasoning_tokens": 30 } }),
            &[
                (Input, 25),
                (CacheRead, 60),
                (CacheWrite, 5),
                (Output, 20),
                (Reasoning, 30),
                (AudioInput, 10),
            ],
        );
        check(
            &json!({ "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 45,
                "completion_tokens_details": { "reasoning_tokens": 30 } }),
            &[(Input, 10), (Output, 5), (Reasoning, 30)],
        );
        check(
            &json!({ "prompt_tokens": 10, "completion_tokens": 5, "prompt_cache_hit_tokens": 8, "prompt_cache_miss_tokens": 2 }),
            &[(Input, 2), (CacheRead, 8), (Output, 5)],
        );
        check(
            &json!({ "prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": { "cached_tokens": 9 } }),
            &[(CacheRead, 3), (Output, 1)],
        );
        assert_eq!(usage(&Value::Null), None);
    }
}
