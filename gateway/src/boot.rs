//! From a configuration to a running gateway, and from a signal to a clean end.

use crate::admin::Admin;
use crate::batch::{self, Batch};
use crate::cli;
use crate::clock;
use crate::config::{Config, Listen};
use crate::fleet::{self, Billed, Price};
use crate::gateway::Gateway;
use crate::learn;
use crate::limits::RateLimits;
use crate::listen::{Certificate, Listener};
use crate::memory::Memory;
use crate::notify;
use crate::oidc::Issuers;
use crate::prices::{self, Pricing, Renewal};
use crate::records::Records;
use crate::rules::Rulebook;
use crate::share::Share;
use crate::starting;
use crate::telemetry::{self, Meters, ShareMeters};
use crate::upstream::Upstream;
use anyhow::Context;
use ledger::Ledger;
use router_policies::predict::Predictor;
use router_policies::{Finding, Policy, Severity};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Once};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};

/// How long streams that were told to end have to do so.
const CUT: Duration = Duration::from_secs(2);
/// Lint's code of a deployment without a price.
const UNPRICED: &str = "unpriced_deployment";
const UPKEEP: Duration = Duration::from_secs(5);
/// How often the policy's file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Everything that a configuration and a policy must agree on, without starting anything. What lint finds, with the
/// configuration's prices, is returned.
///
/// # Errors
/// They do not agree, and the gateway would not start.
pub(crate) fn check(config: &Config, policy: &Policy, text: &str) -> anyhow::Result<Vec<Finding>> {
    // Providers are built from a second reading, since a connection pool belongs to whoever runs it.
    let known: Vec<&str> = config.providers.iter().map(|provider| &*provider.name).collect();
    for deployment in policy.deployments() {
        anyhow::ensure!(
            known.contains(&&*deployment.provider),
            "deployment `{}` of the policy names the provider `{}`, which the configuration does not have",
            deployment.id,
            deployment.provider
        );
    }
    let book = prices::read(&config.prices, &config.price_lists)?;
    let pricing = Pricing::new(book, config.unpriced_ceiling);
    let now = clock::unix_us();
    let priced = |provider: &str, model: &str| {
        let known = config.providers.iter().find(|known| &*known.name == provider);
        let billed = Billed {
            provider: provider.into(),
            base_url: known.map(|known| known.base.to_string()),
            model: model.into(),
        };
        !matches!(pricing.price(&billed, now), Price::Unknown)
    };
    Ok(router_policies::lint(policy, text, Some(&priced)).findings)
}

/// A gateway does not start on a policy that does not do what it says, as it takes none while it runs. A deployment whose
/// price a list no longer has is only told: prices change while nobody touches the policy.
fn refuse_lint_errors(config: &Config, (policy, text): &(Policy, String)) -> anyhow::Result<()> {
    let (mut refused, file) = (0, config.policy.display());
    for finding in check(config, policy, text)? {
        if finding.severity == Severity::Error {
            tracing::error!("{file}:{finding}");
            refused += usize::from(finding.code != UNPRICED);
        }
    }
    anyhow::ensure!(
        refused == 0,
        "the policy {file} has errors that lint finds, {refused} in all; `tollgate check` shows them"
    );
    Ok(())
}

/// Runs the gateway until SIGTERM or SIGINT.
pub(crate) fn run(path: &Path) -> anyhow::Result<()> {
    let (config, policy) = cli::read(path)?;
    telemetry::install_logs(&config.log);
    refuse_lint_errors(&config, &policy)?;
    // The ledger writes thousands of rows at a time, which takes milliseconds that no stream should wait for: it has a
    // thread of its own.
    let bookkeeping = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("bookkeeping")
        .enable_all()
        .build()?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(serve(config, policy, (path, bookkeeping.handle())))
}

async fn serve(
    mut config: Config,
    policy: (Policy, String),
    (path, bookkeeping): (&Path, &Handle),
) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let doors = Doors::bind(&config).await?;
    if !starting::until_reached(&doors, (&config.database, bookkeeping), signals.end()).await? {
        return Ok(());
    }
    let book = prices::read(&config.prices, &config.price_lists)?;
    let pricing = Arc::new(Pricing::new(book, config.unpriced_ceiling));
    let renewal = Renewal::new(path, &config, pricing.clone());
    let rules = rulebook(&mut config, policy, pricing)?;
    let memory = Memory::default();
    let records = Records::open(config.records.as_deref())?;
    let predictor = predictor(config.predictor.as_deref())?;
    let (tell, told) = mpsc::channel(learn::WAITING);
    let settings = ledger::Settings {
        database: config.database.clone(),
        journal: config.journal.clone(),
        fsync: config.fsync,
        leases: config.leases,
        accounts: config.accounts.clone(),
        keys: config.keys.clone(),
        clock: clock::unix_us,
    };
    let ledger = bookkeeping
        .spawn(Ledger::open(settings))
        .await?
        .context("the ledger cannot be opened")?;
    let batch = Batch::new(ledger.jobs(), &config.batch)?;
    let (cut_all, cut) = watch::channel(false);
    let (stop_all, stop) = watch::channel(false);
    let options = Gateway::server_options();
    let meters = Meters::install()?;
    let running = Arc::new(());
    let limits = Arc::new(limits(&config)?);
    let issuers = Issuers::new(&config.issuers);
    let gateway = Arc::new(Gateway {
        config,
        rules,
        memory,
        records,
        predictor,
        told: tell,
        ledger,
        batch,
        issuers,
        limits,
        meters,
        options,
        cut,
        running,
    });

    let mut tasks = JoinSet::new();
    let heard = learn::begin(&gateway).await;
    tasks.spawn(learn::keep(gateway.clone(), heard, told, stop.clone()));
    tasks.spawn(notify::run(gateway.clone(), stop.clone()));
    tasks.spawn(fleet::watch(gateway.clone(), stop.clone()));
    tasks.spawn(gateway.issuers.keep_fresh(stop.clone()));
    doors.announce();
    let certificates = doors.certificates();
    for listener in doors.listeners {
        tasks.spawn(listener.run(gateway.clone(), stop.clone()));
    }
    let nodes = {
        let gateway = gateway.clone();
        move |count| gateway.rules.now().fleet.share_among(count)
    };
    let limited = gateway.ledger.rates();
    gateway.limits.adopt(&limited);
    tasks.spawn(gateway.limits.clone().follow(limited, stop.clone()));
    tasks.spawn(gateway.limits.clone().keep_shared(nodes, stop.clone()));
    tasks.spawn(batch::run(gateway.clone(), stop.clone()));
    let app = Arc::new(Admin::new(gateway.clone()));
    // The admin listener outlives the others, so that a drain can be watched.
    let (stop_admin, admin_stop) = watch::channel(false);
    let mut admin_tasks = JoinSet::new();
    admin_tasks.spawn(doors.admin.run(app, admin_stop));

    wait_for_the_end(&gateway, (&certificates, renewal), signals).await;
    tracing::info!(running = gateway.in_flight(), "draining");
    let _ = stop_all.send(true);
    let drain = gateway.config.limits.drain;
    if timeout(drain, idle(&gateway)).await.is_err() {
        tracing::warn!(
            running = gateway.in_flight(),
            "the drain deadline has passed: ending what still runs"
        );
        let _ = cut_all.send(true);
        let _ = timeout(CUT, idle(&gateway)).await;
    }
    let _ = stop_admin.send(true);
    learn::keep_counts(&gateway, false).await;
    gateway.ledger.close().await;
    Ok(())
}

