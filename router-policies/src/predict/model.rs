//! The model file: what training found, and how it answers for one prompt.
//!
//! Owns: the parts of a model and their arithmetic. Refuses to know: training, files, policies. Invariants: nothing in
//! a model can be turned back into a prompt; an answer is finite whatever the prompt; probabilities lie in 0 … 1.
//!
//! Two stages. *Text*: hashed words → one score per domain of the training data and a few of outcome; hashed letters →
//! one score of ease per family; both linear. *Families*: counted features and those scores together (the dense vector)
//! → P(success) of each recorded model, by four small estimators whose mixture was chosen on prompts left out of their
//! training. A family is a set of domains on which the same models were recorded. A prompt belongs to the families
//! whose domains it resembles.

use super::features::{self, numbers};
use super::forest::Forest;
use super::linear::whiten;
use super::words::{Grain, Sparse};
use exchange::BackendClass;
use serde::{Deserialize, Serialize};

/// One recorded model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Column {
    pub model: String,
    pub class: BackendClass,
    /// For a model that reasons before it answers: the one that it would be without.
    #[serde(default)]
    pub thinks_beyond: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Model {
    /// What it was trained on, for people.
    pub about: String,
    pub columns: Vec<Column>,
    pub words: Linear,
    pub letters: Linear,
    /// How many of the word scores are those of domains; they come first.
    pub topics: u32,
    /// Softmax of the domain scores times this is P(domain).
    pub sharpness: f32,
    pub likeness: Likeness,
    pub families: Vec<Family>,
}

/// A hashed text → scores.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Linear {
    pub rarity: Vec<f32>,
    /// Buckets × outputs, each output in steps of its own `step`.
    pub weights: Vec<i8>,
    pub step: Vec<f32>,
    pub bias: Vec<f32>,
}

impl Linear {
    pub fn scores(&self, text: &Sparse) -> Vec<f32> {
        let outputs = self.step.len();
        let mut sums = vec![0.0_f32; outputs];
        for (bucket, weight) in &text.entries {
            let start = *bucket as usize * outputs;
            let row = self.weights.get(start..start + outputs).unwrap_or_default();
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += weight * f32::from(*value);
            }
        }
        let scaled = sums.iter().zip(&self.step).zip(&self.bias);
        scaled.map(|((sum, step), bias)| sum * step + bias).collect()
    }

    pub fn of(&self, grain: Grain, text: &str) -> Vec<f32> {
        self.scores(&Sparse::of(grain, text, &self.rarity))
    }
}

/// Means and deviations of the dense vector.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Scale {
    pub mean: Vec<f32>,
    pub deviation: Vec<f32>,
}

impl Scale {
    pub fn of(rows: &[Vec<f32>]) -> Self {
        let (length, count) = (rows.first().map_or(0, Vec::len), rows.len().max(1) as f64);
        let mut moments = vec![(0.0_f64, 0.0_f64); length];
        for row in rows {
            for ((sum, squares), value) in moments.iter_mut().zip(row) {
                *sum += f64::from(*value);
                *squares += f64::from(*value).powi(2);
            }
        }
        let deviation = |(sum, squares): &(f64, f64)| {
            let variance = squares / count - (sum / count).powi(2);
            // A feature that never varied says nothing where it varies for the first time.
            if variance > 1e-9 {
                variance.sqrt() as f32
            } else {
                1.0
            }
        };
        Self {
            deviation: moments.iter().map(deviation).collect(),
            mean: moments.iter().map(|(sum, _)| (sum / count) as f32).collect(),
        }
    }

    /// Deviations from the mean, held within ±4 so that no odd prompt leads a line far astray.
    pub fn apply(&self, row: &[f32]) -> Vec<f32> {
        let scaled = row.iter().zip(&self.mean).zip(&self.deviation);
        scaled
            .map(|((value, mean), deviation)| ((value - mean) / deviation).clamp(-4.0, 4.0))
            .collect()
    }
}

/// How far a prompt is from the domains of the training data, by its counted features.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Likeness {
    pub scale: Scale,
    /// Means of the domains, whitened by `lower`.
    pub centres: Vec<Vec<f32>>,
    /// Cholesky factor of the covariance within domains.
    pub lower: Vec<Vec<f64>>,
    /// Distances of training prompts, in falling order: the k-th is exceeded by a share `SHARES[k]` of them.
    pub tail: Vec<f32>,
    /// Highest P(domain) of training prompts, in rising order, at the same shares.
    pub doubt: Vec<f32>,
}

