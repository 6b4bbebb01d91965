//! The storm over budgets: `cargo run --release -p tests --bin storm -- --nodes 3 --requests 20000 --teams 20 --kill 10
//! --store postgres`, with `--redis` for shared rate limits too. Build the gateway in the same profile first: `cargo build
//! --release -p tests -p gateway --bins`.
//!
//! Two other weathers. `--even 1000`: every request costs the same, all come at once, and the one team's budget pays for
//! exactly so many. `--away 60`: a steady load, budgets with room, and the store is away for so long, then Redis: nothing may
//! fail or be lost.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a measuring program: it prints and may fail loudly, and its tasks die with it"
)]

use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};
use tests::fake::{Fake, Options};
use tests::postgres::Postgres;
use tests::redis::Redis;
use tests::storm::audit::{self, Verdict};
use tests::storm::crowd::{Crowd, Pace, Tally};
use tests::storm::nodes::{Plan, prepare};
use tests::storm::store::Store;
use tests::storm::trouble::{Trouble, absences};
use tests::storm::{EVEN, Mix, STORMY, cost};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Postgres,
    Sqlite,
}

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    #[arg(long, default_value_t = 20_000)]
    requests: usize,
    #[arg(long, default_value_t = 20)]
    teams: usize,
    /// How often a node, any of them, is killed and started again.
    #[arg(long, default_value_t = 10)]
    kill: usize,
    #[arg(long, default_value = "postgres")]
    store: Kind,
    /// Rate limits are shared through a Redis.
    #[arg(long)]
    redis: bool,
    /// How often the store is killed, and Redis, and for how many seconds each stays away.
    #[arg(long, default_value_t = 2)]
    outages: usize,
    #[arg(long, default_value_t = 3)]
    outage_s: u64,
    /// By how much the clocks of neighbouring nodes differ.
    #[arg(long, default_value_t = 700)]
    skew_ms: i64,
    /// Requests at once.
    #[arg(long, default_value_t = 200)]
    at_once: usize,
    /// All requests cost the same, come at once, and one budget pays for so many of them.
    #[arg(long)]
    even: Option<usize>,
    /// A steady load while the store is away for so many seconds, then Redis.
    #[arg(long)]
    away: Option<u64>,
    /// Requests a second of the steady load.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Seconds of the steady load before the store goes; half as long after it is back.
    #[arg(long, default_value_t = 20)]
    calm_s: u64,
    /// What share of the requests the budgets pay for, in percent, as far as can be foreseen.
    #[arg(long, default_value_t = 60)]
    paid: i64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The gateway's binary. Left out: the one beside this program.
    #[arg(long)]
    gateway: Option<PathBuf>,
}

impl Arguments {
    /// Teams, models, and what each team may spend.
    fn weather(&self) -> (usize, Mix, i64) {
        if let Some(payable) = self.even {
            return (1, EVEN, payable as i64 * cost(50));
        }
        let each = self.count() as i64 / self.teams as i64;
        if self.away.is_some() {
            // Room for far more than the load can spend.
            return (self.teams, EVEN, each * cost(50) * 20);
        }
        // About what a request of the mix costs.
        (self.teams, STORMY, each * cost(85) * self.paid / 100)
    }

    fn count(&self) -> usize {
        let Some(away_s) = self.away else {
            return self.requests;
        };
        let absence_s = away_s + self.calm_s / 2;
        let absences = 1 + u64::from(self.redis);
        (self.calm_s + absences * absence_s) as usize * self.rate as usize
    }

