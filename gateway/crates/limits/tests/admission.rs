//! Admission against several subjects at once, over arbitrary orders of arrivals, ends and pauses.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use limits::{Book, Dimension, Path, Rule, SubjectId};
use proptest::prelude::*;

fn book(rules: &[Rule]) -> (Book, Path) {
    let mut book = Book::default();
    let path = rules
        .iter()
        .enumerate()
        .map(|(index, rule)| book.add(format!("s{index}").into(), *rule, 0))
        .collect();
    (book, path)
}

fn rule(requests: Option<u32>, tokens: Option<u32>, concurrency: Option<u32>) -> Rule {
    Rule {
        requests_per_minute: requests,
        tokens_per_minute: tokens,
        concurrency,
    }
}

#[test]
fn the_subject_that_keeps_waiting_longest_is_named() {
    let (mut book, path) = book(&[
        rule(Some(60), None, None),
        rule(Some(1), None, None),
        rule(None, None, Some(1)),
    ]);
    let standing = book.admit(&path, 10, 0).unwrap();
    let requests = standing.requests.unwrap();
    assert_eq!(
        (requests.limit, requests.remaining),
        (1, 0),
        "the tightest is shown"
    );
    let refused = book.admit(&path, 10, 0).unwrap_err();
    assert_eq!(
        (&*refused.subject, refused.dimension),
        ("s1", Dimension::Requests)
    );
    assert_eq!(refused.wait_us, 60_000_000);
    assert_eq!(
        refused.to_string(),
        "the limit of s1 is reached: 1 requests a minute"
    );
    let concurrency = book.admit(&path[2..], 10, 0).unwrap_err();
    assert_eq!(
        (concurrency.dimension, concurrency.wait_us),
        (Dimension::Concurrency, 0)
    );
    book.leave(&path, 10, 10);
    assert!(book.admit(&path[2..], 10, 0).is_ok());
}

#[test]
fn a_changed_rule_keeps_what_was_used_in_proportion() {
    let (mut book, path) = book(&[rule(Some(10), None, None)]);
    for _ in 0..5 {
        book.admit(&path, 1, 0).unwrap();
    }
    book.change(path[0], rule(Some(100), Some(50), Some(7)), 0);
    let standing = book.standing(&path, 0);
    assert_eq!(standing.requests.unwrap().remaining, 50, "half was used");
    assert_eq!(standing.tokens.unwrap().remaining, 50, "a new limit is whole");
    book.admit(&path, 1, 0).unwrap();
    book.admit(&path, 1, 0).unwrap();
    let full = book.admit(&path, 1, 0).unwrap_err();
    assert_eq!(
        (full.dimension, full.limit),
        (Dimension::Concurrency, 7),
        "those before still run"
    );
    book.change(path[0], Rule::default(), 0);
    assert!(book.standing(&path, 0).is_empty());
    assert!((0..500).all(|_| book.admit(&path, 1_000, 0).is_ok()));
    // Shared by four, then changed: a node has its part of the new rule.
    book.share_among(4);
    book.change(path[0], rule(Some(8), None, None), 0);
    assert_eq!((0..10).filter(|_| book.admit(&path, 1, 0).is_ok()).count(), 2);
}

#[test]
fn tokens_are_held_before_they_are_used_so_that_a_crowd_cannot_walk_through() {
    let (mut book, path) = book(&[rule(None, Some(100), None)]);
    let admitted = (0..50).filter(|_| book.admit(&path, 20, 0).is_ok()).count();
    assert_eq!(admitted, 5);
    // Four used little: what they did not use is there again at once.
    (0..4).for_each(|_| book.leave(&path, 20, 5));
    assert_eq!((0..50).filter(|_| book.admit(&path, 20, 0).is_ok()).count(), 3);
    // One used far more: the rest is owed.
    book.leave(&path, 20, 120);
    let wait = book.admit(&path, 20, 0).unwrap_err().wait_us;
    assert_eq!(wait, 60_000_000 * (100 + 20) / 100);
}

#[test]
fn nodes_that_share_have_a_part_each_and_none_is_shut_out() {
    let (mut book, path) = book(&[rule(Some(90), None, Some(2))]);
    book.share_among(3);
    assert_eq!(book.standing(&path, 0).requests.unwrap().limit, 30);
    book.admit(&path, 1, 0).unwrap();
    assert_eq!(
        book.admit(&path, 1, 0).unwrap_err().limit,
        1,
        "2 at once among 3 is 1 each"
    );
    book.share_among(1);
    assert!(book.admit(&path, 1, 0).is_ok());
}

