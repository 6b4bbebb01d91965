//! The public list of prices: `genai-prices`, built in or in a newer file.
//!
//! The list speaks in overlapping usage and floating-point dollars, and shows prices, not rules. It is asked for the price
//! of a known amount of each thing, and the answer is turned into an integer rate: the only place where money was ever a
//! float. Refuses to know: the operator's own prices.

use crate::book::Query;
use crate::price::{Bracket, Rates};
use exchange::{Rate, ServiceTier, TokenClass, Unit};
use genai_prices::{Calculator, PriceRequest, Usage, UsageKey};
use std::time::{Duration, UNIX_EPOCH};

/// The input size asked about to learn the base bracket, in tokens; below every boundary in use.
const SMALL: u64 = 1_000;
/// The largest input size asked about: no model on the list reads more.
const LARGE: u64 = 4_000_000;
/// How much of a thing is asked about: enough for all digits, little enough to cross few boundaries.
const PROBE: u64 = 1_000;

/// The tiers that the list prices apart, in its own words.
const TIERS: [(ServiceTier, &str, &str); 4] = [
    (ServiceTier::Flex, "service_tier", "flex"),
    (ServiceTier::Priority, "service_tier", "priority"),
    (ServiceTier::Fast, "service_tier", "fast"),
    (ServiceTier::Batch, "processing", "batch"),
];

/// How the list is asked about one class: the usage fields that must all carry the tokens, given that a cached token
/// is an input token to it as well.
fn token_fields(class: TokenClass) -> &'static [&'static str] {
    match class {
        TokenClass::Input => &["input_tokens"],
        TokenClass::CacheRead => &["input_tokens", "cache_read_tokens"],
        TokenClass::CacheWrite => &["input_tokens", "cache_write_tokens"],
        TokenClass::CacheWriteHour => &["input_tokens", "cache_write_tokens", "cache_write_1h_tokens"],
        TokenClass::AudioInput => &["input_tokens", "input_audio_tokens"],
        TokenClass::ImageInput => &["input_tokens", "input_image_tokens"],
        TokenClass::Output => &["output_tokens"],
        TokenClass::Reasoning => &["output_tokens", "output_reasoning_tokens"],
        TokenClass::AudioOutput => &["output_tokens", "output_audio_tokens"],
        TokenClass::ImageOutput => &["output_tokens", "output_image_tokens"],
    }
}

/// The same for pieces: the fields, and how many pieces of ours one of the list's is. Requests are asked about apart, and
/// the list knows no price for an image or a character that was made.
fn unit_fields(unit: Unit) -> (&'static [&'static str], u64) {
    match unit {
        Unit::WebSearch => (&["web_searches"], 1),
        Unit::InputMillisecond => (&["audio_seconds", "input_audio_seconds"], 1_000),
        Unit::OutputMillisecond => (&["audio_seconds", "output_audio_seconds"], 1_000),
        Unit::InputCharacter => (&["input_characters"], 1),
        Unit::Request | Unit::InputImage | Unit::OutputImage | Unit::OutputCharacter => (&[], 1),
    }
}

/// The brackets of a model by tier, standard first; `None` where the list does not know the model.
pub(crate) fn look_up(calculator: &Calculator, query: &Query<'_>) -> Option<Listed> {
    let listing = Listing {
        calculator,
        query,
        context: None,
    };
    let standard = listing.brackets()?;
    let tiers = TIERS.iter().filter_map(|(tier, key, value)| {
        let listing = Listing {
            context: Some((key, value)),
            ..listing
        };
        // Most models have no such tier, and are then shown at standard rates.
        let (input, output) = (
            listing.rate(TokenClass::Input, SMALL)?,
            listing.rate(TokenClass::Output, SMALL)?,
        );
        let base = &standard[0].rates.tokens;
        let differs =
            input != base[TokenClass::Input as usize] || output != base[TokenClass::Output as usize];
        Some((*tier, differs.then(|| listing.brackets())??))
    });
    let tiers = tiers.collect();
    Some(Listed { standard, tiers })
}

/// What a list says of a model.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) standard: Vec<Bracket>,
    pub(crate) tiers: Vec<(ServiceTier, Vec<Bracket>)>,
}

