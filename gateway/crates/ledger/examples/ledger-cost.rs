//! What a request costs the ledger: `cargo run --release -p ledger --example ledger-cost`, with `-- postgres` on a Postgres of its
//! own. Prints, for the path of one request (reserve, intent, settlement), nanoseconds as the request sees them, CPU
//! nanoseconds of the whole process (the writer included, and SQLite), and requests per second until they are in the store.
//! With `--rate 5000 --seconds 600`: whether so many a second are kept up, and what memory they take.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a measuring program: it prints and may fail loudly"
)]

use ::tests::postgres::Postgres;
use clap::Parser;
use exchange::{
    AccountPath, AttemptOutcome, AttemptRecord, BackendClass, Charge, ChargeLine, Dialect, Ending, Grants,
    Item, KeyHash, LatencyTier, Money, Origin, Rate, Record, RequestId, Surface, Timings, TokenClass, Usage,
    UsageSource, ValueTier,
};
use ledger::{
    AccountSpec, Ask, BudgetSpec, Database, Fsync, Intent, KeySpec, Leases, Ledger, Opening, Period,
    Principal, Settings,
};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const ROUNDS: u64 = 8;

fn account(number: u16) -> AccountPath {
    AccountPath {
        org: "acme".into(),
        team: Some(format!("team{}", number / 10).into()),
        workflow: Some("nightly".into()),
        key: Some(format!("key{number}").into()),
    }
}

fn hash(number: u16) -> KeyHash {
    let mut bytes = [7; 32];
    bytes[..2].copy_from_slice(&number.to_le_bytes());
    KeyHash(bytes)
}

fn settings(folder: &std::path::Path, (database, fsync): (Database, Fsync), keys: u16) -> Settings {
    let budget = BudgetSpec {
        limit: Money::from_dollars(1_000_000),
        period: Period::Month,
        ..BudgetSpec::default()
    };
    let team = |number| AccountSpec {
        path: AccountPath {
            workflow: None,
            key: None,
            ..account(number)
        },
        budgets: vec![budget.clone()],
    };
    let key = |number| KeySpec {
        hash: hash(number),
        account: account(number),
        grants: Grants::default(),
        networks: Vec::new(),
        budgets: vec![budget.clone()],
        disabled: false,
    };
    Settings {
        database,
        journal: folder.join("journal"),
        fsync,
        leases: Leases::default(),
        clock: now_us,
        accounts: (0..keys).step_by(10).map(team).collect(),
        keys: (0..keys).map(key).collect(),
    }
}

fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_micros()).unwrap()
}

/// CPU time of this process so far, in nanoseconds, by the scheduler's count of its threads.
fn cpu_ns() -> u64 {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let of_thread = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(path.join("schedstat")).unwrap_or_default();
        text.split(' ')
            .next()
            .and_then(|first| first.parse::<u64>().ok())
            .unwrap_or(0)
    };
    threads.map(|thread| of_thread(thread.unwrap().path())).sum()
}

const MODELS: [&str; 5] = [
    "gpt-4o",
    "gpt-4o-mini",
    "claude-sonnet-4",
    "gemini-2.5-flash",
    "smollm2",
];

fn intent(opening: &Arc<Opening>, number: u64) -> Intent {
    let model = MODELS[number as usize / 7 % MODELS.len()];
    let usage = Usage::new(UsageSource::Estimated).with(TokenClass::Input, 1200);
    Intent {
        opening: opening.clone(),
        number: 1,
        deployment: format!("openai-{model}").into(),
        provider: "openai".into(),
        model: model.into(),
        class: BackendClass::Cheap,
        started_unix_us: opening.started_unix_us,
        estimate: charge(),
        usage,
    }
}

fn charge() -> Charge {
    let line = |class, quantity, rate, amount| ChargeLine {
        item: Item::Tokens(class),
        quantity,
        rate: Rate(rate),
        amount: Money::from_nanos(amount),
    };
    let lines = [
        line(TokenClass::Input, 200, 150_000, 30_000),
        line(TokenClass::CacheRead, 1_000, 75_000, 75_000),
        line(TokenClass::Output, 125, 600_000, 75_000),
    ];
    Charge {
        total: Money::from_nanos(180_000),
        lines: lines.into_iter().collect(),
        price_version: "genai-prices 2026-11-20".into(),
        ..Charge::default()
    }
}

