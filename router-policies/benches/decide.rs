//! What a decision costs: 50 deployments, 200 rules, the last of them the one that holds; and with the predictor, which
//! reads a prompt of 4 KB.
//!
//! `cargo bench -p router-policies` prints divan's table and then the percentiles of single calls.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark fails by panicking"
)]

use divan::black_box;
use exchange::{
    AccountPath, Decision, Dialect, Envelope, Facts, Grants, Money, Offer, Profile, Rate, Surface,
};
use router_policies::predict::Predictor;
use router_policies::{Ask, EstimateSource, Estimates, Policy, Situation};
use std::fmt::Write;
use std::time::Instant;

struct Bench {
    policy: Policy,
    facts: Facts,
    account: AccountPath,
    offers: Vec<Offer>,
    estimates: Estimates,
    grants: Grants,
    /// Asked, where there is one.
    predictor: Option<Predictor>,
    prompt: String,
}

/// Prose and code in turn, as an agent's prompts are.
fn prompt(bytes: usize) -> String {
    let text = "A shop sold 48 pens in April at $1.25 each, and half as many in May. How much did it earn?\n\
                def f(text, n):\n    for i, c in enumerate(text.split(',')):\n        if c.isdigit() and i < n:\n\
                            text = text.replace(c, str(int(c) + 1))\n    return text[:n]\n";
    let mut prompt = text.repeat(bytes / text.len() + 1);
    prompt.truncate(bytes);
    prompt
}

fn document(predicts: bool) -> String {
    let mut text = format!(
        "version: 1\nobjective: {{thin_budget: {{below: 10, price_weight: 4}}, predict: {predicts}, familiarity: 0}}\ndeployments:\n"
    );
    let classes = ["frontier", "cheap", "local"];
    for index in 0..50 {
        let class = classes[index % 3];
        writeln!(
            text,
            "  - {{id: d{index}, provider: p{}, model: claude-sonnet-4-{index}, class: {class}, capabilities: [tools, thinking], quality: {{default: 0.{}, proof: 0.5}}}}",
            index % 7,
            50 + index % 45
        )
        .unwrap();
    }
    text.push_str("workflows:\n");
    for index in 0..100 {
        writeln!(
            text,
            "  - {{name: w{index}, when: \"team == 't{index}' && labels.feature in ['a{index}', 'b'] && input_tokens > {index}\", value: high, task: proof}}"
        )
        .unwrap();
    }
    text.push_str("thinking:\n  - {name: earn, level: by_gain, at_most: high}\nroutes:\n");
    for index in 0..99 {
        writeln!(
            text,
            "  - {{name: r{index}, when: {{workflow: \"x{index}*\", team: [a{index}, b]}}, prefer: [d1]}}"
        )
        .unwrap();
    }
    text.push_str("  - {name: rest}\n");
    text
}

impl Bench {
    fn new() -> Self {
        Self::with(None)
    }

    fn predicting() -> Self {
        Self::with(Some(Predictor::shipped().unwrap()))
    }

    fn with(predictor: Option<Predictor>) -> Self {
        let policy = Policy::parse(&document(predictor.is_some()), "bench").unwrap();
        let facts = Facts {
            dialect: Dialect::OpenaiChat,
            surface: Surface::ChatCompletions,
            model: "auto".into(),
            stream: true,
            body_bytes: 4096,
            input_tokens: 1024,
            max_output_tokens: Some(800),
            turns: 3,
            tools: 2,
            images: 0,
            structured_output: false,
            thinking: None,
            service_tier: None,
            hour_cache: false,
            workflow: None,
            deadline_ms: None,
            labels: vec![("feature".into(), "b".into()), ("user".into(), "u1".into())],
            prefix_hash: 7,
        };
        let offers = (0..50).map(|index| Offer {
            available: index != 9,
            expected: Some(Money::from_nanos(1_000_000 + 37_000 * index)),
            minimum: Some(Money::from_nanos(500_000)),
            output_rate: Rate(15_000_000),
            retry_permille: 20,
            ..Offer::default()
        });
        Self {
            policy,
            facts,
            account: AccountPath {
                org: "acme".into(),
                team: Some("t99".into()),
                workflow: None,
                key: None,
            },
            offers: offers.collect(),
            estimates: Estimates::default(),
            grants: Grants::default(),
            predictor,
            prompt: prompt(4096),
        }
    }

