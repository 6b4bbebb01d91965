//! From the upstream's answer to the caller: the stream as it comes, or the whole answer folded from it, metered as it
//! passes and stopped the moment the caller leaves, the money ends or the process must.

use crate::attempt::{Exchange, Live};
use crate::client::{Client, Gone};
use crate::clock::Silence;
use crate::fleet::{Deployment, Price};
use crate::trail::Trail;
use ::exchange::{
    AttemptOutcome, Dialect, Ending, Facts, Money, Phase, Reason, Refusal, RefusalKind, ThinkingNote,
};
use bytes::{Bytes, BytesMut};
use dialect::{Answer, AnswerError, Delivery, Progress};
use futures_util::FutureExt;
use ledger::Reservation;
use pingora_http::ResponseHeader;
use std::pin::pin;
use std::sync::Arc;
use tokio::time::timeout;

/// Chunks that are there already are written together, up to this many bytes.
const GATHER_BYTES: usize = 64 << 10;
/// Output tokens by which a reservation is extended at a time.
const NEXT_SLICE: u64 = 512;
/// A reservation is extended when fewer tokens than this are left in it.
const MARGIN: u64 = 64;

/// What came of relaying.
pub(crate) struct Relayed {
    pub(crate) ending: Ending,
    pub(crate) phase: Phase,
    pub(crate) outcome: AttemptOutcome,
    pub(crate) status: u16,
    pub(crate) progress: Progress,
    /// Set where the answer never began and an error can still be told.
    pub(crate) refusal: Option<Refusal>,
}

/// Why the stream from the upstream is over.
enum Over {
    Done,
    Gone,
    Budget,
    Drained,
    Broken(Refusal),
}

/// Relays the answer of `live`.
pub(crate) async fn relay(
    exchange: &Exchange<'_>,
    client: &mut Client,
    mut live: Live,
    reservation: &mut Reservation,
    trail: &mut Trail,
) -> Relayed {
    let deployment = exchange.rules.fleet.get(live.index);
    let from = deployment.upstream.settings.dialect;
    if !live.opened.is_event_stream() {
        return relay_whole(exchange, client, live, trail).await;
    }
    let delivery = if exchange.request.facts.stream {
        Delivery::Stream
    } else {
        Delivery::Whole
    };
    let mut answer = Answer::new(exchange.request, from, delivery);
    if delivery == Delivery::Stream {
        let head = head(exchange, deployment, "text/event-stream");
        if let Err(Gone) = client.begin(head).await {
            return ended(Over::Gone, &answer, client, None);
        }
    }
    let mut meter = Meter::new(deployment.price.load_full(), &exchange.request.facts, reservation);
    let mut cut = pin!(exchange.gateway.cut());
    let mut silence = Silence::new(deployment.upstream.settings.gap_timeout);
    let over = loop {
        let chunk = tokio::select! {
            biased;
            Gone = client.gone() => break Over::Gone,
            () = &mut cut => break Over::Drained,
            chunk = live.opened.session.read_response_body() => chunk,
            () = silence.too_long() => break broken("the provider fell silent in the middle of its answer"),
        };
        silence.heard();
        let out = match take(chunk, &mut live, &mut answer) {
            Ok(Some(out)) => out,
            Ok(None) => break Over::Done,
            Err(over) => break over,
        };
        if !out.is_empty() {
            trail.first_byte();
            if let Err(Gone) = client.write(out).await {
                break Over::Gone;
            }
        }
        // More money may have to be waited for; the caller need not wait with us.
        let is_covered = tokio::select! {
            biased;
            is_covered = meter.covers(answer.progress(), reservation) => is_covered,
            Gone = client.gone() => break Over::Gone,
        };
        if !is_covered {
            break Over::Budget;
        }
    };
    finish(exchange, client, live, (&mut answer, over)).await
}

fn broken(message: &str) -> Over {
    Over::Broken(Refusal::new(RefusalKind::UpstreamFailed, message))
}

type Read = pingora_error::Result<Option<Bytes>>;

/// What to write for a chunk and for those that are there already; `None` at the end of the stream.
fn take(chunk: Read, live: &mut Live, answer: &mut Answer) -> Result<Option<Bytes>, Over> {
    let chunk = match chunk {
        Err(_) => return Err(broken("the provider broke off in the middle of its answer")),
        Ok(None) => return Ok(None),
        Ok(Some(chunk)) => chunk,
    };
    let told = |error: AnswerError| broken(&error.to_string());
    let mut out = answer.push(chunk).map_err(told)?;
    let mut gathered = BytesMut::new();
    while gathered.len() + out.len() < GATHER_BYTES && !answer.progress().complete {
        // An end or an error that is there already will be there again at the next read.
        let Some(Ok(Some(next))) = live.opened.session.read_response_body().now_or_never() else {
            break;
        };
        if gathered.is_empty() {
            gathered.extend_from_slice(&out);
        }
        gathered.extend_from_slice(&answer.push(next).map_err(told)?);
        out = Bytes::new();
    }
    Ok(Some(if gathered.is_empty() {
        out
    } else {
        gathered.freeze()
    }))
}

