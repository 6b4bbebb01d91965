//! One suite for both stores: what Postgres must do, SQLite must do. Each check gets a store of its own, empty.

mod admin;

use super::*;
use crate::budget::{Budget, BudgetSpec, Enforcement, Increase, Scope};
use crate::crash::estimate;
use crate::reservation::{Intent, Opening};
use crate::settlement::{CellName, Post, Settlement};
use crate::window::Period;
use ::tests::postgres::Postgres;
use exchange::{
    AccountPath, BackendClass, Charge, Dialect, LatencyTier, Money, Origin, RequestId, Surface, Usage,
    UsageSource, ValueTier,
};
use smallvec::smallvec;

/// Tuesday, 24 November 2026.
const NOW: i64 = 1_795_532_400_000_000;

/// Where the suite runs: makes empty databases, and opens them as one node or another.
enum Bench {
    Sqlite(tempfile::TempDir),
    Postgres(Postgres),
}

impl Bench {
    fn database(&self, name: &str) -> Database {
        match self {
            Self::Sqlite(folder) => Database::Sqlite(folder.path().join(format!("{name}.db"))),
            Self::Postgres(server) => Database::Postgres {
                url: server.create(name),
                connections: 4,
            },
        }
    }
}

fn account(team: &str) -> AccountPath {
    AccountPath {
        org: "acme".into(),
        team: Some(team.into()),
        workflow: None,
        key: None,
    }
}

fn budget(team: &str, limit: i64) -> Budget {
    let spec = BudgetSpec {
        limit: Money::from_nanos(limit),
        period: Period::Total,
        ..BudgetSpec::default()
    };
    Budget::new(account(team), spec)
}

fn change() -> Change<'static> {
    Change {
        actor: "ann",
        reason: "a test",
        at_us: NOW,
    }
}

fn kept(days: u32) -> Kept {
    Kept {
        rows_days: Some(days),
        ..Kept::default()
    }
}

fn cell(budget: &Budget) -> CellName {
    let window = budget.spec.period.window(&budget.spec.zone, NOW);
    CellName {
        budget: budget.id.clone(),
        window,
    }
}

fn ask(budget: &Budget, (give_back, want, least): (i64, i64, i64)) -> LeaseAsk {
    LeaseAsk {
        cell: cell(budget),
        give_back: Money::from_nanos(give_back),
        want: Money::from_nanos(want),
        least: Money::from_nanos(least),
    }
}

async fn lease(store: &Store, budget: &Budget, amounts: (i64, i64, i64), nodes: u32) -> LeaseState {
    let known = Arc::new(budget.clone());
    let find = |id: &str| (*id == *known.id).then(|| known.clone());
    store
        .lease(&[ask(budget, amounts)], find, nodes)
        .await
        .unwrap()
        .remove(0)
}

/// A request that cost `charge`, all of it in `budget`.
fn settlement(number: u64, budget: &Budget, charge: i64) -> Settlement {
    let request = RequestId::new(NOW.unsigned_abs() / 1000 + number, [number as u8; 10]);
    let opening = Opening {
        started_unix_us: NOW,
        account: Arc::new(budget.account.clone()),
        dialect: Dialect::Anthropic,
        surface: Surface::Messages,
        origin: Origin::Batch,
        model_asked: "a \"quoted\" model".into(),
        stream: true,
        value: ValueTier::High,
        latency: LatencyTier::Standard,
        thinking: None,
        policy_version: "p1".into(),
    };
    let intent = Intent {
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
        usage: Usage::new(UsageSource::Estimated),
    };
    let amount = Money::from_nanos(charge);
    Settlement {
        decision: Some("{}".into()),
        record: estimate(request, &[intent], amount).unwrap(),
        held: amount,
        late: false,
        posts: smallvec![Post {
            cell: cell(budget),
            amount
        }],
    }
}

/// taken, used, spent, leased.
fn sums(state: &LeaseState) -> (i64, i64, i64, i64) {
    let LeaseState {
        taken,
        used,
        spent,
        leased,
        ..
    } = state;
    (taken.nanos(), used.nanos(), spent.nanos(), leased.nanos())
}

