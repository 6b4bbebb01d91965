//! One candidate after the other until one answers, with a body of its own for each, never after a byte has gone to
//! the caller, and not a moment longer than the caller stays.

use crate::client::{Client, Gone};
use crate::clock::Stopwatch;
use crate::fleet::{self, Deployment, Permit};
use crate::gateway::Gateway;
use crate::limits::expected_tokens;
use crate::refuse;
use crate::rules::Rules;
use crate::trail::Trail;
use crate::upstream::{OpenError, Opened};
use ::exchange::{
    AttemptOutcome, Candidate, Decision, Phase, Profile, Refusal, RefusalKind, ServiceTier, ThinkingNote,
    TokenClass, Usage, UsageSource,
};
use bytes::Bytes;
use dialect::{Encoded, Request, Target};
use ledger::{BeginError, Intent, Reservation};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Upstream calls for one request, over all candidates.
const ATTEMPTS: u16 = 4;
/// Calls to one candidate.
const TRIES: u16 = 2;
/// The longest a provider's Retry-After is waited for while nobody else can answer.
const PATIENCE: Duration = Duration::from_secs(5);
const BACK_OFF: Duration = Duration::from_millis(150);
/// How long flex may take to begin; OpenAI asks for as much.
const FLEX_PATIENCE: Duration = Duration::from_secs(900);
/// What is read of an error's body.
const ERROR_BYTES: usize = 64 << 10;

/// An upstream that has begun to answer.
pub(crate) struct Live {
    pub(crate) opened: Opened,
    pub(crate) index: usize,
    /// The backend said that it has a queue.
    pub(crate) queues: bool,
    /// Held until the answer is over.
    pub(crate) _permit: Permit,
}

/// Why no upstream is answering.
pub(crate) enum Stop {
    Gone(Phase),
    Refused(Refusal),
}

/// Why one call came to nothing.
struct Failure {
    refusal: Refusal,
    outcome: AttemptOutcome,
    status: u16,
}

/// Everything an attempt needs to know of the exchange.
pub(crate) struct Exchange<'a> {
    pub(crate) gateway: &'a Gateway,
    /// Those the exchange began with.
    pub(crate) rules: &'a Rules,
    pub(crate) profile: &'a Profile,
    pub(crate) request: &'a Request,
    pub(crate) decision: &'a Decision,
    pub(crate) passed_on: &'a [(&'static str, Bytes)],
    pub(crate) watch: Stopwatch,
    /// The request's id as text.
    pub(crate) id: String,
}

/// Tries the plan.
///
/// # Errors
/// [`Stop`]: the caller left, or the refusal of the last candidate tried.
pub(crate) async fn attempt(
    exchange: &Exchange<'_>,
    client: &mut Client,
    reservation: &mut Reservation,
    trail: &mut Trail,
) -> Result<Live, Stop> {
    let mut last = None;
    let count = exchange.decision.plan.iter().len();
    for (position, candidate) in exchange.decision.plan.iter().enumerate() {
        let has_more = position + 1 < count;
        match try_candidate(exchange, client, (candidate, has_more), (reservation, trail)).await? {
            Ok(live) => return Ok(live),
            Err(refusal) => last = refusal.or(last),
        }
    }
    Err(Stop::Refused(last.unwrap_or_else(nobody)))
}

