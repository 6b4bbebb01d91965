//! The fields that APIs share: sampling, stop strings, thinking, forms. Every name that OpenAI, vLLM and llama.cpp use for
//! a thing is read; a value that makes no sense is refused by its name, never ignored.

use super::{BadRequest, bad};
use crate::registry::Model;
use engine::grammar::{Grammar, GrammarError};
use engine::sample::Sampling;
use engine::think::Thinking;
use serde_json::{Value, json};
use std::ops::RangeInclusive;

/// Stop strings of a request, and the bytes of one.
const STOPS: usize = 16;
const STOP_BYTES: usize = 256;
/// The form that JSON without a schema has.
const ANY_OBJECT: &str = r#"{"type": "object"}"#;

pub(super) fn number(
    body: &Value,
    name: &'static str,
    range: RangeInclusive<f64>,
) -> Result<Option<f32>, BadRequest> {
    match &body[name] {
        Value::Null => Ok(None),
        value => match value.as_f64().filter(|value| range.contains(value)) {
            Some(value) => Ok(Some(value as f32)),
            None => Err(bad(
                format!(
                    "`{name}` must be a number from {} to {}",
                    range.start(),
                    range.end()
                ),
                name,
            )),
        },
    }
}

pub(super) fn whole(
    body: &Value,
    name: &'static str,
    range: RangeInclusive<i64>,
) -> Result<Option<i64>, BadRequest> {
    match &body[name] {
        Value::Null => Ok(None),
        value => match value.as_i64().filter(|value| range.contains(value)) {
            Some(value) => Ok(Some(value)),
            None => {
                let (from, to) = (range.start(), range.end());
                let most = if *to == i64::MAX {
                    String::new()
                } else {
                    format!(" to {to}")
                };
                Err(bad(
                    format!("`{name}` must be a whole number from {from}{most}"),
                    name,
                ))
            }
        },
    }
}

/// A flag; left out, it is off.
pub(super) fn flag(body: &Value, name: &'static str) -> Result<bool, BadRequest> {
    match &body[name] {
        Value::Null => Ok(false),
        Value::Bool(value) => Ok(*value),
        _ => Err(bad(format!("`{name}` must be true or false"), name)),
    }
}

/// The first of `names` that is given.
pub(super) fn limit(body: &Value, names: &[&'static str]) -> Result<usize, BadRequest> {
    for name in names {
        if let Some(limit) = whole(body, name, 1..=i64::MAX)? {
            return Ok(usize::try_from(limit).unwrap_or(usize::MAX));
        }
    }
    Ok(usize::MAX)
}

pub(super) fn sampling(body: &Value) -> Result<Sampling, BadRequest> {
    let usual = Sampling::default();
    let repetition = match number(body, "repetition_penalty", 0.01..=10.0)? {
        Some(value) => Some(value),
        None => number(body, "repeat_penalty", 0.01..=10.0)?,
    };
    Ok(Sampling {
        temperature: number(body, "temperature", 0.0..=2.0)?.unwrap_or(usual.temperature),
        top_p: number(body, "top_p", 0.0..=1.0)?.unwrap_or(usual.top_p),
        // vLLM's -1 is no limit, too.
        top_k: whole(body, "top_k", -1..=i64::from(u32::MAX))?
            .unwrap_or(0)
            .max(0) as usize,
        min_p: number(body, "min_p", 0.0..=1.0)?.unwrap_or(usual.min_p),
        presence_penalty: number(body, "presence_penalty", -2.0..=2.0)?.unwrap_or(usual.presence_penalty),
        frequency_penalty: number(body, "frequency_penalty", -2.0..=2.0)?.unwrap_or(usual.frequency_penalty),
        repetition_penalty: repetition.unwrap_or(usual.repetition_penalty),
        logit_bias: biases(&body["logit_bias"])?,
        logprobs: None,
        // Without a seed every answer should differ.
        seed: whole(body, "seed", i64::MIN..=i64::MAX)?.map_or_else(clock_nanos, i64::cast_unsigned),
    })
}

fn biases(given: &Value) -> Result<std::collections::HashMap<u32, f32>, BadRequest> {
    let wrong = || {
        bad(
            "`logit_bias` must map token ids to numbers from -100 to 100",
            "logit_bias",
        )
    };
    match given {
        Value::Null => Ok(std::collections::HashMap::new()),
        Value::Object(biases) => {
            let one = |(token, bias): (&String, &Value)| {
                let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias))?;
                // OpenAI's -100 is a ban.
                let bias = if bias <= -100.0 {
                    f32::NEG_INFINITY
                } else {
                    bias as f32
                };
                Some((token.parse().ok()?, bias))
            };
            biases.iter().map(one).collect::<Option<_>>().ok_or_else(wrong)
        }
        _ => Err(wrong()),
    }
}

