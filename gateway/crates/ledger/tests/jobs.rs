//! Jobs on both stores: their money is held apart, each item ends and is charged once, whoever tells of it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use exchange::{
    AccountPath, AttemptOutcome, AttemptRecord, BackendClass, Charge, Dialect, Ending, Grants, KeyHash,
    LatencyTier, Money, Origin, Phase, Record, RequestId, ServiceTier, Surface, Timings, TokenClass, Usage,
    UsageSource, ValueTier,
};
use ledger::{
    AccountSpec, Ask, BudgetSpec, Database, Denied, Fsync, ItemEnd, Job, JobKind, KeySpec, Leases, Ledger,
    NewItem, Period, Principal, Settings,
};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tests::postgres::Postgres;

const KEY: KeyHash = KeyHash([7; 32]);
const LIMIT: i64 = 1_000_000;
const HOUR_US: i64 = 3_600_000_000;

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_micros()).unwrap()
}

fn account(key: Option<&str>) -> AccountPath {
    AccountPath {
        org: "acme".into(),
        team: Some("search".into()),
        workflow: None,
        key: key.map(Into::into),
    }
}

async fn open(folder: &Path, database: Database) -> (Ledger, Arc<Principal>) {
    let budget = BudgetSpec {
        limit: Money::from_nanos(LIMIT),
        period: Period::Total,
        ..BudgetSpec::default()
    };
    let settings = Settings {
        database,
        journal: folder.to_owned(),
        fsync: Fsync::Never,
        leases: Leases::default(),
        clock: now,
        accounts: vec![AccountSpec {
            path: account(None),
            budgets: vec![budget],
        }],
        keys: vec![KeySpec {
            hash: KEY,
            account: account(Some("ci")),
            grants: Grants::default(),
            networks: Vec::new(),
            budgets: Vec::new(),
            disabled: false,
        }],
    };
    let ledger = Ledger::open(settings).await.unwrap();
    let principal = ledger.authenticate(&KEY, now()).unwrap();
    (ledger, principal)
}

fn job(id: &str, kind: JobKind, state: &str) -> Job {
    Job {
        id: id.into(),
        kind,
        account: account(Some("ci")),
        key_hash: KEY.to_hex(),
        dialect: "openai_chat".into(),
        endpoint: "/v1/chat/completions".into(),
        state: state.into(),
        input: String::new(),
        name: String::new(),
        metadata: "{}".into(),
        labels: vec![("env".into(), "prod".into())],
        webhook: String::new(),
        idempotency: String::new(),
        total: 0,
        bytes: 0,
        created_us: 0,
        deadline_us: now() + 24 * HOUR_US,
        cancelled_us: 0,
        ended_us: 0,
        expires_us: now() + 24 * HOUR_US,
        problem: String::new(),
        read_us: 0,
    }
}

fn items(count: i64, held: i64) -> Vec<NewItem> {
    let item = |number| NewItem {
        number,
        custom_id: format!("r{number}"),
        way: "batch",
        pool: "oa/mini".into(),
        provider: "oa".into(),
        deployment: "mini".into(),
        model: "gpt-mini".into(),
        class: BackendClass::Cheap,
        prefix: number % 3,
        bytes: 100,
        held: Money::from_nanos(held),
        input: Some(vec![number as u8; 5]),
        decision: Some(format!("{{\"of\":{number}}}").into()),
    };
    (1..=count).map(item).collect()
}

fn ask() -> Ask<'static> {
    Ask {
        want: Money::ZERO,
        least: Money::ZERO,
        workflow: None,
        labels: &[],
        patience: Duration::from_millis(300),
        now_unix_us: now(),
    }
}

