//! Logs and metrics: the one home of the metric macros.

use exchange::{Ending, Record, TokenClass};
use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

/// Buckets for seconds, from a tenth of a millisecond to ten minutes.
const SECONDS: [f64; 14] = [
    0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0,
];

/// Handles taken once, so that counting costs an atomic addition.
pub(crate) struct Meters {
    handle: PrometheusHandle,
    requests: Vec<Counter>,
    charged_nanodollars: Counter,
    attempts: Counter,
    decide_seconds: Histogram,
    first_byte_seconds: Histogram,
    total_seconds: Histogram,
    running: Gauge,
    output: Mutex<HashMap<Pair, Output>>,
    money: MoneyMeters,
}

/// How budgets and their ledger do.
struct MoneyMeters {
    refused: Counter,
    starved: Counter,
    overspent_nanodollars: Counter,
    waiting: Gauge,
    away: Gauge,
}

impl MoneyMeters {
    fn install() -> Self {
        describe_counter!("tollgate_budget_refusals_total", "requests refused by a budget");
        describe_counter!(
            "tollgate_starved_requests_total",
            "those refused though less than 90 % of the limit was spent and the rest would have paid for them"
        );
        describe_counter!(
            "tollgate_overspent_nanodollars_total",
            "spent beyond hard limits: providers that bill more than was held, or an allowance while the store was away"
        );
        describe_gauge!("tollgate_unposted_settlements", "rows that wait for the store");
        describe_gauge!("tollgate_store_away", "1: the store does not answer");
        Self {
            refused: counter!("tollgate_budget_refusals_total"),
            starved: counter!("tollgate_starved_requests_total"),
            overspent_nanodollars: counter!("tollgate_overspent_nanodollars_total"),
            waiting: gauge!("tollgate_unposted_settlements"),
            away: gauge!("tollgate_store_away"),
        }
    }

    fn set(&self, counts: ledger::Counts) {
        self.refused.absolute(counts.refused);
        self.starved.absolute(counts.starved);
        let overspent = u64::try_from(counts.overspent.nanos()).unwrap_or(0);
        self.overspent_nanodollars.absolute(overspent);
        self.waiting.set(counts.waiting as f64);
        self.away.set(f64::from(u8::from(counts.is_away)));
    }
}

/// Workflow and model.
type Pair = (Arc<str>, Arc<str>);

/// Output of one model for one workflow.
#[derive(Clone)]
struct Output {
    visible: Counter,
    reasoning: Counter,
    share: Gauge,
    tokens: (u64, u64),
}

impl Output {
    fn new(workflow: &Arc<str>, model: &Arc<str>) -> Self {
        let tokens = |kind: &'static str| counter!("tollgate_output_tokens_total", "workflow" => workflow.clone(), "model" => model.clone(), "kind" => kind);
        Self {
            visible: tokens("visible"),
            reasoning: tokens("reasoning"),
            share: gauge!("tollgate_visible_share", "workflow" => workflow.clone(), "model" => model.clone()),
            tokens: (0, 0),
        }
    }

    fn add(&mut self, visible: u64, reasoning: u64) {
        self.visible.increment(visible);
        self.reasoning.increment(reasoning);
        self.tokens = (self.tokens.0 + visible, self.tokens.1 + reasoning);
        let (visible, all) = (self.tokens.0, self.tokens.0 + self.tokens.1);
        self.share.set(visible as f64 / all as f64);
    }
}

/// Pairs of workflow and model that have series of their own: names of workflows are the callers' to choose.
const PAIRS: usize = 1000;

