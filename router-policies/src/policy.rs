//! A policy that was checked and is ready to rule, and the classification it gives a request.
//!
//! *Deployments* are models callable somewhere, each of a backend class. *Workflows* are pieces of work with an owner
//! and a worth; rules give a value and a latency tier to requests of no workflow. *Thinking* rules bound the dial.
//! *Floors* say which classes are good enough, so that saving never falls on exactly the valuable work. *Routes* say
//! which deployments may serve and in which order; a caller who names a model gets what `named_models` says.
//!
//! Invariants: every reference was resolved to a position at load; nothing here can fail any more.

mod compile;
mod form;
mod scalars;

pub use form::{
    Capability, Deferral, Deployment, LatencyLevel, LatencyRule, NamedModels, Objective, PolicyDocument,
    ReferencePrice, Route, Speed, Spelling, Split, TeamLayer, TeamsDocument, ThinBudget, ThinkingAbility,
    ThinkingRule, ValueLevel, ValueRule, Workflow,
};
pub use scalars::{Dollars, Quality, Step, ThinkingWish};

use crate::ability::Ability;
use crate::condition::{Scene, Test};
use crate::document::DocumentErrors;
use crate::estimates::{Estimate, Estimates};
use exchange::{
    AccountPath, BackendClass, Facts, LatencyTier, Money, Profile, Rate, ThinkingGrant, ThinkingLevel,
    ValueTier, Worth,
};
use std::collections::HashMap;
use std::sync::Arc;

/// Who asks what, when, and with how much money left.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    pub facts: &'a Facts,
    pub account: &'a AccountPath,
    /// Seconds since the epoch, UTC.
    pub unix_s: i64,
    /// Left in the tightest budget on the account's path; [`Money::MAX`] where there is none.
    pub budget_left: Money,
}

/// A policy, ready to rule.
#[derive(Clone, Debug)]
pub struct Policy {
    pub(crate) document: PolicyDocument,
    version: Arc<str>,
    pub(crate) tests: Tests,
    pub(crate) routes: Vec<CompiledRoute>,
    pub(crate) models: Vec<Model>,
    /// By `ValueTier as usize`.
    pub(crate) levels: [Level; ValueTier::ALL.len()],
    /// By `LatencyTier as usize`.
    pub(crate) service: [Service; LatencyTier::ALL.len()],
    pub(crate) names: HashMap<Arc<str>, Name>,
    pub(crate) teams: HashMap<Arc<str>, Team>,
    pub(crate) workflow_positions: HashMap<Arc<str>, usize>,
    /// Looked at for every request, so not worked out for each.
    pub(crate) defers: bool,
    /// Tokens that thinking is expected to use, by `ThinkingLevel as usize`.
    pub(crate) thinking_tokens: [u64; ThinkingLevel::ALL.len()],
}

/// The conditions of the rules, in the document's order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tests {
    pub(crate) workflows: Vec<Test>,
    pub(crate) value: Vec<Test>,
    pub(crate) latency: Vec<Test>,
    pub(crate) thinking: Vec<Test>,
}

/// A route with its references resolved to positions.
#[derive(Clone, Debug)]
pub(crate) struct CompiledRoute {
    pub(crate) name: Arc<str>,
    pub(crate) test: Test,
    pub(crate) names_a_model: bool,
    /// Each step's members, without those of earlier steps.
    pub(crate) prefer: Vec<Vec<usize>>,
    pub(crate) allow: Vec<usize>,
    pub(crate) fallback: Vec<Vec<usize>>,
    pub(crate) never: Vec<bool>,
    pub(crate) is_pin: bool,
    pub(crate) split: Vec<(usize, f64)>,
}

/// What is known of a deployment beyond what its document says.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) ability: Option<Ability>,
    pub(crate) quality: HashMap<Arc<str>, Estimate>,
    pub(crate) default_quality: Estimate,
    pub(crate) first_token_ms: u32,
    pub(crate) kilotoken_ms: u32,
    pub(crate) rates: Option<Rates>,
}

