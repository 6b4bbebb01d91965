//! The learned part: how likely each class of backend is to answer a prompt rightly, what thinking adds, and whether
//! the prompt is of a kind that the model knows at all.
//!
//! Owns: the model file and what it says of one prompt. Refuses to know: policies, money, the clock; it keeps no
//! prompt. Invariants: an answer is a function of model and text; probabilities lie in 0 … 1; an unfamiliar prompt is
//! said to be unfamiliar rather than guessed at.
//!
//! What prompts tell about models is little and mostly their domain (see `model/README.md`). So the predictor is small,
//! says how unsure it is, and leaves the last word to the outcomes that users report.

pub mod correction;
mod draws;
mod family;
pub mod features;
mod forest;
mod linear;
mod model;
mod text;
pub mod train;
mod words;

pub use draws::Draws;
pub use model::{Column, Model};

use exchange::BackendClass;
use model::softmax;

/// The first bytes of a model file; the last of them is the version of the format.
const MAGIC: &[u8] = b"tollgate-predictor-1\n";

const SHIPPED: &[u8] = include_bytes!("../model/predictor.bin");

/// Divides differences of squared distance between families: below 1 would be surer than a Gaussian.
const GATE_WIDTH: f32 = 4.0;

/// A smaller share of common words than any of 11,522 training prompts had: another language. Counted features and
/// hashed letters are too much alike in languages of one script to tell.
const FEWEST_COMMON: f32 = 0.2;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(
        "not a predictor model of this version: it should begin with `tollgate-predictor-1`; train it anew with `policy train`"
    )]
    Format,
    #[error("the predictor model is damaged: {0}")]
    Damaged(#[from] postcard::Error),
    #[error("the predictor model contradicts itself: {0}")]
    Shape(&'static str),
}

/// A trained model, ready to answer.
#[derive(Clone, Debug)]
pub struct Predictor {
    model: Model,
    /// By column: mean P(success) over all that it was recorded on.
    usual: Vec<Option<f32>>,
}

/// P(success) with its standard error, both 0 … 1.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Success {
    pub p: f32,
    pub error: f32,
}

/// What the predictor says of one prompt.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// By column of the model; None where that model was never recorded on prompts of this kind.
    pub columns: Vec<Option<Success>>,
    /// P(success) before it is held within 0 … 1, by column: what to compare models by.
    pub leanings: Vec<Option<f32>>,
    /// Expected characters of the visible answer, by column.
    pub output_characters: Vec<Option<f32>>,
    /// 0 … 1; a half where 1 % of the training prompts were as odd. Below a half, do not rely on the rest.
    pub familiarity: f32,
    /// The dense vector: numbers only, safe to store, and what `policy train --from` learns from.
    pub features: Vec<f32>,
}

impl Prediction {
    /// How much likelier the strong column is to be right than the weak one; 0 where either is unknown.
    pub fn gain(&self, weak: usize, strong: usize) -> f64 {
        let leaning = |column: usize| self.leanings.get(column).copied().flatten().map(f64::from);
        leaning(strong)
            .zip(leaning(weak))
            .map_or(0.0, |(strong, weak)| strong - weak)
    }
}

impl Predictor {
    pub fn new(model: Model) -> Result<Self, LoadError> {
        check(&model)?;
        let usual = (0..model.columns.len())
            .map(|column| usual(&model, column))
            .collect();
        Ok(Self { model, usual })
    }

    /// Reads a model file.
    pub fn load(bytes: &[u8]) -> Result<Self, LoadError> {
        let body = bytes.strip_prefix(MAGIC).ok_or(LoadError::Format)?;
        Self::new(postcard::from_bytes(body)?)
    }

    /// The model that is shipped, trained on all recorded prompts.
    pub fn shipped() -> Result<Self, LoadError> {
        Self::load(SHIPPED)
    }

