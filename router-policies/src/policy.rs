//! The policy document, what it means, and the classification it gives a request.
//!
//! A policy has four parts. *Deployments* are models callable somewhere, each of a backend class. *Rules* give a
//! request its value tier (what a right answer is worth), its latency tier (how soon it is needed) and its thinking
//! budget; the first rule that holds decides, and its name is the evidence. *Floors* say which classes are good
//! enough for a value tier, so that saving never falls on exactly the valuable work. *Routes* order deployments by
//! preference for the virtual model names, such as `auto`; a caller who names a model gets that model.

use crate::document::{self, DocumentError, nearest};
use crate::matcher::{Scene, When};
use exchange::{AccountPath, BackendClass, Facts, LatencyTier, Profile, Thinking, ThinkingLevel, ValueTier};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// Something a deployment can do that not all can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Capability {
    Tools,
    Images,
    StructuredOutput,
    Thinking,
}

/// A model callable somewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Deployment {
    /// The name used in this policy, in traces and in reports.
    pub id: Arc<str>,
    /// A provider of the gateway's configuration.
    pub provider: Arc<str>,
    /// The model name to send to the provider.
    pub model: Arc<str>,
    /// `frontier`, `cheap`, `local` or `batch`.
    #[schemars(with = "String")]
    pub class: BackendClass,
    /// Other model names that callers may use for it.
    #[serde(default)]
    pub aliases: Vec<Arc<str>>,
    /// Input and output together, in tokens.
    #[serde(default)]
    pub context_tokens: Option<u64>,
    /// The most the model will produce, in tokens.
    #[serde(default)]
    pub max_output_tokens: Option<u64>,
    /// What it can do beyond text.
    #[serde(default)]
    pub capabilities: Vec<Capability>,
    /// Requests that may run there at once.
    #[serde(default)]
    pub max_in_flight: Option<u32>,
}

impl Deployment {
    pub(crate) fn answers_to(&self, name: &str) -> bool {
        *self.id == *name || *self.model == *name || self.aliases.iter().any(|alias| **alias == *name)
    }
}

/// A named rule that sets a tier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TierRule<T> {
    pub(crate) name: Arc<str>,
    #[serde(default)]
    pub(crate) when: When,
    #[schemars(with = "String")]
    pub(crate) tier: T,
}

/// A named rule that grants thinking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ThinkingRule {
    pub(crate) name: Arc<str>,
    #[serde(default)]
    pub(crate) when: When,
    /// The level to use when the caller asks for none: `none`, `minimal`, `low`, `medium`, `high`, `xhigh`, `max`.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub(crate) level: Option<ThinkingLevel>,
    /// The most a caller may ask for.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub(crate) at_most: Option<ThinkingLevel>,
}

/// One step of a route's preference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Preference {
    /// A deployment by its id.
    Deployment(Arc<str>),
    /// Every deployment of a class, the least expected cost first.
    Class {
        #[schemars(with = "String")]
        class: BackendClass,
    },
}

/// An ordered preference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Route {
    pub(crate) name: Arc<str>,
    #[serde(default)]
    pub(crate) when: When,
    pub(crate) prefer: Vec<Preference>,
}

/// The YAML document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyDocument {
    /// The version of this format; 1.
    pub(crate) version: u32,
    pub(crate) deployments: Vec<Deployment>,
    /// What an answer is worth. Without a rule that holds: `unvalued`.
    #[serde(default)]
    pub(crate) value: Vec<TierRule<ValueTier>>,
    /// How soon it is needed. Without one: `interactive` for streams, else `standard`.
    #[serde(default)]
    pub(crate) latency: Vec<TierRule<LatencyTier>>,
    /// How much thinking is granted. Without one: whatever the caller asks for, else none of our doing.
    #[serde(default)]
    pub(crate) thinking: Vec<ThinkingRule>,
    /// For each value tier the classes that are good enough for it. A tier left out has no floor.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Vec<String>>")]
    pub(crate) floors: BTreeMap<ValueTier, Vec<BackendClass>>,
    /// Model names that stand for a route rather than a model.
    #[serde(default = "auto")]
    pub(crate) virtual_models: Vec<Arc<str>>,
    /// The first route that holds rules.
    #[serde(default)]
    pub(crate) routes: Vec<Route>,
}

fn auto() -> Vec<Arc<str>> {
    vec!["auto".into()]
}

/// A policy that was checked and is ready to rule.
#[derive(Clone, Debug)]
pub struct Policy {
    pub(crate) document: PolicyDocument,
    version: Arc<str>,
}

