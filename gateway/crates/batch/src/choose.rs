//! Which way an item takes: the one with the least expected price, the rescue of what does not arrive included.

/// A way to have an answer, cheapest promises last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// The synchronous tier.
    Standard,
    /// A provider's cheaper synchronous tier, which may have no room.
    Flex,
    /// A provider's background window.
    Background,
    /// A provider's batch.
    Batch,
    /// Idle capacity of the own engine.
    Local,
}

impl Way {
    pub const ALL: [Way; 5] = [Way::Standard, Way::Flex, Way::Background, Way::Batch, Way::Local];

    pub const fn as_str(self) -> &'static str {
        match self {
            Way::Standard => "standard",
            Way::Flex => "flex",
            Way::Background => "background",
            Way::Batch => "batch",
            Way::Local => "local",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|way| way.as_str() == text)
    }
}

/// One way for one item.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    pub way: Way,
    /// What an answer costs, nano-dollars. What is not answered costs nothing.
    pub price: i64,
    /// The chance that the answer is there while a rescue would still be in time.
    pub in_time: f64,
    /// How long it takes for the way to be given up: a batch is cancelled, a queue is left.
    pub leave_us: i64,
}

/// What was chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    pub way: Way,
    /// With the rescue of what does not arrive.
    pub expected: f64,
}

/// A way that is more likely to fail than this is not worth the provider's trouble.
const HOPE: f64 = 0.02;

/// The way with the least expected price. `slack_us` is the time until the deadline, `rescue_us` what the synchronous tier
/// needs at worst; a way is open if there is time to leave it and be rescued. The synchronous tier is always open.
pub fn choose(offers: &[Offer], slack_us: i64, rescue_us: i64) -> Choice {
    let standard = offers.iter().find(|offer| offer.way == Way::Standard);
    let fallback = standard.map_or(0.0, |offer| offer.price as f64);
    let mut best = Choice {
        way: Way::Standard,
        expected: fallback,
    };
    for offer in offers {
        let is_open = slack_us > rescue_us.saturating_add(offer.leave_us);
        if offer.way == Way::Standard || !is_open || offer.in_time < HOPE {
            continue;
        }
        let expected = offer.in_time * offer.price as f64 + (1.0 - offer.in_time) * fallback;
        if expected < best.expected || standard.is_none() && best.way == Way::Standard {
            best = Choice {
                way: offer.way,
                expected,
            };
        }
    }
    best
}

/// The way of an item whose batch did not come: cheapest first, those that still fit before the synchronous tier must be
/// called. `offers` are those that do not queue: flex, the own engine, standard.
pub fn rescue(offers: &[Offer], slack_us: i64, rescue_us: i64) -> Way {
    choose(offers, slack_us, rescue_us).way
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SECOND;
    use proptest::prelude::*;

    fn offer(way: Way, price: i64, in_time: f64) -> Offer {
        Offer {
            way,
            price,
            in_time,
            leave_us: 60 * SECOND,
        }
    }

    #[test]
    fn an_unlikely_batch_is_tried_while_a_rescue_fits() {
        let offers = [
            offer(Way::Standard, 100, 1.0),
            offer(Way::Batch, 50, 0.3),
            offer(Way::Flex, 50, 0.9),
        ];
        assert_eq!(choose(&offers, 3600 * SECOND, 60 * SECOND).way, Way::Flex);
        assert_eq!(choose(&offers[..2], 3600 * SECOND, 60 * SECOND).way, Way::Batch);
        assert_eq!(
            choose(&offers, 100 * SECOND, 60 * SECOND).way,
            Way::Standard,
            "no time to leave it"
        );
    }

    proptest! {
        #[test]
        fn nothing_is_chosen_that_is_dearer_than_the_synchronous_tier(
            price in 1i64..1_000_000, cheap in 1i64..2_000_000, chance in 0.0f64..1.0, slack in 0i64..100_000 * SECOND,
        ) {
            let offers = [offer(Way::Standard, price, 1.0), offer(Way::Batch, cheap, chance)];
            let choice = choose(&offers, slack, 90 * SECOND);
            prop_assert!(choice.expected <= price as f64 + 1e-6);
            prop_assert!(choice.way == Way::Standard || slack > 150 * SECOND);
        }
    }
}
