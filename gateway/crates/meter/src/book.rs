//! The price book: the operator's own prices over LiteLLM's map over the public list, under one version.
//!
//! Owns: which source goes first, and the version. Refuses to know: files, the clock; whoever asks says when. Invariants: a
//! book is whole or not there; two books of one version give the same price for the same question.

use crate::list;
use crate::litellm::LiteLlm;
use crate::overrides::PriceOverrides;
use crate::price::{ModelPrice, Tariff};
use genai_prices::Calculator;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// The list that is part of the program; a test holds it to the lock file.
const BUILT_IN: &str = "genai-prices 0.2.1";

/// What a book is made of. The texts are files' contents.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    pub overrides: &'a PriceOverrides,
    /// LiteLLM's `model_prices_and_context_window.json`.
    pub litellm: Option<&'a [u8]>,
    /// A newer `data.json` (v2) of `genai-prices` than the one built in.
    pub genai_prices: Option<&'a [u8]>,
}

/// Where a price is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Configuration,
    LiteLlm,
    GenaiPrices,
}

impl Source {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::LiteLlm => "litellm",
            Self::GenaiPrices => "genai-prices",
        }
    }
}

/// Which price is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// By its name in the configuration.
    pub provider: &'a str,
    /// Where it is, by which the public list knows providers whose name is the operator's own.
    pub base_url: Option<&'a str>,
    /// As sent to the provider.
    pub model: &'a str,
    /// Prices have dates.
    pub at_unix_s: i64,
}

/// Prices of every model known, under one version. Clones share one book.
#[derive(Clone, Debug)]
pub struct PriceBook(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    overrides: PriceOverrides,
    litellm: Option<LiteLlm>,
    /// `None`: the one built in.
    list: Option<Calculator>,
    version: Arc<str>,
}

/// A source that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PriceError {
    #[error("price of `{model}` (entry {index} of `prices`): {problem}")]
    Override {
        model: String,
        /// From 1.
        index: usize,
        problem: String,
    },
    #[error("it is not LiteLLM's map of prices: {0}; expected `model_prices_and_context_window.json`")]
    LiteLlm(String),
    #[error("it is not a genai-prices list: {0}; expected the `data.json` of its version 2")]
    GenaiPrices(String),
}

impl PriceBook {
    /// # Errors
    /// The first source, or override, that has no meaning. A book that is in use is not touched by that.
    pub fn load(sources: Sources<'_>) -> Result<Self, PriceError> {
        let overrides = sources.overrides;
        overrides
            .check()
            .map_err(|(position, problem)| PriceError::Override {
                model: overrides.0[position].model.clone(),
                index: position + 1,
                problem,
            })?;
        let litellm = sources.litellm.map(LiteLlm::parse).transpose();
        let list = sources.genai_prices.map(Calculator::from_json).transpose();
        Ok(Self(Arc::new(Inner {
            overrides: overrides.clone(),
            litellm: litellm.map_err(PriceError::LiteLlm)?,
            list: list.map_err(|error| PriceError::GenaiPrices(error.to_string()))?,
            version: version(sources),
        })))
    }

    /// Names this book in every charge made from it: 12 hexadecimal digits of a hash over all its sources.
    pub fn version(&self) -> &Arc<str> {
        &self.0.version
    }

    /// The price of a model at a provider, as it is at that time; `None` where nobody has named one.
    pub fn resolve(&self, query: &Query<'_>) -> Option<ModelPrice> {
        let inner = &*self.0;
        let own = || Some((inner.overrides.look_up(query)?, Source::Configuration));
        let map = || Some((inner.litellm.as_ref()?.look_up(query)?, Source::LiteLlm));
        let list = || {
            let list = inner.list.as_ref().unwrap_or_else(|| Calculator::bundled());
            Some((list::look_up(list, query)?, Source::GenaiPrices))
        };
        let (listed, source) = own().or_else(map).or_else(list)?;
        Some(ModelPrice {
            tariff: Arc::new(Tariff::new(listed.standard, listed.tiers)),
            version: inner.version.clone(),
            source,
        })
    }
}