    /// The model file's bytes.
    pub fn save(&self) -> Result<Vec<u8>, LoadError> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(postcard::to_allocvec(&self.model)?);
        Ok(bytes)
    }

    pub const fn model(&self) -> &Model {
        &self.model
    }

    /// The column of a recorded model.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.model.columns.iter().position(|column| column.model == name)
    }

    /// `prompt`: what the user asks, without system prompt and templates.
    pub fn predict(&self, prompt: &str) -> Prediction {
        let mut prediction = self.predict_features(self.model.dense(prompt));
        let common = words::common_words(&features::bounded(prompt), &self.model.words.rarity);
        if common.is_some_and(|share| share < FEWEST_COMMON) {
            prediction.familiarity = 0.0;
        }
        prediction
    }

    /// The same from a stored vector. A vector of another length is filled up with zeros and unfamiliar.
    pub fn predict_features(&self, mut features: Vec<f32>) -> Prediction {
        let model = &self.model;
        let expected = features::COUNT + model.words.step.len() + model.letters.step.len();
        let fits = features.len() == expected && features.iter().all(|value| value.is_finite());
        if !fits {
            features = vec![0.0; expected];
        }
        let (counted, topics) = features.split_at(features::COUNT);
        let told = model.topics as usize;
        let shares = softmax(topics.get(..told).unwrap_or_default(), model.sharpness);
        let distances = model.likeness.distances(counted);
        let nearest = distances.iter().copied().fold(f32::MAX, f32::min);
        let told = distances.iter().take(told).any(|distance| *distance <= nearest);
        let surest = told.then(|| shares.iter().copied().fold(0.0, f32::max));
        let mut prediction = Prediction {
            columns: vec![None; model.columns.len()],
            leanings: vec![None; model.columns.len()],
            output_characters: vec![None; model.columns.len()],
            // Its counted features may be as usual, since nothing that they count is in it.
            familiarity: if fits && !features::is_foreign(counted) {
                model.likeness.familiarity(nearest, surest)
            } else {
                0.0
            },
            features: Vec::new(),
        };
        let mut weight = vec![0.0_f32; model.columns.len()];
        for family in &model.families {
            let own = family
                .domains
                .iter()
                .filter_map(|at| distances.get(usize::from(*at)));
            let gate = ((nearest - own.copied().fold(f32::MAX, f32::min)) / GATE_WIDTH).exp();
            blend(
                &mut prediction,
                &mut weight,
                gate,
                &FamilyView {
                    family,
                    shares: &shares,
                    features: &features,
                },
            );
        }
        prediction.features = features;
        prediction
    }
}

struct FamilyView<'a> {
    family: &'a model::Family,
    shares: &'a [f32],
    features: &'a [f32],
}

/// Mixes one family's answer into the prediction, in proportion to its gate.
fn blend(prediction: &mut Prediction, weight: &mut [f32], gate: f32, view: &FamilyView<'_>) {
    if gate < 1e-3 {
        return;
    }
    let answer = view.family.answer(view.features, view.shares);
    let lengths = view.family.output_characters(view.shares);
    for (at, column) in view.family.columns.iter().map(|at| usize::from(*at)).enumerate() {
        weight[column] += gate;
        let share = gate / weight[column];
        let mix = |slot: &mut Option<f32>, value: f32| {
            *slot = Some(slot.map_or(value, |old| old + share * (value - old)))
        };
        mix(&mut prediction.leanings[column], answer.leaning[at]);
        if let Some(length) = lengths[at] {
            mix(&mut prediction.output_characters[column], length);
        }
        let mut error = prediction.columns[column].map(|success| success.error);
        mix(&mut error, answer.error[at]);
        let p = prediction.leanings[column]
            .unwrap_or(0.5)
            .clamp(LEAST, 1.0 - LEAST);
        prediction.columns[column] = error.map(|error| Success { p, error });
    }
}

/// No prompt is certain to be answered rightly or wrongly.
const LEAST: f32 = 0.005;

/// What the predictor says of a class of backends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClassSuccess {
    pub class: BackendClass,
    /// Without thinking.
    pub success: Success,
    /// Mean P(success) of the same models over all that they were recorded on: the mark by which this prompt is easier
    /// or harder than usual.
    pub usual: f32,
    /// What thinking adds to P(success), where models with and without it were recorded on such prompts.
    pub thinking_gain: Option<Success>,
}

