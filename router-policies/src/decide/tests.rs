//! The terms of the objective and the bounds around it, one at a time.

use super::*;
use crate::cases::Given;
use crate::predict::correction::Surprise;
use exchange::{EstimateSource, Thinking, ThinkingLevel};
use proptest::prelude::*;

const THREE: &str = r"
version: 1
value_tiers:
  high: {value_per_success: 5, failure_cost: 5}
  low: {value_per_success: 0.002, failure_cost: 0}
latency_tiers:
  interactive: {dollars_per_second: 0, first_token_ms: 4000}
deployments:
  - {id: big, provider: p, model: claude-sonnet-4-5, class: frontier, capabilities: [thinking], price: {input: 3, output: 15, cached_input: 0.3},
     quality: {default: 0.9, extraction: 0.95, proof: {p: 0.5, thinking: {low: 0.2, high: 0.35, max: 0.36}}}, speed: {first_token_ms: 800, tokens_per_second: 80}}
  - {id: small, provider: p, model: gpt-4o-mini, class: cheap, price: {input: 0.15, output: 0.6, cached_input: 0.075}, quality: {default: 0.8, proof: 0.4}, speed: {first_token_ms: 500, tokens_per_second: 100}}
  - {id: own, provider: q, model: smollm2, class: local, quality: {default: 0.4}, speed: {first_token_ms: 200, tokens_per_second: 50}}
workflows:
  - {name: contracts, value: high, task: extraction}
  - {name: proofs, value: high, task: proof, latency: deferred}
  - {name: hints, value: low}
thinking:
  - {name: earn-it, when: {workflow: '*'}, level: by_gain, at_most: high}
";

fn policy(changes: &str) -> Policy {
    let text = format!("{THREE}{changes}");
    Policy::parse(&text, "three.yaml").unwrap()
}

fn given(text: &str) -> Given {
    crate::document::parse(text, "given").unwrap()
}

fn decided(policy: &Policy, text: &str) -> Decision {
    let outcome = given(text).decide(policy);
    outcome
        .decided
        .unwrap_or_else(|error| panic!("{text}: {error}: {:?}", error.trace))
}

fn first(policy: &Policy, text: &str) -> String {
    decided(policy, text).plan.first().deployment.to_string()
}

#[test]
fn value_decides_and_not_length() {
    let policy = policy("");
    assert_eq!(
        first(&policy, "{workflow: contracts, input_tokens: 60000}"),
        "big"
    );
    assert_eq!(first(&policy, "{workflow: hints, input_tokens: 200}"), "small");
    assert_eq!(first(&policy, "{workflow: hints, input_tokens: 60000}"), "own");
}

#[test]
fn the_terms_add_up_and_every_deployment_has_one_line() {
    let decision = decided(&policy(""), "{workflow: contracts, input_tokens: 1000}");
    let entries = &decision.trace.entries;
    assert_eq!(entries.len(), 3);
    for entry in entries {
        let score = entry.score.unwrap();
        assert_eq!(
            score.utility,
            score
                .worth
                .minus(score.risk)
                .minus(score.price)
                .minus(score.waiting)
        );
    }
    let big = entries
        .iter()
        .find(|entry| &*entry.deployment == "big")
        .unwrap()
        .score
        .unwrap();
    // 1000 · $3/M + 500 · $15/M; 0.95 · $5; 0.05 · $5.
    assert_eq!(big.price, Money::parse_dollars("0.0105").unwrap());
    assert_eq!(
        (big.worth, big.risk),
        (
            Money::parse_dollars("4.75").unwrap(),
            Money::parse_dollars("0.25").unwrap()
        )
    );
}

