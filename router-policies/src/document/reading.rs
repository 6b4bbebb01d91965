//! Reading a document past its mistakes: each value that cannot be read is told and replaced by one that can, until
//! the whole can be read, so that later checks see everything that was right.
//!
//! Owns: the repair of a tree by its schema. Refuses to know: what the values mean. Invariants: every round mends one
//! place or ends the reading, so that it ends for every text.

use super::mistakes::Mistakes;
use super::{DocumentError, MISSING, nearest, nearest_in};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// More mistakes than anybody reads.
const ROUNDS: usize = 100;

/// Reads `text`; `None` where nothing could be read at all. Mistakes are in the second part, with their places.
pub fn read<'a, T: DeserializeOwned + JsonSchema>(text: &'a str, file: &'a str) -> (Option<T>, Mistakes<'a>) {
    let mut mistakes = Mistakes::new(text, file);
    let mut tree: Value = match super::parse(text, file) {
        Ok(tree) => tree,
        Err(error) => {
            mistakes.push(error);
            return (None, mistakes);
        }
    };
    let schema = Schema(schemars::schema_for!(T).to_value());
    for _ in 0..ROUNDS {
        let (path, problem) = match serde_path_to_error::deserialize::<_, T>(&tree) {
            Ok(value) => return (Some(value), mistakes),
            Err(error) => (steps(error.path()), error.inner().to_string()),
        };
        if !tell_and_mend(&mut tree, &schema, (path, &problem), &mut mistakes) {
            return (None, mistakes);
        }
    }
    (None, mistakes)
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Key(String),
    Index(usize),
}

fn steps(path: &serde_path_to_error::Path) -> Vec<Step> {
    path.iter()
        .filter_map(|segment| match segment {
            serde_path_to_error::Segment::Seq { index } => Some(Step::Index(*index)),
            serde_path_to_error::Segment::Map { key } => Some(Step::Key(key.clone())),
            _ => None,
        })
        .collect()
}

fn shown(path: &[Step]) -> String {
    path.iter().fold(String::new(), |shown, step| match step {
        Step::Index(index) => format!("{shown}[{index}]"),
        Step::Key(key) if shown.is_empty() => key.clone(),
        Step::Key(key) => format!("{shown}.{key}"),
    })
}

/// Adds the mistake and mends its place; false where it cannot be mended.
fn tell_and_mend(
    tree: &mut Value,
    schema: &Schema,
    (mut path, problem): (Vec<Step>, &str),
    mistakes: &mut Mistakes<'_>,
) -> bool {
    let problem = problem.split(" at line ").next().unwrap_or(problem);
    let word = problem.split('`').nth(1).unwrap_or_default().to_owned();
    let is_unknown = problem.starts_with("unknown field");
    let is_missing = problem.starts_with("missing field");
    if is_unknown && path.last() != Some(&Step::Key(word.clone())) || is_missing {
        path.push(Step::Key(word));
    }
    let place = shown(&path);
    if is_unknown {
        let known = schema.keys(&path[..path.len().saturating_sub(1)]);
        let mistake = mistakes.add(&place, "is not a known key");
        let name = place.rsplit('.').next().unwrap_or(&place);
        mistake.hint = Some(match nearest(name, known.iter().map(String::as_str)) {
            Some(best) => format!("did you mean `{best}`?"),
            None => format!("known here: {}", known.join(", ")),
        });
    } else if is_missing {
        let mistake: &mut DocumentError = mistakes.add(&place, MISSING);
        mistake.hint = Some("add it; the schema says what it means".into());
        if let Some(meaning) = schema.at(&path).and_then(|found| found["description"].as_str()) {
            mistake.hint = Some(format!("add it: {}", meaning.lines().next().unwrap_or(meaning)));
        }
    } else {
        let is_bare_word = problem.starts_with("invalid type: boolean") && problem.ends_with("a string");
        let quote = is_bare_word
            .then(|| "put it in quotes: YAML takes words such as no and on for true or false".into());
        let hint = nearest_in(problem).or(quote).or_else(|| {
            let meaning = schema.at(&path)?["description"]
                .as_str()?
                .lines()
                .next()?
                .to_owned();
            Some(format!("it is: {meaning}"))
        });
        mistakes.add(&place, problem).hint = hint;
    }
    mistakes.repaired(place);
    mend(tree, schema, &path, is_unknown)
}

