//! What is wrong with a policy that reads well: rules that nothing reaches, valuable work on weak models, promises
//! that nobody can keep.
//!
//! Owns: the findings, their severity and place. Refuses to know: traffic (replay does). Invariants: an error means
//! that the policy does not do what it says; a warning, that it may not do what was meant.

mod inversion;
mod reach;
mod standing;

pub use inversion::{Inversion, Inversions};
pub use standing::Standing;
pub(crate) use standing::{standings, strength};

use crate::document::places::Node;
use crate::policy::{Policy, ThinkingWish};
use exchange::{BackendClass, Verdict};
use serde::Serialize;
use std::collections::HashSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Warning,
    Error,
}

/// One thing wrong.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// What kind of thing, such as `budget_inversion`.
    pub code: &'static str,
    /// Where in the document.
    pub path: String,
    pub line: Option<usize>,
    pub column: Option<usize>,
    pub problem: String,
    pub hint: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, "{line}:{column}: ")?;
        }
        write!(
            f,
            "{severity}[{}]: {}: {}; {}",
            self.code, self.path, self.problem, self.hint
        )
    }
}

/// All findings, and how worth and model class go together.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub findings: Vec<Finding>,
    pub inversions: Inversions,
    pub workflows: Vec<Standing>,
}

impl Report {
    pub fn has_errors(&self) -> bool {
        self.findings
            .iter()
            .any(|finding| finding.severity == Severity::Error)
    }
}

/// A gateway's knowledge of prices, by provider and model.
pub type Priced<'a> = &'a dyn Fn(&str, &str) -> bool;

/// Judges a policy. `text` is its document, for places; `priced` a gateway's price book, where there is one.
pub fn lint(policy: &Policy, text: &str, priced: Option<Priced<'_>>) -> Report {
    let workflows = standings(policy);
    let inversions = inversion::inversions(&workflows);
    let mut linter = Linter {
        policy,
        node: Node::read(text),
        findings: Vec::new(),
    };
    linter.unreachable();
    linter.fallbacks();
    linter.prices(priced);
    linter.thinking();
    linter.standings(&workflows);
    linter.service_levels();
    linter.inverted(&inversions);
    let mut findings = linter.findings;
    findings.sort_by(|a, b| b.severity.cmp(&a.severity).then(a.line.cmp(&b.line)));
    Report {
        findings,
        inversions,
        workflows,
    }
}

struct Linter<'a> {
    policy: &'a Policy,
    node: Option<Node>,
    findings: Vec<Finding>,
}

