//! When a rule applies: a condition over facts, account, time, money and what was already classified.
//!
//! Owns: the variables that conditions may use, the compiled condition and its evaluation. Refuses to know: rules,
//! deployments. Invariants: a condition is compiled once, at load; evaluating it never fails and never allocates,
//! except for the rare expression that only the general interpreter knows; an error in an expression (a label that
//! is not there) is as in CEL: absorbed by `&&` and `||` where the other side decides, else the rule does not hold.

mod cel;
mod when;

pub(crate) use cel::{Names, compile};
pub use when::{Range, When};

use crate::document::Mistakes;
use exchange::{AccountPath, Facts, LatencyTier, Thinking, ValueTier};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A CEL expression, or a mapping of conditions that must all hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Condition {
    Cel(Arc<str>),
    When(Box<When>),
}

impl Default for Condition {
    fn default() -> Self {
        Self::When(Box::default())
    }
}

impl<'de> Deserialize<'de> for Condition {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> serde::de::Visitor<'de> for Either {
            type Value = Condition;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a CEL expression or a mapping of conditions")
            }
            fn visit_str<E>(self, text: &str) -> Result<Condition, E> {
                Ok(Condition::Cel(text.into()))
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Condition, A::Error> {
                let when = When::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(Condition::When(Box::new(when)))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for Condition {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Condition".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let when = generator.subschema_for::<When>();
        schemars::json_schema!({
            "description": "A CEL expression over the request's facts, or a mapping of conditions that must all hold.",
            "anyOf": [when, { "type": "string" }]
        })
    }
}

impl Condition {
    /// # Errors
    /// Everything wrong with it goes to `mistakes`, and it then never holds.
    pub(crate) fn compile(&self, path: &str, mistakes: &mut Mistakes<'_>) -> Test {
        match self {
            Self::Cel(text) => compile(text, path, mistakes),
            Self::When(when) => when.compile(path, mistakes),
        }
    }

    /// True where it speaks of the model name that the caller wrote.
    pub(crate) fn names_a_model(&self) -> bool {
        match self {
            Self::Cel(text) => Names::in_text(text).is_some_and(|names| names.has("model")),
            Self::When(when) => when.model.is_some(),
        }
    }
}

/// Everything a condition may look at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scene<'a> {
    pub(crate) facts: &'a Facts,
    pub(crate) account: &'a AccountPath,
    pub(crate) workflow: Option<&'a str>,
    pub(crate) task: Option<&'a str>,
    pub(crate) value: ValueTier,
    pub(crate) latency: LatencyTier,
    pub(crate) deadline_ms: Option<u64>,
    /// Seconds since the epoch, UTC.
    pub(crate) unix_s: i64,
    /// Left in the tightest budget on the account's path, in nano-dollars. Unlimited until money was reserved.
    pub(crate) budget_left: i64,
}

macro_rules! variables {
    ($kind:ident { $($variant:ident => $name:literal, $meaning:literal;)+ }) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $kind { $($variant),+ }
        impl $kind {
            pub(crate) const ALL: &'static [($kind, &'static str, &'static str)] =
                &[$(($kind::$variant, $name, $meaning)),+];
            pub(crate) fn called(name: &str) -> Option<$kind> {
                Self::ALL.iter().find(|(_, known, _)| *known == name).map(|(variable, ..)| *variable)
            }
        }
    };
}

variables!(TextFact {
    Model => "model", "the model name the caller wrote";
    Org => "org", "the account's organisation";
    Team => "team", "the account's team, or empty";
    Workflow => "workflow", "the matched or declared workflow, or empty";
    Key => "key", "the name of the key, or empty";
    Task => "task", "the workflow's task family, or empty";
    Surface => "surface", "`chat_completions`, `messages`, `embeddings`, `completions` or `responses`";
    Dialect => "dialect", "`openai_chat` or `anthropic`";
    ServiceTier => "service_tier", "as the caller wrote it, or empty";
    Thinking => "thinking", "the caller's own setting, a level or a number, or empty";
    Value => "value", "the value tier";
    Latency => "latency", "the latency tier";
});

variables!(NumberFact {
    InputTokens => "input_tokens", "estimated input tokens";
    MaxOutputTokens => "max_output_tokens", "the caller's own limit, 0 where it set none";
    BodyBytes => "body_bytes", "length of the body";
    Turns => "turns", "messages in the conversation";
    Tools => "tools", "tools offered";
    Images => "images", "images sent";
    DeadlineMs => "deadline_ms", "milliseconds until the answer is worthless, 0 where nobody said";
    Hour => "hour", "hour of the day, UTC, 0 … 23";
    Weekday => "weekday", "day of the week, UTC, 1 Monday … 7 Sunday";
    UnixTime => "unix_s", "seconds since the epoch";
});

