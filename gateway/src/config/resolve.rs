//! From the document to what the gateway runs on: units, paths, secrets, the account tree, and what a schema cannot say.
//!
//! Owns: the meaning of each key and the checks on it. Refuses to know: YAML, and where in the file a key stands.
//! Invariants: goes on after a mistake; what it returns is only used if there was none.

use super::document::{self, Document};
use super::identity;
use super::mistakes::Mistakes;
use super::{
    Admin, BaseUrl, Breaker, Config, Limits, Listen, Log, PriceLists, Provider, Redis, Secret, TlsFiles,
};
use crate::prices;
use exchange::{AccountPath, Dialect, Grants, KeyHash};
use ledger::{
    AccountSpec, BudgetSpec, Database, Fsync, Increase, IpNet, KeySpec, Leases, Scope, WhenAway, Zone,
    parse_network,
};
use limits::Rule;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The shortest admin secret that is accepted, in characters.
const ADMIN_SECRET: usize = 16;
/// The largest body limit that makes sense, in MiB: a body is held in memory.
const BODY_MIB: usize = 1024;

impl Document {
    pub(super) fn resolve(&self, folder: &Path, mistakes: &mut Mistakes<'_>) -> Config {
        let mut tree = Tree::default();
        tree.grow(self, mistakes);
        let file = |path: &Option<String>| path.as_ref().map(|path| folder.join(path));
        let price_lists = PriceLists {
            litellm: file(&self.price_lists.litellm),
            genai_prices: file(&self.price_lists.genai_prices),
        };
        if let Err(error) = prices::read(&self.prices, &price_lists) {
            mistakes.add(error.at, error.problem);
        }
        let ceiling = self.unpriced_ceiling_dollars.as_ref();
        let unpriced_ceiling =
            ceiling.and_then(|dollars| mistakes.keep("unpriced_ceiling_dollars", dollars.money()));
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.log.filter) {
            mistakes.add("log.filter", error.to_string());
        }
        let providers = self.providers.iter();
        Config {
            listen: self.listeners(folder, mistakes),
            admin: self.admin(folder, mistakes),
            trusted_proxies: networks(&self.trusted_proxies, "trusted_proxies", mistakes),
            label_headers: label_headers(&self.label_headers, mistakes),
            limits: self.limits.resolve(mistakes),
            database: self.store.database(folder, mistakes),
            journal: folder.join(&self.store.journal),
            fsync: self.store.fsync(mistakes),
            leases: self.store.leases(mistakes),
            policy: folder.join(&self.policy),
            records: file(&self.records),
            keeps_decisions: self.store.decisions,
            predictor: file(&self.predictor),
            providers: providers
                .filter_map(|(name, provider)| provider.resolve(name, folder, mistakes))
                .collect(),
            accounts: tree.accounts,
            keys: tree.keys,
            rate_limits: tree.rate_limits,
            redis: self.redis.resolve(folder, mistakes),
            prices: self.prices.clone(),
            price_lists,
            batch: self.batch.resolve(folder, mistakes),
            unpriced_ceiling,
            webhook: self.alerts.resolve(folder, mistakes),
            issuers: identity::issuers(&self.oidc, mistakes),
            log: Log {
                filter: self.log.filter.clone(),
                json: self.log.json,
            },
        }
    }

    fn listeners(&self, folder: &Path, mistakes: &mut Mistakes<'_>) -> Vec<Listen> {
        if self.listen.is_empty() {
            mistakes.add("listen", "has no listener: nobody could call");
        }
        let mut listen: Vec<Listen> = Vec::new();
        for (index, listener) in self.listen.iter().enumerate() {
            let at = format!("listen[{index}]");
            let address = listener.address;
            let taken = listen.iter().any(|other| other.address == address) || address == self.admin.address;
            if address.port() != 0 && taken {
                mistakes.hinted(
                    &at,
                    format!("{address} is used twice"),
                    "give each listener, `admin` too, an address of its own",
                );
            }
            let tls = listener.tls.as_ref();
            listen.push(Listen {
                address,
                tls: tls.map(|tls| tls.resolve(folder, &at, mistakes)),
            });
        }
        listen
    }

    fn admin(&self, folder: &Path, mistakes: &mut Mistakes<'_>) -> Admin {
        let address = self.admin.address;
        let reference = self.admin.key.as_ref();
        let key =
            reference.and_then(|reference| mistakes.keep("admin.key", Secret::resolve(reference, folder)));
        match &key {
            Some(key) if key.expose().chars().count() < ADMIN_SECRET => mistakes.hinted(
                "admin.key",
                format!("is shorter than {ADMIN_SECRET} characters"),
                "`openssl rand -hex 32` makes a good one",
            ),
            None if reference.is_none() && !address.ip().is_loopback() => mistakes.hinted(
                "admin",
                format!("listens on {address}, which others can reach, without a key"),
                "set `admin.key` to `env:NAME` or `file:PATH`, or listen on 127.0.0.1",
            ),
            _ => {}
        }
        let tls = self.admin.tls.as_ref();
        Admin {
            address,
            tls: tls.map(|tls| tls.resolve(folder, "admin", mistakes)),
            key,
        }
    }
}