/// Nanoseconds since 1970.
pub(crate) fn clock_nanos() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default().as_nanos() as u64
}

pub(super) fn stops(value: &Value, name: &'static str) -> Result<Vec<String>, BadRequest> {
    let stops = match value {
        Value::Null => return Ok(Vec::new()),
        Value::String(stop) => Some(vec![stop.clone()]),
        Value::Array(stops) => stops
            .iter()
            .map(|stop| stop.as_str().map(ToOwned::to_owned))
            .collect(),
        _ => None,
    };
    let fits =
        |stops: &Vec<String>| stops.len() <= STOPS && stops.iter().all(|stop| stop.len() <= STOP_BYTES);
    stops.filter(fits).ok_or_else(|| {
        bad(
            format!("`{name}` must be a text or up to {STOPS}, each of at most {STOP_BYTES} bytes"),
            name,
        )
    })
}

/// How much thinking is allowed: vLLM's, llama.cpp's and OpenAI's names for it. `None`: nothing was said.
pub(super) fn thinking_budget(body: &Value) -> Result<Option<Option<usize>>, BadRequest> {
    for name in ["thinking_token_budget", "thinking_budget_tokens"] {
        if let Some(budget) = whole(body, name, -1..=i64::from(u32::MAX))? {
            return Ok(Some(usize::try_from(budget).ok()));
        }
    }
    match &body["reasoning_effort"] {
        Value::Null => Ok(None),
        Value::String(effort) => match effort.as_str() {
            "none" => Ok(Some(Some(0))),
            "minimal" => Ok(Some(Some(64))),
            "low" => Ok(Some(Some(512))),
            "medium" => Ok(Some(Some(2048))),
            "high" => Ok(Some(Some(8192))),
            "xhigh" | "max" => Ok(Some(None)),
            other => Err(bad(
                format!("`reasoning_effort` is `{other}`; none, minimal, low, medium and high are known"),
                "reasoning_effort",
            )),
        },
        _ => Err(bad("`reasoning_effort` must be a text", "reasoning_effort")),
    }
}

/// The thinking of an answer to a prompt that ends as `prompt` does, for models that think.
pub(super) fn thinking(model: &Model, prompt: &str, budget: Option<usize>) -> Option<Thinking> {
    let is_open = prompt.trim_end().ends_with("<think>");
    (is_open || model.thinks).then(|| Thinking {
        open: "<think>".into(),
        close: "</think>".into(),
        close_tokens: model.tokenizer.encode("</think>\n\n", true),
        budget,
        is_open,
    })
}

/// The schema that an answer must satisfy, if any: `response_format`, or vLLM's `guided_json`.
pub(super) fn schema(body: &Value) -> Result<Option<Value>, BadRequest> {
    if body["guided_json"].is_object() {
        return Ok(Some(body["guided_json"].clone()));
    }
    let format = &body["response_format"];
    if format.is_null() {
        return Ok(None);
    }
    match format["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(
            serde_json::from_str(ANY_OBJECT).unwrap_or_else(|_| json!({})),
        )),
        Some("json_schema") => {
            // OpenAI nests it; the responses API and some clients do not.
            let nested = [&format["json_schema"]["schema"], &format["schema"]];
            let schema = nested.into_iter().find(|schema| schema.is_object());
            let missing = || {
                bad(
                    "`response_format.json_schema.schema` must be a JSON schema",
                    "response_format",
                )
            };
            Ok(Some(schema.ok_or_else(missing)?.clone()))
        }
        _ => Err(bad(
            "`response_format.type` must be text, json_object or json_schema",
            "response_format",
        )),
    }
}