impl Policy {
    /// `file` is only for messages.
    ///
    /// # Errors
    /// The first mistake, with its place and a hint.
    pub fn parse(text: &str, file: &str) -> Result<Self, DocumentError> {
        let document: PolicyDocument = document::parse(text, file)?;
        check(&document, file)?;
        let digest = Sha256::digest(text.as_bytes());
        let version: String = digest[..6].iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self {
            document,
            version: version.into(),
        })
    }

    /// Hash of the text; every decision names it.
    pub fn version(&self) -> &Arc<str> {
        &self.version
    }

    pub fn deployments(&self) -> &[Deployment] {
        &self.document.deployments
    }

    pub fn virtual_models(&self) -> &[Arc<str>] {
        &self.document.virtual_models
    }

    pub(crate) fn is_good_enough(&self, class: BackendClass, value: ValueTier) -> bool {
        self.document
            .floors
            .get(&value)
            .is_none_or(|classes| classes.contains(&class))
    }

    /// What the answer is worth, when it is needed and how much thinking it gets, with the rules that said so.
    pub fn classify(&self, facts: &Facts, account: &AccountPath) -> Profile {
        let mut scene = Scene::new(facts, account);
        let mut evidence = Vec::new();
        if let Some(rule) = self.document.value.iter().find(|rule| rule.when.holds(&scene)) {
            scene.value = rule.tier;
            evidence.push(rule.name.clone());
        }
        if let Some(rule) = self.document.latency.iter().find(|rule| rule.when.holds(&scene)) {
            scene.latency = rule.tier;
            evidence.push(rule.name.clone());
        }
        let mut thinking = facts.thinking;
        if let Some(rule) = self.document.thinking.iter().find(|rule| rule.when.holds(&scene)) {
            thinking = granted(rule, facts.thinking);
            evidence.push(rule.name.clone());
        }
        Profile {
            value: scene.value,
            latency: scene.latency,
            thinking,
            workflow: facts
                .workflow
                .as_deref()
                .map(Arc::from)
                .or_else(|| account.workflow.clone()),
            evidence,
        }
    }
}

/// What the caller asked for, lowered to the cap; the rule's own level where the caller asked for nothing.
fn granted(rule: &ThinkingRule, asked: Option<Thinking>) -> Option<Thinking> {
    match (asked, rule.at_most) {
        (None, _) => rule.level.map(Thinking::Level),
        (Some(Thinking::Level(level)), Some(cap)) if level > cap => Some(Thinking::Level(cap)),
        // A number of tokens has no place on the dial; under a cap of none it is none.
        (Some(Thinking::Tokens(_)), Some(ThinkingLevel::None)) => Some(Thinking::Level(ThinkingLevel::None)),
        (asked, _) => asked,
    }
}

fn check(document: &PolicyDocument, file: &str) -> Result<(), DocumentError> {
    let fail = |path: String, problem: String| Err(DocumentError::at(file, path, problem));
    if document.version != 1 {
        return fail(
            "version".into(),
            format!(
                "version {} is not known; this build reads version 1",
                document.version
            ),
        );
    }
    if document.deployments.is_empty() {
        return fail(
            "deployments".into(),
            "a policy needs at least one deployment".into(),
        );
    }
    let mut ids = HashSet::new();
    for (position, deployment) in document.deployments.iter().enumerate() {
        if !ids.insert(&*deployment.id) {
            return fail(
                format!("deployments[{position}].id"),
                format!("`{}` is used twice", deployment.id),
            );
        }
        if document.virtual_models.contains(&deployment.id) {
            let problem = format!("`{}` is also a virtual model", deployment.id);
            return fail(format!("deployments[{position}].id"), problem);
        }
    }
    for (position, route) in document.routes.iter().enumerate() {
        for (step, preference) in route.prefer.iter().enumerate() {
            let path = format!("routes[{position}].prefer[{step}]");
            match preference {
                Preference::Deployment(id) if !ids.contains(&**id) => {
                    let error = DocumentError::at(file, path, format!("no deployment is called `{id}`"));
                    return Err(match nearest(id, ids.iter().copied()) {
                        Some(known) => error.hint(format!("did you mean `{known}`?")),
                        None => error,
                    });
                }
                Preference::Class { class }
                    if !document.deployments.iter().any(|known| known.class == *class) =>
                {
                    return fail(path, format!("no deployment is of class `{class}`"));
                }
                _ => {}
            }
        }
    }
    Ok(())
}
