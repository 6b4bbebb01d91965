//! The storm over budgets: `cargo run --release -p tests --bin storm -- --nodes 3 --requests 20000 --teams 20 --kill 10
//! --store postgres`. Build the gateway in the same profile first: `cargo build --release -p gateway`.
//!
//! `--even 1000` is another weather: every request costs the same, all come at once, and the one team's budget pays for
//! exactly so many.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a measuring program: it prints and may fail loudly, and its tasks die with it"
)]

use clap::{Parser, ValueEnum};
use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tests::fake::{Fake, Options};
use tests::postgres::Postgres;
use tests::storm::audit::{self, Verdict};
use tests::storm::callers::{Outcome, Request, call};
use tests::storm::nodes::{Node, Plan, prepare};
use tests::storm::store::Store;
use tests::storm::{EVEN, Mix, STORMY, cost};
use tokio::task::JoinSet;
use tokio::time::sleep;

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
    /// How often the store is killed, and for how many seconds it stays away.
    #[arg(long, default_value_t = 2)]
    outages: usize,
    #[arg(long, default_value_t = 3)]
    outage_s: u64,
    /// Requests at once.
    #[arg(long, default_value_t = 200)]
    at_once: usize,
    /// All requests cost the same, come at once, and one budget pays for so many of them.
    #[arg(long)]
    even: Option<usize>,
    /// What share of the requests the budgets pay for, in percent, as far as can be foreseen.
    #[arg(long, default_value_t = 60)]
    paid: i64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The gateway's binary. Left out: the one beside this program.
    #[arg(long)]
    gateway: Option<PathBuf>,
}

/// A small generator: the storm can be had again by its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below.max(1)
    }
}

