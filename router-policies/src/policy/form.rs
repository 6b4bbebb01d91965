//! The policy document as it is written: every key, its meaning and its default. The JSON schema is made from these
//! types, so that the words here are what an editor shows.

use super::scalars::{Dollars, Quality, Step, ThinkingWish};
use super::scalars::{by_latency, by_value, capabilities, class, classes, latency, level, levels, value};
use crate::condition::Condition;
use exchange::{BackendClass, LatencyTier, ThinkingLevel, ValueTier};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The YAML document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyDocument {
    /// The version of this format; 1.
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// What decisions weigh and how.
    #[serde(default)]
    pub objective: Objective,
    /// What a right and a wrong answer are worth in each value tier, where a workflow does not say.
    #[serde(default)]
    #[schemars(schema_with = "by_value::<ValueLevel>")]
    pub value_tiers: BTreeMap<ValueTier, ValueLevel>,
    /// What waiting costs in each latency tier, and how soon an answer must come.
    #[serde(default)]
    #[schemars(schema_with = "by_latency::<LatencyLevel>")]
    pub latency_tiers: BTreeMap<LatencyTier, LatencyLevel>,
    /// Models callable somewhere.
    #[schemars(length(min = 1))]
    pub deployments: Vec<Deployment>,
    /// Pieces of work with an owner and a worth; the first that matches takes the request.
    #[serde(default)]
    pub workflows: Vec<Workflow>,
    /// What an answer is worth, for requests whose workflow does not say. Without a rule that holds: `unvalued`.
    #[serde(default)]
    pub value: Vec<ValueRule>,
    /// How soon it is needed, likewise. Without one: `interactive` for streams, else `standard`.
    #[serde(default)]
    pub latency: Vec<LatencyRule>,
    /// How much thinking is granted; the first rule that holds. Without one: what the caller asks for.
    #[serde(default)]
    pub thinking: Vec<ThinkingRule>,
    /// For each value tier the classes that are good enough for it. A tier left out has no floor.
    #[serde(default)]
    #[schemars(schema_with = "by_value::<super::scalars::ClassList>")]
    pub floors: BTreeMap<ValueTier, Vec<BackendClass>>,
    /// Model names that stand for a route rather than a model.
    #[serde(default = "auto")]
    pub virtual_models: Vec<Arc<str>>,
    /// Other names for deployments and virtual models.
    #[serde(default)]
    pub aliases: BTreeMap<Arc<str>, Arc<str>>,
    /// What becomes of a request that names a model: `honour` it, `substitute` what the routes choose, or `refuse`.
    #[serde(default)]
    pub named_models: NamedModels,
    /// The first route that holds rules.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// What single teams may not do although the organisation may.
    #[serde(default)]
    pub teams: BTreeMap<Arc<str>, TeamLayer>,
}

fn auto() -> Vec<Arc<str>> {
    vec!["auto".into()]
}

/// What decisions weigh and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Objective {
    /// Standard errors taken off an estimate of success before it counts; 0 takes estimates as they are.
    #[schemars(range(min = 0.0, max = 4.0))]
    pub caution: f64,
    /// The share of requests, 0 to 1, that try another allowed deployment, so that something is learned about it.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub explore: f64,
    /// Ask the predictor, which reads the caller's last words, how likely each class of models is to be right; for requests
    /// whose workflow does not say. It costs about 0.1 ms for 4 KB.
    pub predict: bool,
    /// How familiar a prompt must be to the predictor, 0 to 1, for its estimates to count. A less familiar one is decided as
    /// if nothing had been predicted.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub familiarity: f64,
    /// Money weighs more when little is left of the budget.
    pub thin_budget: Option<ThinBudget>,
    /// Output tokens expected of a request that sets no limit.
    #[schemars(range(min = 1))]
    pub expected_output_tokens: u64,
    /// Tokens that each level of thinking is expected to use.
    #[schemars(schema_with = "levels")]
    pub thinking_tokens: BTreeMap<ThinkingLevel, u64>,
}

impl Default for Objective {
    fn default() -> Self {
        Self {
            caution: 0.0,
            explore: 0.0,
            predict: false,
            familiarity: 0.5,
            thin_budget: None,
            expected_output_tokens: 500,
            thinking_tokens: BTreeMap::new(),
        }
    }
}

/// Money weighs more when little is left of the budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ThinBudget {
    /// Dollars left in the tightest budget on the account's path, from which on money weighs more.
    pub below: Dollars,
    /// How many times a dollar weighs when nothing is left; in between it grows evenly from 1.
    #[schemars(range(min = 1.0, max = 1000.0))]
    pub price_weight: f64,
}

/// What a right and a wrong answer are worth.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ValueLevel {
    /// Dollars that a right answer is worth.
    pub value_per_success: Option<Dollars>,
    /// Dollars that a wrong answer costs.
    pub failure_cost: Option<Dollars>,
    /// The least probability of success, 0 to 1, that a deployment must have to be used.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_success: Option<f64>,
}