variables!(Flag {
    Stream => "stream", "the answer is to be streamed";
    StructuredOutput => "structured_output", "JSON or a schema is asked for";
});

/// Dollars left in the tightest budget; a double.
pub(crate) const BUDGET_LEFT: &str = "budget_left";
/// The map of declared labels.
pub(crate) const LABELS: &str = "labels";

impl<'a> Scene<'a> {
    pub(crate) fn text(&self, fact: TextFact) -> std::borrow::Cow<'a, str> {
        let part = |part: &'a Option<Arc<str>>| part.as_deref().unwrap_or_default();
        let text = match fact {
            TextFact::Model => &*self.facts.model,
            TextFact::Org => &self.account.org,
            TextFact::Team => part(&self.account.team),
            TextFact::Workflow => self.workflow.unwrap_or_default(),
            TextFact::Key => part(&self.account.key),
            TextFact::Task => self.task.unwrap_or_default(),
            TextFact::Surface => self.facts.surface.as_str(),
            TextFact::Dialect => self.facts.dialect.as_str(),
            TextFact::ServiceTier => self.facts.service_tier.as_deref().unwrap_or_default(),
            TextFact::Thinking => match self.facts.thinking {
                None => "",
                Some(Thinking::Level(level)) => level.as_str(),
                Some(Thinking::Tokens(tokens)) => return tokens.to_string().into(),
            },
            TextFact::Value => self.value.as_str(),
            TextFact::Latency => self.latency.as_str(),
        };
        text.into()
    }

    pub(crate) fn number(&self, fact: NumberFact) -> i64 {
        let facts = self.facts;
        let number = match fact {
            NumberFact::InputTokens => facts.input_tokens,
            NumberFact::MaxOutputTokens => facts.max_output_tokens.unwrap_or_default(),
            NumberFact::BodyBytes => facts.body_bytes,
            NumberFact::Turns => facts.turns.into(),
            NumberFact::Tools => facts.tools.into(),
            NumberFact::Images => facts.images.into(),
            NumberFact::DeadlineMs => self.deadline_ms.unwrap_or_default(),
            NumberFact::Hour => return self.unix_s.rem_euclid(86_400) / 3_600,
            // 1 January 1970 was a Thursday.
            NumberFact::Weekday => return (self.unix_s.div_euclid(86_400) + 3).rem_euclid(7) + 1,
            NumberFact::UnixTime => return self.unix_s,
        };
        i64::try_from(number).unwrap_or(i64::MAX)
    }

    pub(crate) fn flag(&self, flag: Flag) -> bool {
        match flag {
            Flag::Stream => self.facts.stream,
            Flag::StructuredOutput => self.facts.structured_output,
        }
    }

    /// For conditions only: an amount is never computed from it.
    pub(crate) fn budget_left(&self) -> f64 {
        self.budget_left as f64 / 1e9
    }
}

/// A text within a condition.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Text {
    Literal(Arc<str>),
    Fact(TextFact),
    Label(Arc<str>),
}

/// A number within a condition. Whole numbers are compared as such.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Number {
    Whole(i64),
    Broken(f64),
    Fact(NumberFact),
    BudgetLeft,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    More,
    MoreOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Start,
    End,
    Anywhere,
}

/// A compiled condition.
#[derive(Clone, Debug)]
pub(crate) enum Test {
    Constant(bool),
    Flag(Flag),
    Not(Box<Test>),
    /// All must hold; none at all do.
    All(Vec<Test>),
    Any(Vec<Test>),
    Numbers(Number, Comparison, Number),
    Texts(Text, Comparison, Text),
    OneOf(Text, Vec<Arc<str>>),
    Has(Text, Part, Arc<str>),
    Glob(Text, Glob),
    Pattern(Text, Arc<regex::Regex>),
    HasLabel(Arc<str>),
    /// What only the general interpreter knows.
    General(Arc<cel::General>),
}

impl PartialEq for Test {
    fn eq(&self, other: &Self) -> bool {
        use Test::*;
        match (self, other) {
            (Constant(a), Constant(b)) => a == b,
            (Flag(a), Flag(b)) => a == b,
            (Not(a), Not(b)) => a == b,
            (All(a), All(b)) | (Any(a), Any(b)) => a == b,
            (Numbers(a, b, c), Numbers(d, e, f)) => (a, b, c) == (d, e, f),
            (Texts(a, b, c), Texts(d, e, f)) => (a, b, c) == (d, e, f),
            (OneOf(a, b), OneOf(c, d)) => (a, b) == (c, d),
            (Has(a, b, c), Has(d, e, f)) => (a, b, c) == (d, e, f),
            (Glob(a, b), Glob(c, d)) => (a, b) == (c, d),
            (Pattern(a, b), Pattern(c, d)) => a == c && b.as_str() == d.as_str(),
            (HasLabel(a), HasLabel(b)) => a == b,
            (General(a), General(b)) => a.text == b.text,
            _ => false,
        }
    }
}

