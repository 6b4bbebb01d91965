//! The YAML document: its keys, their units and their defaults. `config.example.yaml` documents the same ones.

mod batch;

pub(crate) use batch::BatchApi;
pub(super) use batch::{Batch, OverBudget};
use ledger::{Enforcement, Period};
use meter::{Dollars, PriceOverrides};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

/// The whole document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Document {
    /// Where callers connect. Plain listeners speak HTTP/1.1 and h2c, TLS listeners HTTP/1.1 and HTTP/2.
    pub(super) listen: Vec<Listen>,
    pub(super) admin: Admin,
    /// Networks of proxies whose `X-Forwarded-For` is believed. Keys that are restricted to networks are judged by the peer
    /// of the connection, or by what such a proxy says of it.
    pub(super) trusted_proxies: Vec<String>,
    /// Request headers that policies may see, each as the label of its name in small letters: `labels["x-customer"]`. None
    /// that carries a secret. A label of that name in a body does not count: whoever is in front sets the header.
    pub(super) label_headers: Vec<String>,
    pub(super) limits: Limits,
    pub(super) store: Store,
    pub(super) redis: Redis,
    /// The routing policy's file.
    pub(super) policy: String,
    /// Where what decisions depended on is kept, a line of JSON each, for `policy replay`. Left out: nowhere.
    pub(super) records: Option<String>,
    /// A predictor of your own, as `policy train` writes it. Left out: the shipped one.
    pub(super) predictor: Option<String>,
    /// By the name that policies use.
    pub(super) providers: BTreeMap<String, Provider>,
    /// Organisations by name.
    pub(super) accounts: BTreeMap<String, Org>,
    /// Prices that go before every list.
    pub(super) prices: PriceOverrides,
    pub(super) price_lists: PriceLists,
    pub(super) batch: Batch,
    /// Lets models without a price run, each request held at and charged this much. Left out: they are refused.
    pub(super) unpriced_ceiling_dollars: Option<Dollars>,
    pub(super) alerts: Alerts,
    /// Identity providers whose tokens callers may send in place of a key.
    pub(super) oidc: Vec<Issuer>,
    pub(super) log: Log,
}

impl Default for Document {
    fn default() -> Self {
        Self {
            listen: vec![Listen {
                address: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
                tls: None,
            }],
            admin: Admin::default(),
            trusted_proxies: Vec::new(),
            label_headers: Vec::new(),
            limits: Limits::default(),
            store: Store::default(),
            redis: Redis::default(),
            policy: "policy.yaml".into(),
            records: None,
            predictor: None,
            providers: BTreeMap::new(),
            accounts: BTreeMap::new(),
            prices: PriceOverrides::default(),
            price_lists: PriceLists::default(),
            batch: Batch::default(),
            unpriced_ceiling_dollars: None,
            alerts: Alerts::default(),
            oidc: Vec::new(),
            log: Log::default(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listen {
    #[schemars(with = "String")]
    pub(super) address: SocketAddr,
    #[serde(default)]
    pub(super) tls: Option<Tls>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tls {
    /// A PEM file with the certificate and its chain; read again on SIGHUP.
    pub(super) certificate_file: String,
    /// A PEM file with the private key.
    pub(super) key_file: String,
}

/// Health, metrics and budgets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Admin {
    #[schemars(with = "String")]
    pub(super) address: SocketAddr,
    pub(super) tls: Option<Tls>,
    /// `env:NAME` or `file:PATH`, at least 16 characters. Needed where others can reach the address.
    pub(super) key: Option<String>,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 8081)),
            tls: None,
            key: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    /// The largest request body.
    pub(super) body_mib: usize,
    /// The longest a request body may take to arrive.
    pub(super) body_timeout_s: u64,
    /// The longest a caller may leave a write waiting.
    pub(super) write_timeout_s: u64,
    /// How long an idle connection is kept.
    pub(super) keepalive_s: u64,
    /// How long running streams may go on after SIGTERM.
    pub(super) drain_s: u64,
    /// The longest a request waits for a slot at a deployment.
    pub(super) queue_timeout_ms: u64,
    /// The longest a request waits for money that other requests hold but have not spent.
    pub(super) budget_wait_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_mib: 32,
            body_timeout_s: 60,
            write_timeout_s: 60,
            keepalive_s: 75,
            drain_s: 30,
            queue_timeout_ms: 30_000,
            budget_wait_ms: 10_000,
        }
    }
}

