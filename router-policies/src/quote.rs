//! Offers from a policy's own reference prices, for the tools that run without a gateway.
//!
//! Invariants: the same arithmetic as the gateway's: exact, rounded up once; a deployment without a price is offered
//! at none and so never chosen, except on owned hardware, which costs nothing here until a price says otherwise.

use crate::policy::{Policy, Rates};
use exchange::{BackendClass, Bill, Facts, Money, Offer, Rate};

/// Output tokens held before a stream starts, as the gateway does.
const FIRST_SLICE: u64 = 256;

impl Policy {
    /// One offer for each deployment, all of them up, nothing measured, nothing cached.
    pub fn reference_offers(&self, facts: &Facts) -> Vec<Offer> {
        let usual = self.document.objective.expected_output_tokens;
        let models = self.models.iter().zip(self.deployments());
        let offers = models.map(|(model, deployment)| {
            let owned = (deployment.class == BackendClass::Local).then_some(Rates {
                input: Rate::ZERO,
                output: Rate::ZERO,
                cached_input: Rate::ZERO,
            });
            let rates = model.rates.or(owned);
            let limit = |tokens: u64| facts.max_output_tokens.map_or(tokens, |limit| tokens.min(limit));
            let quote = |output| rates.map(|rates| price(rates, facts.input_tokens, output));
            Offer {
                available: true,
                expected: quote(limit(usual)),
                minimum: quote(limit(FIRST_SLICE)),
                output_rate: rates.map(|rates| rates.output).unwrap_or_default(),
                ..Offer::default()
            }
        });
        offers.collect()
    }

    /// What `cached_tokens` of a request's input save at a deployment.
    pub fn cache_saving(&self, deployment: &str, cached_tokens: u64) -> Money {
        let rates = self
            .position(deployment)
            .and_then(|index| self.models[index].rates);
        rates.map_or(Money::ZERO, |rates| {
            Rate(rates.input.0.saturating_sub(rates.cached_input.0)).price(cached_tokens)
        })
    }
}

fn price(rates: Rates, input: u64, output: u64) -> Money {
    let mut bill = Bill::default();
    bill.add(rates.input, input);
    bill.add(rates.output, output);
    bill.total()
}
