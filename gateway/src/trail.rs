//! What has happened to a request so far, kept up to date so that its record can be written at any moment.

use crate::clock::Stopwatch;
use exchange::{
    AttemptOutcome, AttemptRecord, Charge, Ending, Phase, Record, RefusalKind, RequestId, Timings, Usage,
    UsageSource,
};
use ledger::{Intent, Opening};
use smallvec::SmallVec;
use std::sync::Arc;

/// The story of one request.
pub(crate) struct Trail {
    pub(crate) request: RequestId,
    pub(crate) opening: Arc<Opening>,
    pub(crate) timings: Timings,
    watch: Stopwatch,
    attempts: SmallVec<[AttemptRecord; 1]>,
    /// When the last attempt began, on the stopwatch.
    began_us: u64,
}

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) ending: Ending,
    pub(crate) phase: Phase,
    pub(crate) refusal: Option<RefusalKind>,
    pub(crate) status: u16,
}

impl Trail {
    pub(crate) fn new(request: RequestId, opening: Opening, watch: Stopwatch, timings: Timings) -> Self {
        let opening = Arc::new(opening);
        Self {
            request,
            opening,
            timings,
            watch,
            attempts: SmallVec::new(),
            began_us: 0,
        }
    }

    /// Attempts so far.
    pub(crate) fn count(&self) -> u16 {
        self.attempts.len() as u16
    }

    pub(crate) fn began(&mut self, intent: Intent, watch: Stopwatch) {
        self.began_us = watch.elapsed_us();
        self.attempts.push(AttemptRecord {
            number: intent.number,
            deployment: intent.deployment,
            provider: intent.provider,
            model: intent.model,
            class: intent.class,
            outcome: AttemptOutcome::Cancelled,
            status: 0,
            usage: Usage::new(UsageSource::Estimated),
            charge: Charge {
                price_version: intent.estimate.price_version,
                ..Charge::default()
            },
            started_unix_us: intent.started_unix_us,
            duration_us: 0,
        });
    }

    /// The last attempt came to nothing, and cost nothing.
    pub(crate) fn failed(&mut self, outcome: AttemptOutcome, status: u16) {
        let now = self.watch.elapsed_us();
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.outcome = outcome;
            attempt.status = status;
            attempt.duration_us = now.saturating_sub(self.began_us);
        }
    }

    /// The last attempt has begun to answer.
    pub(crate) fn headers(&mut self) {
        self.timings.upstream_headers_us = self.watch.elapsed_us();
    }

    /// The first byte of the answer went to the caller.
    pub(crate) fn first_byte(&mut self) {
        if self.timings.first_byte_us == 0 {
            self.timings.first_byte_us = self.watch.elapsed_us();
        }
    }

    /// The last attempt is over, with what it used and what that costs.
    pub(crate) fn finished(&mut self, outcome: AttemptOutcome, status: u16, usage: Usage, charge: Charge) {
        self.failed(outcome, status);
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.usage = usage;
            attempt.charge = charge;
        }
    }

    /// Microseconds from the last call to the first byte of its answer, and to now; `None`: nothing has come.
    pub(crate) fn since_call(&self) -> Option<(u64, u64)> {
        let first = self.timings.first_byte_us.checked_sub(self.began_us)?;
        Some((first, self.watch.elapsed_us().saturating_sub(self.began_us)))
    }

    /// Where the last attempt went.
    pub(crate) fn last_deployment(&self) -> Option<Arc<str>> {
        self.attempts.last().map(|attempt| attempt.deployment.clone())
    }

    pub(crate) fn into_record(mut self, ended: Ended) -> Record {
        self.timings.total_us = self.watch.elapsed_us();
        Record {
            ending: ended.ending,
            phase: ended.phase,
            refusal: ended.refusal,
            status: ended.status,
            timings: self.timings,
            attempts: self.attempts,
            ..self.opening.record(self.request)
        }
    }
}
