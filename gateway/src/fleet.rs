//! The live state of every deployment: how many requests run there, whether its breaker is open, what it costs.

mod lengths;
mod pace;
mod queue;

use crate::clock;
use crate::upstream::Upstream;
use arc_swap::ArcSwap;
use exchange::{
    Charge, Conversation, Dialect, Facts, Money, Offer, Rate, ServiceTier, TokenClass, Usage, UsageSource,
};
use lengths::Lengths;
use meter::ModelPrice;
use pace::{Held, Pace};
use queue::Queue;
pub(crate) use queue::{WAIT_HEADER, watch};
use router_policies::Policy;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

/// OpenAI caches prompts from this many tokens on without being asked.
const AUTOMATIC_CACHE: u64 = 1024;
/// Output expected of a request that names no limit, for comparing deployments.
const USUAL_OUTPUT: u64 = 500;

/// What is known of a deployment's cost.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Price {
    Known(ModelPrice),
    /// Nobody has named a price; the operator allows so much per request, and charges it whole.
    Ceiling(Money, Arc<str>),
    Unknown,
}

impl Price {
    pub(crate) fn quote(&self, facts: &Facts, output_tokens: u64) -> Option<Money> {
        match self {
            Self::Known(price) => Some(price.quote(facts, output_tokens)),
            Self::Ceiling(ceiling, _) => Some(*ceiling),
            Self::Unknown => None,
        }
    }

    /// What one more token of output costs; zero where a request is charged whole or nothing is known.
    fn output_rate(&self, facts: &Facts) -> Rate {
        // Nano-dollars for a thousand tokens are pico-dollars for one.
        let nanos = |output| self.quote(facts, output).map_or(0, Money::nanos);
        Rate(u64::try_from(nanos(1000).saturating_sub(nanos(0))).unwrap_or_default())
    }

    pub(crate) fn charge(&self, usage: &Usage, served: ServiceTier) -> Charge {
        match self {
            Self::Known(price) => price.charge(usage, served),
            Self::Ceiling(ceiling, version) => Charge {
                total: *ceiling,
                price_version: version.clone(),
                service_tier: served,
                ..Charge::default()
            },
            Self::Unknown => Charge::default(),
        }
    }

    /// Output tokens that `money` pays for.
    pub(crate) fn affordable_output(&self, facts: &Facts, money: Money) -> u64 {
        match self {
            Self::Known(price) => price.affordable_output(facts, money),
            Self::Ceiling(..) | Self::Unknown => u64::MAX,
        }
    }
}

/// After so many failures in a row a deployment is left alone for a while; then one request tries it.
#[derive(Debug)]
struct Breaker {
    failures: AtomicU32,
    /// On the monotonic clock.
    open_until_ms: AtomicU64,
    limit: u32,
    rest: Duration,
}

impl Breaker {
    fn is_closed(&self) -> bool {
        self.open_until_ms.load(Ordering::Relaxed) <= clock::monotonic_ms()
    }

    fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    fn failed(&self) {
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= self.limit {
            let rest = u64::try_from(self.rest.as_millis()).unwrap_or(u64::MAX);
            self.open_until_ms
                .store(clock::monotonic_ms().saturating_add(rest), Ordering::Relaxed);
        }
    }
}

/// A running mean in milliseconds, a new value counting an eighth; 0 until something was measured.
#[derive(Debug, Default)]
struct Mean(AtomicU32);

impl Mean {
    fn add(&self, ms: u64) {
        let ms = u32::try_from(ms).unwrap_or(u32::MAX).max(1);
        let before = self.0.load(Ordering::Relaxed);
        let mean = if before == 0 {
            ms
        } else {
            u32::try_from((u64::from(before) * 7 + u64::from(ms)) / 8).unwrap_or(u32::MAX)
        };
        // Two at once: one of them is lost, which a mean does not feel.
        self.0.store(mean.max(1), Ordering::Relaxed);
    }

    fn get(&self) -> Option<u32> {
        Some(self.0.load(Ordering::Relaxed)).filter(|ms| *ms > 0)
    }
}

/// How fast answers come, as measured.
#[derive(Debug, Default)]
struct Speed {
    first_token: Mean,
    kilotoken: Mean,
    whole: Mean,
}

/// Under which name a deployment's price is looked up: its own, or the one that the policy says it is priced as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Billed {
    pub(crate) provider: Arc<str>,
    /// Tells providers apart whose names the price lists do not know.
    pub(crate) base_url: Option<String>,
    pub(crate) model: Arc<str>,
}

/// A model at a provider, as it stands.
#[derive(Debug)]
pub(crate) struct Deployment {
    pub(crate) id: Arc<str>,
    pub(crate) model: Arc<str>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) billed: Billed,
    /// Replaced whole when prices change.
    pub(crate) price: ArcSwap<Price>,
    pub(crate) max_output_tokens: Option<u64>,
    limit: Option<u32>,
    speed: Speed,
    pub(crate) lengths: Lengths,
    pub(crate) pace: Pace,
    breaker: Breaker,
    slots: Option<Arc<Semaphore>>,
    in_flight: Arc<AtomicU32>,
    queued: AtomicU32,
    max_queued: u32,
    /// What the backend says of its own.
    pub(crate) queue: Queue,
}

