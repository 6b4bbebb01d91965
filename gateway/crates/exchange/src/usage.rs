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

/// Tokens by class. The classes are disjoint, so totals are plain sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    counts: [u64; TokenClass::COUNT],
    pub source: UsageSource,
}

impl Usage {
    pub const fn new(source: UsageSource) -> Self {
        Self {
            counts: [0; TokenClass::COUNT],
            source,
        }
    }

    #[must_use]
    pub const fn with(mut self, class: TokenClass, tokens: u64) -> Self {
        self.counts[class as usize] = tokens;
        self
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
    }
}