impl Predictor {
    /// Means over the recorded models of each class.
    pub fn classes(&self, prediction: &Prediction) -> Vec<ClassSuccess> {
        let gains = self.thinking_gains(prediction);
        let of = |class: BackendClass| {
            let columns = self
                .model
                .columns
                .iter()
                .zip(&prediction.columns)
                .zip(&self.usual);
            let (members, usual): (Vec<Success>, Vec<f32>) = columns
                .filter(|((column, _), _)| column.class == class && column.thinks_beyond.is_none())
                .filter_map(|((_, success), usual)| Some(((*success)?, (*usual)?)))
                .unzip();
            let success = average(&members)?;
            let own: Vec<Success> = gains
                .iter()
                .filter(|(c, _)| *c == class)
                .map(|(_, gain)| *gain)
                .collect();
            let any: Vec<Success> = gains.iter().map(|(_, gain)| *gain).collect();
            Some(ClassSuccess {
                class,
                success,
                usual: usual.iter().sum::<f32>() / usual.len() as f32,
                thinking_gain: average(&own).or_else(|| average(&any)),
            })
        };
        BackendClass::ALL.iter().filter_map(|class| of(*class)).collect()
    }

    fn thinking_gains(&self, prediction: &Prediction) -> Vec<(BackendClass, Success)> {
        let columns = self.model.columns.iter().zip(&prediction.columns);
        columns
            .filter_map(|(column, thinking)| {
                let plain = self.column(column.thinks_beyond.as_deref()?)?;
                let plain = (*prediction.columns.get(plain)?)?;
                let thinking = (*thinking)?;
                let gain = Success {
                    p: thinking.p - plain.p,
                    error: thinking.error.hypot(plain.error),
                };
                Some((column.class, gain))
            })
            .collect()
    }
}

/// Mean P(success) of one recorded model, its domains weighted by their rows.
fn usual(model: &Model, column: usize) -> Option<f32> {
    let (mut right, mut rows) = (0.0_f64, 0.0_f64);
    for family in &model.families {
        let Some(own) = family.columns.iter().position(|at| usize::from(*at) == column) else {
            continue;
        };
        for (rates, count) in &family.rates {
            right += f64::from(rates.get(own).copied().unwrap_or_default()) * f64::from(*count);
            rows += f64::from(*count);
        }
    }
    (rows > 0.0).then(|| (right / rows) as f32)
}

fn average(members: &[Success]) -> Option<Success> {
    let count = members.len() as f32;
    (count > 0.0).then(|| Success {
        p: members.iter().map(|s| s.p).sum::<f32>() / count,
        // Their errors go together, so that the mean is as unsure as its members.
        error: members.iter().map(|s| s.error).sum::<f32>() / count,
    })
}

/// Everything that the arithmetic takes for granted.
fn check(model: &Model) -> Result<(), LoadError> {
    let domains = model.likeness.centres.len();
    let counted = features::COUNT;
    let wrong = |what| Err(LoadError::Shape(what));
    let linear = |part: &model::Linear| {
        part.bias.len() == part.step.len() && part.weights.len() == part.rarity.len() * part.step.len()
    };
    if !linear(&model.words)
        || !linear(&model.letters)
        || model.topics as usize > domains.min(model.words.step.len())
    {
        return wrong("text");
    }
    let likeness = &model.likeness;
    let square = likeness.lower.len() == counted && likeness.lower.iter().all(|row| row.len() == counted);
    if !square || likeness.centres.iter().any(|centre| centre.len() != counted) {
        return wrong("likeness");
    }
    if model.likeness.tail.len() != model::SHARES.len() || model.likeness.doubt.len() != model::SHARES.len() {
        return wrong("likeness");
    }
    for family in &model.families {
        let columns = family.columns.len();
        let fits = family.slopes.len() == columns
            && family.direct.len() == columns
            && family.mixture.len() == columns
            && family.rates.len() == family.domains.len()
            && family.rates.iter().all(|(rates, _)| rates.len() == columns)
            && family.lengths.len() == columns
            && family
                .columns
                .iter()
                .all(|at| usize::from(*at) < model.columns.len())
            && family.domains.iter().all(|at| usize::from(*at) < domains)
            && family.forest.fits(columns);
        if !fits {
            return wrong("a family");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