/// The right to run one request at a deployment.
#[derive(Debug)]
pub(crate) struct Permit {
    _slot: Option<OwnedSemaphorePermit>,
    _held: Held,
    in_flight: Arc<AtomicU32>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Deployment {
    /// A slot for a call that is expected to use `tokens`, if one is free now.
    pub(crate) fn try_enter(&self, tokens: u64) -> Option<Permit> {
        let held = self.pace.take(tokens).ok()?;
        let slot = match &self.slots {
            None => None,
            Some(slots) => Some(slots.clone().try_acquire_owned().ok()?),
        };
        Some(self.admit(slot, held))
    }

    /// A slot, in the order of asking; `None` when the queue is full. Dropping the future leaves the queue.
    pub(crate) async fn enter(&self, tokens: u64) -> Option<Permit> {
        let held = loop {
            match self.pace.take(tokens) {
                Ok(held) => break held,
                Err(wait) => sleep(wait).await,
            }
        };
        let Some(slots) = &self.slots else {
            return Some(self.admit(None, held));
        };
        if self.queued.fetch_add(1, Ordering::Relaxed) >= self.max_queued {
            self.queued.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let _place = Place(&self.queued);
        let slot = slots.clone().acquire_owned().await.ok()?;
        Some(self.admit(Some(slot), held))
    }

    fn admit(&self, slot: Option<OwnedSemaphorePermit>, held: Held) -> Permit {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Permit {
            _slot: slot,
            _held: held,
            in_flight: self.in_flight.clone(),
        }
    }

    pub(crate) fn succeeded(&self) {
        self.breaker.succeeded();
    }

    pub(crate) fn failed(&self) {
        self.breaker.failed();
    }

    /// The fewest tokens to hold money for before starting: no more than the caller lets the model produce.
    fn least_slice(facts: &Facts) -> u64 {
        facts
            .max_output_tokens
            .map_or(lengths::LEAST, |limit| limit.min(lengths::LEAST))
    }

    /// What to hold for the start of an answer, if it can be had: what most of the answers here so far would have cost.
    pub(crate) fn first_hold(&self, facts: &Facts) -> Option<Money> {
        self.price.load().quote(facts, self.lengths.first_slice(facts))
    }

    /// Takes the pace of an answer: microseconds until its first byte and until its last, and its tokens.
    pub(crate) fn paced(&self, first_us: u64, whole_us: u64, output_tokens: u64) {
        self.speed.first_token.add(first_us / 1000);
        self.speed.whole.add(whole_us / 1000);
        // Few tokens tell of the network and not of the model.
        if output_tokens >= 32 {
            self.speed
                .kilotoken
                .add(whole_us.saturating_sub(first_us) / output_tokens);
        }
    }

    /// The longer of the waits here and there: while a request waits here, the backend's queue moves on.
    fn expected_wait_ms(&self) -> u32 {
        self.own_wait_ms().max(self.queue.wait_ms())
    }

    /// Everybody before this request takes a turn of the usual length, as many at once as there are slots.
    fn own_wait_ms(&self) -> u32 {
        let Some((slots, limit)) = self.slots.as_ref().zip(self.limit) else {
            return 0;
        };
        if slots.available_permits() > 0 {
            return 0;
        }
        let before = self.queued.load(Ordering::Relaxed) + 1;
        let turn = self.speed.whole.get().unwrap_or_default();
        turn.saturating_mul(before) / limit.max(1)
    }

    /// Tokens of prefix that the provider is believed to hold after an answer: what it says it read from or wrote to
    /// its cache; of a provider that caches by itself, all of a prompt of 1,024 tokens or more.
    pub(crate) fn cached_prefix(&self, usage: &Usage) -> u64 {
        let written = [
            TokenClass::CacheRead,
            TokenClass::CacheWrite,
            TokenClass::CacheWriteHour,
        ];
        let said: u64 = written.iter().map(|class| usage.get(*class)).sum();
        let input = usage.input_total();
        if said == 0 && self.upstream.settings.dialect == Dialect::OpenaiChat && input >= AUTOMATIC_CACHE {
            return input;
        }
        said
    }

    fn offer(&self, facts: &Facts) -> Offer {
        let usual = facts
            .max_output_tokens
            .map_or(USUAL_OUTPUT, |limit| limit.min(USUAL_OUTPUT));
        let price = self.price.load();
        let has_room = self.slots.as_ref().is_none_or(|slots| {
            slots.available_permits() > 0 || self.queued.load(Ordering::Relaxed) < self.max_queued
        });
        Offer {
            available: self.breaker.is_closed() && has_room,
            expected: price.quote(facts, usual),
            minimum: price.quote(facts, Self::least_slice(facts)),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            output_rate: price.output_rate(facts),
            wait_ms: self.expected_wait_ms(),
            first_token_ms: self.speed.first_token.get(),
            kilotoken_ms: self.speed.kilotoken.get(),
            ..Offer::default()
        }
    }
}

struct Place<'a>(&'a AtomicU32);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All deployments, in the policy's order.
#[derive(Debug)]
pub(crate) struct Fleet {
    deployments: Vec<Arc<Deployment>>,
}

/// A policy that names what the configuration does not have.
#[derive(Debug, thiserror::Error)]
#[error(
    "deployment `{deployment}` of the policy names the provider `{provider}`, which the configuration does not have; {hint}"
)]
pub(crate) struct FleetError {
    deployment: String,
    provider: String,
    hint: String,
}

