//! One request taken as an item: read, ruled like any other, given its way and its price.

use super::remote::Remote;
use crate::clock;
use crate::config::batch::BatchApi;
use crate::fleet::Deployment;
use crate::gateway::Gateway;
use crate::rule::{Moment, Ruled, rule};
use ::batch::{Offer, Way, choose};
use bytes::Bytes;
use dialect::{Request, Target};
use exchange::{
    BackendClass, Dialect, Envelope, Money, Refusal, RefusalKind, ServiceTier, Surface, ThinkingNote,
    TokenClass, Usage, UsageSource,
};
use ledger::{JobKind, NewItem, Principal};
use std::sync::Arc;

/// What a model is believed to produce at most that has no limit of its own and was given none.
const OUTPUT_BOUND: u64 = 8_192;

/// A request that was read and ruled.
pub(super) struct Admitted {
    pub(super) request: Request,
    pub(super) ruled: Ruled,
    /// Where it goes, in the fleet.
    pub(super) index: usize,
}

/// Reads a body and lets the policy rule. `workflow`: whose work it was said to be.
///
/// # Errors
/// It is no request, or nobody may serve it.
pub(super) fn admit(
    gateway: &Gateway,
    who: &Principal,
    (surface, body, workflow): (Surface, Bytes, Option<&str>),
) -> Result<Admitted, Refusal> {
    let mut request = dialect::read_surface(surface, body).map_err(|error| {
        let refusal = Refusal::new(RefusalKind::InvalidRequest, error.message);
        match error.param {
            Some(param) => refusal.param(param),
            None => refusal,
        }
    })?;
    if request.facts.stream {
        return Err(
            Refusal::new(RefusalKind::InvalidRequest, "`stream` makes no sense in a batch").param("stream"),
        );
    }
    request.facts.workflow = workflow.map(Into::into);
    let rules = gateway.rules.now();
    let mut offers = rules.fleet.offers(&request.facts);
    // What is down or full now need not be when it comes to this item.
    offers.iter_mut().for_each(|offer| offer.available = true);
    let now = clock::unix_us();
    let envelope = Envelope {
        granted: Money::MAX,
        remaining: Money::MAX,
    };
    let moment = Moment {
        unix_s: now / 1_000_000,
        seed: clock::new_request(now).1,
    };
    let ruled = rule((&rules, gateway), (who, &request), &mut offers, envelope, moment)
        .map_err(|unruled| unruled.refusal)?;
    let index = ruled.decision.plan.first().index;
    let dialect = rules.fleet.get(index).upstream.settings.dialect;
    if surface.is_plain() && dialect != Dialect::OpenaiChat {
        let message = format!(
            "`{}` is served by a provider that speaks {dialect} and has no {}",
            ruled.decision.plan.first().deployment,
            surface.endpoint()
        );
        return Err(Refusal::new(RefusalKind::InvalidRequest, message).param("model"));
    }
    Ok(Admitted {
        request,
        ruled,
        index,
    })
}

/// The batch API that takes requests to this endpoint at a deployment.
fn batch_api(deployment: &Deployment, surface: Surface) -> Option<BatchApi> {
    deployment
        .upstream
        .settings
        .batch
        .filter(|api| api.takes(surface))
}

/// A request as it goes into a deployment's batch. `model`: as the provider calls it.
///
/// # Errors
/// What of it cannot be said there.
pub(super) fn batched(admitted: &Admitted, deployment: &Deployment, model: &str) -> Result<Bytes, String> {
    let Some(api) = batch_api(deployment, admitted.request.facts.surface) else {
        return Err(format!("`{}` has no batches of such requests", deployment.id));
    };
    let mut plan = admitted.ruled.decision.plan.iter();
    let candidate = plan.find(|one| one.deployment == deployment.id);
    let (thinking, note) = candidate.map_or((None, ThinkingNote::Untouched), |one| {
        (one.thinking, one.thinking_note)
    });
    let facts = &admitted.request.facts;
    let target = Target {
        dialect: deployment.upstream.settings.dialect,
        model,
        max_output_tokens: Some(output_bound(deployment, &admitted.request)),
        thinking: thinking.filter(|thinking| facts.thinking != Some(*thinking)),
        stream: false,
        can_think: note != ThinkingNote::Unable,
    };
    let encoded = dialect::encode(&admitted.request, &target).map_err(|error| error.to_string())?;
    Remote::new(&deployment.upstream, api, model).item(encoded.body)
}

/// The most output that an item may have at a deployment.
pub(super) fn output_bound(deployment: &Deployment, request: &Request) -> u64 {
    let most = deployment.max_output_tokens.unwrap_or(OUTPUT_BOUND);
    request
        .facts
        .max_output_tokens
        .map_or(most, |asked| asked.min(most))
}

/// What an item costs at most at a tier.
fn price(deployment: &Deployment, request: &Request, tier: ServiceTier) -> Money {
    let usage = Usage::new(UsageSource::Estimated)
        .with(TokenClass::Input, request.facts.input_tokens)
        .with(TokenClass::Output, output_bound(deployment, request));
    deployment.price.load().charge(&usage, tier).total
}

pub(super) const fn tier(way: Way) -> ServiceTier {
    match way {
        Way::Batch => ServiceTier::Batch,
        Way::Flex | Way::Background => ServiceTier::Flex,
        Way::Standard | Way::Local => ServiceTier::Standard,
    }
}

