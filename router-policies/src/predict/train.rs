//! Training: recorded outcomes → [`Model`], the same bits for the same examples and recipe.
//!
//! Owns: the order of the steps and what is held out where. Refuses to know: files. Invariants: whatever is fitted on
//! the output of an earlier step sees only output for prompts that the earlier step was not trained on; one group of
//! near-duplicates never stands on both sides.

use super::draws::Draws;
use super::family::{self, Rows};
use super::features;
use super::linear::{factor, whiten};
use super::model::{Column, Family, Likeness, Model, SHARES, Scale, softmax};
use super::text;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// One prompt and what became of it.
#[derive(Clone, Debug)]
pub struct Example {
    pub text: String,
    pub domain: String,
    /// Near-duplicates share one.
    pub group: String,
    /// By column.
    pub outcomes: Vec<Option<Outcome>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    pub correct: bool,
    pub output_characters: Option<u32>,
}

/// The settings of training. The defaults were chosen by cross-validation on `train` (see the model card).
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    pub seed: u64,
    pub folds: usize,
    pub word_penalty: f32,
    pub letter_penalty: f32,
    /// Share of the letters' score in a prompt's ease; the rest is the line's.
    pub letters_share: f32,
    /// Steps of conjugate gradients.
    pub steps: usize,
    /// For standardised features, whatever the number of rows.
    pub ease_penalty: f64,
    pub direct_penalty: f64,
    pub replicates: usize,
    pub trees: usize,
    pub leaf: usize,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            seed: 1,
            folds: 5,
            word_penalty: 1.0,
            letter_penalty: 2.0,
            letters_share: 0.25,
            steps: 15,
            ease_penalty: 1000.0,
            direct_penalty: 1000.0,
            replicates: 8,
            trees: 100,
            leaf: 15,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error("{found} examples are too few to train on; at least {least} are needed")]
    TooFew { found: usize, least: usize },
    #[error(
        "record {record}: {found} features where {expected} finite numbers are needed; they must come from the model \
         that is to be extended"
    )]
    Features {
        record: usize,
        found: usize,
        expected: usize,
    },
}

const LEAST_EXAMPLES: usize = 100;

/// The fold of a group, spread by the seed.
pub fn fold_of(group: &str, seed: u64, folds: usize) -> usize {
    let hash = group
        .bytes()
        .fold(seed, |hash, byte| Draws::new(hash ^ u64::from(byte)).next());
    Draws::new(hash).below(folds)
}

pub fn train(examples: &[Example], columns: Vec<Column>, recipe: Recipe) -> Result<Model, TrainError> {
    let examples = merge(examples);
    if examples.len() < LEAST_EXAMPLES {
        return Err(TrainError::TooFew {
            found: examples.len(),
            least: LEAST_EXAMPLES,
        });
    }
    let domains = Domains::of(&examples);
    let fold: Vec<usize> = examples
        .iter()
        .map(|e| fold_of(&e.group, recipe.seed, recipe.folds))
        .collect();
    let families = domains.families(&examples);
    let rows: Vec<(Vec<usize>, Rows)> = families
        .iter()
        .map(|members| {
            let at: Vec<usize> = (0..examples.len())
                .filter(|row| members.contains(&domains.of_row[*row]))
                .collect();
            let rows = Rows::new(&examples, &at, &domains.of_row, members);
            (at, rows)
        })
        .collect();
    let text = text::learn(&examples, &domains, &rows, &fold, recipe);
    let numbers: Vec<Vec<f32>> = examples
        .iter()
        .map(|e| features::numbers(&e.text).to_vec())
        .collect();
    let shares: Vec<Vec<f32>> = text
        .word_scores
        .iter()
        .map(|scores| softmax(&scores[..domains.names.len()], text.sharpness))
        .collect();
    let before = features::COUNT + text.words.step.len();
    let likeness = likeness(&numbers, &domains.of_row, domains.names.len(), &shares);
    let fit = |(place, (at, rows)): (usize, &(Vec<usize>, Rows))| {
        let dense = |row: &usize| {
            let parts = [&numbers[*row], &text.word_scores[*row], &text.letter_scores[*row]];
            parts.into_iter().flatten().copied().collect()
        };
        let inputs = family::Inputs {
            dense: at.iter().map(dense).collect(),
            letters: Some(before + place),
            shares: at.iter().map(|row| shares[*row].clone()).collect(),
            fold: at.iter().map(|row| fold[*row]).collect(),
        };
        family::fit(rows, &inputs, recipe)
    };
    let families: Vec<Family> = rows.iter().enumerate().map(fit).collect();
    let about = format!("{} prompts of {} domains", examples.len(), domains.names.len());
    Ok(Model {
        about,
        columns,
        words: text.words,
        letters: text.letters,
        topics: domains.names.len() as u32,
        sharpness: text.sharpness,
        likeness,
        families,
    })
}

