//! The policy in force, and another one, judged before it is adopted.

use super::form::Nothing;
use super::problem::Problem;
use super::route::{Answer, Call, Text};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

/// The policy in force.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Policy")]
pub(super) struct PolicyView {
    version: String,
    /// YAML.
    text: String,
}

pub(super) async fn read(call: Call, _: Nothing) -> Answer<PolicyView> {
    let rules = call.gateway.rules.now();
    Ok(PolicyView {
        version: rules.policy.version().to_string(),
        text: rules.text.clone(),
    })
}

/// Answers with its version, what it changes, and what lint finds.
pub(super) async fn put(call: Call, Text(text): Text) -> Answer<Value> {
    let put = tokio::task::block_in_place(|| call.gateway.rules.put(&text));
    put.map_err(|rejected| {
        let mistakes = rejected.0.iter().map(|one| {
            json!({
                "line": one.line, "column": one.column, "path": one.path, "problem": one.problem, "hint": one.hint,
            })
        });
        let detail = "the policy was not adopted; the one in force stays";
        Problem {
            mistakes: mistakes.collect(),
            ..Problem::new(422, "policy_rejected", detail)
        }
    })
}