async fn a_request_is_posted_once(bench: &Bench) {
    let database = bench.database("once");
    let store = Store::open(&database, "n1".into()).await.unwrap();
    let search = budget("search", 1000);
    store
        .declare_budgets(std::slice::from_ref(&search), change())
        .await
        .unwrap();
    lease(&store, &search, (0, 500, 0), 1).await;
    let one = settlement(1, &search, 30);
    let two = settlement(2, &search, 12);
    // The second is sent twice in a batch, the first again in the next.
    assert_eq!(store.post(&[&one, &two, &two]).await.unwrap().new, 2);
    let again = store.post(&[&one, &settlement(3, &search, 5)]).await.unwrap();
    assert_eq!((again.new, again.spends[0].spent.nanos()), (1, 47));
    assert_eq!(again.spends[0].added.nanos(), 5);
    let state = lease(&store, &search, (0, 0, 0), 1).await;
    assert_eq!(sums(&state), (500, 47, 47, 453));
    let row = store.request(one.record.request).await.unwrap().unwrap();
    assert_eq!(
        (row.account.as_str(), row.total.as_str()),
        ("acme/search/-/-", "$0.00000003")
    );
    assert_eq!(
        (row.model_asked.as_str(), row.origin.as_str(), row.late),
        ("a \"quoted\" model", "batch", false)
    );
    assert_eq!(row.attempts.len(), 1);
    assert_eq!(
        store
            .request(settlement(9, &search, 1).record.request)
            .await
            .unwrap(),
        None
    );
}

async fn slices_shrink_and_never_exceed_the_limit(bench: &Bench) {
    let database = bench.database("slices");
    let first = Store::open(&database, "n1".into()).await.unwrap();
    let second = Store::open(&database, "n2".into()).await.unwrap();
    let search = budget("search", 1000);
    first
        .declare_budgets(std::slice::from_ref(&search), change())
        .await
        .unwrap();
    // A share of what is free where others may come, all of it where none can.
    let state = lease(&first, &search, (0, 900, 10), 2).await;
    let expected = if first.is_exclusive() { 900 } else { 250 };
    assert_eq!(sums(&state), (expected, 0, 0, expected));
    // Given back and taken at once; never below what is needed at least.
    let state = lease(&first, &search, (expected, 400, 400), 2).await;
    assert_eq!(state.taken.nanos(), 400);
    assert_eq!(lease(&second, &search, (0, 700, 601), 2).await.taken.nanos(), 0);
    assert_eq!(lease(&second, &search, (0, 700, 600), 2).await.taken.nanos(), 600);
    assert_eq!(
        sums(&lease(&second, &search, (0, 1, 1), 2).await),
        (600, 0, 0, 1000)
    );
    // Nobody gives back more than they have.
    assert_eq!(
        sums(&lease(&first, &search, (5000, 0, 0), 2).await),
        (0, 0, 0, 600)
    );
}

async fn who_is_refused_what_others_hold_is_heard(bench: &Bench) {
    let database = bench.database("needed");
    let first = Store::open(&database, "n1".into()).await.unwrap();
    let second = Store::open(&database, "n2".into()).await.unwrap();
    let search = budget("search", 1000);
    first
        .declare_budgets(std::slice::from_ref(&search), change())
        .await
        .unwrap();
    // More than there is, while nobody holds anything: nobody else can help.
    assert_eq!(lease(&second, &search, (0, 0, 1001), 1).await.taken, Money::ZERO);
    assert_eq!(first.needed().await.unwrap(), []);
    assert_eq!(lease(&first, &search, (0, 800, 800), 1).await.taken.nanos(), 800);
    assert_eq!(first.needed().await.unwrap(), []);
    assert_eq!(lease(&second, &search, (0, 300, 300), 1).await.taken, Money::ZERO);
    let name = (search.id.to_string(), cell(&search).window.starts_us);
    assert_eq!(first.needed().await.unwrap(), [name]);
    lease(&first, &search, (400, 0, 0), 1).await;
    assert_eq!(lease(&second, &search, (0, 300, 300), 1).await.taken.nanos(), 300);
}

