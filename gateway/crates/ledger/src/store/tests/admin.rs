//! What both stores must do for administrators.

use super::*;
use crate::keys::{KeySpec, Role, StoredKey, StoredSecret};
use crate::rates::{Rates, RatesChange};
use exchange::{Grants, KeyHash};

fn secret(number: u8, at_us: i64) -> StoredSecret {
    StoredSecret {
        hash: KeyHash([number; 32]),
        hint: format!("tg_{number}…"),
        created_us: at_us,
        expires_us: None,
    }
}

fn key(id: &str, path: &str, number: u8) -> StoredKey {
    StoredKey {
        id: id.into(),
        account: path.parse().unwrap(),
        role: Role::Caller,
        grants: Grants {
            models: vec!["gpt-*".into()],
            classes: vec![BackendClass::Local],
        },
        networks: vec!["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
        created_us: NOW,
        expires_us: Some(NOW + 1000),
        disabled: false,
        rates: Rates::default(),
        revoked: false,
        source: Source::Api,
        secrets: vec![secret(number, NOW)],
    }
}

fn within(path: &str) -> Subtree {
    Subtree::of(path.parse().unwrap())
}

async fn open(bench: &Bench, name: &str) -> Store {
    let store = Store::open(&bench.database(name), "n1".into()).await.unwrap();
    let declared: Vec<AccountPath> = ["acme", "acme/search"].map(|path| path.parse().unwrap()).into();
    store.declare_accounts(&declared, change()).await.unwrap();
    store
}

async fn accounts_form_a_tree(bench: &Bench) {
    let store = open(bench, "accounts").await;
    let path = |text: &str| -> AccountPath { text.parse().unwrap() };
    let make = |text: &str| {
        let (store, path) = (store.clone(), path(text));
        async move {
            store
                .create_account((&path, "a title", Rates::default()), change())
                .await
        }
    };
    assert!(matches!(
        make("acme/sales/leads").await,
        Err(EditError::Missing(_))
    ));
    assert!(matches!(make("acme/search").await, Err(EditError::Exists(_))));
    make("acme/sales").await.unwrap();
    make("acme/sales/leads").await.unwrap();
    make("other").await.unwrap();
    let list = |root: Subtree, after: Option<AccountPath>, limit| {
        let store = store.clone();
        async move {
            let found = store.accounts(&root, after.as_ref(), limit).await.unwrap();
            found.iter().map(|one| one.path.to_string()).collect::<Vec<_>>()
        }
    };
    let all = ["acme", "acme/sales", "acme/sales/leads", "acme/search", "other"];
    assert_eq!(list(Subtree::everything(), None, 10).await, all);
    assert_eq!(
        list(Subtree::everything(), Some(path("acme/sales")), 2).await,
        all[2..4]
    );
    assert_eq!(list(within("acme/sales"), None, 10).await, all[1..3]);

    let off = AccountChange {
        disabled: Some(true),
        ..AccountChange::default()
    };
    let version = store.version().await.unwrap();
    let changed = store
        .change_account(&path("acme/sales"), off.clone(), change())
        .await
        .unwrap();
    assert_eq!((changed.disabled, changed.title.as_str()), (true, "a title"));
    assert_eq!(store.accounts_since(version).await.unwrap(), [changed]);
    // The same again changes nothing, and says so nowhere.
    let version = store.version().await.unwrap();
    store
        .change_account(&path("acme/sales"), off, change())
        .await
        .unwrap();
    assert_eq!(store.version().await.unwrap(), version);
    // What a configuration no longer declares stays.
    store.declare_accounts(&[path("acme")], change()).await.unwrap();
    let source = |text: &str| {
        let (store, path) = (store.clone(), path(text));
        async move { store.account(&path).await.unwrap().source }
    };
    assert_eq!(
        (source("acme").await, source("acme/search").await),
        (Source::Config, Source::Api)
    );
}

async fn limits_are_kept_changed_and_taken_away(bench: &Bench) {
    let store = open(bench, "limits").await;
    let path: AccountPath = "acme/sales".parse().unwrap();
    let rates = Rates {
        requests_per_minute: Some(u32::MAX),
        tokens_per_minute: None,
        concurrency: Some(3),
    };
    let made = store.create_account((&path, "", rates), change()).await.unwrap();
    assert_eq!(
        (made.rates, store.account(&path).await.unwrap().rates),
        (rates, rates)
    );
    let limited = StoredKey {
        rates,
        ..key("01", "acme/search/-/ci", 1)
    };
    store.create_key(limited.clone(), change()).await.unwrap();
    assert_eq!(store.key("01").await.unwrap(), limited);
    let wanted = RatesChange {
        requests_per_minute: Some(Some(7)),
        tokens_per_minute: None,
        concurrency: Some(None),
    };
    let changed = Rates {
        requests_per_minute: Some(7),
        ..Rates::default()
    };
    let version = store.version().await.unwrap();
    let of_key = KeyChange {
        rates: wanted,
        ..KeyChange::default()
    };
    store.change_key("01", of_key, change()).await.unwrap();
    let of_account = AccountChange {
        rates: wanted,
        ..AccountChange::default()
    };
    store.change_account(&path, of_account, change()).await.unwrap();
    assert_eq!(store.keys_since(version).await.unwrap()[0].rates, changed);
    assert_eq!(store.accounts_since(version).await.unwrap()[0].rates, changed);
    let after = store.audit("acme/sales", (i64::MAX, 1)).await.unwrap()[0]
        .after
        .clone();
    assert!(after.unwrap().contains("\"requests_per_minute\":7"));
    // A start with a configuration that names the account leaves its limits alone.
    store
        .declare_accounts(std::slice::from_ref(&path), change())
        .await
        .unwrap();
    assert_eq!(store.account(&path).await.unwrap().rates, changed);
}

async fn ended_secrets_are_forgotten_in_time(bench: &Bench) {
    const DAY: i64 = 86_400_000_000;
    let store = open(bench, "forgotten").await;
    let lasting = |id: &str, path: &str, number: u8| StoredKey {
        expires_us: None,
        ..key(id, path, number)
    };
    store
        .create_key(lasting("01", "acme/-/-/rotated", 1), change())
        .await
        .unwrap();
    store
        .rotate_key("01", (secret(2, NOW), NOW + DAY), change())
        .await
        .unwrap();
    store
        .create_key(key("02", "acme/-/-/expired", 3), change())
        .await
        .unwrap();
    store
        .create_key(lasting("03", "acme/-/-/revoked", 4), change())
        .await
        .unwrap();
    store.revoke_key("03", change()).await.unwrap();
    store
        .create_key(lasting("04", "acme/-/-/alive", 5), change())
        .await
        .unwrap();
    let spec = KeySpec {
        hash: KeyHash([6; 32]),
        account: "acme/-/-/configured".parse().unwrap(),
        grants: Grants::default(),
        networks: Vec::new(),
        budgets: Vec::new(),
        disabled: false,
    };
    store.declare_keys(&[spec], change()).await.unwrap();
    store.declare_keys(&[], change()).await.unwrap();
    let known = async |after_days: i64| {
        let kept = Kept {
            rows_days: None,
            secrets_days: 10,
        };
        store.upkeep(NOW + after_days * DAY, kept).await.unwrap();
        let mut known: Vec<u8> = Vec::new();
        for key in store.keys_since(-1).await.unwrap() {
            known.extend(key.secrets.iter().map(|secret| secret.hash.0[0]));
        }
        known.sort_unstable();
        known
    };
    assert_eq!(known(10).await, [1, 2, 3, 4, 5, 6]);
    // The term of the second key is a millisecond.
    assert_eq!(known(11).await, [1, 2, 5, 6]);
    assert_eq!(known(12).await, [2, 5, 6]);
    // The keys themselves stay, for what was spent with them.
    assert_eq!(store.keys_since(-1).await.unwrap().len(), 5);
}

async fn keys_are_made_rotated_changed_and_revoked(bench: &Bench) {
    let store = open(bench, "keys").await;
    let made = key("01", "acme/search/-/ci", 1);
    assert_eq!(store.create_key(made.clone(), change()).await.unwrap(), made);
    assert_eq!(store.key("01").await.unwrap(), made);
    let again = store.create_key(key("02", "acme/search/-/ci", 2), change()).await;
    assert!(matches!(again, Err(EditError::Exists(_))));
    let nowhere = store
        .create_key(key("02", "acme/nowhere/-/ci", 2), change())
        .await;
    assert!(matches!(nowhere, Err(EditError::Missing(_))));

    let version = store.version().await.unwrap();
    let rotated = store
        .rotate_key("01", (secret(3, NOW + 1), NOW + 50), change())
        .await
        .unwrap();
    let ends = |key: &StoredKey| -> Vec<_> {
        key.secrets
            .iter()
            .map(|one| (one.hash.0[0], one.expires_us))
            .collect()
    };
    assert_eq!(ends(&rotated), [(3, None), (1, Some(NOW + 50))]);
    assert_eq!(
        store.keys_since(version).await.unwrap(),
        std::slice::from_ref(&rotated)
    );
    // A second rotation never lengthens the life of a secret.
    let rotated = store
        .rotate_key("01", (secret(4, NOW + 2), NOW + 90), change())
        .await
        .unwrap();
    assert_eq!(
        ends(&rotated),
        [(4, None), (3, Some(NOW + 90)), (1, Some(NOW + 50))]
    );
    assert_eq!(store.key("01").await.unwrap(), rotated);

    let wanted = KeyChange {
        classes: Some(Vec::new()),
        expires_us: Some(None),
        disabled: Some(true),
        ..KeyChange::default()
    };
    let changed = store.change_key("01", wanted, change()).await.unwrap();
    assert_eq!((changed.disabled, changed.expires_us), (true, None));
    assert_eq!(
        (changed.grants.classes.len(), changed.grants.models.len()),
        (0, 1)
    );
    store.revoke_key("01", change()).await.unwrap();
    assert!(matches!(
        store.revoke_key("01", change()).await,
        Err(EditError::Ended(_))
    ));
    assert!(matches!(
        store.revoke_key("99", change()).await,
        Err(EditError::Missing(_))
    ));
    // Its name is free again.
    store
        .create_key(key("05", "acme/search/-/ci", 5), change())
        .await
        .unwrap();
    let audit = store.audit("acme/search", (i64::MAX, 10)).await.unwrap();
    let shown: String = audit.iter().filter_map(|entry| entry.after.clone()).collect();
    assert!(
        !shown.contains(&KeyHash([1; 32]).to_hex()),
        "the trail shows no hashes"
    );
    assert!(audit[1].after.as_deref().unwrap().contains("\"revoked\":true"));
    assert!(store.audit("acme/sea", (i64::MAX, 10)).await.unwrap().is_empty());
}

async fn keys_are_listed_by_page_and_a_configurations_are_shown(bench: &Bench) {
    let store = open(bench, "key_pages").await;
    for number in 1..=5 {
        let path = if number % 2 == 0 {
            "acme/-/-/k"
        } else {
            "acme/search/-/k"
        };
        let made = key(&format!("0{number}"), &format!("{path}{number}"), number);
        store.create_key(made, change()).await.unwrap();
    }
    let ids = |root: Subtree, after: &'static str, limit| {
        let store = store.clone();
        async move {
            let found = store.keys(&root, after, limit).await.unwrap();
            found.iter().map(|key| key.id.to_string()).collect::<Vec<_>>()
        }
    };
    assert_eq!(ids(Subtree::everything(), "", 2).await, ["05", "04"]);
    assert_eq!(ids(Subtree::everything(), "04", 9).await, ["03", "02", "01"]);
    assert_eq!(ids(within("acme/search"), "05", 1).await, ["03"]);

    let spec = KeySpec {
        hash: KeyHash([9; 32]),
        account: "acme/search/-/file".parse().unwrap(),
        grants: Grants::default(),
        networks: Vec::new(),
        budgets: Vec::new(),
        disabled: false,
    };
    store
        .declare_keys(std::slice::from_ref(&spec), change())
        .await
        .unwrap();
    let version = store.version().await.unwrap();
    store
        .declare_keys(std::slice::from_ref(&spec), change())
        .await
        .unwrap();
    assert_eq!(store.version().await.unwrap(), version);
    let shown = store.keys(&within("acme/search"), "", 1).await.unwrap().remove(0);
    assert_eq!(
        (shown.source, shown.account.key.as_deref()),
        (Source::Config, Some("file"))
    );
    let refused = store.revoke_key(&shown.id, change()).await;
    assert!(matches!(refused, Err(EditError::Configured(_))));
    store.declare_keys(&[], change()).await.unwrap();
    assert!(store.key(&shown.id).await.unwrap().revoked);
}