fn version(sources: Sources<'_>) -> Arc<str> {
    let mut hash = Sha256::new();
    // Each source under its name and with its length, so that no two sets of sources are one text.
    let mut add = |name: &str, text: &[u8]| {
        hash.update(format!("{name} {}\n", text.len()));
        hash.update(text);
    };
    add(
        "genai-prices",
        sources.genai_prices.unwrap_or(BUILT_IN.as_bytes()),
    );
    add("litellm", sources.litellm.unwrap_or_default());
    add("configuration", format!("{:?}", sources.overrides.0).as_bytes());
    let digest = hash.finalize();
    let digits = digest[..6].iter().map(|byte| format!("{byte:02x}"));
    digits.collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use exchange::{Money, Rate, ServiceTier, TokenClass, Unit, Usage, UsageSource};

    /// 2026-11-24.
    const NOW: i64 = 1_795_500_000;

    fn load(overrides: &str, litellm: Option<&[u8]>) -> Result<PriceBook, PriceError> {
        let overrides = &serde_json::from_str(overrides).unwrap();
        PriceBook::load(Sources {
            overrides,
            litellm,
            genai_prices: None,
        })
    }

    fn book(overrides: &str) -> PriceBook {
        load(overrides, None).unwrap()
    }

    fn price_at(book: &PriceBook, provider: &str, model: &str, at_unix_s: i64) -> Option<ModelPrice> {
        book.resolve(&Query {
            provider,
            base_url: None,
            model,
            at_unix_s,
        })
    }

    fn rate(price: &ModelPrice, tier: ServiceTier, class: TokenClass) -> u64 {
        let (_, brackets) = price.tiers().find(|(known, _)| *known == tier).unwrap();
        brackets[0].tokens(class).0
    }

    #[test]
    fn list_prices_are_the_published_ones() {
        let book = book("[]");
        let mini = price_at(&book, "openai", "gpt-4o-mini", NOW).unwrap();
        for (class, expected) in [
            (TokenClass::Input, 150_000),
            (TokenClass::CacheRead, 75_000),
            (TokenClass::Output, 600_000),
        ] {
            assert_eq!(rate(&mini, ServiceTier::Standard, class), expected, "{class}");
        }
        let sonnet = price_at(&book, "anthropic", "claude-sonnet-4-5", NOW).unwrap();
        for (class, expected) in [
            (TokenClass::Input, 3_000_000),
            (TokenClass::CacheRead, 300_000),
            (TokenClass::CacheWrite, 3_750_000),
            (TokenClass::CacheWriteHour, 6_000_000),
            (TokenClass::Output, 15_000_000),
            (TokenClass::Reasoning, 15_000_000),
        ] {
            assert_eq!(rate(&sonnet, ServiceTier::Standard, class), expected, "{class}");
        }
        let (_, standard) = sonnet.tiers().next().unwrap();
        // $10 for a thousand searches.
        assert_eq!(standard[0].unit(Unit::WebSearch), Rate(10_000_000_000));
    }

    #[test]
    fn brackets_by_input_size_are_found() {
        let price = price_at(&book("[]"), "anthropic", "claude-sonnet-4-5", NOW).unwrap();
        let (_, brackets) = price.tiers().next().unwrap();
        let shown: Vec<_> = brackets
            .iter()
            .map(|bracket| (bracket.above(), bracket.tokens(TokenClass::Input).0))
            .collect();
        assert_eq!(shown, [(0, 3_000_000), (200_000, 6_000_000)]);
    }

    #[test]
    fn the_tier_that_was_served_is_charged() {
        let price = price_at(&book("[]"), "openai", "o3", NOW).unwrap();
        let usage = Usage::new(UsageSource::Reported)
            .with(TokenClass::Input, 1_000_000)
            .with(TokenClass::Output, 1_000_000);
        for (tier, dollars) in [
            (ServiceTier::Standard, "10"),
            (ServiceTier::Flex, "5"),
            (ServiceTier::Priority, "17.5"),
            (ServiceTier::Batch, "5"),
            // Not known: as dear as the dearest.
            (ServiceTier::Other, "17.5"),
        ] {
            let charge = price.charge(&usage, tier);
            assert_eq!(charge.total, Money::parse_dollars(dollars).unwrap(), "{tier}");
            assert_eq!(charge.service_tier, tier);
        }
    }

    #[test]
    fn the_price_of_the_day_holds() {
        // o3 became cheaper on 2025-06-10.
        let book = book("[]");
        let input = |at| {
            rate(
                &price_at(&book, "openai", "o3", at).unwrap(),
                ServiceTier::Standard,
                TokenClass::Input,
            )
        };
        assert_eq!(
            (input(1_749_513_599), input(1_749_513_600)),
            (10_000_000, 2_000_000)
        );
        let dated = load(
            r#"[{"model": "x", "input_per_mtok": "1", "output_per_mtok": "2"},
                {"model": "x", "from": "2026-11-01", "input_per_mtok": "3", "output_per_mtok": "4"}]"#,
            None,
        );
        let dated = dated.unwrap();
        let input = |at| {
            rate(
                &price_at(&dated, "any", "x", at).unwrap(),
                ServiceTier::Standard,
                TokenClass::Input,
            )
        };
        assert_eq!(
            (input(1_793_491_199), input(1_793_491_200)),
            (1_000_000, 3_000_000)
        );
    }

    #[test]
    fn one_s_own_prices_go_first_then_the_map_then_the_list() {
        let map = br#"{"gpt-4o-mini": {"litellm_provider": "openai", "input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06},
                      "o3": {"litellm_provider": "openai", "input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06}}"#;
        let own = r#"[{"model": "o3", "input_per_mtok": "7", "output_per_mtok": "7"},
                      {"model": "o3", "service_tier": "flex", "input_per_mtok": "5", "output_per_mtok": "5"},
                      {"model": "o3", "above_input_tokens": 9000, "input_per_mtok": "9", "output_per_mtok": "9"},
                      {"provider": "mine", "model": "o3", "input_per_mtok": "8", "output_per_mtok": "8"}]"#;
        let book = load(own, Some(map)).unwrap();
        let found = |provider, model| {
            let price = price_at(&book, provider, model, NOW).unwrap();
            (
                price.source(),
                rate(&price, ServiceTier::Standard, TokenClass::Input),
            )
        };
        assert_eq!(found("openai", "o3"), (Source::Configuration, 7_000_000));
        assert_eq!(found("mine", "o3"), (Source::Configuration, 8_000_000));
        assert_eq!(found("openai", "gpt-4o-mini"), (Source::LiteLlm, 1_000_000));
        assert_eq!(found("openai", "gpt-4.1-mini"), (Source::GenaiPrices, 400_000));
        let own = price_at(&book, "openai", "o3", NOW).unwrap();
        assert_eq!(rate(&own, ServiceTier::Flex, TokenClass::Input), 5_000_000);
        let (_, brackets) = own.tiers().next().unwrap();
        assert_eq!(brackets[1].above(), 9000);
    }

    #[test]
    fn owned_hardware_is_priced_by_the_hour() {
        let book = book(
            r#"[{"model": "smollm2", "compute": {"dollars_per_hour": "0.36",
                "input_tokens_per_second": 500, "output_tokens_per_second": 100}}]"#,
        );
        let price = price_at(&book, "local", "smollm2", NOW).unwrap();
        // $0.36 an hour is $0.0001 a second: a micro-dollar for each of 100 tokens.
        assert_eq!(rate(&price, ServiceTier::Standard, TokenClass::Output), 1_000_000);
        assert_eq!(rate(&price, ServiceTier::Standard, TokenClass::Input), 200_000);
    }

    #[test]
    fn a_provider_under_another_name_is_known_by_where_it_is() {
        let query = Query {
            provider: "main",
            base_url: Some("https://api.openai.com/v1"),
            model: "gpt-4o-mini",
            at_unix_s: NOW,
        };
        let price = book("[]").resolve(&query).unwrap();
        assert_eq!(rate(&price, ServiceTier::Standard, TokenClass::Input), 150_000);
        let unknown = Query {
            base_url: Some("http://10.0.0.1/v1"),
            ..query
        };
        assert!(book("[]").resolve(&unknown).is_none());
    }

    #[test]
    fn nonsense_is_refused_and_the_unknown_has_no_price() {
        for (entry, expected) in [
            (r#"{"model": "x", "input_per_mtok": "1"}"#, "output_per_mtok"),
            (
                r#"{"model": "x", "input_per_mtok": "-1", "output_per_mtok": "1"}"#,
                "negative",
            ),
            (
                r#"{"model": "x", "from": "1 May", "input_per_mtok": "1", "output_per_mtok": "1"}"#,
                "2026-10-01",
            ),
            (r#"{"input_per_mtok": "1", "output_per_mtok": "1"}"#, "model"),
            (
                r#"{"model": "x", "service_tier": "flex", "input_per_mtok": "1", "output_per_mtok": "1"}"#,
                "standard price",
            ),
            (
                r#"{"model": "x", "compute": {"dollars_per_hour": "1", "input_tokens_per_second": 0,
                    "output_tokens_per_second": 1}}"#,
                "above 0",
            ),
        ] {
            let message = load(&format!("[{entry}]"), None).unwrap_err().to_string();
            assert!(
                message.contains("entry 1") && message.contains(expected),
                "{entry}: {message}"
            );
        }
        assert!(price_at(&book("[]"), "openai", "no-such-model-anywhere", NOW).is_none());
        assert!(
            load("[]", Some(b"{}"))
                .unwrap_err()
                .to_string()
                .contains("LiteLLM")
        );
    }

    #[test]
    fn the_version_follows_every_source() {
        let priced = r#"[{"model": "x", "input_per_mtok": "1", "output_per_mtok": "2"}]"#;
        let map = br#"{"a": {"input_cost_per_token": 1}}"#;
        let versions = [
            load("[]", None).unwrap().version().clone(),
            load(priced, None).unwrap().version().clone(),
            load("[]", Some(map)).unwrap().version().clone(),
            load(priced, Some(map)).unwrap().version().clone(),
        ];
        let distinct: std::collections::BTreeSet<_> = versions.iter().collect();
        assert_eq!(distinct.len(), versions.len());
        assert_eq!(versions[1], *load(priced, None).unwrap().version());
    }

    #[test]
    fn the_version_names_the_list_that_is_built_in() {
        let lock = std::fs::read_to_string("../../../Cargo.lock").unwrap();
        let locked = lock
            .split("[[package]]")
            .find(|package| package.contains("name = \"genai-prices\""))
            .unwrap();
        let version = BUILT_IN.rsplit(' ').next().unwrap();
        assert!(
            locked.contains(&format!("version = \"{version}\"")),
            "BUILT_IN must follow the lock file"
        );
    }
}
