//! Training: recorded outcomes → [`Model`], the same bits for the same examples and recipe.
//!
//! Owns: the order of the steps and what is held out where. Refuses to know: files. Invariants: whatever is fitted on
//! the output of an earlier step sees only output for prompts that the earlier step was not trained on; one group of
//! near-duplicates never stands on both sides.

use super::draws::Draws;
use super::family::{self, Rows};
use super::features;
use super::linear::{factor, sparse_ridge};
use super::model::{Column, Family, Likeness, Model, SHARES, Scale, Topics, softmax};
use super::words::{Sparse, rarity};
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
    pub topic_penalty: f32,
    pub topic_steps: usize,
    /// Per row, of the standardised dense vector.
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
            topic_penalty: 1.0,
            topic_steps: 15,
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
}

const LEAST_EXAMPLES: usize = 100;

/// The fold of a group, spread by the seed.
pub fn fold_of(group: &str, seed: u64, folds: usize) -> usize {
    let hash = group.bytes().fold(seed, |hash, byte| Draws::new(hash ^ u64::from(byte)).next());
    Draws::new(hash).below(folds)
}

pub fn train(examples: &[Example], columns: Vec<Column>, recipe: Recipe) -> Result<Model, TrainError> {
    let examples = merge(examples);
    if examples.len() < LEAST_EXAMPLES {
        return Err(TrainError::TooFew { found: examples.len(), least: LEAST_EXAMPLES });
    }
    let domains = Domains::of(&examples);
    let fold: Vec<usize> = examples.iter().map(|e| fold_of(&e.group, recipe.seed, recipe.folds)).collect();
    let families = domains.families(&examples);
    let stage = TopicStage::new(&examples, &domains, &families, recipe);
    let (topics, held_out) = stage.fit(&fold);
    let numbers: Vec<Vec<f32>> =
        examples.iter().map(|e| features::numbers(&e.text).to_vec()).collect();
    let dense: Vec<Vec<f32>> =
        numbers.iter().zip(&held_out).map(|(a, b)| a.iter().chain(b).copied().collect()).collect();
    let shares: Vec<Vec<f32>> = held_out
        .iter()
        .map(|scores| softmax(&scores[..domains.names.len()], topics.sharpness))
        .collect();
    let likeness = likeness(&numbers, &domains.of_row, domains.names.len(), &shares);
    let families = families
        .into_iter()
        .map(|members| {
            let at: Vec<usize> =
                (0..examples.len()).filter(|row| members.contains(&domains.of_row[*row])).collect();
            let rows = Rows::new(&examples, &at, &domains.of_row, &members);
            let inputs = family::Inputs {
                dense: at.iter().map(|row| dense[*row].clone()).collect(),
                shares: at.iter().map(|row| shares[*row].clone()).collect(),
                fold: at.iter().map(|row| fold[*row]).collect(),
            };
            family::fit(&rows, inputs, recipe)
        })
        .collect::<Vec<Family>>();
    let about = format!("{} prompts of {} domains", examples.len(), domains.names.len());
    Ok(Model { about, columns, topics, likeness, families })
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

struct Domains {
    names: Vec<String>,
    of_row: Vec<usize>,
}

impl Domains {
    fn of(examples: &[Example]) -> Self {
        let all: BTreeSet<&str> = examples.iter().map(|e| e.domain.as_str()).collect();
        let names: Vec<String> = all.iter().map(|name| (*name).to_owned()).collect();
        let index: BTreeMap<&str, usize> = all.into_iter().enumerate().map(|(at, name)| (name, at)).collect();
        let of_row = examples.iter().map(|e| index.get(e.domain.as_str()).copied().unwrap_or(0)).collect();
        Self { names, of_row }
    }

    /// Domains on which mostly the same models were recorded belong together.
    fn families(&self, examples: &[Example]) -> Vec<Vec<usize>> {
        let mut recorded = vec![BTreeSet::new(); self.names.len()];
        for (example, domain) in examples.iter().zip(&self.of_row) {
            let seen = example.outcomes.iter().enumerate().filter(|(_, outcome)| outcome.is_some());
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

struct TopicStage {
    sparse: Vec<Sparse>,
    rarity: Vec<f32>,
    /// Domain of the row one-hot, then scores of outcome.
    targets: Vec<Vec<f32>>,
    domain: Vec<usize>,
    domains: usize,
    recipe: Recipe,
}

impl TopicStage {
    fn new(examples: &[Example], domains: &Domains, families: &[Vec<usize>], recipe: Recipe) -> Self {
        let rarity = rarity(examples.iter().map(|e| e.text.as_str()));
        let sparse = examples.iter().map(|e| Sparse::of(&e.text, &rarity)).collect();
        let mut targets = vec![vec![0.0; domains.names.len()]; examples.len()];
        for (target, domain) in targets.iter_mut().zip(&domains.of_row) {
            target[*domain] = 1.0;
        }
        for members in families {
            let at: Vec<usize> =
                (0..examples.len()).filter(|row| members.contains(&domains.of_row[*row])).collect();
            let rows = Rows::new(examples, &at, &domains.of_row, members);
            for scores in rows.text_targets() {
                targets.iter_mut().for_each(|target| target.push(0.0));
                for (row, score) in at.iter().zip(scores) {
                    if let Some(last) = targets[*row].last_mut() {
                        *last = score;
                    }
                }
            }
        }
        Self { sparse, rarity, targets, domain: domains.of_row.clone(), domains: domains.names.len(), recipe }
    }

    /// The scores from all rows, and for each row those of a fit without its fold.
    fn fit(&self, fold: &[usize]) -> (Topics, Vec<Vec<f32>>) {
        let mut held_out = vec![Vec::new(); self.targets.len()];
        for out in 0..self.recipe.folds {
            let topics = self.fit_rows(|row| fold[row] != out);
            for (row, scores) in held_out.iter_mut().enumerate().filter(|(row, _)| fold[*row] == out) {
                *scores = topics.scores(&self.sparse[row]);
            }
        }
        let mut topics = self.fit_rows(|_| true);
        topics.sharpness = self.sharpness(&held_out);
        (topics, held_out)
    }

    fn fit_rows(&self, keep: impl Fn(usize) -> bool) -> Topics {
        let at: Vec<usize> = (0..self.targets.len()).filter(|row| keep(*row)).collect();
        let rows: Vec<&Sparse> = at.iter().map(|row| &self.sparse[*row]).collect();
        let mut targets: Vec<Vec<f32>> = at.iter().map(|row| self.targets[*row].clone()).collect();
        let outputs = targets.first().map_or(0, Vec::len);
        let mut bias = vec![0.0_f32; outputs];
        for target in &targets {
            bias.iter_mut().zip(target).for_each(|(sum, value)| *sum += value);
        }
        bias.iter_mut().for_each(|sum| *sum /= targets.len().max(1) as f32);
        for target in &mut targets {
            target.iter_mut().zip(&bias).for_each(|(value, mean)| *value -= mean);
        }
        let weights = sparse_ridge(&rows, &targets, self.recipe.topic_penalty, self.recipe.topic_steps);
        let mut step = vec![1e-12_f32; outputs];
        for row in weights.chunks(outputs) {
            step.iter_mut().zip(row).for_each(|(most, value)| *most = most.max(value.abs() / 127.0));
        }
        let quantised = weights
            .chunks(outputs)
            .flat_map(|row| row.iter().zip(&step).map(|(value, step)| (value / step).round() as i8))
            .collect();
        Topics { rarity: self.rarity.clone(), weights: quantised, step, bias, sharpness: 1.0 }
    }

    /// The sharpness under which the true domains of held-out rows are likeliest.
    fn sharpness(&self, held_out: &[Vec<f32>]) -> f32 {
        let likelihood = |sharpness: f32| -> f64 {
            let rows = held_out.iter().zip(&self.domain);
            rows.map(|(scores, domain)| {
                f64::from(softmax(&scores[..self.domains], sharpness)[*domain].max(1e-9).ln())
            })
            .sum()
        };
        let candidates = (2..=30).map(|step| step as f32);
        candidates.map(|s| (likelihood(s), s)).fold((f64::MIN, 1.0), |a, b| if b.0 > a.0 { b } else { a }).1
    }
}

impl Topics {
    fn scores(&self, sparse: &Sparse) -> Vec<f32> {
        let outputs = self.step.len();
        let mut sums = self.bias.clone();
        for (bucket, weight) in &sparse.entries {
            let row = &self.weights[*bucket as usize * outputs..][..outputs];
            for ((sum, value), step) in sums.iter_mut().zip(row).zip(&self.step) {
                *sum += weight * f32::from(*value) * step;
            }
        }
        sums
    }
}

/// Shrinks the covariance towards its diagonal (which is 1), so that features that go together in training do not make
/// every new prompt look strange.
const SHRINKAGE: f64 = 0.3;

fn likeness(numbers: &[Vec<f32>], domain: &[usize], domains: usize, shares: &[Vec<f32>]) -> Likeness {
    let scale = Scale::of(numbers);
    let scaled: Vec<Vec<f32>> = numbers.iter().map(|row| scale.apply(row)).collect();
    let size = scale.mean.len();
    let mut centres = vec![vec![0.0_f32; size]; domains];
    let mut counts = vec![0_u32; domains];
    for (row, domain) in scaled.iter().zip(domain) {
        counts[*domain] += 1;
        centres[*domain].iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
    for (centre, count) in centres.iter_mut().zip(&counts) {
        centre.iter_mut().for_each(|sum| *sum /= (*count).max(1) as f32);
    }
    let mut lower = vec![vec![0.0_f64; size]; size];
    for (row, domain) in scaled.iter().zip(domain) {
        let off: Vec<f64> = row.iter().zip(&centres[*domain]).map(|(a, b)| f64::from(a - b)).collect();
        for (i, value) in off.iter().enumerate() {
            lower[i][..=i].iter_mut().zip(&off).for_each(|(slot, other)| *slot += value * other);
        }
    }
    for (i, row) in lower.iter_mut().enumerate() {
        row.iter_mut().for_each(|value| *value *= (1.0 - SHRINKAGE) / scaled.len().max(1) as f64);
        row[i] += SHRINKAGE;
    }
    factor(&mut lower);
    let mut likeness = Likeness { scale, centres, lower, ..Likeness::default() };
    let mut nearest: Vec<f32> = numbers
        .iter()
        .map(|row| likeness.distances(row).into_iter().fold(f32::MAX, f32::min))
        .collect();
    nearest.sort_unstable_by(|a, b| b.total_cmp(a));
    let mut surest: Vec<f32> =
        shares.iter().map(|row| row.iter().copied().fold(0.0, f32::max)).collect();
    surest.sort_unstable_by(f32::total_cmp);
    let at_share = |sorted: &[f32], share: f32| {
        let at = (share * sorted.len() as f32) as usize;
        sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0.0)
    };
    likeness.tail = SHARES.iter().map(|share| at_share(&nearest, *share)).collect();
    likeness.doubt = SHARES.iter().map(|share| at_share(&surest, *share)).collect();
    likeness
}