async fn budgets_are_made_increased_and_retired(bench: &Bench) {
    let store = open(bench, "run_time_budgets").await;
    let made = budget("search", 100);
    store.create_budget(&made, change()).await.unwrap();
    assert!(matches!(
        store.create_budget(&made, change()).await,
        Err(EditError::Exists(_))
    ));
    lease(&store, &made, (0, 60, 60), 1).await;
    store.post(&[&settlement(1, &made, 30)]).await.unwrap();
    let wanted = BudgetChange {
        limit: Some(Money::from_nanos(50)),
        increase: Some(Increase {
            amount: Money::from_nanos(500),
            until_us: i64::MAX,
        }),
        ..BudgetChange::default()
    };
    let changed = store
        .change_budget(&made.id, wanted.clone(), change())
        .await
        .unwrap();
    assert_eq!(store.budget(&made.id).await.unwrap(), changed);
    assert_eq!(
        lease(&store, &changed.budget, (0, 0, 0), 1).await.limit.nanos(),
        550
    );

    let version = store.version().await.unwrap();
    store.retire_budget(&made.id, change()).await.unwrap();
    assert_eq!(
        store.changed_budgets(version).await.unwrap(),
        [(changed.budget.clone(), true)]
    );
    assert!(matches!(
        store.retire_budget(&made.id, change()).await,
        Err(EditError::Missing(_))
    ));
    lease(&store, &made, (30, 0, 0), 1).await;
    // Spent while nobody counted; the budget begins again with it.
    let mut uncounted = settlement(2, &made, 9);
    uncounted.posts.clear();
    store.post(&[&uncounted]).await.unwrap();
    store.create_budget(&made, change()).await.unwrap();
    assert_eq!(lease(&store, &made, (0, 0, 0), 1).await.spent.nanos(), 39);

    // A configuration takes a budget over and has the last word; an increase is not its business.
    store
        .declare_budgets(std::slice::from_ref(&made), change())
        .await
        .unwrap();
    let refused = store.change_budget(&made.id, wanted.clone(), change()).await;
    assert!(matches!(refused, Err(EditError::Configured(_))));
    assert!(matches!(
        store.retire_budget(&made.id, change()).await,
        Err(EditError::Configured(_))
    ));
    let increase = BudgetChange {
        limit: None,
        ..wanted
    };
    store.change_budget(&made.id, increase, change()).await.unwrap();
    assert_eq!(
        store
            .declare_budgets(std::slice::from_ref(&made), change())
            .await
            .unwrap(),
        0
    );
    assert_eq!(
        store
            .budget(&made.id)
            .await
            .unwrap()
            .budget
            .spec
            .increase
            .amount
            .nanos(),
        500
    );
}

