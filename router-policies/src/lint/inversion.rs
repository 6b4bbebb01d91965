//! Budget inversion: more valuable work on a weaker class than less valuable work.
//!
//! What is reported is the smallest set of workflows whose moving would put things right: all others stand in order
//! of worth (a longest non-decreasing subsequence). Of several smallest sets, the one with the most money at stake,
//! so that the under-served are named and not those who are served well.

use super::standing::{Standing, strength};
use exchange::{BackendClass, Money};
use serde::Serialize;
use std::sync::Arc;

/// One workflow out of order.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inversion {
    pub workflow: Arc<str>,
    /// In the document's list.
    pub position: usize,
    pub value: Money,
    pub class: BackendClass,
    /// The least valuable of those that a stronger class serves.
    pub less_valuable: Arc<str>,
    pub less_value: Money,
    pub stronger_class: BackendClass,
    /// How many less valuable workflows a stronger class serves.
    pub pairs: usize,
    /// What a month of answers by the weaker class loses: (value + failure cost) · the difference in P(success) ·
    /// requests.
    pub at_stake: Money,
    pub approved_by: Option<Arc<str>>,
}

/// How worth and class go together over all workflows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Inversions {
    pub inverted: Vec<Inversion>,
    /// Kendall's τ-b between worth and strength of class, 1 for perfect order; `None` with too few workflows.
    pub kendall_tau: Option<f64>,
}

pub(super) fn inversions(standings: &[Standing]) -> Inversions {
    let served: Vec<(&Standing, BackendClass)> = standings
        .iter()
        .filter_map(|one| Some((one, one.class?)))
        .collect();
    let kendall_tau = kendall_tau(&served);
    // Work that nothing stronger may serve is where it must be.
    let mut line: Vec<(&Standing, BackendClass)> = served
        .iter()
        .copied()
        .filter(|(one, class)| {
            let reach = one.within_reach.map_or(3, strength);
            reach == 3 || reach > strength(*class)
        })
        .collect();
    line.sort_by_key(|(one, class)| (one.value, strength(*class), one.position));
    let kept = in_order(&line);
    let mut inverted: Vec<Inversion> = line
        .iter()
        .zip(&kept)
        .filter(|(_, kept)| !**kept)
        .filter_map(|(one, _)| out_of_order(*one, &line))
        .collect();
    inverted.sort_by(|a, b| b.at_stake.cmp(&a.at_stake).then(a.position.cmp(&b.position)));
    Inversions {
        inverted,
        kendall_tau,
    }
}

/// The members of a longest non-decreasing subsequence, with the least money at stake among those kept.
fn in_order(line: &[(&Standing, BackendClass)]) -> Vec<bool> {
    let stakes: Vec<i128> = line
        .iter()
        .map(|one| i128::from(best_case(*one, line).map_or(0, |(.., stake)| stake.nanos())))
        .collect();
    let mut best: Vec<(usize, i128, Option<usize>)> = Vec::with_capacity(line.len());
    for (position, (_, class)) in line.iter().enumerate() {
        let before = (0..position).filter(|other| strength(line[*other].1) <= strength(*class));
        let chain = before.max_by_key(|other| (best[*other].0, -best[*other].1));
        let (length, stake) = chain.map_or((0, 0), |other| (best[other].0, best[other].1));
        best.push((length + 1, stake + stakes[position], chain));
    }
    let mut kept = vec![false; line.len()];
    let mut at = (0..line.len()).max_by_key(|position| (best[*position].0, -best[*position].1));
    while let Some(position) = at {
        kept[position] = true;
        at = best[position].2;
    }
    kept
}

/// The least valuable workflow that a stronger class serves, how many there are, and the money at stake.
fn best_case<'a>(
    (one, class): (&Standing, BackendClass),
    line: &[(&'a Standing, BackendClass)],
) -> Option<(&'a Standing, BackendClass, usize, Money)> {
    let reach = one.within_reach.map_or(3, strength);
    let stronger = line.iter().filter(|(other, above)| {
        other.value < one.value && (strength(class) + 1..=reach).contains(&strength(*above))
    });
    let least = stronger
        .clone()
        .min_by_key(|(other, _)| (other.value, other.position))?;
    let best = stronger
        .clone()
        .map(|(other, _)| other.success_ppm)
        .max()
        .unwrap_or(one.success_ppm);
    let gain = i128::from(best.saturating_sub(one.success_ppm));
    let worth = i128::from(one.value.plus(one.failure_cost).nanos());
    let nanos = worth * gain / 1_000_000 * i128::from(one.monthly_requests);
    let stake = Money::from_nanos(i64::try_from(nanos).unwrap_or(i64::MAX));
    Some((least.0, least.1, stronger.count(), stake))
}

fn out_of_order(
    (one, class): (&Standing, BackendClass),
    line: &[(&Standing, BackendClass)],
) -> Option<Inversion> {
    if let Some((other, above, pairs, at_stake)) = best_case((one, class), line) {
        return Some(Inversion {
            workflow: one.workflow.clone(),
            position: one.position,
            value: one.value,
            class,
            less_valuable: other.workflow.clone(),
            less_value: other.value,
            stronger_class: above,
            pairs,
            at_stake,
            approved_by: one.approved_by.clone(),
        });
    }
    // It is the one that is served too well: the most valuable of those below it is named as the one that suffers.
    let weaker = line
        .iter()
        .filter(|(other, below)| other.value > one.value && strength(*below) < strength(class));
    let (worst, below) = weaker
        .clone()
        .max_by_key(|(other, _)| (other.value, other.position))?;
    Some(Inversion {
        workflow: worst.workflow.clone(),
        position: worst.position,
        value: worst.value,
        class: *below,
        less_valuable: one.workflow.clone(),
        less_value: one.value,
        stronger_class: class,
        pairs: weaker.count(),
        at_stake: best_case((worst, *below), line).map_or(Money::ZERO, |(.., stake)| stake),
        approved_by: worst.approved_by.clone().or(one.approved_by.clone()),
    })
}

fn kendall_tau(served: &[(&Standing, BackendClass)]) -> Option<f64> {
    let (mut concordant, mut discordant, mut by_value, mut by_class) = (0_i64, 0_i64, 0_i64, 0_i64);
    for (position, (one, class)) in served.iter().enumerate() {
        for (other, other_class) in &served[position + 1..] {
            let value = one.value.cmp(&other.value);
            let strong = strength(*class).cmp(&strength(*other_class));
            by_value += i64::from(value.is_ne());
            by_class += i64::from(strong.is_ne());
            match (value.is_ne(), strong.is_ne()) {
                (true, true) if value == strong => concordant += 1,
                (true, true) => discordant += 1,
                _ => {}
            }
        }
    }
    let scale = (by_value as f64).sqrt() * (by_class as f64).sqrt();
    (scale > 0.0).then(|| (concordant - discordant) as f64 / scale)
}
