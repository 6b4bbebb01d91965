//! The objective: value · P(success) − failure cost · (1 − P) − expected price − λ · expected latency.
//!
//! Invariants: money stays integer (probabilities are parts per million, weights are thousandths); the price counts
//! retries, escalation, thinking and what a cached prefix saves, so that a cheap model that is asked twice shows what
//! it really costs.

use super::Ruling;
use crate::estimates::Estimate;
use exchange::{EstimateSource, Money, Score, Thinking, ThinkingLevel, ThinkingNote};

const MILLION: u32 = 1_000_000;

/// `money · parts / of`, rounded to the nearest nano-dollar.
fn part(money: Money, parts: i64, of: i64) -> Money {
    let product = i128::from(money.nanos()) * i128::from(parts);
    let of = i128::from(of);
    let half = if product < 0 { -of / 2 } else { of / 2 };
    let nanos = (product + half) / of;
    Money::from_nanos(i64::try_from(nanos).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX }))
}

/// A price as it weighs, in thousandths.
pub(super) fn weighted(price: Money, weight: i64) -> Money {
    part(price, weight, 1000)
}

fn ppm(p: f64) -> u32 {
    (p.clamp(0.0, 1.0) * f64::from(MILLION)).round() as u32
}

impl Ruling<'_> {
    /// The terms for one deployment, at the thinking it would get there, and what became of the thinking asked for.
    pub(super) fn score(&self, index: usize) -> (Score, ThinkingNote) {
        let estimate = self.estimate(index);
        let (thinking, level, note) = self.thinking(index, &estimate);
        (self.terms(index, &estimate, (thinking, level)), note)
    }

    /// The belief of this request, corrected by what outcomes said of the workflow.
    pub(super) fn estimate(&self, index: usize) -> Estimate {
        let (profile, facts, estimates) = (self.ask.profile, self.ask.facts, self.ask.estimates);
        let belief = self.policy.belief(index, (profile, facts), estimates);
        let Some(surprise) = estimates.surprise(index) else {
            return belief;
        };
        let (p, error) = surprise.correct((belief.p_success, belief.standard_error));
        Estimate::new(p, error, EstimateSource::Outcomes)
            .thinking(belief.thinking_gain)
            .before(belief.p_success)
    }

    /// Tokens that a setting is expected to use, within what the caller lets the model produce.
    pub(super) fn thinking_tokens(&self, setting: Option<Thinking>, level: ThinkingLevel) -> u64 {
        let tokens = match setting {
            Some(Thinking::Tokens(tokens)) => u64::from(tokens),
            _ => self.policy.thinking_tokens[level as usize],
        };
        self.ask
            .facts
            .max_output_tokens
            .map_or(tokens, |limit| tokens.min(limit))
    }

    pub(super) fn terms(
        &self,
        index: usize,
        estimate: &Estimate,
        (thinking, level): (Option<Thinking>, ThinkingLevel),
    ) -> Score {
        let model = &self.policy.models[index];
        let offer = self.ask.offers.get(index).copied().unwrap_or_default();
        let worth = self.ask.profile.worth;
        let caution = self.policy.document.objective.caution;
        let success_ppm = ppm(estimate.at(level) - caution * estimate.standard_error);
        let gained = part(worth.value_per_success, success_ppm.into(), MILLION.into());
        let risk = part(worth.failure_cost, (MILLION - success_ppm).into(), MILLION.into());

        let tokens = self.thinking_tokens(thinking, level);
        let saving = |at: usize| {
            self.ask
                .offers
                .get(at)
                .map_or(Money::ZERO, |offer| offer.cache_saving)
        };
        let stays = self.home == Some(index);
        let own = if stays { saving(index) } else { Money::ZERO };
        let cache_lost = if stays {
            Money::ZERO
        } else {
            self.home.map_or(Money::ZERO, saving)
        };
        let once = offer
            .expected
            .unwrap_or_default()
            .plus(offer.output_rate.price(tokens))
            .minus(own);
        let again = part(once, offer.retry_permille.into(), 1000);
        let escalated = part(self.dearest, offer.escalation_permille.into(), 1000);
        let price = once.plus(again).plus(escalated);

        let usual = self.policy.document.objective.expected_output_tokens;
        let output = self
            .ask
            .facts
            .max_output_tokens
            .map_or(usual, |limit| limit.min(usual));
        let kilotoken = u64::from(offer.kilotoken_ms.unwrap_or(model.kilotoken_ms));
        let first = u64::from(offer.wait_ms)
            .saturating_add(offer.first_token_ms.unwrap_or(model.first_token_ms).into())
            .saturating_add(tokens.saturating_mul(kilotoken) / 1000);
        let total = first.saturating_add(output.saturating_mul(kilotoken) / 1000);
        let whole = |ms: u64| u32::try_from(ms).unwrap_or(u32::MAX);
        let waiting = part(worth.second, whole(total).into(), 1000);
        Score {
            success_ppm,
            error_ppm: ppm(estimate.standard_error),
            believed_ppm: ppm(estimate.believed_at(level)),
            source: estimate.source,
            thinking,
            thinking_tokens: tokens,
            worth: gained,
            risk,
            price,
            cache_lost,
            first_token_ms: whole(first),
            latency_ms: whole(total),
            waiting,
            utility: gained
                .minus(risk)
                .minus(weighted(price, self.price_weight))
                .minus(waiting),
        }
    }
}
