//! The task that moves jobs on: forms packs, works on them, calls for items one by one, ends jobs and tells of it.
//!
//! Every node runs one; what each takes on is claimed in the store, so that any number of them share the work.

use super::admit::{holder, pool_endpoint};
use super::errand::{Answered, Call, call};
use super::pack::{self, LEASE_US, open, seal};
use super::{surface, take, webhook};
use crate::clock;
use crate::gateway::Gateway;
use crate::telemetry::JobMeters;
use ::batch::{Caps, Pending, Summary, Way, cut, flush};
use bytes::Bytes;
use exchange::{Money, ServiceTier};
use ledger::{ItemEnd, Pool, StoreError, StoredItem};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// The longest that nothing is looked at.
const TICK: Duration = Duration::from_millis(500);
/// Packs that are worked on at once.
const PACKS: usize = 8;
/// A call for one item ends within this, or its node is gone.
const CALL_LEASE_US: i64 = 20 * 60_000_000;
/// How often an item is called for.
const TRIES: i64 = 6;
/// The longest between two looks at what is left over.
const UPKEEP: Duration = Duration::from_secs(10);
/// A job that is still being received after this was given up by its caller.
const ABANDONED_US: i64 = 3_600_000_000;
/// Packs are remembered for so long, for what they tell of a provider.
const PACKS_KEPT_US: i64 = 7 * 24 * 3_600_000_000;

/// Runs until the process is to stop, and then until what has begun is written down.
pub(crate) async fn run(gateway: Arc<Gateway>, mut stop: watch::Receiver<bool>) {
    if let Err(error) = gateway.batch.jobs.let_go().await {
        tracing::warn!(%error, "what an earlier process worked on is free only when its time is over");
    }
    let (mut packs, mut calls) = (JoinSet::new(), JoinSet::new());
    let every = UPKEEP.min(gateway.config.batch.start_timeout / 4);
    let mut due = Instant::now() + every;
    let mut meters = JobMeters::install();
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            () = gateway.batch.wake.notified() => {}
            () = tokio::time::sleep(TICK) => {}
        }
        while packs.try_join_next().is_some() {}
        while calls.try_join_next().is_some() {}
        let looked = look(&gateway, &mut packs, &mut calls).await;
        let kept = if Instant::now() >= due {
            due = Instant::now() + every;
            upkeep(&gateway, &mut meters).await
        } else {
            Ok(())
        };
        if let Err(error) = looked.and(kept) {
            tracing::warn!(%error, "jobs wait: their store cannot be used");
            tokio::time::sleep(TICK).await;
        }
    }
    // What is at a provider goes on there; what was begun here is written down.
    let _ = timeout(gateway.config.limits.drain, async {
        while packs.join_next().await.is_some() {}
        while calls.join_next().await.is_some() {}
    })
    .await;
}

async fn look(
    gateway: &Arc<Gateway>,
    packs: &mut JoinSet<()>,
    calls: &mut JoinSet<()>,
) -> Result<(), StoreError> {
    let jobs = &gateway.batch.jobs;
    let rescue = &gateway.config.batch.rescue;
    jobs.recover(rescue.needs_us(1)).await?;
    form(gateway).await?;
    while packs.len() < PACKS {
        let Some(pack) = jobs.claim(LEASE_US).await? else {
            break;
        };
        let gateway = gateway.clone();
        packs.spawn(async move { pack::work(&gateway, pack).await });
    }
    let room = (rescue.parallel as usize).saturating_sub(calls.len());
    if room > 0 {
        let limit = i64::try_from(room).unwrap_or(i64::MAX);
        for item in jobs.claim_items(limit, CALL_LEASE_US).await? {
            let gateway = gateway.clone();
            calls.spawn(async move { one(&gateway, item).await });
        }
    }
    let ended = jobs.finish().await?;
    for job in &ended {
        gateway.ledger.release_job(job).await?;
    }
    if !ended.is_empty() {
        gateway.batch.changed.notify_waiters();
    }
    if let Some((job, tries)) = jobs.hook(webhook::TURN_US).await? {
        let gateway = gateway.clone();
        calls.spawn(async move { webhook::tell(&gateway, job, tries).await });
    }
    Ok(())
}

