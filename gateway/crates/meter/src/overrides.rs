//! Prices written by the operator: list-price corrections, negotiated prices, and the price of owned hardware.
//!
//! Every entry is one price: of a model, at a service tier, from an input size, from a date. Entries for one model add up
//! to its tariff. Refuses to know: lists of prices.

use crate::book::Query;
use crate::decimal;
use crate::list::Listed;
use crate::price::{Bracket, Rates};
use exchange::{Money, Rate, ServiceTier, TokenClass, Unit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::Date;
use time::macros::format_description;

/// An amount of US dollars as a decimal text such as `"0.15"`, so that no digit is lost to floating point.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Dollars(pub String);

impl Dollars {
    /// # Errors
    /// A text that says what is wrong with the amount.
    pub fn money(&self) -> Result<Money, String> {
        match Money::parse_dollars(&self.0) {
            Ok(money) if money < Money::ZERO => Err(format!("`{}`: a price cannot be negative", self.0)),
            Ok(money) => Ok(money),
            Err(error) => Err(format!("`{}`: {error}", self.0)),
        }
    }
}

/// Prices that take precedence over every list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct PriceOverrides(pub Vec<PriceOverride>);

/// One price of one model. The first three and `above_input_tokens` and `service_tier` say which; the rest, how much.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PriceOverride {
    /// The provider's name in this configuration. Left out: any provider.
    pub provider: Option<String>,
    /// The model name as sent to the provider.
    pub model: String,
    /// The first day on which it holds, as `2026-10-01`, from midnight UTC. Left out: always.
    pub from: Option<String>,
    /// `flex`, `priority`, `fast` or `batch`, as the provider says it served. Left out: `standard`.
    #[schemars(with = "Option<String>")]
    pub service_tier: Option<ServiceTier>,
    /// It holds for whole requests that read more tokens than this. Left out: for any size.
    pub above_input_tokens: Option<u64>,
    /// US dollars per million input tokens, as text.
    pub input_per_mtok: Option<Dollars>,
    /// US dollars per million output tokens, as text.
    pub output_per_mtok: Option<Dollars>,
    /// US dollars per million input tokens read from the provider's cache. Left out: the input price.
    pub cache_read_per_mtok: Option<Dollars>,
    /// US dollars per million input tokens written to the provider's cache. Left out: the input price.
    pub cache_write_per_mtok: Option<Dollars>,
    /// The same, where they are kept for an hour. Left out: the price of other cache writes.
    pub cache_write_1h_per_mtok: Option<Dollars>,
    /// US dollars per million tokens of reasoning. Left out: the output price.
    pub reasoning_per_mtok: Option<Dollars>,
    /// US dollars per million tokens of audio that was read. Left out: the input price.
    pub audio_input_per_mtok: Option<Dollars>,
    /// US dollars per million tokens of audio that was made. Left out: the output price.
    pub audio_output_per_mtok: Option<Dollars>,
    /// US dollars per million tokens of images that were read. Left out: the input price.
    pub image_input_per_mtok: Option<Dollars>,
    /// US dollars per million tokens of images that were made. Left out: the output price.
    pub image_output_per_mtok: Option<Dollars>,
    /// US dollars per request.
    pub per_request: Option<Dollars>,
    /// US dollars per search by the provider's own tool.
    pub per_web_search: Option<Dollars>,
    /// US dollars per image that was read.
    pub per_input_image: Option<Dollars>,
    /// US dollars per image that was made.
    pub per_output_image: Option<Dollars>,
    /// US dollars per second of audio or video that was read.
    pub per_input_second: Option<Dollars>,
    /// US dollars per second of audio or video that was made.
    pub per_output_second: Option<Dollars>,
    /// US dollars per million characters that were read.
    pub per_input_mchar: Option<Dollars>,
    /// US dollars per million characters that were made.
    pub per_output_mchar: Option<Dollars>,
    /// The price of owned hardware, instead of prices per token.
    pub compute: Option<ComputePrice>,
}

/// Owned hardware: what an hour of it costs and how many tokens it turns out, from which a price per token follows.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ComputePrice {
    /// US dollars for an hour of the machine, as text.
    pub dollars_per_hour: Dollars,
    /// Prompt tokens it reads per second, all requests together.
    pub input_tokens_per_second: u32,
    /// Tokens it generates per second, all requests together.
    pub output_tokens_per_second: u32,
}

impl ComputePrice {
    fn rate(&self, tokens_per_second: u32) -> Result<Rate, String> {
        if tokens_per_second == 0 {
            return Err("tokens per second must be above 0".into());
        }
        decimal::rate(&self.dollars_per_hour.0, u64::from(tokens_per_second) * 3600)
    }
}

impl PriceOverride {
    /// The tier it is for.
    fn tier(&self) -> ServiceTier {
        self.service_tier.unwrap_or_default()
    }

    fn above(&self) -> u64 {
        self.above_input_tokens.unwrap_or(0)
    }

    /// Seconds since the epoch; the far past where no day is given.
    fn since_unix_s(&self) -> Result<i64, String> {
        let Some(day) = &self.from else {
            return Ok(i64::MIN);
        };
        let date = Date::parse(day, format_description!("[year]-[month]-[day]"))
            .map_err(|_| format!("`from: {day}` is not a day such as 2026-10-01"))?;
        Ok(date.midnight().assume_utc().unix_timestamp())
    }