/// Ends the caller's answer in the way its stream ended.
async fn finish(
    exchange: &Exchange<'_>,
    client: &mut Client,
    live: Live,
    (answer, over): (&mut Answer, Over),
) -> Relayed {
    let deployment = exchange.rules.fleet.get(live.index);
    let streaming = exchange.request.facts.stream;
    let over = match over {
        Over::Done => match answer.finish() {
            Ok(tail) => {
                deployment.upstream.release(live.opened).await;
                return deliver(exchange, client, deployment, (answer, tail), Over::Done).await;
            }
            Err(error) => Over::Broken(Refusal::new(RefusalKind::UpstreamFailed, error.to_string())),
        },
        other => other,
    };
    // Whatever else happens, the provider stops now.
    drop(live);
    match over {
        Over::Budget => {
            let tail = answer.end_by_budget();
            deliver(exchange, client, deployment, (answer, tail), Over::Budget).await
        }
        Over::Broken(refusal) if streaming => {
            let event = answer.error_event(&refusal);
            client.break_off(event).await;
            ended(Over::Broken(refusal), answer, client, None)
        }
        Over::Drained if streaming => {
            let event = answer.error_event(&draining());
            client.break_off(event).await;
            ended(Over::Drained, answer, client, None)
        }
        Over::Broken(refusal) => ended(Over::Broken(refusal.clone()), answer, client, Some(refusal)),
        Over::Drained => ended(Over::Drained, answer, client, Some(draining())),
        over => ended(over, answer, client, None),
    }
}

fn draining() -> Refusal {
    Refusal::new(RefusalKind::Draining, "the gateway is shutting down")
        .hint("retry: another instance will answer")
}

/// Sends the tail of a stream, or the whole of a folded answer.
async fn deliver(
    exchange: &Exchange<'_>,
    client: &mut Client,
    deployment: &Deployment,
    (answer, tail): (&Answer, Bytes),
    over: Over,
) -> Relayed {
    let sent = if exchange.request.facts.stream {
        client.end(tail).await
    } else {
        client
            .answer(head(exchange, deployment, "application/json"), tail)
            .await
    };
    match sent {
        Ok(()) => ended(over, answer, client, None),
        // The provider has finished: the answer is paid for whether or not it arrived.
        Err(Gone) => ended(Over::Gone, answer, client, None),
    }
}

fn ended(over: Over, answer: &Answer, client: &Client, refusal: Option<Refusal>) -> Relayed {
    let (ending, outcome) = match over {
        Over::Done => (Ending::Completed, AttemptOutcome::Answered),
        Over::Gone => (Ending::ClientGone, AttemptOutcome::Cancelled),
        Over::Budget => (Ending::BudgetEnded, AttemptOutcome::Cancelled),
        Over::Drained => (Ending::Drained, AttemptOutcome::Cancelled),
        Over::Broken(_) => (Ending::UpstreamBroken, AttemptOutcome::BrokeOff),
    };
    let status = if client.answered { 200 } else { 0 };
    Relayed {
        ending,
        phase: Phase::Stream,
        outcome,
        status,
        progress: answer.progress().clone(),
        refusal,
    }
}