/// Stored features of a prompt, whose text is gone, and what became of it.
#[derive(Clone, Debug)]
pub struct Stored {
    /// As [`super::Prediction::features`] of the model to be extended.
    pub features: Vec<f32>,
    pub workflow: String,
    pub group: String,
    /// By column of the extended model.
    pub outcomes: Vec<Option<Outcome>>,
}

/// A model that also knows the user's own workflows: a further family, learned from stored features alone. What the
/// model knew before stands. `columns`: the model's own, then new ones.
pub fn extend(
    mut model: Model,
    stored: &[Stored],
    columns: Vec<Column>,
    recipe: Recipe,
) -> Result<Model, TrainError> {
    if stored.len() < LEAST_EXAMPLES {
        return Err(TrainError::TooFew {
            found: stored.len(),
            least: LEAST_EXAMPLES,
        });
    }
    let expected = features::COUNT + model.words.step.len() + model.letters.step.len();
    for (record, row) in stored.iter().enumerate() {
        let finite = row.features.iter().all(|value| value.is_finite());
        if row.features.len() != expected || !finite {
            return Err(TrainError::Features {
                record: record + 1,
                found: row.features.len(),
                expected,
            });
        }
    }
    let examples: Vec<Example> = stored
        .iter()
        .map(|row| Example {
            text: String::new(),
            domain: row.workflow.clone(),
            group: row.group.clone(),
            outcomes: row.outcomes.clone(),
        })
        .collect();
    let domains = Domains::of(&examples);
    let members: Vec<usize> = (0..domains.names.len()).collect();
    let all: Vec<usize> = (0..examples.len()).collect();
    let rows = Rows::new(&examples, &all, &domains.of_row, &members);
    let inputs = family::Inputs {
        dense: stored.iter().map(|row| row.features.clone()).collect(),
        letters: None,
        shares: vec![Vec::new(); stored.len()],
        fold: examples
            .iter()
            .map(|e| fold_of(&e.group, recipe.seed, recipe.folds))
            .collect(),
    };
    let mut family = family::fit(&rows, &inputs, recipe);
    let known = model.likeness.centres.len();
    family.domains = members.iter().map(|domain| (known + domain) as u16).collect();
    let scaled: Vec<Vec<f32>> = stored
        .iter()
        .map(|row| model.likeness.scale.apply(&row.features[..features::COUNT]))
        .collect();
    let lower = &model.likeness.lower;
    let own = centres(&scaled, &domains.of_row, members.len());
    let own: Vec<Vec<f32>> = own.iter().map(|centre| whiten(lower, centre)).collect();
    model.likeness.centres.extend(own);
    model.about = format!(
        "{}, {} outcomes of {} workflows",
        model.about,
        stored.len(),
        members.len()
    );
    model.families.push(family);
    model.columns = columns;
    Ok(model)
}

/// Means by domain.
fn centres(scaled: &[Vec<f32>], domain: &[usize], domains: usize) -> Vec<Vec<f32>> {
    let size = scaled.first().map_or(0, Vec::len);
    let mut centres = vec![vec![0.0_f32; size]; domains];
    let mut counts = vec![0_u32; domains];
    for (row, domain) in scaled.iter().zip(domain) {
        counts[*domain] += 1;
        centres[*domain]
            .iter_mut()
            .zip(row)
            .for_each(|(sum, value)| *sum += value);
    }
    for (centre, count) in centres.iter_mut().zip(&counts) {
        centre.iter_mut().for_each(|sum| *sum /= (*count).max(1) as f32);
    }
    centres
}