fn end(job: &str, number: i64, charge: i64) -> ItemEnd {
    let attempt = AttemptRecord {
        number: 1,
        deployment: "mini".into(),
        provider: "oa".into(),
        model: "gpt-mini".into(),
        class: BackendClass::Cheap,
        outcome: AttemptOutcome::Answered,
        status: 200,
        usage: Usage::new(UsageSource::Reported).with(TokenClass::Input, 10),
        charge: Charge {
            total: Money::from_nanos(charge),
            service_tier: ServiceTier::Batch,
            ..Charge::default()
        },
        started_unix_us: now(),
        duration_us: 1000,
    };
    let request = RequestId::new(now() as u64 / 1000, [number as u8; 10]);
    let record = Record {
        request,
        started_unix_us: now(),
        account: Some(Arc::new(account(Some("ci")))),
        dialect: Dialect::OpenaiChat,
        surface: Surface::ChatCompletions,
        origin: Origin::Batch,
        model_asked: "gpt-mini".into(),
        stream: false,
        value: ValueTier::Standard,
        latency: LatencyTier::Batch,
        thinking: None,
        policy_version: "p1".into(),
        ending: Ending::Completed,
        phase: Phase::Stream,
        refusal: None,
        status: 200,
        timings: Timings::default(),
        attempts: [attempt].into_iter().collect(),
    };
    ItemEnd {
        job: job.into(),
        number,
        state: "succeeded",
        way: None,
        rescue: false,
        status: 200,
        problem: String::new(),
        output: Some(b"answer".to_vec()),
        charge: Money::from_nanos(charge),
        saved: Money::from_nanos(charge),
        request: Some(request),
        record: Some(record),
        decision: Some(format!("{{\"of\":{number}}}").into()),
        later_us: 0,
    }
}

/// Spent and held of the one budget, as the store says.
async fn standing(ledger: &Ledger) -> (i64, i64) {
    tokio::time::sleep(Duration::from_millis(800)).await;
    let all = ledger.all_balances(now());
    let balance = &all[0];
    (
        balance.spent.nanos(),
        balance.elsewhere.nanos() + balance.reserved.nanos(),
    )
}

async fn begin(ledger: &Ledger, who: &Principal, (count, held): (i64, i64)) -> Result<(), Denied> {
    let jobs = ledger.jobs();
    let one = job("b1", JobKind::Batch, "starting");
    assert!(jobs.create(&job("f1", JobKind::File, "receiving")).await.unwrap());
    jobs.add_items("f1", &items(count, held)).await.unwrap();
    let file = Job {
        total: count,
        bytes: count * 100,
        ..job("f1", JobKind::File, "ready")
    };
    jobs.received(&file).await.unwrap();
    let one = Job {
        webhook: "sealed".into(),
        ..one
    };
    assert!(jobs.create(&one).await.unwrap());
    let needs = jobs.needs("f1", i64::MAX).await.unwrap();
    ledger.escrow(who, &one, &needs, ask()).await?;
    assert!(jobs.start(&one, "f1", i64::MAX).await.unwrap());
    assert!(!jobs.start(&one, "f1", i64::MAX).await.unwrap(), "started once");
    Ok(())
}

