//! Cases: "given these facts, expect this decision", in YAML, so that platform teams test a policy before it ships.
//!
//! Invariants: only what a case writes down is compared; every rule that a case exercised is known, so that a rule
//! that no case reaches can be told.

use crate::decide::{Ask, NoRoute};
use crate::document::{self, DocumentErrors};
use crate::estimates::Estimates;
use crate::policy::{Dollars, Policy, Situation, ThinkingWish};
use crate::predict::Predictor;
use exchange::{
    AccountPath, Conversation, Decision, Dialect, Envelope, Facts, Grants, LatencyTier, Money, Profile,
    Reason, RefusalKind, Surface, Thinking, ThinkingNote, Trace, ValueTier,
};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

/// A file of cases.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Cases(pub Vec<Case>);

/// One case. What is left out of the facts is a short plain request.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Case {
    pub name: String,
    #[serde(default)]
    pub given: Given,
    #[serde(default)]
    expect: Expect,
}

/// A request and its circumstances.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Given {
    pub model: String,
    pub org: String,
    pub team: Option<String>,
    pub key: Option<String>,
    /// The workflow that the caller declares.
    pub workflow: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub stream: bool,
    /// The caller's last words, for policies that ask the predictor. Never recorded.
    pub prompt: Option<String>,
    pub input_tokens: u64,
    pub max_output_tokens: Option<u64>,
    pub turns: u32,
    pub tools: u32,
    pub images: u32,
    pub structured_output: bool,
    pub deadline_ms: Option<u64>,
    /// The caller's own setting: a level or a number of tokens.
    pub thinking: Option<ThinkingWish>,
    /// Deployments that are down.
    pub down: Vec<String>,
    /// Dollars granted to the request. Left out: more than enough.
    pub granted: Option<Dollars>,
    /// Dollars left in the tightest budget. Left out: more than enough.
    pub budget_left: Option<Dollars>,
    /// What starting costs at each deployment, in dollars. Left out: what the policy's prices say, or nothing.
    pub minimum: BTreeMap<String, Dollars>,
    /// What the request is expected to cost at each deployment, in dollars, likewise.
    pub expected: BTreeMap<String, Dollars>,
    /// Where the conversation was answered last.
    pub conversation: Option<GivenConversation>,
    pub grants: Vec<String>,
    /// Seconds since the epoch.
    pub unix_s: i64,
    /// Decides splits and exploration.
    pub seed: u64,
}

/// Where the conversation was answered last.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GivenConversation {
    /// A deployment by its id.
    pub deployment: String,
    /// Tokens of prefix that the provider still holds.
    #[serde(default)]
    pub cached_tokens: u64,
    /// How it thought.
    #[serde(default)]
    pub thinking: Option<ThinkingWish>,
}

impl Default for Given {
    fn default() -> Self {
        Self {
            model: "auto".into(),
            org: "acme".into(),
            team: None,
            key: None,
            workflow: None,
            labels: BTreeMap::new(),
            stream: true,
            prompt: None,
            input_tokens: 200,
            max_output_tokens: None,
            turns: 1,
            tools: 0,
            images: 0,
            structured_output: false,
            deadline_ms: None,
            thinking: None,
            down: Vec::new(),
            granted: None,
            budget_left: None,
            minimum: BTreeMap::new(),
            expected: BTreeMap::new(),
            conversation: None,
            grants: Vec::new(),
            unix_s: 0,
            seed: 0,
        }
    }
}

/// Only what is written is compared.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Expect {
    #[schemars(with = "Option<String>")]
    value: Option<ValueTier>,
    #[schemars(with = "Option<String>")]
    latency: Option<LatencyTier>,
    /// The workflow it is matched to.
    workflow: Option<String>,
    /// The thinking that is sent to the first deployment; `provider_default` where nothing is.
    thinking: Option<String>,
    /// What became of the thinking asked for.
    #[schemars(with = "Option<String>")]
    thinking_note: Option<ThinkingNote>,
    /// The route's name, or `none`.
    route: Option<String>,
    /// Deployment ids in order.
    plan: Option<Vec<String>>,
    /// The first of the plan.
    deployment: Option<String>,
    #[schemars(with = "Option<String>")]
    reason: Option<Reason>,
    substituted: Option<bool>,
    #[schemars(with = "Option<String>")]
    refused: Option<RefusalKind>,
}

