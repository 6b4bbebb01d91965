//! What an answered attempt used, what that costs, and the record of the exchange.

use crate::attempt::Exchange;
use crate::fleet::Deployment;
use crate::relay::Relayed;
use crate::telemetry::Meters;
use crate::trail::{Ended, Trail};
use dialect::Progress;
use exchange::{
    AttemptOutcome, Charge, ChargeLine, Facts, Item, Money, Rate, RefusalKind, ServiceTier, TokenClass, Unit,
    Usage, UsageSource,
};
use ledger::Reservation;

/// The version of the price of what a provider says its answer cost.
const REPORTED: &str = "reported by the provider";

/// What an exchange came to.
#[derive(Clone, Copy)]
pub(crate) struct Settled {
    pub(crate) charged: Money,
    pub(crate) usage: Usage,
    pub(crate) total_us: u64,
    /// In and out.
    pub(crate) tokens: u64,
}

/// Charges what was used and closes the books on the exchange.
pub(crate) fn settle(
    deployment: &Deployment,
    facts: &Facts,
    (reservation, mut trail): (Reservation, Trail),
    (relayed, refusal): (Relayed, Option<RefusalKind>),
    meters: &Meters,
) -> Settled {
    let usage = used(&relayed.progress, facts.input_tokens).with_unit(Unit::InputImage, facts.images);
    let charge = owed(deployment, facts, &relayed.progress, &usage);
    trail.finished(relayed.outcome, 200, usage, charge);
    let tokens = usage.input_total().saturating_add(usage.output_total());
    deployment.pace.used(tokens);
    if relayed.outcome == AttemptOutcome::Answered {
        deployment.lengths.answered(facts, usage.output_total());
    }
    if relayed.outcome == AttemptOutcome::BrokeOff {
        deployment.failed();
    }
    let (ending, phase, status) = (relayed.ending, relayed.phase, relayed.status);
    let record = trail.into_record(Ended {
        ending,
        phase,
        refusal,
        status,
    });
    meters.observe(&record);
    let settled = Settled {
        charged: record.total(),
        usage,
        total_us: record.timings.total_us,
        tokens,
    };
    reservation.settle(record);
    settled
}

/// What is owed: what the provider itself says where it is trusted with that and came to the end, else the price of what
/// was used.
fn owed(deployment: &Deployment, facts: &Facts, progress: &Progress, usage: &Usage) -> Charge {
    // What is billed is the tier that was served; a provider that tells none has at most served the wish.
    let told = progress.service_tier.as_deref().map(ServiceTier::from_wire);
    let tier = told.unwrap_or_else(|| facts.asked_tier());
    let is_trusted = deployment.upstream.settings.reports_cost && progress.complete;
    match progress.cost_nanodollars.filter(|_| is_trusted) {
        Some(cost) => reported(cost, tier),
        None => deployment.price.load().charge(usage, tier),
    }
}

/// One line, for the request, so that lines add up to the charge.
fn reported(nanodollars: i64, tier: ServiceTier) -> Charge {
    let total = Money::from_nanos(nanodollars);
    Charge {
        total,
        lines: smallvec::smallvec![ChargeLine {
            item: Item::Units(Unit::Request),
            quantity: 1,
            rate: Rate(nanodollars.unsigned_abs().saturating_mul(1000)),
            amount: total,
        }],
        price_version: REPORTED.into(),
        service_tier: tier,
    }
}

/// The provider's own count if it came to its end; else what passed through, with whatever the provider said of the
/// input before it was stopped.
fn used(progress: &Progress, input_tokens: u64) -> Usage {
    match progress.usage {
        Some(usage) if progress.complete => usage,
        Some(partial) if partial.input_total() > 0 => {
            let counted = meter::counted_usage(0, progress.output_bytes, progress.deltas);
            let output = counted.get(TokenClass::Output).max(partial.output_total());
            let mut usage = partial
                .with(TokenClass::Output, output)
                .with(TokenClass::Reasoning, 0);
            usage.source = UsageSource::Counted;
            usage
        }
        _ => meter::counted_usage(input_tokens, progress.output_bytes, progress.deltas),
    }
}

/// A call that the caller left before it was answered: the provider has read the input, and may charge it.
pub(crate) fn charge_unanswered(exchange: &Exchange<'_>, trail: &mut Trail) {
    let Some(candidate) = trail.last_deployment() else {
        return;
    };
    let position = exchange
        .decision
        .plan
        .iter()
        .find(|planned| planned.deployment == candidate);
    let Some(index) = position.map(|planned| planned.index) else {
        return;
    };
    let facts = &exchange.request.facts;
    let usage = Usage::new(UsageSource::Estimated).with(TokenClass::Input, facts.input_tokens);
    let price = exchange.rules.fleet.get(index).price.load();
    let charge = price.charge(&usage, facts.asked_tier());
    trail.finished(AttemptOutcome::Cancelled, 0, usage, charge);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reported_cost_is_one_line_that_adds_up() {
        let charge = reported(1_234_567, ServiceTier::default());
        assert_eq!(charge.total, Money::from_nanos(1_234_567));
        assert_eq!(
            charge.lines.iter().map(|line| line.amount).sum::<Money>(),
            charge.total
        );
        assert_eq!(charge.lines[0].rate.price(charge.lines[0].quantity), charge.total);
    }
}