/// Shares of the training prompts at which the tails of likeness are kept.
pub(super) const SHARES: [f32; 12] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0,
];

/// A share of the training prompts this small is half familiar.
const HALF: f32 = 0.01;

/// A prompt whose domain is likelier than not is not doubtful, however sure training prompts were of theirs.
const SURE: f32 = 0.5;

impl Likeness {
    /// Squared distance to each domain.
    pub fn distances(&self, counted: &[f32]) -> Vec<f32> {
        let point = whiten(&self.lower, &self.scale.apply(counted));
        let to = |centre: &Vec<f32>| point.iter().zip(centre).map(|(a, b)| (a - b).powi(2)).sum();
        self.centres.iter().map(to).collect()
    }

    /// 0 … 1, a half where 1 % of the training prompts were as odd. `surest`: the highest P(domain), where the nearest
    /// domain is one that words were trained to tell.
    pub fn familiarity(&self, nearest: f32, surest: Option<f32>) -> f32 {
        let far = tail_share(&self.tail, |kept| nearest >= kept);
        let doubtful = surest.filter(|surest| *surest < SURE);
        let unsure = doubtful.map_or(1.0, |surest| tail_share(&self.doubt, |kept| surest <= kept));
        let share = far.min(unsure);
        share / (share + HALF)
    }
}

/// The share of training prompts at least as odd: the least kept share whose mark is reached, 0 beyond the first.
fn tail_share(marks: &[f32], reached: impl Fn(f32) -> bool) -> f32 {
    match marks.iter().position(|mark| reached(*mark)) {
        Some(0) => 0.0,
        Some(at) => SHARES.get(at).copied().unwrap_or(1.0),
        None => 1.0,
    }
}

/// What is known of models recorded on the same domains.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Family {
    /// Indices of the model's columns, in the order of everything below.
    pub columns: Vec<u16>,
    /// Indices of the domains in the order of the topic scores and of the centres.
    pub domains: Vec<u16>,
    /// Of the dense vector within the family.
    pub scale: Scale,
    /// Lines from counted features to how easy the prompt is for all of the models together. The first is from all rows,
    /// the others from rows drawn with replacement: their disagreement is the line's uncertainty.
    pub ease: Vec<Vec<f32>>,
    /// Place of the family's letter score in the dense vector, and its share in the ease.
    pub letters: Option<(u16, f32)>,
    pub ease_mean: f32,
    /// By column: P at mean ease and its change with ease.
    pub slopes: Vec<(f32, f32)>,
    /// A line of counted features for each column alone, and its constant.
    pub direct: Vec<(Vec<f32>, f32)>,
    pub forest: Forest,
    /// Domains × columns, and the rows behind each.
    pub rates: Vec<(Vec<f32>, u32)>,
    /// By column: shares of ease, direct, forest and rates in the mixture.
    pub mixture: Vec<[f32; PARTS]>,
    /// By column and domain: ln(1 + output characters), where recorded.
    pub lengths: Vec<Vec<Option<f32>>>,
}

/// By column of a family.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The mixture as it comes. A line may leave 0 … 1, where it still tells which prompt is the easier.
    pub leaning: Vec<f32>,
    /// Standard error of P(success).
    pub error: Vec<f32>,
}

/// Ease, direct, forest, rates.
pub(super) const PARTS: usize = 4;

/// Each estimator's P(success) by column, and of the ease its disagreement among replicates.
pub struct Parts {
    pub by_part: [Vec<f32>; PARTS],
    pub spread: Vec<f32>,
}

impl Family {
    /// How easy the prompt is, as a deviation from the family's mean, by each of the lines.
    pub fn eases(&self, row: &[f32], scaled: &[f32]) -> Vec<f32> {
        let letters = self
            .letters
            .and_then(|(at, share)| Some((row.get(usize::from(at))?, share)));
        let (score, share) = letters.map_or((0.0, 0.0), |(score, share)| (*score, share));
        self.ease
            .iter()
            .map(|line| (1.0 - share) * dot(line, scaled) + share * score)
            .collect()
    }