    /// The rate of every item. Reasoning is billed as output, everything read as input unless priced apart.
    fn rates(&self) -> Result<Rates, String> {
        let mtok = |price: &Dollars| decimal::rate(&price.0, 1_000_000);
        let mut rates = match (&self.compute, &self.input_per_mtok, &self.output_per_mtok) {
            (Some(compute), None, None) => Rates::flat(
                compute.rate(compute.input_tokens_per_second)?,
                compute.rate(compute.output_tokens_per_second)?,
            ),
            (None, Some(input), Some(output)) => Rates::flat(mtok(input)?, mtok(output)?),
            (None, None, None) if self.pieces().iter().any(|(_, price, _)| price.is_some()) => {
                Rates::flat(Rate::ZERO, Rate::ZERO)
            }
            _ => {
                return Err(
                    "give `compute`, or both `input_per_mtok` and `output_per_mtok`, or a price by the piece"
                        .into(),
                );
            }
        };
        let hour = self
            .cache_write_1h_per_mtok
            .as_ref()
            .or(self.cache_write_per_mtok.as_ref());
        for (class, price) in [
            (TokenClass::CacheRead, self.cache_read_per_mtok.as_ref()),
            (TokenClass::CacheWrite, self.cache_write_per_mtok.as_ref()),
            (TokenClass::CacheWriteHour, hour),
            (TokenClass::Reasoning, self.reasoning_per_mtok.as_ref()),
            (TokenClass::AudioInput, self.audio_input_per_mtok.as_ref()),
            (TokenClass::AudioOutput, self.audio_output_per_mtok.as_ref()),
            (TokenClass::ImageInput, self.image_input_per_mtok.as_ref()),
            (TokenClass::ImageOutput, self.image_output_per_mtok.as_ref()),
        ] {
            if let Some(price) = price {
                rates.tokens[class as usize] = mtok(price)?;
            }
        }
        for (unit, price, pieces) in self.pieces() {
            if let Some(price) = price {
                rates.units[unit as usize] = decimal::rate(&price.0, pieces)?;
            }
        }
        Ok(rates)
    }

    /// What is priced by the piece, with how many pieces the price is for.
    fn pieces(&self) -> [(Unit, Option<&Dollars>, u64); Unit::COUNT] {
        [
            (Unit::Request, self.per_request.as_ref(), 1),
            (Unit::WebSearch, self.per_web_search.as_ref(), 1),
            (Unit::InputImage, self.per_input_image.as_ref(), 1),
            (Unit::OutputImage, self.per_output_image.as_ref(), 1),
            (Unit::InputMillisecond, self.per_input_second.as_ref(), 1_000),
            (Unit::OutputMillisecond, self.per_output_second.as_ref(), 1_000),
            (Unit::InputCharacter, self.per_input_mchar.as_ref(), 1_000_000),
            (Unit::OutputCharacter, self.per_output_mchar.as_ref(), 1_000_000),
        ]
    }
}

impl PriceOverrides {
    /// Whether every entry has a meaning.
    ///
    /// # Errors
    /// The position of the first that has none, and why.
    pub(crate) fn check(&self) -> Result<(), (usize, String)> {
        for (position, price) in self.0.iter().enumerate() {
            let wrong = |problem: String| (position, problem);
            price.rates().map_err(wrong)?;
            price.since_unix_s().map_err(wrong)?;
            if price.model.is_empty() {
                return Err(wrong("`model` is missing".into()));
            }
            if price.tier() == ServiceTier::Other {
                return Err(wrong("`service_tier: other` is no tier of its own".into()));
            }
            let is_base = |other: &&PriceOverride| {
                other.model == price.model
                    && other.provider == price.provider
                    && other.above() == 0
                    && other.tier() == ServiceTier::Standard
                    && other.since_unix_s() <= price.since_unix_s()
            };
            if !self.0.iter().any(|other| is_base(&other)) {
                return Err(wrong(
                    "there is no standard price for any input size to go with it; add an entry without `service_tier` \
                     and `above_input_tokens`, from the same day or before"
                        .into(),
                ));
            }
        }
        Ok(())
    }

    /// The prices in force at that time; `None` where no entry holds. An entry for the provider goes before one for any.
    pub(crate) fn look_up(&self, query: &Query<'_>) -> Option<Listed> {
        let of = |provider: Option<&str>| {
            let held = self.0.iter().filter(|price| {
                price.model == query.model
                    && price.provider.as_deref() == provider
                    && price.since_unix_s().is_ok_and(|from| from <= query.at_unix_s)
            });
            let held: Vec<&PriceOverride> = held.collect();
            (!held.is_empty()).then_some(held)
        };
        let held = of(Some(query.provider)).or_else(|| of(None))?;
        let standard = brackets(&held, ServiceTier::Standard)?;
        let tiers = ServiceTier::ALL
            .iter()
            .filter(|tier| **tier != ServiceTier::Standard);
        let tiers = tiers
            .filter_map(|tier| Some((*tier, brackets(&held, *tier)?)))
            .collect();
        Some(Listed { standard, tiers })
    }
}

/// The latest price for each input size. A tier that prices only large inputs has the standard price below.
fn brackets(held: &[&PriceOverride], tier: ServiceTier) -> Option<Vec<Bracket>> {
    let latest = |tier: ServiceTier, above: u64| {
        let same = held
            .iter()
            .filter(|price| price.tier() == tier && price.above() == above);
        // Of two from one day the first counts, as everywhere else in the configuration.
        let latest = same
            .rev()
            .max_by_key(|price| price.since_unix_s().unwrap_or(i64::MIN))?;
        Some(Bracket {
            above,
            rates: latest.rates().ok()?,
        })
    };
    let mut sizes: Vec<u64> = held
        .iter()
        .filter(|price| price.tier() == tier)
        .map(|price| price.above())
        .collect();
    if sizes.is_empty() {
        return None;
    }
    sizes.push(0);
    sizes.sort_unstable();
    sizes.dedup();
    let bracket = |above: &u64| latest(tier, *above).or_else(|| latest(ServiceTier::Standard, *above));
    sizes.iter().map(bracket).collect()
}
