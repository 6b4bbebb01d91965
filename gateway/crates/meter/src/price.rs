//! The price of one model: for every service tier, brackets by the size of the input, a rate for every item in each.

use crate::book::Source;
use exchange::{
    Bill, Charge, ChargeLine, Facts, Item, Money, Rate, ServiceTier, TokenClass, Unit, Usage, UsageSource,
};
use smallvec::SmallVec;
use std::sync::Arc;

/// A rate for everything that can be billed. What has no price of its own and no parent costs nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Rates {
    pub(crate) tokens: [Rate; TokenClass::COUNT],
    pub(crate) units: [Rate; Unit::COUNT],
}

/// Rates in force from a given input size.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bracket {
    /// Input tokens, all classes together, above which this bracket applies to the whole request.
    pub(crate) above: u64,
    pub(crate) rates: Rates,
}

/// Ascending by `above`; the first is for any size.
pub(crate) type Brackets = Arc<[Bracket]>;

/// Brackets for every service tier. A tier without a price of its own is billed as standard; one whose name is not known
/// is billed as the dearest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tariff([Brackets; ServiceTier::COUNT]);

impl Tariff {
    /// `tiers` are those with a price of their own, `standard` left out.
    pub(crate) fn new(standard: Vec<Bracket>, tiers: Vec<(ServiceTier, Vec<Bracket>)>) -> Self {
        let standard: Brackets = standard.into();
        let mut all = std::array::from_fn(|_| standard.clone());
        for (tier, brackets) in tiers {
            all[tier as usize] = brackets.into();
        }
        let output = |brackets: &Brackets| brackets[0].rates.writing();
        let dearest = all.iter().max_by_key(|brackets| output(brackets)).cloned();
        all[ServiceTier::Other as usize] = dearest.unwrap_or(standard);
        Self(all)
    }

    fn of(&self, tier: ServiceTier, input_tokens: u64) -> &Rates {
        let brackets = &self.0[tier as usize];
        let reached = brackets.iter().rposition(|bracket| input_tokens > bracket.above);
        &brackets[reached.unwrap_or(0)].rates
    }
}

/// What a model costs now. Cheap to clone; resolved once per deployment and price version, not per request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelPrice {
    pub(crate) tariff: Arc<Tariff>,
    pub(crate) version: Arc<str>,
    pub(crate) source: Source,
}

impl ModelPrice {
    /// Names the book that this price is from.
    pub fn version(&self) -> &Arc<str> {
        &self.version
    }

    pub fn source(&self) -> Source {
        self.source
    }

    /// The brackets of every tier that has a price of its own, standard first.
    pub fn tiers(&self) -> impl Iterator<Item = (ServiceTier, &[Bracket])> {
        let standard = &self.tariff.0[ServiceTier::Standard as usize];
        let own = |tier: &&ServiceTier| match tier {
            ServiceTier::Standard => true,
            ServiceTier::Other => false,
            tier => self.tariff.0[**tier as usize] != *standard,
        };
        ServiceTier::ALL
            .iter()
            .filter(own)
            .map(|tier| (*tier, &*self.tariff.0[*tier as usize]))
    }

    /// What the request's input without any cache read and `output_tokens` cost at most: the amount to reserve. The
    /// dearest way to read a token that the request allows is assumed, and the dearer of the tier it asks for and the
    /// standard one, since what is served is the provider's to choose.
    pub fn quote(&self, facts: &Facts, output_tokens: u64) -> Money {
        let quote = |tier| {
            let rates = self.tariff.of(tier, facts.input_tokens);
            let mut bill = rates.opening(facts);
            bill.add(rates.writing(), output_tokens);
            bill.total()
        };
        match facts.asked_tier() {
            ServiceTier::Standard => quote(ServiceTier::Standard),
            tier => quote(tier).max(quote(ServiceTier::Standard)),
        }
    }

    /// The most output tokens whose quote is no more than `money`; `u64::MAX` where output is free, 0 where the input
    /// alone is too dear.
    pub fn affordable_output(&self, facts: &Facts, money: Money) -> u64 {
        let affordable = |tier| {
            let rates = self.tariff.of(tier, facts.input_tokens);
            rates.opening(facts).affordable(rates.writing(), money)
        };
        match facts.asked_tier() {
            ServiceTier::Standard => affordable(ServiceTier::Standard),
            tier => affordable(tier).min(affordable(ServiceTier::Standard)),
        }
    }

