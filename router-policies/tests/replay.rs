//! Replays: the same policy over the same records changes nothing, to the nano-dollar; a changed one shows what moved.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use exchange::{AccountPath, Envelope, Facts, Grants, Money};
use router_policies::{Ask, Decided, Estimates, Given, Policy, Recorded, Situation, replay};

const POLICY: &str = include_str!("../policies/support-desk.yaml");

/// Requests of a support desk, decided by the policy and charged as if their answers had the length of `seed`.
fn recorded(policy: &Policy, count: u64) -> Vec<Recorded> {
    (0..count).map(|number| one(policy, number)).collect()
}

fn facts(number: u64) -> Facts {
    let mut text = format!(
        "{{team: support, input_tokens: {}, stream: {}",
        200 + number * 37 % 9000,
        !number.is_multiple_of(4)
    );
    text.push_str(match number % 5 {
        0 => ", labels: {intent: refund}}",
        1 | 2 => ", labels: {intent: triage}}",
        3 => ", workflow: nightly-summary}",
        _ => "}",
    });
    let (given, mistakes) = router_policies::document::read::<Given>(&text, "given");
    assert!(mistakes.is_empty(), "{mistakes:?}");
    given.unwrap().facts()
}

fn one(policy: &Policy, number: u64) -> Recorded {
    let facts = facts(number);
    let account = AccountPath {
        org: "acme".into(),
        team: Some("support".into()),
        workflow: None,
        key: None,
    };
    let unix_s = 1_764_000_000 + i64::try_from(number).unwrap();
    let envelope = Envelope {
        granted: Money::from_dollars(1),
        remaining: Money::from_nanos(i64::try_from(number % 40).unwrap() * 1_000_000_000),
    };
    let situation = Situation {
        facts: &facts,
        account: &account,
        unix_s,
        budget_left: envelope.remaining,
    };
    let profile = policy.classify(&situation);
    let mut offers = policy.reference_offers(&facts);
    offers[1].available = !number.is_multiple_of(97);
    let decided = policy.decide(&Ask {
        facts: &facts,
        account: &account,
        profile: &profile,
        grants: &Grants::default(),
        offers: &offers,
        conversation: None,
        estimates: &Estimates::default(),
        envelope,
        unix_s,
        seed: number,
    });
    let decided = Decided::from(&decided.unwrap());
    let expected = decided.score.unwrap().price;
    let ids = policy.deployments().iter().map(|one| one.id.clone());
    Recorded {
        id: format!("r{number}"),
        unix_s,
        facts,
        account,
        grants: Grants::default(),
        offers: ids.zip(offers).collect(),
        conversation: None,
        estimates: None,
        features: Vec::new(),
        envelope,
        seed: number,
        decided,
        outcome: None,
        charged: Money::from_nanos(expected.nanos() + i64::try_from(number % 1000).unwrap()),
        latency_ms: Some(900 + number % 700),
    }
}

#[test]
fn the_same_policy_flips_nothing_and_costs_what_was_charged() {
    let policy = Policy::parse(POLICY, "p").unwrap();
    let records = recorded(&policy, 3000);
    let lines: Vec<String> = records
        .iter()
        .map(|one| serde_json::to_string(one).unwrap())
        .collect();
    let read: Vec<Recorded> = lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(read, records, "a record survives its line of JSON");
    let summary = replay(&read, &policy, 10).summary;
    let charged: Money = records.iter().map(|one| one.charged).sum();
    assert_eq!((summary.requests, summary.flips), (3000, 0));
    assert_eq!((summary.money_was, summary.money_is), (charged, charged));
    assert_eq!(summary.successes.change, 0.0);
}

#[test]
fn a_changed_policy_shows_what_moves_and_how_sure_that_is() {
    let policy = Policy::parse(POLICY, "p").unwrap();
    let records = recorded(&policy, 3000);
    let cheaper = Policy::parse(
        &POLICY.replace("floors:\n  high: [frontier]", "floors:\n  high: [cheap]"),
        "q",
    )
    .unwrap();
    let replayed = replay(&records, &cheaper, 5);
    let summary = replayed.summary;
    assert_eq!(summary.flips, 600, "every fifth request is a refund");
    assert_eq!(replayed.flips.len(), 5);
    assert!(summary.money_is < summary.money_was);
    assert!(summary.successes.change < -50.0, "{:?}", summary.successes);
    let interval = summary.successes.change_95;
    assert!(
        interval.from < summary.successes.change
            && summary.successes.change < interval.to
            && interval.to < 0.0
    );
    assert_eq!(
        summary.class_shifts.get("frontier -> cheap"),
        Some(&593),
        "{:?}",
        summary.class_shifts
    );
}

/// With `REPLAY_RECORDS=FILE` the records stay there, to time `policy replay` with.
#[test]
fn records_are_read_as_they_were_written() {
    let policy = Policy::parse(POLICY, "p").unwrap();
    let records = recorded(&policy, 20_000);
    let lines: Vec<String> = records
        .iter()
        .map(|one| serde_json::to_string(one).unwrap())
        .collect();
    for (line, record) in lines.iter().zip(&records) {
        let read: Recorded = serde_json::from_str(line).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), *line, "{}", record.id);
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "a test takes its file's name from outside"
    )]
    if let Ok(file) = std::env::var("REPLAY_RECORDS") {
        std::fs::write(file, lines.join("\n") + "\n").unwrap();
    }
}