#[test]
fn thinking_must_earn_its_tokens() {
    let policy = policy("");
    let thinking = |text: &str| decided(&policy, text).plan.first().thinking;
    assert_eq!(
        thinking("{workflow: contracts}"),
        Some(Thinking::Level(ThinkingLevel::None))
    );
    assert_eq!(
        thinking("{workflow: proofs}"),
        Some(Thinking::Level(ThinkingLevel::High))
    );
    let capped = decided(&policy, "{workflow: proofs, thinking: max}");
    assert_eq!(
        capped.plan.first().thinking,
        Some(Thinking::Level(ThinkingLevel::High))
    );
    assert_eq!(capped.plan.first().thinking_note, ThinkingNote::Capped);
    let kept = decided(
        &policy,
        "{workflow: proofs, conversation: {deployment: big, cached_tokens: 100, thinking: low}}",
    );
    assert_eq!(
        kept.plan.first().thinking,
        Some(Thinking::Level(ThinkingLevel::Low))
    );
    assert_eq!(kept.plan.first().thinking_note, ThinkingNote::Kept);
}

#[test]
fn a_conversation_stays_while_its_cache_saves_more_than_the_switch_gains() {
    // Ten cents for a right answer: the gain of the big model is a cent, its price for a long prompt more.
    let policy = policy("routes: [{name: any, when: {turns: {min: 2}}}]\n");
    let policy_text = "{workflow: chat, turns: 3, input_tokens: 20000";
    let at_home = |cached: u32| {
        decided(
            &policy,
            &format!("{policy_text}, conversation: {{deployment: big, cached_tokens: {cached}}}}}"),
        )
    };
    assert_eq!(first(&policy, &format!("{policy_text}}}")), "small");
    let stays = Policy::parse(
        &THREE
            .replace("quality: {default: 0.8, proof: 0.4}", "quality: {default: 0.885}")
            .replace(
                "value_tiers:",
                "value_tiers:\n  unvalued: {value_per_success: 1.0}",
            ),
        "t",
    )
    .unwrap();
    let warm = decided(
        &stays,
        &format!("{policy_text}, conversation: {{deployment: big, cached_tokens: 19000}}}}"),
    );
    assert_eq!(
        (&*warm.plan.first().deployment, warm.reason),
        ("big", Reason::Sticky)
    );
    let cold = decided(
        &stays,
        &format!("{policy_text}, conversation: {{deployment: big, cached_tokens: 0}}}}"),
    );
    assert_eq!(&*cold.plan.first().deployment, "small");
    let lost = at_home(19_000)
        .trace
        .entries
        .iter()
        .find(|entry| &*entry.deployment == "small")
        .unwrap()
        .score
        .unwrap();
    assert_eq!(lost.cache_lost, Money::parse_dollars("0.0513").unwrap());
}

#[test]
fn a_thin_budget_moves_the_cheap_work_and_not_the_valuable() {
    let policy = policy("objective: {thin_budget: {below: 10, price_weight: 20}}\n");
    for (left, contracts, hints) in [("100", "big", "small"), ("0.10", "big", "own")] {
        assert_eq!(
            first(&policy, &format!("{{workflow: contracts, budget_left: {left}}}")),
            contracts
        );
        assert_eq!(
            first(&policy, &format!("{{workflow: hints, budget_left: {left}}}")),
            hints
        );
    }
}

#[test]
fn service_levels_rule_out_only_where_somebody_meets_them() {
    let policy = policy("");
    let slow = "{workflow: proofs, latency: x}";
    assert!(crate::document::parse::<Given>(slow, "g").is_err());
    let decision = decided(&policy, "{workflow: chat, thinking: high, model: auto}");
    let big = decision
        .trace
        .entries
        .iter()
        .find(|entry| &*entry.deployment == "big")
        .unwrap();
    assert_eq!(
        big.verdict,
        Verdict::TooSlow,
        "thinking keeps the first word waiting"
    );
    let alone = decided(&policy, "{workflow: chat, thinking: high, down: [small, own]}");
    assert_eq!(&*alone.plan.first().deployment, "big");
    let deadline = decided(&policy, "{workflow: contracts, deadline_ms: 6000}");
    assert_eq!(&*deadline.plan.first().deployment, "small");
}

