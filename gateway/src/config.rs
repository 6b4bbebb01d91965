//! The configuration: a YAML document, checked and resolved into what the gateway runs on.
//!
//! Owns: the document's shape and defaults, secrets by reference, the meaning of paths. Refuses to know: how any of
//! it is used. Invariants: an unknown key is an error; a secret is never written in the file and never printed.

mod document;
pub(crate) mod key;
mod secret;

pub(crate) use document::Document;
pub(crate) use secret::Secret;

use exchange::{AccountPath, Dialect, Grants, KeyHash, Money};
use ledger::{AccountSpec, BudgetSpec, KeySpec};
use router_policies::DocumentError;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Everything the gateway runs on.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) listen: Vec<Listen>,
    pub(crate) admin: Admin,
    pub(crate) limits: Limits,
    pub(crate) database: PathBuf,
    pub(crate) journal: PathBuf,
    pub(crate) policy: PathBuf,
    pub(crate) providers: Vec<Provider>,
    pub(crate) accounts: Vec<AccountSpec>,
    pub(crate) keys: Vec<KeySpec>,
    pub(crate) prices: meter::PriceOverrides,
    pub(crate) unpriced_ceiling: Option<Money>,
    pub(crate) log: Log,
}

#[derive(Clone, Debug)]
pub(crate) struct Listen {
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<TlsFiles>,
}

#[derive(Clone, Debug)]
pub(crate) struct TlsFiles {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) address: SocketAddr,
    pub(crate) key: Option<Secret>,
}

#[derive(Debug)]
pub(crate) struct Limits {
    pub(crate) body_bytes: usize,
    pub(crate) body_timeout: Duration,
    pub(crate) write_timeout: Duration,
    pub(crate) keepalive: Duration,
    pub(crate) drain: Duration,
    pub(crate) queue_timeout: Duration,
}

#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) filter: String,
    pub(crate) json: bool,
}

/// A provider, resolved.
#[derive(Debug)]
pub(crate) struct Provider {
    pub(crate) name: Arc<str>,
    pub(crate) dialect: Dialect,
    pub(crate) base: BaseUrl,
    pub(crate) credential: Option<Secret>,
    pub(crate) http2: bool,
    /// It can stream: whole answers are folded from streams, so that they too can be metered and stopped.
    pub(crate) streams: bool,
    pub(crate) connect_timeout: Duration,
    pub(crate) first_byte_timeout: Duration,
    pub(crate) gap_timeout: Duration,
    pub(crate) max_in_flight: Option<u32>,
    pub(crate) max_queued: u32,
    pub(crate) breaker: Breaker,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) ca_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Breaker {
    pub(crate) failures: u32,
    pub(crate) open: Duration,
}

/// An origin and the path that every call begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BaseUrl {
    pub(crate) tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Without a slash at its end, such as `/v1`.
    pub(crate) path: String,
}

impl BaseUrl {
    fn parse(text: &str) -> Result<Self, String> {
        let uri: http::Uri = text.parse().map_err(|_| format!("`{text}` is not a URL"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(format!("`{text}` must begin with http:// or https://")),
        };
        let host = uri
            .host()
            .filter(|host| !host.is_empty())
            .ok_or(format!("`{text}` names no host"))?;
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self {
            tls,
            host,
            port,
            path: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

/// The shortest admin secret that is accepted, in characters.
const ADMIN_SECRET: usize = 16;

impl Config {
    /// Reads the file, resolves secrets and paths (against the file's folder), and checks what a schema cannot.
    ///
    /// # Errors
    /// The first mistake, with its place and what to do.
    pub(crate) fn load(path: &Path) -> Result<Self, DocumentError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| {
            DocumentError::at(&file, "", format!("cannot be read: {error}"))
                .hint("`tollgate quickstart` writes a first one; config.example.yaml documents every key")
        })?;
        let folder = path.parent().unwrap_or(Path::new("."));
        router_policies::document::parse::<Document>(&text, &file)?.resolve(&Place { file: &file, folder })
    }
}

/// Where a document lies, for messages and relative paths.
pub(crate) struct Place<'a> {
    file: &'a str,
    folder: &'a Path,
}

impl Place<'_> {
    fn error(&self, path: impl Into<String>, problem: impl Into<String>) -> DocumentError {
        DocumentError::at(self.file, path, problem)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }
}