/// Everything that listens, bound before anything else starts.
pub(crate) struct Doors {
    pub(crate) listeners: Vec<Listener>,
    pub(crate) admin: Listener,
    /// The addresses have been told.
    told: Once,
}

impl Doors {
    async fn bind(config: &Config) -> anyhow::Result<Self> {
        let mut listeners = Vec::new();
        for settings in &config.listen {
            listeners.push(Listener::bind(settings).await?);
        }
        let (address, tls) = (config.admin.address, config.admin.tls.clone());
        let admin = Listener::bind(&Listen { address, tls }).await?;
        Ok(Self {
            listeners,
            admin,
            told: Once::new(),
        })
    }

    /// Tells the addresses on the standard output, once. Nobody need be there to read them.
    pub(crate) fn announce(&self) {
        self.told.call_once(|| {
            let listeners = self.listeners.iter().map(|one| format!("listening on {}\n", one.url()));
            let lines: String = listeners.collect();
            let lines = format!("{lines}admin on {}\n", self.admin.url());
            let mut out = std::io::stdout();
            if let Err(error) = out.write_all(lines.as_bytes()).and_then(|()| out.flush()) {
                tracing::warn!(%error, "nobody reads the standard output: {}", lines.trim().replace('\n', ", "));
            }
        });
    }

    fn certificates(&self) -> Vec<Arc<Certificate>> {
        let all = self.listeners.iter().chain([&self.admin]);
        all.filter_map(|listener| listener.certificate.clone()).collect()
    }
}

/// What the process is told from outside.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Resolves when the process is to end.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Handles signals and upkeep until one of them says to stop.
async fn wait_for_the_end(
    gateway: &Gateway,
    (certificates, mut renewal): (&[Arc<Certificate>], Renewal),
    mut signals: Signals,
) {
    let (mut upkeep, mut look) = (interval(UPKEEP), interval(LOOK));
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return,
            _ = signals.interrupt.recv() => return,
            _ = signals.hang_up.recv() => {
                for certificate in certificates {
                    match certificate.reload() {
                        Ok(()) => tracing::info!("the certificate was read again"),
                        Err(error) => tracing::error!("{error:#}; the one in use stays"),
                    }
                }
                renewal.read_again(&gateway.rules.now().fleet, clock::unix_us());
            }
            _ = upkeep.tick() => {
                let rules = gateway.rules.now();
                gateway.meters.upkeep();
                rules.fleet.sweep();
                renewal.renew(&rules.fleet, clock::unix_us());
            }
            _ = look.tick() => tokio::task::block_in_place(|| gateway.rules.look()),
        }
    }
}

async fn idle(gateway: &Gateway) {
    while gateway.in_flight() > 0 {
        sleep(Duration::from_millis(10)).await;
    }
}

/// The shipped one, or that of a file.
fn predictor(file: Option<&Path>) -> anyhow::Result<Predictor> {
    let Some(file) = file else {
        return Ok(Predictor::shipped()?);
    };
    let shown = file.display();
    let bytes = std::fs::read(file).with_context(|| format!("the predictor {shown} cannot be read"))?;
    Predictor::load(&bytes).with_context(|| format!("the predictor {shown}"))
}

fn limits(config: &Config) -> anyhow::Result<RateLimits> {
    let share = match &config.redis {
        Some(redis) => {
            let node = clock::new_request(clock::unix_us()).0.to_string();
            Some((Share::new(redis.clone(), node)?, ShareMeters::install()))
        }
        None => None,
    };
    Ok(RateLimits::new(&config.rate_limits, share))
}

fn rulebook(
    config: &mut Config,
    (policy, text): (Policy, String),
    pricing: Arc<Pricing>,
) -> anyhow::Result<Rulebook> {
    let mut upstreams = Vec::new();
    for provider in std::mem::take(&mut config.providers) {
        upstreams.push(Arc::new(Upstream::new(provider)?));
    }
    Rulebook::new(policy, (config.policy.clone(), text), (upstreams, pricing))
}
