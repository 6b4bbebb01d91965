//! Prices written by the operator: list-price corrections, negotiated prices, and the price of owned hardware.

use exchange::{Money, Rate, TokenClass};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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

    /// Dollars per million tokens as a rate. One dollar per million is a million pico-dollars per token, so a
    /// nano-dollar per million is a thousandth of one: rounded up.
    fn per_mtok(&self) -> Result<Rate, String> {
        Ok(Rate(self.money()?.nanos().unsigned_abs().div_ceil(1000)))
    }
}

/// Prices that take precedence over the built-in book.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct PriceOverrides(pub Vec<PriceOverride>);

/// The price of one model.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PriceOverride {
    /// The provider's name in this configuration. Left out: any provider.
    #[serde(default)]
    pub provider: Option<String>,
    /// The model name as sent to the provider.
    pub model: String,
    /// US dollars per million input tokens, as text.
    #[serde(default)]
    pub input_per_mtok: Option<Dollars>,
    /// US dollars per million output tokens, as text.
    #[serde(default)]
    pub output_per_mtok: Option<Dollars>,
    /// US dollars per million input tokens read from the provider's cache. Left out: the input price.
    #[serde(default)]
    pub cache_read_per_mtok: Option<Dollars>,
    /// US dollars per million input tokens written to the provider's cache. Left out: the input price.
    #[serde(default)]
    pub cache_write_per_mtok: Option<Dollars>,
    /// The price of owned hardware, instead of prices per token.
    #[serde(default)]
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
        let picodollars = u128::from(self.dollars_per_hour.money()?.nanos().unsigned_abs()) * 1000;
        let tokens = u128::from(tokens_per_second) * 3600;
        u64::try_from(picodollars.div_ceil(tokens))
            .map(Rate)
            .map_err(|_| "the price is out of range".into())
    }
}

impl PriceOverride {
    /// The rate of every class. Reasoning is billed as output, everything read as input unless priced apart.
    pub(crate) fn rates(&self) -> Result<[Rate; TokenClass::COUNT], String> {
        let (input, output) = match (&self.compute, &self.input_per_mtok, &self.output_per_mtok) {
            (Some(compute), None, None) => (
                compute.rate(compute.input_tokens_per_second)?,
                compute.rate(compute.output_tokens_per_second)?,
            ),
            (None, Some(input), Some(output)) => (input.per_mtok()?, output.per_mtok()?),
            _ => return Err("give either `compute`, or both `input_per_mtok` and `output_per_mtok`".into()),
        };
        let mut rates = [Rate::ZERO; TokenClass::COUNT];
        for class in TokenClass::ALL {
            rates[*class as usize] = if class.is_output() { output } else { input };
        }
        if let Some(read) = &self.cache_read_per_mtok {
            rates[TokenClass::CacheRead as usize] = read.per_mtok()?;
        }
        if let Some(write) = &self.cache_write_per_mtok {
            rates[TokenClass::CacheWrite as usize] = write.per_mtok()?;
            rates[TokenClass::CacheWriteHour as usize] = write.per_mtok()?;
        }
        Ok(rates)
    }
}
