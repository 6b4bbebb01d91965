//! Token usage in disjoint classes. Providers count in overlapping ways (a cached token may or may not be part of the
//! input count); `dialect` separates the classes once, at the edge, and everything after it adds them up.

use crate::spelled;
use serde::{Deserialize, Serialize};

/// One billable kind of token. A token is counted in exactly one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(usize)]
pub enum TokenClass {
    Input,
    CacheRead,
    CacheWrite,
    CacheWriteHour,
    Output,
    Reasoning,
    AudioInput,
    AudioOutput,
    ImageInput,
    ImageOutput,
}

spelled!(TokenClass {
    Input => "input",
    CacheRead => "cache_read",
    CacheWrite => "cache_write",
    CacheWriteHour => "cache_write_1h",
    Output => "output",
    Reasoning => "reasoning",
    AudioInput => "audio_input",
    AudioOutput => "audio_output",
    ImageInput => "image_input",
    ImageOutput => "image_output",
});

impl TokenClass {
    pub const COUNT: usize = Self::ALL.len();

    /// True for what the model produced, false for what it read.
    pub const fn is_output(self) -> bool {
        matches!(
            self,
            Self::Output | Self::Reasoning | Self::AudioOutput | Self::ImageOutput
        )
    }
}

/// What is billed by the piece rather than by the token: calls of a provider's own tools, images, time, characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(usize)]
pub enum Unit {
    WebSearch,
    Request,
    InputImage,
    OutputImage,
    /// A thousandth of a second of audio or video that was read; providers price seconds, hours or minutes.
    InputMillisecond,
    OutputMillisecond,
    InputCharacter,
    OutputCharacter,
}

spelled!(Unit {
    WebSearch => "web_search",
    Request => "request",
    InputImage => "input_image",
    OutputImage => "output_image",
    InputMillisecond => "input_ms",
    OutputMillisecond => "output_ms",
    InputCharacter => "input_character",
    OutputCharacter => "output_character",
});

impl Unit {
    pub const COUNT: usize = Self::ALL.len();
}

/// The provider's processing tier that was *served*, which is the one it charges. What was asked for is only a wish:
/// a priority request may be served, and billed, as a standard one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(usize)]
pub enum ServiceTier {
    #[default]
    Standard,
    Flex,
    Priority,
    Fast,
    Batch,
    /// A tier whose name is not known here.
    Other,
}

spelled!(ServiceTier {
    Standard => "standard",
    Flex => "flex",
    Priority => "priority",
    Fast => "fast",
    Batch => "batch",
    Other => "other",
});

impl ServiceTier {
    pub const COUNT: usize = Self::ALL.len();

    /// From a provider's own word (OpenAI, Anthropic, Groq, Vertex). `auto` is a wish and names no tier of its own;
    /// `scale` is paid for in advance and billed at standard rates beyond that.
    pub fn from_wire(word: &str) -> Self {
        match word {
            "" | "default" | "standard" | "standard_only" | "auto" | "scale" | "on_demand" => Self::Standard,
            "flex" => Self::Flex,
            "priority" => Self::Priority,
            "fast" => Self::Fast,
            "batch" => Self::Batch,
            _ => Self::Other,
        }
    }
}

/// Where the numbers come from, from best to worst evidence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum UsageSource {
    /// The provider's own final usage.
    Reported,
    /// Counted by us over what passed through, because the provider's usage never came.
    Counted,
    /// Nothing passed through; the numbers are a bound or a guess.
    #[default]
    Estimated,
}

spelled!(UsageSource { Reported => "reported", Counted => "counted", Estimated => "estimated" });

/// Tokens by class, and pieces. The classes are disjoint, so totals are plain sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    counts: [u64; TokenClass::COUNT],
    #[serde(default)]
    units: [u32; Unit::COUNT],
    pub source: UsageSource,
}

impl Usage {
    pub const fn new(source: UsageSource) -> Self {
        Self {
            counts: [0; TokenClass::COUNT],
            units: [0; Unit::COUNT],
            source,
        }
    }

    #[must_use]
    pub const fn with(mut self, class: TokenClass, tokens: u64) -> Self {
        self.counts[class as usize] = tokens;
        self
    }

    #[must_use]
    pub const fn with_unit(mut self, unit: Unit, count: u32) -> Self {
        self.units[unit as usize] = count;
        self
    }

    pub const fn unit(&self, unit: Unit) -> u32 {
        self.units[unit as usize]
    }

    /// The pieces that are not zero.
    pub fn units(&self) -> impl Iterator<Item = (Unit, u32)> + '_ {
        Unit::ALL
            .iter()
            .map(|unit| (*unit, self.unit(*unit)))
            .filter(|(_, count)| *count > 0)
    }

    pub const fn get(&self, class: TokenClass) -> u64 {
        self.counts[class as usize]
    }

    pub const fn set(&mut self, class: TokenClass, tokens: u64) {
        self.counts[class as usize] = tokens;
    }

    /// The classes that are not zero.
    pub fn lines(&self) -> impl Iterator<Item = (TokenClass, u64)> + '_ {
        TokenClass::ALL
            .iter()
            .map(|class| (*class, self.get(*class)))
            .filter(|(_, tokens)| *tokens > 0)
    }

    /// Everything the model read.
    pub fn input_total(&self) -> u64 {
        self.lines()
            .filter(|(class, _)| !class.is_output())
            .map(|(_, tokens)| tokens)
            .sum()
    }

    /// Everything the model produced.
    pub fn output_total(&self) -> u64 {
        self.lines()
            .filter(|(class, _)| class.is_output())
            .map(|(_, tokens)| tokens)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_indexed_by_position_and_totals_are_disjoint() {
        for (position, class) in TokenClass::ALL.iter().enumerate() {
            assert_eq!(*class as usize, position);
        }
        let usage = Usage::new(UsageSource::Reported)
            .with(TokenClass::Input, 7)
            .with(TokenClass::CacheRead, 5);
        let usage = usage.with(TokenClass::Output, 3).with(TokenClass::Reasoning, 2);
        assert_eq!((usage.input_total(), usage.output_total()), (12, 5));
        for (position, unit) in Unit::ALL.iter().enumerate() {
            assert_eq!(*unit as usize, position);
        }
    }

    #[test]
    fn pieces_are_kept_and_are_no_tokens() {
        let usage = Usage::new(UsageSource::Reported)
            .with(TokenClass::Input, 7)
            .with_unit(Unit::WebSearch, 2);
        let read: Usage = serde_json::from_str(&serde_json::to_string(&usage).unwrap()).unwrap();
        assert_eq!(read.units().collect::<Vec<_>>(), [(Unit::WebSearch, 2)]);
        assert_eq!((read, read.input_total()), (usage, 7));
    }

    #[test]
    fn tiers_are_read_in_every_provider_s_words() {
        for (word, tier) in [
            ("default", ServiceTier::Standard),
            ("standard", ServiceTier::Standard),
            ("on_demand", ServiceTier::Standard),
            ("flex", ServiceTier::Flex),
            ("priority", ServiceTier::Priority),
            ("batch", ServiceTier::Batch),
            ("ultrafast", ServiceTier::Other),
        ] {
            assert_eq!(ServiceTier::from_wire(word), tier, "{word}");
        }
    }
}
