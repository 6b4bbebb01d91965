//! The choice among models by what a right answer is worth.
//!
//! Owns: expected value less expected price, and what holds for unfamiliar prompts. Refuses to know: recorded outcomes
//! of the row at hand.
//!
//! A familiar prompt is judged by the predictor, an unfamiliar one by plain priors of the class, which is what the
//! route's default comes to. Nothing is read into a prompt of a kind never seen but whether it is formal (code,
//! mathematics), where thinking usually pays, or prose, where a good model without it usually does as well.

use super::rows::{Prices, Row};
use crate::predict::{Prediction, Predictor, features};
use exchange::BackendClass;

/// P(success) on a prompt of which nothing is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Priors {
    pub(super) cheap: f64,
    pub(super) local: f64,
    pub(super) frontier: f64,
    pub(super) thinking: f64,
}

impl Priors {
    pub(super) fn of(given: &[f64]) -> anyhow::Result<Self> {
        match *given {
            [cheap, local, frontier, thinking] => Ok(Self {
                cheap,
                local,
                frontier,
                thinking,
            }),
            _ => {
                anyhow::bail!("priors are four probabilities: of cheap, local, frontier and thinking models")
            }
        }
    }
}

pub(super) struct Chooser<'a> {
    pub(super) predictor: &'a Predictor,
    /// Of the predictor, by model.
    pub(super) columns: &'a [usize],
    pub(super) models: &'a [String],
    pub(super) prices: &'a Prices,
    pub(super) beliefs: Beliefs,
    pub(super) least_familiarity: f32,
}

impl Chooser<'_> {
    /// Index of the model to choose, for each value of a right answer in USD.
    pub(super) fn by_value(
        &self,
        row: &Row,
        prediction: &Prediction,
        values: &[String],
    ) -> anyhow::Result<Vec<usize>> {
        let mut costs = Vec::with_capacity(self.models.len());
        for (model, column) in self.models.iter().zip(self.columns) {
            costs.push(
                self.prices
                    .expected(row, model, prediction.output_characters[*column])?,
            );
        }
        let success: Vec<f64> = self
            .columns
            .iter()
            .map(|column| self.success(prediction, *column))
            .collect();
        let choose = |value: &String| -> anyhow::Result<usize> {
            let worth: f64 = value.parse()?;
            let utility = |model: usize| worth * success[model] - costs[model];
            Ok((1..costs.len()).fold(0, |best, model| {
                if utility(model) > utility(best) {
                    model
                } else {
                    best
                }
            }))
        };
        values.iter().map(choose).collect()
    }

    fn success(&self, prediction: &Prediction, column: usize) -> f64 {
        let known = prediction.columns[column].filter(|_| prediction.familiarity >= self.least_familiarity);
        known.map_or_else(
            || self.beliefs.of(self.predictor, prediction, column),
            |success| f64::from(success.p),
        )
    }
}

/// Priors for prose and for formal notation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beliefs {
    pub(super) prose: Priors,
    pub(super) formal: Priors,
}

impl Beliefs {
    fn of(&self, predictor: &Predictor, prediction: &Prediction, column: usize) -> f64 {
        let priors = if features::is_formal(&prediction.features) {
            self.formal
        } else {
            self.prose
        };
        let column = &predictor.model().columns[column];
        match column.class {
            _ if column.thinks_beyond.is_some() => priors.thinking,
            BackendClass::Frontier => priors.frontier,
            BackendClass::Cheap | BackendClass::Batch => priors.cheap,
            BackendClass::Local => priors.local,
        }
    }

    /// What the strong model is believed to gain on an unfamiliar prompt. The predictor's opinion only orders prompts
    /// of equal prior.
    pub(super) fn gain(&self, predictor: &Predictor, prediction: &Prediction, pair: (usize, usize)) -> f64 {
        let of = |column| self.of(predictor, prediction, column);
        of(pair.1) - of(pair.0) + 0.1 * prediction.gain(pair.0, pair.1)
    }
}