async fn many_at_once_never_take_more_than_there_is(bench: &Bench) {
    let database = bench.database("race");
    let search = budget("search", 10_000);
    let mut nodes = tokio::task::JoinSet::new();
    let setup = Store::open(&database, "n0".into()).await.unwrap();
    setup
        .declare_budgets(std::slice::from_ref(&search), change())
        .await
        .unwrap();
    for number in 0..6 {
        let (database, search) = (database.clone(), search.clone());
        nodes.spawn(async move {
            let store = Store::open(&database, format!("n{number}").into()).await.unwrap();
            let mut spent = 0;
            for round in 0..20 {
                let before = lease(&store, &search, (0, 300, 100), 6).await;
                let have = before.taken.minus(before.used).nanos();
                assert!(before.spent.plus(before.leased).nanos() <= 10_000);
                let charge = have / 2;
                let posted = settlement(1000 * number + round, &search, charge);
                assert_eq!(store.post(&[&posted]).await.unwrap().new, 1);
                spent += charge;
            }
            spent
        });
    }
    let mut spent = 0;
    while let Some(node) = nodes.join_next().await {
        spent += node.unwrap();
    }
    let state = lease(&setup, &search, (0, 0, 0), 6).await;
    assert_eq!(state.spent.nanos(), spent);
    assert!(state.spent.plus(state.leased).nanos() <= 10_000);
}

async fn a_node_that_is_gone_is_written_off_and_comes_back(bench: &Bench) {
    let database = bench.database("gone");
    let (dead, alive) = (
        Store::open(&database, "dead".into()).await.unwrap(),
        Store::open(&database, "alive".into()).await.unwrap(),
    );
    let search = budget("search", 1000);
    dead.declare_budgets(std::slice::from_ref(&search), change())
        .await
        .unwrap();
    assert!(!dead.register().await.unwrap() && !alive.register().await.unwrap());
    lease(&dead, &search, (0, 300, 300), 1).await;
    dead.post(&[&settlement(1, &search, 40)]).await.unwrap();
    assert_eq!(alive.beat(60_000_000).await.unwrap(), (2, false));
    assert!(alive.lapse(3_600_000_000).await.unwrap().is_empty());
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    assert_eq!(alive.lapse(1_000).await.unwrap(), ["dead"]);
    assert!(alive.lapse(1_000).await.unwrap().is_empty());
    // What it had left counts as spent, and nobody else can spend it.
    let state = lease(&alive, &search, (0, 700, 700), 1).await;
    assert_eq!(sums(&state), (700, 0, 300, 700));
    assert!(dead.beat(60_000_000).await.unwrap().1);
    let known = Arc::new(search.clone());
    let refused = dead
        .lease(&[ask(&search, (0, 1, 1))], |_| Some(known.clone()), 1)
        .await;
    assert!(matches!(refused, Err(StoreError::GivenUp)));
    // Its journal knows of 100 that were on their way: they are late, and covered by what was written off.
    assert!(dead.register().await.unwrap());
    let late = Settlement {
        late: true,
        ..settlement(2, &search, 100)
    };
    dead.post(&[&late]).await.unwrap();
    assert_eq!(
        sums(&lease(&alive, &search, (0, 0, 0), 1).await),
        (700, 0, 300, 700)
    );
    assert!(dead.request(late.record.request).await.unwrap().unwrap().late);
    dead.release().await.unwrap();
    dead.revive().await.unwrap();
    assert_eq!(
        sums(&lease(&alive, &search, (0, 0, 0), 1).await),
        (700, 0, 140, 700)
    );
    assert_eq!(lease(&dead, &search, (0, 160, 160), 1).await.taken.nanos(), 160);
    assert!(!dead.beat(60_000_000).await.unwrap().1);
}