/// Takes the value out where it may be left out, else puts a valid one in its place. False where nothing changed.
fn mend(tree: &mut Value, schema: &Schema, path: &[Step], remove: bool) -> bool {
    let Some((last, parents)) = path.split_last() else {
        return false;
    };
    let Some(parent) = parents.iter().try_fold(&mut *tree, |node, step| match step {
        Step::Key(key) => node.get_mut(key.as_str()),
        Step::Index(index) => node.get_mut(*index),
    }) else {
        return false;
    };
    match (last, parent) {
        (Step::Key(key), Value::Object(map)) => {
            let is_required = schema.requires(parents, key);
            let before = map.get(key).cloned();
            if remove || !is_required && before.is_some() {
                map.shift_remove(key).is_some()
            } else {
                let sample = schema.sample_at(path);
                let changed = before.as_ref() != Some(&sample);
                map.insert(key.clone(), sample);
                changed
            }
        }
        (Step::Index(index), Value::Array(list)) => match list.get_mut(*index) {
            Some(item) => {
                let sample = schema.sample_at(path);
                let changed = *item != sample;
                *item = sample;
                changed
            }
            None => false,
        },
        _ => false,
    }
}

/// A JSON schema, walked by paths of the document.
struct Schema(Value);

impl Schema {
    /// Follows references and, from "this or null", goes to this.
    fn resolve<'s>(&'s self, mut schema: &'s Value) -> &'s Value {
        for _ in 0..8 {
            let reference = schema["$ref"].as_str().and_then(|path| path.strip_prefix('#'));
            let next = match reference {
                Some(pointer) => self.0.pointer(pointer),
                None => schema["anyOf"]
                    .as_array()
                    .and_then(|choices| choices.iter().find(|choice| choice["type"] != "null")),
            };
            match next {
                Some(next) => schema = next,
                None => break,
            }
        }
        schema
    }

    /// The schema of what a path leads to; where there is a choice, one that knows the next step.
    fn at(&self, path: &[Step]) -> Option<&Value> {
        let mut schema = &self.0;
        for (position, step) in path.iter().enumerate() {
            let is_last = position + 1 == path.len();
            let next = self.choices(schema).into_iter().find_map(|choice| match step {
                Step::Key(key) => choice["properties"]
                    .get(key)
                    .or_else(|| Some(&choice["additionalProperties"]).filter(|other| other.is_object())),
                Step::Index(_) => Some(&choice["items"]).filter(|items| items.is_object()),
            })?;
            schema = if is_last && next.get("description").is_some() {
                next
            } else {
                self.resolve(next)
            };
        }
        Some(schema)
    }

    fn choices<'s>(&'s self, schema: &'s Value) -> Vec<&'s Value> {
        let mut found = vec![self.resolve(schema)];
        let mut node = schema;
        for _ in 0..4 {
            if let Some(choices) = node["anyOf"].as_array() {
                found.extend(choices.iter().map(|choice| self.resolve(choice)));
            }
            match node["$ref"]
                .as_str()
                .and_then(|path| self.0.pointer(path.strip_prefix('#')?))
            {
                Some(next) => node = next,
                None => break,
            }
        }
        found
    }

    fn keys(&self, path: &[Step]) -> Vec<String> {
        let found = if path.is_empty() {
            Some(&self.0)
        } else {
            self.at(path)
        };
        let choices = found.map(|found| self.choices(found)).unwrap_or_default();
        let keys = choices
            .iter()
            .filter_map(|choice| choice["properties"].as_object());
        keys.flat_map(|known| known.keys().cloned()).collect()
    }

    fn requires(&self, parents: &[Step], key: &str) -> bool {
        let found = if parents.is_empty() {
            Some(&self.0)
        } else {
            self.at(parents)
        };
        found.is_some_and(|found| {
            self.choices(found).iter().any(|choice| {
                choice["required"]
                    .as_array()
                    .is_some_and(|required| required.iter().any(|name| name == key))
            })
        })
    }

    fn sample_at(&self, path: &[Step]) -> Value {
        self.at(path).map_or(Value::Null, |schema| self.sample(schema, 0))
    }

    /// Some valid value.
    fn sample(&self, schema: &Value, depth: usize) -> Value {
        let schema = self.resolve(schema);
        if let Some(example) = schema["examples"].get(0).or_else(|| schema["enum"].get(0)) {
            return example.clone();
        }
        if let Some(constant) = schema.get("const") {
            return constant.clone();
        }
        if let Some(first) = schema["oneOf"].get(0).filter(|_| depth < 8) {
            return self.sample(first, depth + 1);
        }
        match schema["type"]
            .as_str()
            .or_else(|| schema["type"].get(0)?.as_str())
        {
            Some("string") => "_".into(),
            Some("integer" | "number") => schema.get("minimum").cloned().unwrap_or_else(|| 1.into()),
            Some("boolean") => false.into(),
            Some("array") => Value::Array(Vec::new()),
            Some("object") => {
                let required = schema["required"].as_array();
                let names = required.into_iter().flatten().filter_map(Value::as_str);
                let filled: Map<String, Value> = names
                    .filter(|_| depth < 8)
                    .map(|name| {
                        (
                            name.to_owned(),
                            self.sample(&schema["properties"][name], depth + 1),
                        )
                    })
                    .collect();
                Value::Object(filled)
            }
            _ => Value::Null,
        }
    }
}