/// Forms packs of the pools that go now, by the core's rules.
async fn form(gateway: &Arc<Gateway>) -> Result<(), StoreError> {
    let config = &gateway.config.batch;
    for pool in gateway.batch.jobs.pools().await? {
        let summary = Summary {
            items: pool.items.unsigned_abs(),
            bytes: pool.bytes.unsigned_abs(),
            oldest_us: pool.oldest_us,
            earliest_deadline_us: pool.deadline_us,
        };
        if let Some(why) = flush(&summary, &config.flush, pool.now_us) {
            let formed = pack_up(gateway, &pool).await?;
            tracing::debug!(pool = pool.name, ?why, formed, "a pack was formed");
        }
    }
    Ok(())
}

async fn pack_up(gateway: &Arc<Gateway>, pool: &Pool) -> Result<usize, StoreError> {
    let flush = &gateway.config.batch.flush;
    let caps = Caps {
        items: usize::try_from(flush.items)
            .unwrap_or(usize::MAX)
            .min(Caps::OPENAI.items),
        bytes: flush.bytes.min(Caps::OPENAI.bytes),
    };
    let id = take::fresh("pk");
    let limit = i64::try_from(caps.items).unwrap_or(i64::MAX);
    let endpoint = pool_endpoint(&pool.name, (&pool.provider, &pool.deployment));
    let made = (id.as_str(), endpoint, "batch");
    let first = |waiting: &[ledger::Waiting]| {
        let pending: Vec<Pending> = waiting
            .iter()
            .map(|item| Pending {
                bytes: item.bytes,
                deadline_us: item.deadline_us,
                prefix: item.prefix,
            })
            .collect();
        cut(&pending, caps).into_iter().next().unwrap_or_default()
    };
    // Held by nobody: the next look of any node takes it on.
    gateway.batch.jobs.form(pool, made, (limit, 0), first).await
}

/// Calls for one item through the pipeline.
async fn one(gateway: &Arc<Gateway>, item: StoredItem) {
    let end = match answer(gateway, &item).await {
        Ok(end) => end,
        Err(error) => {
            tracing::warn!(%error, job = item.job, "an item could not be called for; it is tried again");
            return;
        }
    };
    if let Err(error) = gateway.batch.jobs.settle(&[end]).await {
        tracing::warn!(%error, job = item.job, "an item's answer could not be stored; it is called for again");
    }
    gateway.batch.wake.notify_one();
    gateway.batch.changed.notify_waiters();
}

async fn answer(gateway: &Arc<Gateway>, item: &StoredItem) -> Result<ItemEnd, StoreError> {
    let job = gateway.batch.jobs.job(&item.job).await?;
    let Some(job) = job.filter(|job| job.state == "running") else {
        return Ok(ItemEnd::free(item, "cancelled"));
    };
    let errored = |problem: String| ItemEnd {
        problem,
        ..ItemEnd::free(item, "errored")
    };
    let Some(who) = holder(gateway, &job.key_hash) else {
        return Ok(errored("the key that made the job is no longer good".into()));
    };
    let body = match open(gateway, item.input.as_deref()) {
        Ok(body) => body,
        Err(problem) => return Ok(errored(problem)),
    };
    let way = Way::parse(&item.way).unwrap_or(Way::Standard);
    let answered = call(
        gateway,
        Call {
            who,
            surface: surface(&job),
            body: if way == Way::Flex { flexible(&body) } else { body },
            background: way == Way::Local,
            patience: patience(gateway, item, way),
            workflow: job.account.workflow.clone(),
            labels: job.labels.clone(),
        },
    )
    .await;
    if way == Way::Flex {
        gateway.batch.flex_seen(answered.status != 429);
    }
    Ok(judged(gateway, item, way, answered))
}

/// How long an answer is waited for: the usual tier as long as its node holds the item; what promises nothing, until the
/// usual tier must be called.
fn patience(gateway: &Gateway, item: &StoredItem, way: Way) -> Duration {
    let longest = Duration::from_micros(CALL_LEASE_US.unsigned_abs());
    if way != Way::Flex {
        return longest;
    }
    let slack = item.deadline_us.saturating_sub(clock::unix_us());
    let left = slack.saturating_sub(gateway.config.batch.rescue.needs_us(1));
    Duration::from_micros(u64::try_from(left).unwrap_or(0)).min(longest)
}

