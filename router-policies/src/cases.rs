//! Cases: "given these facts, expect this decision", in YAML, so that platform teams test a policy before it ships.

use crate::decide::Ask;
use crate::document::{self, DocumentError};
use crate::policy::Policy;
use exchange::{
    AccountPath, Dialect, Envelope, Facts, Grants, LatencyTier, Money, Offer, RefusalKind, Surface, Thinking,
    ThinkingLevel, ValueTier,
};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A file of cases.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub struct Cases(pub Vec<Case>);

/// One case. What is left out of the facts is a short plain request.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    pub name: String,
    #[serde(default)]
    given: Given,
    expect: Expect,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Given {
    model: String,
    org: String,
    team: Option<String>,
    workflow: Option<String>,
    labels: BTreeMap<String, String>,
    stream: bool,
    input_tokens: u64,
    turns: u32,
    tools: u32,
    images: u32,
    structured_output: bool,
    thinking: Option<ThinkingLevel>,
    /// Deployments that are down.
    down: Vec<String>,
    /// Dollars granted to the request. Left out: more than enough.
    granted: Option<String>,
    /// What starting costs at each deployment, in dollars. Left out: nothing.
    minimum: BTreeMap<String, String>,
    grants: Vec<String>,
}

impl Default for Given {
    fn default() -> Self {
        Self {
            model: "auto".into(),
            org: "acme".into(),
            team: None,
            workflow: None,
            labels: BTreeMap::new(),
            stream: true,
            input_tokens: 200,
            turns: 1,
            tools: 0,
            images: 0,
            structured_output: false,
            thinking: None,
            down: Vec::new(),
            granted: None,
            minimum: BTreeMap::new(),
            grants: Vec::new(),
        }
    }
}

/// Only what is written is compared.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Expect {
    value: Option<ValueTier>,
    latency: Option<LatencyTier>,
    thinking: Option<ThinkingLevel>,
    route: Option<String>,
    /// Deployment ids in order.
    plan: Option<Vec<String>>,
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

impl Cases {
    /// # Errors
    /// The first mistake in the file.
    pub fn parse(text: &str, file: &str) -> Result<Self, DocumentError> {
        document::parse(text, file)
    }

    /// Runs every case; the failures in order.
    pub fn run(&self, policy: &Policy) -> Vec<CaseFailure> {
        self.0.iter().flat_map(|case| case.run(policy)).collect()
    }
}

impl Case {
    fn run(&self, policy: &Policy) -> Vec<CaseFailure> {
        let (given, expect) = (&self.given, &self.expect);
        let (facts, account) = (given.facts(), given.account());
        let profile = policy.classify(&facts, &account);
        let dollars = |text: &String| Money::parse_dollars(text).unwrap_or(Money::MAX);
        let offers: Vec<Offer> = policy
            .deployments()
            .iter()
            .map(|deployment| {
                let minimum = given.minimum.get(&*deployment.id).map_or(Money::ZERO, dollars);
                let available = !given.down.iter().any(|down| **down == *deployment.id);
                Offer {
                    available,
                    expected: Some(minimum),
                    minimum: Some(minimum),
                    in_flight: 0,
                }
            })
            .collect();
        let granted = given
            .granted
            .as_ref()
            .map_or(Money::from_dollars(1_000_000), dollars);
        let decided = policy.decide(&Ask {
            facts: &facts,
            account: &account,
            profile: &profile,
            grants: &Grants {
                models: given.grants.iter().map(|grant| grant.as_str().into()).collect(),
            },
            offers: &offers,
            envelope: Envelope {
                granted,
                remaining: Money::ZERO,
            },
            seed: 0,
        });
        let (plan, refused, trace) = match &decided {
            Ok(decision) => (
                decision
                    .plan
                    .iter()
                    .map(|one| one.deployment.to_string())
                    .collect(),
                None,
                &decision.trace,
            ),
            Err(no_route) => (Vec::new(), Some(no_route.kind), &no_route.trace),
        };
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
        let thinking = profile
            .thinking
            .map_or("nothing".into(), |thinking| thinking.to_string());
        compare(
            "thinking",
            expect.thinking.map(|level| level.to_string()),
            thinking,
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
        let refusal = refused.map_or("an answer".into(), |kind| kind.to_string());
        compare("refused", expect.refused.map(|kind| kind.to_string()), refusal);
        failures
    }
}

impl Given {
    fn facts(&self) -> Facts {
        Facts {
            dialect: Dialect::OpenaiChat,
            surface: Surface::ChatCompletions,
            model: self.model.as_str().into(),
            stream: self.stream,
            body_bytes: self.input_tokens * 4,
            input_tokens: self.input_tokens,
            max_output_tokens: None,
            turns: self.turns,
            tools: self.tools,
            images: self.images,
            structured_output: self.structured_output,
            thinking: self.thinking.map(Thinking::Level),
            service_tier: None,
            hour_cache: false,
            workflow: self.workflow.as_deref().map(Into::into),
            deadline_ms: None,
            labels: self
                .labels
                .iter()
                .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
                .collect(),
            prefix_hash: 0,
        }
    }

    fn account(&self) -> AccountPath {
        AccountPath {
            org: self.org.as_str().into(),
            team: self.team.as_deref().map(Arc::from),
            workflow: None,
            key: None,
        }
    }
}
