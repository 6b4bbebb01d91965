//! The pipeline: one function, top to bottom. Each stage takes what the one before gave and can end the exchange.

use crate::accept::{Endpoint, authenticate, dialect_of};
use crate::attempt::{Exchange, Stop, attempt};
use crate::client::{Client, Gone};
use crate::clock::{self, Stopwatch};
use crate::gateway::Gateway;
use crate::limits::Refused;
use crate::local;
use crate::refuse::{self, refuse};
use crate::relay::relay;
use crate::settle::settle;
use crate::trail::{Ended, Trail};
use crate::understand::{passed_on, understand};
use dialect::Request;
use exchange::{
    Dialect, Ending, LatencyTier, Money, Phase, Record, Refusal, RefusalKind, RequestId, Surface, Timings,
    ValueTier,
};
use ledger::{Opening, Principal, Reservation};
use router_policies::{Ask, NoRoute};
use smallvec::SmallVec;
use std::sync::Arc;

/// Serves one exchange to its end and leaves its record with the ledger.
pub(crate) async fn serve(gateway: &Arc<Gateway>, client: &mut Client) {
    let watch = Stopwatch::start();
    let (id, seed) = clock::new_request(watch.started_unix_us);
    let dialect = dialect_of(client);
    let surface = match Endpoint::of(client) {
        Ok(Endpoint::Generate(surface)) => surface,
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
    };

    let who = match authenticate(&gateway.ledger, client) {
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
    let request = match understand(client, dialect, body) {
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
    let profile = gateway.policy.classify(&request.facts, &who.account);
    let offers = gateway.fleet.offers(&request.facts);
    let reserved = {
        let reserving = arrival.reserve(&who, &request, (&offers, profile.workflow.as_ref()));
        tokio::select! {
            biased;
            reserved = reserving => Some(reserved),
            Gone = client.gone() => None,
        }
    };
    let mut reservation = match reserved {
        Some(Ok(reservation)) => reservation,
        Some(Err(refusal)) => return arrival.refused(client, Some(&who), refusal).await,
        None => return arrival.left(client, &who),
    };
    let decided = gateway.policy.decide(&Ask {
        facts: &request.facts,
        account: &who.account,
        profile: &profile,
        grants: &who.grants,
        offers: &offers,
        envelope: reservation.envelope(),
        seed,
    });
    let decision = match decided {
        Ok(decision) => decision,
        Err(no_route) => {
            return arrival
                .refused(client, Some(&who), no_route_refusal(no_route))
                .await;
        }
    };
    timings.decided_us = watch.elapsed_us();

    let mut trail = Trail::new(
        id,
        arrival.opening(&who, &request, &profile, &decision),
        watch,
        timings,
    );
    let passed_on = passed_on(client);
    let exchange = Exchange {
        gateway,
        request: &request,
        decision: &decision,
        passed_on: &passed_on,
        watch,
        id: id.to_string(),
    };
    let live = match attempt(&exchange, client, &mut reservation, &mut trail).await {
        Ok(live) => live,
        Err(stop) => return settle_stop(&exchange, client, (reservation, trail), stop).await,
    };
    let index = live.index;
    let mut relayed = relay(&exchange, client, live, &mut reservation, &mut trail).await;
    let mut refused = None;
    if let Some(refusal) = relayed.refusal.take() {
        relayed.status = refuse(client, dialect, &refusal, id).await;
        refused = Some(refusal.kind);
    }
    let used = settle(
        gateway.fleet.get(index),
        &request.facts,
        (reservation, trail),
        (relayed, refused),
        &gateway.meters,
    );
    pass.used(used);
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
}

impl Arrival<'_> {
    /// Holds money for the start of the answer: what the dearest deployment in question needs, or as much of it as
    /// lets the least dear one start. The decision must fit what was granted.
    async fn reserve(
        &self,
        who: &Principal,
        request: &Request,
        (offers, workflow): (&[exchange::Offer], Option<&Arc<str>>),
    ) -> Result<Reservation, Refusal> {
        let plausible = self.gateway.policy.plausible(&request.facts.model);
        let minimums: SmallVec<[Money; 8]> =
            plausible.filter_map(|index| offers.get(index)?.minimum).collect();
        let ask = ledger::Ask {
            want: minimums.iter().copied().max().unwrap_or_default(),
            least: minimums.iter().copied().min().unwrap_or_default(),
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
            model_asked: request.facts.model.clone(),
            stream: request.facts.stream,
            value: profile.value,
            latency: profile.latency,
            thinking: profile.thinking,
            policy_version: decision.policy_version.clone(),
        }
    }

    /// Refuses before any money was held.
    async fn refused(&self, client: &mut Client, who: Option<&Arc<Principal>>, refusal: Refusal) {
        let status = refuse(client, self.dialect, &refusal, self.id).await;
        self.note(
            who,
            Ended {
                ending: Ending::Refused,
                phase: Phase::Accept,
                refusal: Some(refusal.kind),
                status,
            },
        );
    }

    /// The caller left before its request was whole.
    fn left(&self, client: &mut Client, who: &Arc<Principal>) {
        client.reusable = false;
        self.note(
            Some(who),
            Ended {
                ending: Ending::ClientGone,
                phase: Phase::Accept,
                refusal: None,
                status: 0,
            },
        );
    }

    fn note(&self, who: Option<&Arc<Principal>>, ended: Ended) {
        let record = Record {
            request: self.id,
            started_unix_us: self.watch.started_unix_us,
            account: who.map(|who| who.account.clone()),
            dialect: self.dialect,
            surface: self.surface,
            model_asked: "".into(),
            stream: false,
            value: ValueTier::Unvalued,
            latency: LatencyTier::Standard,
            thinking: None,
            policy_version: self.gateway.policy.version().clone(),
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
        self.gateway.ledger.note(record);
    }
}

fn no_route_refusal(no_route: NoRoute) -> Refusal {
    let mut refusal = Refusal::new(no_route.kind, no_route.message);
    refusal.hint = no_route.hint;
    if no_route.kind == RefusalKind::ModelNotFound {
        refusal.param = Some("model".into());
    }
    refusal
}
