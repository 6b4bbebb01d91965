//! The pipeline: one function, top to bottom. Each stage takes what the one before gave and can end the exchange.

use crate::accept::{Endpoint, authenticate, dialect_of};
use crate::attempt::{Exchange, Stop, attempt};
use crate::client::{Client, Gone};
use crate::clock::{self, Stopwatch};
use crate::gateway::Gateway;
use crate::limits::Refused;
use crate::local;
use crate::memory::Answer;
use crate::refuse::{self, refuse};
use crate::relay::{Relayed, relay};
use crate::rule::{Moment, Ruled, Unruled, remembered, rule};
use crate::rules::Rules;
use crate::settle::{Settled, settle};
use crate::trail::{Ended, Trail};
use crate::understand::{passed_on, understand};
use dialect::Request;
use exchange::{
    Dialect, Ending, Envelope, LatencyTier, Money, Origin, Phase, Record, Refusal, RefusalKind, RequestId,
    Surface, Timings, ValueTier,
};
use ledger::{Opening, Principal, Reservation};
use router_policies::{Recorded, Situation};
use smallvec::SmallVec;
use std::sync::Arc;

/// Serves one exchange to its end and leaves its record with the ledger.
pub(crate) async fn serve(gateway: &Arc<Gateway>, client: &mut Client) {
    let watch = Stopwatch::start();
    let (id, seed) = clock::new_request(watch.started_unix_us);
    let dialect = dialect_of(client);
    let surface = match Endpoint::of(client) {
        Ok(Endpoint::Generate(surface)) => surface,
        Ok(Endpoint::Batch) => return Box::pin(crate::batch::answer(gateway, client, id)).await,
        Ok(endpoint) => return local::answer(gateway, client, endpoint, id).await,
        Err(refusal) => {
            refuse(client, dialect, &refusal, id).await;
            return;
        }
    };
    let arrival = Arrival {
        gateway,
        watch,
        id,
        dialect,
        surface,
        origin: client.origin(),
    };

    let who = match authenticate(gateway, client).await {
        Ok(who) => who,
        Err(refusal) => return arrival.refused(client, None, refusal).await,
    };
    let limits = &gateway.config.limits;
    let body = match client.read_body(limits.body_bytes, limits.body_timeout).await {
        Ok(body) => body,
        Err(Some(refusal)) => return arrival.refused(client, Some(&who), refusal).await,
        Err(None) => return arrival.left(client, &who),
    };
    let mut timings = Timings {
        body_read_us: watch.elapsed_us(),
        ..Timings::default()
    };
    let request = match understand(client, (surface, &gateway.config.label_headers), body) {
        Ok(request) => request,
        Err(refusal) => return arrival.refused(client, Some(&who), refusal).await,
    };
    let mut pass = match gateway.limits.admit(&who.account, &request.facts).await {
        Ok(pass) => pass,
        Err(Refused { refusal, standing }) => {
            client.standing = standing;
            return arrival.refused(client, Some(&who), refusal).await;
        }
    };
    client.standing = pass.standing;
    let rules = gateway.rules.now();
    if let Some(said) = client.header("x-tollgate-outcome") {
        let org = &who.account.org;
        let told = gateway.memory.told_of_run(org, &request.facts, said == "success");
        if !told.is_empty() && gateway.told.try_send(told).is_err() {
            tracing::warn!("outcomes come faster than the store takes them, and one is left out");
        }
    }
    let moment = Moment {
        unix_s: watch.started_unix_us / 1_000_000,
        seed,
    };
    let workflow = rules.policy.workflow_for(&Situation {
        facts: &request.facts,
        account: &who.account,
        unix_s: moment.unix_s,
        budget_left: Money::MAX,
    });
    if client.header(crate::batch::DEFER).is_some() || rules.policy.defers() {
        let deferred = crate::batch::defer(gateway, client, (&who, &request), &rules.policy, id);
        match Box::pin(deferred).await {
            Ok(false) => {}
            Ok(true) => return,
            Err(refusal) => return arrival.refused(client, Some(&who), refusal).await,
        }
    }
    let mut offers = rules.fleet.offers(&request.facts);
    let reserved = {
        let reserving = arrival.reserve(&who, &request, (&rules, &offers, workflow.as_ref()));
        tokio::select! {
            biased;
            reserved = reserving => Some(reserved),
            Gone = client.gone() => None,
        }
    };
    let mut reservation = match reserved {
        Some(Ok(reservation)) => reservation,
        Some(Err(refusal)) => {
            let asked = (&*rules, &mut *offers, moment);
            let unruled = arrival.unaffordable(refusal, (&who, &request), asked);
            return arrival.unruled(client, &who, unruled).await;
        }
        None => return arrival.left(client, &who),
    };
    let ruled = rule(
        (&rules, gateway),
        (&who, &request),
        &mut offers,
        reservation.envelope(),
        moment,
    );
    let Ruled {
        profile,
        decision,
        recorded,
    } = match ruled {
        Ok(ruled) => ruled,
        Err(unruled) => return arrival.unruled(client, &who, unruled).await,
    };
    if let Some(decision) = arrival.kept(recorded.as_deref()) {
        reservation.keep_decision(decision);
    }
    timings.decided_us = watch.elapsed_us();

    let trail = Trail::new(
        id,
        arrival.opening(&who, &request, &profile, &decision),
        watch,
        timings,
    );
    let passed_on = passed_on(client);
    let exchange = Exchange {
        gateway,
        rules: &rules,
        profile: &profile,
        request: &request,
        decision: &decision,
        passed_on: &passed_on,
        watch,
        id: id.to_string(),
    };
    let settled = answer(&exchange, client, &who, (reservation, trail)).await;
    if let Some(errand) = &mut client.errand {
        (errand.settled, errand.request) = (settled, Some(id));
    }
    if let Some(settled) = &settled {
        pass.used(settled.tokens);
    }
    if let Some((mut recorded, settled)) = recorded.zip(settled)
        && gateway.records.wanted()
    {
        recorded.id = id.to_string();
        recorded.charged = settled.charged;
        recorded.latency_ms = Some(settled.total_us / 1000);
        gateway.records.decision(recorded);
    }
}