    /// All that the gateway does between the facts and the plan.
    fn whole(&self) -> Decision {
        let profile = self.classify();
        let predictor = self.predictor.as_ref();
        let asked = predictor.filter(|_| self.policy.predicts(&profile, &self.facts));
        let estimates = asked.map_or_else(Estimates::default, |predictor| {
            Estimates::predicted(predictor, black_box(&self.prompt)).0
        });
        self.decide_with(&profile, &estimates)
    }

    fn classify(&self) -> Profile {
        self.policy.classify(&Situation {
            facts: black_box(&self.facts),
            account: &self.account,
            unix_s: 1_764_000_000,
            budget_left: Money::from_dollars(5),
        })
    }

    fn decide(&self, profile: &Profile) -> Decision {
        self.decide_with(profile, &self.estimates)
    }

    fn decide_with(&self, profile: &Profile, estimates: &Estimates) -> Decision {
        let ask = Ask {
            facts: black_box(&self.facts),
            account: &self.account,
            profile,
            grants: &self.grants,
            offers: &self.offers,
            conversation: None,
            estimates,
            envelope: Envelope {
                granted: Money::from_dollars(1),
                remaining: Money::from_dollars(5),
            },
            unix_s: 1_764_000_000,
            seed: 42,
        };
        self.policy.decide(&ask).unwrap()
    }
}

#[divan::bench]
fn classify(bencher: divan::Bencher) {
    let bench = Bench::new();
    bencher.bench_local(|| bench.classify());
}

#[divan::bench]
fn decide(bencher: divan::Bencher) {
    let bench = Bench::new();
    let profile = bench.classify();
    bencher.bench_local(|| bench.decide(&profile));
}

#[divan::bench]
fn classify_and_decide(bencher: divan::Bencher) {
    let bench = Bench::new();
    bencher.bench_local(|| bench.decide(&bench.classify()));
}

#[divan::bench]
fn classify_predict_and_decide(bencher: divan::Bencher) {
    let bench = Bench::predicting();
    bencher.bench_local(|| bench.whole());
}

fn percentiles(name: &str, mut call: impl FnMut()) {
    let mut nanos: Vec<u128> = (0..50_000)
        .map(|_| {
            let start = Instant::now();
            call();
            start.elapsed().as_nanos()
        })
        .collect();
    nanos.sort_unstable();
    let at = |share: f64| nanos[((nanos.len() - 1) as f64 * share) as usize] as f64 / 1000.0;
    println!(
        "{name}: p50 {:.1} µs, p99 {:.1} µs, p99.9 {:.1} µs",
        at(0.5),
        at(0.99),
        at(0.999)
    );
}

fn main() {
    divan::main();
    let bench = Bench::new();
    let profile = bench.classify();
    assert_eq!(profile.workflow.as_deref(), Some("w99"));
    assert_eq!(bench.decide(&profile).trace.route.as_deref(), Some("rest"));
    println!("50 deployments, 200 rules, single calls:");
    percentiles("classify", || drop(black_box(bench.classify())));
    percentiles("decide", || drop(black_box(bench.decide(&profile))));
    percentiles("classify and decide", || {
        drop(black_box(bench.decide(&bench.classify())))
    });
    let predicting = Bench::predicting();
    let source = predicting.whole().trace.entries[0].score.unwrap().source;
    assert_eq!(
        source,
        EstimateSource::Predictor,
        "the prompt is of a kind that it knows"
    );
    percentiles("classify, predict (4 KB) and decide", || {
        drop(black_box(predicting.whole()))
    });
}
