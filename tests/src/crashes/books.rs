//! Three books compared: jobs, ledger, and the fake's own.

use super::callers::get;
use super::{ANTHROPIC, BATCH_NANOS, GEMINI, OPENAI, Store};
use crate::fake::Fake;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Panics where two of them disagree.
pub(super) fn compare(store: &Store, fake: &Fake, accepted: &[String]) -> String {
    let mut report = String::new();
    let states = store.query("SELECT state, count(*) FROM job_items i WHERE job IN (SELECT id FROM jobs WHERE kind <> 'file' AND state = 'ended') GROUP BY state ORDER BY state");
    let shown: Vec<String> = states
        .iter()
        .map(|row| format!("{} {}", row[1], row[0]))
        .collect();
    let _ = writeln!(report, "items: {}", shown.join(", "));
    let open = store.number("SELECT count(*) FROM job_items i JOIN jobs j ON j.id = i.job WHERE j.kind <> 'file' AND j.state = 'ended' AND i.state NOT IN ('succeeded', 'rescued')");
    assert_eq!(open, 0, "every item of every batch was answered: {shown:?}");
    // Whatever a node said it had taken is there, and has ended.
    let ended: Vec<String> = store
        .query("SELECT id FROM jobs WHERE kind <> 'file' AND state = 'ended'")
        .into_iter()
        .map(|row| row[0].clone())
        .collect();
    for id in accepted {
        assert!(ended.contains(id), "the batch {id} was taken and is not there");
    }
    let _ = writeln!(
        report,
        "batches accepted {}, ended {}",
        accepted.len(),
        ended.len()
    );
    given(store, fake, &mut report);
    billed(store, fake, &mut report);
    held(store, &mut report);
    report
}

/// The provider was given nothing more often than rows admit; plain items exactly once.
fn given(store: &Store, fake: &Fake, report: &mut String) {
    let told = get(&fake.address().to_string(), "/_fake/batches").unwrap();
    let batches = told["batches"].as_array().unwrap();
    let mut by_custom: BTreeMap<(String, String), i64> = BTreeMap::new();
    let mut per_text: BTreeMap<&str, (i64, String)> = BTreeMap::new();
    for batch in batches {
        for item in batch["items"].as_array().unwrap() {
            let text = item["text"].as_str().unwrap();
            let count = per_text.entry(text).or_default();
            count.0 += 1;
            let name = (
                batch["id"].as_str().unwrap().to_owned(),
                item["custom_id"].as_str().unwrap().to_owned(),
            );
            *by_custom.entry(name).or_default() += 1;
        }
    }
    assert!(
        by_custom.values().all(|count| *count == 1),
        "an item stands twice in one batch"
    );
    // In sum, over all items: what was given is what was recorded as tried in batches.
    let given: i64 = per_text.values().map(|(count, _)| count).sum();
    let entries = fake.entries();
    let calls = entries.len() as i64;
    let tries = store.number(
        "SELECT coalesce(sum(tries), 0) FROM job_items i JOIN jobs j ON j.id = i.job WHERE j.kind <> 'file'",
    );
    assert!(
        given + calls <= tries,
        "given {given} times in batches and {calls} at once, but {tries} tries are recorded"
    );
    let plain = store.query(&format!("SELECT count(*), coalesce(sum(tries), 0), coalesce(max(tries), 0) FROM job_items i JOIN jobs j ON j.id = i.job WHERE j.kind <> 'file' AND j.state = 'ended' AND i.model IN ('{}', '{}', '{}')", OPENAI[0], ANTHROPIC[0], GEMINI[0]));
    let max = per_text.values().map(|(count, _)| *count).max().unwrap_or(0);
    let _ = writeln!(
        report,
        "given in {} batches {given} times, called for at once {calls} times, recorded tries {tries}; plain items {}, tries {}, most {}; most often given {max}",
        batches.len(),
        plain[0][0],
        plain[0][1],
        plain[0][2]
    );
    assert_eq!(
        (plain[0][0].as_str(), "1"),
        (plain[0][1].as_str(), plain[0][2].as_str()),
        "plain items were given once each"
    );
    // A job whose gateway was killed before it had said that the job was taken is given up whole.
    let untaken = store.number("SELECT coalesce(sum(tries), 0) FROM job_items i JOIN jobs j ON j.id = i.job WHERE j.kind <> 'file' AND j.state <> 'ended'");
    assert_eq!(untaken, 0, "items of jobs that were never taken were given");
}

