//! Reading a YAML document so that a mistake is found by its line, its path and the key that was probably meant.

mod mistakes;
pub mod places;
mod reading;

pub use mistakes::{DocumentErrors, Mistakes};
pub use reading::read;

use serde::de::DeserializeOwned;

/// What is told of a key that must be there.
const MISSING: &str = "is missing";

/// Why a document could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct DocumentError {
    pub file: String,
    /// From 1; `None` where the parser could not tell.
    pub line: Option<usize>,
    pub column: Option<usize>,
    /// Where in the document, such as `deployments[2].class`.
    pub path: String,
    pub problem: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl std::fmt::Display for DocumentError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}:{}", self.column.unwrap_or(1))?;
        }
        if self.path.is_empty() || self.path == "." {
            write!(f, ": {}", self.problem)?;
        } else {
            write!(f, ": {}: {}", self.path, self.problem)?;
        }
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl DocumentError {
    /// A mistake found after parsing, in a value whose place is known by path alone.
    pub fn at(file: &str, path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            line: None,
            column: None,
            path: path.into(),
            problem: problem.into(),
            hint: None,
        }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Reads one YAML document.
///
/// # Errors
/// The first mistake, with its place and, for an unknown key, the nearest known one.
pub fn parse<T: DeserializeOwned>(text: &str, file: &str) -> Result<T, DocumentError> {
    let mut path = String::new();
    serde_saphyr::with_deserializer_from_str(text, |deserializer| {
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            path = error.path().to_string();
            error.into_inner()
        })
    })
    .map_err(|error: serde_saphyr::Error| {
        let error = error.without_snippet();
        let location = error.location();
        let message = error.to_string();
        let problem = message.lines().next().unwrap_or_default();
        // The place is shown in front; the parser's own wording of it is cut off.
        let problem = problem.split(" at line ").next().unwrap_or(problem).to_owned();
        DocumentError {
            file: file.into(),
            line: location.map(|at| at.line() as usize),
            column: location.map(|at| at.column() as usize),
            path,
            hint: nearest_in(&problem),
            problem,
        }
    })
}

/// ``unknown field `modle`, expected one of model, class``: the nearest of the expected words.
pub(crate) fn nearest_in(problem: &str) -> Option<String> {
    let (before, expected) = problem.split_once(", expected ")?;
    let found = before.split('`').nth(1)?;
    let words = expected
        .strip_prefix("one of ")
        .unwrap_or(expected)
        .split([',', ' ', '`']);
    nearest(found, words.filter(|word| !word.is_empty())).map(|best| format!("did you mean `{best}`?"))
}

/// The known word most like `word`, if any is like it at all.
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[expect(dead_code, reason = "only its parsing is tested")]
        items: Vec<Item>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Item {
        #[expect(dead_code, reason = "only its parsing is tested")]
        model: String,
    }

    #[test]
    fn a_mistyped_key_is_found_by_line_and_path_with_the_key_meant() {
        let error = parse::<Sample>("items:\n  - model: a\n  - modle: b\n", "policy.yaml").unwrap_err();
        assert_eq!(error.line, Some(3), "{error}");
        assert!(error.path.starts_with("items[1]"), "{error}");
        assert_eq!(error.hint.as_deref(), Some("did you mean `model`?"), "{error}");
    }

    #[test]
    fn broken_yaml_says_where() {
        let error = parse::<Sample>("items: [\n", "x.yaml").unwrap_err();
        assert!(error.line.is_some(), "{error}");
    }
}