impl Test {
    pub(crate) fn holds(&self, scene: &Scene<'_>) -> bool {
        self.value(scene) == Some(true)
    }

    /// `None` is CEL's error: something the expression speaks of is not there.
    fn value(&self, scene: &Scene<'_>) -> Option<bool> {
        match self {
            Self::Constant(value) => Some(*value),
            Self::Flag(flag) => Some(scene.flag(*flag)),
            Self::Not(inner) => inner.value(scene).map(|value| !value),
            Self::All(tests) => decided(tests, scene, false),
            Self::Any(tests) => decided(tests, scene, true),
            Self::Numbers(left, comparison, right) => Some(comparison.of_numbers(*left, *right, scene)),
            Self::Texts(left, comparison, right) => with(left, scene, |left| {
                with(right, scene, |right| comparison.holds(left.cmp(right)))
            })
            .flatten(),
            Self::OneOf(text, options) => {
                with(text, scene, |text| options.iter().any(|option| **option == *text))
            }
            Self::Has(text, part, wanted) => with(text, scene, |text| match part {
                Part::Start => text.starts_with(&**wanted),
                Part::End => text.ends_with(&**wanted),
                Part::Anywhere => text.contains(&**wanted),
            }),
            Self::Glob(text, glob) => with(text, scene, |text| glob.matches(text)),
            Self::Pattern(text, pattern) => with(text, scene, |text| pattern.is_match(text)),
            Self::HasLabel(name) => Some(scene.facts.label(name).is_some()),
            Self::General(general) => general.value(scene),
        }
    }
}

/// The first test that is `deciding` decides; without one an error is an error.
fn decided(tests: &[Test], scene: &Scene<'_>, deciding: bool) -> Option<bool> {
    let mut result = Some(!deciding);
    for test in tests {
        match test.value(scene) {
            Some(value) if value == deciding => return Some(deciding),
            None => result = None,
            Some(_) => {}
        }
    }
    result
}

fn with<R>(text: &Text, scene: &Scene<'_>, look: impl FnOnce(&str) -> R) -> Option<R> {
    match text {
        Text::Literal(text) => Some(look(text)),
        Text::Fact(fact) => Some(look(&scene.text(*fact))),
        Text::Label(name) => scene.facts.label(name).map(look),
    }
}

impl Comparison {
    fn holds(self, order: std::cmp::Ordering) -> bool {
        match self {
            Self::Equal => order.is_eq(),
            Self::NotEqual => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::More => order.is_gt(),
            Self::MoreOrEqual => order.is_ge(),
        }
    }

    fn of_numbers(self, left: Number, right: Number, scene: &Scene<'_>) -> bool {
        let whole = |number| match number {
            Number::Whole(value) => Ok(value),
            Number::Fact(fact) => Ok(scene.number(fact)),
            Number::Broken(value) => Err(value),
            Number::BudgetLeft => Err(scene.budget_left()),
        };
        let order = match (whole(left), whole(right)) {
            (Ok(left), Ok(right)) => Some(left.cmp(&right)),
            (left, right) => {
                let broken =
                    |number: Result<i64, f64>| number.map_or_else(|value| value, |value| value as f64);
                broken(left).partial_cmp(&broken(right))
            }
        };
        order.map_or(self == Self::NotEqual, |order| self.holds(order))
    }
}

/// `*` stands for any run of characters, everything else for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Glob(Arc<str>);

impl Glob {
    pub(crate) fn new(pattern: &str) -> Self {
        Self(pattern.into())
    }

    pub(crate) fn pattern(&self) -> &str {
        &self.0
    }

    pub(crate) fn matches(&self, value: &str) -> bool {
        let Some((head, mut rest)) = self.0.split_once('*') else {
            return *self.0 == *value;
        };
        let Some(mut value) = value.strip_prefix(head) else {
            return false;
        };
        while let Some((middle, tail)) = rest.split_once('*') {
            let Some(at) = value.find(middle) else {
                return false;
            };
            value = &value[at + middle.len()..];
            rest = tail;
        }
        value.ends_with(rest)
    }
}

#[cfg(test)]
mod tests;