/// Where the ledger is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Store {
    /// The embedded store: an SQLite file for one gateway. Not used where `postgres` is set.
    pub(super) database: String,
    /// The store that any number of gateways share.
    pub(super) postgres: Option<Postgres>,
    /// The journal's folder; one process at a time.
    pub(super) journal: String,
    /// When the journal is put on the disk itself, which matters if power fails; a killed process loses nothing either
    /// way. `never`: the kernel does so within about 30 s. `interval`: in the background, every `fsync_interval_ms`.
    /// `each`: before each upstream call, which then waits for the disk (0.1 to 10 ms).
    pub(super) fsync: Fsync,
    pub(super) fsync_interval_ms: u64,
    /// What happens when this gateway's slice of a budget is used up while the store is away. `fail_closed`: requests are
    /// refused. `allow_up_to`: each gateway may spend `allow_dollars` more of each budget, which may so exceed its limit.
    pub(super) when_away: WhenAway,
    pub(super) allow_dollars: Option<Dollars>,
    /// A gateway that has been silent for so long is given up: its slices count as spent until it comes back with its
    /// journal.
    pub(super) lapse_after_s: u64,
    /// For so long a gateway is to go on while the store is away: it keeps as much of each budget as it has lately used in
    /// that time, where the limit leaves room. 0: only what it needs for the moment.
    pub(super) outage_s: u64,
    /// For how many days requests, attempts, decisions and outcomes are kept. Left out: for good. Hours, budgets and the
    /// audit trail stay.
    pub(super) keep_days: Option<u32>,
    /// For how many days the hash of a key's secret is kept after its end by rotation, term or revocation: so long its
    /// sender is told that it has expired, and jobs that were left with it go on.
    pub(super) keep_secrets_days: u32,
    /// Keep what each decision depended on beside its request, for `tollgate policy replay --from-ledger`: numbers and
    /// declared names, no prompts; about 1 KB and 0.3 KB for each deployment.
    pub(super) decisions: bool,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            database: "tollgate.db".into(),
            postgres: None,
            journal: "journal".into(),
            fsync: Fsync::Never,
            fsync_interval_ms: 1_000,
            when_away: WhenAway::FailClosed,
            allow_dollars: None,
            lapse_after_s: 600,
            outage_s: 60,
            keep_days: None,
            keep_secrets_days: 30,
            decisions: false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Postgres {
    /// `env:NAME` or `file:PATH`, holding `postgres://user:password@host:port/database`.
    pub(super) url: String,
    #[serde(default = "connections")]
    pub(super) connections: u32,
}

