//! The small values of a policy document: money, probabilities, thinking, deployments and classes, with the schema of
//! each. Invariant: a value that reads is in its range, so that nothing after reading has to doubt it.

use super::form::Capability;
use exchange::{BackendClass, LatencyTier, Money, Thinking, ThinkingLevel, ValueTier};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// An amount of dollars, not negative: a number such as 12.5 or a text such as "12.50".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dollars(pub Money);

impl Dollars {
    fn read<E: Error>(text: &str) -> Result<Self, E> {
        match Money::parse_dollars(text) {
            Ok(money) if money < Money::ZERO => Err(E::custom(format!("`{text}` is below zero"))),
            Ok(money) => Ok(Self(money)),
            Err(error) => Err(E::custom(error)),
        }
    }
}

impl Serialize for Dollars {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.to_string().trim_start_matches('$'))
    }
}

impl<'de> Deserialize<'de> for Dollars {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Amount;
        impl Visitor<'_> for Amount {
            type Value = Dollars;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an amount of dollars such as 12.50")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Dollars, E> {
                Dollars::read(text)
            }
            fn visit_u64<E: Error>(self, dollars: u64) -> Result<Dollars, E> {
                Dollars::read(&dollars.to_string())
            }
            fn visit_i64<E: Error>(self, dollars: i64) -> Result<Dollars, E> {
                Dollars::read(&dollars.to_string())
            }
            /// The shortest decimal that reads back as this number is the one that was written.
            fn visit_f64<E: Error>(self, dollars: f64) -> Result<Dollars, E> {
                Dollars::read(&dollars.to_string())
            }
        }
        deserializer.deserialize_any(Amount)
    }
}

impl JsonSchema for Dollars {
    fn schema_name() -> Cow<'static, str> {
        "Dollars".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Dollars: a number such as 12.5 or a text such as \"12.50\"; at most nine decimals.",
            "anyOf": [{ "type": "number", "minimum": 0, "examples": [1] }, { "type": "string", "examples": ["1"] }]
        })
    }
}

/// A prior probability of success, with its uncertainty and what thinking adds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Quality {
    pub p: f64,
    /// Standard error; 0.15 where nobody measured.
    pub error: f64,
    /// Gain in probability by level of thinking.
    pub thinking: BTreeMap<ThinkingLevel, f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QualityForm {
    p: f64,
    #[serde(default = "unmeasured")]
    error: f64,
    #[serde(default)]
    thinking: BTreeMap<ThinkingLevel, f64>,
}

fn unmeasured() -> f64 {
    0.15
}

fn probability<E: Error>(p: f64) -> Result<f64, E> {
    if (0.0..=1.0).contains(&p) {
        Ok(p)
    } else {
        Err(E::custom(format!("{p} is not a probability between 0 and 1")))
    }
}

impl<'de> Deserialize<'de> for Quality {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Prior;
        impl Prior {
            fn of<E: Error>(p: f64) -> Result<Quality, E> {
                let p = probability(p)?;
                Ok(Quality {
                    p,
                    error: unmeasured(),
                    thinking: BTreeMap::new(),
                })
            }
        }
        impl<'de> Visitor<'de> for Prior {
            type Value = Quality;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a probability between 0 and 1, or a mapping with `p`, `error` and `thinking`")
            }
            fn visit_f64<E: Error>(self, p: f64) -> Result<Quality, E> {
                Self::of(p)
            }
            fn visit_u64<E: Error>(self, p: u64) -> Result<Quality, E> {
                Self::of(p as f64)
            }
            fn visit_i64<E: Error>(self, p: i64) -> Result<Quality, E> {
                Self::of(p as f64)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Quality, A::Error> {
                let form = QualityForm::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                if let Some(gain) = form.thinking.values().find(|gain| !(-1.0..=1.0).contains(*gain)) {
                    return Err(A::Error::custom(format!("{gain} is not a gain between -1 and 1")));
                }
                Ok(Quality {
                    p: probability(form.p)?,
                    error: probability(form.error)?,
                    thinking: form.thinking,
                })
            }
        }
        deserializer.deserialize_any(Prior)
    }
}

impl JsonSchema for Quality {
    fn schema_name() -> Cow<'static, str> {
        "Quality".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let gains: serde_json::Map<String, serde_json::Value> = ThinkingLevel::ALL
            .iter()
            .map(|level| {
                let range = serde_json::json!({ "type": "number", "minimum": -1, "maximum": 1 });
                (level.as_str().to_owned(), range)
            })
            .collect();
        json_schema!({
            "description": "A probability of success between 0 and 1, or one with its standard error and what each level of thinking adds.",
            "anyOf": [
                { "type": "number", "minimum": 0, "maximum": 1, "examples": [0.5] },
                {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["p"],
                    "properties": {
                        "p": { "type": "number", "minimum": 0, "maximum": 1, "examples": [0.5] },
                        "error": { "type": "number", "minimum": 0, "maximum": 1 },
                        "thinking": { "type": "object", "additionalProperties": false, "properties": gains }
                    }
                }
            ]
        })
    }
}

/// A deployment by its id, or every deployment of a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Deployment(Arc<str>),
    Class(BackendClass),
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Deployment(id) => f.write_str(id),
            Self::Class(class) => write!(f, "class {class}"),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClassForm {
    class: BackendClass,
}