async fn what_exceeds_a_lease_is_posted_all_the_same(bench: &Bench) {
    let database = bench.database("excess");
    let store = Store::open(&database, "n1".into()).await.unwrap();
    let search = budget("search", 100);
    store
        .declare_budgets(std::slice::from_ref(&search), change())
        .await
        .unwrap();
    lease(&store, &search, (0, 60, 60), 1).await;
    store.post(&[&settlement(1, &search, 130)]).await.unwrap();
    assert_eq!(
        sums(&lease(&store, &search, (0, 50, 1), 1).await),
        (130, 130, 130, 0)
    );
    // The excess is spent, and no part of a later slice.
    let raised = budget("search", 200);
    store
        .declare_budgets(std::slice::from_ref(&raised), change())
        .await
        .unwrap();
    assert_eq!(
        sums(&lease(&store, &raised, (0, 50, 50), 1).await),
        (180, 130, 130, 50)
    );
    store.release().await.unwrap();
    assert_eq!(sums(&lease(&store, &search, (0, 0, 0), 1).await), (0, 0, 130, 0));
}

async fn budgets_are_kept_audited_and_begin_with_what_was_spent(bench: &Bench) {
    let database = bench.database("defined");
    let store = Store::open(&database, "n1".into()).await.unwrap();
    let old = budget("search", 100);
    store
        .declare_budgets(std::slice::from_ref(&old), change())
        .await
        .unwrap();
    lease(&store, &old, (0, 0, 0), 1).await;
    store
        .post(&[&settlement(1, &old, 7), &settlement(2, &old, 8)])
        .await
        .unwrap();
    let version = store.version().await.unwrap();
    assert_eq!(
        store
            .declare_budgets(std::slice::from_ref(&old), change())
            .await
            .unwrap(),
        0
    );
    assert_eq!(store.version().await.unwrap(), version);
    let spec = BudgetSpec {
        limit: Money::from_nanos(50),
        period: Period::Quarter,
        zone: crate::window::Zone::parse("Asia/Kathmandu").unwrap(),
        enforcement: Enforcement::Soft,
        thresholds: vec![50, 100],
        scope: Scope {
            models: vec!["gpt-4o*".into()],
            classes: vec![BackendClass::Cheap],
            tags: Vec::new(),
        },
        increase: Increase {
            amount: Money::from_nanos(25),
            until_us: i64::MAX,
        },
    };
    let new = Budget::new(account("search"), spec);
    let unknown = store.create_budget(&new, change()).await.unwrap_err();
    assert!(matches!(unknown, EditError::Missing(_)), "{unknown}");
    let accounts = [account("search")];
    store.declare_accounts(&accounts, change()).await.unwrap();
    store.create_budget(&new, change()).await.unwrap();
    let everything = Subtree::everything();
    let mut kept = store.budgets(&everything, "", 10).await.unwrap();
    kept.sort_unstable_by_key(|stored| stored.budget.spec.limit);
    let kept: Vec<Budget> = kept.into_iter().map(|stored| stored.budget).collect();
    assert_eq!(kept, [new.clone(), old.clone()]);
    let state = lease(&store, &new, (0, 0, 0), 1).await;
    assert_eq!((state.limit.nanos(), state.spent.nanos()), (75, 15));
    let other = Budget::new(
        account("search"),
        BudgetSpec {
            scope: Scope {
                models: vec!["claude*".into()],
                ..Scope::default()
            },
            ..old.spec.clone()
        },
    );
    store.create_budget(&other, change()).await.unwrap();
    assert_eq!(lease(&store, &other, (0, 0, 0), 1).await.spent.nanos(), 0);
    // A raise reaches the windows that are open, and what the configuration drops ends; what the API made does not.
    let raised = budget("search", 400);
    store
        .declare_budgets(std::slice::from_ref(&raised), change())
        .await
        .unwrap();
    assert_eq!(lease(&store, &raised, (0, 0, 0), 1).await.limit.nanos(), 400);
    assert_eq!(store.declare_budgets(&[], change()).await.unwrap(), 1);
    assert_eq!(store.budgets(&everything, "", 10).await.unwrap().len(), 2);
    let audit = store.audit("acme/search", (i64::MAX, 2)).await.unwrap();
    assert_eq!(
        (audit.len(), audit[0].actor.as_str(), audit[0].subject.as_str()),
        (2, "ann", "budget acme/search total")
    );
    assert!(audit[0].after.is_none() && audit[0].before.as_deref().unwrap().contains("400"));
    assert!(audit[1].before.as_deref().unwrap().contains("100"));
}

