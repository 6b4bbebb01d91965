//! The ledger while its Postgres is killed: what is leased is spent, nothing is lost, and beyond that the policy rules.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use exchange::{AccountPath, Grants, KeyHash, Money, RequestId};
use ledger::{
    AccountSpec, Ask, BudgetSpec, Database, Denied, Fsync, KeySpec, Leases, Ledger, Period, Settings,
    WhenAway,
};
use std::path::Path;
use std::time::Duration;
use tests::postgres::Postgres;

/// Tuesday, 24 November 2026.
const NOW: i64 = 1_795_532_400_000_000;
const KEY: KeyHash = KeyHash([7; 32]);

fn settings(folder: &Path, url: String, when_away: WhenAway) -> Settings {
    let team = AccountPath {
        org: "acme".into(),
        team: Some("search".into()),
        workflow: None,
        key: None,
    };
    let budget = BudgetSpec {
        limit: Money::from_nanos(100_000),
        period: Period::Month,
        ..BudgetSpec::default()
    };
    Settings {
        database: Database::Postgres { url, connections: 3 },
        journal: folder.join("journal"),
        fsync: Fsync::Never,
        leases: Leases {
            when_away,
            ..Leases::default()
        },
        accounts: vec![AccountSpec {
            path: team.clone(),
            budgets: vec![budget],
        }],
        keys: vec![KeySpec {
            hash: KEY,
            account: AccountPath {
                key: Some("ci".into()),
                ..team
            },
            grants: Grants::default(),
            networks: Vec::new(),
            budgets: Vec::new(),
            disabled: false,
        }],
        clock: || NOW,
    }
}

fn ask(nanos: i64, patience: Duration) -> Ask<'static> {
    Ask {
        want: Money::from_nanos(nanos),
        least: Money::from_nanos(nanos),
        workflow: None,
        labels: &[],
        patience,
        now_unix_us: NOW,
    }
}

fn id(number: u8) -> RequestId {
    RequestId::new(NOW.unsigned_abs() / 1000, [number; 10])
}

async fn hold(ledger: &Ledger, number: u8, nanos: i64) -> Result<ledger::Reservation, Denied> {
    let who = ledger.authenticate(&KEY, NOW).unwrap();
    ledger
        .reserve(&who, id(number), ask(nanos, Duration::from_secs(5)))
        .await
}

/// Asks for more than the slice until the store is known to be away; returns what was said then.
async fn beyond_the_slice(ledger: &Ledger, nanos: i64) -> Result<Money, Denied> {
    let held = hold(ledger, 99, nanos).await?;
    let granted = held.envelope().granted;
    drop(held);
    Ok(granted)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_leased_is_spent_and_the_rest_is_refused() {
    let mut server = Postgres::start(&["fsync = off"]);
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(settings(folder.path(), server.url(), WhenAway::FailClosed))
        .await
        .unwrap();
    drop(hold(&ledger, 1, 100).await.unwrap());
    server.kill();
    // The slice that the first request brought is many times what it wanted.
    for number in 2..10 {
        drop(hold(&ledger, number, 100).await.unwrap());
    }
    let refused = beyond_the_slice(&ledger, 90_000).await.unwrap_err();
    assert!(matches!(refused, Denied::Store { .. }), "{refused}");
    drop(hold(&ledger, 11, 100).await.unwrap());
    // What others hold of the slice is waited for; it comes back without the store.
    let first = hold(&ledger, 12, 1_000).await.unwrap();
    let give_back = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(first);
    };
    let (second, ()) = tokio::join!(hold(&ledger, 13, 1_000), give_back);
    drop(second.unwrap());
    server.start_again();
    // Its reserve waits for the store, which is back.
    let mut granted = beyond_the_slice(&ledger, 90_000).await;
    for _ in 0..50 {
        if granted.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        granted = beyond_the_slice(&ledger, 90_000).await;
    }
    assert_eq!(granted.unwrap(), Money::from_nanos(90_000));
    ledger.close().await;
    let left = server.query("tollgate", "SELECT spent, leased FROM budget_windows");
    assert_eq!(left, "0|0");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_allowance_is_let_out_once() {
    let mut server = Postgres::start(&["fsync = off"]);
    let folder = tempfile::tempdir().unwrap();
    let allowance = WhenAway::AllowUpTo(Money::from_nanos(50_000));
    let ledger = Ledger::open(settings(folder.path(), server.url(), allowance))
        .await
        .unwrap();
    drop(hold(&ledger, 1, 100).await.unwrap());
    server.kill();
    let first = hold(&ledger, 2, 40_000).await.unwrap();
    let refused = hold(&ledger, 3, 40_000).await.unwrap_err();
    assert!(matches!(refused, Denied::Store { .. }), "{refused}");
    drop(first);
    server.start_again();
    ledger.close().await;
}

#[tokio::test]
async fn a_store_that_may_come_back_is_told_from_one_that_refuses() {
    let mut server = Postgres::start(&["fsync = off"]);
    let at = |url: String| Database::Postgres { url, connections: 3 };
    ledger::reach(at(server.url())).await.unwrap();
    let nowhere = ledger::reach(at(server.url().replace("/tollgate", "/nowhere")))
        .await
        .unwrap_err();
    assert!(!nowhere.is_away(), "{nowhere}");
    assert!(!ledger::reach(at("not a URL".into())).await.unwrap_err().is_away());
    server.kill();
    let away = ledger::reach(at(server.url())).await.unwrap_err();
    assert!(
        away.is_away() && away.to_string().contains("that it is running"),
        "{away}"
    );
}
