//! The first stage of training: words and letters → scores, and for each row the scores of a fit that had not seen it.
//!
//! Owns: what words and letters are asked for. Refuses to know: what is made of the scores. Invariants: a row's own
//! outcome never reaches the scores that later stages learn from.

use super::family::Rows;
use super::linear::sparse_ridge;
use super::model::{Linear, mean, softmax};
use super::train::{Domains, Example, Recipe};
use super::words::{Grain, Sparse, rarity};

pub(super) struct Text {
    pub words: Linear,
    pub letters: Linear,
    pub sharpness: f32,
    /// By row, held out.
    pub word_scores: Vec<Vec<f32>>,
    pub letter_scores: Vec<Vec<f32>>,
}

/// A text seen at one grain.
struct Seen {
    sparse: Vec<Sparse>,
    rarity: Vec<f32>,
}

impl Seen {
    fn of(grain: Grain, examples: &[Example]) -> Self {
        let rarity = rarity(grain, examples.iter().map(|e| e.text.as_str()));
        Self {
            sparse: examples
                .iter()
                .map(|e| Sparse::of(grain, &e.text, &rarity))
                .collect(),
            rarity,
        }
    }
}

/// `families`: the rows of each family and their outcomes; `fold`: by row.
pub(super) fn learn(
    examples: &[Example],
    domains: &Domains,
    families: &[(Vec<usize>, Rows)],
    fold: &[usize],
    recipe: Recipe,
) -> Text {
    let all: Vec<usize> = (0..examples.len()).collect();
    let words = Seen::of(Grain::Words, examples);
    let targets = word_targets(domains, families);
    let fit_words = |keep: &[usize]| quantised(&words, keep, &targets, (recipe.word_penalty, recipe.steps));
    let word_scores = held_out(&words, &all, fold, &fit_words);
    let letters = Seen::of(Grain::Letters, examples);
    let mut letter_scores = vec![vec![0.0; families.len()]; examples.len()];
    let mut by_family = Vec::new();
    for (place, (at, rows)) in families.iter().enumerate() {
        let mut targets = vec![vec![0.0]; examples.len()];
        at.iter()
            .zip(rows.letter_target())
            .for_each(|(row, ease)| targets[*row] = vec![ease]);
        let fit = |keep: &[usize]| quantised(&letters, keep, &targets, (recipe.letter_penalty, recipe.steps));
        let own = held_out(&letters, at, fold, &fit);
        by_family.push(fit(at));
        let whole = by_family.last();
        for (row, slots) in letter_scores.iter_mut().enumerate() {
            // Rows of other families were never trained on here.
            let score = if own[row].is_empty() {
                whole.map(|w| w.scores(&letters.sparse[row]))
            } else {
                None
            };
            slots[place] = score
                .as_ref()
                .unwrap_or(&own[row])
                .first()
                .copied()
                .unwrap_or_default();
        }
    }
    let sharpness = sharpness(&word_scores, domains);
    Text {
        words: fit_words(&all),
        letters: side_by_side(by_family, letters.rarity),
        sharpness,
        word_scores,
        letter_scores,
    }
}

/// Domain of the row one-hot, then each model's outcome where a family has few of them.
fn word_targets(domains: &Domains, families: &[(Vec<usize>, Rows)]) -> Vec<Vec<f32>> {
    let mut targets = vec![vec![0.0; domains.names.len()]; domains.of_row.len()];
    for (target, domain) in targets.iter_mut().zip(&domains.of_row) {
        target[*domain] = 1.0;
    }
    for (at, rows) in families {
        for scores in rows.word_targets() {
            targets.iter_mut().for_each(|target| target.push(0.0));
            for (row, score) in at.iter().zip(scores) {
                targets[*row].pop();
                targets[*row].push(score);
            }
        }
    }
    targets
}

/// For each of the rows the scores of a fit without its fold; nothing for other rows.
fn held_out(seen: &Seen, at: &[usize], fold: &[usize], fit: &dyn Fn(&[usize]) -> Linear) -> Vec<Vec<f32>> {
    let mut scores = vec![Vec::new(); seen.sparse.len()];
    let folds = fold.iter().max().map_or(0, |most| most + 1);
    for out in 0..folds {
        let keep: Vec<usize> = at.iter().copied().filter(|row| fold[*row] != out).collect();
        let linear = fit(&keep);
        for row in at.iter().copied().filter(|row| fold[*row] == out) {
            scores[row] = linear.scores(&seen.sparse[row]);
        }
    }
    scores
}

/// A ridge fit in steps of 1/127 of each output's largest weight. `search`: penalty and steps.
fn quantised(seen: &Seen, keep: &[usize], targets: &[Vec<f32>], search: (f32, usize)) -> Linear {
    let rows: Vec<&Sparse> = keep.iter().map(|row| &seen.sparse[*row]).collect();
    let mut targets: Vec<Vec<f32>> = keep.iter().map(|row| targets[*row].clone()).collect();
    let outputs = targets.first().map_or(0, Vec::len);
    let middle = |output: usize| mean(&targets.iter().map(|target| target[output]).collect::<Vec<f32>>());
    let bias: Vec<f32> = (0..outputs).map(middle).collect();
    for target in &mut targets {
        target
            .iter_mut()
            .zip(&bias)
            .for_each(|(value, mean)| *value -= mean);
    }
    let weights = sparse_ridge(&rows, &targets, search.0, search.1);
    let mut step = vec![1e-12_f32; outputs];
    for row in weights.chunks(outputs.max(1)) {
        step.iter_mut()
            .zip(row)
            .for_each(|(most, value)| *most = most.max(value.abs() / 127.0));
    }
    let weights = weights
        .chunks(outputs.max(1))
        .flat_map(|row| {
            row.iter()
                .zip(&step)
                .map(|(value, step)| (value / step).round() as i8)
        })
        .collect();
    Linear {
        rarity: seen.rarity.clone(),
        weights,
        step,
        bias,
    }
}

/// Single outputs as one linear map.
fn side_by_side(parts: Vec<Linear>, rarity: Vec<f32>) -> Linear {
    let weights = (0..rarity.len())
        .flat_map(|bucket| {
            parts
                .iter()
                .map(move |part| part.weights.get(bucket).copied().unwrap_or_default())
        })
        .collect();
    Linear {
        weights,
        step: parts.iter().flat_map(|part| part.step.iter().copied()).collect(),
        bias: parts.iter().flat_map(|part| part.bias.iter().copied()).collect(),
        rarity,
    }
}

/// The sharpness under which the true domains of held-out rows are likeliest.
fn sharpness(word_scores: &[Vec<f32>], domains: &Domains) -> f32 {
    let count = domains.names.len();
    let likelihood = |sharpness: f32| -> f64 {
        let rows = word_scores.iter().zip(&domains.of_row);
        rows.map(|(scores, domain)| f64::from(softmax(&scores[..count], sharpness)[*domain].max(1e-9).ln()))
            .sum()
    };
    let candidates = (2..=30).map(|step| step as f32);
    candidates
        .map(|s| (likelihood(s), s))
        .fold((f64::MIN, 1.0), |a, b| if b.0 > a.0 { b } else { a })
        .1
}