/// A grammar, made by `make`, with the field that asked for it.
pub(super) fn grammar(
    model: &Model,
    param: &'static str,
    make: impl Fn(&engine::grammar::Grammars) -> Result<Grammar, GrammarError>,
) -> Result<Grammar, BadRequest> {
    let grammars = model.grammars().map_err(|problem| bad(problem, param))?;
    make(grammars).map_err(|error| bad(format!("this form cannot be held to: {error}"), param))
}

/// A request's place among the tenant's own: vLLM's `priority`, where the smaller number goes first.
pub(super) fn priority(body: &Value) -> Result<i32, BadRequest> {
    Ok(
        whole(body, "priority", i64::from(i32::MIN)..=i64::from(i32::MAX))?
            .map_or(0, |priority| priority as i32),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_without_sense_are_refused_by_name() {
        for (body, param) in [
            (json!({ "temperature": 3 }), "temperature"),
            (json!({ "temperature": "hot" }), "temperature"),
            (json!({ "top_p": -0.1 }), "top_p"),
            (json!({ "top_k": 1.5 }), "top_k"),
            (json!({ "logit_bias": { "x": 1 } }), "logit_bias"),
            (json!({ "logit_bias": { "1": 900 } }), "logit_bias"),
            (json!({ "seed": "s" }), "seed"),
        ] {
            assert_eq!(sampling(&body).unwrap_err().param, Some(param), "{body}");
        }
        assert!(stops(&json!([1]), "stop").is_err() && stops(&json!("x".repeat(300)), "stop").is_err());
        assert!(limit(&json!({ "max_tokens": 0 }), &["max_tokens"]).is_err());
        assert!(flag(&json!({ "stream": "yes" }), "stream").is_err());
    }

    #[test]
    fn all_names_of_a_thing_are_read() {
        let settings = sampling(&json!({ "repeat_penalty": 1.3, "top_k": -1, "min_p": 0.1, "seed": -4, "logit_bias": { "7": -100 } })).unwrap();
        assert_eq!(
            (settings.repetition_penalty, settings.top_k, settings.min_p),
            (1.3, 0, 0.1)
        );
        assert_eq!(settings.logit_bias[&7], f32::NEG_INFINITY);
        for (body, budget) in [
            (json!({}), None),
            (json!({ "thinking_token_budget": 7 }), Some(Some(7))),
            (json!({ "thinking_token_budget": -1 }), Some(None)),
            (json!({ "thinking_budget_tokens": 9 }), Some(Some(9))),
            (json!({ "reasoning_effort": "none" }), Some(Some(0))),
        ] {
            assert_eq!(thinking_budget(&body).unwrap(), budget, "{body}");
        }
        assert!(thinking_budget(&json!({ "reasoning_effort": "huge" })).is_err());
        assert_eq!(
            limit(
                &json!({ "max_tokens": 5 }),
                &["max_completion_tokens", "max_tokens"]
            )
            .unwrap(),
            5
        );
    }

    #[test]
    fn forms_are_read_in_all_their_places() {
        let schema_of = |body: Value| schema(&body).unwrap();
        let wanted = json!({ "type": "object" });
        assert_eq!(
            schema_of(json!({ "response_format": { "type": "json_object" } })),
            Some(wanted.clone())
        );
        let nested = json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "x", "schema": wanted } } });
        assert_eq!(schema_of(nested), Some(wanted.clone()));
        assert_eq!(schema_of(json!({ "guided_json": wanted })), Some(wanted));
        assert_eq!(schema_of(json!({ "response_format": { "type": "text" } })), None);
        assert!(schema(&json!({ "response_format": { "type": "xml" } })).is_err());
        assert!(schema(&json!({ "response_format": { "type": "json_schema" } })).is_err());
    }
}
