//! `policy eval` and `policy train`: recorded outcomes in, predictions, choices and models out.
//!
//! Owns: the two commands. Refuses to know: how predictions are made. Invariants: a prediction depends on the prompt
//! alone, never on a row's id, domain, group, data set or outcomes.

mod choose;
mod judge;
mod learn;
mod rows;

use crate::predict::{Prediction, Predictor};
use anyhow::{Context, bail};
use choose::{Beliefs, Chooser, Priors};
use clap::Args;
use judge::Scored;
use rows::{Prices, Row};
use serde_json::json;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;

pub use learn::{TrainArguments, train};

/// Trained on the rows marked `train` alone.
const FOR_EVALUATION: &[u8] = include_bytes!("../model/evaluation.bin");

/// Predict for recorded prompts which model is worth choosing, and compare with what happened.
#[derive(Args, Debug)]
pub struct EvalArguments {
    /// Recorded outcomes, `.jsonl` or `.jsonl.gz`.
    #[arg(long, required = true, num_args = 1..)]
    data: Vec<PathBuf>,
    /// The cheaper model of a pair.
    #[arg(long, requires = "strong", conflicts_with = "models")]
    weak: Option<String>,
    /// The model of a pair that is worth more where the score is high.
    #[arg(long, requires = "weak")]
    strong: Option<String>,
    /// Choose among these by value: comma-separated.
    #[arg(long, value_delimiter = ',')]
    models: Vec<String>,
    /// Worth of a right answer, USD.
    #[arg(long, value_delimiter = ',', default_value = "0.001,0.01,0.1,1")]
    values: Vec<String>,
    /// Where predictions go, a JSON object a line.
    #[arg(long)]
    out: PathBuf,
    /// Also write the numbers that the predictor saw, as `policy train --from` reads them.
    #[arg(long)]
    features: Option<PathBuf>,
    /// A model file. Without it: the shipped one that was trained without rows marked `dev` if there are any.
    #[arg(long)]
    model: Option<PathBuf>,
    /// List prices; `prices.json` beside the data if not given.
    #[arg(long)]
    prices: Option<PathBuf>,
    /// Assume this many hidden output tokens for each visible one, where a model has any.
    #[arg(long)]
    hidden: Option<f64>,
    /// Judge rows of this split (all are predicted).
    #[arg(long, default_value = "dev")]
    split: String,
    /// Judge and predict rows of these domains only, `dataset/domain`.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Below this familiarity the prompt is answered by the route's default.
    #[arg(long, default_value_t = 0.5)]
    familiarity: f32,
    /// What is believed of unfamiliar prose: P(success) of cheap, local, frontier, thinking models.
    #[arg(long, value_delimiter = ',', default_value = "0.90,0.80,0.93,0.93")]
    priors: Vec<f64>,
    /// What is believed of unfamiliar code and mathematics, in the same order.
    #[arg(long, value_delimiter = ',', default_value = "0.80,0.65,0.86,0.93")]
    formal_priors: Vec<f64>,
}

pub fn eval(arguments: &EvalArguments, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut rows = rows::read(&arguments.data)?;
    if !arguments.only.is_empty() {
        rows.retain(|row| arguments.only.contains(&row.domain()));
    }
    let predictor = predictor(arguments, &rows)?;
    let predictions: Vec<Prediction> = rows
        .iter()
        .map(|row| predictor.predict(&row.question()))
        .collect();
    let unfamiliar = predictions
        .iter()
        .filter(|p| p.familiarity < arguments.familiarity)
        .count();
    writeln!(
        out,
        "{} prompts, {unfamiliar} of them unfamiliar; {}",
        rows.len(),
        predictor.model().about
    )?;
    if let Some(path) = &arguments.features {
        write_features(path, &rows, &predictions)?;
    }
    if let (Some(weak), Some(strong)) = (&arguments.weak, &arguments.strong) {
        return pair(
            arguments,
            out,
            &Pair {
                predictor: &predictor,
                rows: &rows,
                predictions: &predictions,
                weak,
                strong,
            },
        );
    }
    if arguments.models.len() < 2 {
        bail!("nothing to compare: give --weak and --strong, or --models with two names or more");
    }
    by_value(arguments, out, &predictor, &rows, &predictions)
}

fn predictor(arguments: &EvalArguments, rows: &[Row]) -> anyhow::Result<Predictor> {
    Ok(match &arguments.model {
        Some(path) => {
            let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            Predictor::load(&bytes).with_context(|| path.display().to_string())?
        }
        None if rows.iter().any(|row| row.split == "dev") => Predictor::load(FOR_EVALUATION)?,
        None => Predictor::shipped()?,
    })
}

fn write_features(path: &std::path::Path, rows: &[Row], predictions: &[Prediction]) -> anyhow::Result<()> {
    let mut file = create(path)?;
    for (row, prediction) in rows.iter().zip(predictions) {
        let outcomes: serde_json::Map<String, serde_json::Value> = row
            .outcomes
            .iter()
            .map(|(model, o)| (model.clone(), json!({"correct": o.correct})))
            .collect();
        let line = json!({"id": row.id, "workflow": row.domain(), "group": row.group(), "split": row.split,
            "features": prediction.features, "outcomes": outcomes});
        writeln!(file, "{line}")?;
    }
    file.flush()?;
    Ok(())
}

