//! The price of one model: a rate per token class, in tiers by the size of the input.

use exchange::{Bill, Charge, ChargeLine, Money, Rate, TokenClass, Usage, UsageSource};
use smallvec::SmallVec;
use std::sync::Arc;

/// A rate for every token class, in force from a given input size.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tier {
    /// Input tokens, all classes together, above which this tier applies to the whole request.
    pub(crate) above: u64,
    pub(crate) rates: [Rate; TokenClass::COUNT],
}

/// What a model costs. Cheap to clone; resolved once per deployment, not per request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelPrice {
    /// Ascending by `above`; the first is for any size.
    pub(crate) tiers: Arc<[Tier]>,
    pub(crate) version: Arc<str>,
}

impl ModelPrice {
    fn tier(&self, input_tokens: u64) -> &Tier {
        let reached = self.tiers.iter().rposition(|tier| input_tokens > tier.above);
        &self.tiers[reached.unwrap_or(0)]
    }

    /// What `input_tokens` without any cache and `output_tokens` cost: the amount to reserve. Tokens written to a
    /// cache can cost more than plain input, so the dearest way to read a token is assumed.
    pub fn quote(&self, input_tokens: u64, output_tokens: u64) -> Money {
        let tier = self.tier(input_tokens);
        let mut bill = Bill::default();
        bill.add(tier.reading(), input_tokens);
        bill.add(tier.writing(), output_tokens);
        bill.total()
    }

    /// How many output tokens `money` pays for after `input_tokens`; `u64::MAX` where output is free.
    pub fn affordable_output(&self, input_tokens: u64, money: Money) -> u64 {
        let left = money.minus(self.quote(input_tokens, 0));
        if left < Money::ZERO {
            0
        } else {
            self.tier(input_tokens).writing().affordable(left)
        }
    }

    /// What `usage` costs, by class.
    pub fn charge(&self, usage: &Usage) -> Charge {
        let tier = self.tier(usage.input_total());
        let mut bill = Bill::default();
        let lines: SmallVec<[ChargeLine; 4]> = usage
            .lines()
            .map(|(class, tokens)| {
                let rate = tier.rates[class as usize];
                bill.add(rate, tokens);
                ChargeLine {
                    class,
                    tokens,
                    amount: rate.price(tokens),
                }
            })
            .collect();
        Charge {
            total: bill.total(),
            lines,
            price_version: self.version.clone(),
        }
    }
}

impl Tier {
    /// The dearest rate at which an ordinary text input token can be billed.
    fn reading(&self) -> Rate {
        self.rates[TokenClass::Input as usize].max(self.rates[TokenClass::CacheWrite as usize])
    }

    fn writing(&self) -> Rate {
        self.rates[TokenClass::Output as usize].max(self.rates[TokenClass::Reasoning as usize])
    }
}

/// Usage put together from what passed through, for a stream whose provider never reported any: most tokenizers give
/// a token for about four bytes of text, and most providers send at least one token per event.
pub fn counted_usage(input_tokens: u64, output_bytes: u64, deltas: u64) -> Usage {
    Usage::new(UsageSource::Counted)
        .with(TokenClass::Input, input_tokens)
        .with(TokenClass::Output, output_bytes.div_ceil(4).max(deltas))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flat(input: u64, output: u64) -> ModelPrice {
        let mut rates = [Rate(input); TokenClass::COUNT];
        rates[TokenClass::Output as usize] = Rate(output);
        rates[TokenClass::Reasoning as usize] = Rate(output);
        ModelPrice {
            tiers: Arc::from([Tier { above: 0, rates }]),
            version: "test".into(),
        }
    }

    #[test]
    fn a_larger_input_moves_the_whole_request_to_its_tier() {
        let mut price = flat(1_000_000, 2_000_000);
        let dear = Tier {
            above: 200_000,
            rates: [Rate(3_000_000); TokenClass::COUNT],
        };
        price.tiers = Arc::from([price.tiers[0].clone(), dear]);
        assert_eq!(price.quote(200_000, 0), Money::from_nanos(200_000_000));
        assert_eq!(price.quote(200_001, 0), Money::from_nanos(600_003_000));
    }

    proptest! {
        #[test]
        fn a_quote_covers_the_charge_for_the_same_tokens(input in 0u64..1_000_000, output in 0u64..1_000_000,
                                                         read in 0u64..9_000_000, write in 0u64..9_000_000) {
            let price = flat(read, write);
            let usage = Usage::new(UsageSource::Reported)
                .with(TokenClass::Input, input).with(TokenClass::Output, output);
            prop_assert!(price.quote(input, output) >= price.charge(&usage).total);
        }

        #[test]
        fn what_is_affordable_costs_no_more_than_the_money(money in 0i64..1_000_000_000, write in 1u64..9_000_000) {
            let price = flat(150_000, write);
            let money = Money::from_nanos(money);
            let tokens = price.affordable_output(100, money);
            prop_assert!(tokens == 0 || price.quote(100, tokens) <= money);
        }
    }
}