impl document::Tls {
    /// `at`: the listener.
    fn resolve(&self, folder: &Path, at: &str, mistakes: &mut Mistakes<'_>) -> TlsFiles {
        let mut file = |key: &str, path: &str| existing(folder, path, format!("{at}.tls.{key}"), mistakes);
        TlsFiles {
            certificate: file("certificate_file", &self.certificate_file),
            key: file("key_file", &self.key_file),
        }
    }
}

/// Headers that carry secrets, which would be kept beside decisions, and those that are read anyway.
fn label_headers(written: &[String], mistakes: &mut Mistakes<'_>) -> Vec<http::HeaderName> {
    let mut headers = Vec::new();
    for (index, text) in written.iter().enumerate() {
        let at = format!("label_headers[{index}]");
        let Ok(name) = http::HeaderName::try_from(text.as_str()) else {
            mistakes.add(at, format!("`{text}` is no name of a header"));
            continue;
        };
        let lower = name.as_str();
        let has = |part: &&str| lower.contains(part);
        let ends = |end: &&str| lower.ends_with(end);
        if [
            "authorization",
            "api-key",
            "apikey",
            "cookie",
            "secret",
            "password",
        ]
        .iter()
        .any(has)
            || ["-token", "-key", "-signature"].iter().any(ends)
        {
            mistakes.hinted(
                at,
                format!("`{text}` carries a secret, and labels are kept with decisions"),
                "name headers that say what a request is, not who may make it",
            );
        } else if lower.starts_with("x-tollgate-") {
            mistakes.hinted(
                at,
                format!("`{text}` is the gateway's own"),
                "send `x-tollgate-tag-NAME` for the label NAME",
            );
        } else if headers.contains(&name) {
            mistakes.add(at, format!("`{text}` is there twice"));
        } else {
            headers.push(name);
        }
    }
    headers
}

/// A file that must be there.
fn existing(folder: &Path, path: &str, at: String, mistakes: &mut Mistakes<'_>) -> PathBuf {
    let path = folder.join(path);
    if let Err(error) = std::fs::File::open(&path) {
        mistakes.add(at, format!("{} cannot be read: {error}", path.display()));
    }
    path
}

/// A time limit; one of nothing would fail every request.
fn limit(length: Duration, at: impl Into<String>, mistakes: &mut Mistakes<'_>) -> Duration {
    if length.is_zero() {
        mistakes.add(at, "must be above 0");
    }
    length
}

impl document::Limits {
    fn resolve(&self, mistakes: &mut Mistakes<'_>) -> Limits {
        if !(1..=BODY_MIB).contains(&self.body_mib) {
            mistakes.add("limits.body_mib", format!("must be from 1 to {BODY_MIB}"));
        }
        let mut seconds =
            |key: &str, length: u64| limit(Duration::from_secs(length), format!("limits.{key}"), mistakes);
        Limits {
            body_bytes: self.body_mib.min(BODY_MIB) << 20,
            body_timeout: seconds("body_timeout_s", self.body_timeout_s),
            write_timeout: seconds("write_timeout_s", self.write_timeout_s),
            keepalive: seconds("keepalive_s", self.keepalive_s),
            drain: Duration::from_secs(self.drain_s),
            queue_timeout: Duration::from_millis(self.queue_timeout_ms),
            budget_wait: Duration::from_millis(self.budget_wait_ms),
        }
    }
}

