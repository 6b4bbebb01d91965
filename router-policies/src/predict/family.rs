//! Fitting one family: four estimators of P(success) for each of its models, and their mixture.
//!
//! Owns: the estimators' training and the choice of the mixture on held-out rows. Refuses to know: texts, files.
//! Invariants: the mixture and the slopes are chosen on rows left out of the fit that they judge.
//!
//! Most of what a prompt tells about a model is how hard it is for models in general. So all recorded outcomes of a
//! prompt are first averaged into one number, its ease, far less noisy than any single outcome, and one line predicts
//! it; each model then gets its own response to ease. The other estimators look at each model alone (direct), for jumps
//! and interactions (forest) and at the domain (rates). Models recorded on the same prompts share one mixture, so that
//! their differences are compared on one footing.

use super::draws::Draws;
use super::features;
use super::forest::{Forest, Growth};
use super::linear::ridge;
use super::model::{Family, PARTS, Scale, dot, mean};
use super::train::{Example, Outcome, Recipe};

/// Outcomes of one family's rows.
pub(super) struct Rows {
    /// Columns of the model that were recorded here.
    pub columns: Vec<usize>,
    /// Domains of the model that belong here.
    pub members: Vec<usize>,
    /// By row: index into `members`.
    pub domain: Vec<usize>,
    /// By row and column.
    pub outcomes: Vec<Vec<Option<Outcome>>>,
}

/// What is known of each row without its outcomes.
pub(super) struct Inputs {
    /// Dense vectors.
    pub dense: Vec<Vec<f32>>,
    /// Place of the family's letter score in them.
    pub letters: Option<usize>,
    /// P(domain) over all domains of the model.
    pub shares: Vec<Vec<f32>>,
    pub fold: Vec<usize>,
}

impl Rows {
    /// `at`: the rows of `examples` in this family.
    pub(super) fn new(examples: &[Example], at: &[usize], domain: &[usize], members: &[usize]) -> Self {
        let count = examples.first().map_or(0, |e| e.outcomes.len());
        let columns: Vec<usize> = (0..count)
            .filter(|c| at.iter().any(|row| examples[*row].outcomes[*c].is_some()))
            .collect();
        let place = |row: &usize| {
            members
                .iter()
                .position(|member| *member == domain[*row])
                .unwrap_or(0)
        };
        Self {
            outcomes: at
                .iter()
                .map(|row| columns.iter().map(|c| examples[*row].outcomes[*c]).collect())
                .collect(),
            domain: at.iter().map(place).collect(),
            members: members.to_vec(),
            columns,
        }
    }

    fn value(&self, row: usize, column: usize) -> Option<f32> {
        self.outcomes[row][column].map(|outcome| f32::from(u8::from(outcome.correct)))
    }

    /// Mean by domain and column over the rows that `keep` names; NaN where none was recorded.
    fn means(&self, keep: &dyn Fn(usize) -> bool) -> Vec<Vec<f32>> {
        let mut sums = vec![vec![(0.0_f32, 0.0_f32); self.columns.len()]; self.members.len()];
        for row in (0..self.outcomes.len()).filter(|row| keep(*row)) {
            for (column, slot) in sums[self.domain[row]].iter_mut().enumerate() {
                if let Some(value) = self.value(row, column) {
                    *slot = (slot.0 + value, slot.1 + 1.0);
                }
            }
        }
        sums.into_iter()
            .map(|row| row.into_iter().map(|(sum, count)| sum / count).collect())
            .collect()
    }

    /// How easy each row was: its domain's mean over the columns recorded in every domain, and the row's own
    /// deviation from its domain's means over whatever was recorded on it.
    fn ease(&self) -> Vec<f32> {
        let means = self.means(&|_| true);
        let shared: Vec<usize> = (0..self.columns.len())
            .filter(|c| means.iter().all(|row| !row[*c].is_nan()))
            .collect();
        let base: Vec<f32> = means
            .iter()
            .map(|row| mean(&shared.iter().map(|c| row[*c]).collect::<Vec<f32>>()))
            .collect();
        let deviation = |row: usize| {
            let domain = &means[self.domain[row]];
            let own: Vec<f32> = (0..self.columns.len())
                .filter_map(|column| Some(self.value(row, column)? - domain[column]))
                .collect();
            mean(&own)
        };
        (0..self.outcomes.len())
            .map(|row| base[self.domain[row]] + deviation(row))
            .collect()
    }