/// The way of an item that has until `deadline_us`, by the core.
pub(super) fn way(gateway: &Gateway, deployment: &Deployment, request: &Request, when: (i64, i64)) -> Way {
    let batch = batch_api(deployment, request.facts.surface);
    way_with(gateway, (deployment, batch), request, when)
}

/// The same; `batch`: the batch API that may take it.
fn way_with(
    gateway: &Gateway,
    (deployment, batch): (&Deployment, Option<BatchApi>),
    request: &Request,
    (now_us, deadline_us): (i64, i64),
) -> Way {
    let settings = &deployment.upstream.settings;
    let rescue_us = gateway.config.batch.rescue.needs_us(1);
    let cancel_us = i64::try_from(gateway.config.batch.cancel.as_micros()).unwrap_or(i64::MAX);
    let slack_us = deadline_us.saturating_sub(now_us);
    let offer = |way, in_time, leave_us| Offer {
        way,
        price: price(deployment, request, tier(way)).nanos(),
        in_time,
        leave_us,
    };
    let mut offers = vec![offer(Way::Standard, 1.0, 0)];
    if batch.is_some() {
        let times = gateway.batch.times(&settings.name, &deployment.model);
        // A batch that is cancelled has had what was left of the time before.
        let leave_us = cancel_us.min(slack_us / 4);
        let in_time = times.0.within(&times.1, 0, slack_us - rescue_us - leave_us);
        offers.push(offer(Way::Batch, in_time, leave_us));
    }
    if settings.flex {
        offers.push(offer(
            Way::Flex,
            gateway.batch.flex_room(),
            gateway.config.batch.flex_leave_us(),
        ));
    }
    choose(&offers, slack_us, rescue_us).way
}

/// The way of a new item. What a provider's batch cannot say is refused where a batch was asked for by name; a job is
/// promised a time and no batch, and goes another way.
fn first_way(
    gateway: &Gateway,
    admitted: &Admitted,
    (deployment, kind): (&Deployment, JobKind),
    when: (i64, i64),
) -> Result<Way, Refusal> {
    let request = &admitted.request;
    let chosen = way(gateway, deployment, request, when);
    let has_own_form = deployment
        .upstream
        .settings
        .batch
        .is_some_and(BatchApi::has_own_form);
    if chosen != Way::Batch || !has_own_form {
        return Ok(chosen);
    }
    match batched(admitted, deployment, &deployment.model) {
        Ok(_) => Ok(chosen),
        Err(_) if kind == JobKind::Request => Ok(way_with(gateway, (deployment, None), request, when)),
        Err(problem) => Err(Refusal::new(RefusalKind::InvalidRequest, problem).hint(
            "leave it out, name a model whose provider's batches take it, or send it to /v1/jobs, \
             which answers in time by whatever way takes it",
        )),
    }
}

/// An item of a job of some kind.
pub(super) fn item(
    gateway: &Gateway,
    (admitted, kind): (&Admitted, JobKind),
    (number, custom_id): (i64, String),
    when: (i64, i64),
) -> Result<NewItem, Refusal> {
    let rules = gateway.rules.now();
    let candidate = admitted.ruled.decision.plan.first();
    let deployment = rules.fleet.get(admitted.index);
    let request = &admitted.request;
    let way = if candidate.class == BackendClass::Local && deployment.upstream.settings.batch.is_none() {
        Way::Local
    } else {
        first_way(gateway, admitted, (deployment, kind), when)?
    };
    let sealed = gateway.batch.vault.seal(&request.raw);
    let input = sealed.map_err(|error| Refusal::new(RefusalKind::Internal, error.to_string()))?;
    Ok(NewItem {
        number,
        custom_id,
        way: way.as_str(),
        pool: pool(&candidate.provider, &candidate.deployment, request.facts.surface),
        provider: candidate.provider.clone(),
        deployment: candidate.deployment.clone(),
        model: candidate.model.clone(),
        class: candidate.class,
        prefix: request.facts.prefix_hash.cast_signed(),
        bytes: i64::try_from(request.raw.len()).unwrap_or(i64::MAX),
        // What is called for one by one is held when it is called for, like any request.
        held: if way == Way::Batch {
            price(deployment, request, ServiceTier::Batch)
        } else {
            Money::ZERO
        },
        input: Some(input),
    })
}

/// Where an item waits for company: a provider's batch is of one deployment and one endpoint. Chat completions and
/// messages wait together, since each is put into the provider's own dialect.
fn pool(provider: &str, deployment: &str, surface: Surface) -> String {
    let endpoint = if surface.is_plain() {
        surface.endpoint()
    } else {
        ""
    };
    format!("{provider}/{deployment}{endpoint}")
}

/// The endpoint at the provider of what waits in a pool.
pub(super) fn pool_endpoint(name: &str, (provider, deployment): (&str, &str)) -> &'static str {
    let mut plain = Surface::ALL.iter().filter(|one| one.is_plain());
    let found = plain.find(|one| pool(provider, deployment, **one) == name);
    found.unwrap_or(&Surface::ChatCompletions).endpoint()
}

/// Whoever holds the key that made a job, if it is still good: rotated since, it is.
pub(super) fn holder(gateway: &Gateway, key_hash: &str) -> Option<Arc<Principal>> {
    let hash = exchange::KeyHash::from_hex(key_hash)?;
    gateway.ledger.holder(&hash, clock::unix_us()).ok()
}
