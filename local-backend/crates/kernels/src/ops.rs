//! The small operations between the multiplies, one token at a time.

use crate::lanes::{Isa, Lanes, dispatch, exp};

/// How a norm scales a token.
#[derive(Clone, Debug)]
pub enum Norm {
    /// Over the root mean square, times a weight.
    Rms { weight: Vec<f32>, epsilon: f32 },
    /// To mean 0 and variance 1, times a weight, plus a bias.
    Layer {
        weight: Vec<f32>,
        bias: Vec<f32>,
        epsilon: f32,
    },
}

impl Norm {
    /// Elements that are normed together.
    #[must_use]
    pub fn width(&self) -> usize {
        match self {
            Self::Rms { weight, .. } | Self::Layer { weight, .. } => weight.len(),
        }
    }

    /// `out` = the norm of `x`; both have the norm's width.
    ///
    /// # Panics
    /// When the widths differ.
    pub fn apply(&self, x: &[f32], out: &mut [f32]) {
        assert!(
            x.len() == self.width() && out.len() == x.len(),
            "a norm has one width"
        );
        let norm = self;
        dispatch!(Isa::current(), norm_row(norm: &Norm, x: &[f32], out: &mut [f32]));
    }

    /// Norms every piece of the norm's width in place.
    pub fn apply_each(&self, x: &mut [f32]) {
        for piece in x.chunks_exact_mut(self.width()) {
            let before = piece.to_vec();
            self.apply(&before, piece);
        }
    }
}

/// The sum of `term` over a slice, in sixteen running sums that are added by halves.
#[inline(always)]
fn sum_of(x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0f32; 16];
    let (whole, rest) = x.as_chunks::<16>();
    for x in whole {
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum += term(*x);
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *sum += term(*x);
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
    }
    sums[0]
}

// The compiler turns these loops into whatever instructions the caller has enabled.
#[inline(always)]
unsafe fn norm_row<L: Lanes>(norm: &Norm, x: &[f32], out: &mut [f32]) {
    let count = x.len() as f32;
    match norm {
        Norm::Rms { weight, epsilon } => {
            let scale = 1.0 / (sum_of(x, |x| x * x) / count + epsilon).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                *out = x * scale * weight;
            }
        }
        Norm::Layer {
            weight,
            bias,
            epsilon,
        } => {
            let mean = sum_of(x, |x| x) / count;
            let variance = sum_of(x, |x| (x - mean) * (x - mean)) / count;
            let scale = 1.0 / (variance + epsilon).sqrt();
            for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                *out = (x - mean) * scale * weight + bias;
            }
        }
    }
}

/// Which elements of a head are turned together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// Neighbours, as GGUF files of `llama` keep them.
    Neighbours,
    /// Element i of the first half with element i of the second.
    Halves,
}

/// Turns each head of one token; `cosines` and `sines` have one value for each pair of a head.
pub fn rotate(x: &mut [f32], pairs: Pairs, (cosines, sines): (&[f32], &[f32])) {
    let angles = (cosines, sines);
    dispatch!(Isa::current(), turn(x: &mut [f32], pairs: Pairs, angles: (&[f32], &[f32])));
}

#[inline(always)]
unsafe fn turn<L: Lanes>(x: &mut [f32], pairs: Pairs, (cosines, sines): (&[f32], &[f32])) {
    let half = cosines.len();
    for head in x.chunks_exact_mut(2 * half) {
        let angles = cosines.iter().zip(sines);
        match pairs {
            Pairs::Neighbours => {
                for (pair, (cosine, sine)) in head.as_chunks_mut::<2>().0.iter_mut().zip(angles) {
                    let [a, b] = *pair;
                    *pair = [a * cosine - b * sine, a * sine + b * cosine];
                }
            }
            Pairs::Halves => {
                let (first, second) = head.split_at_mut(half);
                for ((a, b), (cosine, sine)) in first.iter_mut().zip(second).zip(angles) {
                    (*a, *b) = (*a * cosine - *b * sine, *a * sine + *b * cosine);
                }
            }
        }
    }
}

/// A feed-forward layer's bend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// GELU by the error function.
    GeluErf,
}

