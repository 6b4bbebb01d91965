//! The ledger against a real database file and journal: grants, settlement, crashes, a store that goes away.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use exchange::{
    AccountPath, AttemptOutcome, AttemptRecord, BackendClass, Charge, Dialect, Ending, Grants, KeyHash,
    LatencyTier, Money, Origin, Phase, Record, RequestId, Surface, Timings, TokenClass, Usage, UsageSource,
    ValueTier,
};
use ledger::{
    AccountSpec, Ask, BudgetSpec, Database, Denied, Fsync, Intent, KeySpec, Leases, Ledger, Opening, Period,
    Principal, Settings,
};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Tuesday, 24 November 2026.
const NOW: i64 = 1_795_532_400_000_000;
const KEY: KeyHash = KeyHash([7; 32]);

fn account(key: Option<&str>) -> AccountPath {
    AccountPath {
        org: "acme".into(),
        team: Some("search".into()),
        workflow: None,
        key: key.map(Into::into),
    }
}

fn settings(folder: &Path, limit: Money) -> Settings {
    let monthly = vec![BudgetSpec {
        limit,
        period: Period::Month,
        ..BudgetSpec::default()
    }];
    Settings {
        database: Database::Sqlite(folder.join("ledger.db")),
        journal: folder.join("journal"),
        fsync: Fsync::Never,
        leases: Leases::default(),
        clock: || NOW,
        accounts: vec![AccountSpec {
            path: account(None),
            budgets: monthly,
        }],
        keys: vec![KeySpec {
            hash: KEY,
            account: account(Some("ci")),
            grants: Grants::default(),
            networks: Vec::new(),
            budgets: Vec::new(),
            disabled: false,
        }],
    }
}

async fn open(folder: &Path, limit: Money) -> (Ledger, Arc<Principal>) {
    let ledger = Ledger::open(settings(folder, limit)).await.unwrap();
    let principal = ledger.authenticate(&KEY, NOW).unwrap();
    (ledger, principal)
}

fn id(number: u64) -> RequestId {
    RequestId::new(NOW as u64 / 1000 + number, [number as u8; 10])
}

fn ask(nanos: i64) -> Ask<'static> {
    Ask {
        want: Money::from_nanos(nanos),
        least: Money::from_nanos(nanos),
        workflow: None,
        labels: &[],
        patience: Duration::from_millis(50),
        now_unix_us: NOW,
    }
}

fn intent() -> Intent {
    let opening = Opening {
        started_unix_us: NOW,
        account: Arc::new(account(Some("ci"))),
        dialect: Dialect::OpenaiChat,
        surface: Surface::ChatCompletions,
        origin: Origin::Live,
        model_asked: "auto".into(),
        stream: true,
        value: ValueTier::Standard,
        latency: LatencyTier::Interactive,
        thinking: None,
        policy_version: "p1".into(),
    };
    Intent {
        opening: Arc::new(opening),
        number: 1,
        deployment: "mini".into(),
        provider: "openai".into(),
        model: "gpt-4o-mini".into(),
        class: BackendClass::Cheap,
        started_unix_us: NOW,
        estimate: Charge {
            price_version: "b1".into(),
            ..Charge::default()
        },
        usage: Usage::new(UsageSource::Estimated).with(TokenClass::Input, 10),
    }
}