    fn pace(&self) -> Pace {
        if self.away.is_some() {
            Pace::EverySecond(self.rate)
        } else if self.even.is_some() {
            Pace::AtOnce(self.requests)
        } else {
            Pace::AtOnce(self.at_once)
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let fake = Arc::new(Fake::start_with(&Options::default()).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(storm(arguments, fake))
}

async fn storm(arguments: Arguments, fake: Arc<Fake>) -> ExitCode {
    let folder = tempfile::tempdir().unwrap();
    let mut store = match arguments.store {
        Kind::Postgres => Store::Postgres(Box::new(Postgres::start(&["shared_buffers = 256MB"]))),
        Kind::Sqlite => Store::Sqlite(folder.path().join("tollgate.db")),
    };
    if let Store::Postgres(server) = &store {
        std::fs::write(folder.path().join("url"), server.url()).unwrap();
    }
    let mut redis = arguments.redis.then(Redis::start);
    let (teams, mix, limit) = arguments.weather();
    let beside = std::env::current_exe().unwrap().with_file_name("tollgate");
    let plan = Plan {
        binary: arguments.gateway.clone().unwrap_or(beside),
        folder: folder.path(),
        provider: fake.base_url(),
        store: store.configuration(),
        teams,
        keys: arguments.count().min(2_000).max(teams),
        limit,
        mix,
        budget_wait_ms: 20_000,
        redis: redis.as_ref().map(Redis::url),
        skew_ms: arguments.skew_ms,
    };
    let keys = plan.keys;
    let nodes = Arc::new(prepare(&plan, arguments.nodes));
    for node in nodes.iter() {
        assert!(node.start(), "a node did not start:\n{}", node.log());
    }
    let begun = Instant::now();
    let (done, phase) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let crowd = Crowd {
        nodes: nodes.clone(),
        count: arguments.count(),
        pace: arguments.pace(),
        keys,
        limit,
        mix,
        insists: arguments.away.is_none(),
        seed: arguments.seed,
        done: done.clone(),
        phase: phase.clone(),
    };
    let callers = tokio::spawn(crowd.call());
    if let Some(away_s) = arguments.away {
        let times = (Duration::from_secs(arguments.calm_s), Duration::from_secs(away_s));
        absences(times, (&mut store, redis.as_mut()), &phase).await;
    } else if arguments.even.is_none() {
        let trouble = Trouble {
            requests: arguments.requests,
            kills: arguments.kill,
            outages: arguments.outages,
            outage: Duration::from_secs(arguments.outage_s),
            seed: arguments.seed,
        };
        trouble.happen(&nodes, (&mut store, redis.as_mut()), &done).await;
    }
    let tally = callers.await.unwrap();
    let took = begun.elapsed();
    for node in nodes.iter() {
        assert!(node.stop(), "a node did not end well:\n{}", node.log());
    }
    let entries = fake.entries();
    let verdict = audit::audit(&store, &entries, (teams, limit));
    report(&arguments, &tally, &verdict, took);
    let (p50, p99) = audit::admission(&store);
    println!(
        "admission          p50 {p50} us, p99 {p99} us (body read to decision, waits for budgets included)"
    );
    let (finished, cancelled, cut) = audit::endings(&entries);
    println!(
        "provider           {} calls: {finished} finished, {cancelled} cancelled, {cut} cut",
        entries.len()
    );
    let mut sound = verdict.is_sound();
    if let Some(payable) = arguments.even {
        let served = verdict.served as f64 / (payable as i64 * cost(50)) as f64;
        println!(
            "served             {:.2} % of what the budget pays for",
            served * 100.0
        );
        sound &= served >= 0.99;
    } else if arguments.away.is_some() {
        sound &= by_phase(&tally);
    } else {
        sound &= tally.starved * 1000 <= arguments.requests;
    }
    for line in nodes.iter().flat_map(|node| errors(&node.log())) {
        println!("log                {line}");
    }
    if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// What nodes logged that nobody caused.
fn errors(log: &str) -> Vec<String> {
    let expected = [
        "sqlx",
        "store",
        "journal of an earlier process",
        "upstream call failed",
        "passed one of its thresholds",
        "rate limits",
    ];
    let odd = |line: &&str| !expected.iter().any(|known| line.contains(known));
    log.lines().filter(odd).take(3).map(str::to_owned).collect()
}

/// Prints what each phase of the steady load came to; true if nothing failed.
fn by_phase(tally: &Tally) -> bool {
    const PHASES: [&str; 5] = [
        "before",
        "the store is away",
        "after it",
        "Redis is away",
        "after it",
    ];
    for (phase, fate) in &tally.by_phase {
        let mut took = fate.took_ms.clone();
        took.sort_unstable();
        let at = |permille: usize| took.get(took.len() * permille / 1000).copied().unwrap_or(0);
        println!(
            "{:<18} {} requests, {} failed, p50 {} ms, p99 {} ms, longest {} ms",
            PHASES[*phase],
            fate.requests,
            fate.failed,
            at(500),
            at(990),
            took.last().copied().unwrap_or(0)
        );
        if let Some(says) = &fate.first_failure {
            println!("                   the first was told {says}");
        }
    }
    tally.by_phase.values().all(|fate| fate.failed == 0)
}

fn report(arguments: &Arguments, tally: &Tally, verdict: &Verdict, took: Duration) {
    let all = arguments.count();
    println!(
        "requests           {all} in {:.1} s ({:.0}/s)",
        took.as_secs_f64(),
        all as f64 / took.as_secs_f64()
    );
    println!(
        "answers by status  {:?}, {} left, {} broken, {} unreachable",
        tally.by_status, tally.left, tally.broken, tally.unreachable
    );
    println!(
        "put off            {} answers of 503 while the store was away, asked again when they said",
        tally.put_off
    );
    println!(
        "overspend          {} nano-dollars served beyond a limit",
        verdict.overspend
    );
    println!(
        "overspend, ledger  {} nano-dollars beyond a limit, overbilling aside",
        verdict.ledger_overspend
    );
    println!(
        "overbilled         {} nano-dollars on {} requests: what the provider claimed beyond what was held",
        verdict.overbilled, verdict.overbilled_requests
    );
    println!("lost attempts      {}", verdict.lost);
    println!("duplicated         {}", verdict.duplicated);
    println!(
        "mismatched windows {} {:?}",
        verdict.mismatched.len(),
        verdict.mismatched
    );
    println!(
        "starved            {} ({:.3} %)",
        tally.starved,
        tally.starved as f64 * 100.0 / all as f64
    );
    if let Some(says) = &tally.starved_says {
        println!("                   the first was told {says}");
    }
    println!("refused            {} by a budget", tally.refused_by_budget);
    println!(
        "served, charged    {} and {} nano-dollars",
        verdict.served, verdict.charged
    );
}