impl Serialize for Step {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Deployment(id) => serializer.serialize_str(id),
            Self::Class(class) => ClassForm { class: *class }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Step {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Step;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a deployment's id or a mapping such as {class: cheap}")
            }
            fn visit_str<E>(self, id: &str) -> Result<Step, E> {
                Ok(Step::Deployment(id.into()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Step, A::Error> {
                ClassForm::deserialize(serde::de::value::MapAccessDeserializer::new(map))
                    .map(|form| Step::Class(form.class))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for Step {
    fn schema_name() -> Cow<'static, str> {
        "Step".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let class = class(generator);
        json_schema!({
            "description": "A deployment by its id, or every deployment of a class.",
            "anyOf": [
                { "type": "object", "additionalProperties": false, "required": ["class"], "properties": { "class": class } },
                { "type": "string" }
            ]
        })
    }
}

/// A level of the dial, a number of tokens, or `by_gain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThinkingWish {
    This(Thinking),
    ByGain,
}

const BY_GAIN: &str = "by_gain";

impl Serialize for ThinkingWish {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::This(Thinking::Level(level)) => level.serialize(serializer),
            Self::This(Thinking::Tokens(tokens)) => serializer.serialize_u32(*tokens),
            Self::ByGain => serializer.serialize_str(BY_GAIN),
        }
    }
}

impl<'de> Deserialize<'de> for ThinkingWish {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dial;
        impl Visitor<'_> for Dial {
            type Value = ThinkingWish;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a level of thinking, a number of tokens, or by_gain")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<ThinkingWish, E> {
                if text == BY_GAIN {
                    return Ok(ThinkingWish::ByGain);
                }
                let level: ThinkingLevel = text
                    .parse()
                    .map_err(|problem| E::custom(format!("{problem}, {BY_GAIN}")))?;
                Ok(ThinkingWish::This(Thinking::Level(level)))
            }
            fn visit_u64<E: Error>(self, tokens: u64) -> Result<ThinkingWish, E> {
                match u32::try_from(tokens) {
                    Ok(tokens) => Ok(ThinkingWish::This(Thinking::Tokens(tokens))),
                    Err(_) => Err(E::custom(format!("{tokens} tokens are too many"))),
                }
            }
            fn visit_i64<E: Error>(self, tokens: i64) -> Result<ThinkingWish, E> {
                u64::try_from(tokens)
                    .map_err(|_| E::custom(format!("{tokens} is below zero")))
                    .and_then(|tokens| self.visit_u64(tokens))
            }
        }
        deserializer.deserialize_any(Dial)
    }
}

impl JsonSchema for ThinkingWish {
    fn schema_name() -> Cow<'static, str> {
        "ThinkingWish".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let mut words = words(ThinkingLevel::ALL, |level| level.as_str());
        words.push(BY_GAIN);
        json_schema!({
            "description": "A level of the dial, a number of tokens, or by_gain: think while the gain is worth its tokens.",
            "anyOf": [{ "type": "string", "enum": words }, { "type": "integer", "minimum": 0 }]
        })
    }
}

fn words<T: Copy>(all: &[T], word: impl Fn(T) -> &'static str) -> Vec<&'static str> {
    all.iter().map(|one| word(*one)).collect()
}

fn one_of(words: &[&str]) -> Schema {
    json_schema!({ "type": "string", "enum": words })
}

pub(super) fn class(_: &mut SchemaGenerator) -> Schema {
    one_of(&words(BackendClass::ALL, BackendClass::as_str))
}

pub(super) fn classes(generator: &mut SchemaGenerator) -> Schema {
    let class = class(generator);
    json_schema!({ "type": "array", "items": class })
}

pub(super) fn capabilities(generator: &mut SchemaGenerator) -> Schema {
    let capability = generator.subschema_for::<Capability>();
    json_schema!({ "type": "array", "items": capability })
}

/// The schema of a list of classes, as a type.
pub(super) struct ClassList;

impl JsonSchema for ClassList {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "ClassList".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        classes(generator)
    }
}

pub(super) fn value(_: &mut SchemaGenerator) -> Schema {
    one_of(&words(ValueTier::ALL, ValueTier::as_str))
}

pub(super) fn latency(_: &mut SchemaGenerator) -> Schema {
    one_of(&words(LatencyTier::ALL, LatencyTier::as_str))
}

pub(super) fn level(_: &mut SchemaGenerator) -> Schema {
    one_of(&words(ThinkingLevel::ALL, ThinkingLevel::as_str))
}

pub(super) fn level_list(generator: &mut SchemaGenerator) -> Schema {
    let level = level(generator);
    json_schema!({ "type": "array", "items": level, "minItems": 1 })
}

fn keyed(keys: &[&str], of: &Schema) -> Schema {
    let properties: serde_json::Map<String, serde_json::Value> = keys
        .iter()
        .map(|key| ((*key).to_owned(), of.clone().to_value()))
        .collect();
    json_schema!({ "type": "object", "additionalProperties": false, "properties": properties })
}

pub(super) fn by_value<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let of = generator.subschema_for::<T>();
    keyed(&words(ValueTier::ALL, ValueTier::as_str), &of)
}

pub(super) fn by_latency<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let of = generator.subschema_for::<T>();
    keyed(&words(LatencyTier::ALL, LatencyTier::as_str), &of)
}

pub(super) fn levels(_: &mut SchemaGenerator) -> Schema {
    let of = json_schema!({ "type": "integer", "minimum": 0 });
    keyed(&words(ThinkingLevel::ALL, ThinkingLevel::as_str), &of)
}