/// One candidate, twice where nobody else is left to ask. The inner error sends the request on to the next candidate.
async fn try_candidate(
    exchange: &Exchange<'_>,
    client: &mut Client,
    (candidate, has_more): (&Candidate, bool),
    (reservation, trail): (&mut Reservation, &mut Trail),
) -> Result<Result<Live, Option<Refusal>>, Stop> {
    let deployment = exchange.rules.fleet.get(candidate.index);
    let mut last = None;
    let tries = if has_more { 1 } else { TRIES };
    for try_number in 1..=tries.min(ATTEMPTS.saturating_sub(trail.count())) {
        let Some(permit) = enter(exchange, client, deployment, has_more).await? else {
            break;
        };
        let encoded = encode(exchange, candidate, reservation)?;
        if let Err(refusal) = begin(exchange, candidate, reservation, trail).await? {
            return Ok(Err(Some(refusal)));
        }
        let called = tokio::select! {
            biased;
            Gone = client.gone() => return Err(Stop::Gone(Phase::FirstByte)),
            called = call(exchange, deployment, &encoded) => called,
        };
        let failure = match called {
            Ok(opened) => {
                deployment.succeeded();
                trail.headers();
                let queues = deployment.queue.wait_ms() > 0;
                return Ok(Ok(Live {
                    opened,
                    queues,
                    index: candidate.index,
                    _permit: permit,
                }));
            }
            Err(failure) => failure,
        };
        drop(permit);
        trail.failed(failure.outcome, failure.status);
        match failure.outcome {
            // The request is at fault: it would be anywhere.
            AttemptOutcome::Rejected => return Err(Stop::Refused(failure.refusal)),
            // A full provider is not a broken one.
            AttemptOutcome::RateLimited => {}
            _ => deployment.failed(),
        }
        let wait = failure.refusal.retry_after.unwrap_or(BACK_OFF);
        last = Some(failure.refusal);
        if try_number == tries || wait > PATIENCE {
            break;
        }
        tokio::select! {
            biased;
            Gone = client.gone() => return Err(Stop::Gone(Phase::Queue)),
            () = sleep(wait) => {}
        }
    }
    Ok(Err(last))
}

fn nobody() -> Refusal {
    Refusal::new(
        RefusalKind::NoDeployment,
        "every deployment that could answer is full",
    )
    .hint("retry shortly")
    .retry_after(Some(Duration::from_secs(1)))
}

/// A slot at the deployment: at once where another candidate could take the request, else in the queue.
async fn enter(
    exchange: &Exchange<'_>,
    client: &mut Client,
    deployment: &Deployment,
    has_more: bool,
) -> Result<Option<Permit>, Stop> {
    let tokens = expected_tokens(&exchange.request.facts);
    if let Some(permit) = deployment.try_enter(tokens) {
        return Ok(Some(permit));
    }
    if has_more {
        return Ok(None);
    }
    tokio::select! {
        biased;
        Gone = client.gone() => Err(Stop::Gone(Phase::Queue)),
        entered = timeout(exchange.gateway.config.limits.queue_timeout, deployment.enter(tokens)) => Ok(entered.ok().flatten()),
    }
}

/// The body for this candidate, its output limited to what the money can pay for.
fn encode(
    exchange: &Exchange<'_>,
    candidate: &Candidate,
    reservation: &Reservation,
) -> Result<Encoded, Stop> {
    let deployment = exchange.rules.fleet.get(candidate.index);
    let facts = &exchange.request.facts;
    let settings = &deployment.upstream.settings;
    let ceiling = exchange.decision.ceiling.max(reservation.envelope().granted);
    let affordable = deployment.price.load().affordable_output(facts, ceiling);
    let asked = facts
        .max_output_tokens
        .or(deployment.max_output_tokens)
        .unwrap_or(1 << 20);
    let target = Target {
        dialect: settings.dialect,
        model: &candidate.model,
        max_output_tokens: (affordable < asked).then_some(affordable.max(1)),
        thinking: candidate
            .thinking
            .filter(|thinking| facts.thinking != Some(*thinking)),
        stream: facts.stream || settings.streams && !facts.surface.is_plain(),
        can_think: candidate.thinking_note != ThinkingNote::Unable,
    };
    dialect::encode(exchange.request, &target)
        .map_err(|error| Stop::Refused(Refusal::new(RefusalKind::InvalidRequest, error.to_string())))
}

