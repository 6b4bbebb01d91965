//! Where each workflow of a policy is served: the decision for a request that fits its conditions, at the policy's own
//! prices and priors, with everything up.

use crate::cases::Given;
use crate::condition::{Comparison, Flag, Number, NumberFact, Test, Text, TextFact};
use crate::decide::{Ask, is_capable};
use crate::estimates::Estimates;
use crate::policy::{Policy, Situation, Workflow};
use exchange::{BackendClass, Envelope, Grants, Money, Thinking, ValueTier, Verdict};
use serde::Serialize;
use std::sync::Arc;

/// Where one workflow is served.
#[derive(Clone, Debug, Serialize)]
pub struct Standing {
    pub workflow: Arc<str>,
    /// In the document's list.
    pub position: usize,
    pub tier: ValueTier,
    pub value: Money,
    pub failure_cost: Money,
    pub monthly_requests: u64,
    pub approved_by: Option<Arc<str>>,
    pub deployment: Option<Arc<str>>,
    pub class: Option<BackendClass>,
    pub thinking: Option<Thinking>,
    pub success_ppm: u32,
    pub price: Money,
    /// How many deployments may serve it.
    pub choices: usize,
    /// The strongest class that may serve it at all: data, regions and capabilities may rule out the others.
    pub within_reach: Option<BackendClass>,
    /// Why nobody may serve it.
    pub refused: Option<String>,
    /// The service level that even the best misses.
    pub misses: Option<Verdict>,
}

/// How strong a class is.
pub(crate) const fn strength(class: BackendClass) -> u8 {
    match class {
        BackendClass::Frontier => 3,
        BackendClass::Cheap | BackendClass::Batch => 2,
        BackendClass::Local => 1,
    }
}

pub(crate) fn standings(policy: &Policy) -> Vec<Standing> {
    let workflows = policy.document.workflows.iter().enumerate();
    workflows
        .map(|(position, workflow)| standing(policy, position, workflow))
        .collect()
}

fn standing(policy: &Policy, position: usize, workflow: &Workflow) -> Standing {
    let given = example(policy, position, workflow);
    let (facts, account) = (given.facts(), given.account());
    let plenty = Money::from_dollars(1_000_000);
    let situation = Situation {
        facts: &facts,
        account: &account,
        unix_s: given.unix_s,
        budget_left: plenty,
    };
    let profile = policy.classify_as(&situation, Some(workflow));
    let offers = policy.reference_offers(&facts).into_iter().map(|mut offer| {
        offer.minimum = offer.minimum.or(Some(Money::ZERO));
        offer
    });
    let offers: Vec<_> = offers.collect();
    let decided = policy.decide(&Ask {
        facts: &facts,
        account: &account,
        profile: &profile,
        grants: &Grants::default(),
        offers: &offers,
        conversation: None,
        estimates: &Estimates::default(),
        envelope: Envelope {
            granted: plenty,
            remaining: plenty,
        },
        unix_s: given.unix_s,
        seed: 0,
    });
    let (value, failure_cost) = policy.worth_of(workflow);
    let reach = policy.deployments().iter().filter(|one| {
        let data = workflow
            .data_class
            .as_ref()
            .is_none_or(|class| one.data_classes.contains(class));
        let region = one
            .region
            .as_ref()
            .is_some_and(|region| workflow.regions.contains(region));
        is_capable(one, &facts) && data && (workflow.regions.is_empty() || region)
    });
    let mut standing = Standing {
        workflow: workflow.name.clone(),
        position,
        tier: profile.value,
        value,
        failure_cost,
        monthly_requests: workflow.monthly_requests.unwrap_or(1),
        approved_by: workflow.approved_by.clone(),
        deployment: None,
        class: None,
        thinking: None,
        success_ppm: 0,
        price: Money::ZERO,
        choices: 0,
        within_reach: reach.map(|one| one.class).max_by_key(|class| strength(*class)),
        refused: None,
        misses: None,
    };
    match decided {
        Ok(decision) => {
            let first = decision.plan.first();
            standing.deployment = Some(first.deployment.clone());
            standing.class = Some(first.class);
            standing.thinking = first.thinking;
            standing.choices = decision.plan.iter().count();
            let entry = decision
                .trace
                .entries
                .iter()
                .find(|entry| entry.deployment == first.deployment);
            if let Some(score) = entry.and_then(|entry| entry.score) {
                standing.success_ppm = score.success_ppm;
                standing.price = score.price;
                let verdict = policy.service_level(&profile, &score);
                standing.misses = (verdict != Verdict::Chosen).then_some(verdict);
            }
        }
        Err(no_route) => standing.refused = Some(no_route.message),
    }
    standing
}