/// Tries the plan, relays what comes of it, and settles. `None`: no upstream answered.
async fn answer(
    exchange: &Exchange<'_>,
    client: &mut Client,
    who: &Principal,
    (mut reservation, mut trail): (Reservation, Trail),
) -> Option<Settled> {
    // On the heap, so that a stream does not carry for as long as it runs what beginning it took.
    let attempted = Box::pin(attempt(exchange, client, &mut reservation, &mut trail)).await;
    let live = match attempted {
        Ok(live) => live,
        Err(stop) => {
            settle_stop(exchange, client, (reservation, trail), stop).await;
            return None;
        }
    };
    let (index, queues) = (live.index, live.queues);
    // Before the answer is out: its reader may say how it came out as soon as it is.
    note_served(exchange, who, trail.request, index);
    let mut relayed = relay(exchange, client, live, &mut reservation, &mut trail).await;
    remember(exchange, who, (index, &relayed));
    if !queues {
        note_speed(exchange, (index, &relayed), &trail);
    }
    let mut refused = None;
    if let Some(refusal) = relayed.refusal.take() {
        relayed.status = refuse(client, exchange.request.dialect, &refusal, trail.request).await;
        refused = Some(refusal.kind);
    }
    Some(settle(
        exchange.rules.fleet.get(index),
        &exchange.request.facts,
        (reservation, trail),
        (relayed, refused),
        &exchange.gateway.meters,
    ))
}

/// The exchange ended before any upstream answered.
async fn settle_stop(exchange: &Exchange<'_>, client: &mut Client, held: (Reservation, Trail), stop: Stop) {
    let (reservation, mut trail) = held;
    let ended = match stop {
        Stop::Gone(phase) => {
            client.reusable = false;
            if phase == Phase::FirstByte {
                crate::settle::charge_unanswered(exchange, &mut trail);
            }
            Ended {
                ending: Ending::ClientGone,
                phase,
                refusal: None,
                status: 0,
            }
        }
        Stop::Refused(refusal) => {
            let status = refuse(client, exchange.request.dialect, &refusal, trail.request).await;
            Ended {
                ending: Ending::Refused,
                phase: Phase::Connect,
                refusal: Some(refusal.kind),
                status,
            }
        }
    };
    let record = trail.into_record(ended);
    exchange.gateway.meters.observe(&record);
    reservation.settle(record);
}

