//! Recorded outcomes and list prices, as files hold them.
//!
//! Owns: the row format, the cost rule, removing the constant frame that a data set puts around its questions. Refuses
//! to know: predictions.

use crate::predict::train::Outcome;
use anyhow::{Context, bail};
use serde::Deserialize;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Row {
    pub(super) id: String,
    #[serde(default)]
    pub(super) dataset: String,
    #[serde(default, rename = "domain")]
    subject: String,
    #[serde(default)]
    pub(super) split: String,
    #[serde(default)]
    group: Option<String>,
    pub(super) prompt: String,
    #[serde(default)]
    pub(super) outcomes: HashMap<String, Recorded>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Recorded {
    pub(super) correct: u8,
    pub(super) output_chars: Option<u32>,
    pub(super) output_tokens: Option<u32>,
}

impl Recorded {
    /// An outcome of which nothing but this is known.
    pub(super) fn told(success: bool) -> Self {
        Self {
            correct: u8::from(success),
            output_chars: None,
            output_tokens: None,
        }
    }

    pub(super) fn outcome(&self) -> Outcome {
        Outcome {
            correct: self.correct == 1,
            output_characters: self.output_chars,
        }
    }
}

/// What stands around every question of a data set, the same each time: (before, after). It would give away the data
/// set, and no user would send it.
const FRAMES: [(&str, &str); 3] = [
    ("\n## Question: \n\n", "\n## Instruction "),
    (
        "You are given a Python function and an assertion containing an input to the function. Complete the assertion \
         with a literal (no unsimplified expressions, no function calls) containing the output when executing the \
         provided code on the given input, even if the function is incorrect or incomplete. \n\n[PYTHON]\n",
        "[/PYTHON]",
    ),
    ("", "\nAnswer:"),
];

impl Row {
    /// The prompt without the data set's constant frame.
    pub(super) fn question(&self) -> String {
        let mut text = self.prompt.as_str();
        for (before, after) in FRAMES {
            text = text.strip_prefix(before).unwrap_or(text);
            text = text.rfind(after).map_or(text, |at| &text[..at]);
        }
        text.trim().to_owned()
    }

    pub(super) fn domain(&self) -> String {
        format!("{}/{}", self.dataset, self.subject)
    }

    pub(super) fn group(&self) -> &str {
        self.group.as_deref().unwrap_or(&self.id)
    }
}

pub(super) fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for path in paths {
        lines(path, |line| {
            rows.push(serde_json::from_str(line)?);
            Ok(())
        })?;
    }
    if rows.is_empty() {
        bail!(
            "no rows in {}",
            paths
                .iter()
                .map(|p| p.display().to_string())
                .collect::<Vec<_>>()
                .join(", ")
        );
    }
    Ok(rows)
}

/// Each line that is not blank, with its place in errors.
pub(super) fn lines(path: &Path, mut each: impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let reader: Box<dyn Read> = match path.extension() {
        Some(extension) if extension == "gz" => Box::new(flate2::read::GzDecoder::new(file)),
        _ => Box::new(file),
    };
    for (number, line) in BufReader::new(reader).lines().enumerate() {
        let place = || format!("{}:{}", path.display(), number + 1);
        let line = line.with_context(place)?;
        if !line.trim().is_empty() {
            each(&line).with_context(place)?;
        }
    }
    Ok(())
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Prices {
    chars_per_token: f64,
    #[serde(default)]
    nominal_output_tokens: HashMap<String, f64>,
    models: HashMap<String, Price>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Price {
    input_usd_per_mtok: f64,
    output_usd_per_mtok: f64,
    #[serde(default)]
    hidden_output_multiplier: f64,
}

impl Prices {
    pub(super) fn find(given: Option<&Path>, data: &[PathBuf]) -> anyhow::Result<Self> {
        let beside = || Some(data.first()?.parent()?.join("prices.json"));
        let path = given
            .map(Path::to_path_buf)
            .or_else(beside)
            .context("no place to look for prices: give --prices")?;
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}: give --prices", path.display()))?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }

    /// The same with every multiplier above 0 replaced.
    pub(super) fn with_hidden(&self, hidden: Option<f64>) -> Self {
        let mut prices = self.clone();
        if let Some(hidden) = hidden {
            for price in prices
                .models
                .values_mut()
                .filter(|price| price.hidden_output_multiplier > 0.0)
            {
                price.hidden_output_multiplier = hidden;
            }
        }
        prices
    }

    /// USD, for the output that was recorded.
    pub(super) fn cost(&self, row: &Row, model: &str) -> anyhow::Result<f64> {
        let recorded = row
            .outcomes
            .get(model)
            .with_context(|| format!("{}: `{model}` was not recorded", row.id))?;
        let tokens = match (recorded.output_tokens, recorded.output_chars) {
            (Some(tokens), _) => f64::from(tokens),
            (None, Some(characters)) => (f64::from(characters) / self.chars_per_token).ceil(),
            (None, None) => self.nominal(row),
        };
        self.usd(row, model, tokens)
    }

    /// USD, for as many characters of output as are expected; the data set's nominal output where nothing is.
    pub(super) fn expected(&self, row: &Row, model: &str, characters: Option<f32>) -> anyhow::Result<f64> {
        let tokens = characters.map_or_else(|| self.nominal(row), |c| f64::from(c) / self.chars_per_token);
        self.usd(row, model, tokens)
    }

    fn nominal(&self, row: &Row) -> f64 {
        self.nominal_output_tokens
            .get(&row.dataset)
            .copied()
            .unwrap_or(200.0)
    }

    fn usd(&self, row: &Row, model: &str, output: f64) -> anyhow::Result<f64> {
        let price = self
            .models
            .get(model)
            .with_context(|| format!("no price for `{model}`: add it to --prices"))?;
        let input = (row.prompt.chars().count() as f64 / self.chars_per_token).ceil();
        let billed = output * (1.0 + price.hidden_output_multiplier);
        Ok((input * price.input_usd_per_mtok + billed * price.output_usd_per_mtok) / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_of_a_data_set_is_removed_and_nothing_else() {
        let check = |prompt: &str, question: &str| {
            let row: Row = serde_json::from_value(serde_json::json!({"id": "a", "prompt": prompt})).unwrap();
            assert_eq!(row.question(), question);
        };
        check(
            "\n## Question: \n\nHow many?\n\n\n## Instruction \n\nPlease answer",
            "How many?",
        );
        check("Which?\nA. x\nB. y\nAnswer:", "Which?\nA. x\nB. y");
        check(
            "## Question: what is an ## Instruction ?",
            "## Question: what is an ## Instruction ?",
        );
    }

    #[test]
    fn cost_follows_the_rule() {
        let prices: Prices = serde_json::from_value(serde_json::json!({"chars_per_token": 4, "models": {
            "m": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 10.0, "hidden_output_multiplier": 4.0}}}))
        .unwrap();
        let row: Row = serde_json::from_value(serde_json::json!({"id": "a", "prompt": "12345",
            "outcomes": {"m": {"correct": 1, "output_chars": 9}}}))
        .unwrap();
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-15, "{a} {b}");
        near(prices.cost(&row, "m").unwrap(), (2.0 + 3.0 * 5.0 * 10.0) / 1e6);
        near(
            prices.with_hidden(Some(0.0)).cost(&row, "m").unwrap(),
            (2.0 + 3.0 * 10.0) / 1e6,
        );
        assert!(prices.cost(&row, "other").is_err());
    }
}