/// What callers saw.
#[derive(Default)]
struct Tally {
    by_status: HashMap<u16, usize>,
    left: usize,
    broken: usize,
    unreachable: usize,
    /// Refused by a budget of which less than nine tenths had been spent.
    starved: usize,
    /// What the first of them was told.
    starved_says: Option<String>,
    refused_by_budget: usize,
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
    let (teams, mix, limit) = weather(&arguments);
    let beside = std::env::current_exe().unwrap().with_file_name("tollgate");
    let binary = arguments.gateway.clone().unwrap_or(beside);
    let plan = Plan {
        binary,
        folder: folder.path(),
        provider: fake.base_url(),
        store: store.configuration(),
        teams,
        keys: arguments.requests.min(2_000).max(teams),
        limit,
        mix,
        budget_wait_ms: 20_000,
    };
    let keys = plan.keys;
    let nodes = Arc::new(prepare(&plan, arguments.nodes));
    for node in nodes.iter() {
        assert!(node.start(), "a node did not start:\n{}", node.log());
    }
    let begun = Instant::now();
    let done = Arc::new(AtomicUsize::new(0));
    let callers = tokio::spawn(callers(Load {
        nodes: nodes.clone(),
        count: arguments.requests,
        at_once: if arguments.even.is_some() {
            arguments.requests
        } else {
            arguments.at_once
        },
        keys,
        limit,
        mix,
        seed: arguments.seed,
        done: done.clone(),
    }));
    trouble(&arguments, &nodes, &mut store, &done).await;
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
    if let Some(payable) = arguments.even {
        let served = verdict.served as f64 / (payable as i64 * cost(50)) as f64;
        println!(
            "served             {:.2} % of what the budget pays for",
            served * 100.0
        );
    }
    for line in nodes.iter().flat_map(|node| errors(&node.log())) {
        println!("log                {line}");
    }
    let sound = verdict.overspend == 0 && verdict.ledger_overspend == 0 && verdict.lost == 0;
    if sound && verdict.duplicated == 0 && verdict.mismatched.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Teams, models, and what each team may spend.
fn weather(arguments: &Arguments) -> (usize, Mix, i64) {
    if let Some(payable) = arguments.even {
        return (1, EVEN, payable as i64 * cost(50));
    }
    // About what a request of the mix costs.
    let usual = cost(85);
    let each = arguments.requests as i64 / arguments.teams as i64;
    (arguments.teams, STORMY, each * usual * arguments.paid / 100)
}

struct Load {
    nodes: Arc<Vec<Node>>,
    count: usize,
    at_once: usize,
    keys: usize,
    limit: i64,
    mix: Mix,
    seed: u64,
    done: Arc<AtomicUsize>,
}

async fn callers(load: Load) -> Tally {
    let mut dice = Dice(load.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut tally = Tally::default();
    let mut tasks: JoinSet<Outcome> = JoinSet::new();
    for _ in 0..load.count {
        while tasks.len() >= load.at_once {
            note(&load, &mut tally, tasks.join_next().await.unwrap().unwrap());
        }
        let request = any_request(&mut dice, &load);
        let (nodes, first) = (load.nodes.clone(), dice.roll(load.nodes.len() as u64) as usize);
        tasks.spawn(async move { reach(&nodes, first, &request).await });
    }
    while let Some(done) = tasks.join_next().await {
        note(&load, &mut tally, done.unwrap());
    }
    tally
}

fn any_request(dice: &mut Dice, load: &Load) -> Request {
    let mut at = dice.roll(100) as u32;
    let found = load.mix.iter().find(|(_, share)| {
        let here = at < *share;
        at = at.saturating_sub(*share);
        here
    });
    let even = load.mix.len() == 1;
    let leaves = !even && dice.roll(100) < 8;
    Request {
        key: dice.roll(load.keys as u64) as usize,
        model: found.map_or(load.mix[0].0, |(model, _)| model),
        stream: dice.roll(2) == 0,
        leaves_after: leaves.then(|| Duration::from_millis(dice.roll(300))),
    }
}

/// The node of choice, or the next that is up.
async fn reach(nodes: &[Node], first: usize, request: &Request) -> Outcome {
    for attempt in 0..400 {
        let node = &nodes[(first + attempt) % nodes.len()];
        if let Some(address) = node.address() {
            match call(address, request).await {
                Outcome::Unreachable => {}
                outcome => return outcome,
            }
        }
        sleep(Duration::from_millis(25)).await;
    }
    Outcome::Unreachable
}

fn note(load: &Load, tally: &mut Tally, outcome: Outcome) {
    load.done.fetch_add(1, Ordering::SeqCst);
    match outcome {
        Outcome::Unreachable => tally.unreachable += 1,
        Outcome::Broken => tally.broken += 1,
        Outcome::Left => tally.left += 1,
        Outcome::Answered { status, body, .. } => {
            *tally.by_status.entry(status).or_default() += 1;
            if status == 429 && body.contains("budget") {
                tally.refused_by_budget += 1;
                if spent(&body).unwrap_or(0) < load.limit / 10 * 9 {
                    tally.starved += 1;
                    tally.starved_says.get_or_insert(body);
                }
            }
        }
    }
}

/// What a refusal says has been spent: `$0.10 of $0.20 spent`, in nano-dollars.
fn spent(body: &str) -> Option<i64> {
    let (before, _) = body.split_once(" of $")?;
    let (_, dollars) = before.rsplit_once('$')?;
    let (whole, fraction) = dollars.split_once('.')?;
    Some(whole.parse::<i64>().ok()? * 1_000_000_000 + format!("{fraction:0<9}").parse::<i64>().ok()?)
}

/// Kills nodes and stops the store, spread over the run.
async fn trouble(arguments: &Arguments, nodes: &[Node], store: &mut Store, done: &AtomicUsize) {
    let mut dice = Dice(
        arguments
            .seed
            .wrapping_add(77)
            .wrapping_mul(0x2545_f491_4f6c_dd1d)
            | 1,
    );
    let outages = if arguments.store == Kind::Postgres {
        arguments.outages
    } else {
        0
    };
    if arguments.even.is_some() {
        return;
    }
    let events = arguments.kill + outages;
    for event in 0..events {
        let at = arguments.requests * (event + 1) / (events + 1);
        while done.load(Ordering::SeqCst) < at {
            sleep(Duration::from_millis(10)).await;
        }
        // Outages come evenly among the kills.
        let is_outage = outages > 0 && (event + 1) * outages / events > event * outages / events;
        if is_outage {
            println!(
                "at {at} requests: the store is killed for {} s",
                arguments.outage_s
            );
            store.stop();
            sleep(Duration::from_secs(arguments.outage_s)).await;
            store.start();
            continue;
        }
        let node = &nodes[dice.roll(nodes.len() as u64) as usize];
        node.kill();
        sleep(Duration::from_millis(dice.roll(500))).await;
        assert!(node.start(), "a killed node did not start again:\n{}", node.log());
        println!("at {at} requests: a node was killed and started again");
    }
}

/// What nodes logged that nobody caused.
fn errors(log: &str) -> Vec<String> {
    let expected = ["store", "journal of an earlier process", "upstream call failed"];
    let odd = |line: &&str| !expected.iter().any(|known| line.contains(known));
    log.lines().filter(odd).take(3).map(str::to_owned).collect()
}

fn report(arguments: &Arguments, tally: &Tally, verdict: &Verdict, took: Duration) {
    let all = arguments.requests;
    let mut statuses: Vec<_> = tally.by_status.iter().collect();
    statuses.sort_unstable();
    println!(
        "requests           {all} in {:.1} s ({:.0}/s)",
        took.as_secs_f64(),
        all as f64 / took.as_secs_f64()
    );
    println!(
        "answers by status  {statuses:?}, {} left, {} broken, {} unreachable",
        tally.left, tally.broken, tally.unreachable
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
