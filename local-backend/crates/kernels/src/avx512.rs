//! AVX-512 with VNNI: sixteen rows to a register, four columns to an instruction.

use crate::tiles::{COLS, Quantized, ROWS, TOKENS, W4_TILE, W8_TILE};
use std::arch::x86_64::{
    __m256i, __m512, __m512i, _mm256_loadu_si256, _mm512_and_si512, _mm512_cvtepi32_ps, _mm512_cvtph_ps,
    _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps,
    _mm512_reduce_add_ps, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_srli_epi16, _mm512_storeu_ps,
};
use std::ops::Range;

/// Whether this processor has what the kernels use. The standard library keeps the answer.
pub(crate) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

/// Sixteen rows by some tokens.
///
/// # Safety
/// [`available`] must be true.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(crate) unsafe fn group(
    wide: bool,
    tiles: &[u8],
    x: &Quantized,
    tokens: Range<usize>,
    out: &mut [[f32; ROWS]; TOKENS],
) {
    let first = tokens.start;
    // Token counts as constants keep every accumulator in a register.
    match (wide, tokens.len()) {
        // SAFETY: the features are those of this function.
        (false, 1) => unsafe { narrow::<1>(tiles, x, first, out) },
        // SAFETY: as above.
        (false, 2) => unsafe { narrow::<2>(tiles, x, first, out) },
        // SAFETY: as above.
        (false, 8) => unsafe { narrow::<8>(tiles, x, first, out) },
        // SAFETY: as above.
        (true, 1) => unsafe { wide_group::<1>(tiles, x, first, out) },
        // SAFETY: as above.
        (true, 8) => unsafe { wide_group::<8>(tiles, x, first, out) },
        (wide, count) => {
            for (token, out) in out.iter_mut().enumerate().take(count) {
                let (rest, mut one) = (first + token, [[0.0; ROWS]; TOKENS]);
                // SAFETY: as above.
                unsafe {
                    if wide {
                        wide_group::<1>(tiles, x, rest, &mut one)
                    } else {
                        narrow::<1>(tiles, x, rest, &mut one)
                    }
                }
                *out = one[0];
            }
        }
    }
}

/// Four activations, repeated for every row.
#[inline]
#[target_feature(enable = "avx512f")]
fn four(values: &[i8], at: usize) -> __m512i {
    let bytes = [values[at], values[at + 1], values[at + 2], values[at + 3]].map(i8::cast_unsigned);
    _mm512_set1_epi32(i32::from_le_bytes(bytes))
}