/// What is known as soon as the head of a request is.
struct Arrival<'a> {
    gateway: &'a Arc<Gateway>,
    watch: Stopwatch,
    id: RequestId,
    dialect: Dialect,
    surface: Surface,
    origin: Origin,
}

impl Arrival<'_> {
    /// Holds money for the start of the answer: what the dearest deployment in question needs, or as much of it as
    /// lets the least dear one start. The decision must fit what was granted.
    async fn reserve(
        &self,
        who: &Principal,
        request: &Request,
        (rules, offers, workflow): (&Rules, &[exchange::Offer], Option<&Arc<str>>),
    ) -> Result<Reservation, Refusal> {
        let plausible = rules.policy.plausible(&request.facts.model);
        let facts = &request.facts;
        let holds: SmallVec<[(Money, Money); 8]> = plausible
            .filter_map(|index| {
                Some((
                    rules.fleet.get(index).first_hold(facts)?,
                    offers.get(index)?.minimum?,
                ))
            })
            .collect();
        let ask = ledger::Ask {
            want: holds.iter().map(|(want, _)| *want).max().unwrap_or_default(),
            least: holds.iter().map(|(_, least)| *least).min().unwrap_or_default(),
            workflow,
            labels: &request.facts.labels,
            patience: self.gateway.config.limits.budget_wait,
            now_unix_us: self.watch.now_unix_us(),
        };
        let reserved = self.gateway.ledger.reserve(who, self.id, ask).await;
        reserved.map_err(|denied| refuse::denied(&denied, self.watch.now_unix_us()))
    }

    fn opening(
        &self,
        who: &Arc<Principal>,
        request: &Request,
        profile: &exchange::Profile,
        decision: &exchange::Decision,
    ) -> Opening {
        let mut account = who.account.clone();
        if let Some(workflow) = profile
            .workflow
            .as_ref()
            .filter(|name| Some(*name) != account.workflow.as_ref())
        {
            Arc::make_mut(&mut account).workflow = Some(workflow.clone());
        }
        Opening {
            started_unix_us: self.watch.started_unix_us,
            account,
            dialect: self.dialect,
            surface: self.surface,
            origin: self.origin,
            model_asked: request.facts.model.clone(),
            stream: request.facts.stream,
            value: profile.value,
            latency: profile.latency,
            thinking: decision.plan.first().thinking,
            policy_version: decision.policy_version.clone(),
        }
    }

    /// Refuses before any money was held.
    async fn refused(&self, client: &mut Client, who: Option<&Arc<Principal>>, refusal: Refusal) {
        self.refuse(client, (who, refusal), None).await;
    }

    /// Refuses what nobody may serve, and keeps what that depended on.
    async fn unruled(&self, client: &mut Client, who: &Arc<Principal>, unruled: Unruled) {
        let Unruled { refusal, recorded } = unruled;
        let kept = self.kept(recorded.as_deref());
        self.refuse(client, (Some(who), refusal), kept).await;
        if let Some(mut recorded) = recorded.filter(|_| self.gateway.records.wanted()) {
            recorded.id = self.id.to_string();
            self.gateway.records.decision(recorded);
        }
    }

    async fn refuse(
        &self,
        client: &mut Client,
        (who, refusal): (Option<&Arc<Principal>>, Refusal),
        kept: Option<Box<str>>,
    ) {
        let status = refuse(client, self.dialect, &refusal, self.id).await;
        let ended = Ended {
            ending: Ending::Refused,
            phase: Phase::Accept,
            refusal: Some(refusal.kind),
            status,
        };
        self.note((who, kept), ended);
    }

    /// What the ledger keeps of a decision, where it does.
    fn kept(&self, recorded: Option<&Recorded>) -> Option<Box<str>> {
        let recorded = recorded.filter(|_| self.gateway.config.keeps_decisions)?;
        serde_json::to_string(recorded).ok().map(Into::into)
    }

    /// A request for which no money was held is ruled on all the same where decisions are kept, so that a replay can tell
    /// whether another policy would have served it for nothing.
    fn unaffordable(
        &self,
        refusal: Refusal,
        asked: (&Principal, &Request),
        (rules, offers, moment): (&Rules, &mut [exchange::Offer], Moment),
    ) -> Unruled {
        let mut recorded = None;
        if refusal.kind == RefusalKind::BudgetExceeded && self.gateway.keeps_decisions() {
            let nothing = Envelope {
                granted: Money::ZERO,
                remaining: Money::ZERO,
            };
            let ruled = rule((rules, self.gateway), asked, offers, nothing, moment);
            let same = ruled.err().filter(|unruled| unruled.refusal.kind == refusal.kind);
            recorded = same.and_then(|unruled| unruled.recorded);
        }
        Unruled { refusal, recorded }
    }

    /// The caller left before its request was whole.
    fn left(&self, client: &mut Client, who: &Arc<Principal>) {
        client.reusable = false;
        let ended = Ended {
            ending: Ending::ClientGone,
            phase: Phase::Accept,
            refusal: None,
            status: 0,
        };
        self.note((Some(who), None), ended);
    }

    fn note(&self, (who, kept): (Option<&Arc<Principal>>, Option<Box<str>>), ended: Ended) {
        let record = Record {
            request: self.id,
            started_unix_us: self.watch.started_unix_us,
            account: who.map(|who| who.account.clone()),
            dialect: self.dialect,
            surface: self.surface,
            origin: self.origin,
            model_asked: "".into(),
            stream: false,
            value: ValueTier::Unvalued,
            latency: LatencyTier::Standard,
            thinking: None,
            policy_version: self.gateway.rules.now().policy.version().clone(),
            ending: ended.ending,
            phase: ended.phase,
            refusal: ended.refusal,
            status: ended.status,
            timings: Timings {
                total_us: self.watch.elapsed_us(),
                ..Timings::default()
            },
            attempts: SmallVec::new(),
        };
        self.gateway.meters.observe(&record);
        self.gateway.ledger.note_decided(record, kept);
    }
}