impl Linter<'_> {
    fn add(&mut self, (severity, code): (Severity, &'static str), path: String, problem: String, hint: &str) {
        let place = self.node.as_ref().and_then(|node| node.find(&path));
        self.findings.push(Finding {
            severity,
            code,
            path,
            line: place.map(|place| place.0),
            column: place.map(|place| place.1),
            problem,
            hint: hint.to_owned(),
        });
    }

    fn unreachable(&mut self) {
        for (list, later, earlier) in reach::unreachable(self.policy) {
            let names = |position: usize| {
                let document = &self.policy.document;
                match list {
                    "workflows" => document.workflows[position].name.clone(),
                    "value" => document.value[position].name.clone(),
                    "latency" => document.latency[position].name.clone(),
                    "thinking" => document.thinking[position].name.clone(),
                    _ => document.routes[position].name.clone(),
                }
            };
            let problem = format!(
                "`{}` is never reached: `{}` takes all it would",
                names(later),
                names(earlier)
            );
            self.add(
                (Severity::Error, "unreachable_rule"),
                format!("{list}[{later}]"),
                problem,
                "the first rule that holds decides: move the narrower one up, or take it out",
            );
        }
    }

    /// A route all of whose deployments are at one provider fails with it.
    fn fallbacks(&mut self) {
        let deployments = self.policy.deployments();
        let providers: HashSet<&str> = deployments.iter().map(|one| &*one.provider).collect();
        for (position, route) in self.policy.routes.iter().enumerate() {
            let members = route
                .prefer
                .iter()
                .flatten()
                .chain(&route.allow)
                .chain(route.fallback.iter().flatten());
            let mut at: Vec<&str> = members
                .filter(|index| !route.never[**index])
                .map(|index| &*deployments[*index].provider)
                .collect();
            at.sort_unstable();
            at.dedup();
            let path = format!("routes[{position}]");
            match at.as_slice() {
                [] => self.add(
                    (Severity::Error, "empty_route"),
                    path,
                    format!("`{}` leaves no deployment: `never` takes out all", route.name),
                    "allow one",
                ),
                [only] if providers.len() > 1 => {
                    let problem = format!(
                        "`{}` has nothing to fall back to when `{only}` is down",
                        route.name
                    );
                    self.add(
                        (Severity::Warning, "missing_fallback"),
                        path,
                        problem,
                        "add a `fallback` at another provider",
                    );
                }
                _ => {}
            }
        }
    }

    fn prices(&mut self, priced: Option<Priced<'_>>) {
        for (position, deployment) in self.policy.deployments().iter().enumerate() {
            let path = format!("deployments[{position}]");
            let (provider, model) = deployment
                .price_as
                .as_deref()
                .and_then(|name| name.split_once('/'))
                .unwrap_or((&deployment.provider, &deployment.model));
            match priced {
                Some(priced) if !priced(provider, model) => self.add(
                    (Severity::Error, "unpriced_deployment"),
                    path,
                    format!("no price is known for `{provider}/{model}`: it would never be used"),
                    "add it under `prices` of the gateway's configuration, or name another with `price_as`",
                ),
                None if deployment.price.is_none() && deployment.class != BackendClass::Local => self.add(
                    (Severity::Warning, "unpriced_deployment"),
                    path,
                    format!(
                        "`{}` has no `price`, so that the tools take it for free",
                        deployment.id
                    ),
                    "add `price: {input: …, output: …}` in dollars for a million tokens",
                ),
                _ => {}
            }
        }
    }

    fn thinking(&mut self) {
        let knows_gain = self.policy.deployments().iter().any(|one| {
            one.quality
                .values()
                .any(|quality| quality.thinking.values().any(|gain| *gain > 0.0))
        });
        let document = &self.policy.document;
        let predicts = document.objective.predict
            || document
                .workflows
                .iter()
                .any(|workflow| workflow.predict == Some(true));
        for (position, rule) in document.thinking.iter().enumerate() {
            if rule.level == Some(ThinkingWish::ByGain) && !knows_gain && !predicts {
                self.add(
                    (Severity::Warning, "unknown_gain"),
                    format!("thinking[{position}]"),
                    format!(
                        "`{}` asks for thinking by its gain, and no deployment says what it gains",
                        rule.name
                    ),
                    "add `thinking: {medium: 0.1}` to a `quality`, or `predict: true` to the workflow",
                );
            }
        }
    }

    fn standings(&mut self, workflows: &[Standing]) {
        for standing in workflows {
            let path = format!("workflows[{}]", standing.position);
            if let Some(refusal) = &standing.refused {
                let problem = format!("nobody may serve `{}`: {refusal}", standing.workflow);
                let hint = "see floors, data classes, regions and routes";
                self.add((Severity::Error, "unservable_workflow"), path, problem, hint);
            } else if let Some(missed) = standing.misses {
                let what = match missed {
                    Verdict::TooSlow => "its deadline or its latency tier's service level",
                    _ => "its value tier's `min_success`",
                };
                let problem = format!("nobody who may serve `{}` meets {what}", standing.workflow);
                let hint = "allow a deployment that does, or promise less";
                self.add((Severity::Error, "infeasible_service_level"), path, problem, hint);
            }
            let workflow = self.policy.document.workflows.get(standing.position);
            let is_asked = workflow.and_then(|workflow| workflow.predict) == Some(true);
            if is_asked && standing.choices == 1 && standing.thinking.is_none() {
                let path = format!("workflows[{}].predict", standing.position);
                let problem = format!(
                    "`{}` asks the predictor, and only one deployment may serve it",
                    standing.workflow
                );
                let hint = "allow a second one, or take `predict` out: it costs 0.1 ms a request";
                self.add(
                    (Severity::Warning, "prediction_without_choice"),
                    path,
                    problem,
                    hint,
                );
            }
        }
    }

    /// A tier that no deployment at all can meet.
    fn service_levels(&mut self) {
        let fastest = self
            .policy
            .models
            .iter()
            .map(|model| u64::from(model.first_token_ms))
            .min();
        for (tier, level) in &self.policy.document.latency_tiers {
            let missed = level
                .first_token_ms
                .zip(fastest)
                .filter(|(limit, fastest)| limit < fastest);
            if let Some((limit, fastest)) = missed {
                self.add(
                    (Severity::Error, "infeasible_service_level"),
                    format!("latency_tiers.{tier}.first_token_ms"),
                    format!(
                        "no deployment's first token comes within {limit} ms; the fastest takes {fastest} ms"
                    ),
                    "promise less, or correct the deployments' `speed`",
                );
            }
        }
    }

    fn inverted(&mut self, inversions: &Inversions) {
        for one in &inversions.inverted {
            let severity = if one.approved_by.is_some() {
                Severity::Warning
            } else {
                Severity::Error
            };
            let approval = one
                .approved_by
                .as_ref()
                .map_or(String::new(), |who| format!(" (approved by {who})"));
            let problem = format!(
                "`{}`, worth {} a success, is served by {} while `{}`, worth {}, is served by {}; {} a month at stake{approval}",
                one.workflow,
                one.value,
                one.class,
                one.less_valuable,
                one.less_value,
                one.stronger_class,
                one.at_stake
            );
            self.add(
                (severity, "budget_inversion"),
                format!("workflows[{}]", one.position),
                problem,
                "give it a `floor`, or name who agreed under `approved_by`",
            );
        }
    }
}
