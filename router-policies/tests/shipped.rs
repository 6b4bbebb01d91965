//! The policies and the schema in this folder are what they say: every case holds, the schema is current.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use router_policies::{Cases, Policy, PolicyDocument};
use std::path::Path;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_shipped_policy_holds_its_cases() {
    for name in ["default", "example", "support-desk", "legal", "coding-agents"] {
        let (policy, cases) = (format!("policies/{name}.yaml"), format!("cases/{name}.yaml"));
        let parsed = Policy::parse(&read(&policy), &policy).unwrap();
        let failures = Cases::parse(&read(&cases), &cases).unwrap().run(&parsed);
        assert!(failures.is_empty(), "{name}: {failures:#?}");
    }
}

#[test]
fn the_committed_schema_is_the_current_one() {
    let current = serde_json::to_value(schemars::schema_for!(PolicyDocument)).unwrap();
    let committed: serde_json::Value = serde_json::from_str(&read("schema/policy.json")).unwrap();
    assert!(
        committed == current,
        "regenerate: cargo run -p router-policies -- schema > router-policies/schema/policy.json"
    );
}

#[test]
fn mistakes_are_found_by_place() {
    let check = |text: &str| Policy::parse(text, "p.yaml").unwrap_err().to_string();
    let wrong_key = check("version: 1\ndeployments:\n  - {id: a, provider: p, modle: m, class: local}\n");
    assert!(
        wrong_key.starts_with("p.yaml:3:") && wrong_key.contains("did you mean `model`?"),
        "{wrong_key}"
    );
    let wrong_class = check("version: 1\ndeployments:\n  - {id: a, provider: p, model: m, class: lokal}\n");
    assert!(wrong_class.contains("lokal"), "{wrong_class}");
    let dangling = check(
        "version: 1\ndeployments: [{id: sonnet, provider: p, model: m, class: local}]\nroutes: [{name: r, prefer: [sonet]}]\n",
    );
    assert!(
        dangling.contains("routes[0].prefer[0]") && dangling.contains("did you mean `sonnet`?"),
        "{dangling}"
    );
}
