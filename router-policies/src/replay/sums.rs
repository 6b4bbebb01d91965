//! Totals of both sides and the intervals of their differences: a paired bootstrap over requests, with a fixed seed,
//! so that the same replay prints the same numbers.

use super::Side;
use crate::table::table;
use exchange::{Money, ValueTier};
use serde::Serialize;
use std::collections::BTreeMap;

const RESAMPLES: usize = 200;
/// Requests are resampled in so many blocks at most, so that the bootstrap's cost does not grow with the traffic.
const BLOCKS: usize = 500;

/// A 95 % interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Interval {
    pub from: f64,
    pub to: f64,
}

/// One quantity on both sides, and the interval of the difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Comparison {
    pub was: f64,
    pub is: f64,
    pub change: f64,
    pub change_95: Interval,
}

/// What a replay comes to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    pub requests: u64,
    pub flips: u64,
    /// Requests that this policy would ask the predictor about, and that were recorded without: decided here by priors.
    pub unpredicted: u64,
    /// Exact, in nano-dollars.
    pub money_was: Money,
    pub money_is: Money,
    /// Dollars.
    pub money: Comparison,
    pub budget_refusals: Comparison,
    pub refusals: Comparison,
    /// Mean milliseconds of a served request, expected or measured.
    pub latency_ms: Comparison,
    pub thinking_tokens: Comparison,
    /// Dollars of cached prefixes left behind.
    pub cache_lost: Comparison,
    /// Expected right answers, by the estimates that each decision had.
    pub successes: Comparison,
    /// The standard error of `successes.is` that comes from the estimates themselves, were they independent.
    pub successes_error: f64,
    /// (class before, class after) and how many requests; `-` is a refusal.
    pub class_shifts: BTreeMap<String, u64>,
    /// By value tier under the new policy: requests, dollars before, dollars after.
    pub by_value: BTreeMap<ValueTier, (u64, Money, Money)>,
}

/// What is added up, per block of requests: (was, is).
#[derive(Clone, Copy, Debug, Default)]
struct Block {
    requests: f64,
    cells: [(f64, f64); 7],
}

#[derive(Debug, Default)]
pub(super) struct Sums {
    summary: Summary,
    blocks: Vec<Block>,
    variance: f64,
}

impl Sums {
    pub(super) fn add(&mut self, value: ValueTier, (was, is): (&Side, &Side), is_flip: bool) {
        let summary = &mut self.summary;
        summary.flips += u64::from(is_flip);
        summary.money_was = summary.money_was.plus(was.money);
        summary.money_is = summary.money_is.plus(is.money);
        let class = |side: &Side| side.class.map_or("-", |class| class.as_str());
        let shift = format!("{} -> {}", class(was), class(is));
        *summary.class_shifts.entry(shift).or_default() += 1;
        let tier = summary.by_value.entry(value).or_default();
        *tier = (tier.0 + 1, tier.1.plus(was.money), tier.2.plus(is.money));
        let error = f64::from(is.error_ppm) / 1e6;
        self.variance += error * error;

        let dollars = |money: Money| money.nanos() as f64 / 1e9;
        let refused = |side: &Side| f64::from(u8::from(side.refused.is_some()));
        let broke = |side: &Side| {
            f64::from(u8::from(
                side.refused == Some(exchange::RefusalKind::BudgetExceeded),
            ))
        };
        let served_ms = |side: &Side| {
            if side.refused.is_some() {
                0.0
            } else {
                side.latency_ms as f64
            }
        };
        let both = |of: &dyn Fn(&Side) -> f64| (of(was), of(is));
        let cells = [
            both(&|side| dollars(side.money)),
            both(&broke),
            both(&refused),
            both(&served_ms),
            both(&|side| side.thinking_tokens as f64),
            both(&|side| dollars(side.cache_lost)),
            both(&|side| f64::from(side.success_ppm) / 1e6),
        ];
        let at = summary.requests as usize % BLOCKS;
        summary.requests += 1;
        if self.blocks.len() <= at {
            self.blocks.push(Block::default());
        }
        let block = &mut self.blocks[at];
        block.requests += 1.0;
        for (sum, cell) in block.cells.iter_mut().zip(cells) {
            *sum = (sum.0 + cell.0, sum.1 + cell.1);
        }
    }

