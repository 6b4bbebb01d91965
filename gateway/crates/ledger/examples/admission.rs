//! How long admission takes, from the text of a key to money held, with 10,000 accounts and 50,000 keys in memory.
//!
//! `cargo run --release -p ledger --example admission [postgres]`. Every team has a hard
//! budget, and so has its organisation. Keys are made and budgets changed while it is measured: what takes over a change
//! must not stop anyone.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a measurement"
)]

use exchange::{AccountPath, Grants, KeyHash, Money, RequestId};
use hdrhistogram::Histogram;
use ledger::{
    AccountSpec, Ask, BudgetChange, BudgetSpec, Change, Database, Fsync, KeySpec, Leases, Ledger, Period,
    Role, Settings, Source, StoredKey, StoredSecret,
};
use sha2::{Digest, Sha256};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tests::postgres::Postgres;

const ORGS: u32 = 100;
const TEAMS: u32 = 10_000 - ORGS;
const KEYS: u32 = 50_000;
const THREADS: u64 = 2;
const TIMES: u64 = 400_000;
const MOST: Duration = Duration::from_secs(20);

fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_micros()).unwrap()
}

fn org(number: u32) -> AccountPath {
    format!("org-{}", number % ORGS).parse().unwrap()
}

fn team(number: u32) -> AccountPath {
    AccountPath {
        team: Some(format!("team-{}", number % TEAMS).into()),
        ..org(number % TEAMS)
    }
}

fn key_text(number: u32) -> String {
    format!("tg_a_key_of_the_usual_length_for_a_measurement_{number:05}")
}

fn hash(number: u32) -> KeyHash {
    KeyHash(Sha256::digest(key_text(number).as_bytes()).into())
}

fn key_path(number: u32) -> AccountPath {
    AccountPath {
        key: Some(format!("key-{number}").into()),
        ..team(number)
    }
}

fn settings(folder: &std::path::Path, database: Database) -> Settings {
    let budget = |dollars| BudgetSpec {
        limit: Money::from_dollars(dollars),
        period: Period::Month,
        ..BudgetSpec::default()
    };
    let orgs = (0..ORGS).map(|number| (org(number), budget(1_000_000)));
    let teams = (0..TEAMS).map(|number| (team(number), budget(10_000)));
    let accounts = orgs.chain(teams).map(|(path, budget)| AccountSpec {
        path,
        budgets: vec![budget],
    });
    let keys = (0..KEYS).map(|number| KeySpec {
        hash: hash(number),
        account: key_path(number),
        grants: Grants::default(),
        networks: Vec::new(),
        budgets: Vec::new(),
        disabled: false,
    });
    Settings {
        database,
        journal: folder.join("journal"),
        fsync: Fsync::Never,
        leases: Leases::default(),
        accounts: accounts.collect(),
        keys: keys.collect(),
        clock: now_us,
    }
}

/// Keys are made and budgets changed while others are measured.
async fn administer(ledger: Ledger, until: Instant) -> u32 {
    let mut done = 0;
    while Instant::now() < until {
        let change = Change {
            actor: "measurement",
            reason: "",
            at_us: now_us(),
        };
        let secret = StoredSecret {
            hash: hash(KEYS + done),
            hint: "tg_…".into(),
            created_us: change.at_us,
            expires_us: None,
        };
        let key = StoredKey {
            id: format!("{done:08}").into(),
            account: key_path(KEYS + done),
            role: Role::Caller,
            grants: Grants::default(),
            networks: Vec::new(),
            created_us: change.at_us,
            expires_us: None,
            disabled: false,
            rates: ledger::Rates::default(),
            revoked: false,
            source: Source::Api,
            secrets: vec![secret],
        };
        ledger.create_key(key, change).await.unwrap();
        let increase = BudgetChange {
            increase: Some(ledger::Increase {
                amount: Money::from_dollars(i64::from(done)),
                until_us: i64::MAX,
            }),
            ..BudgetChange::default()
        };
        let id = format!("{} month", team(done));
        ledger.change_budget(&id, increase, change).await.unwrap();
        done += 1;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    done
}

async fn admit(ledger: Ledger, thread: u64) -> Histogram<u64> {
    let mut times = Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap();
    let begun = Instant::now();
    for turn in 0..TIMES {
        if begun.elapsed() > MOST {
            break;
        }
        // Strides through all keys, so that caches help as little as they would.
        let number = u32::try_from((turn * 7919 + thread * 25_013) % u64::from(KEYS)).unwrap();
        let text = key_text(number);
        let now = now_us();
        let mut tail = [0; 10];
        tail[..8].copy_from_slice(&(turn << 8 | thread).to_le_bytes());
        let request = RequestId::new((now / 1000).unsigned_abs(), tail);
        let start = Instant::now();
        let key = KeyHash(Sha256::digest(text.as_bytes()).into());
        let who = ledger.authenticate(&key, now).unwrap();
        let ask = Ask {
            want: Money::from_nanos(400_000),
            least: Money::from_nanos(300_000),
            workflow: None,
            labels: &[],
            patience: Duration::from_secs(5),
            now_unix_us: now,
        };
        let held = ledger.reserve(&who, request, ask).await.unwrap();
        times.saturating_record(u64::try_from(start.elapsed().as_nanos()).unwrap());
        drop(held);
        if turn % 64 == 0 {
            tokio::task::yield_now().await;
        }
    }
    times
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
    // As in the gateway: the ledger's own tasks have a thread of their own.
    let bookkeeping = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let start = Instant::now();
    let opened = bookkeeping.spawn(Ledger::open(settings(folder.path(), database)));
    let ledger = opened.await.unwrap().unwrap();
    println!("opened in {:.1} s", start.elapsed().as_secs_f64());
    let end = Instant::now() + MOST;
    let changes = bookkeeping.spawn(administer(ledger.clone(), end));
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| tokio::task::spawn(admit(ledger.clone(), thread)))
        .collect();
    let mut all = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).unwrap();
    for thread in threads {
        all.add(thread.await.unwrap()).unwrap();
    }
    let us = |quantile| all.value_at_quantile(quantile) as f64 / 1000.0;
    println!(
        "{} admissions: p50 {:.1} us, p99 {:.1} us, p99.9 {:.1} us, longest {:.0} us",
        all.len(),
        us(0.5),
        us(0.99),
        us(0.999),
        all.max() as f64 / 1000.0
    );
    changes.abort();
    ledger.close().await;
    bookkeeping.shutdown_background();
}