/// A request that belongs to the workflow, as far as its conditions can be read backwards.
fn example(policy: &Policy, position: usize, workflow: &Workflow) -> Given {
    let mut given = Given {
        model: policy
            .virtual_models()
            .first()
            .map_or("auto".into(), |name| name.to_string()),
        workflow: Some(workflow.name.to_string()),
        input_tokens: 1000,
        // Noon on a Wednesday.
        unix_s: 1_763_553_600,
        ..Given::default()
    };
    if let Some(test) = policy.tests.workflows.get(position) {
        satisfy(test, &mut given);
    }
    given
}

fn satisfy(test: &Test, given: &mut Given) {
    match test {
        Test::All(parts) => parts.iter().for_each(|part| satisfy(part, given)),
        Test::Any(choices) => {
            if let Some(first) = choices.first() {
                satisfy(first, given);
            }
        }
        Test::Flag(Flag::Stream) => given.stream = true,
        Test::Flag(Flag::StructuredOutput) => given.structured_output = true,
        Test::Not(inner) => match &**inner {
            Test::Flag(Flag::Stream) => given.stream = false,
            Test::Flag(Flag::StructuredOutput) => given.structured_output = false,
            _ => {}
        },
        Test::Texts(text, Comparison::Equal, Text::Literal(wanted)) => set(text, wanted, given),
        Test::OneOf(text, options) => {
            if let Some(first) = options.first() {
                set(text, first, given);
            }
        }
        Test::Glob(text, glob) => set(text, &glob.pattern().replace('*', "x"), given),
        Test::Has(text, _, wanted) => set(text, wanted, given),
        Test::HasLabel(name) => {
            given.labels.entry(name.to_string()).or_insert_with(|| "x".into());
        }
        Test::Numbers(Number::Fact(fact), comparison, Number::Whole(number)) => {
            let number = match comparison {
                Comparison::More => number.saturating_add(1),
                Comparison::Less => number.saturating_sub(1),
                _ => *number,
            };
            bound(*fact, u64::try_from(number).unwrap_or_default(), given);
        }
        _ => {}
    }
}

fn set(text: &Text, wanted: &str, given: &mut Given) {
    let wanted = wanted.to_owned();
    match text {
        Text::Fact(TextFact::Model) => given.model = wanted,
        Text::Fact(TextFact::Org) => given.org = wanted,
        Text::Fact(TextFact::Team) => given.team = Some(wanted),
        Text::Fact(TextFact::Workflow) => given.workflow = Some(wanted),
        Text::Fact(TextFact::Key) => given.key = Some(wanted),
        Text::Label(name) => {
            given.labels.insert(name.to_string(), wanted);
        }
        Text::Fact(_) | Text::Literal(_) => {}
    }
}

fn bound(fact: NumberFact, number: u64, given: &mut Given) {
    let small = u32::try_from(number).unwrap_or(u32::MAX);
    match fact {
        NumberFact::InputTokens => given.input_tokens = number,
        NumberFact::MaxOutputTokens => given.max_output_tokens = Some(number),
        NumberFact::Turns => given.turns = small,
        NumberFact::Tools => given.tools = small,
        NumberFact::Images => given.images = small,
        NumberFact::DeadlineMs => given.deadline_ms = Some(number),
        NumberFact::BodyBytes | NumberFact::Hour | NumberFact::Weekday | NumberFact::UnixTime => {}
    }
}
