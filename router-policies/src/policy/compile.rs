//! From the document as written to the policy that rules: every condition compiled, every name resolved, and every
//! mistake told at once.

mod model;
mod route;
mod team;

use super::form::{NamedModels, PolicyDocument, TeamLayer, TeamsDocument};
use super::scalars::{Dollars, ThinkingWish};
use super::{CompiledRoute, Level, Policy, Service, Team, Tests};
use crate::ability::level_of_setting;
use crate::condition::{Comparison, Condition, Test, Text, TextFact};
use crate::document::{self, DocumentErrors, Mistakes};
use exchange::{BackendClass, LatencyTier, Money, ThinkingLevel, ValueTier};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// A value tier's worth where the policy does not say: dollars for success, dollars for failure.
const WORTH: [(i64, i64); ValueTier::ALL.len()] = [
    (20_000_000, 0),                // unvalued: two cents, so that it is neither free nor precious
    (2_000_000, 0),                 // low
    (50_000_000, 20_000_000),       // standard
    (2_000_000_000, 2_000_000_000), // high
    (20_000_000_000, 50_000_000_000), // critical
];
/// What a second costs where the policy does not say, in nano-dollars: somebody waits, a program waits, nobody does.
const SECOND: [i64; LatencyTier::ALL.len()] = [2_000_000, 200_000, 10_000, 0];
/// Tokens that levels of thinking use where the policy does not say.
const THINKING_TOKENS: [u64; ThinkingLevel::ALL.len()] = [0, 256, 1_024, 4_096, 12_288, 24_576, 32_768];

pub(super) fn compile(org: (&str, &str), teams: &[(&str, &str)]) -> Result<Policy, DocumentErrors> {
    let (text, file) = org;
    let (document, mut mistakes) = document::read::<PolicyDocument>(text, file);
    let mut elsewhere = Vec::new();
    let policy = document.map(|document| {
        let mut policy = Compiler {
            document: &document,
            mistakes: &mut mistakes,
        }
        .policy();
        policy.document = document;
        policy.version = version(text, teams);
        policy
    });
    let policy = policy.map(|mut policy| {
        for (text, file) in teams {
            let (layers, mut mistakes) = document::read::<TeamsDocument>(text, file);
            if let Some(layers) = layers {
                policy.add_teams(layers.teams, &mut mistakes);
            }
            elsewhere.extend(mistakes.into_found());
        }
        policy
    });
    let mut found = mistakes.into_found();
    found.extend(elsewhere);
    match policy {
        Some(policy) if found.is_empty() => Ok(policy),
        _ => Err(DocumentErrors(found)),
    }
}

fn version(text: &str, teams: &[(&str, &str)]) -> Arc<str> {
    let mut digest = Sha256::new();
    digest.update(text.as_bytes());
    for (text, _) in teams {
        digest.update([0]);
        digest.update(text.as_bytes());
    }
    let digest = digest.finalize();
    digest[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<String>()
        .into()
}

impl Policy {
    fn add_teams(&mut self, layers: BTreeMap<Arc<str>, TeamLayer>, mistakes: &mut Mistakes<'_>) {
        for (name, layer) in layers {
            if self.teams.contains_key(&name) {
                mistakes.hinted(
                    format!("teams.{name}"),
                    "the organisation's document has a layer for this team already",
                    "keep it in one place",
                );
                continue;
            }
            let document = std::mem::replace(&mut self.document, empty());
            let team = Compiler {
                document: &document,
                mistakes,
            }
            .team(&name, &layer);
            self.document = document;
            self.teams.insert(name.clone(), team);
            self.document.teams.insert(name, layer);
        }
    }
}

fn empty() -> PolicyDocument {
    PolicyDocument {
        version: 1,
        objective: Default::default(),
        value_tiers: BTreeMap::new(),
        latency_tiers: BTreeMap::new(),
        deployments: Vec::new(),
        workflows: Vec::new(),
        value: Vec::new(),
        latency: Vec::new(),
        thinking: Vec::new(),
        floors: BTreeMap::new(),
        virtual_models: Vec::new(),
        aliases: BTreeMap::new(),
        named_models: NamedModels::Honour,
        routes: Vec::new(),
        teams: BTreeMap::new(),
    }
}

/// The longest that a connection is held for a job's answer.
const LONGEST_WAIT_S: u64 = 86_400;

struct Compiler<'a, 'm, 't> {
    document: &'a PolicyDocument,
    mistakes: &'m mut Mistakes<'t>,
}

