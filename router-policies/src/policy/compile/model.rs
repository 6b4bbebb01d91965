//! Deployments: what they know, cost and are called.

use super::super::form::{Capability, Deployment};
use super::super::scalars::{Dollars, Quality};
use super::super::{Model, Name, Rates};
use super::Compiler;
use crate::ability::Table;
use crate::estimates::{Estimate, ThinkingGain};
use exchange::{BackendClass, EstimateSource, Rate, ThinkingLevel};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// P(success), milliseconds to the first token and milliseconds for a thousand tokens, where nothing else is known.
const CLASSES: [(f64, u32, u32); BackendClass::ALL.len()] = [
    (0.90, 1_200, 15_000),
    (0.78, 600, 10_000),
    (0.55, 300, 30_000),
    (0.88, 3_600_000, 1_000),
];

impl Compiler<'_, '_, '_> {
    pub(super) fn models(&mut self) -> Vec<Model> {
        if self.document.deployments.is_empty() {
            self.mistakes.hinted(
                "deployments",
                "is empty: a policy needs at least one deployment",
                "add one: {id: mini, provider: openai, model: gpt-4o-mini, class: cheap}",
            );
        }
        let table = match Table::built_in() {
            Ok(table) => Some(table),
            Err(error) => {
                self.mistakes.add(
                    "",
                    format!("the built-in table of thinking cannot be read: {error}"),
                );
                None
            }
        };
        let mut ids = HashSet::new();
        let mut models = Vec::new();
        for (position, deployment) in self.document.deployments.iter().enumerate() {
            let path = format!("deployments[{position}]");
            if !ids.insert(&deployment.id) {
                self.mistakes.hinted(
                    format!("{path}.id"),
                    format!("`{}` is used twice", deployment.id),
                    "ids are how routes and reports speak of a deployment: give each its own",
                );
            }
            if self.document.virtual_models.contains(&deployment.id) {
                self.mistakes.hinted(
                    format!("{path}.id"),
                    format!("`{}` is also a virtual model", deployment.id),
                    "rename one of them",
                );
            }
            if let Some(price_as) = deployment.price_as.as_ref().filter(|name| !name.contains('/')) {
                self.mistakes.hinted(
                    format!("{path}.price_as"),
                    format!("`{price_as}` does not name a provider and a model"),
                    "write it as provider/model, such as anthropic/claude-sonnet-4-5",
                );
            }
            self.check_thinking_ability(deployment, &path);
            models.push(model(deployment, table.as_ref()));
        }
        models
    }

    fn check_thinking_ability(&mut self, deployment: &Deployment, path: &str) {
        let Some(ability) = &deployment.thinking else {
            return;
        };
        let path = format!("{path}.thinking");
        if !ability.supported.contains(&ability.default) {
            let known: Vec<_> = ability.supported.iter().map(|level| level.as_str()).collect();
            self.mistakes.hinted(
                format!("{path}.default"),
                format!("`{}` is not among the supported levels", ability.default),
                format!("supported here: {}", known.join(", ")),
            );
        }
        if ability.mandatory && ability.supported.contains(&ThinkingLevel::None) {
            self.mistakes.hinted(
                format!("{path}.mandatory"),
                "thinking that cannot be switched off has no level `none`",
                "take `none` out of `supported`, or `mandatory` away",
            );
        }
        if ability
            .min_tokens
            .zip(ability.max_tokens)
            .is_some_and(|(min, max)| min > max)
        {
            self.mistakes
                .hinted(format!("{path}.min_tokens"), "is above `max_tokens`", "swap them");
        }
        if !deployment.capabilities.contains(&Capability::Thinking) {
            self.mistakes.hinted(
                path,
                "describes thinking of a deployment that does not list it",
                "add `thinking` to its capabilities",
            );
        }
    }

    pub(super) fn names(&mut self) -> HashMap<Arc<str>, Name> {
        let mut names: HashMap<Arc<str>, Name> = HashMap::new();
        for (position, deployment) in self.document.deployments.iter().enumerate() {
            let own = [&deployment.id, &deployment.model];
            let mut all: Vec<&Arc<str>> = own.into_iter().chain(&deployment.aliases).collect();
            all.sort_unstable();
            all.dedup();
            for name in all {
                match names
                    .entry(name.clone())
                    .or_insert_with(|| Name::Deployments(Vec::new()))
                {
                    Name::Deployments(found) => found.push(position),
                    Name::Virtual => {}
                }
            }
        }
        for name in &self.document.virtual_models {
            names.insert(name.clone(), Name::Virtual);
        }
        for (alias, target) in &self.document.aliases {
            match names.get(target).cloned() {
                Some(meaning) => {
                    names.insert(alias.clone(), meaning);
                }
                None => {
                    let known: Vec<&str> = names.keys().map(|name| &**name).collect();
                    let path = format!("aliases.{alias}");
                    self.mistakes
                        .unknown(path, ("deployment or virtual model", target), known.into_iter());
                }
            }
        }
        names
    }
}

fn model(deployment: &Deployment, table: Option<&Table>) -> Model {
    let (p, first_token_ms, kilotoken_ms) = CLASSES[deployment.class as usize];
    let estimate = |quality: &Quality| {
        let gain = quality
            .thinking
            .iter()
            .fold(ThinkingGain::ZERO, |gain, (level, add)| gain.with(*level, *add));
        Estimate::new(quality.p, quality.error, EstimateSource::Prior).thinking(gain)
    };
    let quality: HashMap<Arc<str>, Estimate> = deployment
        .quality
        .iter()
        .map(|(task, quality)| (task.clone(), estimate(quality)))
        .collect();
    let usual = Estimate::new(p, 0.15, EstimateSource::Prior);
    let speed = deployment.speed;
    // A dollar for a million tokens is a million pico-dollars for one: nano-dollars over a thousand.
    let rate = |Dollars(money): Dollars| Rate(u64::try_from(money.nanos()).unwrap_or_default() / 1_000);
    Model {
        ability: table.and_then(|table| table.of(deployment)),
        default_quality: quality.get("default").copied().unwrap_or(usual),
        quality,
        first_token_ms: speed.map_or(first_token_ms, |speed| speed.first_token_ms),
        kilotoken_ms: speed.map_or(kilotoken_ms, |speed| 1_000_000 / speed.tokens_per_second.max(1)),
        rates: deployment.price.as_ref().map(|price| Rates {
            input: rate(price.input),
            output: rate(price.output),
            cached_input: rate(price.cached_input.unwrap_or(price.input)),
        }),
    }
}
