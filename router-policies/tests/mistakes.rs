//! Mistakes in a policy: every one is told at once, with line, column and what to do, and no text makes the reader
//! panic.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use proptest::prelude::*;
use router_policies::{Cases, Policy};

const TWELVE: &str = include_str!("mistakes/twelve.yaml");

#[test]
fn a_policy_with_many_mistakes_has_each_told_with_place_and_hint() {
    let found = Policy::parse(TWELVE, "twelve.yaml").unwrap_err().0;
    let told: Vec<String> = found.iter().map(ToString::to_string).collect();
    let expected = [
        (3, "objective.explore", "1.5", ""),
        (4, "objective.thin_budget.below", "12.50", "Dollars left"),
        (
            6,
            "value_tiers.crucial",
            "unknown value `crucial`",
            "did you mean `critical`?",
        ),
        (
            8,
            "deployments[0].modle",
            "is not a known key",
            "did you mean `model`?",
        ),
        (
            9,
            "deployments[1].class",
            "unknown value `cheep`",
            "did you mean `cheap`?",
        ),
        (10, "deployments[2].context_tokens", "lots", "tokens"),
        (10, "deployments[2].id", "`mini` is used twice", "its own"),
        (12, "workflows[0].when", "compares a number with text", ""),
        (
            13,
            "workflows[1].when",
            "no variable is called `taem`",
            "did you mean `team`?",
        ),
        (
            15,
            "routes[0].when.value",
            "unknown value `hihg`",
            "did you mean `high`?",
        ),
        (
            15,
            "routes[0].prefer[0]",
            "no deployment is called `sonet`",
            "did you mean `sonnet`?",
        ),
        (16, "routes[1].split", "120 per cent", "lower them"),
        (18, "teams.ops.named_models", "forbid", ""),
    ];
    for (line, path, problem, hint) in expected {
        let fits = |mistake: &&router_policies::DocumentError| {
            mistake.line == Some(line) && mistake.path == path && mistake.problem.contains(problem)
        };
        let Some(mistake) = found.iter().find(fits) else {
            panic!(
                "line {line}: {path}: {problem} is missing from\n{}",
                told.join("\n")
            );
        };
        assert!(mistake.column.is_some(), "{mistake}");
        let given = mistake.hint.as_deref();
        assert!(
            given.is_some_and(|given| given.contains(hint)),
            "{mistake} lacks the hint {hint}"
        );
    }
    assert_eq!(found.len(), expected.len(), "{}", told.join("\n"));
}

#[test]
fn a_team_may_only_narrow() {
    let org = "version: 1\nnamed_models: substitute\nfloors: {high: [frontier]}\ndeployments:\n  - {id: a, provider: p, model: m, class: frontier}\n  - {id: b, provider: p, model: m2, class: local}\n";
    let narrow =
        "version: 1\nteams: {legal: {never: [b], named_models: refuse, floors: {low: [frontier]}}}\n";
    Policy::parse_layers((org, "org.yaml"), &[(narrow, "legal.yaml")]).unwrap();
    let wide = "version: 1\nteams:\n  legal: {allow: [c], named_models: honour, floors: {high: [frontier, local]}}\n";
    let error = Policy::parse_layers((org, "org.yaml"), &[(wide, "legal.yaml")]).unwrap_err();
    let told = error.to_string();
    for part in [
        "legal.yaml:3:",
        "no deployment is called `c`",
        "laxer",
        "allows `local`",
    ] {
        assert!(told.contains(part), "{told} lacks {part}");
    }
}