    /// What words are asked to tell of outcomes where few models were recorded: each model's own.
    pub(super) fn word_targets(&self) -> Vec<Vec<f32>> {
        if self.columns.len() > FEW {
            return Vec::new();
        }
        let rows = 0..self.outcomes.len();
        let of = |column| {
            centred(
                rows.clone()
                    .map(|row| self.value(row, column).unwrap_or(0.5))
                    .collect(),
            )
        };
        (0..self.columns.len()).map(of).collect()
    }

    /// What letters are asked to tell: ease.
    pub(super) fn letter_target(&self) -> Vec<f32> {
        centred(self.ease())
    }
}

fn centred(values: Vec<f32>) -> Vec<f32> {
    let middle = mean(&values);
    values.into_iter().map(|value| value - middle).collect()
}

/// With more models than this, their common ease says more than each alone.
const FEW: usize = 4;

/// Rows at the family's mean that each domain's rates are mixed with.
const PSEUDO_ROWS: f32 = 10.0;

pub(super) fn fit(rows: &Rows, inputs: &Inputs, recipe: Recipe) -> Family {
    let all: Vec<usize> = (0..rows.outcomes.len()).collect();
    let ease = rows.ease();
    let mut held_out: Vec<Option<Held>> = (0..all.len()).map(|_| None).collect();
    for out in 0..recipe.folds {
        let keep: Vec<usize> = all
            .iter()
            .copied()
            .filter(|row| inputs.fold[*row] != out)
            .collect();
        let part = estimators(rows, inputs, &ease, &keep, recipe);
        for row in all.iter().copied().filter(|row| inputs.fold[*row] == out) {
            let dense = &inputs.dense[row];
            let by_line = part
                .eases(dense, &part.scale.apply(dense))
                .first()
                .copied()
                .unwrap_or_default();
            let by_letters = inputs.letters.map_or(0.0, |at| dense[at]);
            let parts = part.parts(dense, &inputs.shares[row]).by_part;
            held_out[row] = Some(Held {
                by_line: by_line + part.ease_mean,
                by_letters,
                parts,
            });
        }
    }
    let mut family = estimators(rows, inputs, &ease, &all, recipe);
    let held_out: Vec<Held> = held_out.into_iter().flatten().collect();
    if held_out.len() == all.len() {
        let share = if inputs.letters.is_some() {
            recipe.letters_share
        } else {
            0.0
        };
        family.letters = inputs.letters.map(|at| (at as u16, share));
        let eases: Vec<f32> = held_out
            .iter()
            .map(|held| held.ease(share, family.ease_mean))
            .collect();
        family.slopes = slopes(rows, &eases);
        family.mixture = mixture(rows, held_out, &eases, &family);
    }
    family
}

/// Answers for a row by estimators that had not seen it.
struct Held {
    by_line: f32,
    /// A deviation from the mean.
    by_letters: f32,
    parts: [Vec<f32>; PARTS],
}

impl Held {
    /// As a deviation from the mean.
    fn ease(&self, letters_share: f32, ease_mean: f32) -> f32 {
        (1.0 - letters_share) * (self.by_line - ease_mean) + letters_share * self.by_letters
    }
}

/// Everything but slopes learned on held-out rows and the mixture.
fn estimators(rows: &Rows, inputs: &Inputs, ease: &[f32], keep: &[usize], recipe: Recipe) -> Family {
    let raw: Vec<Vec<f32>> = keep.iter().map(|row| inputs.dense[*row].clone()).collect();
    let scale = Scale::of(&raw);
    let scaled: Vec<Vec<f32>> = raw.iter().map(|row| scale.apply(row)).collect();
    let counted: Vec<Vec<f32>> = scaled.iter().map(|row| row[..features::COUNT].to_vec()).collect();
    let own: Vec<f32> = keep.iter().map(|row| ease[*row]).collect();
    let ease_mean = mean(&own);
    let targets: Vec<Vec<f32>> = own.iter().map(|e| vec![e - ease_mean]).collect();
    let line = |replicate: usize| -> Vec<f32> {
        let weights = match replicate {
            0 => vec![1.0; keep.len()],
            _ => resampled(keep.len(), recipe.seed + replicate as u64),
        };
        ridge(&counted, &targets, &weights, recipe.ease_penalty)
            .into_iter()
            .flatten()
            .collect()
    };
    let growth = Growth {
        trees: recipe.trees,
        leaf: recipe.leaf,
        tries: scaled.first().map_or(1, Vec::len) / 4,
        seed: recipe.seed,
    };
    Family {
        columns: rows.columns.iter().map(|c| *c as u16).collect(),
        domains: rows.members.iter().map(|d| *d as u16).collect(),
        ease: (0..=recipe.replicates).map(line).collect(),
        letters: None,
        ease_mean,
        slopes: vec![(ease_mean, 1.0); rows.columns.len()],
        direct: direct(rows, &counted, keep, recipe.direct_penalty),
        forest: Forest::grow(&scaled, &filled(rows, ease, keep), growth),
        rates: rates(rows, keep),
        mixture: vec![[1.0 / PARTS as f32; PARTS]; rows.columns.len()],
        lengths: lengths(rows, keep),
        scale,
    }
}