/// A case that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{case}: {what}: expected {expected}, got {found}")]
pub struct CaseFailure {
    pub case: String,
    pub what: &'static str,
    pub expected: String,
    pub found: String,
}

/// What a case came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub profile: Profile,
    pub decided: Result<Decision, NoRoute>,
}

impl Outcome {
    pub fn trace(&self) -> &Trace {
        match &self.decided {
            Ok(decision) => &decision.trace,
            Err(no_route) => &no_route.trace,
        }
    }
}

impl Cases {
    /// # Errors
    /// Every mistake in the file.
    pub fn parse(text: &str, file: &str) -> Result<Self, DocumentErrors> {
        let (cases, mistakes) = document::read(text, file);
        mistakes.none_or(cases.unwrap_or(Self(Vec::new())))
    }

    /// Runs every case; the failures in order.
    pub fn run(&self, policy: &Policy) -> Vec<CaseFailure> {
        self.0.iter().flat_map(|case| case.failures(policy)).collect()
    }

    /// Rules of the policy that no case exercises, as (kind, name).
    pub fn unreached(&self, policy: &Policy) -> Vec<(&'static str, Arc<str>)> {
        let mut reached = BTreeSet::new();
        for case in &self.0 {
            let outcome = case.given.decide(policy);
            reached.extend(outcome.profile.evidence.iter().cloned());
            reached.extend(outcome.trace().route.clone());
        }
        let mut rules = policy.rule_names();
        rules.retain(|(_, name)| !reached.contains(name));
        rules
    }
}

impl Case {
    fn failures(&self, policy: &Policy) -> Vec<CaseFailure> {
        let expect = &self.expect;
        let outcome = self.given.decide(policy);
        let (profile, trace) = (&outcome.profile, outcome.trace());
        let (plan, refused) = match &outcome.decided {
            Ok(decision) => (
                decision
                    .plan
                    .iter()
                    .map(|one| one.deployment.to_string())
                    .collect(),
                None,
            ),
            Err(no_route) => (Vec::new(), Some(no_route.kind)),
        };
        let first = outcome
            .decided
            .as_ref()
            .ok()
            .map(|decision| decision.plan.first());
        let mut failures = Vec::new();
        let mut compare = |what, expected: Option<String>, found: String| match expected {
            Some(expected) if expected != found => {
                failures.push(CaseFailure {
                    case: self.name.clone(),
                    what,
                    expected,
                    found,
                });
            }
            _ => {}
        };
        let nothing = || "nothing".to_owned();
        compare(
            "value",
            expect.value.map(|tier| tier.to_string()),
            profile.value.to_string(),
        );
        compare(
            "latency",
            expect.latency.map(|tier| tier.to_string()),
            profile.latency.to_string(),
        );
        let workflow = profile
            .workflow
            .as_ref()
            .map_or_else(nothing, |name| name.to_string());
        compare("workflow", expect.workflow.clone(), workflow);
        let thinking = first.map(|one| {
            one.thinking
                .map_or("provider_default".into(), |level| level.to_string())
        });
        compare(
            "thinking",
            expect.thinking.clone(),
            thinking.unwrap_or_else(nothing),
        );
        let note = first.map_or_else(nothing, |one| one.thinking_note.to_string());
        compare(
            "thinking_note",
            expect.thinking_note.map(|note| note.to_string()),
            note,
        );
        compare(
            "route",
            expect.route.clone(),
            trace.route.as_deref().unwrap_or("none").into(),
        );
        compare(
            "plan",
            expect.plan.as_ref().map(|plan| plan.join(", ")),
            plan.join(", "),
        );
        compare(
            "deployment",
            expect.deployment.clone(),
            first.map_or_else(nothing, |one| one.deployment.to_string()),
        );
        let decision = outcome.decided.as_ref().ok();
        let reason = decision.map_or_else(nothing, |decision| decision.reason.to_string());
        compare("reason", expect.reason.map(|reason| reason.to_string()), reason);
        let substituted = decision.is_some_and(|decision| decision.substituted).to_string();
        compare(
            "substituted",
            expect.substituted.map(|is| is.to_string()),
            substituted,
        );
        let refusal = refused.map_or("an answer".into(), |kind| kind.to_string());
        compare("refused", expect.refused.map(|kind| kind.to_string()), refusal);
        failures
    }
}