/// What waiting costs and how soon an answer must come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LatencyLevel {
    /// Dollars that a second of waiting costs.
    pub dollars_per_second: Option<Dollars>,
    /// The service level for the first token.
    pub first_token_ms: Option<u64>,
    /// The service level for the whole answer.
    pub total_ms: Option<u64>,
    /// Requests of this tier become jobs without their callers' saying so; for `deferred` and `batch`. Left out: only where
    /// a caller asks for it by `x-tollgate-defer`.
    pub defer: Option<Deferral>,
}

/// An ordinary request is made a job, and answered in the cheapest way that is in time. Never one that asks for a stream,
/// nor one whose caller says `x-tollgate-defer: never`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Deferral {
    /// Seconds for which its connection is held for the answer. After that it is answered with 202 and the job's id, which
    /// callers must be ready for; 0 does so at once.
    #[schemars(range(max = 86400))]
    pub wait_s: u64,
}

/// Something a deployment can do that not all can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Capability {
    Tools,
    Images,
    StructuredOutput,
    Thinking,
}

/// A model callable somewhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Deployment {
    /// The name used in this policy, in traces and in reports.
    pub id: Arc<str>,
    /// A provider of the gateway's configuration.
    pub provider: Arc<str>,
    /// The model name to send to the provider.
    pub model: Arc<str>,
    /// `frontier`, `cheap`, `local` or `batch`.
    #[schemars(schema_with = "class")]
    pub class: BackendClass,
    /// Other model names that callers may use for it.
    #[serde(default)]
    pub aliases: Vec<Arc<str>>,
    /// Input and output together, in tokens.
    #[serde(default)]
    pub context_tokens: Option<u64>,
    /// The most the model will produce, in tokens.
    #[serde(default)]
    pub max_output_tokens: Option<u64>,
    /// What it can do beyond text.
    #[serde(default)]
    #[schemars(schema_with = "capabilities")]
    pub capabilities: Vec<Capability>,
    /// Requests that may run there at once.
    #[serde(default)]
    pub max_in_flight: Option<u32>,
    /// Where it runs, such as `eu`; compared with a workflow's `regions`.
    #[serde(default)]
    pub region: Option<Arc<str>>,
    /// Classes of data that may be sent there, such as `[public, internal]`.
    #[serde(default)]
    pub data_classes: Vec<Arc<str>>,
    /// `provider/model` under which the gateway's price book knows it, where that differs.
    #[serde(default)]
    pub price_as: Option<Arc<str>>,
    /// Prices for the tools that run without a gateway; the gateway itself takes its price book's.
    #[serde(default)]
    pub price: Option<ReferencePrice>,
    /// How often it is right, by task family; `default` for the rest. A probability, or one with its uncertainty.
    #[serde(default)]
    pub quality: BTreeMap<Arc<str>, Quality>,
    /// How fast it is, until the gateway has measured it.
    #[serde(default)]
    pub speed: Option<Speed>,
    /// What it knows of thinking, where the built-in table does not say.
    #[serde(default)]
    pub thinking: Option<ThinkingAbility>,
}

/// Dollars for a million tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReferencePrice {
    /// Dollars for a million tokens of input.
    pub input: Dollars,
    /// Dollars for a million tokens of output.
    pub output: Dollars,
    /// Dollars for a million tokens of input that the provider still held.
    #[serde(default)]
    pub cached_input: Option<Dollars>,
}

/// How fast a deployment is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Speed {
    /// Milliseconds from the call to the first token.
    pub first_token_ms: u32,
    #[schemars(range(min = 1))]
    pub tokens_per_second: u32,
}

/// What a model knows of thinking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ThinkingAbility {
    /// Levels it accepts, `none` among them where it can be switched off.
    #[schemars(schema_with = "super::scalars::level_list")]
    pub supported: Vec<ThinkingLevel>,
    /// What it does when nothing is said.
    #[serde(default = "no_thinking")]
    #[schemars(schema_with = "level")]
    pub default: ThinkingLevel,
    /// It cannot be switched off.
    #[serde(default)]
    pub mandatory: bool,
    /// How the provider spells it: `effort`, `budget` in tokens, a `level`, or `off_on`.
    #[serde(default)]
    pub spelled: Spelling,
    /// The least budget in tokens.
    #[serde(default)]
    pub min_tokens: Option<u32>,
    /// The largest budget in tokens.
    #[serde(default)]
    pub max_tokens: Option<u32>,
}

fn no_thinking() -> ThinkingLevel {
    ThinkingLevel::None
}

/// How a provider spells thinking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Spelling {
    #[default]
    Effort,
    Budget,
    Level,
    OffOn,
}