/// Reference prices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates {
    pub(crate) input: Rate,
    pub(crate) output: Rate,
    pub(crate) cached_input: Rate,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Level {
    pub(crate) value_per_success: Money,
    pub(crate) failure_cost: Money,
    pub(crate) min_success: f64,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Service {
    pub(crate) second: Money,
    pub(crate) first_token_ms: Option<u64>,
    pub(crate) total_ms: Option<u64>,
}

/// What a model name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Virtual,
    Deployments(Vec<usize>),
}

#[derive(Clone, Debug)]
pub(crate) struct Team {
    pub(crate) allowed: Vec<bool>,
    pub(crate) regions: Vec<Arc<str>>,
    pub(crate) floors: HashMap<ValueTier, Vec<BackendClass>>,
    pub(crate) thinking_at_most: ThinkingLevel,
    pub(crate) named_models: NamedModels,
}

impl Policy {
    /// `file` is only for messages.
    ///
    /// # Errors
    /// Every mistake, with its place and a hint.
    pub fn parse(text: &str, file: &str) -> Result<Self, DocumentErrors> {
        Self::parse_layers((text, file), &[])
    }

    /// The organisation's document and files of teams that keep their own layers; (text, file name) each.
    ///
    /// # Errors
    /// Every mistake, with its place and a hint.
    pub fn parse_layers(org: (&str, &str), teams: &[(&str, &str)]) -> Result<Self, DocumentErrors> {
        compile::compile(org, teams)
    }

    /// Hash of the text; every decision names it.
    pub fn version(&self) -> &Arc<str> {
        &self.version
    }

    pub fn document(&self) -> &PolicyDocument {
        &self.document
    }

    pub fn deployments(&self) -> &[Deployment] {
        &self.document.deployments
    }

    pub fn virtual_models(&self) -> &[Arc<str>] {
        &self.document.virtual_models
    }

    pub(crate) fn position(&self, id: &str) -> Option<usize> {
        self.deployments()
            .iter()
            .position(|deployment| *deployment.id == *id)
    }

    /// The policy's workflow that a profile was matched to.
    pub(crate) fn workflow(&self, profile: &Profile) -> Option<&Workflow> {
        let name = profile.workflow.as_ref().filter(|_| profile.matched)?;
        let position = self.workflow_positions.get(name)?;
        self.document.workflows.get(*position)
    }

    /// Some requests become jobs without their callers' saying so.
    pub fn defers(&self) -> bool {
        self.defers
    }

    /// How a request of this profile is made a job although its caller did not say so, if it is.
    pub fn deferral(&self, profile: &Profile) -> Option<Deferral> {
        if !matches!(profile.latency, LatencyTier::Deferred | LatencyTier::Batch) {
            return None;
        }
        let own = self.workflow(profile).and_then(|workflow| workflow.defer);
        own.or_else(|| self.document.latency_tiers.get(&profile.latency)?.defer)
    }

    pub(crate) fn is_virtual(&self, model: &str) -> bool {
        matches!(self.names.get(model), Some(Name::Virtual))
    }

    /// What the answer is worth, when it is needed and how much thinking it gets, with the rules that said so.
    pub fn classify(&self, situation: &Situation<'_>) -> Profile {
        self.classify_as(situation, self.matched(situation))
    }

    /// The workflow that a request is for: the one whose conditions hold, else the one that was declared. Known before
    /// money is held, since it says whose money; so its conditions see every budget as untouched.
    pub fn workflow_for(&self, situation: &Situation<'_>) -> Option<Arc<str>> {
        let matched = self.matched(situation).map(|workflow| workflow.name.clone());
        matched
            .or_else(|| situation.facts.workflow.as_deref().map(Arc::from))
            .or_else(|| situation.account.workflow.clone())
    }