/// How often each row counts in a replicate: drawn with replacement.
fn resampled(count: usize, seed: u64) -> Vec<f32> {
    let mut draws = Draws::new(seed);
    let mut weights = vec![0.0; count];
    for _ in 0..count {
        weights[draws.below(count)] += 1.0;
    }
    weights
}

/// Outcomes by row and column, gaps filled by the domain's mean, or by ease where the model never met the domain.
fn filled(rows: &Rows, ease: &[f32], keep: &[usize]) -> Vec<Vec<f32>> {
    let kept: std::collections::HashSet<usize> = keep.iter().copied().collect();
    let means = rows.means(&|row| kept.contains(&row));
    let fill = |row: usize, column: usize| {
        let known = means[rows.domain[row]][column];
        if known.is_nan() {
            ease[row].clamp(0.0, 1.0)
        } else {
            known
        }
    };
    let of_row = |row: &usize| {
        (0..rows.columns.len())
            .map(|c| rows.value(*row, c).unwrap_or_else(|| fill(*row, c)))
            .collect()
    };
    keep.iter().map(of_row).collect()
}

/// A line and a constant for each column.
fn direct(rows: &Rows, counted: &[Vec<f32>], keep: &[usize], penalty: f64) -> Vec<(Vec<f32>, f32)> {
    let of = |column: usize| {
        let known: Vec<(usize, f32)> = keep
            .iter()
            .enumerate()
            .filter_map(|(at, row)| Some((at, rows.value(*row, column)?)))
            .collect();
        let values: Vec<f32> = known.iter().map(|(_, value)| *value).collect();
        let own: Vec<Vec<f32>> = known.iter().map(|(at, _)| counted[*at].clone()).collect();
        // The rows of one column need not be centred where the family is.
        let centre = Scale::of(&own).mean;
        let middle = mean(&values);
        let off: Vec<Vec<f32>> = own
            .iter()
            .map(|row| {
                row.iter()
                    .zip(&centre)
                    .map(|(value, mean)| value - mean)
                    .collect()
            })
            .collect();
        let targets: Vec<Vec<f32>> = values.iter().map(|value| vec![value - middle]).collect();
        let line: Vec<f32> = ridge(&off, &targets, &vec![1.0; off.len()], penalty)
            .into_iter()
            .flatten()
            .collect();
        let constant = middle - dot(&line, &centre);
        (line, constant)
    };
    (0..rows.columns.len()).map(of).collect()
}

fn rates(rows: &Rows, keep: &[usize]) -> Vec<(Vec<f32>, u32)> {
    let width = rows.columns.len();
    let mut sums = vec![vec![(0.0_f32, 0.0_f32); width]; rows.members.len()];
    let mut counts = vec![0_u32; rows.members.len()];
    let mut overall = vec![(0.0_f32, 0.0_f32); width];
    for row in keep {
        counts[rows.domain[*row]] += 1;
        for column in 0..width {
            if let Some(value) = rows.value(*row, column) {
                for slot in [&mut sums[rows.domain[*row]][column], &mut overall[column]] {
                    *slot = (slot.0 + value, slot.1 + 1.0);
                }
            }
        }
    }
    let rate = |(own, all): (&(f32, f32), &(f32, f32))| {
        (own.0 + PSEUDO_ROWS * all.0 / all.1.max(1.0)) / (own.1 + PSEUDO_ROWS)
    };
    sums.iter()
        .map(|row| row.iter().zip(&overall).map(rate).collect())
        .zip(counts)
        .collect()
}

