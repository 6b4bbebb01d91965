//! Both ways of evaluating a condition agree, and mistakes are told at load.

use super::cel::General;
use super::*;
use exchange::ThinkingLevel;
use proptest::prelude::*;

fn facts(model: &str, tokens: u64, labels: &[(&str, &str)]) -> Facts {
    let mut facts = crate::cases::Given::default().facts();
    facts.model = model.into();
    facts.stream = tokens.is_multiple_of(2);
    facts.input_tokens = tokens;
    facts.turns = 3;
    facts.tools = (tokens % 3) as u32;
    facts.structured_output = tokens.is_multiple_of(5);
    facts.thinking = Some(Thinking::Level(ThinkingLevel::High));
    facts.deadline_ms = Some(500);
    facts.labels = labels
        .iter()
        .map(|(name, value)| ((*name).into(), (*value).into()))
        .collect();
    facts
}

fn account(team: Option<&str>) -> AccountPath {
    AccountPath {
        org: "acme".into(),
        team: team.map(Arc::from),
        workflow: None,
        key: None,
    }
}

fn scene<'a>(facts: &'a Facts, account: &'a AccountPath) -> Scene<'a> {
    Scene {
        facts,
        account,
        workflow: Some("nightly"),
        task: None,
        value: ValueTier::High,
        latency: LatencyTier::Interactive,
        deadline_ms: facts.deadline_ms,
        unix_s: 1_764_000_000,
        budget_left: 2_500_000_000,
    }
}

fn compiled(text: &str) -> Test {
    let mut mistakes = Mistakes::new("", "t");
    let test = compile(text, "when", &mut mistakes);
    assert!(mistakes.is_empty(), "{text}: {:?}", mistakes.into_found());
    test
}

fn problem(text: &str) -> String {
    let mut mistakes = Mistakes::new("", "t");
    compile(text, "when", &mut mistakes);
    mistakes
        .into_found()
        .first()
        .map(ToString::to_string)
        .unwrap_or_default()
}

#[test]
fn conditions_hold_as_written() {
    let (facts, account) = (
        facts("gpt-5", 4000, &[("feature", "search")]),
        account(Some("legal")),
    );
    let scene = scene(&facts, &account);
    for (text, expected) in [
        ("true", true),
        ("team == 'legal'", true),
        ("team in ['ops', 'legal'] && input_tokens > 3999", true),
        ("model.startsWith('gpt-') && !model.contains('mini')", true),
        ("model.glob('*-5')", true),
        ("model.matches('^gpt-[0-9]$')", true),
        ("value == 'high' || nobody == ''", true),
        ("labels.feature == 'search'", true),
        ("labels['feature'] != 'search'", false),
        ("has(labels.feature) && !has(labels.other)", true),
        ("'feature' in labels", true),
        ("labels.other == 'x'", false),
        ("!(labels.other == 'x')", false),
        ("labels.other == 'x' || team == 'legal'", true),
        ("thinking == 'high' && deadline_ms <= 500", true),
        ("budget_left < 3.0 && budget_left > 2", true),
        ("hour == 16 && weekday == 1", true),
        ("input_tokens + 96 == 4096", true),
        ("labels.exists(name, name == 'feature')", true),
        ("size(team) == 5", true),
        ("stream == true", true),
        ("workflow == 'nightly' && org == 'acme' && key == ''", true),
    ] {
        if text.contains("nobody") {
            assert!(problem(text).contains("no variable is called `nobody`"), "{text}");
            continue;
        }
        assert_eq!(compiled(text).holds(&scene), expected, "{text}");
    }
}

#[test]
fn what_is_wrong_is_said_at_load() {
    for (text, parts) in [
        ("team = 'legal'", &["is not CEL"][..]),
        (
            "input_tokens > 'many'",
            &["compares a number with text", "character 14"],
        ),
        (
            "temas == 'a'",
            &["no variable is called `temas`", "did you mean `team`?"],
        ),
        ("team", &["text stands where true or false is needed"]),
        ("input_tokens + 1", &["other than true or false"]),
        ("teem.size() > 2 + 1", &["no variable is called `teem`"]),
        ("model.matches('(')", &["not a regular expression"]),
        ("model.upcase() == 'A'", &["no function is called `upcase`"]),
        ("team in 'legal'", &["`in` needs a list"]),
        ("", &["is not CEL"]),
    ] {
        let told = problem(text);
        assert!(parts.iter().all(|part| told.contains(part)), "{text}: {told}");
    }
    assert!(problem(&"(".repeat(5000)).contains("longer than"));
    assert!(problem(&"(".repeat(50)).contains("nested"));
}

#[test]
fn globs_match_runs_of_characters() {
    for (pattern, value) in [
        ("a*", "abc"),
        ("*", ""),
        ("a*c*e", "abcde"),
        ("*-mini", "gpt-4o-mini"),
        ("x", "x"),
        ("a*b", "aab"),
    ] {
        assert!(Glob::new(pattern).matches(value), "{pattern} {value}");
    }
    for (pattern, value) in [("a*", "b"), ("a*c", "abd"), ("x", "xy"), ("ab*b", "ab")] {
        assert!(!Glob::new(pattern).matches(value), "{pattern} {value}");
    }
}

fn atom() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "team == 'legal'",
            "team != ''",
            "model.startsWith('gpt')",
            "model.endsWith('mini')",
            "model.contains('4')",
            "model.glob('gpt*mini')",
            "labels.a == 'x'",
            "labels['b'] != 'y'",
            "has(labels.a)",
            "'b' in labels",
            "stream",
            "structured_output",
            "value in ['high', 'low']",
            "budget_left <= 2.5",
            "labels.a in ['x', 'z']",
            "model < 'h'",
        ])
        .prop_map(str::to_owned),
        (
            prop::sample::select(vec!["input_tokens", "turns", "tools", "deadline_ms"]),
            prop::sample::select(vec!["==", "!=", "<", "<=", ">", ">="]),
            -2i64..2000
        )
            .prop_map(|(name, comparison, number)| format!("{name} {comparison} {number}")),
        (
            prop::sample::select(vec!["input_tokens", "turns"]),
            prop::sample::select(vec!["<", ">="]),
            0.0f64..2000.0
        )
            .prop_map(|(name, comparison, number)| format!("{name} {comparison} {number:.2}")),
    ]
}

fn expression() -> impl Strategy<Value = String> {
    atom().prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) && ({b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) || ({b})")),
            inner.prop_map(|a| format!("!({a})")),
        ]
    })
}

proptest! {
    #[test]
    fn the_closed_form_agrees_with_the_interpreter(
        text in expression(),
        model in prop::sample::select(vec!["gpt-4o-mini", "claude", "auto"]),
        tokens in 0u64..2000,
        team in prop::option::of(prop::sample::select(vec!["legal", "ops"])),
        a in prop::option::of(prop::sample::select(vec!["x", "y"])),
        b in prop::option::of(prop::sample::select(vec!["x", "y"])),
    ) {
        let mut labels = Vec::new();
        labels.extend(a.map(|value| ("a", value)));
        labels.extend(b.map(|value| ("b", value)));
        let (facts, account) = (facts(model, tokens, &labels), account(team));
        let scene = scene(&facts, &account);
        let closed = compiled(&text);
        prop_assert!(!matches!(closed, Test::General(_)), "{}", text);
        let general = General::of(&text).unwrap();
        prop_assert_eq!(closed.value(&scene), general.value(&scene), "{}", text);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "[a-z0-9 .&|!=<>()\\[\\]'\"{},?:+*\\\\/-]{0,60}") {
        let _ = problem(&text);
    }
}