impl Fleet {
    pub(crate) fn new(
        policy: &Policy,
        upstreams: &[Arc<Upstream>],
        price: impl Fn(&Billed) -> Price,
    ) -> Result<Self, FleetError> {
        let mut deployments = Vec::with_capacity(policy.deployments().len());
        for spec in policy.deployments() {
            let Some(upstream) = upstreams
                .iter()
                .find(|upstream| upstream.settings.name == spec.provider)
            else {
                let known = upstreams.iter().map(|upstream| &*upstream.settings.name);
                let hint = router_policies::document::nearest(&spec.provider, known).map_or_else(
                    || "add it under `providers`".into(),
                    |name| format!("did you mean `{name}`?"),
                );
                let (deployment, provider) = (spec.id.to_string(), spec.provider.to_string());
                return Err(FleetError {
                    deployment,
                    provider,
                    hint,
                });
            };
            let settings = &upstream.settings;
            let limit = spec.max_in_flight.or(settings.max_in_flight);
            let billed = match spec.price_as.as_deref().and_then(|name| name.split_once('/')) {
                Some((provider, model)) => Billed {
                    provider: provider.into(),
                    base_url: None,
                    model: model.into(),
                },
                None => Billed {
                    provider: settings.name.clone(),
                    base_url: Some(settings.base.to_string()),
                    model: spec.model.clone(),
                },
            };
            deployments.push(Arc::new(Deployment {
                id: spec.id.clone(),
                model: spec.model.clone(),
                upstream: upstream.clone(),
                limit,
                speed: Speed::default(),
                lengths: Lengths::default(),
                price: ArcSwap::from_pointee(price(&billed)),
                billed,
                max_output_tokens: spec.max_output_tokens,
                pace: Pace::new(&spec.id, settings.pace),
                breaker: Breaker {
                    failures: AtomicU32::new(0),
                    open_until_ms: AtomicU64::new(0),
                    limit: settings.breaker.failures,
                    rest: settings.breaker.open,
                },
                slots: limit.map(|limit| Arc::new(Semaphore::new(limit as usize))),
                in_flight: Arc::new(AtomicU32::new(0)),
                queued: AtomicU32::new(0),
                max_queued: settings.max_queued,
                queue: Queue::default(),
            }));
        }
        Ok(Self { deployments })
    }

    /// This fleet, with the live state of what stays as it was in the old one.
    pub(crate) fn keeping(mut self, old: &Self) -> Self {
        let same = |a: &Deployment, b: &Deployment| {
            a.id == b.id
                && a.model == b.model
                && a.billed == b.billed
                && a.limit == b.limit
                && a.max_output_tokens == b.max_output_tokens
                && Arc::ptr_eq(&a.upstream, &b.upstream)
        };
        for deployment in &mut self.deployments {
            if let Some(kept) = old.deployments.iter().find(|known| same(known, deployment)) {
                *deployment = kept.clone();
            }
        }
        self
    }

    /// Notes in the offers what the conversation's deployment saves by holding its prefix.
    pub(crate) fn credit_cache(&self, home: &Conversation, input_tokens: u64, offers: &mut [Offer]) {
        let found = self.deployments.iter().position(|one| one.id == home.deployment);
        if let Some(index) = found
            && let Some(offer) = offers.get_mut(index)
        {
            let tokens = home.cached_tokens.min(input_tokens);
            let price = self.deployments[index].price.load();
            let cost = |class| {
                let usage = Usage::new(UsageSource::Estimated).with(class, tokens);
                price.charge(&usage, ServiceTier::Standard).total
            };
            offer.cache_saving = cost(TokenClass::Input)
                .minus(cost(TokenClass::CacheRead))
                .max(Money::ZERO);
        }
    }

    /// Closes connections that nobody needs any more.
    pub(crate) fn sweep(&self) {
        for deployment in &self.deployments {
            deployment.upstream.sweep();
        }
    }

    /// From now on the rates are shared by so many gateways.
    pub(crate) fn share_among(&self, nodes: u32) {
        self.deployments
            .iter()
            .for_each(|deployment| deployment.pace.share_among(nodes));
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Deployment> {
        self.deployments.iter().map(|deployment| &**deployment)
    }

    pub(crate) fn get(&self, index: usize) -> &Deployment {
        &self.deployments[index]
    }

    pub(crate) fn offers(&self, facts: &Facts) -> Vec<Offer> {
        self.deployments
            .iter()
            .map(|deployment| deployment.offer(facts))
            .collect()
    }
}