async fn versions_become_visible_in_their_order(bench: &Bench) {
    let store = open(bench, "versions").await;
    let mut made = tokio::task::JoinSet::new();
    for number in 0..20u8 {
        let store = store.clone();
        made.spawn(async move {
            let key = key(
                &format!("{number:02}"),
                &format!("acme/-/-/k{number}"),
                number + 1,
            );
            store.create_key(key, change()).await.unwrap();
        });
    }
    let (mut seen, mut heard) = (0, std::collections::HashSet::new());
    while heard.len() < 20 {
        let version = store.version().await.unwrap();
        heard.extend(
            store
                .keys_since(seen)
                .await
                .unwrap()
                .into_iter()
                .map(|key| key.id),
        );
        seen = version;
        if made.is_empty() {
            heard.extend(
                store
                    .keys_since(seen)
                    .await
                    .unwrap()
                    .into_iter()
                    .map(|key| key.id),
            );
            break;
        }
        let _ = made.try_join_next();
    }
    assert_eq!(heard.len(), 20, "a change was overtaken by a later one");
}

async fn an_alert_is_on_its_way_until_it_is_taken(bench: &Bench) {
    let store = open(bench, "outbox").await;
    let made = budget("search", 100);
    store.create_budget(&made, change()).await.unwrap();
    let alert = |threshold| Alert {
        budget: made.id.to_string(),
        account: "acme/search".into(),
        window_starts_us: i64::MIN,
        threshold,
        spent: Money::from_nanos(81),
        limit: Money::from_nanos(100),
    };
    store.raise(vec![alert(50), alert(80)]).await.unwrap();
    let (hold, old) = (60_000_000, 3_600_000_000);
    let (first, second) = tokio::join!(store.claim_alert((hold, old)), store.claim_alert((hold, old)));
    let (first, second) = (first.unwrap(), second.unwrap());
    // Two at once never get the same one; in Postgres one of them may have to come again.
    let mut taken: Vec<_> = [first, second].into_iter().flatten().collect();
    while let Some(more) = store.claim_alert((hold, old)).await.unwrap() {
        taken.push(more);
    }
    taken.sort_unstable_by_key(|stored| stored.alert.threshold);
    let thresholds: Vec<u16> = taken.iter().map(|stored| stored.alert.threshold).collect();
    assert_eq!(thresholds, [50, 80]);
    assert_eq!((taken[0].alert.clone(), taken[0].tries), (alert(50), 1));
    store.alert_delivered(&taken[0].alert).await.unwrap();
    store.alert_again(&taken[1].alert, -1).await.unwrap();
    let again = store.claim_alert((hold, old)).await.unwrap().unwrap();
    assert_eq!((again.alert.threshold, again.tries), (80, 2));
    store.alert_again(&again.alert, -1).await.unwrap();
    assert!(
        store.claim_alert((hold, -60_000_000)).await.unwrap().is_none(),
        "it is too old"
    );
    let listed = store.alerts(&within("acme"), None, 10).await.unwrap();
    assert_eq!(listed.len(), 2);
    let first = &listed[0];
    let cursor = (
        first.raised_us,
        i64::from(first.alert.threshold),
        first.alert.budget.clone(),
    );
    let rest = store.alerts(&within("acme"), Some(cursor), 10).await.unwrap();
    assert_eq!(rest, listed[1..]);
    assert_eq!(listed.iter().filter(|one| one.delivered_us.is_some()).count(), 1);
    assert!(store.alerts(&within("other"), None, 10).await.unwrap().is_empty());
}