#[test]
fn retries_and_escalations_show_what_a_cheap_model_costs() {
    let policy = policy("");
    let given = given("{workflow: hints}");
    let (facts, account) = (given.facts(), given.account());
    let situation = Situation {
        facts: &facts,
        account: &account,
        unix_s: 0,
        budget_left: Money::MAX,
    };
    let profile = policy.classify(&situation);
    let mut offers = policy.reference_offers(&facts);
    offers[1].retry_permille = 1000;
    offers[1].escalation_permille = 100;
    let ask = Ask {
        facts: &facts,
        account: &account,
        profile: &profile,
        grants: &Grants::default(),
        offers: &offers,
        conversation: None,
        estimates: &Estimates::default(),
        envelope: Envelope {
            granted: Money::MAX,
            remaining: Money::MAX,
        },
        unix_s: 0,
        seed: 0,
    };
    let decision = policy.decide(&ask).unwrap();
    let small = decision
        .trace
        .entries
        .iter()
        .find(|entry| &*entry.deployment == "small")
        .unwrap();
    let (own, dearest) = (offers[1].expected.unwrap(), offers[0].expected.unwrap());
    let expected = own.nanos() * 2 + dearest.nanos() / 10;
    assert_eq!(small.score.unwrap().price.nanos(), expected);
    assert_eq!(&*decision.plan.first().deployment, "own");

    // A hundred outcomes, almost all of them better than believed.
    let at = policy.position("own").unwrap();
    let estimates = Estimates::default().with_surprise(at, Surprise::new(100.0, 60.0));
    let profile = Profile {
        worth: exchange::Worth {
            value_per_success: Money::from_dollars(5),
            ..profile.worth
        },
        ..profile.clone()
    };
    let decision = policy
        .decide(&Ask {
            estimates: &estimates,
            profile: &profile,
            ..ask
        })
        .unwrap();
    assert_eq!(
        &*decision.plan.first().deployment,
        "own",
        "outcomes speak louder than priors"
    );
}

#[test]
fn a_prediction_counts_where_the_policy_asks_for_it_and_the_prompt_is_familiar() {
    let routes = "routes: [{name: all, allow: [big, small]}]\n";
    let easy = "A shop sold 48 pens in April at $1.25 each, and half as many in May. How much did it earn in dollars?";
    let odd = "ζ∘ζ ≔ λx.⟦x⟧ ⊢ ∀∃ ".repeat(40);
    let source = |policy: &Policy, prompt: &str, more: &str| {
        let decision = decided(policy, &format!("{{prompt: {prompt:?}{more}}}"));
        let small = decision
            .trace
            .entries
            .iter()
            .find(|one| &*one.deployment == "small");
        (small.unwrap().score.unwrap().source, decision.trace.notes.len())
    };
    let (on, off) = (
        policy(&format!("objective: {{predict: true}}\n{routes}")),
        policy(routes),
    );
    assert_eq!(source(&off, easy, ""), (EstimateSource::Prior, 0));
    assert_eq!(source(&on, easy, ""), (EstimateSource::Predictor, 0));
    assert_eq!(
        source(&on, &odd, ""),
        (EstimateSource::Prior, 1),
        "and a note says so"
    );
    assert_eq!(
        source(&on, easy, ", workflow: contracts").0,
        EstimateSource::Predictor,
        "a workflow that does not say takes the objective's word"
    );
    let named = decided(&on, &format!("{{prompt: {easy:?}, model: small}}"));
    assert_eq!(
        named.trace.entries[0].score.unwrap().source,
        EstimateSource::Prior,
        "nothing to choose"
    );
}

#[test]
fn a_split_takes_its_share_and_exploration_its_own() {
    let canary = policy("routes: [{name: canary, prefer: [small], split: [{to: own, percent: 20}]}]\n");
    let explorer = policy("objective: {explore: 0.1}\n");
    let count = |policy: &Policy, reason: Reason| {
        let seeds = 0..2000;
        let decisions = seeds.map(|seed| decided(policy, &format!("{{seed: {seed}}}")).reason);
        decisions.filter(|found| *found == reason).count()
    };
    let (split, explored) = (count(&canary, Reason::Split), count(&explorer, Reason::Explored));
    assert!((340..460).contains(&split), "{split} of 2000 are not about 20 %");
    assert!(
        (150..250).contains(&explored),
        "{explored} of 2000 are not about 10 %"
    );
    assert_eq!(
        count(&canary, Reason::Explored),
        0,
        "exploration is off by default"
    );
}