impl Meters {
    /// # Errors
    /// A recorder was installed before.
    pub(crate) fn install() -> anyhow::Result<Self> {
        let handle = PrometheusBuilder::new()
            .set_buckets(&SECONDS)?
            .install_recorder()?;
        describe_counter!("tollgate_requests_total", "requests by how they ended");
        describe_counter!(
            "tollgate_charged_nanodollars_total",
            "what was charged, in nano-dollars"
        );
        describe_counter!("tollgate_attempts_total", "upstream calls");
        describe_histogram!(
            "tollgate_decide_seconds",
            "from the head of a request to the decision"
        );
        describe_histogram!(
            "tollgate_first_byte_seconds",
            "from the head of a request to the first byte of the answer"
        );
        describe_histogram!(
            "tollgate_request_seconds",
            "from the head of a request to its end"
        );
        describe_counter!(
            "tollgate_output_tokens_total",
            "output tokens by workflow and model: visible, or reasoning that no caller reads"
        );
        describe_gauge!(
            "tollgate_visible_share",
            "visible tokens of all output tokens since the start, by workflow and model"
        );
        let requests = Ending::ALL
            .iter()
            .map(|ending| counter!("tollgate_requests_total", "ending" => ending.as_str()));
        Ok(Self {
            requests: requests.collect(),
            charged_nanodollars: counter!("tollgate_charged_nanodollars_total"),
            attempts: counter!("tollgate_attempts_total"),
            decide_seconds: histogram!("tollgate_decide_seconds"),
            first_byte_seconds: histogram!("tollgate_first_byte_seconds"),
            total_seconds: histogram!("tollgate_request_seconds"),
            running: gauge!("tollgate_running_requests"),
            output: Mutex::default(),
            money: MoneyMeters::install(),
            handle,
        })
    }

    /// Counts one finished exchange.
    pub(crate) fn observe(&self, record: &Record) {
        if let Some(requests) = self.requests.get(record.ending as usize) {
            requests.increment(1);
        }
        self.charged_nanodollars
            .increment(u64::try_from(record.total().nanos()).unwrap_or(0));
        self.attempts.increment(record.attempts.len() as u64);
        let seconds = |micros: u64| micros as f64 / 1e6;
        if record.timings.decided_us > 0 {
            self.decide_seconds.record(seconds(record.timings.decided_us));
        }
        if record.timings.first_byte_us > 0 {
            self.first_byte_seconds
                .record(seconds(record.timings.first_byte_us));
        }
        self.total_seconds.record(seconds(record.timings.total_us));
        for attempt in &record.attempts {
            let reasoning = attempt.usage.get(TokenClass::Reasoning);
            let visible = attempt.usage.output_total().saturating_sub(reasoning);
            if visible + reasoning > 0 {
                let account = record.account.as_ref();
                self.output(
                    account.and_then(|account| account.workflow.as_ref()),
                    &attempt.model,
                    |output| output.add(visible, reasoning),
                );
            }
        }
    }

    fn output(&self, workflow: Option<&Arc<str>>, model: &Arc<str>, count: impl FnOnce(&mut Output)) {
        let mut series = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (workflow.cloned().unwrap_or_else(|| "".into()), model.clone());
        if series.len() >= PAIRS && !series.contains_key(&key) {
            key = ("other".into(), "other".into());
        }
        let output = series
            .entry(key)
            .or_insert_with_key(|(workflow, model)| Output::new(workflow, model));
        count(output);
    }

    /// The Prometheus text.
    pub(crate) fn render(&self, running: usize, counts: ledger::Counts) -> String {
        self.money.set(counts);
        self.running.set(running as f64);
        self.handle.render()
    }