impl document::Store {
    fn database(&self, folder: &Path, mistakes: &mut Mistakes<'_>) -> Database {
        let file = Database::Sqlite(folder.join(&self.database));
        let Some(postgres) = &self.postgres else {
            return file;
        };
        let Some(url) = mistakes.keep("store.postgres.url", Secret::resolve(&postgres.url, folder)) else {
            return file;
        };
        if !url.expose().starts_with("postgres://") && !url.expose().starts_with("postgresql://") {
            mistakes.hinted(
                "store.postgres.url",
                "holds no Postgres URL",
                "it looks like postgres://user:password@host:5432/database",
            );
        }
        Database::Postgres {
            url: url.expose().to_owned(),
            connections: postgres.connections,
        }
    }

    fn leases(&self, mistakes: &mut Mistakes<'_>) -> Leases {
        let when_away = match (self.when_away, &self.allow_dollars) {
            (document::WhenAway::FailClosed, _) => WhenAway::FailClosed,
            (document::WhenAway::AllowUpTo, Some(dollars)) => WhenAway::AllowUpTo(
                mistakes
                    .keep("store.allow_dollars", dollars.money())
                    .unwrap_or_default(),
            ),
            (document::WhenAway::AllowUpTo, None) => {
                mistakes.hinted(
                    "store.when_away",
                    "does not say how much",
                    "set `store.allow_dollars`",
                );
                WhenAway::FailClosed
            }
        };
        let lapse_after = Duration::from_secs(self.lapse_after_s);
        Leases {
            when_away,
            lapse_after: limit(lapse_after, "store.lapse_after_s", mistakes),
            outage: Duration::from_secs(self.outage_s),
            kept: ledger::Kept {
                rows_days: self.keep_days,
                secrets_days: self.keep_secrets_days,
            },
        }
    }

    fn fsync(&self, mistakes: &mut Mistakes<'_>) -> Fsync {
        let interval = Duration::from_millis(self.fsync_interval_ms);
        match self.fsync {
            document::Fsync::Never => Fsync::Never,
            document::Fsync::Interval => Fsync::Every(limit(interval, "store.fsync_interval_ms", mistakes)),
            document::Fsync::Each => Fsync::Each,
        }
    }
}

/// Accounts and keys, flattened from the tree org › team › workflow › key.
#[derive(Default)]
struct Tree {
    accounts: Vec<AccountSpec>,
    keys: Vec<KeySpec>,
    rate_limits: Vec<(AccountPath, Rule)>,
}

impl Tree {
    fn grow(&mut self, document: &Document, mistakes: &mut Mistakes<'_>) {
        for (org, node) in &document.accounts {
            let path = AccountPath {
                org: org.as_str().into(),
                team: None,
                workflow: None,
                key: None,
            };
            let at = format!("accounts.{org}");
            self.add(&path, (org, &node.account()), &at, mistakes);
            for (team, node) in &node.teams {
                let path = AccountPath {
                    team: Some(team.as_str().into()),
                    ..path.clone()
                };
                let at = format!("{at}.teams.{team}");
                self.add(&path, (team, &node.account()), &at, mistakes);
                for (workflow, node) in &node.workflows {
                    let path = AccountPath {
                        workflow: Some(workflow.as_str().into()),
                        ..path.clone()
                    };
                    let at = format!("{at}.workflows.{workflow}");
                    self.add(&path, (workflow, node), &at, mistakes);
                }
            }
        }
    }

    fn add(
        &mut self,
        path: &AccountPath,
        (name, account): (&str, &document::Account),
        at: &str,
        mistakes: &mut Mistakes<'_>,
    ) {
        check_name(name, at, mistakes);
        let budgets = budgets(&account.budgets, at, mistakes);
        self.accounts.push(AccountSpec {
            path: path.clone(),
            budgets,
        });
        self.limit(path, account.rate_limits, at, mistakes);
        for (name, key) in &account.keys {
            let at = format!("{at}.keys.{name}");
            check_name(name, &at, mistakes);
            let own = AccountPath {
                key: Some(name.as_str().into()),
                ..path.clone()
            };
            self.limit(&own, key.rate_limits, &at, mistakes);
            if let Some(hash) = self.hash(&key.hash, &format!("{at}.hash"), mistakes) {
                self.keys.push(KeySpec {
                    hash,
                    account: own,
                    grants: Grants {
                        models: key.models.iter().map(|model| model.as_str().into()).collect(),
                        classes: key.classes.clone(),
                    },
                    networks: networks(&key.networks, &format!("{at}.networks"), mistakes),
                    budgets: self::budgets(&key.budgets, &at, mistakes),
                    disabled: key.disabled,
                });
            }
        }
    }

