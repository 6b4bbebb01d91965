//! `tollgate prices`: what a model costs on a day, and who says so.

use crate::config::{Config, PriceLists};
use crate::{clock, prices};
use anyhow::Context;
use clap::Subcommand;
use exchange::{Rate, ServiceTier, TokenClass, Unit};
use meter::{Bracket, ModelPrice, PriceBook, PriceOverrides, Query};
use std::io::Write;
use std::path::{Path, PathBuf};
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime};

#[derive(Subcommand)]
pub(crate) enum PricesCommand {
    /// Print the price of a model at every provider that has one.
    Show {
        /// The model's name as sent to the provider.
        model: String,
        /// Only at this provider, by its name in the configuration or in the public list.
        #[arg(long)]
        provider: Option<String>,
        /// The day, such as 2026-10-01, or the moment, such as 2026-10-01T09:30:00Z. Left out: now.
        #[arg(long)]
        at: Option<String>,
        #[arg(long, default_value = "tollgate.yaml")]
        config: PathBuf,
    },
}

/// A provider's name and where it is.
type Place = (String, Option<String>);

/// Providers asked where the configuration names none.
const PUBLIC: [&str; 12] = [
    "openai",
    "anthropic",
    "google",
    "azure",
    "aws",
    "groq",
    "mistral",
    "deepseek",
    "x-ai",
    "together",
    "fireworks",
    "openrouter",
];

pub(super) fn run(command: PricesCommand, out: &mut impl Write) -> anyhow::Result<()> {
    let PricesCommand::Show {
        model,
        provider,
        at,
        config,
    } = command;
    let at_unix_s = match &at {
        Some(text) => moment(text)?,
        None => clock::unix_us().div_euclid(1_000_000),
    };
    let (book, known) = sources(&config)?;
    let asked: Vec<Place> = match provider {
        Some(name) => {
            let url = known
                .iter()
                .find(|(known, _)| *known == name)
                .and_then(|(_, url)| url.clone());
            vec![(name, url)]
        }
        None if known.is_empty() => PUBLIC.iter().map(|name| ((*name).to_owned(), None)).collect(),
        None => known,
    };
    let found: Vec<(&str, ModelPrice)> = asked
        .iter()
        .filter_map(|(provider, base_url)| {
            let query = Query {
                provider,
                base_url: base_url.as_deref(),
                model: &model,
                at_unix_s,
            };
            Some((provider.as_str(), book.resolve(&query)?))
        })
        .collect();
    let names: Vec<&str> = asked.iter().map(|(name, _)| name.as_str()).collect();
    anyhow::ensure!(
        !found.is_empty(),
        "nobody names a price of `{model}` at {}; add one under `prices`, or a newer list under `price_lists`",
        names.join(", ")
    );
    let when = OffsetDateTime::from_unix_timestamp(at_unix_s)?.format(&Rfc3339)?;
    for (provider, price) in &found {
        let (source, version) = (price.source().as_str(), price.version());
        writeln!(
            out,
            "{model} at {provider} on {when}: from {source}, price version {version}"
        )?;
        for (tier, brackets) in price.tiers() {
            show(out, tier, brackets)?;
        }
    }
    Ok(())
}

/// The book that the configuration makes and its providers; the built-in list where there is no configuration.
fn sources(path: &Path) -> anyhow::Result<(PriceBook, Vec<Place>)> {
    if !path.exists() {
        return Ok((
            prices::read(&PriceOverrides::default(), &PriceLists::default())?,
            Vec::new(),
        ));
    }
    let config = Config::load(path)?;
    let book = prices::read(&config.prices, &config.price_lists)?;
    let known = config.providers.iter();
    let known = known.map(|provider| (provider.name.to_string(), Some(provider.base.to_string())));
    Ok((book, known.collect()))
}

fn moment(text: &str) -> anyhow::Result<i64> {
    if let Ok(date) = Date::parse(text, format_description!("[year]-[month]-[day]")) {
        return Ok(date.midnight().assume_utc().unix_timestamp());
    }
    let moment = OffsetDateTime::parse(text, &Rfc3339).with_context(|| {
        format!("`--at {text}` is neither a day such as 2026-10-01 nor a moment such as 2026-10-01T09:30:00Z")
    })?;
    Ok(moment.unix_timestamp())
}

