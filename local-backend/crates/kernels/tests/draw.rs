//! The one sampler, against its rules in f64.

use kernels::{Candidates, Draw};

#[path = "simt/kinds.rs"]
mod kinds;

/// The same rules in f64, with everything sorted; the random number a little moved.
fn exact(logits: &[f32], draw: &Draw, by: f64) -> usize {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: &f32| f64::from((logit - largest) / draw.temperature).exp();
    let mut kept: Vec<(f64, usize)> = logits.iter().map(weight).zip(0..).collect();
    kept.retain(|(weight, _)| *weight >= f64::from(draw.min_p));
    kept.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    if draw.top_k > 0 {
        kept.truncate(draw.top_k as usize);
    }
    if draw.top_p < 1.0 {
        let enough = kept.iter().map(|(weight, _)| weight).sum::<f64>() * f64::from(draw.top_p);
        let mut sum = 0.0;
        let count = kept.iter().take_while(|(weight, _)| {
            let before = sum;
            sum += weight;
            before < enough
        });
        let count = count.count().max(1);
        kept.truncate(count);
    }
    kept.sort_by_key(|(_, id)| *id);
    let mut point = (f64::from(draw.uniform()) + by) * kept.iter().map(|(weight, _)| weight).sum::<f64>();
    let found = kept.iter().find(|(weight, _)| {
        point -= weight;
        point < 0.0
    });
    found.unwrap_or(&kept[0]).1
}

#[test]
fn tokens_are_those_of_the_rules_in_f64() {
    // Some logits equal, so that ties are met by every cut; sizes around that of the block.
    for vocabulary in [1, 2, 511, 512, 513, 1531] {
        let logits: Vec<f32> = (0..vocabulary as u32)
            .map(|id| (id.wrapping_mul(2_654_435_761) >> 25) as f32 / 11.0)
            .collect();
        let mut candidates = Candidates::default();
        for kind in kinds::KINDS {
            for index in 0..40 {
                let draw = Draw {
                    seed: 77,
                    index,
                    ..kind
                };
                let token = draw.choose(&logits, &mut candidates) as usize;
                // Where it falls between two tokens, rounding may decide.
                let either = [-1e-6, 1e-6].map(|by| exact(&logits, &draw, by));
                assert!(
                    either.contains(&token),
                    "{draw:?} of {vocabulary}: {token}, not {either:?}"
                );
            }
        }
    }
}
