//! LiteLLM's map of models and prices (`model_prices_and_context_window.json`), from a file that the operator gives.
//!
//! Owns: the meaning of its keys. Invariants: every price is read digit by digit; a key of a model that is read wrongly
//! makes that model unknown, never free.

use crate::book::Query;
use crate::decimal;
use crate::list::Listed;
use crate::price::{Bracket, Rates};
use exchange::{Rate, ServiceTier, TokenClass, Unit};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// The map, as it is in the file.
#[derive(Clone, Debug)]
pub(crate) struct LiteLlm(Map<String, Value>);

/// The names that LiteLLM has for providers known by another one here.
const PROVIDERS: [(&str, &str); 6] = [
    ("google", "gemini"),
    ("aws", "bedrock"),
    ("x-ai", "xai"),
    ("together", "together_ai"),
    ("fireworks", "fireworks_ai"),
    ("moonshotai", "moonshot"),
];

/// The suffix of a tier's keys.
const TIERS: [(ServiceTier, &str); 3] = [
    (ServiceTier::Flex, "_flex"),
    (ServiceTier::Priority, "_priority"),
    (ServiceTier::Batch, "_batches"),
];

fn token_keys(class: TokenClass) -> &'static [&'static str] {
    match class {
        TokenClass::Input => &["input_cost_per_token"],
        TokenClass::CacheRead => &["cache_read_input_token_cost"],
        TokenClass::CacheWrite => &["cache_creation_input_token_cost"],
        TokenClass::CacheWriteHour => &[
            "cache_creation_input_token_cost_above_1hr",
            "cache_creation_input_token_cost",
        ],
        TokenClass::Output => &["output_cost_per_token"],
        TokenClass::Reasoning => &["output_cost_per_reasoning_token"],
        TokenClass::AudioInput => &["input_cost_per_audio_token"],
        TokenClass::AudioOutput => &["output_cost_per_audio_token"],
        TokenClass::ImageInput => &["input_cost_per_image_token"],
        TokenClass::ImageOutput => &["output_cost_per_image_token"],
    }
}

/// The key of a piece, and how many of ours one of the map's is.
fn unit_key(unit: Unit) -> Option<(&'static str, u64)> {
    match unit {
        Unit::Request => Some(("input_cost_per_request", 1)),
        Unit::InputImage => Some(("input_cost_per_image", 1)),
        Unit::OutputImage => Some(("output_cost_per_image", 1)),
        Unit::InputMillisecond => Some(("input_cost_per_second", 1_000)),
        Unit::OutputMillisecond => Some(("output_cost_per_second", 1_000)),
        Unit::InputCharacter => Some(("input_cost_per_character", 1)),
        Unit::OutputCharacter => Some(("output_cost_per_character", 1)),
        Unit::WebSearch => None,
    }
}

impl LiteLlm {
    /// # Errors
    /// The file is not that map.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let Value::Object(map) = value else {
            return Err("it is not a JSON object of models".into());
        };
        let priced = |model: &Value| {
            let keys = model.as_object().into_iter().flat_map(Map::keys);
            keys.into_iter().any(|key| key.contains("_cost"))
        };
        if !map.values().any(priced) {
            return Err("it has no model with a key such as `input_cost_per_token`".into());
        }
        Ok(Self(map))
    }

    pub(crate) fn look_up(&self, query: &Query<'_>) -> Option<Listed> {
        let model = self.entry(query)?;
        let boundaries = boundaries(model)?;
        let brackets = |suffix: &str| -> Option<Vec<Bracket>> {
            let bracket = |above: &u64| {
                let above = *above;
                let rates = Entry { model, suffix, above }.rates()?;
                Some(Bracket { above, rates })
            };
            boundaries.iter().map(bracket).collect()
        };
        let standard = brackets("")?;
        let mut tiers = Vec::new();
        for (tier, suffix) in TIERS {
            if costs(model).any(|key| key.ends_with(suffix)) {
                tiers.push((tier, brackets(suffix)?));
            }
        }
        Some(Listed { standard, tiers })
    }

    /// `provider/model`, or `model` where its provider is the one asked for.
    fn entry(&self, query: &Query<'_>) -> Option<&Map<String, Value>> {
        let known = PROVIDERS.iter().find(|(ours, _)| *ours == query.provider);
        let provider = known.map_or(query.provider, |(_, theirs)| theirs);
        let prefixed = self.0.get(&format!("{provider}/{}", query.model));
        let plain = || {
            let model = self.0.get(query.model)?;
            let of = model["litellm_provider"].as_str()?;
            (of == provider
                || of
                    .strip_prefix(provider)
                    .is_some_and(|rest| rest.starts_with(['_', '-'])))
            .then_some(model)
        };
        prefixed.or_else(plain)?.as_object()
    }
}

