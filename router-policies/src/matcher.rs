//! When a rule applies: a conjunction of conditions over facts, account and what was already classified.

use exchange::{AccountPath, Facts, LatencyTier, Surface, ValueTier};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One value or several; any of them will do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, T> {
        match self {
            Self::One(value) => std::slice::from_ref(value).iter(),
            Self::Many(values) => values.iter(),
        }
    }
}

type Globs = Option<OneOrMany<String>>;

/// An inclusive range; an end left out is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Range {
    #[serde(default)]
    pub min: Option<u64>,
    #[serde(default)]
    pub max: Option<u64>,
}

impl Range {
    fn holds(&self, value: u64) -> bool {
        self.min.is_none_or(|min| value >= min) && self.max.is_none_or(|max| value <= max)
    }
}

/// All conditions given must hold; `{}` always does. Names are globs with `*` for any run of characters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct When {
    /// The model name the caller wrote.
    pub(crate) model: Globs,
    pub(crate) org: Globs,
    pub(crate) team: Globs,
    /// The key's workflow, or the one the caller declared.
    pub(crate) workflow: Globs,
    /// `chat_completions` or `messages`.
    pub(crate) surface: Globs,
    /// Declared labels by name.
    pub(crate) label: BTreeMap<String, OneOrMany<String>>,
    pub(crate) stream: Option<bool>,
    /// True: the request offers tools.
    pub(crate) tools: Option<bool>,
    pub(crate) images: Option<bool>,
    pub(crate) structured_output: Option<bool>,
    /// Estimated input tokens.
    pub(crate) input_tokens: Option<Range>,
    pub(crate) turns: Option<Range>,
    /// The value tier set by the `value` rules.
    #[schemars(with = "Option<OneOrMany<String>>")]
    pub(crate) value: Option<OneOrMany<ValueTier>>,
    /// The latency tier set by the `latency` rules.
    #[schemars(with = "Option<OneOrMany<String>>")]
    pub(crate) latency: Option<OneOrMany<LatencyTier>>,
}

/// Everything a condition may look at.
#[derive(Clone, Copy)]
pub(crate) struct Scene<'a> {
    pub(crate) facts: &'a Facts,
    pub(crate) org: &'a str,
    pub(crate) team: Option<&'a str>,
    pub(crate) workflow: Option<&'a str>,
    pub(crate) value: ValueTier,
    pub(crate) latency: LatencyTier,
}

impl<'a> Scene<'a> {
    pub(crate) fn new(facts: &'a Facts, account: &'a AccountPath) -> Self {
        Self {
            facts,
            org: &account.org,
            team: account.team.as_deref(),
            workflow: facts.workflow.as_deref().or(account.workflow.as_deref()),
            value: ValueTier::Unvalued,
            latency: default_latency(facts),
        }
    }
}

/// Without a rule, a stream is watched by someone and a whole answer is not.
fn default_latency(facts: &Facts) -> LatencyTier {
    if facts.stream {
        LatencyTier::Interactive
    } else {
        LatencyTier::Standard
    }
}

impl When {
    pub(crate) fn names_a_model(&self) -> bool {
        self.model.is_some()
    }

    pub(crate) fn holds(&self, scene: &Scene<'_>) -> bool {
        let facts = scene.facts;
        names(&self.model, Some(&facts.model))
            && names(&self.org, Some(scene.org))
            && names(&self.team, scene.team)
            && names(&self.workflow, scene.workflow)
            && names(&self.surface, Some(Surface::as_str(facts.surface)))
            && is(self.stream, facts.stream)
            && is(self.tools, facts.tools > 0)
            && is(self.images, facts.images > 0)
            && is(self.structured_output, facts.structured_output)
            && self
                .input_tokens
                .is_none_or(|range| range.holds(facts.input_tokens))
            && self.turns.is_none_or(|range| range.holds(u64::from(facts.turns)))
            && self
                .value
                .as_ref()
                .is_none_or(|tiers| tiers.iter().any(|tier| *tier == scene.value))
            && self
                .latency
                .as_ref()
                .is_none_or(|tiers| tiers.iter().any(|tier| *tier == scene.latency))
            && self.label.iter().all(|(name, wanted)| {
                facts
                    .label(name)
                    .is_some_and(|value| wanted.iter().any(|pattern| glob(pattern, value)))
            })
    }
}

fn is(wanted: Option<bool>, found: bool) -> bool {
    wanted.is_none_or(|wanted| wanted == found)
}

fn names(patterns: &Globs, value: Option<&str>) -> bool {
    match (patterns, value) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(patterns), Some(value)) => patterns.iter().any(|pattern| glob(pattern, value)),
    }
}

/// `*` stands for any run of characters, everything else for itself.
fn glob(pattern: &str, value: &str) -> bool {
    let Some((head, mut rest)) = pattern.split_once('*') else {
        return pattern == value;
    };
    let Some(mut value) = value.strip_prefix(head) else {
        return false;
    };
    while let Some((middle, tail)) = rest.split_once('*') {
        let Some(at) = value.find(middle) else {
            return false;
        };
        value = &value[at + middle.len()..];
        rest = tail;
    }
    value.ends_with(rest)
}

#[cfg(test)]
mod tests {
    use super::glob;

    #[test]
    fn globs_match_runs_of_characters() {
        for (pattern, value) in [
            ("a*", "abc"),
            ("*", ""),
            ("a*c*e", "abcde"),
            ("*-mini", "gpt-4o-mini"),
            ("x", "x"),
            ("a*b", "aab"),
        ] {
            assert!(glob(pattern, value), "{pattern} {value}");
        }
        for (pattern, value) in [("a*", "b"), ("a*c", "abd"), ("x", "xy"), ("ab*b", "ab")] {
            assert!(!glob(pattern, value), "{pattern} {value}");
        }
    }
}