#[derive(Clone, Copy)]
struct Listing<'a> {
    calculator: &'a Calculator,
    query: &'a Query<'a>,
    context: Option<(&'static str, &'static str)>,
}

impl Listing<'_> {
    fn dollars(&self, usage: &Usage) -> Option<f64> {
        let at = UNIX_EPOCH + Duration::from_secs(u64::try_from(self.query.at_unix_s).unwrap_or(0));
        let mut request = PriceRequest::new(self.query.model, usage).with_timestamp(at);
        if let Some((key, value)) = self.context {
            request = request.with_price_context(key, value);
        }
        let named = request.clone().with_provider_id(self.query.provider);
        let price = self.calculator.calculate(&named).ok().or_else(|| {
            // A provider under a name of the operator's own is known by where it is.
            let url = self.query.base_url?;
            self.calculator
                .calculate(&request.with_provider_api_url(url))
                .ok()
        });
        price.map(|price| price.total_price)
    }

    /// The price of one more of what `fields` say, inside a request that reads `beside` other tokens.
    fn step(&self, fields: &[&'static str], beside: u64) -> Option<f64> {
        let mut without = Usage::new();
        without.insert(UsageKey::INPUT_TOKENS, beside as f64);
        let mut with = without.clone();
        for field in fields {
            let present = with.get(field).unwrap_or(0.0);
            with.insert(*field, present + PROBE as f64);
        }
        Some((self.dollars(&with)? - self.dollars(&without)?) / PROBE as f64)
    }

    fn rate(&self, class: TokenClass, beside: u64) -> Option<Rate> {
        to_rate(self.step(token_fields(class), beside)?)
    }

    /// Every item. A class that the list does not price costs what its parent does: a cached token is at most an input
    /// token, a reasoning token is an output token.
    fn rates(&self, beside: u64) -> Option<Rates> {
        let (input, output) = (
            self.rate(TokenClass::Input, beside)?,
            self.rate(TokenClass::Output, beside)?,
        );
        let mut rates = Rates::flat(input, output);
        for class in TokenClass::ALL {
            let own = self.rate(*class, beside).filter(|rate| *rate > Rate::ZERO);
            let slot = &mut rates.tokens[*class as usize];
            *slot = own.unwrap_or(*slot);
        }
        for unit in Unit::ALL {
            let (fields, pieces) = unit_fields(*unit);
            let dollars = match unit {
                Unit::Request => self.dollars(&Usage::new()),
                _ if fields.is_empty() => None,
                _ => self.step(fields, beside).map(|dollars| dollars / pieces as f64),
            };
            rates.units[*unit as usize] = dollars.and_then(to_rate).unwrap_or_default();
        }
        Some(rates)
    }

    /// Input and output alone, which is what changes at a boundary.
    fn probe(&self, beside: u64) -> Option<(Rate, Rate)> {
        Some((
            self.rate(TokenClass::Input, beside)?,
            self.rate(TokenClass::Output, beside)?,
        ))
    }

    fn brackets(&self) -> Option<Vec<Bracket>> {
        let mut brackets = vec![Bracket {
            above: 0,
            rates: self.rates(SMALL)?,
        }];
        let (mut low, mut here) = (SMALL, self.probe(SMALL)?);
        let end = self.probe(LARGE)?;
        // Prices rise with the size: each boundary is where the price here ends.
        while here != end {
            let mut high = LARGE;
            while high - low > 1 {
                let middle = low.midpoint(high);
                if self.probe(middle)? == here {
                    low = middle;
                } else {
                    high = middle;
                }
            }
            // The probe itself adds tokens: the boundary lies where the last of them crosses it, and beyond that all
            // of them have.
            brackets.push(Bracket {
                above: low + PROBE,
                rates: self.rates(high + PROBE)?,
            });
            low = high + PROBE;
            here = self.probe(low)?;
        }
        Some(brackets)
    }
}

fn to_rate(dollars: f64) -> Option<Rate> {
    let picodollars = (dollars * 1e12).round();
    (0.0..1e18)
        .contains(&picodollars)
        .then_some(Rate(picodollars as u64))
}