/// A body that asks for flex, unless its caller asked for a tier.
fn flexible(body: &Bytes) -> Bytes {
    let has_tier = memchr::memmem::find(body, b"\"service_tier\"").is_some();
    let Some(open) = memchr::memchr(b'{', body).filter(|_| !has_tier) else {
        return body.clone();
    };
    let (head, tail) = body.split_at(open + 1);
    [head, b"\"service_tier\":\"flex\",", tail].concat().into()
}

/// What an answer means for its item.
fn judged(gateway: &Gateway, item: &StoredItem, way: Way, answered: Answered) -> ItemEnd {
    let slack = item.deadline_us.saturating_sub(clock::unix_us());
    let needed = gateway.config.batch.rescue.needs_us(1);
    if answered.status == 200 {
        let (charge, saved) = sums(gateway, &answered);
        return ItemEnd {
            status: 200,
            output: seal(gateway, &answered.body),
            charge,
            saved,
            request: answered.request,
            ..ItemEnd::free(item, if item.rescue { "rescued" } else { "succeeded" })
        };
    }
    let is_poor = answered.refusal.as_deref() == Some("budget_exceeded");
    let may_mend = matches!(answered.status, 408 | 429 | 500..) && !is_poor;
    if way == Way::Flex && answered.status == 400 {
        // The model may not know the tier; if it is the request that is wrong, the usual tier says so too.
        return ItemEnd {
            way: Some(Way::Standard.as_str()),
            problem: "flex refused it".into(),
            ..ItemEnd::free(item, "queued")
        };
    }
    if way == Way::Flex && matches!(answered.status, 408 | 429) {
        // While there is time, flex may have room later.
        let batch = &gateway.config.batch;
        let waits = slack > needed.saturating_add(batch.flex_leave_us());
        let next = if waits { Way::Flex } else { Way::Standard };
        return ItemEnd {
            way: Some(next.as_str()),
            rescue: !waits,
            later_us: if waits { batch.flex_again_us } else { 0 },
            problem: "flex had no room".into(),
            ..ItemEnd::free(item, "queued")
        };
    }
    if may_mend && item.tries < TRIES && slack > 0 {
        return ItemEnd {
            later_us: 250_000 << item.tries.clamp(0, 6),
            problem: format!("answered with {}", answered.status),
            ..ItemEnd::free(item, "queued")
        };
    }
    ItemEnd {
        status: i64::from(answered.status),
        problem: if is_poor {
            "budget_exceeded".into()
        } else {
            format!("answered with {}", answered.status)
        },
        output: seal(gateway, &answered.body),
        request: answered.request,
        ..ItemEnd::free(item, "errored")
    }
}

/// What was charged, and how much less that is than the standard tier, or, for a rescue, how much more than a batch.
fn sums(gateway: &Gateway, answered: &Answered) -> (Money, Money) {
    let Some(settled) = &answered.settled else {
        return (Money::ZERO, Money::ZERO);
    };
    let rules = gateway.rules.now();
    let found = rules
        .fleet
        .iter()
        .find(|one| Some(&*one.id) == answered.deployment.as_deref());
    let Some(deployment) = found else {
        return (settled.charged, Money::ZERO);
    };
    let price = deployment.price.load();
    let standard = price.charge(&settled.usage, ServiceTier::Standard).total;
    let batch = price.charge(&settled.usage, ServiceTier::Batch).total;
    let saved = standard.minus(settled.charged);
    let missed = settled.charged.minus(batch).max(Money::ZERO);
    let had_batch = deployment.upstream.settings.batch.is_some();
    (
        settled.charged,
        if saved.is_zero() && had_batch {
            Money::ZERO.minus(missed)
        } else {
            saved
        },
    )
}

/// What nobody else sees to.
async fn upkeep(gateway: &Arc<Gateway>, meters: &mut JobMeters) -> Result<(), StoreError> {
    let start_us = i64::try_from(gateway.config.batch.start_timeout.as_micros()).unwrap_or(i64::MAX / 4);
    for job in gateway.batch.jobs.left_over((ABANDONED_US, start_us)).await? {
        gateway.ledger.release_job(&job).await?;
    }
    gateway.batch.jobs.purge(PACKS_KEPT_US).await?;
    meters.set(&gateway.batch.jobs.standing().await?);
    gateway.batch.vault.sweep();
    Ok(())
}
