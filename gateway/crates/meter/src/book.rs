//! The price book: the bundled public list prices under the operator's own.
//!
//! The list speaks in overlapping usage and floating-point dollars. It is asked for the price of a known number of
//! tokens of each class, and the answer is turned into an integer rate: the only place where money was ever a float.

use crate::overrides::PriceOverrides;
use crate::price::{ModelPrice, Tier};
use exchange::{Rate, TokenClass};
use genai_prices::{Calculator, PriceRequest, Usage, UsageKey};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// The input size asked about to learn the base tier, in tokens; below every tier boundary in use.
const SMALL: f64 = 1_000.0;
/// The largest input size asked about: no model on the list reads more.
const LARGE: u64 = 4_000_000;

/// Prices of every model known, under one version.
#[derive(Clone, Debug)]
pub struct PriceBook {
    overrides: PriceOverrides,
    version: Arc<str>,
}

/// A price in the configuration that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("price of `{model}` (entry {index} of `prices`): {problem}")]
pub struct PriceError {
    pub model: String,
    /// From 1.
    pub index: usize,
    pub problem: String,
}

impl PriceBook {
    /// # Errors
    /// The first override that has no meaning.
    pub fn load(overrides: &PriceOverrides) -> Result<Self, PriceError> {
        let mut hash = Sha256::new();
        hash.update(concat!("genai-prices ", env!("CARGO_PKG_VERSION")));
        for (position, price) in overrides.0.iter().enumerate() {
            price.rates().map_err(|problem| PriceError {
                model: price.model.clone(),
                index: position + 1,
                problem,
            })?;
            hash.update(format!("{price:?}"));
        }
        let digest = hash.finalize();
        let version = digest[..6]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>();
        Ok(Self {
            overrides: overrides.clone(),
            version: version.into(),
        })
    }

    /// Names this book in every charge made from it.
    pub fn version(&self) -> &Arc<str> {
        &self.version
    }

    /// The price of a model at a provider; `None` where nobody has named one.
    pub fn resolve(&self, provider: &str, model: &str) -> Option<ModelPrice> {
        let tiers = self
            .overridden(provider, model)
            .or_else(|| listed(provider, model))?;
        Some(ModelPrice {
            tiers: tiers.into(),
            version: self.version.clone(),
        })
    }

    fn overridden(&self, provider: &str, model: &str) -> Option<Vec<Tier>> {
        let fits = |wanted: &Option<String>| wanted.as_deref().is_none_or(|wanted| wanted == provider);
        let price = self
            .overrides
            .0
            .iter()
            .find(|price| price.model == model && fits(&price.provider))?;
        Some(vec![Tier {
            above: 0,
            rates: price.rates().ok()?,
        }])
    }
}

/// How the list is asked about one class: the usage fields that must all carry the tokens, given that a cached token
/// is an input token to it as well.
fn fields(class: TokenClass) -> &'static [&'static str] {
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

struct Listing<'a> {
    provider: &'a str,
    model: &'a str,
}

impl Listing<'_> {
    fn dollars(&self, usage: &Usage) -> Option<f64> {
        let request = PriceRequest::new(self.model, usage).with_provider_id(self.provider);
        Calculator::bundled()
            .calculate(&request)
            .ok()
            .map(|price| price.total_price)
    }

    /// The rate of `class` inside a request that reads `beside` other input tokens.
    fn rate(&self, class: TokenClass, beside: f64) -> Option<Rate> {
        let mut without = Usage::new();
        without.insert(UsageKey::INPUT_TOKENS, beside);
        let mut with = without.clone();
        for field in fields(class) {
            let present = with.get(field).unwrap_or(0.0);
            with.insert(*field, present + SMALL);
        }
        let dollars = (self.dollars(&with)? - self.dollars(&without)?) / SMALL;
        let picodollars = (dollars * 1e12).round();
        (0.0..1e15)
            .contains(&picodollars)
            .then_some(Rate(picodollars as u64))
    }

    /// Every class. One that the list does not price costs what its parent does: a cached token is at most an input
    /// token, a reasoning token is an output token.
    fn rates(&self, beside: f64) -> Option<[Rate; TokenClass::COUNT]> {
        let (input, output) = (
            self.rate(TokenClass::Input, beside)?,
            self.rate(TokenClass::Output, beside)?,
        );
        let mut rates = [Rate::ZERO; TokenClass::COUNT];
        for class in TokenClass::ALL {
            let parent = if class.is_output() { output } else { input };
            rates[*class as usize] = self
                .rate(*class, beside)
                .filter(|rate| *rate > Rate::ZERO)
                .unwrap_or(parent);
        }
        Some(rates)
    }
}

