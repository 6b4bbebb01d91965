//! The configuration: a YAML document, checked and resolved into what the gateway runs on.
//!
//! Owns: the document's shape and defaults, secrets by reference, the meaning of paths. Refuses to know: how any of
//! it is used. Invariants: an unknown key is an error; a secret is never written in the file and never printed; all
//! mistakes that can be told apart are told at once, each with its place and what to do.

pub(crate) mod batch;
mod document;
mod identity;
pub(crate) mod key;
mod mistakes;
mod resolve;
mod secret;
#[cfg(test)]
mod tests;

pub(crate) use document::{Document, SigningAlgorithm};
pub(crate) use mistakes::ConfigError;
pub(crate) use secret::Secret;

use exchange::{AccountPath, Dialect, Money};
use ledger::{AccountSpec, KeySpec};
use limits::Rule;
use mistakes::Mistakes;
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
    /// Whose `X-Forwarded-For` is believed.
    pub(crate) trusted_proxies: Vec<ledger::IpNet>,
    /// Request headers that become labels.
    pub(crate) label_headers: Vec<http::HeaderName>,
    pub(crate) limits: Limits,
    pub(crate) database: ledger::Database,
    pub(crate) journal: PathBuf,
    pub(crate) fsync: ledger::Fsync,
    pub(crate) leases: ledger::Leases,
    pub(crate) policy: PathBuf,
    /// Where decisions are recorded for replay.
    pub(crate) records: Option<PathBuf>,
    /// They are kept in the ledger too.
    pub(crate) keeps_decisions: bool,
    /// A predictor in place of the shipped one.
    pub(crate) predictor: Option<PathBuf>,
    pub(crate) providers: Vec<Provider>,
    pub(crate) accounts: Vec<AccountSpec>,
    pub(crate) keys: Vec<KeySpec>,
    pub(crate) rate_limits: Vec<(AccountPath, Rule)>,
    pub(crate) redis: Option<Redis>,
    pub(crate) prices: meter::PriceOverrides,
    pub(crate) price_lists: PriceLists,
    pub(crate) unpriced_ceiling: Option<Money>,
    pub(crate) batch: batch::Batch,
    pub(crate) webhook: Option<Webhook>,
    pub(crate) issuers: Vec<Issuer>,
    pub(crate) log: Log,
}

/// Who is told of alerts.
#[derive(Clone, Debug)]
pub(crate) struct Webhook {
    pub(crate) url: Secret,
    pub(crate) secret: Secret,
}

/// Whose tokens are accepted, and what they say.
#[derive(Clone, Debug)]
pub(crate) struct Issuer {
    pub(crate) issuer: String,
    pub(crate) audiences: Vec<String>,
    /// `None`: by discovery.
    pub(crate) jwks_url: Option<String>,
    pub(crate) algorithms: Vec<document::SigningAlgorithm>,
    pub(crate) leeway_s: u64,
    pub(crate) org: Option<String>,
    pub(crate) org_claim: Option<String>,
    pub(crate) team_claim: Option<String>,
    pub(crate) workflow_claim: Option<String>,
    pub(crate) user_claim: String,
    pub(crate) grants: exchange::Grants,
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
    pub(crate) tls: Option<TlsFiles>,
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
    pub(crate) budget_wait: Duration,
}

/// Where rate limits are shared.
#[derive(Clone, Debug)]
pub(crate) struct Redis {
    pub(crate) url: Secret,
    pub(crate) timeout: Duration,
    pub(crate) prefix: String,
}

/// Files with lists of prices.
#[derive(Clone, Debug, Default)]
pub(crate) struct PriceLists {
    pub(crate) litellm: Option<PathBuf>,
    pub(crate) genai_prices: Option<PathBuf>,
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
    /// What it says an answer cost is charged.
    pub(crate) reports_cost: bool,
    /// What it says of its queue counts in decisions.
    pub(crate) reports_load: bool,
    /// It can stream: whole answers are folded from streams, so that they too can be metered and stopped.
    pub(crate) streams: bool,
    pub(crate) connect_timeout: Duration,
    pub(crate) first_byte_timeout: Duration,
    pub(crate) gap_timeout: Duration,
    pub(crate) max_in_flight: Option<u32>,
    pub(crate) pace: Rule,
    pub(crate) max_queued: u32,
    pub(crate) breaker: Breaker,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) batch: Option<batch::BatchApi>,
    pub(crate) flex: bool,
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
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
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

impl std::fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let host = &self.host;
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host.clone()
        };
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => write!(f, "{scheme}://{host}{}", self.path),
            (_, port) => write!(f, "{scheme}://{host}:{port}{}", self.path),
        }
    }
}

impl Config {
    /// Reads the file, resolves secrets and paths (against the file's folder), and checks what a schema cannot.
    ///
    /// # Errors
    /// Every mistake that was found, with its place and what to do.
    pub(crate) fn load(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| {
            DocumentError::at(&file, "", format!("cannot be read: {error}"))
                .hint("`tollgate quickstart` writes a first one; config.example.yaml documents every key")
        })?;
        Self::read(&text, &file, path.parent().unwrap_or(Path::new(".")))
    }

    fn read(text: &str, file: &str, folder: &Path) -> Result<Self, ConfigError> {
        let document = router_policies::document::parse::<Document>(text, file)
            .map_err(|error| mistakes::unknown_keys_and(error, text, file))?;
        let mut mistakes = Mistakes::new(text, file);
        let config = document.resolve(folder, &mut mistakes);
        mistakes.none_or(config)
    }
}