fn record(request: RequestId, charge: i64) -> Record {
    let intent = intent();
    let opening = intent.opening;
    let attempt = AttemptRecord {
        number: 1,
        deployment: intent.deployment,
        provider: intent.provider,
        model: intent.model,
        class: intent.class,
        outcome: AttemptOutcome::Answered,
        status: 200,
        usage: Usage::new(UsageSource::Reported)
            .with(TokenClass::Input, 10)
            .with(TokenClass::Output, 5),
        charge: Charge {
            total: Money::from_nanos(charge),
            ..Charge::default()
        },
        started_unix_us: NOW,
        duration_us: 1000,
    };
    Record {
        request,
        started_unix_us: NOW,
        account: Some(opening.account.clone()),
        dialect: opening.dialect,
        surface: opening.surface,
        origin: opening.origin,
        model_asked: "a \"quoted\" model".into(),
        stream: true,
        value: opening.value,
        latency: opening.latency,
        thinking: None,
        policy_version: opening.policy_version.clone(),
        ending: Ending::Completed,
        phase: Phase::Stream,
        refusal: None,
        status: 200,
        timings: Timings {
            total_us: 5000,
            ..Timings::default()
        },
        attempts: [attempt].into_iter().collect(),
    }
}

#[tokio::test]
async fn what_is_settled_is_spent_stored_and_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let limit = Money::from_nanos(1000);
    let (ledger, who) = open(folder.path(), limit).await;
    let mut held = ledger.reserve(&who, id(1), ask(600)).await.unwrap();
    held.begin_attempt(intent()).await.unwrap();
    let refused = ledger.reserve(&who, id(2), ask(600)).await.unwrap_err();
    assert!(
        refused.to_string().contains("month budget of acme/search"),
        "{refused}"
    );
    held.settle(record(id(1), 250));
    ledger.flush().await;
    let stored = ledger.request(id(1)).await.unwrap().unwrap();
    assert_eq!((stored.total.as_str(), stored.attempts.len()), ("$0.00000025", 1));
    assert_eq!(stored.model_asked, "a \"quoted\" model");
    ledger.close().await;
    drop(ledger);
    let (ledger, who) = open(folder.path(), limit).await;
    let balance = &ledger.balances(&who, NOW)[0];
    assert_eq!(
        (balance.spent, balance.reserved),
        (Money::from_nanos(250), Money::ZERO)
    );
}

#[tokio::test]
async fn a_partial_grant_is_extended_while_there_is_money() {
    let folder = tempfile::tempdir().unwrap();
    let (ledger, who) = open(folder.path(), Money::from_nanos(100)).await;
    let want = Ask {
        want: Money::from_nanos(500),
        ..ask(60)
    };
    let mut first = ledger
        .reserve(
            &who,
            id(1),
            Ask {
                want: Money::from_nanos(60),
                ..want
            },
        )
        .await
        .unwrap();
    assert_eq!(first.extend(Money::from_nanos(30)).await, Money::from_nanos(30));
    assert_eq!(first.extend(Money::from_nanos(30)).await, Money::from_nanos(10));
    assert_eq!(first.extend(Money::from_nanos(30)).await, Money::ZERO);
    drop(first);
    assert_eq!(
        ledger
            .reserve(&who, id(2), want)
            .await
            .unwrap()
            .envelope()
            .granted,
        Money::from_nanos(60),
        "no more than it needs to begin with: others may come"
    );
}

/// A copy of the journal taken at any byte is what a kill at that instant leaves: whatever had begun is accounted for
/// exactly once, and opening a second time changes nothing.
#[tokio::test]
async fn every_begun_attempt_is_accounted_for_once_after_a_kill() {
    let origin = tempfile::tempdir().unwrap();
    let limit = Money::from_nanos(1_000_000);
    let (ledger, who) = open(origin.path(), limit).await;
    let journal = origin.path().join("journal/000000000001.journal");
    let (mut running, mut ends) = (Vec::new(), Vec::new());
    for number in 1..=6 {
        let mut held = ledger.reserve(&who, id(number), ask(1000)).await.unwrap();
        held.begin_attempt(intent()).await.unwrap();
        // The kernel has the intent now, or the upstream must not be called.
        ends.push(usize::try_from(journal.metadata().unwrap().len()).unwrap());
        if number % 2 == 0 {
            held.settle(record(id(number), 400));
        } else {
            held.extend(Money::from_nanos(500)).await;
            running.push(held);
        }
    }
    let bytes = std::fs::read(&journal).unwrap();
    for cut in (0..=bytes.len()).step_by(97).chain([bytes.len()]) {
        let copy = tempfile::tempdir().unwrap();
        std::fs::create_dir(copy.path().join("journal")).unwrap();
        std::fs::write(copy.path().join("journal/000000000001.journal"), &bytes[..cut]).unwrap();
        let whole = ends.iter().filter(|end| **end <= cut).count();
        let mut spent = None;
        for _ in 0..2 {
            let (ledger, who) = open(copy.path(), limit).await;
            let mut rows = 0;
            for number in 1..=6 {
                rows += usize::from(ledger.request(id(number)).await.unwrap().is_some());
            }
            assert_eq!(rows, whole, "rows at byte {cut}");
            let now = ledger.balances(&who, NOW)[0].spent;
            assert_eq!(
                *spent.get_or_insert(now),
                now,
                "a second opening changed the balance"
            );
            ledger.close().await;
        }
    }
    drop(running);
}