    pub(super) fn unpredicted(&mut self) {
        self.summary.unpredicted += 1;
    }

    pub(super) fn summary(self) -> Summary {
        let Self {
            mut summary,
            blocks,
            variance,
        } = self;
        let served = |side: fn(&(f64, f64)) -> f64| {
            summary.requests as f64 - blocks.iter().map(|b| side(&b.cells[2])).sum::<f64>()
        };
        let (served_was, served_is) = (served(|cell| cell.0).max(1.0), served(|cell| cell.1).max(1.0));
        summary.money = compare(&blocks, 0, (1.0, 1.0));
        summary.budget_refusals = compare(&blocks, 1, (1.0, 1.0));
        summary.refusals = compare(&blocks, 2, (1.0, 1.0));
        summary.latency_ms = compare(&blocks, 3, (served_was, served_is));
        summary.thinking_tokens = compare(&blocks, 4, (1.0, 1.0));
        summary.cache_lost = compare(&blocks, 5, (1.0, 1.0));
        summary.successes = compare(&blocks, 6, (1.0, 1.0));
        summary.successes_error = variance.sqrt();
        summary
    }
}

/// Sums of one cell over all blocks, each side divided by its scale, with the interval of their difference.
fn compare(blocks: &[Block], cell: usize, scale: (f64, f64)) -> Comparison {
    let change = |block: &Block| block.cells[cell].1 / scale.1 - block.cells[cell].0 / scale.0;
    let was = blocks.iter().map(|block| block.cells[cell].0).sum::<f64>() / scale.0;
    let is = blocks.iter().map(|block| block.cells[cell].1).sum::<f64>() / scale.1;
    let mut draw = crate::decide::Draw::new(0x5eed);
    let mut sums: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let pick = |_| {
                let at = (draw.next() * blocks.len() as f64) as usize;
                blocks.get(at).map_or(0.0, change)
            };
            (0..blocks.len()).map(pick).sum()
        })
        .collect();
    sums.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| {
        sums.get(((RESAMPLES - 1) as f64 * share).round() as usize)
            .copied()
            .unwrap_or_default()
    };
    Comparison {
        was,
        is,
        change: is - was,
        change_95: Interval {
            from: at(0.025),
            to: at(0.975),
        },
    }
}

impl Summary {
    /// As text.
    pub fn text(&self) -> String {
        let row = |name: &str, one: &Comparison, decimals: usize| {
            vec![
                name.to_owned(),
                format!("{:.decimals$}", one.was),
                format!("{:.decimals$}", one.is),
                format!("{:+.decimals$}", one.change),
                format!(
                    "{:+.decimals$} … {:+.decimals$}",
                    one.change_95.from, one.change_95.to
                ),
            ]
        };
        let rows = [
            row("money, dollars", &self.money, 4),
            row("budget refusals", &self.budget_refusals, 0),
            row("refusals", &self.refusals, 0),
            row("mean latency, ms", &self.latency_ms, 0),
            row("thinking tokens", &self.thinking_tokens, 0),
            row("cache lost, dollars", &self.cache_lost, 4),
            row("expected right answers", &self.successes, 1),
        ];
        let mut out = format!(
            "{} requests, {} flips; money {} -> {}\n\n",
            self.requests, self.flips, self.money_was, self.money_is
        );
        out.push_str(&table(&["", "was", "is", "change", "95 %"], &rows));
        out.push_str(&format!(
            "the estimates themselves leave ± {:.1} right answers open\n\n",
            self.successes_error
        ));
        if self.unpredicted > 0 {
            out.push_str(&format!(
                "{} requests were recorded without a prediction that this policy would ask for: decided here by priors\n\n",
                self.unpredicted
            ));
        }
        let shifts: Vec<Vec<String>> = self
            .class_shifts
            .iter()
            .map(|(shift, count)| vec![shift.clone(), count.to_string()])
            .collect();
        out.push_str(&table(&["class", "requests"], &shifts));
        out.push('\n');
        let tiers: Vec<Vec<String>> = self
            .by_value
            .iter()
            .map(|(tier, (count, was, is))| {
                vec![
                    tier.to_string(),
                    count.to_string(),
                    was.to_string(),
                    is.to_string(),
                ]
            })
            .collect();
        out.push_str(&table(&["value", "requests", "was", "is"], &tiers));
        out
    }
}