/// The listed tiers of a model: none or one boundary, found by bisection since the list shows prices, not rules.
fn listed(provider: &str, model: &str) -> Option<Vec<Tier>> {
    let listing = Listing { provider, model };
    let base = listing.rates(SMALL)?;
    let mut tiers = vec![Tier {
        above: 0,
        rates: base,
    }];
    let input_at = |size: u64| listing.rate(TokenClass::Input, size as f64);
    if input_at(LARGE)? != base[TokenClass::Input as usize] {
        let (mut low, mut high) = (SMALL as u64, LARGE);
        while high - low > 1 {
            let middle = low.midpoint(high);
            if listing.rate(TokenClass::Output, middle as f64)? == base[TokenClass::Output as usize]
                && input_at(middle)? == base[TokenClass::Input as usize]
            {
                low = middle;
            } else {
                high = middle;
            }
        }
        // The probe itself adds tokens: the boundary lies where the first of them would cross it.
        tiers.push(Tier {
            above: low + SMALL as u64,
            rates: listing.rates(LARGE as f64)?,
        });
    }
    Some(tiers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use exchange::{Money, UsageSource};

    fn book(yaml_like_json: &str) -> PriceBook {
        PriceBook::load(&serde_json::from_str(yaml_like_json).unwrap()).unwrap()
    }

    fn rate(price: &ModelPrice, class: TokenClass) -> u64 {
        price.tiers[0].rates[class as usize].0
    }

    #[test]
    fn list_prices_are_the_published_ones() {
        let book = book("[]");
        let mini = book.resolve("openai", "gpt-4o-mini").unwrap();
        assert_eq!(
            (
                rate(&mini, TokenClass::Input),
                rate(&mini, TokenClass::CacheRead),
                rate(&mini, TokenClass::Output)
            ),
            (150_000, 75_000, 600_000)
        );
        let sonnet = book.resolve("anthropic", "claude-sonnet-4-5").unwrap();
        let classes = [
            (TokenClass::Input, 3_000_000),
            (TokenClass::CacheRead, 300_000),
            (TokenClass::CacheWrite, 3_750_000),
            (TokenClass::Output, 15_000_000),
            (TokenClass::Reasoning, 15_000_000),
        ];
        for (class, expected) in classes {
            assert_eq!(rate(&sonnet, class), expected, "{class}");
        }
    }

    #[test]
    fn tiers_by_input_size_are_found() {
        let price = book("[]").resolve("anthropic", "claude-sonnet-4-5").unwrap();
        let tiers: Vec<_> = price
            .tiers
            .iter()
            .map(|tier| (tier.above, tier.rates[0].0))
            .collect();
        assert_eq!(tiers, [(0, 3_000_000), (200_000, 6_000_000)]);
    }

    #[test]
    fn owned_hardware_is_priced_by_the_hour() {
        let book = book(
            r#"[{"model": "smollm2", "compute": {"dollars_per_hour": "0.36",
                "input_tokens_per_second": 500, "output_tokens_per_second": 100}}]"#,
        );
        let price = book.resolve("local", "smollm2").unwrap();
        // $0.36 an hour is $0.0001 a second: a micro-dollar for each of 100 tokens.
        assert_eq!(rate(&price, TokenClass::Output), 1_000_000);
        assert_eq!(rate(&price, TokenClass::Input), 200_000);
    }

    #[test]
    fn charges_add_up_by_class() {
        let price = book("[]").resolve("openai", "gpt-4o-mini").unwrap();
        let usage = exchange::Usage::new(UsageSource::Reported)
            .with(TokenClass::Input, 1000)
            .with(TokenClass::CacheRead, 1000)
            .with(TokenClass::Output, 100);
        assert_eq!(
            price.charge(&usage).total,
            Money::from_nanos(150_000 + 75_000 + 60_000)
        );
    }

    #[test]
    fn nonsense_is_refused_and_the_unknown_has_no_price() {
        let half = serde_json::from_str(r#"[{"model": "x", "input_per_mtok": "1"}]"#).unwrap();
        let message = PriceBook::load(&half).unwrap_err().to_string();
        assert!(
            message.contains("entry 1") && message.contains("output_per_mtok"),
            "{message}"
        );
        assert!(book("[]").resolve("openai", "no-such-model-anywhere").is_none());
    }

    #[test]
    fn the_version_follows_the_overrides() {
        let priced = book(r#"[{"model": "x", "input_per_mtok": "1", "output_per_mtok": "2"}]"#);
        assert_ne!(priced.version(), book("[]").version());
    }
}
