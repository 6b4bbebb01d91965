//! What is wrong with a document: all of it at once, so that one reading of the report mends the file.
//!
//! Owns: collecting mistakes and finding their places. Refuses to know: what the document means. Invariants: a
//! mistake carries a line wherever the document has one for its path; nothing is told at or below a path that was
//! already found wrong, since that would be told of a repair and not of what was written.

use super::places::Node;
use super::{DocumentError, nearest};

/// Every mistake, by line; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", report(.0))]
pub struct DocumentErrors(pub Vec<DocumentError>);

fn report(mistakes: &[DocumentError]) -> String {
    match mistakes {
        [only] => only.to_string(),
        many => many
            .iter()
            .fold(format!("{} mistakes", many.len()), |report, mistake| {
                format!("{report}\n  {mistake}")
            }),
    }
}

/// Mistakes of one document.
#[derive(Debug)]
pub struct Mistakes<'a> {
    file: &'a str,
    text: &'a str,
    /// Read when the first mistake needs it; inside `None`: the text is no YAML.
    node: Option<Option<Node>>,
    found: Vec<DocumentError>,
    /// Paths whose values were replaced so that reading could go on.
    repaired: Vec<String>,
}

impl<'a> Mistakes<'a> {
    pub fn new(text: &'a str, file: &'a str) -> Self {
        Self {
            file,
            text,
            node: None,
            found: Vec::new(),
            repaired: Vec::new(),
        }
    }

    /// One mistake, placed where the path leads.
    pub fn add(&mut self, path: impl Into<String>, problem: impl Into<String>) -> &mut DocumentError {
        let mut mistake = DocumentError::at(self.file, path, problem);
        if let Some((line, column)) = self.place(&mistake.path) {
            (mistake.line, mistake.column) = (Some(line), Some(column));
        }
        self.push(mistake)
    }

    pub fn hinted(&mut self, path: impl Into<String>, problem: impl Into<String>, hint: impl Into<String>) {
        self.add(path, problem).hint = Some(hint.into());
    }

    /// A name that does not exist, with the one that was probably meant.
    pub fn unknown<'n>(
        &mut self,
        path: impl Into<String>,
        (what, name): (&str, &str),
        known: impl Iterator<Item = &'n str> + Clone,
    ) {
        let mistake = self.add(path, format!("no {what} is called `{name}`"));
        mistake.hint = Some(match nearest(name, known.clone()) {
            Some(best) => format!("did you mean `{best}`?"),
            None => format!("known here: {}", known.collect::<Vec<_>>().join(", ")),
        });
    }

    pub(super) fn push(&mut self, mistake: DocumentError) -> &mut DocumentError {
        self.found.push(mistake);
        let last = self.found.len() - 1;
        &mut self.found[last]
    }

    pub(super) fn repaired(&mut self, path: String) {
        self.repaired.push(path);
    }

    fn place(&mut self, path: &str) -> Option<(usize, usize)> {
        let text = self.text;
        let node = self.node.get_or_insert_with(|| Node::read(text));
        node.as_ref()?.find(path)
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// All mistakes that were added, by line, without those that only speak of a repair.
    pub fn into_found(self) -> Vec<DocumentError> {
        let Self {
            mut found, repaired, ..
        } = self;
        let mut seen = std::collections::HashSet::new();
        let mut position = 0;
        found.retain(|mistake| {
            let is_structural = position < repaired.len();
            position += 1;
            let below = |path: &String| {
                mistake
                    .path
                    .strip_prefix(path.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            };
            (is_structural || !repaired.iter().any(below))
                && seen.insert((mistake.path.clone(), mistake.problem.clone()))
        });
        // A mistyped key is not missing as well.
        let meant: Vec<String> = found
            .iter()
            .filter_map(|mistake| {
                let key = mistake
                    .hint
                    .as_deref()?
                    .strip_prefix("did you mean `")?
                    .strip_suffix("`?")?;
                let parent = mistake
                    .path
                    .rsplit_once('.')
                    .map_or(String::new(), |(parent, _)| format!("{parent}."));
                Some(format!("{parent}{key}"))
            })
            .collect();
        found.retain(|mistake| mistake.problem != super::MISSING || !meant.contains(&mistake.path));
        found.sort_by_key(|mistake| (mistake.line.unwrap_or(usize::MAX), mistake.column));
        found
    }

    /// # Errors
    /// All mistakes that were added.
    pub fn none_or<T>(self, value: T) -> Result<T, DocumentErrors> {
        if self.found.is_empty() {
            Ok(value)
        } else {
            Err(DocumentErrors(self.into_found()))
        }
    }
}
