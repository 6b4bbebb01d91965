//! What models know of thinking, as data, and the way from what is wanted to what a model takes.
//!
//! Owns: the built-in capability table and the mapping to the nearest lower level. Refuses to know: how a provider's
//! request is written (`dialect` does). Invariants: what is mapped is a level the model takes, so that a provider
//! never has a reason for a 400.

use crate::condition::Glob;
use crate::document::{self, DocumentError};
use crate::policy::{Capability, Deployment, Spelling, ThinkingAbility};
use exchange::{Thinking, ThinkingLevel};
use serde::Deserialize;

const TABLE: &str = include_str!("../data/thinking.yaml");

#[derive(Deserialize)]
struct Entry {
    models: Vec<String>,
    supported: Vec<ThinkingLevel>,
    default: ThinkingLevel,
    #[serde(default)]
    mandatory: bool,
    spelled: Spelling,
    #[serde(default)]
    min_tokens: Option<u32>,
    #[serde(default)]
    max_tokens: Option<u32>,
}

/// The built-in table.
pub(crate) struct Table(Vec<(Vec<Glob>, ThinkingAbility)>);

impl Table {
    /// # Errors
    /// Never for the table that is built in; a test reads it.
    pub(crate) fn built_in() -> Result<Self, DocumentError> {
        let entries: Vec<Entry> = document::parse(TABLE, "thinking.yaml")?;
        let read = entries.into_iter().map(|entry| {
            // `?` stands for one character in a version; globs know only `*`.
            let globs = entry
                .models
                .iter()
                .map(|model| Glob::new(&model.replace('?', "*")));
            let ability = ThinkingAbility {
                supported: entry.supported,
                default: entry.default,
                mandatory: entry.mandatory,
                spelled: entry.spelled,
                min_tokens: entry.min_tokens,
                max_tokens: entry.max_tokens,
            };
            (globs.collect(), ability)
        });
        Ok(Self(read.collect()))
    }

    /// What a deployment knows: what its policy says, else what the table says of its model, else, where it is listed
    /// as able to think, a common default.
    pub(crate) fn of(&self, deployment: &Deployment) -> Option<Ability> {
        let mut known = deployment.thinking.clone();
        if known.is_none() && deployment.capabilities.contains(&Capability::Thinking) {
            let model = deployment.model.rsplit('/').next().unwrap_or_default();
            let fits = |glob: &Glob| glob.matches(model) || glob.matches(&deployment.model);
            let entry = self.0.iter().find(|(globs, _)| globs.iter().any(fits));
            known = Some(entry.map_or_else(common, |(_, ability)| ability.clone()));
        }
        let mut ability = known?;
        ability.supported.sort_unstable();
        ability.supported.dedup();
        Some(Ability(ability))
    }
}

fn common() -> ThinkingAbility {
    ThinkingAbility {
        supported: vec![
            ThinkingLevel::None,
            ThinkingLevel::Low,
            ThinkingLevel::Medium,
            ThinkingLevel::High,
        ],
        default: ThinkingLevel::None,
        mandatory: false,
        spelled: Spelling::Effort,
        min_tokens: None,
        max_tokens: None,
    }
}

/// What one deployment knows; levels in order, each once.
#[derive(Clone, Debug)]
pub(crate) struct Ability(ThinkingAbility);

impl Ability {
    /// The nearest lower thing that it takes; its lowest where there is none lower.
    pub(crate) fn nearest(&self, wanted: Thinking) -> Thinking {
        match wanted {
            Thinking::Tokens(0) => self.nearest(Thinking::Level(ThinkingLevel::None)),
            Thinking::Tokens(tokens) if self.0.spelled == Spelling::Budget => {
                let least = self.0.min_tokens.unwrap_or_default();
                if tokens < least && self.takes(ThinkingLevel::None) {
                    return Thinking::Level(ThinkingLevel::None);
                }
                let most = self.0.max_tokens.unwrap_or(u32::MAX);
                Thinking::Tokens(tokens.max(least).min(most.max(least)))
            }
            Thinking::Tokens(tokens) => Thinking::Level(self.nearest_level(level_of(tokens))),
            Thinking::Level(level) => Thinking::Level(self.nearest_level(level)),
        }
    }