#[test]
fn named_models_are_honoured_substituted_or_refused() {
    let honour = decided(&policy(""), "{model: gpt-4o-mini, workflow: contracts}");
    assert_eq!(
        (
            &*honour.plan.first().deployment,
            honour.reason,
            honour.substituted
        ),
        ("small", Reason::Named, false)
    );
    let substitute = decided(
        &policy("named_models: substitute\n"),
        "{model: gpt-4o-mini, workflow: contracts}",
    );
    assert_eq!(
        (&*substitute.plan.first().deployment, substitute.substituted),
        ("big", true)
    );
    let refuse = policy("named_models: refuse\nteams: {ops: {named_models: refuse}}\n");
    let refused = given("{model: gpt-4o-mini}").decide(&refuse).decided.unwrap_err();
    assert_eq!(refused.kind, RefusalKind::PermissionDenied);
    assert_eq!(
        first(&policy("aliases: {clever: big}\n"), "{model: clever}"),
        "big"
    );
}

#[test]
fn teams_regions_and_data_only_narrow() {
    let text = THREE
        .replace("id: own,", "id: own, region: eu, data_classes: [secret],")
        .replace("id: big,", "id: big, region: us,")
        .replace(
            "{name: hints,",
            "{name: secrets, value: high, data_class: secret}\n  - {name: hints,",
        );
    let policy = Policy::parse(&format!("{text}teams: {{eu: {{regions: [eu]}}, bare: {{never: [{{class: frontier}}], thinking_at_most: none}}}}\n"), "t").unwrap();
    assert_eq!(first(&policy, "{workflow: secrets}"), "own");
    assert_eq!(first(&policy, "{workflow: contracts, team: eu}"), "own");
    assert_eq!(first(&policy, "{workflow: contracts, team: bare}"), "small");
    assert_eq!(
        first(&policy, "{workflow: contracts, labels: {data_class: secret}}"),
        "own"
    );
    let refused = given("{workflow: secrets, down: [own]}")
        .decide(&policy)
        .decided
        .unwrap_err();
    assert_eq!(refused.kind, RefusalKind::NoDeployment);
}

proptest! {
    /// Whatever the circumstances: one line for each deployment, nothing unaffordable or unable in the plan, and the
    /// same answer twice.
    #[test]
    fn decisions_are_total_and_repeatable(
        tokens in 0u64..300_000,
        granted in 0i64..2_000_000_000,
        left in 0i64..20_000_000_000,
        workflow in prop::sample::select(vec!["contracts", "proofs", "hints", "none"]),
        down in prop::collection::vec(prop::sample::select(vec!["big", "small", "own"]), 0..3),
        seed in any::<u64>(),
    ) {
        let policy = policy("objective: {explore: 0.3, thin_budget: {below: 10, price_weight: 5}}\n");
        let mut given = given("{}");
        given.input_tokens = tokens;
        given.granted = Some(crate::policy::Dollars(Money::from_nanos(granted)));
        given.budget_left = Some(crate::policy::Dollars(Money::from_nanos(left)));
        given.workflow = Some(workflow.into());
        given.down = down.iter().map(|id| (*id).to_owned()).collect();
        given.seed = seed;
        let (once, twice) = (given.decide(&policy), given.decide(&policy));
        prop_assert_eq!(&once.decided, &twice.decided);
        let trace = once.trace();
        let mut lines: Vec<&str> = trace.entries.iter().map(|entry| &*entry.deployment).collect();
        lines.sort_unstable();
        prop_assert_eq!(lines, vec!["big", "own", "small"]);
        if let Ok(decision) = &once.decided {
            let minimums = policy.reference_offers(&given.facts());
            for candidate in decision.plan.iter() {
                prop_assert!(!given.down.iter().any(|down| **down == *candidate.deployment));
                prop_assert!(minimums[candidate.index].minimum.unwrap().nanos() <= granted);
            }
        }
    }
}