async fn a_job_s_life(folder: &Path, database: Database) {
    let (ledger, who) = open(folder, database).await;
    let jobs = ledger.jobs();
    begin(&ledger, &who, (100, 5_000)).await.unwrap();
    assert_eq!(
        standing(&ledger).await,
        (0, 500_000),
        "half of the budget is held for the job"
    );

    // What is left pays for a request of its own, and no more than that.
    let other = Ask {
        want: Money::from_nanos(500_000),
        least: Money::from_nanos(500_000),
        ..ask()
    };
    let request = RequestId::new(1, [1; 10]);
    drop(ledger.reserve(&who, request, other).await.unwrap());
    let more = Ask {
        want: Money::from_nanos(500_001),
        least: Money::from_nanos(500_001),
        ..ask()
    };
    assert!(ledger.reserve(&who, request, more).await.is_err());

    let pools = jobs.pools().await.unwrap();
    assert_eq!((pools.len(), pools[0].items, pools[0].bytes), (1, 100, 10_000));
    let made = ("p1", "/v1/chat/completions", "openai");
    let formed = jobs
        .form(&pools[0], made, (60, HOUR_US), |waiting| {
            (0..waiting.len()).collect()
        })
        .await;
    assert_eq!(formed.unwrap(), 60);
    assert_eq!(jobs.pools().await.unwrap()[0].items, 40);
    assert!(
        jobs.claim(HOUR_US).await.unwrap().is_none(),
        "whoever formed it holds it"
    );
    jobs.let_go().await.unwrap();
    let mut pack = jobs.claim(HOUR_US).await.unwrap().unwrap();
    let sent = jobs.items_of("p1").await.unwrap();
    assert_eq!(sent.len(), 60);
    assert_eq!(sent[0].input.as_deref(), Some(&[sent[0].number as u8; 5][..]));
    jobs.submitted("p1").await.unwrap();
    pack.state = "submitted".into();
    assert!(jobs.save(&pack, 0, 0).await.unwrap());

    // Everything is told twice, in part even by two at once.
    let ends: Vec<ItemEnd> = sent.iter().map(|item| end("b1", item.number, 2_000)).collect();
    let (first, second) = tokio::join!(jobs.settle(&ends[..40]), jobs.settle(&ends[20..]));
    assert_eq!(first.unwrap() + second.unwrap(), 60);
    assert_eq!(jobs.settle(&ends).await.unwrap(), 0);
    let tally = jobs.tally("b1").await.unwrap();
    assert_eq!(
        (tally.of("succeeded"), tally.of("queued"), tally.charge.nanos()),
        (60, 40, 120_000)
    );
    assert_eq!(standing(&ledger).await, (120_000, 380_000));

    // The rest is cancelled, and its money is free again.
    assert!(jobs.finish().await.unwrap().is_empty());
    assert!(jobs.cancel("b1").await.unwrap());
    assert_eq!(jobs.finish().await.unwrap(), ["b1"]);
    ledger.release_job("b1").await.unwrap();
    assert_eq!(standing(&ledger).await, (120_000, 0));
    let tally = jobs.tally("b1").await.unwrap();
    assert_eq!(
        (tally.of("succeeded"), tally.of("cancelled"), tally.open()),
        (60, 40, 0)
    );

    // Whoever is to be told of its end is told again until it is said that it was, and each time counts.
    for tries in 1..=3 {
        let (told, tried) = jobs.hook(HOUR_US).await.unwrap().unwrap();
        assert_eq!((told.id.as_str(), tried), ("b1", tries));
        assert!(jobs.hook(HOUR_US).await.unwrap().is_none(), "one at a time");
        jobs.hooked("b1", if tries < 3 { 1 } else { 0 }).await.unwrap();
    }
    assert!(jobs.hook(HOUR_US).await.unwrap().is_none());

    // The first reading counts, and only where there is something to read.
    assert!(jobs.first_reads(HOUR_US).await.unwrap().is_empty());
    jobs.read("b1").await.unwrap();
    let first = jobs.job("b1").await.unwrap().unwrap().read_us;
    jobs.read("b1").await.unwrap();
    let read = jobs.job("b1").await.unwrap().unwrap();
    assert!(first >= read.ended_us && read.read_us == first);
    let reads = jobs.first_reads(HOUR_US).await.unwrap();
    assert_eq!(
        (reads.len(), reads[0].items, reads[0].charge.nanos()),
        (1, 60, 120_000)
    );
    assert_eq!(
        (reads[0].team.as_str(), reads[0].model.as_str()),
        ("search", "gpt-mini")
    );
    assert!(reads[0].lay_us >= 0 && reads[0].answer_us > 0);
    assert!(
        jobs.first_reads(0).await.unwrap().is_empty(),
        "it is too long ago"
    );
    assert_eq!(read.labels, [("env".into(), "prod".into())]);
    let kept = jobs.items("b1", (0, 1)).await.unwrap();
    assert_eq!(
        kept[0].decision.as_deref(),
        Some("{\"of\":1}"),
        "as in the file it was made of"
    );
    let stored = ledger.request(ends[0].request.unwrap()).await.unwrap().unwrap();
    assert_eq!(stored.total, "$0.000002");
    ledger.close().await;
}

