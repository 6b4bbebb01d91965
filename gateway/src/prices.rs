//! The price book as it lives: read from files, put on every deployment, renewed when a file or the day changes.
//!
//! Owns: when prices are read and put in force. Refuses to know: what a price is made of. Invariants: a source with a mistake
//! changes nothing; a deployment's price is replaced whole, so that an exchange under way keeps the one it began with.

use crate::config::{Config, PriceLists};
use crate::fleet::{Billed, Fleet, Price};
use arc_swap::ArcSwap;
use exchange::Money;
use meter::{PriceBook, PriceError, PriceOverrides, Query, Sources};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// Prices may change at any full minute: lists have prices by the day and by the time of day.
const MINUTE_US: i64 = 60_000_000;

/// A source of prices with a mistake.
#[derive(Debug, thiserror::Error)]
#[error("{at}: {problem}")]
pub(crate) struct PricesError {
    /// The setting it is about.
    pub(crate) at: String,
    pub(crate) problem: String,
}

/// Reads every source into a book.
///
/// # Errors
/// The first source with a mistake.
pub(crate) fn read(overrides: &PriceOverrides, lists: &PriceLists) -> Result<PriceBook, PricesError> {
    let file = |at: &str, path: &Option<PathBuf>| {
        let Some(path) = path else {
            return Ok(None);
        };
        std::fs::read(path).map(Some).map_err(|error| PricesError {
            at: at.to_owned(),
            problem: format!("{} cannot be read: {error}", path.display()),
        })
    };
    let (litellm, genai_prices) = ("price_lists.litellm", "price_lists.genai_prices");
    let map = file(litellm, &lists.litellm)?;
    let list = file(genai_prices, &lists.genai_prices)?;
    let sources = Sources {
        overrides,
        litellm: map.as_deref(),
        genai_prices: list.as_deref(),
    };
    PriceBook::load(sources).map_err(|error| {
        let (at, problem) = match error {
            PriceError::Override { index, problem, .. } => (format!("prices[{}]", index - 1), problem),
            error @ PriceError::LiteLlm(_) => (litellm.to_owned(), error.to_string()),
            error @ PriceError::GenaiPrices(_) => (genai_prices.to_owned(), error.to_string()),
        };
        PricesError { at, problem }
    })
}

/// The book in force, for whoever needs a price between two renewals.
pub(crate) struct Pricing {
    book: ArcSwap<PriceBook>,
    /// What a model without a price may cost per request.
    ceiling: Option<Money>,
}

impl Pricing {
    pub(crate) fn new(book: PriceBook, ceiling: Option<Money>) -> Self {
        Self {
            book: ArcSwap::from_pointee(book),
            ceiling,
        }
    }

    /// What a deployment costs at a moment.
    pub(crate) fn price(&self, billed: &Billed, now_unix_us: i64) -> Price {
        let book = self.book.load();
        let query = Query {
            provider: &billed.provider,
            base_url: billed.base_url.as_deref(),
            model: &billed.model,
            at_unix_s: now_unix_us.div_euclid(1_000_000),
        };
        match (book.resolve(&query), self.ceiling) {
            (Some(price), _) => Price::Known(price),
            (None, Some(ceiling)) => Price::Ceiling(ceiling, book.version().clone()),
            (None, None) => Price::Unknown,
        }
    }
}

/// When a file was written and how long it is; `None` where it is not there.
type Stamp = Option<(SystemTime, u64)>;

/// Keeps the fleet's prices up to date.
pub(crate) struct Renewal {
    pricing: Arc<Pricing>,
    config: PathBuf,
    lists: PriceLists,
    stamps: Vec<Stamp>,
    minute: i64,
}

impl Renewal {
    pub(crate) fn new(path: &Path, config: &Config, pricing: Arc<Pricing>) -> Self {
        let mut renewal = Self {
            pricing,
            config: path.to_owned(),
            lists: config.price_lists.clone(),
            stamps: Vec::new(),
            minute: 0,
        };
        renewal.stamps = renewal.stamps_now();
        renewal
    }

    /// Reads the sources again if one has changed, and puts the prices of this minute in force.
    pub(crate) fn renew(&mut self, fleet: &Fleet, now_unix_us: i64) {
        let minute = now_unix_us.div_euclid(MINUTE_US);
        if self.stamps_now() != self.stamps {
            self.read_again(fleet, now_unix_us);
        } else if minute != self.minute {
            self.put_in_force(fleet, now_unix_us);
        }
        self.minute = minute;
    }

    /// Reads the sources again. One with a mistake is logged, and the prices in use stay.
    pub(crate) fn read_again(&mut self, fleet: &Fleet, now_unix_us: i64) {
        // Taken first: a file that changes while it is read is read once more.
        let stamps = self.stamps_now();
        let read = Config::load(&self.config)
            .map_err(anyhow::Error::from)
            .and_then(|config| Ok((read(&config.prices, &config.price_lists)?, config)));
        self.stamps = stamps;
        match read {
            Err(error) => tracing::error!("{error:#}; the prices in use stay"),
            Ok((book, _)) if book.version() == self.pricing.book.load().version() => {}
            Ok((book, config)) => {
                let before = self.pricing.book.swap(Arc::new(book));
                let version = self.pricing.book.load();
                tracing::info!(from = %before.version(), to = %version.version(), "prices were read again");
                self.lists = config.price_lists;
                self.stamps = self.stamps_now();
                self.put_in_force(fleet, now_unix_us);
            }
        }
    }