    /// What `usage` costs at the tier that was served, by item.
    pub fn charge(&self, usage: &Usage, served: ServiceTier) -> Charge {
        let rates = self.tariff.of(served, usage.input_total());
        let tokens = usage
            .lines()
            .map(|(class, count)| (Item::Tokens(class), count, rates.tokens[class as usize]));
        // What is charged at all was one request. Pieces that are not priced apart are in the tokens.
        let units = usage
            .with_unit(Unit::Request, 1)
            .units()
            .map(|(unit, count)| (Item::Units(unit), u64::from(count), rates.units[unit as usize]))
            .filter(|(.., rate)| *rate > Rate::ZERO)
            .collect::<SmallVec<[_; 2]>>();
        let (mut bill, mut before) = (Bill::default(), Money::ZERO);
        let lines: SmallVec<[ChargeLine; 4]> = tokens
            .chain(units)
            .map(|(item, quantity, rate)| {
                bill.add(rate, quantity);
                let amount = bill.total() - before;
                before = bill.total();
                ChargeLine {
                    item,
                    quantity,
                    rate,
                    amount,
                }
            })
            .collect();
        Charge {
            total: bill.total(),
            lines,
            price_version: self.version.clone(),
            service_tier: served,
        }
    }
}

impl Bracket {
    /// Input tokens above which this bracket applies.
    pub fn above(&self) -> u64 {
        self.above
    }

    pub fn tokens(&self, class: TokenClass) -> Rate {
        self.rates.tokens[class as usize]
    }

    pub fn unit(&self, unit: Unit) -> Rate {
        self.rates.units[unit as usize]
    }
}

impl Rates {
    /// Everything read at `input`, everything written at `output`, nothing for pieces.
    pub(crate) fn flat(input: Rate, output: Rate) -> Self {
        let mut tokens = [Rate::ZERO; TokenClass::COUNT];
        for class in TokenClass::ALL {
            tokens[*class as usize] = if class.is_output() { output } else { input };
        }
        Self {
            tokens,
            units: [Rate::ZERO; Unit::COUNT],
        }
    }

    /// What the request costs before a token is produced.
    fn opening(&self, facts: &Facts) -> Bill {
        let rate = |class| self.tokens[class as usize];
        let mut reading = rate(TokenClass::Input).max(rate(TokenClass::CacheWrite));
        if facts.hour_cache {
            reading = reading.max(rate(TokenClass::CacheWriteHour));
        }
        let mut bill = Bill::default();
        bill.add(reading, facts.input_tokens);
        bill.add(self.units[Unit::Request as usize], 1);
        bill.add(self.units[Unit::InputImage as usize], u64::from(facts.images));
        bill
    }