/// Writes down that the call is about to be made, and what it will cost at least. The inner error sends the request on to
/// the next candidate.
async fn begin(
    exchange: &Exchange<'_>,
    candidate: &Candidate,
    reservation: &mut Reservation,
    trail: &mut Trail,
) -> Result<Result<(), Refusal>, Stop> {
    let deployment = exchange.rules.fleet.get(candidate.index);
    let facts = &exchange.request.facts;
    let usage = Usage::new(UsageSource::Estimated).with(TokenClass::Input, facts.input_tokens);
    let intent = Intent {
        opening: trail.opening.clone(),
        number: trail.count() + 1,
        deployment: candidate.deployment.clone(),
        provider: candidate.provider.clone(),
        model: candidate.model.clone(),
        class: candidate.class,
        started_unix_us: exchange.watch.now_unix_us(),
        estimate: deployment.price.load().charge(&usage, facts.asked_tier()),
        usage,
    };
    match reservation.begin_attempt(intent.clone()).await {
        Ok(()) => {}
        // A budget for this model or class alone: another candidate may do.
        Err(BeginError::Denied(denied)) => {
            return Ok(Err(refuse::denied(&denied, exchange.watch.now_unix_us())));
        }
        Err(BeginError::Journal(error)) => {
            tracing::error!(%error, "the journal cannot be written: no attempt is made");
            let refusal = Refusal::new(
                RefusalKind::StoreUnavailable,
                "the gateway cannot record what a request would cost",
            );
            return Err(Stop::Refused(refusal.retry_after(Some(Duration::from_secs(5)))));
        }
    }
    trail.began(intent, exchange.watch);
    Ok(Ok(()))
}

/// One call, up to the head of its answer.
async fn call(
    exchange: &Exchange<'_>,
    deployment: &Deployment,
    encoded: &Encoded,
) -> Result<Opened, Failure> {
    let upstream = &deployment.upstream;
    let same = upstream.settings.dialect == exchange.request.dialect;
    // What the gateway itself says to a backend is said in no dialect.
    let own: Vec<_> = exchange
        .passed_on
        .iter()
        .filter(|(name, _)| !same && name.starts_with("x-tollgate-"))
        .cloned()
        .collect();
    let passed_on = if same { exchange.passed_on } else { &own };
    let usual = upstream.settings.first_byte_timeout;
    let patience = match exchange.request.facts.asked_tier() {
        ServiceTier::Flex => usual.max(FLEX_PATIENCE),
        _ => usual,
    };
    let mut opened = upstream
        .open(encoded, passed_on, patience)
        .await
        .map_err(|error| unreachable(&deployment.id, &error))?;
    if upstream.settings.reports_load {
        deployment.queue.heard(opened.header(fleet::WAIT_HEADER));
    }
    let status = opened.status();
    if (200..300).contains(&status) {
        return Ok(opened);
    }
    let retry_after = opened.retry_after();
    let reading = timeout(Duration::from_secs(5), opened.read_all(ERROR_BYTES)).await;
    let body = reading.ok().and_then(Result::ok);
    let error = dialect::upstream_error(
        upstream.settings.dialect,
        status,
        body.as_deref().unwrap_or_default(),
    );
    if body.is_some() {
        upstream.release(opened).await;
    }
    Err(answered_with(error, status, retry_after, &deployment.id))
}

fn unreachable(deployment: &Arc<str>, error: &OpenError) -> Failure {
    tracing::warn!(%deployment, %error, "an upstream call failed");
    let (kind, outcome) = match error {
        OpenError::FirstByteTimeout => (RefusalKind::UpstreamTimeout, AttemptOutcome::TimedOut),
        OpenError::Resolve(_) | OpenError::Connect(_) => {
            (RefusalKind::UpstreamFailed, AttemptOutcome::ConnectFailed)
        }
        OpenError::Exchange(_) => (RefusalKind::UpstreamFailed, AttemptOutcome::BrokeOff),
    };
    let message = match kind {
        RefusalKind::UpstreamTimeout => format!("the provider behind `{deployment}` did not answer in time"),
        _ => format!("the provider behind `{deployment}` could not be reached"),
    };
    Failure {
        refusal: Refusal::new(kind, message),
        outcome,
        status: 0,
    }
}

fn answered_with(
    error: dialect::UpstreamError,
    status: u16,
    retry_after: Option<Duration>,
    deployment: &Arc<str>,
) -> Failure {
    let outcome = match error.kind {
        RefusalKind::UpstreamRateLimited => AttemptOutcome::RateLimited,
        RefusalKind::UpstreamFailed | RefusalKind::UpstreamTimeout => AttemptOutcome::Failed,
        _ => AttemptOutcome::Rejected,
    };
    tracing::debug!(%deployment, status, "an upstream refused");
    let mut refusal = Refusal::new(error.kind, error.message).retry_after(retry_after);
    refusal.param = error.param;
    if outcome == AttemptOutcome::Rejected {
        refusal.status = status;
    }
    Failure {
        refusal,
        outcome,
        status,
    }
}