/// Mean ln(1 + characters) of the answers, by column and domain.
fn lengths(rows: &Rows, keep: &[usize]) -> Vec<Vec<Option<f32>>> {
    let mut sums = vec![vec![(0.0_f32, 0.0_f32); rows.members.len()]; rows.columns.len()];
    for row in keep {
        for (column, outcome) in rows.outcomes[*row].iter().enumerate() {
            if let Some(characters) = outcome.and_then(|outcome| outcome.output_characters) {
                let slot = &mut sums[column][rows.domain[*row]];
                *slot = (slot.0 + characters as f32, slot.1 + 1.0);
            }
        }
    }
    let mean = |(sum, count): (f32, f32)| (count > 0.0).then(|| (sum / count).ln_1p());
    sums.into_iter()
        .map(|row| row.into_iter().map(mean).collect())
        .collect()
}

/// Each column's response to held-out ease, by least squares drawn a little towards slope 1.
fn slopes(rows: &Rows, eases: &[f32]) -> Vec<(f32, f32)> {
    let fit = |column: usize| {
        let points: Vec<(f32, f32)> = eases
            .iter()
            .enumerate()
            .filter_map(|(row, ease)| Some((*ease, rows.value(row, column)?)))
            .collect();
        let x = mean(&points.iter().map(|p| p.0).collect::<Vec<f32>>());
        let y = mean(&points.iter().map(|p| p.1).collect::<Vec<f32>>());
        let (mut xx, mut xy) = (0.0, 0.0);
        for point in &points {
            xx += (point.0 - x).powi(2);
            xy += (point.0 - x) * (point.1 - y);
        }
        let pull = 0.05 * xx + 1e-6;
        let slope = (xy + pull) / (xx + pull);
        (y - slope * x, slope)
    };
    (0..rows.columns.len()).map(fit).collect()
}

/// By column: the shares under which held-out outcomes, and their differences within a row, are predicted best.
fn mixture(rows: &Rows, mut held_out: Vec<Held>, eases: &[f32], family: &Family) -> Vec<[f32; PARTS]> {
    for (held, ease) in held_out.iter_mut().zip(eases) {
        held.parts[0] = family
            .slopes
            .iter()
            .map(|(at_mean, slope)| at_mean + slope * ease)
            .collect();
    }
    let mut mixture = family.mixture.clone();
    for group in recorded_together(rows) {
        let best = candidates()
            .map(|shares| (loss(rows, &held_out, &group, shares), shares))
            .fold((f64::MAX, [0.0; PARTS]), |best, next| {
                if next.0 < best.0 { next } else { best }
            });
        group.iter().for_each(|column| mixture[*column] = best.1);
    }
    mixture
}

/// All mixtures in tenths.
fn candidates() -> impl Iterator<Item = [f32; PARTS]> {
    const STEPS: usize = 10;
    let triples = (0..=STEPS).flat_map(|a| (0..=STEPS - a).map(move |b| (a, b)));
    triples.flat_map(|(a, b)| {
        (0..=STEPS - a - b)
            .map(move |c| [a, b, c, STEPS - a - b - c].map(|steps| steps as f32 / STEPS as f32))
    })
}

/// Columns by the rows on which they were recorded.
fn recorded_together(rows: &Rows) -> Vec<Vec<usize>> {
    let pattern = |column: usize| {
        rows.outcomes
            .iter()
            .map(|row| row[column].is_some())
            .collect::<Vec<bool>>()
    };
    let mut groups: Vec<(Vec<bool>, Vec<usize>)> = Vec::new();
    for column in 0..rows.columns.len() {
        let own = pattern(column);
        // A few gaps do not make another recording.
        let alike = |other: &[bool]| {
            let differing = own.iter().zip(other).filter(|(a, b)| a != b).count();
            20 * differing <= own.len()
        };
        match groups.iter_mut().find(|(other, _)| alike(other)) {
            Some((_, group)) => group.push(column),
            None => groups.push((own, vec![column])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

/// Squared error of the outcomes' differences from their row's mean, plus a tenth of the error of the means.
fn loss(rows: &Rows, held_out: &[Held], group: &[usize], shares: [f32; PARTS]) -> f64 {
    let mut total = 0.0;
    for (row, held) in held_out.iter().enumerate() {
        let (mut sum, mut squares, mut count) = (0.0_f64, 0.0_f64, 0.0_f64);
        for column in group {
            if let Some(value) = rows.value(row, *column) {
                let parts = held.parts.iter().zip(shares);
                let mixed: f32 = parts.map(|(part, share)| share * part[*column]).sum();
                let error = f64::from(value - mixed);
                sum += error;
                squares += error * error;
                count += 1.0;
            }
        }
        if count > 0.0 {
            total += (squares - sum * sum / count) + 0.1 * sum * sum / count;
        }
    }
    total
}
