//! From the document as written to the policy that rules: every condition compiled, every name resolved, and every
//! mistake told at once.

use super::form::{Capability, Deployment, NamedModels, PolicyDocument, Route, TeamLayer, TeamsDocument};
use super::scalars::{Dollars, Quality, Step, ThinkingWish};
use super::{CompiledRoute, Level, Model, Name, Policy, Rates, Service, Team, Tests};
use crate::ability::{Table, level_of_setting};
use crate::condition::{Comparison, Condition, Test, Text, TextFact};
use crate::document::{self, DocumentErrors, Mistakes};
use crate::estimates::{Estimate, ThinkingGain};
use exchange::{BackendClass, EstimateSource, LatencyTier, Money, Rate, ThinkingLevel, ValueTier};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap, HashSet};
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
/// P(success), milliseconds to the first token and milliseconds for a thousand tokens, where nothing else is known.
const CLASSES: [(f64, u32, u32); BackendClass::ALL.len()] = [
    (0.90, 1_200, 15_000),
    (0.78, 600, 10_000),
    (0.55, 300, 30_000),
    (0.88, 3_600_000, 1_000),
];

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

    fn models(&mut self) -> Vec<Model> {
        if self.document.deployments.is_empty() {
            self.mistakes.hinted(
                "deployments",
                "is empty: a policy needs at least one deployment",
                "add one: {id: mini, provider: openai, model: gpt-4o-mini, class: cheap}",
            );
        }
        let table = match Table::built_in() {
            Ok(table) => Some(table),
            Err(error) => {
                self.mistakes.add(
                    "",
                    format!("the built-in table of thinking cannot be read: {error}"),
                );
                None
            }
        };
        let mut ids = HashSet::new();
        let mut models = Vec::new();
        for (position, deployment) in self.document.deployments.iter().enumerate() {
            let path = format!("deployments[{position}]");
            if !ids.insert(&deployment.id) {
                self.mistakes.hinted(
                    format!("{path}.id"),
                    format!("`{}` is used twice", deployment.id),
                    "ids are how routes and reports speak of a deployment: give each its own",
                );
            }
            if self.document.virtual_models.contains(&deployment.id) {
                self.mistakes.hinted(
                    format!("{path}.id"),
                    format!("`{}` is also a virtual model", deployment.id),
                    "rename one of them",
                );
            }
            if let Some(price_as) = deployment.price_as.as_ref().filter(|name| !name.contains('/')) {
                self.mistakes.hinted(
                    format!("{path}.price_as"),
                    format!("`{price_as}` does not name a provider and a model"),
                    "write it as provider/model, such as anthropic/claude-sonnet-4-5",
                );
            }
            self.check_thinking_ability(deployment, &path);
            models.push(model(deployment, table.as_ref()));
        }
        models
    }

    fn check_thinking_ability(&mut self, deployment: &Deployment, path: &str) {
        let Some(ability) = &deployment.thinking else {
            return;
        };
        let path = format!("{path}.thinking");
        if !ability.supported.contains(&ability.default) {
            let known: Vec<_> = ability.supported.iter().map(|level| level.as_str()).collect();
            self.mistakes.hinted(
                format!("{path}.default"),
                format!("`{}` is not among the supported levels", ability.default),
                format!("supported here: {}", known.join(", ")),
            );
        }
        if ability.mandatory && ability.supported.contains(&ThinkingLevel::None) {
            self.mistakes.hinted(
                format!("{path}.mandatory"),
                "thinking that cannot be switched off has no level `none`",
                "take `none` out of `supported`, or `mandatory` away",
            );
        }
        if ability
            .min_tokens
            .zip(ability.max_tokens)
            .is_some_and(|(min, max)| min > max)
        {
            self.mistakes
                .hinted(format!("{path}.min_tokens"), "is above `max_tokens`", "swap them");
        }
        if !deployment.capabilities.contains(&Capability::Thinking) {
            self.mistakes.hinted(
                path,
                "describes thinking of a deployment that does not list it",
                "add `thinking` to its capabilities",
            );
        }
    }

    fn names(&mut self) -> HashMap<Arc<str>, Name> {
        let mut names: HashMap<Arc<str>, Name> = HashMap::new();
        for (position, deployment) in self.document.deployments.iter().enumerate() {
            let own = [&deployment.id, &deployment.model];
            let mut all: Vec<&Arc<str>> = own.into_iter().chain(&deployment.aliases).collect();
            all.sort_unstable();
            all.dedup();
            for name in all {
                match names
                    .entry(name.clone())
                    .or_insert_with(|| Name::Deployments(Vec::new()))
                {
                    Name::Deployments(found) => found.push(position),
                    Name::Virtual => {}
                }
            }
        }
        for name in &self.document.virtual_models {
            names.insert(name.clone(), Name::Virtual);
        }
        for (alias, target) in &self.document.aliases {
            match names.get(target).cloned() {
                Some(meaning) => {
                    names.insert(alias.clone(), meaning);
                }
                None => {
                    let known: Vec<&str> = names.keys().map(|name| &**name).collect();
                    let path = format!("aliases.{alias}");
                    self.mistakes
                        .unknown(path, ("deployment or virtual model", target), known.into_iter());
                }
            }
        }
        names
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

    fn route(&mut self, index: usize) -> CompiledRoute {
        let document = self.document;
        let route: &Route = &document.routes[index];
        let path = format!("routes[{index}]");
        let test = self.test(&route.when, &format!("{path}.when"));
        let mut taken = HashSet::new();
        let mut prefer = Vec::new();
        for (step, members) in self
            .steps(&route.prefer, &format!("{path}.prefer"))
            .into_iter()
            .enumerate()
        {
            let fresh: Vec<usize> = members
                .iter()
                .copied()
                .filter(|member| taken.insert(*member))
                .collect();
            if fresh.is_empty() && !members.is_empty() {
                let path = format!("{path}.prefer[{step}]");
                self.mistakes
                    .hinted(path, "is in the list already", "take it out");
            }
            prefer.push(fresh);
        }
        let mut allow: Vec<usize> = self.steps(&route.allow, &format!("{path}.allow")).concat();
        if let Some(pin) = &route.pin {
            let pinned = self.steps(&[Step::Deployment(pin.clone())], &format!("{path}.pin"));
            if !route.prefer.is_empty() || !route.allow.is_empty() {
                self.mistakes.hinted(
                    format!("{path}.pin"),
                    "stands beside `prefer` or `allow`, which it leaves nothing to say",
                    "keep one of them; what may stand in for the pinned one goes under `fallback`",
                );
            }
            taken.extend(pinned.iter().flatten());
            prefer = pinned;
        } else if route.prefer.is_empty() && route.allow.is_empty() {
            allow = (0..document.deployments.len()).collect();
        }
        allow.retain(|member| taken.insert(*member));
        let mut never = vec![false; document.deployments.len()];
        for member in self.steps(&route.never, &format!("{path}.never")).concat() {
            never[member] = true;
        }
        let fallback = self.steps(&route.fallback, &format!("{path}.fallback"));
        let fallback = fallback
            .into_iter()
            .map(|step| step.into_iter().filter(|member| taken.insert(*member)).collect());
        CompiledRoute {
            name: route.name.clone(),
            test,
            names_a_model: route.when.names_a_model(),
            prefer,
            allow,
            fallback: fallback.collect(),
            never,
            is_pin: route.pin.is_some(),
            split: self.split(route, &path),
        }
    }

    fn split(&mut self, route: &Route, path: &str) -> Vec<(usize, f64)> {
        let mut total = 0.0;
        let mut split = Vec::new();
        for (position, part) in route.split.iter().enumerate() {
            let path = format!("{path}.split[{position}]");
            if !(0.0..=100.0).contains(&part.percent) {
                let problem = format!("{} is outside 0 … 100", part.percent);
                self.mistakes.hinted(
                    format!("{path}.percent"),
                    problem,
                    "of a hundred requests, so many",
                );
            }
            total += part.percent;
            let members = self
                .steps(&[Step::Deployment(part.to.clone())], &format!("{path}.to"))
                .concat();
            split.extend(members.first().map(|member| (*member, part.percent)));
        }
        if total > 100.0 {
            let problem = format!("the shares come to {total} per cent");
            self.mistakes.hinted(
                format!("{path}.split"),
                problem,
                "lower them: what is left over is routed as usual",
            );
        }
        split
    }

    /// The members of each step, in the document's order of deployments.
    fn steps(&mut self, steps: &[Step], path: &str) -> Vec<Vec<usize>> {
        let document = self.document;
        let is_list = !path.ends_with(".pin") && !path.ends_with(".to");
        let mut found = Vec::new();
        for (position, step) in steps.iter().enumerate() {
            let path = if is_list {
                format!("{path}[{position}]")
            } else {
                path.to_owned()
            };
            let deployments = document.deployments.iter().enumerate();
            let members: Vec<usize> = deployments
                .filter(|(_, one)| match step {
                    Step::Deployment(id) => one.id == *id,
                    Step::Class(class) => one.class == *class,
                })
                .map(|(index, _)| index)
                .collect();
            if members.is_empty() {
                match step {
                    Step::Deployment(id) => {
                        let known: Vec<&str> = document.deployments.iter().map(|one| &*one.id).collect();
                        self.mistakes.unknown(path, ("deployment", id), known.into_iter());
                    }
                    Step::Class(class) => self.some_of_class(&path, &[*class]),
                }
            }
            found.push(members);
        }
        found
    }

    fn team(&mut self, name: &str, layer: &TeamLayer) -> Team {
        let path = format!("teams.{name}");
        let count = self.document.deployments.len();
        let mut allowed = vec![layer.allow.is_empty(); count];
        for member in self.steps(&layer.allow, &format!("{path}.allow")).concat() {
            allowed[member] = true;
        }
        for member in self.steps(&layer.never, &format!("{path}.never")).concat() {
            allowed[member] = false;
        }
        for (tier, classes) in &layer.floors {
            if let Some(org) = self.document.floors.get(tier)
                && let Some(wider) = classes.iter().find(|class| !org.contains(class))
            {
                let allowed: Vec<_> = org.iter().map(|class| class.as_str()).collect();
                self.mistakes.hinted(
                    format!("{path}.floors.{tier}"),
                    format!(
                        "allows `{wider}`, which the organisation's floor does not: a team may only narrow"
                    ),
                    format!("the organisation allows {}", allowed.join(", ")),
                );
            }
            self.some_of_class(&format!("{path}.floors.{tier}"), classes);
        }
        let named_models = layer.named_models.unwrap_or(self.document.named_models);
        if named_models < self.document.named_models {
            self.mistakes.hinted(
                format!("{path}.named_models"),
                "is laxer than the organisation's: a team may only narrow",
                "honour < substitute < refuse",
            );
        }
        for (at, region) in layer.regions.iter().enumerate() {
            let mut regions = self
                .document
                .deployments
                .iter()
                .filter_map(|one| one.region.as_deref());
            if !regions.any(|known| known == &**region) {
                let known: Vec<&str> = self
                    .document
                    .deployments
                    .iter()
                    .filter_map(|one| one.region.as_deref())
                    .collect();
                let path = format!("{path}.regions[{at}]");
                self.mistakes
                    .unknown(path, ("region of a deployment", region), known.into_iter());
            }
        }
        Team {
            allowed,
            regions: layer.regions.clone(),
            floors: layer
                .floors
                .iter()
                .map(|(tier, classes)| (*tier, classes.clone()))
                .collect(),
            thinking_at_most: layer.thinking_at_most.unwrap_or(ThinkingLevel::Max),
            named_models,
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

fn model(deployment: &Deployment, table: Option<&Table>) -> Model {
    let (p, first_token_ms, kilotoken_ms) = CLASSES[deployment.class as usize];
    let estimate = |quality: &Quality| {
        let gain = quality
            .thinking
            .iter()
            .fold(ThinkingGain::ZERO, |gain, (level, add)| gain.with(*level, *add));
        Estimate::new(quality.p, quality.error, EstimateSource::Prior).thinking(gain)
    };
    let quality: HashMap<Arc<str>, Estimate> = deployment
        .quality
        .iter()
        .map(|(task, quality)| (task.clone(), estimate(quality)))
        .collect();
    let usual = Estimate::new(p, 0.15, EstimateSource::Prior);
    let speed = deployment.speed;
    // A dollar for a million tokens is a million pico-dollars for one: nano-dollars over a thousand.
    let rate = |Dollars(money): Dollars| Rate(u64::try_from(money.nanos()).unwrap_or_default() / 1_000);
    Model {
        ability: table.and_then(|table| table.of(deployment)),
        default_quality: quality.get("default").copied().unwrap_or(usual),
        quality,
        first_token_ms: speed.map_or(first_token_ms, |speed| speed.first_token_ms),
        kilotoken_ms: speed.map_or(kilotoken_ms, |speed| 1_000_000 / speed.tokens_per_second.max(1)),
        rates: deployment.price.as_ref().map(|price| Rates {
            input: rate(price.input),
            output: rate(price.output),
            cached_input: rate(price.cached_input.unwrap_or(price.input)),
        }),
    }
}