/// A piece of work with an owner and a worth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Workflow {
    pub name: Arc<str>,
    /// Which requests belong to it. Left out: those that declare its name.
    #[serde(default)]
    pub when: Option<Condition>,
    /// Who answers for it.
    #[serde(default)]
    pub owner: Option<Arc<str>>,
    /// Dollars that a right answer is worth. Left out: its value tier's.
    #[serde(default)]
    pub value_per_success: Option<Dollars>,
    /// Dollars that a wrong answer costs. Left out: its value tier's.
    #[serde(default)]
    pub failure_cost: Option<Dollars>,
    /// Its value tier. Left out: the highest whose `value_per_success` it reaches.
    #[serde(default)]
    #[schemars(schema_with = "value")]
    pub value: Option<ValueTier>,
    /// Its latency tier.
    #[serde(default)]
    #[schemars(schema_with = "latency")]
    pub latency: Option<LatencyTier>,
    /// Milliseconds after which an answer is worthless.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
    /// Its requests become jobs without their callers' saying so. Left out: as its latency tier has it.
    #[serde(default)]
    pub defer: Option<Deferral>,
    /// Its task family, such as `extraction`, by which quality is looked up.
    #[serde(default)]
    pub task: Option<Arc<str>>,
    /// Classes that are good enough for it, besides its value tier's floor.
    #[serde(default)]
    #[schemars(schema_with = "classes")]
    pub floor: Vec<BackendClass>,
    /// The class of its data; only deployments that list it are used.
    #[serde(default)]
    pub data_class: Option<Arc<str>>,
    /// Regions it may run in. Left out: any.
    #[serde(default)]
    pub regions: Vec<Arc<str>>,
    /// Whether the predictor is asked; left out: as the `objective` says.
    #[serde(default)]
    pub predict: Option<bool>,
    /// Requests in a month, for the money that reports speak of.
    #[serde(default)]
    pub monthly_requests: Option<u64>,
    /// Who agreed that it is served by a weaker class than before, or than less valuable work is.
    #[serde(default)]
    pub approved_by: Option<Arc<str>>,
}

/// A named rule that sets the value tier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ValueRule {
    pub name: Arc<str>,
    #[serde(default)]
    pub when: Condition,
    #[schemars(schema_with = "value")]
    pub tier: ValueTier,
}

/// A named rule that sets the latency tier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LatencyRule {
    pub name: Arc<str>,
    #[serde(default)]
    pub when: Condition,
    #[schemars(schema_with = "latency")]
    pub tier: LatencyTier,
}

/// A named rule that grants thinking.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ThinkingRule {
    pub name: Arc<str>,
    #[serde(default)]
    pub when: Condition,
    /// What to use when the caller asks for none: a level, a number of tokens, or `by_gain`.
    #[serde(default)]
    pub level: Option<ThinkingWish>,
    /// The least, whatever the caller asks for.
    #[serde(default)]
    #[schemars(schema_with = "level")]
    pub at_least: Option<ThinkingLevel>,
    /// The most a caller may ask for.
    #[serde(default)]
    #[schemars(schema_with = "level")]
    pub at_most: Option<ThinkingLevel>,
}

/// What becomes of a request that names a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NamedModels {
    /// It gets that model.
    #[default]
    Honour,
    /// It gets what the routes choose.
    Substitute,
    /// It is refused.
    Refuse,
}

/// Which deployments serve, and in which order. What `prefer` lists comes first, in its order; then what `allow`
/// lists, the best for the objective first; then `fallback`, in its order. With neither `prefer`, `allow` nor `pin`
/// every deployment is allowed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    pub name: Arc<str>,
    #[serde(default)]
    pub when: Condition,
    /// Deployments by id, or a `{class: …}` whose members are ordered by the objective.
    #[serde(default)]
    pub prefer: Vec<Step>,
    /// Deployments and classes from which the objective chooses.
    #[serde(default)]
    pub allow: Vec<Step>,
    /// Deployments and classes that are never used.
    #[serde(default)]
    pub never: Vec<Step>,
    /// What is tried last, in this order.
    #[serde(default)]
    pub fallback: Vec<Step>,
    /// This deployment and, apart from `fallback`, no other.
    #[serde(default)]
    pub pin: Option<Arc<str>>,
    /// Shares of the traffic, in per cent, that go first to a certain deployment; for canaries.
    #[serde(default)]
    pub split: Vec<Split>,
}

/// A share of the traffic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// A deployment by its id.
    pub to: Arc<str>,
    /// Of a hundred requests, so many; decimals are allowed.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub percent: f64,
}

/// What a team may not do although the organisation may. It can only narrow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TeamLayer {
    /// Deployments and classes the team may use. Left out: all that the organisation allows.
    pub allow: Vec<Step>,
    /// Deployments and classes the team never uses.
    pub never: Vec<Step>,
    /// Regions the team's requests may run in. Left out: any.
    pub regions: Vec<Arc<str>>,
    /// Classes that are good enough; each must be in the organisation's floor.
    #[schemars(schema_with = "by_value::<super::scalars::ClassList>")]
    pub floors: BTreeMap<ValueTier, Vec<BackendClass>>,
    /// The most thinking a request of the team may use.
    #[schemars(schema_with = "level")]
    pub thinking_at_most: Option<ThinkingLevel>,
    /// As the organisation's `named_models`, or stricter.
    pub named_models: Option<NamedModels>,
}

/// A file that holds only teams' layers, for teams that keep their own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TeamsDocument {
    /// The version of this format; 1.
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// By team.
    pub teams: BTreeMap<Arc<str>, TeamLayer>,
}
