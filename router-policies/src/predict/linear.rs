//! Ridge regression: dense, solved exactly, and sparse with many outputs, solved by conjugate gradients.
//!
//! Owns: the two solvers. Refuses to know: what rows and columns mean. Invariants: sums run in one order, so the same
//! input gives the same bits; a penalty above 0 makes every system solvable.

use super::words::{BUCKETS, Sparse};

/// Minimises `Σ w·(x·β − y)² + penalty·|β|²` for several outputs. `rows`: inputs of equal length; `targets`: one
/// vector of outputs a row; `weights`: how often a row counts. Answers β by input, then output.
pub(super) fn ridge(rows: &[Vec<f32>], targets: &[Vec<f32>], weights: &[f32], penalty: f64) -> Vec<Vec<f32>> {
    let inputs = rows.first().map_or(0, Vec::len);
    let outputs = targets.first().map_or(0, Vec::len);
    let mut gram = vec![vec![0.0_f64; inputs]; inputs];
    let mut moment = vec![vec![0.0_f64; outputs]; inputs];
    for ((row, target), weight) in rows.iter().zip(targets).zip(weights) {
        if *weight == 0.0 {
            continue;
        }
        for (i, x) in row.iter().enumerate() {
            let scaled = f64::from(x * weight);
            for (slot, other) in gram[i][..=i].iter_mut().zip(row) {
                *slot += scaled * f64::from(*other);
            }
            for (slot, y) in moment[i].iter_mut().zip(target) {
                *slot += scaled * f64::from(*y);
            }
        }
    }
    for (i, row) in gram.iter_mut().enumerate() {
        row[i] += penalty;
    }
    factor(&mut gram);
    substitute(&gram, &mut moment);
    moment
        .into_iter()
        .map(|row| row.into_iter().map(|value| value as f32).collect())
        .collect()
}

/// Cholesky: the lower triangle becomes L with `L·Lᵀ` = what it was.
pub(super) fn factor(lower: &mut [Vec<f64>]) {
    for i in 0..lower.len() {
        let (above, rest) = lower.split_at_mut(i);
        let Some(row) = rest.first_mut() else { return };
        for (j, other) in above.iter().enumerate() {
            let dot: f64 = row[..j].iter().zip(other).map(|(a, b)| a * b).sum();
            row[j] = (row[j] - dot) / other[j];
        }
        let dot: f64 = row[..i].iter().map(|a| a * a).sum();
        row[i] = (row[i] - dot).max(1e-12).sqrt();
    }
}

/// Solves `L·Lᵀ·x = b` in place, for each column of `b`.
fn substitute(lower: &[Vec<f64>], b: &mut [Vec<f64>]) {
    let subtract = |from: &mut [f64], factor: f64, what: &[f64]| {
        from.iter_mut()
            .zip(what)
            .for_each(|(slot, value)| *slot -= factor * value);
    };
    for (i, row) in lower.iter().enumerate() {
        let (solved, rest) = b.split_at_mut(i);
        let Some(own) = rest.first_mut() else { return };
        solved
            .iter()
            .zip(row)
            .for_each(|(other, factor)| subtract(own, *factor, other));
        own.iter_mut().for_each(|value| *value /= row[i]);
    }
    for i in (0..lower.len()).rev() {
        let (rest, solved) = b.split_at_mut(i + 1);
        let Some(own) = rest.last_mut() else { return };
        solved
            .iter()
            .zip(&lower[i + 1..])
            .for_each(|(other, row)| subtract(own, row[i], other));
        own.iter_mut().for_each(|value| *value /= lower[i][i]);
    }
}

/// `L⁻¹·x`: when L factors a covariance, distances between such vectors are Mahalanobis distances.
pub(super) fn whiten(lower: &[Vec<f64>], x: &[f32]) -> Vec<f32> {
    let mut solved: Vec<f64> = Vec::with_capacity(x.len());
    for (row, value) in lower.iter().zip(x) {
        let dot: f64 = row.iter().zip(&solved).map(|(a, b)| a * b).sum();
        let pivot = row.get(solved.len()).copied().unwrap_or(1.0);
        solved.push((f64::from(*value) - dot) / pivot);
    }
    solved.into_iter().map(|value| value as f32).collect()
}