    fn matched(&self, situation: &Situation<'_>) -> Option<&Workflow> {
        let facts = situation.facts;
        let declared = facts
            .workflow
            .as_deref()
            .or(situation.account.workflow.as_deref());
        let scene = Scene {
            budget_left: i64::MAX,
            ..situation.scene(declared)
        };
        first(&self.tests.workflows, &scene).map(|position| &self.document.workflows[position])
    }

    /// The classification as if this workflow's conditions had held.
    pub(crate) fn classify_as(&self, situation: &Situation<'_>, matched: Option<&Workflow>) -> Profile {
        let facts = situation.facts;
        let declared = facts
            .workflow
            .as_deref()
            .map(Arc::from)
            .or_else(|| situation.account.workflow.clone());
        let mut scene = situation.scene(declared.as_deref());
        let mut evidence = Vec::new();
        let mut worth = None;
        if let Some(workflow) = matched {
            evidence.push(workflow.name.clone());
            scene.workflow = Some(&workflow.name);
            scene.task = workflow.task.as_deref();
            worth = Some(self.worth_of(workflow));
            scene.value = self.tier_of(workflow);
            scene.latency = workflow.latency.unwrap_or(scene.latency);
            scene.deadline_ms = sooner(scene.deadline_ms, workflow.deadline_ms);
        }
        if matched.is_none()
            && let Some(position) = first(&self.tests.value, &scene)
        {
            let rule = &self.document.value[position];
            scene.value = rule.tier;
            evidence.push(rule.name.clone());
        }
        let has_latency = matched.is_some_and(|workflow| workflow.latency.is_some());
        if !has_latency && let Some(position) = first(&self.tests.latency, &scene) {
            let rule = &self.document.latency[position];
            scene.latency = rule.tier;
            evidence.push(rule.name.clone());
        }
        let mut thinking = ThinkingGrant {
            wanted: facts.thinking,
            ..ThinkingGrant::default()
        };
        if let Some(position) = first(&self.tests.thinking, &scene) {
            let rule = &self.document.thinking[position];
            thinking.at_least = rule.at_least;
            thinking.at_most = rule.at_most;
            match rule.level {
                Some(ThinkingWish::This(level)) => thinking.wanted = thinking.wanted.or(Some(level)),
                Some(ThinkingWish::ByGain) => thinking.by_gain = thinking.wanted.is_none(),
                None => {}
            }
            evidence.push(rule.name.clone());
        }
        let level = self.levels[scene.value as usize];
        let (value_per_success, failure_cost) =
            worth.unwrap_or((level.value_per_success, level.failure_cost));
        Profile {
            value: scene.value,
            latency: scene.latency,
            worth: Worth {
                value_per_success,
                failure_cost,
                second: self.service[scene.latency as usize].second,
            },
            thinking,
            deadline_ms: scene.deadline_ms,
            task: scene.task.map(Arc::from),
            matched: matched.is_some(),
            workflow: matched.map(|workflow| workflow.name.clone()).or(declared),
            evidence,
        }
    }

    /// What is believed of a deployment before anything is learned: the quality written for the task family, else its
    /// default, else its class's.
    pub fn prior(&self, index: usize, task: Option<&str>) -> Estimate {
        let Some(model) = self.models.get(index) else {
            return Estimate::new(f64::NAN, f64::NAN, exchange::EstimateSource::Prior);
        };
        let own = task.and_then(|task| model.quality.get(task));
        *own.unwrap_or(&model.default_quality)
    }

    /// Whether the predictor is to be asked about a request: by its workflow, else by the objective; and only where the
    /// answer could change anything, which it cannot for a caller who names a model and how it is to think.
    pub fn predicts(&self, profile: &Profile, facts: &Facts) -> bool {
        let own = self.workflow(profile).and_then(|workflow| workflow.predict);
        let is_open = self.is_virtual(&facts.model)
            || profile.thinking.by_gain
            || self.document.named_models == NamedModels::Substitute
            || !self.teams.is_empty();
        own.unwrap_or(self.document.objective.predict) && is_open
    }

