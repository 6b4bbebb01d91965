//! The stages `classify` and `decide`: what the gateway knows of the fleet, the conversation and past outcomes, put
//! before the policy.

use crate::gateway::Gateway;
use crate::rules::Rules;
use dialect::Request;
use exchange::{AccountPath, Conversation, Decision, Envelope, Money, Offer, Profile, Refusal, RefusalKind};
use ledger::Principal;
use router_policies::{Ask, Decided, Estimates, NoRoute, Recorded, Situation};

/// What was ruled.
pub(crate) struct Ruled {
    pub(crate) profile: Profile,
    pub(crate) decision: Decision,
    /// For replay, where that is kept; what it cost is still to be told.
    pub(crate) recorded: Option<Box<Recorded>>,
}

/// Nobody may serve the request.
pub(crate) struct Unruled {
    pub(crate) refusal: Refusal,
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
) -> Result<Ruled, Unruled> {
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
    let (mut estimates, features) = if policy.predicts(&profile, facts) {
        predicted(gateway, request)
    } else {
        Default::default()
    };
    if let Some(workflow) = &profile.workflow {
        let ids = policy.deployments().iter().map(|one| &one.id);
        estimates.surprises = memory.learned((&who.account.org, workflow), ids, offers);
    }
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
    let recorded = gateway.keeps_decisions().then(|| {
        let ids = policy.deployments().iter().map(|one| one.id.clone());
        let is_known = estimates.is_predicted() || !estimates.surprises.is_empty();
        Box::new(Recorded {
            id: String::new(),
            unix_s: moment.unix_s,
            facts: facts.clone(),
            account: AccountPath::clone(&who.account),
            grants: who.grants.clone(),
            offers: ids.zip(offers.iter().copied()).collect(),
            conversation,
            estimates: is_known.then_some(estimates),
            features,
            envelope,
            seed: moment.seed,
            decided: match &decided {
                Ok(decision) => Decided::from(decision),
                Err(no_route) => Decided::refused(policy.version().clone(), no_route.kind),
            },
            outcome: None,
            charged: Money::ZERO,
            latency_ms: None,
        })
    });
    match decided {
        Ok(decision) => Ok(Ruled {
            profile,
            decision,
            recorded,
        }),
        Err(no_route) => Err(Unruled {
            refusal: refusal(no_route),
            recorded,
        }),
    }
}

/// What the predictor makes of the caller's last words, and the numbers it saw. The words go no further.
fn predicted(gateway: &Gateway, request: &Request) -> (Estimates, Vec<f32>) {
    let words = request.last_words();
    if words.trim().is_empty() {
        return Default::default();
    }
    let (estimates, features) = Estimates::predicted(&gateway.predictor, &words);
    let kept = features
        .into_iter()
        .map(|value| (value * 1e4).round() / 1e4)
        .collect();
    (estimates, kept)
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