/// The keys that are prices.
fn costs(model: &Map<String, Value>) -> impl Iterator<Item = &String> {
    model.keys().filter(|key| key.contains("_cost"))
}

/// Input sizes above which other prices apply, with 0. They are spelled in the keys, or listed as ranges.
fn boundaries(model: &Map<String, Value>) -> Option<BTreeSet<u64>> {
    let mut found = BTreeSet::from([0]);
    for key in costs(model) {
        let size = key
            .rsplit_once("_above_")
            .and_then(|(_, size)| size.split_once("k_tokens"));
        if let Some((thousands, _)) = size {
            found.insert(thousands.parse::<u64>().ok()?.checked_mul(1_000)?);
        }
    }
    for range in model
        .get("tiered_pricing")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        found.insert(range["range"][0].as_f64().filter(|from| *from >= 0.0)? as u64);
    }
    Some(found)
}

/// One model at one tier and input size.
struct Entry<'a> {
    model: &'a Map<String, Value>,
    /// Of the tier's keys.
    suffix: &'a str,
    above: u64,
}

impl Entry<'_> {
    /// The price under `key` that holds here: of this tier and size, else of this size, which a tier that does not name
    /// it is served at, else of this tier, else the plain one. `Err`: it is there and makes no sense.
    fn find(&self, key: &str, pieces: u64) -> Result<Option<Rate>, ()> {
        let sized = match self.above {
            0 => String::new(),
            above => format!("_above_{}k_tokens", above / 1_000),
        };
        let suffix = self.suffix;
        let names = [
            format!("{key}{sized}{suffix}"),
            if self.above > 0 {
                format!("{key}{sized}")
            } else {
                String::new()
            },
            format!("{key}{suffix}"),
            key.to_owned(),
        ];
        let in_range = self.range().and_then(|range| range.get(key));
        let named = names.iter().find_map(|name| self.model.get(name));
        match in_range.or(named) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Number(number)) => decimal::rate(&number.to_string(), pieces).map(Some).map_err(drop),
            Some(Value::String(text)) => decimal::rate(text, pieces).map(Some).map_err(drop),
            Some(_) => Err(()),
        }
    }

    /// The prices of the range that begins here.
    fn range(&self) -> Option<&Map<String, Value>> {
        let ranges = self.model.get("tiered_pricing")?.as_array()?;
        let range = ranges.iter().rfind(|range| {
            range["range"][0]
                .as_f64()
                .is_some_and(|from| from <= self.above as f64)
        })?;
        range.as_object()
    }

    fn rates(&self) -> Option<Rates> {
        let first = |class| {
            let found = token_keys(class).iter().map(|key| self.find(key, 1));
            found
                .collect::<Result<Vec<_>, ()>>()
                .ok()
                .map(|found| found.into_iter().flatten().next())
        };
        let (input, output) = (first(TokenClass::Input)?, first(TokenClass::Output)?);
        let mut rates = Rates::flat(input.unwrap_or_default(), output.unwrap_or_default());
        for class in TokenClass::ALL {
            let slot = &mut rates.tokens[*class as usize];
            *slot = first(*class)?.unwrap_or(*slot);
        }
        let mut priced = input.is_some() || output.is_some();
        for unit in Unit::ALL {
            if let Some((key, pieces)) = unit_key(*unit) {
                let rate = self.find(key, pieces).ok()?;
                priced |= rate.is_some();
                rates.units[*unit as usize] = rate.unwrap_or_default();
            }
        }
        rates.units[Unit::WebSearch as usize] = self.search()?;
        priced.then_some(rates)
    }

    /// The map prices a search by how much of the web it takes in; nobody tells which it was, so the dearest holds.
    fn search(&self) -> Option<Rate> {
        let sizes = self
            .model
            .get("search_context_cost_per_query")
            .and_then(Value::as_object);
        let mut dearest = Rate::ZERO;
        for price in sizes.into_iter().flat_map(Map::values) {
            dearest = dearest.max(decimal::rate(&price.as_number()?.to_string(), 1).ok()?);
        }
        Some(dearest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made up: the shape is the map's, the models and the prices are nobody's.
    const MAP: &str = include_str!("../tests/fixtures/litellm.json");

    fn look_up(provider: &str, model: &str) -> Option<Listed> {
        let query = Query {
            provider,
            base_url: None,
            model,
            at_unix_s: 0,
        };
        LiteLlm::parse(MAP.as_bytes()).unwrap().look_up(&query)
    }

    fn tokens(brackets: &[Bracket], class: TokenClass) -> Vec<(u64, u64)> {
        let rate = |bracket: &Bracket| (bracket.above(), bracket.tokens(class).0);
        brackets.iter().map(rate).collect()
    }

    #[test]
    fn every_class_is_read_to_the_last_digit() {
        let listed = look_up("acme", "chat-large").unwrap();
        for (class, expected) in [
            (TokenClass::Input, [(0, 3_000_000), (200_000, 6_000_000)]),
            (TokenClass::Output, [(0, 15_000_000), (200_000, 22_500_000)]),
            (TokenClass::CacheRead, [(0, 300_000), (200_000, 600_000)]),
            (TokenClass::CacheWrite, [(0, 3_750_000), (200_000, 7_500_000)]),
            (
                TokenClass::CacheWriteHour,
                [(0, 6_000_000), (200_000, 12_000_000)],
            ),
            (TokenClass::Reasoning, [(0, 15_000_000), (200_000, 22_500_000)]),
        ] {
            assert_eq!(tokens(&listed.standard, class), expected, "{class}");
        }
        assert_eq!(listed.standard[0].unit(Unit::WebSearch), Rate(35_000_000_000));
    }

    #[test]
    fn tiers_are_found_by_their_suffix_and_long_inputs_fall_back_to_the_standard_ones() {
        let listed = look_up("acme", "chat-large").unwrap();
        let tiers: Vec<_> = listed.tiers.iter().map(|(tier, _)| *tier).collect();
        assert_eq!(tiers, [ServiceTier::Priority, ServiceTier::Batch]);
        let priority = &listed.tiers[0].1;
        assert_eq!(
            tokens(priority, TokenClass::Input),
            [(0, 5_250_000), (200_000, 6_000_000)]
        );
        let batch = &listed.tiers[1].1;
        assert_eq!(
            tokens(batch, TokenClass::Output),
            [(0, 7_500_000), (200_000, 11_250_000)]
        );
    }

    #[test]
    fn ranges_and_pieces_are_read() {
        let ranged = look_up("acme", "chat-ranged").unwrap();
        assert_eq!(
            tokens(&ranged.standard, TokenClass::Input),
            [(0, 50_000), (32_000, 100_000), (128_000, 300_000)]
        );
        let speech = look_up("acme", "speech").unwrap();
        assert_eq!(speech.standard[0].unit(Unit::InputMillisecond), Rate(100_000));
        assert_eq!(speech.standard[0].unit(Unit::OutputCharacter), Rate(15_000_000));
        let painter = look_up("acme", "painter").unwrap();
        assert_eq!(painter.standard[0].unit(Unit::OutputImage), Rate(40_000_000_000));
    }

    #[test]
    fn models_are_found_under_their_provider_alone() {
        assert!(look_up("google", "flash").is_some(), "google is `gemini` there");
        assert!(look_up("elsewhere", "chat-large").is_none());
        assert!(
            look_up("acme", "broken").is_none(),
            "a price that is no price makes a model unknown, not free"
        );
        assert!(look_up("acme", "unpriced").is_none());
    }

    #[test]
    fn another_file_is_refused() {
        for text in ["", "[]", "{}", r#"{"a": {"max_tokens": 1}}"#] {
            assert!(LiteLlm::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