/// Sixteen f16 as f32.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn halves(at: *const u8) -> __m512 {
    // SAFETY: the caller points at 32 bytes of a tile.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(at.cast::<__m256i>()) })
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn narrow<const N: usize>(tiles: &[u8], x: &Quantized, first: usize, out: &mut [[f32; ROWS]; TOKENS]) {
    let blocks = x.columns / COLS;
    let mask = _mm512_set1_epi8(15);
    let mut sums = [_mm512_setzero_ps(); N];
    for (block, tile) in tiles.chunks_exact(W4_TILE).enumerate() {
        let mut dots = [_mm512_setzero_si512(); N];
        for part in 0..4 {
            // SAFETY: four vectors of 64 bytes lie at the start of a tile.
            let packed = unsafe { _mm512_loadu_si512(tile.as_ptr().add(part * 64).cast()) };
            let low = _mm512_and_si512(packed, mask);
            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(packed), mask);
            for (token, dot) in dots.iter_mut().enumerate() {
                let at = ((first + token) * blocks + block) * COLS + part * 4;
                *dot = _mm512_dpbusd_epi32(*dot, low, four(&x.values, at));
                *dot = _mm512_dpbusd_epi32(*dot, high, four(&x.values, at + 16));
            }
        }
        // SAFETY: scales and minimums follow the nibbles, 32 bytes each.
        let (scale, minimum) = unsafe { (halves(tile.as_ptr().add(256)), halves(tile.as_ptr().add(288))) };
        for (token, (sum, dot)) in sums.iter_mut().zip(dots).enumerate() {
            let at = (first + token) * blocks + block;
            let scaled = _mm512_mul_ps(scale, _mm512_set1_ps(x.scales[at]));
            *sum = _mm512_fmadd_ps(scaled, _mm512_cvtepi32_ps(dot), *sum);
            *sum = _mm512_fmadd_ps(minimum, _mm512_set1_ps(x.sums[at]), *sum);
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        // SAFETY: a row of `out` is 16 floats.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn wide_group<const N: usize>(
    tiles: &[u8],
    x: &Quantized,
    first: usize,
    out: &mut [[f32; ROWS]; TOKENS],
) {
    let blocks = x.columns / COLS;
    let offset = _mm512_set1_ps(-128.0);
    let mut sums = [_mm512_setzero_ps(); N];
    for (block, tile) in tiles.chunks_exact(W8_TILE).enumerate() {
        let mut dots = [_mm512_setzero_si512(); N];
        for part in 0..8 {
            // SAFETY: eight vectors of 64 bytes lie at the start of a tile.
            let weights = unsafe { _mm512_loadu_si512(tile.as_ptr().add(part * 64).cast()) };
            for (token, dot) in dots.iter_mut().enumerate() {
                let at = ((first + token) * blocks + block) * COLS + part * 4;
                *dot = _mm512_dpbusd_epi32(*dot, weights, four(&x.values, at));
            }
        }
        // SAFETY: the scales follow the weights, 32 bytes.
        let scale = unsafe { halves(tile.as_ptr().add(512)) };
        let minimum = _mm512_mul_ps(offset, scale);
        for (token, (sum, dot)) in sums.iter_mut().zip(dots).enumerate() {
            let at = (first + token) * blocks + block;
            let scaled = _mm512_mul_ps(scale, _mm512_set1_ps(x.scales[at]));
            *sum = _mm512_fmadd_ps(scaled, _mm512_cvtepi32_ps(dot), *sum);
            *sum = _mm512_fmadd_ps(minimum, _mm512_set1_ps(x.sums[at]), *sum);
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        // SAFETY: a row of `out` is 16 floats.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
    }
}

/// The dot product of floats with f16; the length must be a multiple of 16.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn dot(a: &[f32], b: &[u16]) -> f32 {
    let mut sum = _mm512_setzero_ps();
    for (a, b) in a.chunks_exact(16).zip(b.chunks_exact(16)) {
        // SAFETY: both chunks have 16 elements.
        sum = unsafe { _mm512_fmadd_ps(_mm512_loadu_ps(a.as_ptr()), halves(b.as_ptr().cast()), sum) };
    }
    _mm512_reduce_add_ps(sum)
}

/// Adds `scale` times f16 values; the length must be a multiple of 16.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn add_scaled(out: &mut [f32], scale: f32, b: &[u16]) {
    let scale = _mm512_set1_ps(scale);
    for (out, b) in out.chunks_exact_mut(16).zip(b.chunks_exact(16)) {
        // SAFETY: both chunks have 16 elements.
        unsafe {
            let sum = _mm512_fmadd_ps(scale, halves(b.as_ptr().cast()), _mm512_loadu_ps(out.as_ptr()));
            _mm512_storeu_ps(out.as_mut_ptr(), sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pool;
    use crate::scalar;
    use crate::tiles::{Format, Matrix};

    /// Numbers that look random and are the same every time.
    fn noise(seed: u32) -> impl Iterator<Item = u32> {
        std::iter::successors(Some(seed), |state| {
            Some(state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223))
        })
        .map(|state| state >> 8)
    }

    fn weights(format: Format, rows: usize, columns: usize) -> Vec<u8> {
        let mut random = noise(7);
        let mut data = Vec::new();
        for _ in 0..rows * columns / COLS {
            let mut block: Vec<u8> = random
                .by_ref()
                .take(format.block_bytes())
                .map(|n| n as u8)
                .collect();
            block[..2].copy_from_slice(&half::f16::from_f32(0.01).to_le_bytes());
            if format == Format::Q4_1 {
                block[2..4].copy_from_slice(&half::f16::from_f32(-0.07).to_le_bytes());
            }
            data.extend(block);
        }
        data
    }

    #[test]
    fn products_equal_the_dequantized_ones_in_every_format_and_batch() {
        let (rows, columns) = (48, 96);
        for format in [Format::Q4_0, Format::Q4_1, Format::Q8_0] {
            let data = weights(format, rows, columns);
            let matrix = Matrix::new(format, &data, rows, columns);
            let mut plain = vec![0.0; rows * columns];
            format.dequantize(&data, &mut plain);
            let x: Vec<f32> = noise(3)
                .take(11 * columns)
                .map(|n| (n % 2000) as f32 / 1000.0 - 1.0)
                .collect();
            let mut pool = Pool::new(2);
            let mut batched = vec![0.0; 11 * rows];
            matrix.multiply(&mut pool, &Quantized::new(&x, columns), &mut batched);
            for token in 0..11 {
                let x = &x[token * columns..(token + 1) * columns];
                let mut alone = vec![0.0; rows];
                matrix.multiply(&mut pool, &Quantized::new(x, columns), &mut alone);
                assert_eq!(
                    alone,
                    &batched[token * rows..(token + 1) * rows],
                    "a batch changed a result"
                );
                for (row, value) in alone.iter().enumerate() {
                    let terms = plain[row * columns..].iter().zip(x).map(|(w, x)| w * x);
                    let (exact, size) = terms.fold((0.0f32, 0.0f32), |(sum, size), term| {
                        (sum + term, size + term.abs())
                    });
                    assert!((exact - value).abs() < 0.01 * size, "{format:?} {exact} {value}");
                }
            }
        }
    }

    #[test]
    fn vector_kernels_agree_with_the_scalar_ones() {
        if !available() {
            return;
        }
        let columns = 128;
        for format in [Format::Q4_1, Format::Q8_0] {
            let matrix = Matrix::new(format, &weights(format, ROWS, columns), ROWS, columns);
            let x: Vec<f32> = noise(5)
                .take(8 * columns)
                .map(|n| (n % 999) as f32 / 500.0 - 1.0)
                .collect();
            let x = Quantized::new(&x, columns);
            let (mut plain, mut vector) = ([[0.0; ROWS]; TOKENS], [[0.0; ROWS]; TOKENS]);
            scalar::group(matrix.wide, matrix.tiles(), &x, 0..8, &mut plain);
            // SAFETY: the features are there.
            unsafe { group(matrix.wide, matrix.tiles(), &x, 0..8, &mut vector) };
            assert_eq!(plain, vector);
        }
    }
}