/// What needs an answer soon is not made to wait by a slip of the pen.
#[test]
fn only_what_may_wait_is_deferred() {
    let head = "version: 1\ndeployments: [{id: a, provider: p, model: m, class: frontier}]\n";
    let wrong = "latency_tiers: {interactive: {defer: {wait_s: 5}}, batch: {defer: {wait_s: 90000}}}\n\
                 workflows:\n  - {name: w, latency: standard, defer: {wait_s: 0}}\n";
    let told = Policy::parse(&format!("{head}{wrong}"), "p.yaml").unwrap_err();
    let told: Vec<String> = told.0.iter().map(ToString::to_string).collect();
    let expected = [
        "latency_tiers.interactive.defer",
        "latency_tiers.batch.defer.wait_s",
        "workflows[0].defer",
    ];
    assert_eq!(told.len(), expected.len(), "{told:?}");
    for path in expected {
        assert!(
            told.iter().any(|mistake| mistake.contains(path)),
            "{told:?} lacks {path}"
        );
    }
    let right = "latency_tiers: {batch: {defer: {wait_s: 60}}}\nworkflows:\n  - {name: w, latency: batch, defer: {wait_s: 0}}\n";
    assert!(
        Policy::parse(&format!("{head}{right}"), "p.yaml")
            .unwrap()
            .defers()
    );
    assert!(
        !Policy::parse(head, "p.yaml").unwrap().defers(),
        "off unless it is asked for"
    );
}

#[test]
fn broken_yaml_is_one_mistake() {
    let error = Policy::parse("version: 1\ndeployments: [\n", "p.yaml").unwrap_err();
    assert_eq!(error.0.len(), 1, "{error}");
    assert!(error.0[0].line.is_some(), "{error}");
}

const SEEDS: [&str; 4] = [
    TWELVE,
    include_str!("../policies/default.yaml"),
    include_str!("../policies/example.yaml"),
    include_str!("../cases/example.yaml"),
];

/// One change of a text: a piece cut out, doubled, or replaced.
#[derive(Clone, Debug)]
enum Change {
    Cut,
    Double,
    Replace(String),
}

fn mutated(mut text: String, changes: &[(usize, usize, Change)]) -> String {
    for (at, length, change) in changes {
        let place = |wanted: usize| {
            let mut place = wanted.min(text.len());
            while !text.is_char_boundary(place) {
                place -= 1;
            }
            place
        };
        let start = place(at % (text.len() + 1));
        let end = place(start + length).max(start);
        let piece = text[start..end].to_owned();
        let put = match change {
            Change::Cut => String::new(),
            Change::Double => piece.repeat(2),
            Change::Replace(with) => with.clone(),
        };
        text.replace_range(start..end, &put);
    }
    text
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        Just(Change::Cut),
        Just(Change::Double),
        prop::sample::select(vec![
            "null",
            "[]",
            "{}",
            "-1",
            "1e400",
            ".nan",
            "\"",
            "'",
            "&a ",
            "*a",
            "? ",
            ": ",
            "- ",
            "#",
            "\t",
            "\n  ",
            "true",
            "99999999999999999999",
            "~",
            "!!str ",
            "<<: ",
            "|",
            ">",
            "é",
            "\u{0}",
        ])
        .prop_map(|with| Change::Replace(with.to_owned())),
        "[a-z:{}\\[\\], \n-]{1,8}".prop_map(Change::Replace),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// A changed policy is read or refused; what is refused says why, and what is read can rule.
    #[test]
    fn no_document_makes_the_reader_panic(
        seed in prop::sample::select(SEEDS.to_vec()),
        changes in prop::collection::vec((0_usize..4000, 0_usize..40, change()), 1..6),
    ) {
        let text = mutated(seed.to_owned(), &changes);
        match Policy::parse(&text, "p.yaml") {
            Ok(policy) => {
                if let Ok(cases) = Cases::parse(SEEDS[3], "c.yaml") {
                    let _ = cases.run(&policy);
                }
            }
            Err(error) => {
                prop_assert!(!error.0.is_empty());
                for mistake in &error.0 {
                    prop_assert!(!mistake.problem.is_empty(), "{}", text);
                }
            }
        }
        let _ = Cases::parse(&text, "c.yaml");
    }
}