fn record(request: RequestId, intent: &Intent) -> Record {
    Record {
        ending: Ending::Completed,
        status: 200,
        timings: Timings {
            total_us: 900,
            ..Timings::default()
        },
        attempts: [AttemptRecord {
            number: intent.number,
            deployment: intent.deployment.clone(),
            provider: intent.provider.clone(),
            model: intent.model.clone(),
            class: intent.class,
            outcome: AttemptOutcome::Answered,
            status: 200,
            usage: intent.usage,
            charge: charge(),
            started_unix_us: intent.started_unix_us,
            duration_us: 800,
        }]
        .into_iter()
        .collect(),
        ..intent.opening.record(request)
    }
}

/// Resident memory of this process, in KiB.
fn resident_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn id(number: u64, now_us: i64) -> RequestId {
    // Clear of the bits that a UUID has for its version and variant: an id that comes again is no new row.
    let mut tail = [0; 10];
    tail[3..].copy_from_slice(&number.to_be_bytes()[1..]);
    RequestId::new((now_us / 1000).unsigned_abs(), tail)
}

/// One request: reserve, intent, settlement.
async fn one(ledger: &Ledger, who: &Arc<Principal>, number: u64) {
    let now = now_us();
    let request = id(number, now);
    let ask = Ask {
        want: Money::from_nanos(400_000),
        least: Money::from_nanos(300_000),
        workflow: None,
        labels: &[],
        patience: Duration::from_secs(5),
        now_unix_us: now,
    };
    let mut held = ledger.reserve(who, request, ask).await.unwrap();
    let opening = Arc::new(Opening {
        started_unix_us: now,
        account: who.account.clone(),
        dialect: Dialect::OpenaiChat,
        surface: Surface::ChatCompletions,
        origin: Origin::Live,
        model_asked: "auto".into(),
        stream: true,
        value: ValueTier::Standard,
        latency: LatencyTier::Interactive,
        thinking: None,
        policy_version: "5f2d1c0a9b8e".into(),
    });
    let intent = intent(&opening, number);
    held.begin_attempt(intent.clone()).await.unwrap();
    held.settle(record(request, &intent));
}

async fn burst(ledger: &Ledger, all: &[Arc<Principal>], times: u64) {
    let (mut best, cpu, begun) = (f64::INFINITY, cpu_ns(), Instant::now());
    for round in 0..ROUNDS {
        let start = Instant::now();
        for time in 0..times {
            let number = round * times + time;
            one(ledger, &all[number as usize % all.len()], number).await;
        }
        let each = start.elapsed().as_nanos() as f64 / times as f64;
        best = best.min(each);
        ledger.flush().await;
    }
    let count = (ROUNDS * times) as f64;
    println!("reserve, intent, settlement    {best:>8.0} ns a request (best of {ROUNDS} rounds)");
    println!(
        "with writer and store          {:>8.0} ns of CPU a request",
        (cpu_ns() - cpu) as f64 / count
    );
    println!(
        "stored                         {:>8.0} requests a second",
        count / begun.elapsed().as_secs_f64()
    );
}