    /// What is believed of a deployment before outcomes have their word: the prior, or what the predictor makes of it.
    pub fn belief(
        &self,
        index: usize,
        (profile, facts): (&Profile, &Facts),
        estimates: &Estimates,
    ) -> Estimate {
        let prior = self.prior(index, profile.task.as_deref());
        let Some((model, deployment)) = self.models.get(index).zip(self.deployments().get(index)) else {
            return prior;
        };
        if !self.predicts(profile, facts) {
            return prior;
        }
        let priors = (&prior, &model.default_quality);
        estimates.belief(deployment.class, priors, self.document.objective.familiarity)
    }

    /// What a deployment is believed to do at a workflow that is known by its name alone: P(success) in parts per million,
    /// and what the answers are worth.
    pub fn expected_of(&self, index: usize, workflow: &str) -> (u32, Worth) {
        let known = self.workflow_positions.get(workflow);
        let known = known.and_then(|position| self.document.workflows.get(*position));
        let prior = self.prior(index, known.and_then(|workflow| workflow.task.as_deref()));
        let level = self.levels[ValueTier::Unvalued as usize];
        let (value_per_success, failure_cost) = known
            .map_or((level.value_per_success, level.failure_cost), |workflow| {
                self.worth_of(workflow)
            });
        let worth = Worth {
            value_per_success,
            failure_cost,
            second: Money::ZERO,
        };
        ((prior.p_success * 1e6).round() as u32, worth)
    }

    /// A workflow's own value tier, or the highest whose worth it reaches.
    pub(crate) fn tier_of(&self, workflow: &Workflow) -> ValueTier {
        if let Some(tier) = workflow.value {
            return tier;
        }
        let Some(Dollars(value)) = workflow.value_per_success else {
            return ValueTier::Unvalued;
        };
        let tiers = ValueTier::ALL
            .iter()
            .rev()
            .filter(|tier| **tier != ValueTier::Unvalued);
        let mut reached = tiers.filter(|tier| value >= self.levels[**tier as usize].value_per_success);
        reached.next().copied().unwrap_or(ValueTier::Low)
    }

    /// Value of success and cost of failure.
    pub(crate) fn worth_of(&self, workflow: &Workflow) -> (Money, Money) {
        let level = self.levels[self.tier_of(workflow) as usize];
        let money = |own: Option<Dollars>, tier| own.map_or(tier, |Dollars(money)| money);
        (
            money(workflow.value_per_success, level.value_per_success),
            money(workflow.failure_cost, level.failure_cost),
        )
    }

    /// Every rule's name, for coverage: workflows, value, latency and thinking rules, routes.
    pub fn rule_names(&self) -> Vec<(&'static str, Arc<str>)> {
        let document = &self.document;
        let workflows = document
            .workflows
            .iter()
            .map(|one| ("workflow", one.name.clone()));
        let value = document.value.iter().map(|one| ("value", one.name.clone()));
        let latency = document.latency.iter().map(|one| ("latency", one.name.clone()));
        let thinking = document.thinking.iter().map(|one| ("thinking", one.name.clone()));
        let routes = document.routes.iter().map(|one| ("route", one.name.clone()));
        workflows
            .chain(value)
            .chain(latency)
            .chain(thinking)
            .chain(routes)
            .collect()
    }
}

impl<'a> Situation<'a> {
    pub(crate) fn scene(&self, workflow: Option<&'a str>) -> Scene<'a> {
        Scene {
            facts: self.facts,
            account: self.account,
            workflow,
            task: None,
            value: ValueTier::Unvalued,
            // Without a rule, a stream is watched by someone and a whole answer is not.
            latency: if self.facts.stream {
                LatencyTier::Interactive
            } else {
                LatencyTier::Standard
            },
            deadline_ms: self.facts.deadline_ms,
            unix_s: self.unix_s,
            budget_left: self.budget_left.nanos(),
        }
    }
}

fn first(tests: &[Test], scene: &Scene<'_>) -> Option<usize> {
    tests.iter().position(|test| test.holds(scene))
}

fn sooner(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