    fn writing(&self) -> Rate {
        self.tokens[TokenClass::Output as usize].max(self.tokens[TokenClass::Reasoning as usize])
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
    use exchange::{Dialect, Surface};
    use proptest::prelude::*;

    fn facts(input_tokens: u64, service_tier: Option<&str>) -> Facts {
        Facts {
            dialect: Dialect::OpenaiChat,
            surface: Surface::ChatCompletions,
            model: "m".into(),
            stream: true,
            body_bytes: 0,
            input_tokens,
            max_output_tokens: None,
            turns: 1,
            tools: 0,
            images: 0,
            structured_output: false,
            thinking: None,
            service_tier: service_tier.map(Into::into),
            hour_cache: false,
            workflow: None,
            deadline_ms: None,
            labels: Vec::new(),
            prefix_hash: 0,
        }
    }

    fn price(brackets: &[(u64, [Rate; TokenClass::COUNT])], request: Rate) -> ModelPrice {
        let bracket = |(above, tokens): &(u64, [Rate; TokenClass::COUNT])| {
            let mut rates = Rates::flat(Rate::ZERO, Rate::ZERO);
            rates.tokens = *tokens;
            rates.units[Unit::Request as usize] = request;
            Bracket { above: *above, rates }
        };
        ModelPrice {
            tariff: Arc::new(Tariff::new(brackets.iter().map(bracket).collect(), Vec::new())),
            version: "test".into(),
            source: Source::Configuration,
        }
    }

    #[test]
    fn a_larger_input_moves_the_whole_request_to_its_bracket() {
        let price = price(
            &[
                (0, [Rate(1_000_000); TokenClass::COUNT]),
                (200_000, [Rate(3_000_000); TokenClass::COUNT]),
            ],
            Rate::ZERO,
        );
        assert_eq!(
            price.quote(&facts(200_000, None), 0),
            Money::from_nanos(200_000_000)
        );
        assert_eq!(
            price.quote(&facts(200_001, None), 0),
            Money::from_nanos(600_003_000)
        );
    }

    #[test]
    fn a_wish_for_a_cheaper_tier_is_quoted_at_the_standard_one() {
        let bracket = |rate| {
            vec![Bracket {
                above: 0,
                rates: Rates::flat(Rate(rate), Rate(rate)),
            }]
        };
        let tiers = vec![
            (ServiceTier::Flex, bracket(500)),
            (ServiceTier::Priority, bracket(2_000)),
        ];
        let price = ModelPrice {
            tariff: Arc::new(Tariff::new(bracket(1_000), tiers)),
            version: "test".into(),
            source: Source::Configuration,
        };
        for (wish, nanos) in [
            (None, 100),
            (Some("flex"), 100),
            (Some("priority"), 200),
            (Some("new"), 200),
        ] {
            assert_eq!(
                price.quote(&facts(100, wish), 0),
                Money::from_nanos(nanos),
                "{wish:?}"
            );
        }
    }

    #[test]
    fn a_price_per_request_is_charged_once_and_pieces_by_their_count() {
        let mut rates = Rates::flat(Rate(1_000), Rate(1_000));
        rates.units[Unit::Request as usize] = Rate(7_000);
        rates.units[Unit::WebSearch as usize] = Rate(5_000);
        let price = ModelPrice {
            tariff: Arc::new(Tariff::new(vec![Bracket { above: 0, rates }], Vec::new())),
            version: "test".into(),
            source: Source::Configuration,
        };
        let usage = Usage::new(UsageSource::Reported)
            .with(TokenClass::Output, 10)
            .with_unit(Unit::WebSearch, 2)
            .with_unit(Unit::InputImage, 9);
        let charge = price.charge(&usage, ServiceTier::Standard);
        assert_eq!(charge.total, Money::from_nanos(10 + 7 + 10));
        let items: Vec<_> = charge
            .lines
            .iter()
            .map(|line| (line.item.as_str(), line.amount.nanos()))
            .collect();
        assert_eq!(items, [("output", 10), ("web_search", 10), ("request", 7)]);
    }

    fn rates() -> impl Strategy<Value = [Rate; TokenClass::COUNT]> {
        proptest::array::uniform10((0u64..100_000_000).prop_map(Rate))
    }

    fn prices() -> impl Strategy<Value = ModelPrice> {
        (rates(), rates(), 1u64..1_000_000, 0u64..1_000_000).prop_map(|(small, large, above, request)| {
            // Lists never make a larger input cheaper; nothing here depends on it but `monotone`.
            let large = std::array::from_fn(|class| small[class].max(large[class]));
            price(&[(0, small), (above, large)], Rate(request))
        })
    }

    fn usages() -> impl Strategy<Value = Usage> {
        proptest::array::uniform10(0u64..2_000_000).prop_map(|counts| {
            let classes = TokenClass::ALL.iter().zip(counts);
            classes.fold(Usage::new(UsageSource::Reported), |usage, (class, count)| {
                usage.with(*class, count)
            })
        })
    }

    proptest! {
        /// The sum of integers is exact, is rounded up once, and the lines add up to it.
        #[test]
        fn a_charge_is_exact(price in prices(), usage in usages()) {
            let charge = price.charge(&usage, ServiceTier::Standard);
            let brackets = &price.tariff.0[0];
            let bracket = brackets.iter().rev().find(|bracket| usage.input_total() > bracket.above).unwrap_or(&brackets[0]);
            let tokens: u128 = usage.lines().map(|(class, count)| u128::from(bracket.tokens(class).0) * u128::from(count)).sum();
            let picos = tokens + u128::from(bracket.unit(Unit::Request).0);
            prop_assert_eq!(u128::from(charge.total.nanos().unsigned_abs()), picos.div_ceil(1_000));
            prop_assert_eq!(charge.lines.iter().map(|line| line.amount).sum::<Money>(), charge.total);
            for line in &charge.lines {
                let exact = u128::from(line.rate.0) * u128::from(line.quantity) / 1_000;
                prop_assert!(u128::from(line.amount.nanos().unsigned_abs()).abs_diff(exact) <= 1);
            }
        }

        #[test]
        fn affordable_output_is_the_inverse_of_the_quote(price in prices(), input in 0u64..2_000_000, nanos in 0i64..1 << 42) {
            let (facts, money) = (facts(input, None), Money::from_nanos(nanos));
            let tokens = price.affordable_output(&facts, money);
            if tokens > 0 && tokens < u64::MAX {
                prop_assert!(price.quote(&facts, tokens) <= money);
            }
            if tokens < u64::MAX {
                prop_assert!(price.quote(&facts, tokens + 1) > money);
            }
        }

        #[test]
        fn a_quote_is_monotone_and_covers_the_charge_for_the_same_tokens(price in prices(), input in 0u64..2_000_000,
                                                                         more in 0u64..1_000_000, output in 0u64..1_000_000) {
            let here = price.quote(&facts(input, None), output);
            prop_assert!(price.quote(&facts(input + more, None), output) >= here);
            prop_assert!(price.quote(&facts(input, None), output + more) >= here);
            let usage = Usage::new(UsageSource::Reported)
                .with(TokenClass::Input, input).with(TokenClass::Output, output);
            prop_assert!(here >= price.charge(&usage, ServiceTier::Standard).total);
            let cached = Usage::new(UsageSource::Reported)
                .with(TokenClass::CacheWrite, input).with(TokenClass::Reasoning, output);
            prop_assert!(here >= price.charge(&cached, ServiceTier::Standard).total);
        }
    }
}