async fn an_alert_is_raised_once(bench: &Bench) {
    let database = bench.database("alerts");
    let alert = Alert {
        budget: "b".into(),
        account: "acme".into(),
        window_starts_us: 0,
        threshold: 80,
        spent: Money::from_nanos(81),
        limit: Money::from_nanos(100),
    };
    let first = Store::open(&database, "n1".into()).await.unwrap();
    let second = Store::open(&database, "n2".into()).await.unwrap();
    assert_eq!(
        first.raise(vec![alert.clone()]).await.unwrap(),
        std::slice::from_ref(&alert)
    );
    assert!(second.raise(vec![alert.clone()]).await.unwrap().is_empty());
    let later = Alert {
        window_starts_us: 1,
        ..alert
    };
    assert_eq!(second.raise(vec![later.clone()]).await.unwrap(), [later]);
}

async fn hours_add_up(bench: &Bench) {
    let database = bench.database("hours");
    let store = Store::open(&database, "n1".into()).await.unwrap();
    let search = budget("search", 1000);
    let mut all: Vec<Settlement> = (0..200)
        .map(|number| settlement(number, &search, number as i64))
        .collect();
    all[7].record.ending = exchange::Ending::Refused;
    all[7].record.attempts.clear();
    all[7].posts.clear();
    for settlement in &mut all[100..] {
        settlement.record.origin = Origin::Live;
    }
    let refs: Vec<&Settlement> = all.iter().collect();
    assert_eq!(store.post(&refs[..90]).await.unwrap().new, 90);
    assert_eq!(store.post(&refs[50..]).await.unwrap().new, 110);
    let sql = sql::Sql::new(
        "SELECT CAST(sum(requests) AS BIGINT), CAST(sum(refused) AS BIGINT), CAST(sum(attempts) AS BIGINT), \
         CAST(sum(charge) AS BIGINT), CAST(sum(failed_charge) AS BIGINT), count(*) FROM hourly",
    );
    let rows = store.pool.fetch(&sql, &[]).await.unwrap();
    let found: Vec<i64> = (0..6).map(|at| rows[0].int(at).unwrap()).collect();
    let charge: i64 = (0..200).sum::<i64>() - 7;
    assert_eq!(found, [200, 1, 199, charge, charge, 3]);
    let sql = sql::Sql::new(
        "SELECT origin, CAST(sum(requests) AS BIGINT), CAST(sum(charge) AS BIGINT) FROM hourly GROUP BY origin ORDER BY origin",
    );
    let rows = store.pool.fetch(&sql, &[]).await.unwrap();
    let row = |row: &sql::Row| (row.text(0).unwrap(), row.int(1).unwrap(), row.int(2).unwrap());
    let batch = (0..100).sum::<i64>() - 7;
    let expected = [("batch".into(), 100, batch), ("live".into(), 100, charge - batch)];
    assert_eq!(rows.iter().map(row).collect::<Vec<_>>(), expected);
    let sql = sql::Sql::new("SELECT CAST(sum(charge) AS BIGINT) FROM attempts");
    assert_eq!(
        store.pool.fetch(&sql, &[]).await.unwrap()[0].int(0).unwrap(),
        charge
    );
}