/// A steady load. Fails if it could not be kept up, if settlements pile up, or if memory grows after the first quarter.
async fn steady(ledger: &Ledger, all: &[Arc<Principal>], (rate, seconds): (u64, u64), away: u64) -> bool {
    let begun = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    let (mut number, mut told, mut after_warmup, mut deepest) = (0, 0, 0, 0);
    println!("   s  requests/s  waiting  resident MiB  CPU s");
    while begun.elapsed() < Duration::from_secs(seconds) {
        tick.tick().await;
        let due = (begun.elapsed().as_secs_f64() * rate as f64) as u64;
        while number < due {
            one(ledger, &all[number as usize % all.len()], number).await;
            number += 1;
        }
        let passed = begun.elapsed().as_secs();
        if passed >= told + 10 {
            told = passed;
            let (waiting, kib) = (ledger.counts().waiting, resident_kib());
            deepest = deepest.max(waiting);
            if passed >= seconds / 4 && after_warmup == 0 {
                after_warmup = kib;
            }
            let done = (number - waiting) as f64 / begun.elapsed().as_secs_f64();
            println!(
                "{passed:>4}  {done:>10.0}  {waiting:>7}  {:>12.0}  {:>5.0}",
                kib as f64 / 1024.0,
                cpu_ns() as f64 / 1e9
            );
        }
    }
    let kib = resident_kib();
    let flushing = Instant::now();
    ledger.flush().await;
    let reached = number as f64 / begun.elapsed().as_secs_f64();
    println!(
        "{number} requests, {reached:.0} a second until all were stored; {deepest} waiting at most, the last of them for {:.1} s",
        flushing.elapsed().as_secs_f64()
    );
    let growth = kib as f64 / after_warmup.max(1) as f64 - 1.0;
    println!(
        "resident memory after the first quarter: {:+.1} %",
        growth * 100.0
    );
    // What waits while the store is away takes memory.
    reached >= rate as f64 * 0.99 && (away > 0 || deepest < rate * 2 && growth < 0.05)
}

/// Takes the server away for a while, if that is wanted.
fn absent(mut server: Postgres, calm: Duration, away: Duration) -> Postgres {
    if !away.is_zero() {
        std::thread::sleep(calm);
        server.kill();
        std::thread::sleep(away);
        server.start_again();
    }
    server
}

#[derive(Parser)]
struct Arguments {
    #[arg(default_value = "sqlite")]
    store: String,
    /// Requests a second of a steady load; without it, as many as there can be.
    #[arg(long)]
    rate: Option<u64>,
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Postgres is killed after a quarter of the steady load and stays away for so many seconds.
    #[arg(long, default_value_t = 0)]
    away: u64,
    /// Requests in a round, without a rate.
    #[arg(long, default_value_t = 10_000)]
    times: u64,
    /// Callers, each with a key of their own, ten to a team.
    #[arg(long, default_value_t = 200)]
    keys: u16,
    /// When the journal goes to the disk: never, interval (each second), each.
    #[arg(long, default_value = "never")]
    fsync: String,
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    let folder = tempfile::tempdir().unwrap();
    let server = (arguments.store == "postgres").then(|| Postgres::start(&[]));
    let database = match &server {
        Some(server) => Database::Postgres {
            url: server.url(),
            connections: 4,
        },
        None => Database::Sqlite(folder.path().join("ledger.db")),
    };
    let fsync = match arguments.fsync.as_str() {
        "each" => Fsync::Each,
        "interval" => Fsync::Every(Duration::from_secs(1)),
        _ => Fsync::Never,
    };
    let settings = settings(folder.path(), (database, fsync), arguments.keys);
    let keys: Vec<KeyHash> = settings.keys.iter().map(|key| key.hash).collect();
    // The ledger writes in a runtime of its own, as in the gateway.
    let bookkeeping = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let ledger = bookkeeping.spawn(Ledger::open(settings)).await.unwrap().unwrap();
    let all: Vec<_> = keys
        .iter()
        .map(|key| ledger.authenticate(key, now_us()).unwrap())
        .collect();
    let absence = server.map(|server| {
        let (calm, away) = (
            Duration::from_secs(arguments.seconds / 4),
            Duration::from_secs(arguments.away),
        );
        std::thread::spawn(move || absent(server, calm, away))
    });
    let kept = match arguments.rate {
        Some(rate) => steady(&ledger, &all, (rate, arguments.seconds), arguments.away).await,
        None => {
            burst(&ledger, &all, arguments.times).await;
            true
        }
    };
    ledger.close().await;
    if let Some(server) = absence.map(|absence| absence.join().unwrap()) {
        println!(
            "rows in Postgres               {:>8}",
            server.query("tollgate", "SELECT count(*) FROM requests")
        );
    }
    bookkeeping.shutdown_background();
    if kept {
        std::process::ExitCode::SUCCESS
    } else {
        std::process::ExitCode::FAILURE
    }
}