    fn put_in_force(&self, fleet: &Fleet, now_unix_us: i64) {
        for deployment in fleet.iter() {
            let price = self.pricing.price(&deployment.billed, now_unix_us);
            if **deployment.price.load() != price {
                tracing::info!(deployment = %deployment.id, version = %self.pricing.book.load().version(), "a new price is in force");
                deployment.price.store(price.into());
            }
        }
    }

    fn stamps_now(&self) -> Vec<Stamp> {
        let lists = [self.lists.litellm.as_deref(), self.lists.genai_prices.as_deref()];
        let files = std::iter::once(&*self.config).chain(lists.into_iter().flatten());
        let stamp = |path: &Path| {
            let found = std::fs::metadata(path).ok()?;
            Some((found.modified().ok()?, found.len()))
        };
        files.map(stamp).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::Upstream;
    use exchange::{ServiceTier, TokenClass, Usage, UsageSource};
    use router_policies::Policy;

    const POLICY: &str = "
version: 1
deployments:
  - {id: first, provider: main, model: a, class: cheap, context_tokens: 1000}
routes:
  - {name: all, prefer: [first]}
";

    struct Scene {
        folder: tempfile::TempDir,
        fleet: Fleet,
        renewal: Renewal,
    }

    const NOW: i64 = 1_795_500_000_000_000;

    fn configuration(prices: &str) -> String {
        format!(
            "providers: {{main: {{dialect: openai_chat, base_url: http://127.0.0.1:1/v1}}}}\n\
             price_lists: {{litellm: map.json}}\nprices: [{prices}]\n"
        )
    }

    fn map(dollars: &str) -> String {
        format!(r#"{{"main/a": {{"input_cost_per_token": {dollars}, "output_cost_per_token": 1e-06}}}}"#)
    }

    impl Scene {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("t.yaml"), configuration("")).unwrap();
            std::fs::write(folder.path().join("map.json"), map("1e-06")).unwrap();
            let path = folder.path().join("t.yaml");
            let mut config = Config::load(&path).unwrap();
            let book = read(&config.prices, &config.price_lists).unwrap();
            let pricing = Arc::new(Pricing::new(book, None));
            let renewal = Renewal::new(&path, &config, pricing.clone());
            let upstream = Arc::new(Upstream::new(config.providers.remove(0)).unwrap());
            let policy = Policy::parse(POLICY, "p").unwrap();
            let fleet = Fleet::new(&policy, &[upstream], |billed| pricing.price(billed, NOW));
            let fleet = fleet.unwrap();
            Self {
                folder,
                fleet,
                renewal,
            }
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.folder.path().join(name), text).unwrap();
        }

        /// What a million input tokens cost, in nano-dollars, and under which version.
        fn costs(&self) -> (i64, Arc<str>) {
            let usage = Usage::new(UsageSource::Reported).with(TokenClass::Input, 1_000_000);
            let charge = self
                .fleet
                .get(0)
                .price
                .load()
                .charge(&usage, ServiceTier::Standard);
            (charge.total.nanos(), charge.price_version)
        }
    }

    #[test]
    fn a_changed_list_is_in_force_and_a_broken_one_changes_nothing() {
        let mut scene = Scene::new();
        let (first, version) = scene.costs();
        assert_eq!(first, 1_000_000_000);
        scene.write("map.json", &map("2.5e-06"));
        scene.renewal.renew(&scene.fleet, NOW);
        let (second, renewed) = scene.costs();
        assert_eq!(second, 2_500_000_000);
        assert_ne!(version, renewed, "a charge names the version it was made under");
        scene.write("map.json", "{ not json");
        scene.renewal.renew(&scene.fleet, NOW);
        assert_eq!(scene.costs(), (second, renewed));
        scene.write("map.json", &map("1e-06"));
        scene.renewal.renew(&scene.fleet, NOW);
        assert_eq!(
            scene.costs(),
            (first, version),
            "the same sources are the same version"
        );
    }

    #[test]
    fn a_price_of_one_s_own_is_in_force_from_its_day() {
        let mut scene = Scene::new();
        scene.write(
            "t.yaml",
            &configuration("{model: a, from: 2026-12-01, input_per_mtok: '7', output_per_mtok: '7'}"),
        );
        scene.renewal.renew(&scene.fleet, NOW);
        assert_eq!(scene.costs().0, 1_000_000_000, "the entry is not yet in force");
        // 2026-12-01T00:00:00Z.
        scene.renewal.renew(&scene.fleet, 1_796_083_200_000_000);
        assert_eq!(scene.costs().0, 7_000_000_000);
    }
}
