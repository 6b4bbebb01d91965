//! `policy train`: a model from recorded prompts, or from stored features and outcomes.
//!
//! Owns: reading training data and the report of cross-validation. Refuses to know: how models learn.

use super::judge::{Scored, apgr};
use super::rows::{self, Recorded, Row};
use crate::predict::train::{Example, Recipe, Stored, fold_of};
use crate::predict::{Column, Predictor, train as learning};
use anyhow::{Context, bail};
use clap::Args;
use serde::Deserialize;
use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Models whose class is known without `--classes`.
const CLASSES: &str = include_str!("../../model/models.json");

/// Learn how likely models are to be right, from recorded outcomes.
#[derive(Args, Debug)]
pub struct TrainArguments {
    /// Recorded prompts and outcomes, `.jsonl` or `.jsonl.gz`.
    #[arg(long, num_args = 1.., required_unless_present = "from", conflicts_with = "from")]
    data: Vec<PathBuf>,
    /// Stored features and outcomes, a JSON object a line:
    /// `{"features": […], "workflow": "…", "outcomes": {"MODEL": {"correct": 0|1}}}`. Needs --base.
    #[arg(long, requires = "base", conflicts_with = "cross_validate")]
    from: Option<PathBuf>,
    /// The model that made the stored features.
    #[arg(long)]
    base: Option<PathBuf>,
    /// Rows of these splits.
    #[arg(long, value_delimiter = ',', default_value = "train")]
    splits: Vec<String>,
    /// Only rows of these domains, `dataset/domain`.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// No rows of these domains, `dataset/domain`.
    #[arg(long, value_delimiter = ',')]
    leave_out: Vec<String>,
    /// Class and thinking of each model, as in `model/models.json`.
    #[arg(long)]
    classes: Option<PathBuf>,
    /// Where the model goes.
    #[arg(long, required_unless_present = "cross_validate")]
    out: Option<PathBuf>,
    /// Report how well each part of the data is predicted from the rest, instead of writing a model.
    #[arg(long)]
    cross_validate: bool,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = Recipe::default().word_penalty)]
    word_penalty: f32,
    #[arg(long, default_value_t = Recipe::default().letter_penalty)]
    letter_penalty: f32,
    #[arg(long, default_value_t = Recipe::default().letters_share)]
    letters_share: f32,
    #[arg(long, default_value_t = Recipe::default().steps)]
    steps: usize,
    #[arg(long, default_value_t = Recipe::default().ease_penalty)]
    ease_penalty: f64,
    #[arg(long, default_value_t = Recipe::default().direct_penalty)]
    direct_penalty: f64,
    #[arg(long, default_value_t = Recipe::default().trees)]
    trees: usize,
    #[arg(long, default_value_t = Recipe::default().leaf)]
    leaf: usize,
}

impl TrainArguments {
    fn recipe(&self) -> Recipe {
        Recipe {
            seed: self.seed,
            word_penalty: self.word_penalty,
            letter_penalty: self.letter_penalty,
            letters_share: self.letters_share,
            steps: self.steps,
            ease_penalty: self.ease_penalty,
            direct_penalty: self.direct_penalty,
            trees: self.trees,
            leaf: self.leaf,
            ..Recipe::default()
        }
    }
}

pub fn train(arguments: &TrainArguments, out: &mut dyn Write) -> anyhow::Result<()> {
    if let (Some(from), Some(base)) = (&arguments.from, &arguments.base) {
        return extend(arguments, from, base, out);
    }
    let mut rows = rows::read(&arguments.data)?;
    rows.retain(|row| {
        let domain = row.domain();
        arguments.splits.contains(&row.split)
            && (arguments.only.is_empty() || arguments.only.contains(&domain))
            && !arguments.leave_out.contains(&domain)
    });
    let known = classes(arguments)?;
    let columns = columns(known, rows.iter().flat_map(|row| row.outcomes.keys()))?;
    let examples: Vec<Example> = rows.iter().map(|row| example(row, &columns)).collect();
    if arguments.cross_validate {
        return cross_validate(arguments, &examples, &columns, out);
    }
    let model = learning::train(&examples, columns, arguments.recipe())?;
    for family in &model.families {
        writeln!(
            out,
            "family of {} domains; mixture of ease, direct, forest, rates:",
            family.domains.len()
        )?;
        for (at, mixture) in family.columns.iter().zip(&family.mixture) {
            let name = model
                .columns
                .get(usize::from(*at))
                .map_or("?", |column| &column.model);
            writeln!(out, "  {name:<30} {mixture:.1?}")?;
        }
    }
    writeln!(out, "{}", model.about)?;
    write_model(arguments, &Predictor::new(model)?, out)
}

fn write_model(arguments: &TrainArguments, predictor: &Predictor, out: &mut dyn Write) -> anyhow::Result<()> {
    let path = arguments
        .out
        .as_ref()
        .context("no place for the model: give --out")?;
    let bytes = predictor.save()?;
    std::fs::write(path, &bytes).with_context(|| format!("cannot write {}", path.display()))?;
    writeln!(out, "{}: {} bytes", path.display(), bytes.len())?;
    Ok(())
}

/// One line of `--from`.
#[derive(Deserialize)]
struct Record {
    features: Vec<f32>,
    workflow: String,
    /// Requests of one group are near-duplicates, such as retries.
    #[serde(default)]
    group: Option<String>,
    outcomes: HashMap<String, Recorded>,
}