async fn an_answer_is_given_again(bench: &Bench) {
    let store = open(bench, "replies").await;
    let claim = |fingerprint: &'static str, now| {
        let store = store.clone();
        async move { store.claim_reply(("id", fingerprint), now).await.unwrap() }
    };
    assert_eq!(claim("one", NOW).await, Reply::Claimed);
    assert_eq!(claim("one", NOW).await, Reply::Running);
    store.keep_reply("id", None).await.unwrap();
    assert_eq!(claim("one", NOW).await, Reply::Claimed);
    // Whoever claimed it has died.
    assert_eq!(claim("one", NOW + 61_000_000).await, Reply::Claimed);
    store.keep_reply("id", Some((201, "made"))).await.unwrap();
    let known = Reply::Known {
        status: 201,
        body: "made".into(),
    };
    assert_eq!(claim("one", NOW + 70_000_000).await, known);
    assert_eq!(claim("two", NOW + 70_000_000).await, Reply::Different);
    assert_eq!(claim("two", NOW + 86_500_000_000).await, Reply::Claimed);
}

async fn requests_and_usage_are_read_by_subtree(bench: &Bench) {
    let store = open(bench, "reading").await;
    let (search, sales) = (budget("search", 1000), budget("sales", 1000));
    let all = [
        settlement(1, &search, 5),
        settlement(2, &sales, 6),
        settlement(3, &search, 7),
    ];
    store.post(&all.iter().collect::<Vec<_>>()).await.unwrap();
    let range = Range {
        from_us: NOW - 3_600_000_000,
        to_us: NOW + 60_000_000,
    };
    let list = |root: Subtree, before: Option<RequestId>| {
        let store = store.clone();
        async move {
            let found = store.requests(&root, range, (before, 10)).await.unwrap();
            found.iter().map(|one| one.charge.nanos()).collect::<Vec<_>>()
        }
    };
    assert_eq!(list(Subtree::everything(), None).await, [7, 6, 5]);
    assert_eq!(list(within("acme/search"), None).await, [7, 5]);
    let last = all[2].record.request;
    assert_eq!(list(within("acme/search"), Some(last)).await, [5]);
    let earlier = Range { to_us: NOW, ..range };
    let none = store
        .requests(&Subtree::everything(), earlier, (None, 10))
        .await
        .unwrap();
    assert!(none.is_empty());

    let asked = |within, by| UsageQuery {
        within,
        range,
        by,
        limit: 10,
    };
    let everything = Subtree::everything();
    let rows = store
        .usage(asked(&everything, &[Dimension::Team, Dimension::Day]))
        .await
        .unwrap();
    let sums: Vec<_> = rows
        .iter()
        .map(|row| (row.of[0].as_str(), row.charge.nanos(), row.requests))
        .collect();
    assert_eq!(sums, [("search", 12, 2), ("sales", 6, 1)]);
    assert_eq!(rows[0].of[1], (NOW - NOW % 86_400_000_000).to_string());
    let search = within("acme/search");
    let rows = store.usage(asked(&search, &[])).await.unwrap();
    assert_eq!((rows.len(), rows[0].charge.nanos()), (1, 12));
}

pub(super) async fn all(bench: &Bench) {
    accounts_form_a_tree(bench).await;
    limits_are_kept_changed_and_taken_away(bench).await;
    ended_secrets_are_forgotten_in_time(bench).await;
    keys_are_made_rotated_changed_and_revoked(bench).await;
    keys_are_listed_by_page_and_a_configurations_are_shown(bench).await;
    budgets_are_made_increased_and_retired(bench).await;
    versions_become_visible_in_their_order(bench).await;
    an_alert_is_on_its_way_until_it_is_taken(bench).await;
    an_answer_is_given_again(bench).await;
    requests_and_usage_are_read_by_subtree(bench).await;
}