/// What batches billed is in the ledger to the nano-dollar.
fn billed(store: &Store, fake: &Fake, report: &mut String) {
    let told = get(&fake.address().to_string(), "/_fake/batches").unwrap();
    let tokens = |item: &Value, kind: &str| item[kind].as_i64().unwrap_or(0);
    let (mut count, mut truth) = (0, 0);
    for batch in told["batches"].as_array().unwrap() {
        for item in batch["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|item| item["fate"] == "succeeded")
        {
            count += 1;
            truth +=
                tokens(item, "input_tokens") * BATCH_NANOS.0 + tokens(item, "output_tokens") * BATCH_NANOS.1;
        }
    }
    let sums = store.query("SELECT count(*), coalesce(sum(a.charge), 0) FROM attempts a JOIN requests r ON r.id = a.request WHERE a.tier = 'batch' AND r.origin = 'batch'");
    let (rows, charged): (i64, i64) = (sums[0][0].parse().unwrap(), sums[0][1].parse().unwrap());
    let _ = writeln!(
        report,
        "batches: the provider billed {truth} n$ for {count} answers, the ledger has {charged} n$ in {rows} rows"
    );
    assert_eq!((count, truth), (rows, charged), "the ledger is not the truth");
    let item_sum = store.number("SELECT coalesce(sum(charge), 0) FROM job_items WHERE state = 'succeeded'");
    assert_eq!(item_sum, charged, "items do not add up to the ledger");
    at_once(store, fake, report);
}

/// Calls at once: what the ledger has counted is what the provider billed, call by call; a call whose gateway was killed
/// before it could count is there too, at what was held for it, an estimate.
fn at_once(store: &Store, fake: &Fake, report: &mut String) {
    let mut billed: BTreeMap<(i64, i64), i64> = BTreeMap::new();
    let bill = |(input, output): &(i64, i64)| 2 * (input * BATCH_NANOS.0 + output * BATCH_NANOS.1);
    for entry in fake.entries().iter().filter(|entry| entry.status == 200) {
        let usage = (entry.body_bytes as i64 / 4, i64::from(entry.tokens));
        *billed.entry(usage).or_default() += 1;
    }
    let sum = |calls: &BTreeMap<(i64, i64), i64>| {
        calls
            .iter()
            .map(|(usage, count)| bill(usage) * count)
            .sum::<i64>()
    };
    let (answers, truth) = (billed.values().sum::<i64>(), sum(&billed));
    let rows = store.query("SELECT a.input, a.output, a.charge, a.usage_source, a.outcome FROM attempts a JOIN requests r ON r.id = a.request WHERE a.tier = 'standard' AND r.origin = 'batch'");
    let (mut counted, mut charged, mut estimated, mut cut) = (0, 0, 0, 0);
    for row in &rows {
        let number = |at: usize| row[at].parse::<i64>().unwrap();
        if row[4] == "crashed" {
            (cut, estimated) = (cut + 1, estimated + number(2));
        } else if row[3] == "reported" {
            let usage = (number(0), number(1));
            assert_eq!(
                number(2),
                bill(&usage),
                "a call at once is not charged at its price: {row:?}"
            );
            let left = billed.get_mut(&usage).filter(|left| **left > 0);
            *left.unwrap_or_else(|| panic!("the ledger has a call that nobody answered: {row:?}")) -= 1;
            (counted, charged) = (counted + 1, charged + number(2));
        } else {
            assert_eq!(row[2], "0", "a call that failed costs nothing: {row:?}");
        }
    }
    let (missing, unseen) = (billed.values().sum::<i64>(), sum(&billed));
    let _ = writeln!(
        report,
        "at once: the provider billed {truth} n$ for {answers} calls; the ledger has counted {charged} n$ in {counted}, each as billed; \
         {missing} answers of {unseen} n$ met a gateway that was being killed, for which {cut} attempts stand at {estimated} n$"
    );
    assert_eq!(charged + unseen, truth);
    assert!(
        missing <= cut,
        "{missing} answered calls are not in the ledger, and only {cut} are known to be cut off"
    );
    // What was held is the first slice of an answer, which may be less than the whole that the provider went on to bill.
    assert!(
        cut == 0 || estimated > 0,
        "calls that were cut off are charged nothing"
    );
    let rescued =
        store.number("SELECT coalesce(sum(i.charge), 0) FROM job_items i WHERE i.state = 'rescued'");
    let own = store.number("SELECT coalesce(sum(r.charge), 0) FROM requests r JOIN attempts a ON a.request = r.id WHERE r.origin = 'batch' AND a.tier = 'standard' AND a.usage_source = 'reported' AND a.outcome <> 'crashed'");
    let _ = writeln!(
        report,
        "rescued items say {rescued} n$, the ledger's calls for them {own} n$"
    );
    assert!(rescued <= own, "items say that they cost more than was charged");
}

/// Budgets say what requests say, and nothing is held for jobs that are over.
fn held(store: &Store, report: &mut String) {
    let spent = store.number("SELECT sum(spent) FROM budget_windows");
    let charged = store.number("SELECT coalesce(sum(charge), 0) FROM requests");
    let leased = store.number("SELECT count(*) FROM leases WHERE node LIKE 'job/%'");
    let _ = writeln!(
        report,
        "budget: {spent} n$ spent, requests add up to {charged} n$, leases of jobs left {leased}"
    );
    assert_eq!((spent, leased), (charged, 0));
    let left = store.number("SELECT coalesce(sum(leased), 0) FROM budget_windows");
    assert_eq!(left, 0, "nothing is leased once every node has stopped");
}