/// Ridge on sparse rows by conjugate gradients, all outputs side by side. Targets should have mean 0. Stopping after
/// `steps` is itself a regularisation. Answers `BUCKETS` × outputs, row by row.
pub(super) fn sparse_ridge(rows: &[&Sparse], targets: &[Vec<f32>], penalty: f32, steps: usize) -> Vec<f32> {
    let outputs = targets.first().map_or(0, Vec::len);
    let flat: Vec<f32> = targets.iter().flatten().copied().collect();
    let mut residual = vec![0.0; BUCKETS * outputs];
    spread(rows, &flat, outputs, &mut residual);
    let mut solution = vec![0.0; residual.len()];
    let mut direction = residual.clone();
    let mut image = vec![0.0; flat.len()];
    let mut product = vec![0.0; residual.len()];
    let mut size = squares(&residual, outputs);
    for _ in 0..steps {
        gather(rows, &direction, outputs, &mut image);
        product
            .iter_mut()
            .zip(&direction)
            .for_each(|(p, d)| *p = penalty * d);
        spread(rows, &image, outputs, &mut product);
        let mut curvature = vec![0.0_f64; outputs];
        for (d, p) in direction.chunks(outputs).zip(product.chunks(outputs)) {
            for ((c, d), p) in curvature.iter_mut().zip(d).zip(p) {
                *c += f64::from(d * p);
            }
        }
        let step: Vec<f32> = size.iter().zip(&curvature).map(|(s, c)| ratio(*s, *c)).collect();
        advance(&mut solution, &direction, &step, 1.0);
        advance(&mut residual, &product, &step, -1.0);
        let next = squares(&residual, outputs);
        let keep: Vec<f32> = next.iter().zip(&size).map(|(n, s)| ratio(*n, *s)).collect();
        for (d, r) in direction.chunks_mut(outputs).zip(residual.chunks(outputs)) {
            for ((d, r), k) in d.iter_mut().zip(r).zip(&keep) {
                *d = r + k * *d;
            }
        }
        size = next;
    }
    solution
}

fn ratio(a: f64, b: f64) -> f32 {
    if b > 1e-20 { (a / b) as f32 } else { 0.0 }
}

fn advance(what: &mut [f32], along: &[f32], step: &[f32], sign: f32) {
    for (w, a) in what.chunks_mut(step.len()).zip(along.chunks(step.len())) {
        for ((w, a), s) in w.iter_mut().zip(a).zip(step) {
            *w += sign * s * a;
        }
    }
}

fn squares(values: &[f32], outputs: usize) -> Vec<f64> {
    let mut sums = vec![0.0_f64; outputs];
    for row in values.chunks(outputs.max(1)) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += f64::from(value * value);
        }
    }
    sums
}

/// `into += Aᵀ·values`.
fn spread(rows: &[&Sparse], values: &[f32], outputs: usize, into: &mut [f32]) {
    for (row, value) in rows.iter().zip(values.chunks(outputs.max(1))) {
        for (bucket, weight) in &row.entries {
            let start = *bucket as usize * outputs;
            for (slot, value) in into[start..start + outputs].iter_mut().zip(value) {
                *slot += weight * value;
            }
        }
    }
}

/// `into = A·values`.
fn gather(rows: &[&Sparse], values: &[f32], outputs: usize, into: &mut [f32]) {
    for (row, slots) in rows.iter().zip(into.chunks_mut(outputs.max(1))) {
        slots.fill(0.0);
        for (bucket, weight) in &row.entries {
            let start = *bucket as usize * outputs;
            for (slot, value) in slots.iter_mut().zip(&values[start..start + outputs]) {
                *slot += weight * value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_data_are_recovered() {
        let rows: Vec<Vec<f32>> = (0..20).map(|i| vec![i as f32, (i * i % 7) as f32, 1.0]).collect();
        let targets: Vec<Vec<f32>> = rows.iter().map(|r| vec![2.0 * r[0] - r[1] + 3.0, r[1]]).collect();
        let found = ridge(&rows, &targets, &[1.0; 20], 1e-9);
        for (row, expected) in found.iter().zip([[2.0, 0.0], [-1.0, 1.0], [3.0, 0.0]]) {
            for (value, expected) in row.iter().zip(expected) {
                assert!((value - expected).abs() < 1e-3, "{found:?}");
            }
        }
    }

    #[test]
    fn conjugate_gradients_reach_the_exact_solution() {
        let sparse: Vec<Sparse> = (0..12_u32)
            .map(|i| Sparse {
                entries: vec![(i % 3, 1.0), (3 + i % 4, 0.5 + i as f32 / 10.0)],
            })
            .collect();
        let dense: Vec<Vec<f32>> = sparse
            .iter()
            .map(|row| {
                let mut dense = vec![0.0; 7];
                row.entries
                    .iter()
                    .for_each(|(at, value)| dense[*at as usize] = *value);
                dense
            })
            .collect();
        let targets: Vec<Vec<f32>> = (0..12)
            .map(|i| vec![(i % 5) as f32 - 2.0, (i % 2) as f32])
            .collect();
        let exact = ridge(&dense, &targets, &[1.0; 12], 0.7);
        let rows: Vec<&Sparse> = sparse.iter().collect();
        let found = sparse_ridge(&rows, &targets, 0.7, 30);
        for (at, row) in exact.iter().enumerate() {
            for (output, value) in row.iter().enumerate() {
                assert!((value - found[at * 2 + output]).abs() < 1e-3);
            }
        }
    }

    #[test]
    fn whitened_lengths_are_those_of_the_covariance() {
        let mut lower = vec![vec![4.0, 0.0], vec![0.0, 9.0]];
        factor(&mut lower);
        let squares: f32 = whiten(&lower, &[2.0, 3.0])
            .iter()
            .map(|value| value * value)
            .sum();
        assert!((squares - 2.0).abs() < 1e-6);
    }
}