impl Activation {
    /// Applies it to sixteen values.
    pub fn apply(self, x: &mut [f32; 16]) {
        let kind = self;
        dispatch!(Isa::current(), bend(kind: Activation, x: &mut [f32; 16]));
    }
}

#[inline(always)]
unsafe fn bend<L: Lanes>(kind: Activation, x: &mut [f32; 16]) {
    // SAFETY: the caller's promise; `x` has 16 floats.
    unsafe {
        let value = L::load(x.as_ptr());
        let (one, square) = (L::splat(1.0), L::mul(value, value));
        let result = match kind {
            Activation::Silu => {
                let down = exp::<L>(L::mul(value, L::splat(-1.0)));
                L::div(value, L::add(one, down))
            }
            // (1 + tanh u) / 2 is the sigmoid of 2 u.
            Activation::GeluTanh => {
                let inner = L::fma(L::mul(square, value), L::splat(0.044_715), value);
                let down = exp::<L>(L::mul(inner, L::splat(-1.595_769)));
                L::div(value, L::add(one, down))
            }
            // Abramowitz and Stegun 7.1.26: within 1.5e-7 of the error function of |x| / √2.
            Activation::GeluErf => {
                let negative = L::mul(value, L::splat(-1.0));
                let size = L::mul(L::max(value, negative), L::splat(std::f32::consts::FRAC_1_SQRT_2));
                let t = L::div(one, L::fma(size, L::splat(0.327_591_1), one));
                let mut sum = L::splat(1.061_405_4);
                for factor in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
                    sum = L::fma(sum, t, L::splat(factor));
                }
                let tail = L::mul(L::mul(sum, t), exp::<L>(L::mul(square, L::splat(-0.5))));
                // x ≥ 0: x (1 − tail / 2); x < 0: x tail / 2.
                let half = L::mul(tail, L::splat(0.5));
                let above = L::fma(L::mul(half, L::splat(-1.0)), value, value);
                let is_above = L::keep_from(value, L::splat(0.0), one);
                let below = L::mul(L::mul(half, value), L::fma(is_above, L::splat(-1.0), one));
                L::fma(is_above, above, below)
            }
        };
        L::store(x.as_mut_ptr(), result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bends_are_the_functions_they_name() {
        for start in -40..40 {
            let x: [f32; 16] = std::array::from_fn(|at| (start * 16 + at as i32) as f32 / 64.0);
            for (kind, exact) in [
                (
                    Activation::Silu,
                    (|x: f64| x / (1.0 + (-x).exp())) as fn(f64) -> f64,
                ),
                (Activation::GeluTanh, |x| {
                    0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044715 * x * x * x)).tanh())
                }),
                (Activation::GeluErf, |x| {
                    0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2))
                }),
            ] {
                let mut out = x;
                kind.apply(&mut out);
                for (x, out) in x.iter().zip(out) {
                    let exact = exact(f64::from(*x));
                    assert!(
                        (f64::from(out) - exact).abs() < 2e-6,
                        "{kind:?} of {x}: {out}, not {exact}"
                    );
                }
            }
        }
    }

    /// The error function by its series.
    fn erf(x: f64) -> f64 {
        if x.abs() > 4.0 {
            return x.signum();
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        2.0 / std::f64::consts::PI.sqrt() * sum
    }

    #[test]
    fn norms_norm() {
        let x: Vec<f32> = (0..50).map(|at| (at * 7 % 13) as f32 - 3.0).collect();
        let mut out = vec![0.0; 50];
        let (weight, bias, epsilon) = (vec![2.0; 50], vec![1.0; 50], 1e-6);
        Norm::Rms {
            weight: weight.clone(),
            epsilon,
        }
        .apply(&x, &mut out);
        let square: f32 = out.iter().map(|value| value * value).sum();
        assert!((square / 50.0 - 4.0).abs() < 1e-4, "{square}");
        Norm::Layer {
            weight,
            bias,
            epsilon,
        }
        .apply(&x, &mut out);
        let mean = out.iter().sum::<f32>() / 50.0;
        assert!((mean - 1.0).abs() < 1e-5, "{mean}");
    }
}
