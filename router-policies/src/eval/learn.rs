//! `policy train`: a model from recorded prompts, or from stored features and outcomes.
//!
//! Owns: reading training data and the report of cross-validation. Refuses to know: how models learn.

use super::judge::{Scored, apgr};
use super::rows::{self, Recorded, Row};
use crate::predict::train::{Example, Recipe, Stored, fold_of};
use crate::predict::{Column, Predictor, train as learning};
use crate::replay::Recorded as Kept;
use anyhow::{Context, bail};
use clap::Args;
use exchange::{Thinking, ThinkingLevel};
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
    /// A gateway's records with outcomes, as `policy records` writes them, or features and outcomes, a JSON object a line:
    /// `{"features": […], "workflow": "…", "outcomes": {"MODEL": {"correct": 0|1}}}`.
    #[arg(long, conflicts_with = "cross_validate")]
    from: Option<PathBuf>,
    /// The model that made the features; the shipped one if not given.
    #[arg(long, requires = "from")]
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
    if let Some(from) = &arguments.from {
        return extend(arguments, from, out);
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

fn extend(arguments: &TrainArguments, from: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    let base = match &arguments.base {
        None => Predictor::shipped()?,
        Some(base) => {
            let bytes = std::fs::read(base).with_context(|| format!("cannot read {}", base.display()))?;
            Predictor::load(&bytes).with_context(|| base.display().to_string())?
        }
    };
    let model = base.model().clone();
    let (mut records, mut known, mut lines) = (Vec::new(), classes(arguments)?, 0_usize);
    rows::lines(from, |line| {
        lines += 1;
        // A gateway's own records have facts, and at most one outcome.
        if !line.contains("\"facts\":") {
            records.push(serde_json::from_str(line)?);
        } else if let Some((record, column)) = kept(serde_json::from_str(line)?) {
            records.push(record);
            if !known.iter().any(|own| own.model == column.model) {
                known.push(column);
            }
        }
        Ok(())
    })?;
    writeln!(
        out,
        "{} of {lines} lines have features and an outcome",
        records.len()
    )?;
    if records.is_empty() {
        bail!(
            "nothing to learn from in {}: records have features where the policy asks the predictor, and outcomes where callers tell them",
            from.display()
        );
    }
    let mut all = model.columns.clone();
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

/// What a gateway's record teaches: how its deployment did on such a prompt, with and without thinking apart.
fn kept(record: Kept) -> Option<(Record, Column)> {
    let outcome = record.outcome?;
    let class = record.decided.class?;
    let is_first = record.decided.deployment.as_ref() == Some(&outcome.deployment);
    if record.features.is_empty() || !is_first {
        return None;
    }
    let thinks = record
        .decided
        .thinking
        .is_some_and(|thinking| thinking != Thinking::Level(ThinkingLevel::None));
    let plain = outcome.deployment.to_string();
    let column = Column {
        model: if thinks {
            format!("{plain}, thinking")
        } else {
            plain.clone()
        },
        class,
        thinks_beyond: thinks.then_some(plain),
    };
    let told = Recorded::told(outcome.success);
    let record = Record {
        features: record.features,
        workflow: outcome.workflow.to_string(),
        group: None,
        outcomes: HashMap::from([(column.model.clone(), told)]),
    };
    Some((record, column))
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
