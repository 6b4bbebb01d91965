//! What is wrong with a configuration: all of it at once, so that one reading of the report mends the file.
//!
//! Owns: collecting mistakes, finding their places, finding every unknown key. Refuses to know: what the keys mean.
//! Invariants: a mistake carries a line wherever the document has one for its path.

use super::Document;
use router_policies::document::places::{Node, Place, place};
use router_policies::{DocumentError, document};
use serde_json::Value;

/// Every mistake in the order of its discovery; never empty.
#[derive(Debug, thiserror::Error)]
#[error("{}", report(.mistakes))]
pub(crate) struct ConfigError {
    pub(crate) mistakes: Vec<DocumentError>,
}

impl From<DocumentError> for ConfigError {
    fn from(mistake: DocumentError) -> Self {
        Self {
            mistakes: vec![mistake],
        }
    }
}

fn report(mistakes: &[DocumentError]) -> String {
    match mistakes {
        [only] => only.to_string(),
        many => many.iter().fold(
            format!("the configuration has {} mistakes", many.len()),
            |report, mistake| format!("{report}\n  {mistake}"),
        ),
    }
}

/// Mistakes of one document.
pub(super) struct Mistakes<'a> {
    file: &'a str,
    text: &'a str,
    /// Read when the first mistake needs it.
    node: Option<Node>,
    found: Vec<DocumentError>,
}

impl<'a> Mistakes<'a> {
    pub(super) fn new(text: &'a str, file: &'a str) -> Self {
        Self {
            file,
            text,
            node: None,
            found: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, path: impl Into<String>, problem: impl Into<String>) -> &mut DocumentError {
        let mut mistake = DocumentError::at(self.file, path, problem);
        if self.node.is_none() {
            self.node = Node::read(self.text);
        }
        let place = self.node.as_ref().and_then(|node| node.find(&mistake.path));
        set_place(&mut mistake, place);
        self.found.push(mistake);
        let last = self.found.len() - 1;
        &mut self.found[last]
    }

    pub(super) fn hinted(&mut self, path: impl Into<String>, problem: impl Into<String>, hint: &str) {
        self.add(path, problem).hint = Some(hint.to_owned());
    }

    /// The value, or `None` and a mistake.
    pub(super) fn keep<T>(&mut self, path: impl Into<String>, value: Result<T, String>) -> Option<T> {
        value
            .map_err(|problem| {
                self.add(path, problem);
            })
            .ok()
    }

    /// # Errors
    /// All mistakes that were added.
    pub(super) fn none_or<T>(self, value: T) -> Result<T, ConfigError> {
        if self.found.is_empty() {
            Ok(value)
        } else {
            Err(ConfigError { mistakes: self.found })
        }
    }
}

fn set_place(mistake: &mut DocumentError, place: Option<Place>) {
    if let Some((line, column)) = place {
        (mistake.line, mistake.column) = (Some(line), Some(column));
    }
}

/// The parser stops at its first mistake. An unknown key is rarely alone, so the whole document is held against the
/// schema, and all unknown keys are told together.
pub(super) fn unknown_keys_and(error: DocumentError, text: &str, file: &str) -> ConfigError {
    let mut search = Search {
        file,
        schema: schemars::schema_for!(Document).to_value(),
        mistakes: Vec::new(),
    };
    if let Some(node) = Node::read(text) {
        let schema = search.schema.clone();
        search.walk(&node, &schema, "");
    }
    let mut mistakes = search.mistakes;
    if mistakes.is_empty() || !error.problem.starts_with("unknown field") {
        mistakes.insert(0, error);
    }
    ConfigError { mistakes }
}

struct Search<'a> {
    file: &'a str,
    schema: Value,
    mistakes: Vec<DocumentError>,
}

impl Search<'_> {
    fn walk(&mut self, node: &Node, schema: &Value, path: &str) {
        let schema = self.resolve(schema);
        match node {
            Node::Map(entries) => {
                for (key, value) in entries {
                    let name = &key.value;
                    let path = if path.is_empty() {
                        name.clone()
                    } else {
                        format!("{path}.{name}")
                    };
                    let (known, others) = (&schema["properties"], &schema["additionalProperties"]);
                    if let Some(inner) = known.get(name) {
                        self.walk(value, inner, &path);
                    } else if others.is_object() {
                        self.walk(value, others, &path);
                    } else if let (Some(known), Some(false)) = (known.as_object(), others.as_bool()) {
                        let mut mistake = DocumentError::at(self.file, path, "is not a known key");
                        set_place(&mut mistake, place(key.referenced));
                        let names = || known.keys().map(String::as_str);
                        mistake.hint = Some(match document::nearest(name, names()) {
                            Some(best) => format!("did you mean `{best}`?"),
                            None => format!("known here: {}", names().collect::<Vec<_>>().join(", ")),
                        });
                        self.mistakes.push(mistake);
                    }
                }
            }
            Node::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.walk(&item.value, &schema["items"], &format!("{path}[{index}]"));
                }
            }
            Node::Leaf => {}
        }
    }

    /// Follows references, and from "this or null" to this.
    fn resolve(&self, schema: &Value) -> Value {
        let mut schema = schema;
        for _ in 0..8 {
            let reference = schema["$ref"].as_str().and_then(|path| path.strip_prefix('#'));
            let choices = schema["anyOf"].as_array();
            let next = match (reference, choices) {
                (Some(pointer), _) => self.schema.pointer(pointer),
                (None, Some(choices)) => choices.iter().find(|choice| choice["type"] != "null"),
                (None, None) => None,
            };
            match next {
                Some(next) => schema = next,
                None => break,
            }
        }
        schema.clone()
    }
}