impl Compiler<'_, '_, '_> {
    fn policy(&mut self) -> Policy {
        if self.document.version != 1 {
            let problem = format!("version {} is not known", self.document.version);
            self.mistakes
                .hinted("version", problem, "this build reads version 1");
        }
        let models = self.models();
        let names = self.names();
        let tests = self.tests();
        self.check_objective();
        self.check_floors();
        self.check_workflows();
        self.check_deferral();
        let routes: Vec<CompiledRoute> = (0..self.document.routes.len())
            .map(|index| self.route(index))
            .collect();
        self.unique(
            "routes",
            self.document.routes.iter().map(|route| &route.name).collect(),
        );
        let teams = self.document.teams.iter();
        let teams: Vec<_> = teams
            .map(|(name, layer)| (name.clone(), self.team(name, layer)))
            .collect();
        let workflows = self.document.workflows.iter().enumerate();
        Policy {
            document: empty(),
            version: "".into(),
            tests,
            routes,
            models,
            levels: std::array::from_fn(|tier| self.level(ValueTier::ALL[tier])),
            defers: self.defers(),
            service: std::array::from_fn(|tier| self.service(LatencyTier::ALL[tier])),
            names,
            teams: teams.into_iter().collect(),
            workflow_positions: workflows
                .map(|(position, one)| (one.name.clone(), position))
                .collect(),
            thinking_tokens: std::array::from_fn(|level| {
                let own = self
                    .document
                    .objective
                    .thinking_tokens
                    .get(&ThinkingLevel::ALL[level]);
                own.copied().unwrap_or(THINKING_TOKENS[level])
            }),
        }
    }

    fn tests(&mut self) -> Tests {
        let document = self.document;
        let mut tests = Tests::default();
        for (position, workflow) in document.workflows.iter().enumerate() {
            tests.workflows.push(match &workflow.when {
                Some(when) => self.test(when, &format!("workflows[{position}].when")),
                None => Test::Texts(
                    Text::Fact(TextFact::Workflow),
                    Comparison::Equal,
                    Text::Literal(workflow.name.clone()),
                ),
            });
        }
        for (position, rule) in document.value.iter().enumerate() {
            tests
                .value
                .push(self.test(&rule.when, &format!("value[{position}].when")));
        }
        for (position, rule) in document.latency.iter().enumerate() {
            tests
                .latency
                .push(self.test(&rule.when, &format!("latency[{position}].when")));
        }
        for (position, rule) in document.thinking.iter().enumerate() {
            let path = format!("thinking[{position}]");
            tests
                .thinking
                .push(self.test(&rule.when, &format!("{path}.when")));
            let bounds = (
                rule.at_least.unwrap_or(ThinkingLevel::None),
                rule.at_most.unwrap_or(ThinkingLevel::Max),
            );
            if bounds.0 > bounds.1 {
                let problem = format!("`{}` is above `at_most`, which is `{}`", bounds.0, bounds.1);
                self.mistakes.hinted(
                    format!("{path}.at_least"),
                    problem,
                    "raise one or lower the other",
                );
            }
            if let Some(ThinkingWish::This(level)) = rule.level
                && !(bounds.0..=bounds.1).contains(&level_of_setting(level))
            {
                let problem = format!("`{level}` is outside `at_least` … `at_most`");
                self.mistakes.hinted(
                    format!("{path}.level"),
                    problem,
                    "a rule's own level must be within its bounds",
                );
            }
        }
        self.unique(
            "workflows",
            document.workflows.iter().map(|one| &one.name).collect(),
        );
        self.unique("value", document.value.iter().map(|one| &one.name).collect());
        self.unique("latency", document.latency.iter().map(|one| &one.name).collect());
        self.unique(
            "thinking",
            document.thinking.iter().map(|one| &one.name).collect(),
        );
        tests
    }

    fn test(&mut self, when: &Condition, path: &str) -> Test {
        when.compile(path, self.mistakes)
    }

    fn unique(&mut self, list: &str, names: Vec<&Arc<str>>) {
        let mut seen = HashSet::new();
        for (position, name) in names.into_iter().enumerate() {
            if !seen.insert(name) {
                self.mistakes.hinted(
                    format!("{list}[{position}].name"),
                    format!("`{name}` is used twice"),
                    "names are the evidence in traces: give each its own",
                );
            }
        }
    }

    fn check_objective(&mut self) {
        let objective = &self.document.objective;
        let shares = [
            ("explore", objective.explore, 1.0),
            ("familiarity", objective.familiarity, 1.0),
            ("caution", objective.caution, 4.0),
        ];
        for (name, share, most) in shares {
            if !(0.0..=most).contains(&share) {
                let problem = format!("{share} is outside 0 … {most}");
                self.mistakes.hinted(
                    format!("objective.{name}"),
                    problem,
                    "the schema says what it means",
                );
            }
        }
        if let Some(thin) = &objective.thin_budget
            && !(1.0..=1000.0).contains(&thin.price_weight)
        {
            self.mistakes.hinted(
                "objective.thin_budget.price_weight",
                format!("{} is outside 1 … 1000", thin.price_weight),
                "4 makes a dollar weigh four times when nothing is left",
            );
        }
        for (tier, level) in &self.document.value_tiers {
            if level.min_success.is_some_and(|p| !(0.0..=1.0).contains(&p)) {
                self.mistakes.hinted(
                    format!("value_tiers.{tier}.min_success"),
                    "is not a probability between 0 and 1",
                    "0.9 means nine right answers of ten",
                );
            }
        }
        for (position, deployment) in self.document.deployments.iter().enumerate() {
            if deployment.speed.is_some_and(|speed| speed.tokens_per_second == 0) {
                let path = format!("deployments[{position}].speed.tokens_per_second");
                self.mistakes
                    .hinted(path, "is 0", "how many tokens come in a second, such as 60");
            }
        }
    }

    fn check_floors(&mut self) {
        for (tier, classes) in &self.document.floors {
            self.some_of_class(&format!("floors.{tier}"), classes);
        }
    }

    /// A floor that nothing reaches would refuse everything.
    fn some_of_class(&mut self, path: &str, classes: &[BackendClass]) {
        let deployments = &self.document.deployments;
        if !classes.is_empty() && !deployments.iter().any(|one| classes.contains(&one.class)) {
            let names: Vec<_> = classes.iter().map(|class| class.as_str()).collect();
            let mut there: Vec<_> = deployments.iter().map(|one| one.class.as_str()).collect();
            there.sort_unstable();
            there.dedup();
            self.mistakes.hinted(
                path,
                format!("no deployment is of class {}", names.join(" or ")),
                format!("there are deployments of class {}", there.join(", ")),
            );
        }
    }

    fn check_workflows(&mut self) {
        let document = self.document;
        let data: Vec<&str> = document
            .deployments
            .iter()
            .flat_map(|one| one.data_classes.iter().map(|d| &**d))
            .collect();
        let regions: Vec<&str> = document
            .deployments
            .iter()
            .filter_map(|one| one.region.as_deref())
            .collect();
        for (position, workflow) in document.workflows.iter().enumerate() {
            let path = format!("workflows[{position}]");
            self.some_of_class(&format!("{path}.floor"), &workflow.floor);
            if let Some(class) = workflow
                .data_class
                .as_deref()
                .filter(|class| !data.contains(class))
            {
                let path = format!("{path}.data_class");
                self.mistakes
                    .unknown(path, ("data class of a deployment", class), data.iter().copied());
            }
            for (at, region) in workflow.regions.iter().enumerate() {
                if !regions.contains(&&**region) {
                    let path = format!("{path}.regions[{at}]");
                    self.mistakes
                        .unknown(path, ("region of a deployment", region), regions.iter().copied());
                }
            }
        }
    }

    fn defers(&self) -> bool {
        let mut workflows = self.document.workflows.iter();
        let mut tiers = self.document.latency_tiers.values();
        workflows.any(|one| one.defer.is_some()) || tiers.any(|one| one.defer.is_some())
    }

    /// What cannot wait is not made to, and nothing waits longer than a day on a connection.
    fn check_deferral(&mut self) {
        let document = self.document;
        let waits = |tier: LatencyTier| matches!(tier, LatencyTier::Deferred | LatencyTier::Batch);
        let tiers = document.latency_tiers.iter();
        let tiers = tiers.map(|(tier, level)| (format!("latency_tiers.{tier}"), waits(*tier), level.defer));
        let workflows = document.workflows.iter().enumerate().map(|(position, one)| {
            // Without a tier of its own a workflow's is that of the first rule that holds.
            let may = one.latency.is_none_or(waits);
            (format!("workflows[{position}]"), may, one.defer)
        });
        for (path, may, defer) in tiers.chain(workflows) {
            let Some(defer) = defer else { continue };
            if !may {
                let hint = "only what is `deferred` or `batch` may wait";
                let problem = "makes a job of what is needed sooner";
                self.mistakes.hinted(format!("{path}.defer"), problem, hint);
            }
            if defer.wait_s > LONGEST_WAIT_S {
                let problem = format!("{} is more than a day", defer.wait_s);
                let hint = "a connection is held for at most 86400 seconds; after `wait_s` the answer is 202";
                self.mistakes
                    .hinted(format!("{path}.defer.wait_s"), problem, hint);
            }
        }
    }

    fn level(&self, tier: ValueTier) -> Level {
        let (value, failure) = WORTH[tier as usize];
        let own = self.document.value_tiers.get(&tier);
        let money =
            |own: Option<Dollars>, usual| own.map_or(Money::from_nanos(usual), |Dollars(money)| money);
        Level {
            value_per_success: money(own.and_then(|own| own.value_per_success), value),
            failure_cost: money(own.and_then(|own| own.failure_cost), failure),
            min_success: own.and_then(|own| own.min_success).unwrap_or_default(),
        }
    }

    fn service(&self, tier: LatencyTier) -> Service {
        let own = self.document.latency_tiers.get(&tier);
        let second = own.and_then(|own| own.dollars_per_second);
        Service {
            second: second.map_or(Money::from_nanos(SECOND[tier as usize]), |Dollars(money)| money),
            first_token_ms: own.and_then(|own| own.first_token_ms),
            total_ms: own.and_then(|own| own.total_ms),
        }
    }
}
