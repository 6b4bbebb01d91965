//! The small operations between the multiplies.

use crate::scalar;

/// `out` = `x` over its root mean square, times `weight`; row by row.
pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    for (x, out) in x
        .chunks_exact(weight.len())
        .zip(out.chunks_exact_mut(weight.len()))
    {
        let square: f32 = x.iter().map(|value| value * value).sum();
        let scale = 1.0 / (square / x.len() as f32 + epsilon).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    }
}

/// Rotates neighbouring pairs of each head of one token: `angles` holds the cosine and sine of each pair.
pub fn rope(x: &mut [f32], angles: &[(f32, f32)]) {
    for head in x.chunks_exact_mut(2 * angles.len()) {
        for (pair, (cosine, sine)) in head.chunks_exact_mut(2).zip(angles) {
            let (a, b) = (pair[0], pair[1]);
            pair[0] = a * cosine - b * sine;
            pair[1] = a * sine + b * cosine;
        }
    }
}

/// `gate` = silu(`gate`) · `up`.
pub fn silu_multiply(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + (-*gate).exp()) * up;
    }
}

/// One head's attention of one query over the positions whose keys and values `cache` yields, in order: a softmax
/// taken as it goes, so that no list of scores is kept. `out` has the head's length.
pub fn attend<'a>(query: &[f32], cache: impl Iterator<Item = (&'a [u16], &'a [u16])>, out: &mut [f32]) {
    let scale = 1.0 / (query.len() as f32).sqrt();
    let (mut largest, mut sum) = (f32::NEG_INFINITY, 0.0f32);
    out.fill(0.0);
    for (key, value) in cache {
        let score = dot(query, key) * scale;
        if score > largest {
            let shrink = (largest - score).exp();
            sum *= shrink;
            out.iter_mut().for_each(|out| *out *= shrink);
            largest = score;
        }
        let weight = (score - largest).exp();
        sum += weight;
        add_scaled(out, weight, value);
    }
    out.iter_mut().for_each(|out| *out /= sum);
}

fn dot(a: &[f32], b: &[u16]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if a.len().is_multiple_of(16) && crate::avx512::available() {
        // SAFETY: the features were just found present.
        return unsafe { crate::avx512::dot(a, b) };
    }
    scalar::dot(a, b)
}

fn add_scaled(out: &mut [f32], scale: f32, b: &[u16]) {
    #[cfg(target_arch = "x86_64")]
    if out.len().is_multiple_of(16) && crate::avx512::available() {
        // SAFETY: the features were just found present.
        unsafe { crate::avx512::add_scaled(out, scale, b) };
        return;
    }
    scalar::add_scaled(out, scale, b);
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn attention_is_the_softmax_of_scores() {
        let bits = |values: &[f32]| {
            values
                .iter()
                .map(|value| f16::from_f32(*value).to_bits())
                .collect::<Vec<_>>()
        };
        let query: Vec<f32> = (0..16).map(|i| i as f32 / 8.0 - 1.0).collect();
        let keys: Vec<Vec<f32>> = (0..5)
            .map(|k| (0..16).map(|i| ((i * k) % 7) as f32 / 4.0).collect())
            .collect();
        let packed: Vec<_> = keys.iter().map(|key| bits(key)).collect();
        let mut out = vec![0.0; 16];
        attend(
            &query,
            packed.iter().map(|key| (key.as_slice(), key.as_slice())),
            &mut out,
        );
        let scores: Vec<f32> = keys
            .iter()
            .map(|key| (key.iter().zip(&query).map(|(a, b)| a * b).sum::<f32>() / 4.0).exp())
            .collect();
        let total: f32 = scores.iter().sum();
        for (at, value) in out.iter().enumerate() {
            let exact: f32 = keys
                .iter()
                .zip(&scores)
                .map(|(key, score)| key[at] * score / total)
                .sum();
            assert!((exact - value).abs() < 1e-4, "{exact} {value}");
        }
    }
}