impl Document {
    fn resolve(&self, place: &Place<'_>) -> Result<Config, DocumentError> {
        let (accounts, keys) = self.accounts(place)?;
        let mut providers = Vec::new();
        for (name, provider) in &self.providers {
            providers.push(provider.resolve(name, place)?);
        }
        meter::PriceBook::load(&self.prices).map_err(|error| place.error("prices", error.to_string()))?;
        let unpriced_ceiling = self
            .unpriced_ceiling_dollars
            .as_ref()
            .map(|dollars| {
                dollars
                    .money()
                    .map_err(|problem| place.error("unpriced_ceiling_dollars", problem))
            })
            .transpose()?;
        let mut listen = Vec::new();
        for listener in &self.listen {
            listen.push(Listen {
                address: listener.address,
                tls: listener.tls.as_ref().map(|tls| TlsFiles {
                    certificate: place.path(&tls.certificate_file),
                    key: place.path(&tls.key_file),
                }),
            });
        }
        let seconds = Duration::from_secs;
        Ok(Config {
            listen,
            admin: self.admin(place)?,
            limits: Limits {
                body_bytes: self.limits.body_mib << 20,
                body_timeout: seconds(self.limits.body_timeout_s),
                write_timeout: seconds(self.limits.write_timeout_s),
                keepalive: seconds(self.limits.keepalive_s),
                drain: seconds(self.limits.drain_s),
                queue_timeout: Duration::from_millis(self.limits.queue_timeout_ms),
            },
            database: place.path(&self.store.database),
            journal: place.path(&self.store.journal),
            policy: place.path(&self.policy),
            providers,
            accounts,
            keys,
            prices: self.prices.clone(),
            unpriced_ceiling,
            log: Log {
                filter: self.log.filter.clone(),
                json: self.log.json,
            },
        })
    }

    fn admin(&self, place: &Place<'_>) -> Result<Admin, DocumentError> {
        let address = self.admin.address;
        let key = self
            .admin
            .key
            .as_ref()
            .map(|key| Secret::resolve(key, place.folder));
        let key = key
            .transpose()
            .map_err(|problem| place.error("admin.key", problem))?;
        match &key {
            Some(key) if key.expose().len() < ADMIN_SECRET => {
                Err(place.error("admin.key", format!("is shorter than {ADMIN_SECRET} characters")))
            }
            None if !address.ip().is_loopback() => Err(place
                .error(
                    "admin",
                    format!("listens on {address}, which others can reach, without a key"),
                )
                .hint("set `admin.key` to `env:NAME` or `file:PATH`, or listen on 127.0.0.1")),
            _ => Ok(Admin { address, key }),
        }
    }

    /// Flattens the tree org › team › workflow › key.
    fn accounts(&self, place: &Place<'_>) -> Result<(Vec<AccountSpec>, Vec<KeySpec>), DocumentError> {
        let (mut accounts, mut keys) = (Vec::new(), Vec::new());
        for (org, node) in &self.accounts {
            let path = AccountPath {
                org: org.as_str().into(),
                team: None,
                workflow: None,
                key: None,
            };
            let at = format!("accounts.{org}");
            node.account()
                .collect(&path, &at, place, (&mut accounts, &mut keys))?;
            for (team, node) in &node.teams {
                let path = AccountPath {
                    team: Some(team.as_str().into()),
                    ..path.clone()
                };
                let at = format!("{at}.teams.{team}");
                node.account()
                    .collect(&path, &at, place, (&mut accounts, &mut keys))?;
                for (workflow, node) in &node.workflows {
                    let path = AccountPath {
                        workflow: Some(workflow.as_str().into()),
                        ..path.clone()
                    };
                    let at = format!("{at}.workflows.{workflow}");
                    node.collect(&path, &at, place, (&mut accounts, &mut keys))?;
                }
            }
        }
        Ok((accounts, keys))
    }
}

impl document::Account {
    fn collect(
        &self,
        path: &AccountPath,
        at: &str,
        place: &Place<'_>,
        (accounts, keys): (&mut Vec<AccountSpec>, &mut Vec<KeySpec>),
    ) -> Result<(), DocumentError> {
        let budgets = resolve_budgets(&self.budgets, at, place)?;
        if !budgets.is_empty() {
            accounts.push(AccountSpec {
                path: path.clone(),
                budgets,
            });
        }
        for (name, key) in &self.keys {
            let at = format!("{at}.keys.{name}");
            let hex = key.hash.strip_prefix("sha256:").unwrap_or_default();
            let hash = KeyHash::from_hex(hex).ok_or_else(|| {
                place
                    .error(format!("{at}.hash"), "is not `sha256:` and 64 hexadecimal digits")
                    .hint("`tollgate key create` makes a key and prints its hash")
            })?;
            if keys.iter().any(|known| known.hash == hash) {
                return Err(place.error(format!("{at}.hash"), "is the hash of another key too"));
            }
            keys.push(KeySpec {
                hash,
                account: AccountPath {
                    key: Some(name.as_str().into()),
                    ..path.clone()
                },
                grants: Grants {
                    models: key.models.iter().map(|model| model.as_str().into()).collect(),
                },
                budgets: resolve_budgets(&key.budgets, &at, place)?,
                disabled: key.disabled,
            });
        }
        Ok(())
    }
}

fn resolve_budgets(
    budgets: &[document::Budget],
    at: &str,
    place: &Place<'_>,
) -> Result<Vec<BudgetSpec>, DocumentError> {
    let resolved = budgets.iter().enumerate().map(|(position, budget)| {
        let limit = budget.limit_dollars.money();
        let limit = limit.map_err(|problem| place.error(format!("{at}.budgets[{position}]"), problem))?;
        Ok(BudgetSpec {
            limit,
            period: budget.per,
        })
    });
    resolved.collect()
}