    fn limit(
        &mut self,
        path: &AccountPath,
        limits: document::RateLimits,
        at: &str,
        mistakes: &mut Mistakes<'_>,
    ) {
        let rule = Rule {
            requests_per_minute: limits.requests_per_minute,
            tokens_per_minute: limits.tokens_per_minute,
            concurrency: limits.concurrency,
        };
        check_rule(rule, at, mistakes);
        if !rule.is_empty() {
            self.rate_limits.push((path.clone(), rule));
        }
    }

    fn hash(&self, text: &str, at: &str, mistakes: &mut Mistakes<'_>) -> Option<KeyHash> {
        let hash = text.strip_prefix("sha256:").and_then(KeyHash::from_hex);
        let Some(hash) = hash else {
            mistakes.hinted(
                at,
                "is not `sha256:` and 64 hexadecimal digits",
                "`tollgate key create` makes a key and prints its hash",
            );
            return None;
        };
        if let Some(other) = self.keys.iter().find(|known| known.hash == hash) {
            let problem = format!("is the hash of the key {} too", other.account);
            mistakes.hinted(at, problem, "one key belongs to one account; make another");
            return None;
        }
        Some(hash)
    }
}

fn networks(written: &[String], at: &str, mistakes: &mut Mistakes<'_>) -> Vec<IpNet> {
    let read = written.iter().enumerate();
    read.filter_map(|(index, text)| mistakes.keep(format!("{at}[{index}]"), parse_network(text)))
        .collect()
}

/// A limit of nothing would refuse every request for ever.
fn check_rule(rule: Rule, at: &str, mistakes: &mut Mistakes<'_>) {
    for (key, limit) in [
        ("requests_per_minute", rule.requests_per_minute),
        ("tokens_per_minute", rule.tokens_per_minute),
        ("concurrency", rule.concurrency),
    ] {
        if limit == Some(0) {
            let at = format!("{at}.rate_limits.{key}");
            mistakes.hinted(
                at,
                "of 0 lets nothing through",
                "leave it out for any number; a key is switched off by `disabled`",
            );
        }
    }
}

impl document::Redis {
    fn resolve(&self, folder: &Path, mistakes: &mut Mistakes<'_>) -> Option<Redis> {
        let url = self.url.as_ref()?;
        let url = if url.starts_with("redis") && url.contains('@') {
            Err("carries a password; put it into a file or the environment and write `file:PATH` or `env:NAME`".to_owned())
        } else if url.starts_with("redis://") {
            Ok(Secret::plain(url))
        } else {
            Secret::resolve(url, folder)
        };
        let url = mistakes.keep("redis.url", url);
        Some(Redis {
            timeout: limit(
                Duration::from_millis(self.timeout_ms),
                "redis.timeout_ms",
                mistakes,
            ),
            prefix: self.prefix.clone(),
            url: url?,
        })
    }
}

/// Names are shown as `acme/search/nightly/ci`, with `-` for an absent level.
fn check_name(name: &str, at: &str, mistakes: &mut Mistakes<'_>) {
    if !exchange::is_account_name(name) {
        mistakes.add(at, "is no name: it must not be empty or `-` or contain `/`");
    }
}

fn budgets(budgets: &[document::Budget], at: &str, mistakes: &mut Mistakes<'_>) -> Vec<BudgetSpec> {
    let resolved = budgets.iter().enumerate().filter_map(|(index, budget)| {
        let at = |key: &str| format!("{at}.budgets[{index}].{key}");
        let zone = budget.zone.as_deref();
        let zone = zone.map_or(Some(Zone::default()), |name| {
            mistakes.keep(at("zone"), Zone::parse(name))
        });
        if budget.alerts_percent.contains(&0) {
            mistakes.add(at("alerts_percent"), "has a 0: an alert at nothing says nothing");
        }
        let tags = budget.tags.iter();
        Some(BudgetSpec {
            limit: mistakes.keep(at("limit_dollars"), budget.limit_dollars.money())?,
            period: budget.per,
            zone: zone?,
            enforcement: budget.enforcement,
            thresholds: budget.alerts_percent.clone(),
            scope: Scope {
                models: budget.models.iter().map(|model| model.as_str().into()).collect(),
                classes: budget.classes.clone(),
                tags: tags
                    .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
                    .collect(),
            },
            increase: Increase::default(),
        })
    });
    let resolved: Vec<BudgetSpec> = resolved.collect();
    for (index, budget) in resolved.iter().enumerate() {
        let same = |other: &BudgetSpec| {
            let key = |spec: &BudgetSpec| (spec.period, spec.enforcement, spec.scope.clone());
            key(other) == key(budget) && other.zone == budget.zone
        };
        if resolved[..index].iter().any(same) {
            let problem = "is for the same window and traffic as one before it";
            mistakes.hinted(format!("{at}.budgets[{index}]"), problem, "keep the smaller");
        }
    }
    resolved
}

