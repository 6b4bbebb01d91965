//! What a request costs the ledger: `cargo run --release -p ledger --example ledger-cost`, with `-- postgres` on a Postgres of its
//! own. Prints, for the path of one request (reserve, intent, settlement), nanoseconds as the request sees them, CPU
//! nanoseconds of the whole process (the writer included, and SQLite), and requests per second until they are in the store.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a measuring program: it prints and may fail loudly"
)]

use ::tests::postgres::Postgres;
use exchange::{
    AccountPath, AttemptOutcome, AttemptRecord, BackendClass, Charge, Dialect, Ending, Grants, KeyHash,
    LatencyTier, Money, Origin, Phase, Record, RequestId, Surface, Timings, TokenClass, Usage, UsageSource,
    ValueTier,
};
use ledger::{
    AccountSpec, Ask, BudgetSpec, Database, Fsync, Intent, KeySpec, Leases, Ledger, Opening, Period, Settings,
};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const ROUNDS: u64 = 8;
const TIMES: u64 = 10_000;

fn account() -> AccountPath {
    AccountPath {
        org: "acme".into(),
        team: Some("search".into()),
        workflow: Some("nightly".into()),
        key: Some("ci".into()),
    }
}

fn settings(folder: &std::path::Path, database: Database) -> Settings {
    let budget = BudgetSpec {
        limit: Money::from_dollars(1_000_000),
        period: Period::Month,
        ..BudgetSpec::default()
    };
    let team = AccountPath {
        workflow: None,
        key: None,
        ..account()
    };
    Settings {
        database,
        journal: folder.join("journal"),
        fsync: Fsync::Never,
        leases: Leases::default(),
        clock: now_us,
        accounts: vec![AccountSpec {
            path: team,
            budgets: vec![budget.clone()],
        }],
        keys: vec![KeySpec {
            hash: KeyHash([1; 32]),
            account: account(),
            grants: Grants::default(),
            networks: Vec::new(),
            budgets: vec![budget.clone()],
            disabled: false,
        }],
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

fn intent(opening: &Arc<Opening>) -> Intent {
    let usage = Usage::new(UsageSource::Estimated).with(TokenClass::Input, 1200);
    Intent {
        opening: opening.clone(),
        number: 1,
        deployment: "openai-gpt-4o-mini".into(),
        provider: "openai".into(),
        model: "gpt-4o-mini".into(),
        class: BackendClass::Cheap,
        started_unix_us: opening.started_unix_us,
        estimate: charge(),
        usage,
    }
}

fn charge() -> Charge {
    Charge {
        total: Money::from_nanos(180_000),
        price_version: "genai-prices 2026-11-20".into(),
        ..Charge::default()
    }
}

fn record(request: RequestId, intent: &Intent) -> Record {
    let opening = &intent.opening;
    Record {
        request,
        started_unix_us: opening.started_unix_us,
        account: Some(opening.account.clone()),
        dialect: opening.dialect,
        surface: opening.surface,
        origin: opening.origin,
        model_asked: opening.model_asked.clone(),
        stream: opening.stream,
        value: opening.value,
        latency: opening.latency,
        thinking: opening.thinking,
        policy_version: opening.policy_version.clone(),
        ending: Ending::Completed,
        phase: Phase::Stream,
        refusal: None,
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
    }
}

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().unwrap();
    let server = std::env::args()
        .any(|argument| argument == "postgres")
        .then(|| Postgres::start(&[]));
    let database = match &server {
        Some(server) => Database::Postgres {
            url: server.url(),
            connections: 4,
        },
        None => Database::Sqlite(folder.path().join("ledger.db")),
    };
    let ledger = Ledger::open(settings(folder.path(), database)).await.unwrap();
    let who = ledger.authenticate(&KeyHash([1; 32]), now_us()).unwrap();
    let (mut best, cpu, begun) = (f64::INFINITY, cpu_ns(), Instant::now());
    for round in 0..ROUNDS {
        let start = Instant::now();
        for time in 0..TIMES {
            let now = now_us();
            let mut tail = [0; 10];
            tail[..8].copy_from_slice(&(round * TIMES + time).to_le_bytes());
            let request = RequestId::new((now / 1000).unsigned_abs(), tail);
            let ask = Ask {
                want: Money::from_nanos(400_000),
                least: Money::from_nanos(300_000),
                workflow: None,
                labels: &[],
                patience: Duration::ZERO,
                now_unix_us: now,
            };
            let mut held = ledger.reserve(&who, request, ask).await.unwrap();
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
            let intent = intent(&opening);
            held.begin_attempt(intent.clone()).await.unwrap();
            held.settle(record(request, &intent));
        }
        let each = start.elapsed().as_nanos() as f64 / TIMES as f64;
        best = best.min(each);
        ledger.flush().await;
    }
    let all = (cpu_ns() - cpu) as f64 / (ROUNDS * TIMES) as f64;
    println!("reserve, intent, settlement    {best:>8.0} ns a request (best of {ROUNDS} rounds)");
    println!("with writer and store          {all:>8.0} ns of CPU a request");
    let rate = (ROUNDS * TIMES) as f64 / begun.elapsed().as_secs_f64();
    println!("stored                         {rate:>8.0} requests a second");
    ledger.close().await;
}