async fn what_was_billed_is_read_whole(bench: &Bench) {
    use exchange::{ChargeLine, Item, Rate, TokenClass};
    let database = bench.database("billed");
    let store = Store::open(&database, "n1".into()).await.unwrap();
    let search = budget("search", 1_000_000_000);
    store
        .declare_budgets(std::slice::from_ref(&search), change())
        .await
        .unwrap();
    // More than a page of them.
    let mut all: Vec<Settlement> = (0..2_500).map(|number| settlement(number, &search, 7)).collect();
    for (position, settlement) in all.iter_mut().enumerate() {
        settlement.record.request = RequestId::new(NOW.unsigned_abs() / 1000 + position as u64, [1; 10]);
    }
    let line = |class, quantity, amount| ChargeLine {
        item: Item::Tokens(class),
        quantity,
        rate: Rate(1_000),
        amount: Money::from_nanos(amount),
    };
    let charge = &mut all[3].record.attempts[0].charge;
    charge.lines = smallvec![line(TokenClass::Input, 5, 5), line(TokenClass::Output, 2, 2)];
    charge.service_tier = exchange::ServiceTier::Flex;
    all[4].record.started_unix_us = NOW - 1;
    let refs: Vec<&Settlement> = all.iter().collect();
    store.post(&refs).await.unwrap();
    let mut calls = Vec::new();
    let total = billed(&database, NOW..NOW + 1, |call| calls.push(call))
        .await
        .unwrap();
    assert_eq!((calls.len(), total.nanos()), (2_499, 2_499 * 7));
    assert_eq!(calls.iter().map(|call| call.charge).sum::<Money>(), total);
    assert_eq!(calls[3].tier, "flex");
    let shown: Vec<_> = calls[3]
        .lines
        .iter()
        .map(|line| (&*line.item, line.quantity, line.amount.nanos()))
        .collect();
    assert_eq!(shown, [("input", 5, 5), ("output", 2, 2)]);
    assert_eq!(calls[0].account[1].as_deref(), Some("search"));
}

async fn old_rows_end_and_hours_stay(bench: &Bench) {
    let database = bench.database("upkeep");
    let store = Store::open(&database, "n1".into()).await.unwrap();
    let search = budget("search", 1000);
    store.upkeep(NOW, kept(7)).await.unwrap();
    store.upkeep(NOW, kept(7)).await.unwrap();
    let (one, two) = (settlement(1, &search, 5), settlement(2, &search, 6));
    store.post(&[&one, &two]).await.unwrap();
    if let Bench::Postgres(server) = bench {
        let today = NOW / 86_400_000_000;
        assert_eq!(
            server.query("upkeep", &format!("SELECT count(*) FROM requests_{today}")),
            "2"
        );
        assert_eq!(
            server.query("upkeep", &format!("SELECT count(*) FROM attempts_{today}")),
            "2"
        );
    }
    store.tell(&[outcome(&one, true)]).await.unwrap();
    store.upkeep(NOW + 7 * 86_400_000_000, kept(7)).await.unwrap();
    assert!(store.request(one.record.request).await.unwrap().is_some());
    store.upkeep(NOW + 8 * 86_400_000_000, kept(7)).await.unwrap();
    assert!(store.request(one.record.request).await.unwrap().is_none());
    for (table, rows) in [
        ("requests", 0),
        ("attempts", 0),
        ("decisions", 0),
        ("outcomes", 0),
        ("hourly", 1),
    ] {
        let sql = sql::Sql::new(&format!("SELECT count(*) FROM {table}"));
        assert_eq!(
            store.pool.fetch(&sql, &[]).await.unwrap()[0].int(0).unwrap(),
            rows,
            "{table}"
        );
    }
}

fn outcome(settlement: &Settlement, success: bool) -> Outcome {
    Outcome {
        request: settlement.record.request,
        told_us: NOW,
        org: "acme".into(),
        workflow: "triage".into(),
        deployment: "d".into(),
        success,
        value: Money::from_nanos(if success { 7 } else { -2 }),
        stated: success,
        believed_ppm: 800_000,
        note: success.then(|| "it said \"yes\"".into()),
    }
}