const fn connections() -> u32 {
    8
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WhenAway {
    FailClosed,
    AllowUpTo,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fsync {
    Never,
    Interval,
    Each,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WireFormat {
    OpenaiChat,
    Anthropic,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Provider {
    /// The wire format it speaks.
    pub(super) dialect: WireFormat,
    /// Up to and including `/v1`. May be left out for `openai` and `anthropic`.
    #[serde(default)]
    pub(super) base_url: Option<String>,
    /// `env:NAME` or `file:PATH`.
    #[serde(default)]
    pub(super) credential: Option<String>,
    /// HTTP/2 where the provider offers it; without TLS, h2c.
    #[serde(default)]
    pub(super) http2: bool,
    /// It says in its usage what an answer cost, and that is charged instead of a price per token: for our own engine.
    #[serde(default)]
    pub(super) reports_cost: bool,
    /// It says how long a request would wait there, in `x-local-expected-wait-ms` of its answers and at `/slots`, which is
    /// looked at every second; decisions count with it. For our own engine.
    #[serde(default)]
    pub(super) reports_load: bool,
    /// False: it cannot stream, and whole answers are asked for as such.
    #[serde(default = "yes")]
    pub(super) streams: bool,
    #[serde(default = "connect_timeout_ms")]
    pub(super) connect_timeout_ms: u64,
    /// From the request sent to the head of the answer.
    #[serde(default = "first_byte_timeout_ms")]
    pub(super) first_byte_timeout_ms: u64,
    /// Between two pieces of an answer.
    #[serde(default = "gap_timeout_ms")]
    pub(super) gap_timeout_ms: u64,
    /// Requests that may run at each of its deployments at once. Left out: any number.
    #[serde(default)]
    pub(super) max_in_flight: Option<u32>,
    /// The rate at which each of its deployments is called, by all gateways together.
    #[serde(default)]
    pub(super) rate_limits: Pace,
    /// Requests that may wait for a slot.
    #[serde(default = "max_queued")]
    pub(super) max_queued: u32,
    #[serde(default)]
    pub(super) breaker: Breaker,
    /// The batch API that it offers, if any.
    #[serde(default)]
    pub(super) batch: Option<BatchApi>,
    /// It serves `service_tier: flex`, cheaper and with no promise of room.
    #[serde(default)]
    pub(super) flex: bool,
    /// Sent with every request.
    #[serde(default)]
    pub(super) headers: BTreeMap<String, String>,
    /// Certificate authorities to trust instead of the system's, as a PEM file.
    #[serde(default)]
    pub(super) ca_file: Option<String>,
}

const fn yes() -> bool {
    true
}
const fn connect_timeout_ms() -> u64 {
    5_000
}
const fn first_byte_timeout_ms() -> u64 {
    120_000
}
const fn gap_timeout_ms() -> u64 {
    60_000
}
const fn max_queued() -> u32 {
    1_000
}

/// A deployment that fails so often in a row is left alone for a while.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Breaker {
    pub(super) failures: u32,
    pub(super) open_ms: u64,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            failures: 5,
            open_ms: 5_000,
        }
    }
}

/// An organisation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Org {
    pub(super) budgets: Vec<Budget>,
    pub(super) rate_limits: RateLimits,
    pub(super) keys: BTreeMap<String, Key>,
    pub(super) teams: BTreeMap<String, Team>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Team {
    pub(super) budgets: Vec<Budget>,
    pub(super) rate_limits: RateLimits,
    pub(super) keys: BTreeMap<String, Key>,
    pub(super) workflows: BTreeMap<String, Account>,
}

/// What every level of the tree has: a workflow has nothing else.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Account {
    pub(super) budgets: Vec<Budget>,
    pub(super) rate_limits: RateLimits,
    pub(super) keys: BTreeMap<String, Key>,
}

impl Org {
    pub(super) fn account(&self) -> Account {
        Account {
            budgets: self.budgets.clone(),
            rate_limits: self.rate_limits,
            keys: self.keys.clone(),
        }
    }
}

impl Team {
    pub(super) fn account(&self) -> Account {
        Account {
            budgets: self.budgets.clone(),
            rate_limits: self.rate_limits,
            keys: self.keys.clone(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Budget {
    /// US dollars as text, such as "250.00".
    pub(super) limit_dollars: Dollars,
    /// `day`, `week`, `month`, `quarter` or `total`; calendar windows, from midnight in `zone`.
    #[schemars(with = "String")]
    pub(super) per: Period,
    /// An IANA time zone. Left out: UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) zone: Option<String>,
    /// `hard`: what does not fit is refused. `soft`: nothing is refused, alerts are raised.
    #[serde(default, skip_serializing_if = "is_hard")]
    #[schemars(with = "String")]
    pub(super) enforcement: Enforcement,
    /// Percent of the limit at which an alert is raised, once per window each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) alerts_percent: Vec<u16>,
    /// Models that count; a name may end in `*`. Left out: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) models: Vec<String>,
    /// Backend classes that count: `frontier`, `cheap`, `local`, `batch`. Left out: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub(super) classes: Vec<exchange::BackendClass>,
    /// Labels that a request must carry to count.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) tags: BTreeMap<String, String>,
}

fn is_hard(enforcement: &Enforcement) -> bool {
    *enforcement == Enforcement::Hard
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Key {
    /// `sha256:` and 64 hexadecimal digits, as `tollgate key create` prints them.
    pub(super) hash: String,
    /// Models it may use; a name may end in `*`. Left out: all.
    #[serde(default)]
    pub(super) models: Vec<String>,
    /// Backend classes it may reach: `frontier`, `cheap`, `local`, `batch`. Left out: all.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub(super) classes: Vec<exchange::BackendClass>,
    /// Where it may be used, as `10.0.0.0/8`, `2001:db8::/32` or one address. Left out: anywhere.
    #[serde(default)]
    pub(super) networks: Vec<String>,
    #[serde(default)]
    pub(super) budgets: Vec<Budget>,
    #[serde(default)]
    pub(super) rate_limits: RateLimits,
    #[serde(default)]
    pub(super) disabled: bool,
}

/// What an account may do, all requests under it together. Left out: any amount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RateLimits {
    pub(super) requests_per_minute: Option<u32>,
    /// Tokens read and generated.
    pub(super) tokens_per_minute: Option<u32>,
    /// Requests running at once.
    pub(super) concurrency: Option<u32>,
}

/// The rate at which a deployment is called. Left out: any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Pace {
    pub(super) requests_per_minute: Option<u32>,
    pub(super) tokens_per_minute: Option<u32>,
}

/// Where several gateways share the rate limits of accounts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Redis {
    /// `redis://host:port/database`, or `env:NAME` or `file:PATH` where it holds a password. Left out: limits are this
    /// gateway's own.
    pub(super) url: Option<String>,
    /// Longer than this it is not waited for: each gateway then lets through its part of the limits.
    pub(super) timeout_ms: u64,
    /// What its keys begin with.
    pub(super) prefix: String,
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            url: None,
            timeout_ms: 50,
            prefix: "tollgate".into(),
        }
    }
}