/// The upstream answered with a body instead of a stream.
async fn relay_whole(
    exchange: &Exchange<'_>,
    client: &mut Client,
    mut live: Live,
    trail: &mut Trail,
) -> Relayed {
    let deployment = exchange.rules.fleet.get(live.index);
    let broken = |message: String| Relayed {
        ending: Ending::UpstreamBroken,
        phase: Phase::Stream,
        outcome: AttemptOutcome::BrokeOff,
        status: 0,
        progress: Progress::default(),
        refusal: Some(Refusal::new(RefusalKind::UpstreamFailed, message)),
    };
    let limit = exchange.gateway.config.limits.body_bytes;
    let read = tokio::select! {
        biased;
        Gone = client.gone() => {
            let gone = broken(String::new());
            return Relayed { ending: Ending::ClientGone, outcome: AttemptOutcome::Cancelled, refusal: None, ..gone };
        }
        read = timeout(deployment.upstream.settings.gap_timeout, live.opened.read_all(limit)) => read,
    };
    let body = match read {
        Ok(Ok(body)) => body,
        Ok(Err(_)) | Err(_) => return broken("the provider broke off in the middle of its answer".into()),
    };
    let (body, progress) =
        match dialect::read_answer(exchange.request, deployment.upstream.settings.dialect, body) {
            Ok(read) => read,
            Err(error) => return broken(error.to_string()),
        };
    deployment.upstream.release(live.opened).await;
    trail.first_byte();
    let kind = if exchange.request.facts.stream {
        "text/event-stream"
    } else {
        "application/json"
    };
    let sent = client.answer(head(exchange, deployment, kind), body).await;
    let ending = if sent.is_ok() {
        Ending::Completed
    } else {
        Ending::ClientGone
    };
    let outcome = AttemptOutcome::Answered;
    Relayed {
        ending,
        phase: Phase::Stream,
        outcome,
        status: 200,
        progress,
        refusal: None,
    }
}

fn head(exchange: &Exchange<'_>, deployment: &Deployment, kind: &'static str) -> ResponseHeader {
    // A status and names that are constants make no invalid head.
    let mut head = ResponseHeader::build_no_case(200, Some(16)).unwrap_or_else(|_| unreachable!());
    let id = exchange.id.as_str();
    let _ = head.insert_header("content-type", kind);
    let _ = head.insert_header("x-tollgate-request-id", id);
    let _ = head.insert_header("x-tollgate-deployment", &*deployment.id);
    explain(exchange, deployment, &mut head);
    if kind == "text/event-stream" {
        let _ = head.insert_header("cache-control", "no-cache");
    }
    match exchange.request.dialect {
        Dialect::Anthropic => drop(head.insert_header("request-id", id)),
        _ => drop(head.insert_header("x-request-id", id)),
    }
    head
}

/// Why this deployment and this much thinking.
fn explain(exchange: &Exchange<'_>, deployment: &Deployment, head: &mut ResponseHeader) {
    let (decision, profile) = (exchange.decision, exchange.profile);
    let _ = head.insert_header("x-tollgate-policy", &*decision.policy_version);
    let _ = head.insert_header("x-tollgate-value", profile.value.as_str());
    let _ = head.insert_header("x-tollgate-latency", profile.latency.as_str());
    let mut candidates = decision.plan.iter();
    let first = decision.plan.first();
    let reason = if first.deployment == deployment.id {
        decision.reason
    } else {
        Reason::Fallback
    };
    let _ = head.insert_header("x-tollgate-reason", reason.as_str());
    if decision.substituted {
        let _ = head.insert_header("x-tollgate-substituted", "true");
    }
    if let Some(candidate) = candidates.find(|one| one.deployment == deployment.id) {
        let _ = head.insert_header("x-tollgate-class", candidate.class.as_str());
        let note = candidate.thinking_note;
        if let Some(thinking) = candidate.thinking {
            let _ = head.insert_header("x-tollgate-thinking", format!("{thinking}; {note}"));
        } else if note != ThinkingNote::Untouched {
            let _ = head.insert_header("x-tollgate-thinking", format!("none; {note}"));
        }
    }
    // A name that is no header value is left out.
    if let Some(workflow) = &profile.workflow {
        let _ = head.insert_header("x-tollgate-workflow", &**workflow);
    }
}

/// Keeps the money ahead of the stream.
struct Meter<'a> {
    /// The one in force when the answer began.
    price: Arc<Price>,
    facts: &'a Facts,
    /// Output tokens that the held money pays for.
    covered: u64,
}

impl<'a> Meter<'a> {
    fn new(price: Arc<Price>, facts: &'a Facts, reservation: &Reservation) -> Self {
        let covered = price.affordable_output(facts, reservation.envelope().granted);
        Self {
            price,
            facts,
            covered,
        }
    }

    /// Whether what has passed is paid for, after holding more where little is left.
    async fn covers(&mut self, progress: &Progress, reservation: &mut Reservation) -> bool {
        let passed = progress.deltas.max(progress.output_bytes / 4);
        if passed + MARGIN <= self.covered || progress.complete {
            return true;
        }
        let wanted = self
            .price
            .quote(self.facts, passed + NEXT_SLICE)
            .unwrap_or_default();
        let more = wanted.minus(reservation.envelope().granted);
        if more > Money::ZERO {
            reservation.extend(more).await;
        }
        self.covered = self
            .price
            .affordable_output(self.facts, reservation.envelope().granted);
        passed < self.covered
    }
}