async fn decisions_and_outcomes_are_read_back(bench: &Bench) {
    let database = bench.database("decisions");
    let store = Store::open(&database, "n1".into()).await.unwrap();
    let search = budget("search", 1_000_000);
    let mut all: Vec<Settlement> = (1..=70).map(|number| settlement(number, &search, 5)).collect();
    all[0].decision = None;
    all[1].decision = Some("{\"seed\":7}".into());
    all[3].record.attempts[0].outcome = exchange::AttemptOutcome::Answered;
    store.post(&all.iter().collect::<Vec<_>>()).await.unwrap();
    let (one, two) = (outcome(&all[1], true), outcome(&all[2], false));
    let first = store
        .tell(&[two.clone(), one.clone(), one.clone()])
        .await
        .unwrap();
    assert_eq!(first.len(), 2);
    let again = Outcome {
        success: false,
        ..one.clone()
    };
    assert!(
        store.tell(&[again]).await.unwrap().is_empty(),
        "the first word counts"
    );
    let told = store.told(NOW - 1, 10).await.unwrap();
    assert!(
        told.len() == 2 && told.contains(&one) && told.contains(&two),
        "{told:?}"
    );
    assert_eq!(store.told(NOW + 1, 10).await.unwrap(), []);
    let mut found = Vec::new();
    decisions(&database, NOW - 1_000_000..NOW + 1_000_000, |one| found.push(one))
        .await
        .unwrap();
    assert_eq!(found.len(), 69, "one had none");
    assert_eq!(
        (&*found[0].decision, found[0].charged.nanos()),
        ("{\"seed\":7}", 5)
    );
    let told = found[0]
        .outcome
        .as_ref()
        .map(|told| (&*told.workflow, &*told.deployment, told.success));
    assert_eq!(told, Some(("triage", "d", true)));
    assert_eq!(found[5].outcome, None);
    let served = store.served_by(all[3].record.request).await.unwrap();
    assert_eq!(served.map(|served| served.org).as_deref(), Some("acme"));
    assert_eq!(
        store.served_by(all[4].record.request).await.unwrap(),
        None,
        "nobody answered"
    );
    let answered = |calls| Answered {
        org: "acme".into(),
        workflow: "triage".into(),
        deployment: "d".into(),
        calls,
        retries: 1,
        escalations: 0,
    };
    store.add_answered(NOW, &[answered(3)]).await.unwrap();
    store.add_answered(NOW, &[answered(4)]).await.unwrap();
    store
        .add_answered(NOW - 86_400_000_000 * 40, &[answered(9)])
        .await
        .unwrap();
    let sums = store.answered(NOW - 86_400_000_000 * 30).await.unwrap();
    assert_eq!((sums.len(), sums[0].calls, sums[0].retries), (1, 7, 2));
}

async fn a_newer_schema_is_refused(bench: &Bench) {
    let database = bench.database("newer");
    let store = Store::open(&database, "n1".into()).await.unwrap();
    let sql = sql::Sql::new(
        "INSERT INTO _sqlx_migrations (version, description, installed_on, success, checksum, execution_time) \
         SELECT 999, 'later', installed_on, success, checksum, 0 FROM _sqlx_migrations WHERE version = 1",
    );
    store.pool.fetch(&sql, &[]).await.unwrap();
    store.close().await;
    let problem = Store::open(&database, "n1".into()).await.unwrap_err();
    assert!(
        matches!(problem, StoreError::Newer { found: 999, .. }),
        "{problem}"
    );
}

async fn all(bench: Bench) {
    a_request_is_posted_once(&bench).await;
    slices_shrink_and_never_exceed_the_limit(&bench).await;
    many_at_once_never_take_more_than_there_is(&bench).await;
    a_node_that_is_gone_is_written_off_and_comes_back(&bench).await;
    what_exceeds_a_lease_is_posted_all_the_same(&bench).await;
    budgets_are_kept_audited_and_begin_with_what_was_spent(&bench).await;
    an_alert_is_raised_once(&bench).await;
    admin::all(&bench).await;
    hours_add_up(&bench).await;
    who_is_refused_what_others_hold_is_heard(&bench).await;
    what_was_billed_is_read_whole(&bench).await;
    old_rows_end_and_hours_stay(&bench).await;
    decisions_and_outcomes_are_read_back(&bench).await;
    a_newer_schema_is_refused(&bench).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_keeps_the_contract() {
    all(Bench::Sqlite(tempfile::tempdir().unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_keeps_the_contract() {
    all(Bench::Postgres(Postgres::start(&["fsync = off"]))).await;
}