/// A column of the predictor, or a hint which there are.
fn column(predictor: &Predictor, model: &str) -> anyhow::Result<usize> {
    let known = || {
        let names: BTreeSet<&str> = predictor
            .model()
            .columns
            .iter()
            .map(|c| c.model.as_str())
            .collect();
        names.into_iter().collect::<Vec<_>>().join(", ")
    };
    predictor
        .column(model)
        .with_context(|| format!("the predictor knows no model `{model}`; it knows {}", known()))
}

struct Pair<'a> {
    predictor: &'a Predictor,
    rows: &'a [Row],
    predictions: &'a [Prediction],
    weak: &'a str,
    strong: &'a str,
}

fn pair(arguments: &EvalArguments, out: &mut dyn Write, pair: &Pair<'_>) -> anyhow::Result<()> {
    let (weak, strong) = (
        column(pair.predictor, pair.weak)?,
        column(pair.predictor, pair.strong)?,
    );
    let mut file = create(&arguments.out)?;
    let beliefs = beliefs(arguments)?;
    let mut scored = Vec::new();
    for (row, prediction) in pair.rows.iter().zip(pair.predictions) {
        let score = if prediction.familiarity < arguments.familiarity {
            beliefs.gain(pair.predictor, prediction, (weak, strong))
        } else {
            prediction.gain(weak, strong)
        };
        writeln!(file, "{}", json!({"id": row.id, "score": score}))?;
        if let (Some(a), Some(b)) = (row.outcomes.get(pair.weak), row.outcomes.get(pair.strong))
            && row.split == arguments.split
        {
            scored.push(Scored {
                score,
                gain: f64::from(b.correct) - f64::from(a.correct),
            });
        }
    }
    file.flush()?;
    if scored.is_empty() {
        writeln!(
            out,
            "no row of split {} has both models recorded",
            arguments.split
        )?;
        return Ok(());
    }
    let apgr = judge::apgr(&scored);
    writeln!(
        out,
        "{} / {}: {} rows of {}, APGR {apgr:.3} (random 0.5)",
        pair.weak,
        pair.strong,
        scored.len(),
        arguments.split
    )?;
    Ok(())
}

fn by_value(
    arguments: &EvalArguments,
    out: &mut dyn Write,
    predictor: &Predictor,
    rows: &[Row],
    predictions: &[Prediction],
) -> anyhow::Result<()> {
    let prices = Prices::find(arguments.prices.as_deref(), &arguments.data)?;
    let columns = arguments
        .models
        .iter()
        .map(|m| column(predictor, m))
        .collect::<anyhow::Result<Vec<usize>>>()?;
    let beliefs = beliefs(arguments)?;
    let mut multipliers = vec![arguments.hidden];
    multipliers.extend(
        [Some(0.0), Some(4.0), Some(10.0)]
            .into_iter()
            .filter(|m| *m != arguments.hidden),
    );
    let mut file = create(&arguments.out)?;
    for (at, hidden) in multipliers.into_iter().enumerate() {
        let prices = prices.with_hidden(hidden);
        let chooser = Chooser {
            predictor,
            columns: &columns,
            models: &arguments.models,
            prices: &prices,
            beliefs,
            least_familiarity: arguments.familiarity,
        };
        let chosen: Vec<Vec<usize>> = rows
            .iter()
            .zip(predictions)
            .map(|(row, prediction)| chooser.by_value(row, prediction, &arguments.values))
            .collect::<anyhow::Result<_>>()?;
        if at == 0 {
            for (row, chosen) in rows.iter().zip(&chosen) {
                let choice: serde_json::Map<String, serde_json::Value> = arguments
                    .values
                    .iter()
                    .zip(chosen)
                    .map(|(value, model)| (value.clone(), json!(arguments.models[*model])))
                    .collect();
                writeln!(file, "{}", json!({"id": row.id, "choice": choice}))?;
            }
        }
        let name = hidden.map_or("as listed".to_owned(), |hidden| hidden.to_string());
        writeln!(
            out,
            "\nhidden output per visible: {name}; utility in USD per 1,000 prompts"
        )?;
        let judged = judge::Utility {
            rows,
            chosen: &chosen,
            models: &arguments.models,
            prices: &prices,
            split: &arguments.split,
        };
        judged.report(&arguments.values, out)?;
    }
    file.flush()?;
    Ok(())
}

fn beliefs(arguments: &EvalArguments) -> anyhow::Result<Beliefs> {
    Ok(Beliefs {
        prose: Priors::of(&arguments.priors)?,
        formal: Priors::of(&arguments.formal_priors)?,
    })
}

fn create(path: &std::path::Path) -> anyhow::Result<std::io::BufWriter<std::fs::File>> {
    let file = std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(std::io::BufWriter::new(file))
}