    /// `row`: a dense vector; `domains`: P(domain) over all domains of the model.
    pub fn parts(&self, row: &[f32], domains: &[f32]) -> Parts {
        let scaled = self.scale.apply(row);
        let eases = self.eases(row, &scaled);
        let ease = eases.first().copied().unwrap_or_default();
        let spread =
            (eases.iter().map(|e| (e - ease).powi(2)).sum::<f32>() / eases.len().max(1) as f32).sqrt();
        // Domains without a word score of their own count by their rows.
        let rows = self.rates.iter().map(|(_, rows)| *rows as f32 * 1e-9);
        let own: Vec<f32> = self
            .domains
            .iter()
            .zip(rows)
            .map(|(at, rows)| domains.get(usize::from(*at)).copied().unwrap_or(0.0) + rows)
            .collect();
        let total: f32 = own.iter().sum::<f32>().max(1e-12);
        let mut rates = vec![0.0; self.columns.len()];
        for (share, (domain, _)) in own.iter().zip(&self.rates) {
            rates
                .iter_mut()
                .zip(domain)
                .for_each(|(sum, rate)| *sum += share / total * rate);
        }
        Parts {
            by_part: [
                self.slopes
                    .iter()
                    .map(|(at_mean, slope)| at_mean + slope * ease)
                    .collect(),
                self.direct
                    .iter()
                    .map(|(line, constant)| constant + dot(line, &scaled))
                    .collect(),
                self.forest.ask(&scaled),
                rates,
            ],
            spread: self
                .slopes
                .iter()
                .map(|(_, slope)| (slope * spread).abs())
                .collect(),
        }
    }

    /// Expected characters of the answer, by column.
    pub fn output_characters(&self, domains: &[f32]) -> Vec<Option<f32>> {
        let expected = |lengths: &Vec<Option<f32>>| {
            let (mut sum, mut total) = (0.0, 0.0);
            for (at, length) in self.domains.iter().zip(lengths) {
                if let (Some(length), Some(share)) = (length, domains.get(usize::from(*at))) {
                    sum += (share + 1e-6) * length.exp_m1();
                    total += share + 1e-6;
                }
            }
            (total > 0.0).then(|| sum / total)
        };
        self.lengths.iter().map(expected).collect()
    }

    pub fn answer(&self, row: &[f32], domains: &[f32]) -> Answer {
        let parts = self.parts(row, domains);
        let rows: u32 = self.rates.iter().map(|(_, rows)| rows).sum();
        let mut answer = Answer::default();
        for (at, (spread, mixture)) in parts.spread.iter().zip(&self.mixture).enumerate() {
            let opinions = parts
                .by_part
                .iter()
                .zip(mixture)
                .map(|(part, share)| (part[at], share));
            let leaning: f32 = opinions.clone().map(|(p, share)| p * share).sum();
            let disagreement: f32 = opinions.map(|(p, share)| share * (p - leaning).powi(2)).sum();
            let p = leaning.clamp(0.02, 0.98);
            let sampling = p * (1.0 - p) / rows.max(1) as f32;
            answer.leaning.push(leaning);
            answer
                .error
                .push((disagreement + spread.powi(2) + sampling).sqrt());
        }
        answer
    }
}

impl Model {
    /// The dense vector: counted features, scores of words, scores of letters. Holds no text; safe to store.
    pub fn dense(&self, text: &str) -> Vec<f32> {
        let text = features::bounded(text);
        let mut row = numbers(&text).to_vec();
        row.extend(self.words.of(Grain::Words, &text));
        row.extend(self.letters.of(Grain::Letters, &text));
        row
    }
}

pub(super) fn softmax(scores: &[f32], sharpness: f32) -> Vec<f32> {
    let most = scores.iter().copied().fold(f32::MIN, f32::max);
    let raised: Vec<f32> = scores
        .iter()
        .map(|score| ((score - most) * sharpness).exp())
        .collect();
    let total: f32 = raised.iter().sum();
    raised.into_iter().map(|value| value / total).collect()
}

pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(super) fn mean(values: &[f32]) -> f32 {
    values.iter().sum::<f32>() / values.len().max(1) as f32
}
