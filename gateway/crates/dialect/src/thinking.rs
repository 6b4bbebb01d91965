//! The one dial of thinking in each provider's spelling: a level of effort or a budget in tokens, and the tables
//! between them.

use exchange::{Thinking, ThinkingLevel};
use serde_json::{Value, json};

/// Anthropic's least budget.
const LEAST_BUDGET: u64 = 1024;

/// The share of the output limit that each level may think for, in per cent. The table is the one that OpenRouter
/// documents, so that a level means the same to those who come from there.
const fn share(level: ThinkingLevel) -> u64 {
    match level {
        ThinkingLevel::None => 0,
        ThinkingLevel::Minimal => 10,
        ThinkingLevel::Low => 20,
        ThinkingLevel::Medium => 50,
        ThinkingLevel::High => 80,
        ThinkingLevel::Xhigh | ThinkingLevel::Max => 95,
    }
}

pub(crate) fn is_off(thinking: Thinking) -> bool {
    matches!(
        thinking,
        Thinking::Level(ThinkingLevel::None) | Thinking::Tokens(0)
    )
}

/// Tokens to think with, within an answer of at most `max_tokens`; `None` where that is less than Anthropic's least.
pub(crate) fn budget(thinking: Thinking, max_tokens: u64) -> Option<u64> {
    let wanted = match thinking {
        Thinking::Level(level) => max_tokens * share(level) / 100,
        Thinking::Tokens(tokens) => u64::from(tokens),
    };
    let budget = wanted.min(max_tokens.saturating_sub(1));
    (budget >= LEAST_BUDGET).then_some(budget)
}

/// Anthropic's field for a budget.
pub(crate) fn enabled(budget: u64) -> Value {
    json!({ "type": "enabled", "budget_tokens": budget })
}

/// The level nearest to a thinking budget.
pub(crate) fn level(thinking: Thinking) -> ThinkingLevel {
    match thinking {
        Thinking::Level(level) => level,
        Thinking::Tokens(0) => ThinkingLevel::None,
        Thinking::Tokens(1..=2048) => ThinkingLevel::Low,
        Thinking::Tokens(2049..=8192) => ThinkingLevel::Medium,
        Thinking::Tokens(_) => ThinkingLevel::High,
    }
}

/// Anthropic's `output_config.effort`, which has no level below low.
pub(crate) fn anthropic_effort(thinking: Thinking) -> &'static str {
    match level(thinking) {
        ThinkingLevel::None | ThinkingLevel::Minimal => ThinkingLevel::Low.as_str(),
        other => other.as_str(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_fit_the_answer_or_are_none() {
        let level = Thinking::Level;
        assert_eq!(budget(level(ThinkingLevel::Medium), 10_000), Some(5_000));
        assert_eq!(budget(Thinking::Tokens(9_000), 4_096), Some(4_095));
        assert_eq!(budget(level(ThinkingLevel::Low), 4_096), None);
        assert_eq!(budget(Thinking::Tokens(5_000), 1_024), None);
        assert_eq!(budget(Thinking::Tokens(5_000), 1_025), Some(1_024));
        assert_eq!(budget(level(ThinkingLevel::None), 64_000), None);
    }

    #[test]
    fn budgets_and_levels_agree_in_both_directions() {
        for wanted in [ThinkingLevel::Low, ThinkingLevel::Medium, ThinkingLevel::High] {
            let tokens = budget(Thinking::Level(wanted), 10_000).unwrap();
            assert_eq!(
                level(Thinking::Tokens(tokens as u32)).min(ThinkingLevel::Medium),
                wanted.min(ThinkingLevel::Medium)
            );
        }
        assert_eq!(anthropic_effort(Thinking::Level(ThinkingLevel::Minimal)), "low");
    }
}