impl document::Provider {
    fn resolve(&self, name: &str, place: &Place<'_>) -> Result<Provider, DocumentError> {
        let at = |key: &str| format!("providers.{name}.{key}");
        let base = match (&self.base_url, name) {
            (Some(url), _) => url.as_str(),
            (None, "openai") => "https://api.openai.com/v1",
            (None, "anthropic") => "https://api.anthropic.com/v1",
            (None, _) => {
                return Err(place.error(at("base_url"), "is missing, and this provider is not a known one"));
            }
        };
        let credential = self
            .credential
            .as_ref()
            .map(|reference| Secret::resolve(reference, place.folder));
        Ok(Provider {
            name: name.into(),
            dialect: match self.dialect {
                document::WireFormat::OpenaiChat => Dialect::OpenaiChat,
                document::WireFormat::Anthropic => Dialect::Anthropic,
            },
            base: BaseUrl::parse(base).map_err(|problem| place.error(at("base_url"), problem))?,
            credential: credential
                .transpose()
                .map_err(|problem| place.error(at("credential"), problem))?,
            http2: self.http2,
            streams: self.streams,
            connect_timeout: Duration::from_millis(self.connect_timeout_ms),
            first_byte_timeout: Duration::from_millis(self.first_byte_timeout_ms),
            gap_timeout: Duration::from_millis(self.gap_timeout_ms),
            max_in_flight: self.max_in_flight,
            max_queued: self.max_queued,
            breaker: Breaker {
                failures: self.breaker.failures.max(1),
                open: Duration::from_millis(self.breaker.open_ms),
            },
            headers: self.headers.clone().into_iter().collect(),
            ca_file: self.ca_file.as_ref().map(|path| place.path(path)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../config.example.yaml");

    fn parse(text: &str) -> Result<Config, DocumentError> {
        let place = Place {
            file: "t.yaml",
            folder: Path::new("/folder"),
        };
        router_policies::document::parse::<Document>(text, "t.yaml")?.resolve(&place)
    }

    #[test]
    fn the_example_is_valid_and_documents_every_key() {
        let config = parse(EXAMPLE).unwrap();
        assert_eq!(
            (config.keys.len(), config.accounts.len(), config.providers.len()),
            (1, 3, 2)
        );
        let schema = serde_json::to_value(schemars::schema_for!(Document)).unwrap();
        let mut missing = Vec::new();
        let definitions = schema["$defs"].as_object().unwrap().values();
        for shape in definitions.chain([&schema]) {
            for key in shape["properties"]
                .as_object()
                .into_iter()
                .flat_map(|keys| keys.keys())
            {
                if !EXAMPLE.contains(&format!("{key}:")) {
                    missing.push(key.clone());
                }
            }
        }
        assert!(
            missing.is_empty(),
            "config.example.yaml does not mention {missing:?}"
        );
    }

    /// What the example says of settings that have a default is the default.
    #[test]
    fn the_example_shows_the_defaults() {
        let mut example: Document = router_policies::document::parse(EXAMPLE, "example").unwrap();
        let provider = example.providers.remove("openai").unwrap();
        let bare: document::Provider = serde_json::from_str(r#"{"dialect": "openai_chat"}"#).unwrap();
        assert_eq!(
            document::Provider {
                base_url: None,
                ..provider
            },
            bare
        );
        let default = Document::default();
        example.providers.clear();
        example.accounts.clear();
        example.prices = default.prices.clone();
        assert_eq!(example, default);
    }

    #[test]
    fn mistakes_are_told_with_what_to_do() {
        let message = |text: &str| parse(text).unwrap_err().to_string();
        let typo = message("limits:\n  body_mb: 5\n");
        assert!(
            typo.starts_with("t.yaml:2:") && typo.contains("did you mean `body_mib`?"),
            "{typo}"
        );
        let literal = message("providers: {openai: {dialect: openai_chat, credential: sk-123}}");
        assert!(
            literal.contains("env:NAME") && !literal.contains("sk-123"),
            "{literal}"
        );
        let open = message("admin: {address: 0.0.0.0:1}");
        assert!(open.contains("without a key"), "{open}");
        let hash = message("accounts: {a: {keys: {k: {hash: secret}}}}");
        assert!(
            hash.contains("accounts.a.keys.k.hash") && hash.contains("tollgate key create"),
            "{hash}"
        );
        let url = message("providers: {x: {dialect: anthropic}}");
        assert!(url.contains("providers.x.base_url"), "{url}");
        let money = message("accounts: {a: {budgets: [{limit_dollars: \"ten\", per: day}]}}");
        assert!(money.contains("accounts.a.budgets[0]"), "{money}");
    }

    #[test]
    fn a_secret_is_read_by_reference_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("s"), "  very-secret \n").unwrap();
        let secret = Secret::resolve("file:s", folder.path()).unwrap();
        assert_eq!(
            (secret.expose(), format!("{secret:?}").as_str()),
            ("very-secret", "Secret(…)")
        );
    }
}