impl Given {
    /// Classifies and decides, with the policy's own reference prices where the case names none.
    pub fn decide(&self, policy: &Policy) -> Outcome {
        let (facts, account) = (self.facts(), self.account());
        let plenty = Money::from_dollars(1_000_000);
        let left = self.budget_left.map_or(plenty, |Dollars(money)| money);
        let situation = Situation {
            facts: &facts,
            account: &account,
            unix_s: self.unix_s,
            budget_left: left,
        };
        let profile = policy.classify(&situation);
        let conversation = self.conversation.as_ref().map(|one| Conversation {
            deployment: one.deployment.as_str().into(),
            cached_tokens: one.cached_tokens,
            thinking: one.thinking.and_then(setting),
        });
        let mut offers = policy.reference_offers(&facts);
        for (offer, deployment) in offers.iter_mut().zip(policy.deployments()) {
            let written =
                |map: &BTreeMap<String, Dollars>| map.get(&*deployment.id).map(|Dollars(money)| *money);
            offer.available = !self.down.iter().any(|down| **down == *deployment.id);
            offer.minimum = written(&self.minimum).or(offer.minimum).or(Some(Money::ZERO));
            offer.expected = written(&self.expected)
                .or(written(&self.minimum))
                .or(offer.expected)
                .or(Some(Money::ZERO));
            if let Some(home) = conversation
                .as_ref()
                .filter(|home| home.deployment == deployment.id)
            {
                offer.cache_saving =
                    policy.cache_saving(&deployment.id, home.cached_tokens.min(facts.input_tokens));
            }
        }
        let decided = policy.decide(&Ask {
            facts: &facts,
            account: &account,
            profile: &profile,
            grants: &Grants {
                models: self.grants.iter().map(|grant| grant.as_str().into()).collect(),
                classes: Vec::new(),
            },
            offers: &offers,
            conversation: conversation.as_ref(),
            estimates: &self.estimates(policy, (&profile, &facts)),
            envelope: Envelope {
                granted: self.granted.map_or(plenty, |Dollars(money)| money),
                remaining: left,
            },
            unix_s: self.unix_s,
            seed: self.seed,
        });
        Outcome { profile, decided }
    }

    /// What the shipped predictor says of the prompt, where the policy asks it.
    fn estimates(&self, policy: &Policy, (profile, facts): (&Profile, &Facts)) -> Estimates {
        static SHIPPED: OnceLock<Option<Predictor>> = OnceLock::new();
        let asked = self.prompt.as_ref().filter(|_| policy.predicts(profile, facts));
        let predictor = || SHIPPED.get_or_init(|| Predictor::shipped().ok()).as_ref();
        asked
            .and_then(|prompt| Some(Estimates::predicted(predictor()?, prompt).0))
            .unwrap_or_default()
    }

    /// The facts of the request.
    pub fn facts(&self) -> Facts {
        Facts {
            dialect: Dialect::OpenaiChat,
            surface: Surface::ChatCompletions,
            model: self.model.as_str().into(),
            stream: self.stream,
            body_bytes: self.input_tokens.saturating_mul(4),
            input_tokens: self.input_tokens,
            max_output_tokens: self.max_output_tokens,
            turns: self.turns,
            tools: self.tools,
            images: self.images,
            structured_output: self.structured_output,
            thinking: self.thinking.and_then(setting),
            service_tier: None,
            hour_cache: false,
            workflow: self.workflow.as_deref().map(Into::into),
            deadline_ms: self.deadline_ms,
            labels: self
                .labels
                .iter()
                .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
                .collect(),
            prefix_hash: 0,
        }
    }

    pub(crate) fn account(&self) -> AccountPath {
        AccountPath {
            org: self.org.as_str().into(),
            team: self.team.as_deref().map(Arc::from),
            workflow: None,
            key: self.key.as_deref().map(Arc::from),
        }
    }
}

/// `by_gain` is a policy's word; from a caller it says nothing.
fn setting(wish: ThinkingWish) -> Option<Thinking> {
    match wish {
        ThinkingWish::This(thinking) => Some(thinking),
        ThinkingWish::ByGain => None,
    }
}
