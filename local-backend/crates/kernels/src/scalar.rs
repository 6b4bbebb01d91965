//! The plain kernels: what the vector ones are tested against, and what runs where there are none.

use crate::tiles::{COLS, Quantized, ROWS, TOKENS, W4_TILE, W8_TILE};
use half::f16;
use std::ops::Range;

/// Sixteen rows by some tokens.
pub(crate) fn group(
    wide: bool,
    tiles: &[u8],
    x: &Quantized,
    tokens: Range<usize>,
    out: &mut [[f32; ROWS]; TOKENS],
) {
    let blocks = x.columns / COLS;
    let (tile_bytes, scales) = if wide { (W8_TILE, 512) } else { (W4_TILE, 256) };
    let half = |tile: &[u8], at: usize| f16::from_le_bytes([tile[at], tile[at + 1]]).to_f32();
    for (token, sums) in tokens.zip(out.iter_mut()) {
        *sums = [0.0; ROWS];
        for (block, tile) in tiles.chunks_exact(tile_bytes).enumerate() {
            let at = token * blocks + block;
            let values = &x.values[at * COLS..(at + 1) * COLS];
            for (row, sum) in sums.iter_mut().enumerate() {
                let mut dot = 0i32;
                for (column, value) in values.iter().enumerate() {
                    let weight = if wide {
                        tile[column / 4 * 64 + row * 4 + column % 4]
                    } else {
                        let byte = tile[(column % 16) / 4 * 64 + row * 4 + column % 4];
                        if column < 16 { byte & 15 } else { byte >> 4 }
                    };
                    dot += i32::from(weight) * i32::from(*value);
                }
                let scale = half(tile, scales + row * 2);
                let minimum = if wide {
                    -128.0 * scale
                } else {
                    half(tile, scales + 32 + row * 2)
                };
                let scaled = scale * x.scales[at];
                *sum = minimum.mul_add(x.sums[at], scaled.mul_add(dot as f32, *sum));
            }
        }
    }
}

pub(crate) fn dot(a: &[f32], b: &[u16]) -> f32 {
    a.iter()
        .zip(b)
        .map(|(a, b)| a * f16::from_bits(*b).to_f32())
        .sum()
}

pub(crate) fn add_scaled(out: &mut [f32], scale: f32, b: &[u16]) {
    for (out, b) in out.iter_mut().zip(b) {
        *out += scale * f16::from_bits(*b).to_f32();
    }
}