/// One example for rows of one group on which different models were recorded.
fn merge(examples: &[Example]) -> Vec<Example> {
    let mut merged: Vec<Example> = Vec::new();
    let mut by_group: HashMap<&str, Vec<usize>> = HashMap::new();
    for example in examples {
        let places = by_group.entry(&example.group).or_default();
        let disjoint = |at: &&usize| {
            let mut both = merged[**at].outcomes.iter().zip(&example.outcomes);
            both.all(|(a, b)| a.is_none() || b.is_none())
        };
        if let Some(at) = places.iter().find(disjoint).copied() {
            for (slot, outcome) in merged[at].outcomes.iter_mut().zip(&example.outcomes) {
                *slot = slot.or(*outcome);
            }
        } else {
            places.push(merged.len());
            merged.push(example.clone());
        }
    }
    merged
}

pub struct Domains {
    pub names: Vec<String>,
    pub of_row: Vec<usize>,
}

impl Domains {
    fn of(examples: &[Example]) -> Self {
        let all: BTreeSet<&str> = examples.iter().map(|e| e.domain.as_str()).collect();
        let names: Vec<String> = all.iter().map(|name| (*name).to_owned()).collect();
        let index: BTreeMap<&str, usize> = all.into_iter().enumerate().map(|(at, name)| (name, at)).collect();
        let of_row = examples
            .iter()
            .map(|e| index.get(e.domain.as_str()).copied().unwrap_or(0))
            .collect();
        Self { names, of_row }
    }

    /// Domains on which mostly the same models were recorded belong together.
    fn families(&self, examples: &[Example]) -> Vec<Vec<usize>> {
        let mut recorded = vec![BTreeSet::new(); self.names.len()];
        for (example, domain) in examples.iter().zip(&self.of_row) {
            let seen = example
                .outcomes
                .iter()
                .enumerate()
                .filter(|(_, outcome)| outcome.is_some());
            recorded[*domain].extend(seen.map(|(column, _)| column));
        }
        let mut families: Vec<Vec<usize>> = Vec::new();
        for (domain, columns) in recorded.iter().enumerate() {
            let alike = |family: &&mut Vec<usize>| {
                let other = &recorded[family[0]];
                2 * columns.intersection(other).count() > columns.union(other).count()
            };
            match families.iter_mut().find(alike) {
                Some(family) => family.push(domain),
                None => families.push(vec![domain]),
            }
        }
        families
    }
}

/// Shrinks the covariance towards its diagonal (which is 1), so that features that go together in training do not make
/// every new prompt look strange.
const SHRINKAGE: f64 = 0.3;

fn likeness(numbers: &[Vec<f32>], domain: &[usize], domains: usize, shares: &[Vec<f32>]) -> Likeness {
    let scale = Scale::of(numbers);
    let scaled: Vec<Vec<f32>> = numbers.iter().map(|row| scale.apply(row)).collect();
    let size = scale.mean.len();
    let centres = centres(&scaled, domain, domains);
    let mut lower = vec![vec![0.0_f64; size]; size];
    for (row, domain) in scaled.iter().zip(domain) {
        let off: Vec<f64> = row
            .iter()
            .zip(&centres[*domain])
            .map(|(a, b)| f64::from(a - b))
            .collect();
        for (i, value) in off.iter().enumerate() {
            lower[i][..=i]
                .iter_mut()
                .zip(&off)
                .for_each(|(slot, other)| *slot += value * other);
        }
    }
    for (i, row) in lower.iter_mut().enumerate() {
        row.iter_mut()
            .for_each(|value| *value *= (1.0 - SHRINKAGE) / scaled.len().max(1) as f64);
        row[i] += SHRINKAGE;
    }
    factor(&mut lower);
    let centres = centres.iter().map(|centre| whiten(&lower, centre)).collect();
    let mut likeness = Likeness {
        scale,
        centres,
        lower,
        ..Likeness::default()
    };
    let mut nearest: Vec<f32> = numbers
        .iter()
        .map(|row| likeness.distances(row).into_iter().fold(f32::MAX, f32::min))
        .collect();
    nearest.sort_unstable_by(|a, b| b.total_cmp(a));
    let mut surest: Vec<f32> = shares
        .iter()
        .map(|row| row.iter().copied().fold(0.0, f32::max))
        .collect();
    surest.sort_unstable_by(f32::total_cmp);
    let at_share = |sorted: &[f32], share: f32| {
        let at = (share * sorted.len() as f32) as usize;
        sorted
            .get(at.min(sorted.len().saturating_sub(1)))
            .copied()
            .unwrap_or(0.0)
    };
    likeness.tail = SHARES.iter().map(|share| at_share(&nearest, *share)).collect();
    likeness.doubt = SHARES.iter().map(|share| at_share(&surest, *share)).collect();
    likeness
}