#[test]
fn what_another_let_through_can_be_undone_and_forgiven() {
    let (mut book, path) = book(&[rule(Some(10), Some(100), Some(9))]);
    let whole = book.standing(&path, 0);
    book.enter(&path, 40, 0);
    book.undo(&path, 40);
    assert_eq!((book.standing(&path, 0), book.running(path[0])), (whole, 0));
    for _ in 0..30 {
        let _ = book.enter(&path, 40, 0);
    }
    (0..30).for_each(|_| book.leave(&path, 40, 40));
    assert!(book.admit(&path, 1, 0).unwrap_err().wait_us > 60_000_000);
    book.forgive();
    assert_eq!(
        book.admit(&path, 1, 0).unwrap_err().wait_us,
        6_000_000,
        "one request of ten a minute"
    );
}

#[derive(Clone, Debug)]
enum Step {
    Arrive { subjects: u8, tokens: u64 },
    End { which: usize, used: u64 },
    Pause(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1u8..8, 1u64..400).prop_map(|(subjects, tokens)| Step::Arrive { subjects, tokens }),
        3 => (any::<usize>(), 0u64..800).prop_map(|(which, used)| Step::End { which, used }),
        2 => (0i64..20_000_000).prop_map(Step::Pause),
    ];
    proptest::collection::vec(step, 1..120)
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let rule = (
        proptest::option::of(1u32..30),
        proptest::option::of(1u32..1_500),
        proptest::option::of(1u32..6),
    );
    let rule = rule.prop_map(|(requests, tokens, concurrency)| self::rule(requests, tokens, concurrency));
    proptest::collection::vec(rule, 3)
}

proptest! {
    #[test]
    fn no_limit_is_passed_and_a_refusal_changes_nothing(rules in rules(), steps in steps()) {
        let (mut book, all) = book(&rules);
        let mut now = 0;
        let mut running: Vec<(Path, u64)> = Vec::new();
        // By subject: requests let in, and tokens used or held.
        let (mut requests, mut tokens) = ([0u64; 3], [0i64; 3]);
        let mut overdraft = [0i64; 3];
        for step in steps {
            match step {
                Step::Pause(us) => now += us,
                Step::Arrive { subjects, tokens: wanted } => {
                    let path: Path = all.iter().copied().filter(|id| subjects & (1 << id.0) != 0).collect();
                    let before = format!("{:?}", book.standing(&all, now));
                    match book.admit(&path, wanted, now) {
                        Ok(_) => {
                            for SubjectId(id) in path.iter().copied() {
                                requests[id as usize] += 1;
                                tokens[id as usize] += wanted as i64;
                                // More than a whole minute's worth passes a full bucket.
                                let over = wanted as i64 - i64::from(rules[id as usize].tokens_per_minute.unwrap_or(u32::MAX));
                                overdraft[id as usize] = overdraft[id as usize].max(over);
                            }
                            running.push((path, wanted));
                        }
                        Err(exceeded) => {
                            prop_assert_eq!(before, format!("{:?}", book.standing(&all, now)));
                            if exceeded.wait_us > 0 {
                                // It is told the truth: at that time the rates no longer stand in its way.
                                let mut later = book.clone();
                                let at = now + i64::try_from(exceeded.wait_us).unwrap();
                                let then = later.admit(&path, wanted, at);
                                prop_assert!(then.is_ok() || then.unwrap_err().dimension == Dimension::Concurrency);
                            }
                        }
                    }
                }
                Step::End { which, used } if !running.is_empty() => {
                    let (path, held) = running.remove(which % running.len());
                    book.leave(&path, held, used);
                    for SubjectId(id) in path.iter().copied() {
                        tokens[id as usize] += used as i64 - held as i64;
                        overdraft[id as usize] += (used as i64 - held as i64).max(0);
                    }
                }
                Step::End { .. } => {}
            }
            for (id, rule) in rules.iter().enumerate() {
                let at_once = running.iter().filter(|(path, _)| path.contains(&SubjectId(id as u32))).count();
                prop_assert_eq!(at_once, book.running(SubjectId(id as u32)) as usize);
                prop_assert!(rule.concurrency.is_none_or(|limit| at_once <= limit as usize));
                if let Some(limit) = rule.requests_per_minute {
                    prop_assert!(u128::from(requests[id]) * 60_000_000 <= u128::from(limit) * (60_000_000 + now as u128));
                }
                if let Some(limit) = rule.tokens_per_minute {
                    let allowed = i128::from(limit) * (60_000_000 + i128::from(now)) / 60_000_000;
                    prop_assert!(i128::from(tokens[id]) <= allowed + i128::from(overdraft[id]));
                }
            }
        }
    }
}