#[tokio::test]
async fn a_dropped_reservation_is_free_only_if_nothing_began() {
    let folder = tempfile::tempdir().unwrap();
    let (ledger, who) = open(folder.path(), Money::from_nanos(1000)).await;
    drop(ledger.reserve(&who, id(1), ask(600)).await.unwrap());
    let mut begun = ledger.reserve(&who, id(2), ask(600)).await.unwrap();
    begun.begin_attempt(intent()).await.unwrap();
    drop(begun);
    let balance = &ledger.balances(&who, NOW)[0];
    assert_eq!(
        (balance.spent, balance.reserved),
        (Money::from_nanos(600), Money::ZERO)
    );
    ledger.flush().await;
    let stored = ledger.request(id(2)).await.unwrap().unwrap();
    assert_eq!(
        (stored.ending.as_str(), stored.attempts[0].usage_source.as_str()),
        ("crashed", "estimated")
    );
}

#[tokio::test]
async fn one_journal_belongs_to_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let _first = open(folder.path(), Money::ZERO).await;
    let second = Ledger::open(settings(folder.path(), Money::ZERO))
        .await
        .unwrap_err();
    assert!(
        second.to_string().contains("in use by another process"),
        "{second}"
    );
}

#[tokio::test]
async fn damage_inside_a_journal_is_told_and_nothing_is_deleted() {
    let folder = tempfile::tempdir().unwrap();
    {
        let (ledger, who) = open(folder.path(), Money::from_nanos(1000)).await;
        let mut held = ledger.reserve(&who, id(1), ask(10)).await.unwrap();
        held.begin_attempt(intent()).await.unwrap();
        held.settle(record(id(1), 5));
        ledger.close().await;
    }
    let path = folder.path().join("journal/000000000001.journal");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let problem = Ledger::open(settings(folder.path(), Money::ZERO))
        .await
        .unwrap_err()
        .to_string();
    assert!(problem.contains("damaged at byte 8"), "{problem}");
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_together_never_hold_more_than_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let limit = Money::from_nanos(10_000);
    let (ledger, who) = open(folder.path(), limit).await;
    let mut threads = tokio::task::JoinSet::new();
    for thread in 0..4 {
        let (ledger, who) = (ledger.clone(), who.clone());
        threads.spawn(async move {
            for round in 0..500 {
                let Ok(held) = ledger.reserve(&who, id(thread * 1000 + round), ask(3000)).await else {
                    continue;
                };
                let balance = &ledger.balances(&who, NOW)[0];
                assert!(balance.spent.plus(balance.reserved) <= limit);
                drop(held);
            }
        });
    }
    while let Some(done) = threads.join_next().await {
        done.unwrap();
    }
    let denied = ledger.reserve(&who, id(9), ask(10_001)).await.unwrap_err();
    assert!(matches!(denied, Denied::Budget { .. }));
}
