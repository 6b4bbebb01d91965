//! What one node's administrator does is in force on every node within seconds.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use exchange::{AccountPath, Grants, KeyHash, Money, RequestId};
use ledger::{
    Ask, Budget, BudgetSpec, Change, Database, Denied, Fsync, Increase, Leases, Ledger, NotAccepted, Period,
    Role, Settings, Source, StoredKey, StoredSecret,
};
use std::path::Path;
use std::time::Duration;
use tests::postgres::Postgres;

/// Tuesday, 24 November 2026.
const NOW: i64 = 1_795_532_400_000_000;

async fn open(folder: &Path, url: String) -> Ledger {
    Ledger::open(Settings {
        database: Database::Postgres { url, connections: 4 },
        journal: folder.join("journal"),
        fsync: Fsync::Never,
        leases: Leases::default(),
        clock: || NOW,
        accounts: Vec::new(),
        keys: Vec::new(),
    })
    .await
    .unwrap()
}

fn change() -> Change<'static> {
    Change {
        actor: "ann",
        reason: "a test",
        at_us: NOW,
    }
}

fn secret(number: u8) -> StoredSecret {
    StoredSecret {
        hash: KeyHash([number; 32]),
        hint: "tg_…".into(),
        created_us: NOW,
        expires_us: None,
    }
}

fn key() -> StoredKey {
    StoredKey {
        id: "01".into(),
        account: "acme/search/-/ci".parse().unwrap(),
        role: Role::Caller,
        grants: Grants::default(),
        networks: Vec::new(),
        created_us: NOW,
        expires_us: None,
        disabled: false,
        rates: ledger::Rates::default(),
        revoked: false,
        source: Source::Api,
        secrets: vec![secret(1)],
    }
}

/// Two beats, and a machine that is busy.
async fn until(what: &str, is: impl AsyncFn() -> bool) {
    for _ in 0..100 {
        if is().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not within 5 s: {what}");
}

async fn hold(ledger: &Ledger, number: u64, nanos: i64) -> Result<(), Denied> {
    let who = ledger.authenticate(&KeyHash([2; 32]), NOW).unwrap();
    let ask = Ask {
        want: Money::from_nanos(nanos),
        least: Money::from_nanos(nanos),
        workflow: None,
        labels: &[],
        patience: Duration::from_millis(200),
        now_unix_us: NOW,
    };
    let request = RequestId::new(NOW.unsigned_abs() / 1000 + number, [3; 10]);
    ledger.reserve(&who, request, ask).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_hears_of_a_change() {
    let server = Postgres::start(&["fsync = off"]);
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let here = open(here.path(), server.url()).await;
    let there = open(there.path(), server.url()).await;
    let path = |text: &str| -> AccountPath { text.parse().unwrap() };
    here.create_account((&path("acme"), "", ledger::Rates::default()), change())
        .await
        .unwrap();
    here.create_account((&path("acme/search"), "", ledger::Rates::default()), change())
        .await
        .unwrap();
    here.create_key(key(), change()).await.unwrap();
    let ask = |number: u8| there.authenticate(&KeyHash([number; 32]), NOW).map(drop);
    assert!(
        here.authenticate(&KeyHash([1; 32]), NOW).is_ok(),
        "at once where it was made"
    );
    until("a key is known", async || ask(1).is_ok()).await;
    here.rotate_key("01", (secret(2), NOW), change()).await.unwrap();
    until("a key is rotated", async || {
        ask(2).is_ok() && ask(1) == Err(NotAccepted::Expired)
    })
    .await;

    let limits = ledger::RatesChange {
        requests_per_minute: Some(Some(9)),
        ..ledger::RatesChange::default()
    };
    let limited = ledger::AccountChange {
        rates: limits,
        ..ledger::AccountChange::default()
    };
    here.change_account(&path("acme"), limited, change())
        .await
        .unwrap();
    let of_key = ledger::KeyChange {
        rates: limits,
        ..ledger::KeyChange::default()
    };
    here.change_key("01", of_key, change()).await.unwrap();
    let known = there.rates();
    until("limits are known", async || {
        let known = known.borrow().clone();
        known.len() == 2 && known.values().all(|rates| rates.requests_per_minute == Some(9))
    })
    .await;

    let spec = BudgetSpec {
        limit: Money::from_nanos(100),
        period: Period::Month,
        ..BudgetSpec::default()
    };
    let budget = Budget::new(path("acme/search"), spec);
    hold(&there, 1, 500).await.unwrap();
    here.create_budget(&budget, change()).await.unwrap();
    until("a budget is enforced", async || {
        hold(&there, 2, 500).await.is_err()
    })
    .await;
    let more = ledger::BudgetChange {
        increase: Some(Increase {
            amount: Money::from_nanos(900),
            until_us: i64::MAX,
        }),
        ..ledger::BudgetChange::default()
    };
    here.change_budget(&budget.id, more, change()).await.unwrap();
    until("a budget is increased", async || {
        hold(&there, 3, 500).await.is_ok()
    })
    .await;
    here.retire_budget(&budget.id, change()).await.unwrap();
    until("a budget is retired", async || {
        hold(&there, 4, 5000).await.is_ok()
    })
    .await;

    let off = ledger::AccountChange {
        disabled: Some(true),
        ..ledger::AccountChange::default()
    };
    here.change_account(&path("acme"), off, change()).await.unwrap();
    until("an account is switched off", async || {
        ask(2) == Err(NotAccepted::AccountDisabled)
    })
    .await;
    here.revoke_key("01", change()).await.unwrap();
    until("a key is revoked", async || ask(2) == Err(NotAccepted::Unknown)).await;
    assert_eq!(known.borrow().len(), 1, "its limit went with it");
    here.close().await;
    there.close().await;
}