impl document::Provider {
    fn resolve(&self, name: &str, folder: &Path, mistakes: &mut Mistakes<'_>) -> Option<Provider> {
        let at = |key: &str| format!("providers.{name}.{key}");
        let base = self.base(name, mistakes);
        let credential = self.credential.as_ref();
        let credential = credential
            .and_then(|reference| mistakes.keep(at("credential"), Secret::resolve(reference, folder)));
        for (header, value) in &self.headers {
            let name = http::HeaderName::try_from(header.as_str())
                .map(drop)
                .map_err(drop);
            let value = http::HeaderValue::try_from(value.as_str())
                .map(drop)
                .map_err(drop);
            if name.and(value).is_err() {
                mistakes.add(at(&format!("headers.{header}")), "is not a valid HTTP header");
            }
        }
        if self.max_in_flight == Some(0) {
            mistakes.hinted(
                at("max_in_flight"),
                "of 0 lets nothing through",
                "leave it out for any number",
            );
        }
        let pace = Rule {
            requests_per_minute: self.rate_limits.requests_per_minute,
            tokens_per_minute: self.rate_limits.tokens_per_minute,
            concurrency: None,
        };
        check_rule(pace, &format!("providers.{name}"), mistakes);
        let mut timeout = |key: &str, length: u64| limit(Duration::from_millis(length), at(key), mistakes);
        let connect_timeout = timeout("connect_timeout_ms", self.connect_timeout_ms);
        let first_byte_timeout = timeout("first_byte_timeout_ms", self.first_byte_timeout_ms);
        let gap_timeout = timeout("gap_timeout_ms", self.gap_timeout_ms);
        let ca_file = self.ca_file.as_ref();
        let ca_file = ca_file.map(|path| existing(folder, path, at("ca_file"), mistakes));
        let base = base?;
        let dialect = match self.dialect {
            document::WireFormat::OpenaiChat => Dialect::OpenaiChat,
            document::WireFormat::Anthropic => Dialect::Anthropic,
        };
        if let Some(batch) = self.batch {
            batch.check(&format!("providers.{name}"), (dialect, &base), mistakes);
        }
        Some(Provider {
            name: name.into(),
            dialect,
            ca_file,
            base,
            credential,
            http2: self.http2,
            streams: self.streams,
            reports_cost: self.reports_cost,
            reports_load: self.reports_load,
            connect_timeout,
            first_byte_timeout,
            gap_timeout,
            max_in_flight: self.max_in_flight,
            pace,
            max_queued: self.max_queued,
            breaker: Breaker {
                failures: self.breaker.failures.max(1),
                open: Duration::from_millis(self.breaker.open_ms),
            },
            headers: self.headers.clone().into_iter().collect(),
            batch: self.batch,
            flex: self.flex,
        })
    }

    fn base(&self, name: &str, mistakes: &mut Mistakes<'_>) -> Option<BaseUrl> {
        let at = format!("providers.{name}.base_url");
        let url = match (&self.base_url, name) {
            (Some(url), _) => url.as_str(),
            (None, "openai") => "https://api.openai.com/v1",
            (None, "anthropic") => "https://api.anthropic.com/v1",
            (None, "gemini") => "https://generativelanguage.googleapis.com/v1beta/openai",
            (None, _) => {
                let problem = "is missing, and this provider is not a known one";
                mistakes.hinted(at, problem, "write it up to and including `/v1`");
                return None;
            }
        };
        mistakes.keep(at, BaseUrl::parse(url))
    }
}