async fn a_job_beyond_the_budget(folder: &Path, database: Database) {
    let (ledger, who) = open(folder, database).await;
    let denied = begin(&ledger, &who, (100, 15_000)).await.unwrap_err();
    assert!(matches!(denied, Denied::Budget { .. }), "{denied}");
    assert_eq!(standing(&ledger).await, (0, 0), "nothing stays held");
    assert_eq!(
        ledger
            .jobs()
            .affordable("f1", Money::from_nanos(LIMIT))
            .await
            .unwrap(),
        66
    );
    ledger.close().await;
}

/// A job's money outlives the node that took it: another one finds it held.
async fn a_job_after_a_restart(folder: &Path, database: Database) {
    let (ledger, who) = open(folder, database.clone()).await;
    begin(&ledger, &who, (10, 50_000)).await.unwrap();
    // As after kill -9: nothing is given back.
    std::mem::forget(ledger);
    let (ledger, _) = open(&folder.join("other"), database).await;
    assert_eq!(standing(&ledger).await, (0, 500_000));
    ledger.close().await;
}

/// Jobs of every kind whose node ended while they were starting give back their money, counted from when all their items
/// had arrived: a long upload is not cut off.
async fn jobs_killed_while_starting(folder: &Path, database: Database) {
    const SOON_US: i64 = 500_000;
    let (ledger, who) = open(folder, database).await;
    let jobs = ledger.jobs();
    let kinds = [JobKind::Messages, JobKind::Request];
    for kind in kinds {
        assert!(jobs.create(&job(kind.as_str(), kind, "receiving")).await.unwrap());
        jobs.add_items(kind.as_str(), &items(2, 5_000)).await.unwrap();
    }
    // Longer than a job may be starting.
    tokio::time::sleep(Duration::from_millis(700)).await;
    for kind in kinds {
        let id = kind.as_str();
        jobs.received(&job(id, kind, "starting")).await.unwrap();
        let needs = jobs.needs(id, i64::MAX).await.unwrap();
        ledger
            .escrow(&who, &job(id, kind, "starting"), &needs, ask())
            .await
            .unwrap();
    }
    assert!(jobs.create(&job("b1", JobKind::Batch, "starting")).await.unwrap());
    let left = jobs.left_over((HOUR_US, SOON_US)).await.unwrap();
    assert!(left.is_empty(), "what arrived just now is not given up: {left:?}");
    assert_eq!(standing(&ledger).await, (0, 20_000), "held for both");
    let mut left = jobs.left_over((HOUR_US, SOON_US)).await.unwrap();
    left.sort();
    assert_eq!(left, ["messages", "request"], "those that hold money");
    for id in &left {
        ledger.release_job(id).await.unwrap();
    }
    for id in ["messages", "request", "b1"] {
        assert_eq!(jobs.job(id).await.unwrap().unwrap().state, "failed");
    }
    assert_eq!(standing(&ledger).await, (0, 0), "nothing stays held");
    ledger.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_in_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| {
        (
            folder.path().join(name),
            Database::Sqlite(folder.path().join(format!("{name}.db"))),
        )
    };
    let (journal, database) = place("life");
    a_job_s_life(&journal, database).await;
    let (journal, database) = place("beyond");
    a_job_beyond_the_budget(&journal, database).await;
    let (journal, database) = place("starting");
    jobs_killed_while_starting(&journal, database).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_in_postgres() {
    let folder = tempfile::tempdir().unwrap();
    let postgres = Postgres::start(&["fsync = off"]);
    let place = |name: &str| {
        let url = postgres.create(name);
        (
            folder.path().join(name),
            Database::Postgres { url, connections: 4 },
        )
    };
    let (journal, database) = place("life");
    a_job_s_life(&journal, database).await;
    let (journal, database) = place("beyond");
    a_job_beyond_the_budget(&journal, database).await;
    let (journal, database) = place("starting");
    jobs_killed_while_starting(&journal, database).await;
    let (_, database) = place("restart");
    a_job_after_a_restart(&folder.path().join("restart"), database).await;
}
