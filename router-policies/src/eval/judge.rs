//! How good predictions were: area under the curve of quality recovered, and utility against always one model.
//!
//! Owns: the two measures and their intervals, by the definitions of the routing data's own scorer. Refuses to know:
//! how scores and choices were made.

use super::rows::{Prices, Row};
use crate::predict::Draws;
use std::collections::BTreeMap;
use std::io::Write;

/// A row's score and the strong model's gain over the weak one: −1, 0 or 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scored {
    pub(super) score: f64,
    pub(super) gain: f64,
}

/// Area under the share of the quality gap recovered, over the share of rows sent to the strong model in falling order
/// of score; rows of equal score in random order. NaN where the strong model is no better.
pub(super) fn apgr(rows: &[Scored]) -> f64 {
    let mut rows = rows.to_vec();
    rows.sort_by(|a, b| b.score.total_cmp(&a.score));
    let total: f64 = rows.iter().map(|row| row.gain).sum();
    let (mut area, mut before) = (0.0, 0.0);
    for tied in rows.chunk_by(|a, b| a.score == b.score) {
        let after = before + tied.iter().map(|row| row.gain).sum::<f64>();
        area += tied.len() as f64 * (before + after) / 2.0;
        before = after;
    }
    if total > 0.0 {
        area / rows.len() as f64 / total
    } else {
        f64::NAN
    }
}

pub(super) struct Utility<'a> {
    pub(super) rows: &'a [Row],
    /// By row and value: index of the model.
    pub(super) chosen: &'a [Vec<usize>],
    pub(super) models: &'a [String],
    pub(super) prices: &'a Prices,
    pub(super) split: &'a str,
}

const RESAMPLES: usize = 2000;

impl Utility<'_> {
    /// A line a value: always each model, the policy, its lead over the best with a 95 % interval, the oracle.
    pub(super) fn report(&self, values: &[String], out: &mut dyn Write) -> anyhow::Result<()> {
        let judged: Vec<usize> = (0..self.rows.len())
            .filter(|at| {
                let row = &self.rows[*at];
                row.split == self.split && self.models.iter().all(|model| row.outcomes.contains_key(model))
            })
            .collect();
        if judged.is_empty() {
            writeln!(
                out,
                "no row of split {} has all of the models recorded",
                self.split
            )?;
            return Ok(());
        }
        write!(out, "{:>9}", "value")?;
        for model in self.models {
            write!(out, "  {:>14.14}", format!("always {model}"))?;
        }
        writeln!(
            out,
            "  {:>9}  {:>8} {:<20}  {:>9}  {:>8}  chosen",
            "policy", "lead", "[95 %]", "oracle", "of room"
        )?;
        for (at, value) in values.iter().enumerate() {
            self.line(&judged, at, value, out)?;
        }
        Ok(())
    }

    fn line(&self, judged: &[usize], at: usize, value: &str, out: &mut dyn Write) -> anyhow::Result<()> {
        let worth: f64 = value.parse()?;
        let mut utilities: Vec<Vec<f64>> = Vec::new();
        for row in judged.iter().map(|row| &self.rows[*row]) {
            let of = |model: &String| {
                let right = row
                    .outcomes
                    .get(model)
                    .is_some_and(|outcome| outcome.correct == 1);
                anyhow::Ok(1e3 * (if right { worth } else { 0.0 } - self.prices.cost(row, model)?))
            };
            utilities.push(self.models.iter().map(of).collect::<anyhow::Result<_>>()?);
        }
        let count = judged.len() as f64;
        let mean = |of: &dyn Fn(usize) -> f64| (0..judged.len()).map(of).sum::<f64>() / count;
        let always: Vec<f64> = (0..self.models.len())
            .map(|model| mean(&|row| utilities[row][model]))
            .collect();
        let best = (0..always.len()).fold(
            0,
            |best, model| if always[model] > always[best] { model } else { best },
        );
        let choice = |row: usize| self.chosen[judged[row]][at];
        let policy = mean(&|row| utilities[row][choice(row)]);
        let oracle = mean(&|row| utilities[row].iter().copied().fold(f64::MIN, f64::max));
        let lead: Vec<f64> = (0..judged.len())
            .map(|row| utilities[row][choice(row)] - utilities[row][best])
            .collect();
        let groups: Vec<&str> = judged.iter().map(|row| self.rows[*row].group()).collect();
        let (low, high) = interval(&lead, &groups);
        write!(out, "{value:>9}")?;
        for utility in &always {
            write!(out, "  {utility:>14.3}")?;
        }
        let room = 100.0 * (policy - always[best]) / (oracle - always[best]).max(1e-9);
        let interval = format!("[{low:+.3}, {high:+.3}]");
        write!(
            out,
            "  {policy:>9.3}  {:>+8.3} {interval:<20}  {oracle:>9.3}  {room:>6.0} %  ",
            policy - always[best]
        )?;
        let shares = (0..self.models.len()).map(|model| {
            let share = (0..judged.len()).filter(|row| choice(*row) == model).count() as f64 / count;
            format!("{:.0}", 100.0 * share)
        });
        writeln!(out, "{} %", shares.collect::<Vec<_>>().join(" / "))?;
        Ok(())
    }
}

/// Percentile bootstrap of the mean over groups, 95 %.
fn interval(values: &[f64], groups: &[&str]) -> (f64, f64) {
    let mut sums: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for (value, group) in values.iter().zip(groups) {
        let slot = sums.entry(group).or_default();
        *slot = (slot.0 + value, slot.1 + 1.0);
    }
    let sums: Vec<(f64, f64)> = sums.into_values().collect();
    let mut draws = Draws::new(0);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let (mut sum, mut count) = (0.0, 0.0);
            for _ in 0..sums.len() {
                let drawn = sums[draws.below(sums.len())];
                sum += drawn.0;
                count += drawn.1;
            }
            sum / count
        })
        .collect();
    means.sort_unstable_by(f64::total_cmp);
    (means[RESAMPLES / 40], means[RESAMPLES - 1 - RESAMPLES / 40])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(pairs: &[(f64, f64)]) -> Vec<Scored> {
        pairs
            .iter()
            .map(|(score, gain)| Scored {
                score: *score,
                gain: *gain,
            })
            .collect()
    }

    #[test]
    fn ties_are_worth_a_half_and_a_perfect_order_more() {
        assert_eq!(
            apgr(&scored(&[(0.0, 1.0), (0.0, 0.0), (0.0, 0.0), (0.0, 1.0)])),
            0.5
        );
        let perfect = apgr(&scored(&[(4.0, 1.0), (3.0, 1.0), (2.0, 0.0), (1.0, -1.0)]));
        assert_eq!(perfect, (0.5 + 1.5 + 2.0 + 1.5) / 4.0);
        assert!(apgr(&scored(&[(1.0, 0.0)])).is_nan());
    }

    #[test]
    fn intervals_hold_the_mean_and_follow_groups() {
        let values: Vec<f64> = (0..200).map(|i| f64::from(i % 4)).collect();
        let own: Vec<String> = (0..200).map(|i| i.to_string()).collect();
        let (low, high) = interval(&values, &own.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(low < 1.5 && high > 1.5 && high - low < 0.4, "{low} {high}");
        assert_eq!(interval(&values, &["one"; 200]), (1.5, 1.5));
    }
}