    /// Folds what histograms have gathered, so that memory does not grow while nobody scrapes.
    pub(crate) fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

/// How jobs stand, by team, as the store says: the same at every node.
#[derive(Debug, Default)]
pub(crate) struct JobMeters {
    /// Teams that have been told of: what is no longer so is set to nothing.
    teams: BTreeSet<(String, String)>,
}

impl JobMeters {
    pub(crate) fn install() -> Self {
        describe_gauge!("tollgate_job_items_open", "items of jobs that have not ended");
        describe_gauge!(
            "tollgate_job_age_seconds",
            "since the oldest job with an open item was made; 0 where none is open"
        );
        describe_gauge!(
            "tollgate_job_slack_seconds",
            "until the earliest deadline of an open item, below 0 after it; 0 where none is open"
        );
        describe_gauge!(
            "tollgate_job_items_rescued",
            "items that were taken from a batch and answered by the synchronous tier, within a day"
        );
        describe_gauge!(
            "tollgate_job_deadlines_missed",
            "items that ended after their deadline without having been cancelled, within a day"
        );
        describe_gauge!(
            "tollgate_job_charged_dollars",
            "what items cost that ended within a day"
        );
        describe_gauge!(
            "tollgate_job_saved_dollars",
            "what these would have cost more at the standard tier; rescues that were dearer than a batch count against it"
        );
        Self::default()
    }

    pub(crate) fn set(&mut self, standing: &[ledger::Standing]) {
        let name = |team: &ledger::Standing| (team.org.clone(), team.team.clone());
        let now: BTreeSet<_> = standing.iter().map(name).collect();
        for (org, team) in self.teams.difference(&now) {
            set_jobs((org, team), [0.0; 7]);
        }
        for team in standing {
            let dollars = |money: exchange::Money| money.nanos() as f64 / 1e9;
            let seconds = |us: i64| us as f64 / 1e6;
            let values = [
                team.open as f64,
                seconds(team.age_us),
                seconds(team.slack_us),
                team.rescued as f64,
                team.missed as f64,
                dollars(team.charge),
                dollars(team.saved),
            ];
            set_jobs((&team.org, &team.team), values);
        }
        self.teams.extend(now);
    }
}

fn set_jobs((org, team): (&str, &str), values: [f64; 7]) {
    let labels = [("org", org.to_owned()), ("team", team.to_owned())];
    let [open, age, slack, rescued, missed, charged, saved] = values;
    gauge!("tollgate_job_items_open", &labels).set(open);
    gauge!("tollgate_job_age_seconds", &labels).set(age);
    gauge!("tollgate_job_slack_seconds", &labels).set(slack);
    gauge!("tollgate_job_items_rescued", &labels).set(rescued);
    gauge!("tollgate_job_deadlines_missed", &labels).set(missed);
    gauge!("tollgate_job_charged_dollars", &labels).set(charged);
    gauge!("tollgate_job_saved_dollars", &labels).set(saved);
}

/// How rate limits are shared.
#[derive(Clone, Debug)]
pub(crate) struct ShareMeters {
    shared: Gauge,
    nodes: Gauge,
    failures: Counter,
}

impl ShareMeters {
    pub(crate) fn install() -> Self {
        describe_gauge!(
            "tollgate_rate_limits_shared",
            "1: through the store; 0: each node lets through its part"
        );
        describe_gauge!(
            "tollgate_rate_limit_nodes",
            "gateways that share the limits, when last counted"
        );
        describe_counter!(
            "tollgate_rate_limit_store_failures_total",
            "calls to the store that came to nothing"
        );
        Self {
            shared: gauge!("tollgate_rate_limits_shared"),
            nodes: gauge!("tollgate_rate_limit_nodes"),
            failures: counter!("tollgate_rate_limit_store_failures_total"),
        }
    }

    /// `shared_by` is 0 while the store is away.
    pub(crate) fn standing(&self, shared_by: u32, nodes: u32) {
        self.shared.set(f64::from(shared_by.min(1)));
        self.nodes.set(f64::from(nodes));
    }

    pub(crate) fn failed(&self) {
        self.failures.increment(1);
    }
}

/// Logs go to standard error.
pub(crate) fn install_logs(log: &crate::config::Log) {
    let filter = tracing_subscriber::EnvFilter::try_new(&log.filter).unwrap_or_else(|_| "info".into());
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let installed = if log.json {
        logs.json().try_init()
    } else {
        logs.try_init()
    };
    if let Err(error) = installed {
        tracing::warn!(%error, "logs were set up before");
    }
}