    fn nearest_level(&self, wanted: ThinkingLevel) -> ThinkingLevel {
        let lower = self.0.supported.iter().rev().find(|level| **level <= wanted);
        lower
            .or(self.0.supported.first())
            .copied()
            .unwrap_or(self.0.default)
    }

    fn takes(&self, level: ThinkingLevel) -> bool {
        self.0.supported.contains(&level)
    }

    /// The levels it takes between two ends, from the lowest.
    pub(crate) fn between(
        &self,
        at_least: ThinkingLevel,
        at_most: ThinkingLevel,
    ) -> impl Iterator<Item = ThinkingLevel> + '_ {
        let levels = self.0.supported.iter().copied();
        levels.filter(move |level| (at_least..=at_most).contains(level))
    }

    /// What it does when nothing is said.
    pub(crate) fn default_level(&self) -> ThinkingLevel {
        self.0.default
    }
}

/// The level nearest to a number of tokens, as `dialect` has it.
pub(crate) fn level_of(tokens: u32) -> ThinkingLevel {
    match tokens {
        0 => ThinkingLevel::None,
        1..=2048 => ThinkingLevel::Low,
        2049..=8192 => ThinkingLevel::Medium,
        _ => ThinkingLevel::High,
    }
}

/// The level of the dial that a setting is, or is nearest to.
pub(crate) fn level_of_setting(thinking: Thinking) -> ThinkingLevel {
    match thinking {
        Thinking::Level(level) => level,
        Thinking::Tokens(tokens) => level_of(tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(model: &str) -> Deployment {
        let text =
            format!("{{id: d, provider: p, model: \"{model}\", class: frontier, capabilities: [thinking]}}");
        document::parse(&text, "d").unwrap()
    }

    #[test]
    fn an_unsupported_level_becomes_the_nearest_lower_one() {
        let table = Table::built_in().unwrap();
        use ThinkingLevel::{High, Low, Max, Medium, Minimal, None, Xhigh};
        for (model, wanted, given) in [
            ("gpt-5-mini", None, Minimal),
            ("gpt-5-mini", Max, High),
            ("gpt-5.1", Minimal, None),
            ("gpt-5.1", Xhigh, High),
            ("gpt-5-pro", Low, High),
            ("o3-mini", Minimal, Low),
            ("claude-sonnet-4-5", Max, Max),
            ("claude-sonnet-4-6", Minimal, None),
            ("gemini-2.5-pro", None, Minimal),
            ("deepseek-chat", Medium, Low),
            ("Qwen/Qwen3-8B", Medium, None),
            ("somebody-elses", Max, High),
        ] {
            let ability = table.of(&deployment(model)).unwrap();
            assert_eq!(
                ability.nearest(Thinking::Level(wanted)),
                Thinking::Level(given),
                "{model} {wanted}"
            );
        }
    }

    #[test]
    fn tokens_stay_tokens_only_where_they_are_spelled_so() {
        let table = Table::built_in().unwrap();
        let of = |model: &str, tokens| {
            table
                .of(&deployment(model))
                .unwrap()
                .nearest(Thinking::Tokens(tokens))
        };
        assert_eq!(of("claude-sonnet-4-5", 500), Thinking::Level(ThinkingLevel::None));
        assert_eq!(of("claude-sonnet-4-5", 5000), Thinking::Tokens(5000));
        assert_eq!(of("gemini-2.5-pro", 90), Thinking::Tokens(128));
        assert_eq!(of("gemini-2.5-pro", 90_000), Thinking::Tokens(32_768));
        assert_eq!(of("gpt-5.1", 5000), Thinking::Level(ThinkingLevel::Medium));
    }

    #[test]
    fn every_row_of_the_table_is_sound() {
        for (globs, ability) in Table::built_in().unwrap().0 {
            let name = globs[0].pattern().to_owned();
            assert!(ability.supported.contains(&ability.default), "{name}");
            assert_eq!(
                ability.mandatory,
                !ability.supported.contains(&ThinkingLevel::None),
                "{name}"
            );
            assert!(ability.supported.is_sorted(), "{name}");
        }
    }
}
