//! The stages `classify` and `decide`: what the gateway knows of the fleet, the conversation and past outcomes, put
//! before the policy.

use crate::gateway::Gateway;
use crate::memory::Tally;
use crate::rules::Rules;
use dialect::Request;
use exchange::{AccountPath, Conversation, Decision, Envelope, Money, Offer, Profile, Refusal, RefusalKind};
use ledger::Principal;
use router_policies::{
    Ask, Decided, Estimate, EstimateSource, Estimates, NoRoute, Policy, Recorded, Situation,
};
use std::collections::HashMap;
use std::sync::Arc;

/// A prior counts as much as so many reported outcomes.
const PRIOR_WEIGHT: f64 = 10.0;

/// What was ruled.
pub(crate) struct Ruled {
    pub(crate) profile: Profile,
    pub(crate) decision: Decision,
    /// For replay, where records are kept; what it cost is still to be told.
    pub(crate) recorded: Option<Box<Recorded>>,
}

/// When, and with which dice.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) unix_s: i64,
    pub(crate) seed: u64,
}

/// Classifies and decides.
///
/// # Errors
/// Nobody may serve the request, and why.
pub(crate) fn rule(
    (rules, gateway): (&Rules, &Gateway),
    (who, request): (&Principal, &Request),
    offers: &mut [Offer],
    envelope: Envelope,
    moment: Moment,
) -> Result<Ruled, Refusal> {
    let (policy, facts, memory) = (&rules.policy, &request.facts, &gateway.memory);
    let profile = policy.classify(&Situation {
        facts,
        account: &who.account,
        unix_s: moment.unix_s,
        budget_left: envelope.remaining,
    });
    let conversation = memory.conversation(&who.account, facts);
    if let Some(home) = &conversation {
        rules.fleet.credit_cache(home, facts.input_tokens, offers);
    }
    let tallies = match &profile.workflow {
        Some(workflow) => memory.tallies(&who.account.org, workflow),
        None => HashMap::new(),
    };
    let estimates = estimates(policy, &profile, &tallies, offers);
    let decided = policy.decide(&Ask {
        facts,
        account: &who.account,
        profile: &profile,
        grants: &who.grants,
        offers,
        conversation: conversation.as_ref(),
        estimates: &estimates,
        envelope,
        unix_s: moment.unix_s,
        seed: moment.seed,
    });
    let decision = decided.map_err(refusal)?;
    let recorded = gateway.records.wanted().then(|| {
        let ids = policy.deployments().iter().map(|one| one.id.clone());
        Box::new(Recorded {
            id: String::new(),
            unix_s: moment.unix_s,
            facts: facts.clone(),
            account: AccountPath::clone(&who.account),
            grants: who.grants.clone(),
            offers: ids.zip(offers.iter().copied()).collect(),
            conversation,
            estimates: (!tallies.is_empty()).then_some(estimates),
            envelope,
            seed: moment.seed,
            decided: Decided::from(&decision),
            charged: Money::ZERO,
            latency_ms: None,
        })
    });
    Ok(Ruled {
        profile,
        decision,
        recorded,
    })
}

/// What outcomes say of each deployment, with the policy's prior as some outcomes more. Retry rates go into the offers.
fn estimates(
    policy: &Policy,
    profile: &Profile,
    tallies: &HashMap<Arc<str>, Tally>,
    offers: &mut [Offer],
) -> Estimates {
    let mut estimates = Estimates::default();
    if tallies.is_empty() {
        return estimates;
    }
    for (index, deployment) in policy.deployments().iter().enumerate() {
        let Some(tally) = tallies.get(&deployment.id) else {
            continue;
        };
        if let Some(offer) = offers.get_mut(index) {
            offer.retry_permille = tally.retry_permille();
        }
        let (successes, told) = (
            f64::from(tally.successes),
            f64::from(tally.successes + tally.failures),
        );
        if told > 0.0 {
            let prior = policy.prior(index, profile.task.as_deref());
            let weight = PRIOR_WEIGHT + told;
            let p = (PRIOR_WEIGHT * prior.p_success + successes) / weight;
            let error = (p * (1.0 - p) / (weight + 1.0)).sqrt();
            let estimate = Estimate::new(p, error, EstimateSource::Outcomes).thinking(prior.thinking_gain);
            estimates = estimates.with_deployment(index, estimate);
        }
    }
    estimates
}

fn refusal(no_route: NoRoute) -> Refusal {
    let mut refusal = Refusal::new(no_route.kind, no_route.message);
    refusal.hint = no_route.hint;
    if no_route.kind == RefusalKind::ModelNotFound {
        refusal.param = Some("model".into());
    }
    if no_route.kind == RefusalKind::BudgetExceeded {
        // Waiting a moment does not help, whatever the status makes an SDK believe.
        refusal.should_retry = Some(false);
    }
    refusal
}

/// What to remember of a conversation after an answer: the provider is believed to hold what it said it read from or
/// wrote to its cache, or, where it caches by itself, all of a long prompt.
pub(crate) fn remembered(decision: &Decision, index: usize, cached_tokens: u64) -> Option<Conversation> {
    let candidate = decision.plan.iter().find(|one| one.index == index)?;
    Some(Conversation {
        deployment: candidate.deployment.clone(),
        cached_tokens,
        thinking: candidate.thinking,
    })
}