/// Who serves a request of a workflow, for those who will say how it came out.
fn note_served(exchange: &Exchange<'_>, who: &Principal, id: RequestId, index: usize) {
    if let Some(workflow) = &exchange.profile.workflow {
        let deployment = &exchange.rules.fleet.get(index).id;
        let mut entries = exchange.decision.trace.entries.iter();
        let entry = entries.find(|entry| entry.deployment == *deployment);
        let score = entry.and_then(|entry| entry.score).unwrap_or_default();
        let answer = Answer {
            workflow,
            deployment,
            believed_ppm: score.believed_ppm,
            worth: exchange.profile.worth,
        };
        let asked = (&*who.account, &exchange.request.facts);
        exchange.gateway.memory.served(id, asked, &answer);
    }
}

/// Where the conversation is now.
fn remember(exchange: &Exchange<'_>, who: &Principal, (index, relayed): (usize, &Relayed)) {
    let Some(usage) = relayed
        .progress
        .usage
        .filter(|_| relayed.ending == Ending::Completed)
    else {
        return;
    };
    let deployment = exchange.rules.fleet.get(index);
    let cached = deployment.cached_prefix(&usage);
    if let Some(conversation) = remembered(exchange.decision, index, cached) {
        let facts = &exchange.request.facts;
        exchange
            .gateway
            .memory
            .answered(&who.account, facts, conversation);
    }
}

/// How fast the answer came, from its call on: what was waited for before is told apart.
fn note_speed(exchange: &Exchange<'_>, (index, relayed): (usize, &Relayed), trail: &Trail) {
    let Some((first, whole)) = trail.since_call() else {
        return;
    };
    let is_whole = relayed.ending == Ending::Completed && exchange.request.facts.stream;
    if let Some(usage) = relayed.progress.usage.filter(|_| is_whole) {
        let deployment = exchange.rules.fleet.get(index);
        deployment.paced(first, whole, usage.output_total());
    }
}