/// Files with lists of prices. They and `prices` are read again when a file changes, and on SIGHUP.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PriceLists {
    /// LiteLLM's `model_prices_and_context_window.json`, which goes before the list below.
    pub(super) litellm: Option<String>,
    /// A newer `data.json` (version 2) of genai-prices. Left out: the list that is built in.
    pub(super) genai_prices: Option<String>,
}

/// Who is told of budgets that have passed a threshold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Alerts {
    /// Where alerts are sent with POST, or `env:NAME` or `file:PATH` that hold it. Left out: they are in the log, and in the
    /// admin API.
    pub(super) webhook_url: Option<String>,
    /// `env:NAME` or `file:PATH`: what they are signed with, as Standard Webhooks has it (`whsec_` and base64, or plain text).
    pub(super) secret: Option<String>,
}

/// An identity provider (OpenID Connect).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Issuer {
    /// As tokens name it in `iss`; its keys are found by discovery from it.
    pub(super) issuer: String,
    /// A token must be for one of these.
    pub(super) audiences: Vec<String>,
    /// Where its keys are, in place of discovery.
    #[serde(default)]
    pub(super) jwks_url: Option<String>,
    /// How tokens may be signed.
    #[serde(default = "algorithms")]
    pub(super) algorithms: Vec<SigningAlgorithm>,
    /// How far clocks may differ.
    #[serde(default = "leeway_s")]
    pub(super) leeway_s: u64,
    /// The organisation of all its tokens; or else `org_claim`.
    #[serde(default)]
    pub(super) org: Option<String>,
    /// The claim that names the organisation. A dot goes into an object: `realm.team`.
    #[serde(default)]
    pub(super) org_claim: Option<String>,
    /// The claim that names the team. Left out: no team.
    #[serde(default)]
    pub(super) team_claim: Option<String>,
    /// The claim that names the workflow. Left out: none.
    #[serde(default)]
    pub(super) workflow_claim: Option<String>,
    /// The claim that stands where a key's name does.
    #[serde(default = "user_claim")]
    pub(super) user_claim: String,
    /// Models its tokens may use; a name may end in `*`. Left out: all.
    #[serde(default)]
    pub(super) models: Vec<String>,
    /// Backend classes its tokens may reach. Left out: all.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub(super) classes: Vec<exchange::BackendClass>,
}

fn algorithms() -> Vec<SigningAlgorithm> {
    vec![SigningAlgorithm::RS256, SigningAlgorithm::ES256]
}
const fn leeway_s() -> u64 {
    30
}
fn user_claim() -> String {
    "sub".into()
}

/// With a private key alone: whoever can check a signature cannot make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum SigningAlgorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    /// As `RUST_LOG`: `info`, `gateway=debug,info`, …
    pub(super) filter: String,
    pub(super) json: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            filter: "warn,tollgate=info".into(),
            json: false,
        }
    }
}