fn extend(arguments: &TrainArguments, from: &Path, base: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    let bytes = std::fs::read(base).with_context(|| format!("cannot read {}", base.display()))?;
    let model = Predictor::load(&bytes)
        .with_context(|| base.display().to_string())?
        .model()
        .clone();
    let mut records: Vec<Record> = Vec::new();
    rows::lines(from, |line| {
        records.push(serde_json::from_str(line)?);
        Ok(())
    })?;
    let mut all = model.columns.clone();
    let known = classes(arguments)?;
    for column in columns(known, records.iter().flat_map(|record| record.outcomes.keys()))? {
        if !all.iter().any(|own| own.model == column.model) {
            all.push(column);
        }
    }
    let stored: Vec<Stored> = records
        .into_iter()
        .enumerate()
        .map(|(at, record)| Stored {
            outcomes: all
                .iter()
                .map(|column| record.outcomes.get(&column.model).map(Recorded::outcome))
                .collect(),
            features: record.features,
            workflow: record.workflow,
            group: record.group.unwrap_or_else(|| at.to_string()),
        })
        .collect();
    let model = learning::extend(model, &stored, all, arguments.recipe())?;
    writeln!(out, "{}", model.about)?;
    write_model(arguments, &Predictor::new(model)?, out)
}

fn classes(arguments: &TrainArguments) -> anyhow::Result<Vec<Column>> {
    let text = match &arguments.classes {
        Some(path) => {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
        }
        None => CLASSES.to_owned(),
    };
    serde_json::from_str(&text).context("list of classes")
}

/// The recorded models with their classes, in the order of the list of classes.
fn columns<'r>(
    known: Vec<Column>,
    recorded: impl Iterator<Item = &'r String>,
) -> anyhow::Result<Vec<Column>> {
    let recorded: BTreeSet<&str> = recorded.map(String::as_str).collect();
    let listed: BTreeSet<&str> = known.iter().map(|column| column.model.as_str()).collect();
    let unlisted: Vec<&str> = recorded.difference(&listed).copied().collect();
    if !unlisted.is_empty() {
        bail!(
            "no class is known for {}: list them in a file and give it as --classes",
            unlisted.join(", ")
        );
    }
    let mut columns = known;
    columns.retain(|column| recorded.contains(column.model.as_str()));
    Ok(columns)
}

fn example(row: &Row, columns: &[Column]) -> Example {
    let outcome = |column: &Column| row.outcomes.get(&column.model).map(Recorded::outcome);
    Example {
        text: row.question(),
        domain: row.domain(),
        group: row.group().to_owned(),
        outcomes: columns.iter().map(outcome).collect(),
    }
}

const FOLDS: usize = 5;

/// Data set, weak and strong model of the pairs that the routing data list baselines for.
const PAIRS: [(&str, &str, &str); 7] = [
    (
        "mmlu_gpt4_mixtral",
        "mixtral-8x7b-instruct-v0.1",
        "gpt-4-1106-preview",
    ),
    (
        "gsm8k_gpt4_mixtral",
        "mixtral-8x7b-instruct-v0.1",
        "gpt-4-1106-preview",
    ),
    ("zeroeval", "gpt-4o-mini-2024-07-18", "claude-3-5-sonnet-20241022"),
    ("zeroeval", "llama-3.1-8b-instruct", "gpt-4o-2024-08-06"),
    ("zeroeval", "gpt-4o-mini-2024-07-18", "o1-mini-2024-09-12"),
    (
        "zeroeval",
        "claude-3-haiku-20240307",
        "claude-3-5-sonnet-20241022",
    ),
    ("zeroeval", "qwen2-7b-instruct", "llama-3.1-70b-instruct"),
];

fn cross_validate(
    arguments: &TrainArguments,
    examples: &[Example],
    columns: &[Column],
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let mut scored: Vec<Vec<Scored>> = vec![Vec::new(); PAIRS.len()];
    // Other folds than those within training, so that the two never coincide.
    let fold = |example: &Example| fold_of(&example.group, arguments.seed ^ 0x5eed, FOLDS);
    for held_out in 0..FOLDS {
        let rest: Vec<Example> = examples.iter().filter(|e| fold(e) != held_out).cloned().collect();
        let predictor = Predictor::new(learning::train(&rest, columns.to_vec(), arguments.recipe())?)?;
        for example in examples.iter().filter(|e| fold(e) == held_out) {
            let prediction = predictor.predict(&example.text);
            for (slot, (dataset, weak, strong)) in scored.iter_mut().zip(PAIRS) {
                let (Some(weak), Some(strong)) = (predictor.column(weak), predictor.column(strong)) else {
                    continue;
                };
                let recorded = |column: usize| example.outcomes.get(column).copied().flatten();
                if let (Some(a), Some(b)) = (recorded(weak), recorded(strong))
                    && example.domain.starts_with(dataset)
                {
                    let gain = f64::from(u8::from(b.correct)) - f64::from(u8::from(a.correct));
                    slot.push(Scored {
                        score: prediction.gain(weak, strong),
                        gain,
                    });
                }
            }
        }
    }
    for ((dataset, weak, strong), scored) in PAIRS.iter().zip(&scored) {
        writeln!(
            out,
            "{dataset}: {weak} / {strong}: {} rows, APGR {:.3}",
            scored.len(),
            apgr(scored)
        )?;
    }
    Ok(())
}