/// One line per bracket and item; classes that cost what their parent does are left out.
fn show(out: &mut impl Write, tier: ServiceTier, brackets: &[Bracket]) -> std::io::Result<()> {
    for bracket in brackets {
        let size = match bracket.above() {
            0 => String::new(),
            above => format!(", above {above} input tokens"),
        };
        writeln!(out, "  {tier}{size}")?;
        for class in TokenClass::ALL {
            let parent = if class.is_output() {
                TokenClass::Output
            } else {
                TokenClass::Input
            };
            let rate = bracket.tokens(*class);
            if *class == parent || rate != bracket.tokens(parent) {
                writeln!(
                    out,
                    "    {:<16} ${} per million tokens",
                    class.as_str(),
                    dollars(rate, 1_000_000)
                )?;
            }
        }
        for unit in Unit::ALL.iter().filter(|unit| bracket.unit(**unit) > Rate::ZERO) {
            writeln!(
                out,
                "    {:<16} ${} each",
                unit.as_str(),
                dollars(bracket.unit(*unit), 1)
            )?;
        }
    }
    Ok(())
}

/// What `count` cost in dollars, with no digit lost and none idle beyond the cents.
fn dollars(rate: Rate, count: u64) -> String {
    const DOLLAR: u128 = 1_000_000_000_000;
    let picos = u128::from(rate.0) * u128::from(count);
    let digits = format!("{:012}", picos % DOLLAR);
    let shown = digits.trim_end_matches('0').len().max(2);
    format!("{}.{}", picos / DOLLAR, &digits[..shown])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(arguments: PricesCommand) -> Result<String, String> {
        let mut out = Vec::new();
        run(arguments, &mut out).map_err(|error| error.to_string())?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn ask(model: &str, provider: Option<&str>, at: &str, config: PathBuf) -> PricesCommand {
        PricesCommand::Show {
            model: model.into(),
            provider: provider.map(Into::into),
            at: Some(at.into()),
            config,
        }
    }

    #[test]
    fn a_price_is_shown_as_of_the_day() {
        let nowhere = || PathBuf::from("/nonexistent/tollgate.yaml");
        let before = output(ask("o3", Some("openai"), "2025-06-09", nowhere())).unwrap();
        assert!(
            before.contains("o3 at openai on 2025-06-09T00:00:00Z: from genai-prices"),
            "{before}"
        );
        assert!(
            before.contains("input            $10.00 per million tokens") && !before.contains("flex"),
            "{before}"
        );
        let after = output(ask("o3", Some("openai"), "2026-11-01T12:00:00Z", nowhere())).unwrap();
        assert!(
            after.contains("  flex\n    input            $1.00 per million"),
            "{after}"
        );
        assert!(after.contains("$0.01 each"), "{after}");
    }

    #[test]
    fn one_s_own_prices_and_lists_are_shown_and_mistakes_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("t.yaml");
        std::fs::write(
            folder.path().join("map.json"),
            r#"{"main/b": {"input_cost_per_token": 1.5e-07, "output_cost_per_token": 6e-07}}"#,
        )
        .unwrap();
        let text = "
providers: {main: {dialect: openai_chat, base_url: http://127.0.0.1:1/v1}}
price_lists: {litellm: map.json}
prices:
  - {model: a, input_per_mtok: '1', output_per_mtok: '2'}
  - {model: a, from: 2026-10-01, input_per_mtok: '0.123456', output_per_mtok: '2'}
";
        std::fs::write(&config, text).unwrap();
        let show = |model: &str, at: &str| output(ask(model, None, at, config.clone()));
        assert!(show("a", "2026-09-30").unwrap().contains("$1.00 per million"));
        let later = show("a", "2026-10-01").unwrap();
        assert!(
            later.contains("from configuration") && later.contains("$0.123456 per million"),
            "{later}"
        );
        assert!(show("b", "2026-10-01").unwrap().contains("from litellm"));
        assert!(
            show("c", "2026-10-01")
                .unwrap_err()
                .contains("nobody names a price of `c` at main")
        );
        assert!(
            show("a", "yesterday")
                .unwrap_err()
                .contains("2026-10-01T09:30:00Z")
        );
        std::fs::write(folder.path().join("map.json"), "{}").unwrap();
        let error = show("b", "2026-10-01").unwrap_err();
        assert!(
            error.contains("price_lists.litellm") && error.contains("LiteLLM"),
            "{error}"
        );
    }
}
