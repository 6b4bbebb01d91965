//! The short form of a condition: a mapping whose entries must all hold. It compiles to the same tests as CEL.

use super::{Comparison, Flag, Glob, Number, NumberFact, Test, Text, TextFact};
use crate::document::Mistakes;
use exchange::{LatencyTier, ValueTier};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One value or several; any of them will do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct OneOrMany(Vec<Arc<str>>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> serde::de::Visitor<'de> for Either {
            type Value = OneOrMany;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text or a list of texts")
            }
            fn visit_str<E>(self, text: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany(vec![text.into()]))
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<OneOrMany, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element::<Arc<str>>()? {
                    items.push(item);
                }
                Ok(OneOrMany(items))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for OneOrMany {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "OneOrMany".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "One text or several; any of them will do. `*` stands for any run of characters.",
            "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }]
        })
    }
}

/// An inclusive range; an end left out is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Range {
    #[serde(default)]
    pub min: Option<u64>,
    #[serde(default)]
    pub max: Option<u64>,
}

/// All conditions given must hold; `{}` always does. Names are globs with `*` for any run of characters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct When {
    /// The model name the caller wrote.
    pub(crate) model: Option<OneOrMany>,
    pub(crate) org: Option<OneOrMany>,
    pub(crate) team: Option<OneOrMany>,
    /// The matched workflow, or the one that the key or the caller declared.
    pub(crate) workflow: Option<OneOrMany>,
    /// The workflow's task family.
    pub(crate) task: Option<OneOrMany>,
    /// `chat_completions`, `messages`, `embeddings`, `completions` or `responses`.
    pub(crate) surface: Option<OneOrMany>,
    /// Declared labels by name.
    pub(crate) label: BTreeMap<String, OneOrMany>,
    pub(crate) stream: Option<bool>,
    /// True: the request offers tools.
    pub(crate) tools: Option<bool>,
    pub(crate) images: Option<bool>,
    pub(crate) structured_output: Option<bool>,
    pub(crate) input_tokens: Option<Range>,
    pub(crate) turns: Option<Range>,
    /// The value tier.
    pub(crate) value: Option<OneOrMany>,
    /// The latency tier.
    pub(crate) latency: Option<OneOrMany>,
}

impl When {
    pub(super) fn compile(&self, path: &str, mistakes: &mut Mistakes<'_>) -> Test {
        let mut tests = Vec::new();
        let texts = [
            (&self.model, TextFact::Model),
            (&self.org, TextFact::Org),
            (&self.team, TextFact::Team),
            (&self.workflow, TextFact::Workflow),
            (&self.task, TextFact::Task),
            (&self.surface, TextFact::Surface),
        ];
        for (globs, fact) in texts {
            if let Some(OneOrMany(globs)) = globs {
                tests.push(any_glob(&Text::Fact(fact), globs));
            }
        }
        for (name, OneOrMany(globs)) in &self.label {
            tests.push(any_glob(&Text::Label(name.as_str().into()), globs));
        }
        tests.extend(tier::<ValueTier>(
            (&self.value, TextFact::Value),
            &format!("{path}.value"),
            mistakes,
        ));
        tests.extend(tier::<LatencyTier>(
            (&self.latency, TextFact::Latency),
            &format!("{path}.latency"),
            mistakes,
        ));
        for (wanted, flag) in [
            (self.stream, Flag::Stream),
            (self.structured_output, Flag::StructuredOutput),
        ] {
            tests.extend(wanted.map(|wanted| is(Test::Flag(flag), wanted)));
        }
        for (wanted, fact) in [(self.tools, NumberFact::Tools), (self.images, NumberFact::Images)] {
            let some = Test::Numbers(Number::Fact(fact), Comparison::More, Number::Whole(0));
            tests.extend(wanted.map(|wanted| is(some, wanted)));
        }
        let ranges = [
            (self.input_tokens, NumberFact::InputTokens, "input_tokens"),
            (self.turns, NumberFact::Turns, "turns"),
        ];
        for (range, fact, name) in ranges {
            let Some(range) = range else { continue };
            if range.min.zip(range.max).is_some_and(|(min, max)| min > max) {
                mistakes.hinted(
                    format!("{path}.{name}"),
                    "holds no number: `min` is above `max`",
                    "swap them, or leave one out",
                );
            }
            let whole = |number| Number::Whole(i64::try_from(number).unwrap_or(i64::MAX));
            let bound = |number, comparison| Test::Numbers(Number::Fact(fact), comparison, whole(number));
            tests.extend(range.min.map(|min| bound(min, Comparison::MoreOrEqual)));
            tests.extend(range.max.map(|max| bound(max, Comparison::LessOrEqual)));
        }
        match tests.len() {
            1 => tests.remove(0),
            _ => Test::All(tests),
        }
    }
}

fn is(test: Test, wanted: bool) -> Test {
    if wanted { test } else { Test::Not(Box::new(test)) }
}

/// An absent team or workflow is empty, and no pattern is meant for it.
fn any_glob(text: &Text, globs: &[Arc<str>]) -> Test {
    if globs.iter().all(|glob| !glob.contains('*')) {
        return match globs {
            [only] => Test::Texts(text.clone(), Comparison::Equal, Text::Literal(only.clone())),
            many => Test::OneOf(text.clone(), many.to_vec()),
        };
    }
    let mut tests: Vec<Test> = globs
        .iter()
        .map(|glob| Test::Glob(text.clone(), Glob::new(glob)))
        .collect();
    let any = match tests.len() {
        1 => tests.remove(0),
        _ => Test::Any(tests),
    };
    let there = Test::Texts(text.clone(), Comparison::NotEqual, Text::Literal("".into()));
    Test::All(vec![there, any])
}

fn tier<T: std::str::FromStr<Err = String>>(
    (names, fact): (&Option<OneOrMany>, TextFact),
    path: &str,
    mistakes: &mut Mistakes<'_>,
) -> Option<Test> {
    let OneOrMany(names) = names.as_ref()?;
    for name in names {
        if let Err(problem) = name.parse::<T>() {
            let hint = crate::document::nearest_in(&problem);
            mistakes.add(path, problem).hint = hint;
        }
    }
    Some(match names.as_slice() {
        [only] => Test::Texts(Text::Fact(fact), Comparison::Equal, Text::Literal(only.clone())),
        many => Test::OneOf(Text::Fact(fact), many.to_vec()),
    })
}
