//! Weights times activations.
//!
//! Every sum is taken in one order, block after block, whatever tokens share the call: an answer does not depend on its
//! company. A piece of work is a few groups of 16 rows for up to 64 tokens; several matrices with the same input are one
//! list of pieces, so that threads meet once.

#![expect(
    clippy::needless_range_loop,
    reason = "arrays of registers are indexed in step, which the compiler takes apart"
)]

use crate::activations::Activations;
use crate::formats::COLS;
use crate::lanes::{Isa, Lanes, dispatch};
use crate::ops::Activation;
use crate::pool::{Pool, Shared};
use crate::tiles::{Layout, Matrix, ROWS};
use std::ops::Range;

/// How far ahead of a tile memory is asked for: with several tokens a tile keeps the processor busy for longer than it
/// looks ahead by itself, and its own prefetching ends with each page of 4 KiB.
const AHEAD: usize = 4096;
/// Tokens of one piece of work.
const CHUNK: usize = 64;
/// Sums of 16 rows for the tokens of a piece.
type Sums = [[f32; ROWS]; CHUNK];

/// What becomes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It takes the place of what was there.
    Set,
    /// It is added to what was there.
    Add,
}

/// One matrix of a multiplication.
pub struct Part<'a> {
    pub matrix: &'a Matrix,
    /// One per row.
    pub bias: Option<&'a [f32]>,
    /// Tokens by rows.
    pub out: &'a mut [f32],
    pub mode: Mode,
}

/// The first half of a feed-forward layer: `activation(gate · x) · (up · x)`, or `activation(up · x)` without a gate.
pub struct Feed<'a> {
    pub gate: Option<&'a Matrix>,
    pub up: &'a Matrix,
    pub bias: Option<&'a [f32]>,
    pub activation: Activation,
}

/// How many groups of rows to take at a time: few enough that threads end together, enough that taking them costs
/// little beside doing them.
fn stride(groups: usize, threads: usize) -> usize {
    (groups / (threads * 8)).clamp(1, 16)
}

/// Multiplies several matrices by the same activations.
///
/// # Panics
/// When shapes do not fit.
pub fn multiply(pool: &mut Pool, x: &Activations, parts: &mut [Part<'_>]) {
    let tokens = x.tokens();
    let chunks = tokens.div_ceil(CHUNK);
    let mut pieces = 0;
    let plans: Vec<_> = parts
        .iter_mut()
        .map(|part| {
            let (rows, stride) = (part.matrix.rows(), stride(part.matrix.groups(), pool.threads()));
            assert!(
                part.matrix.columns() == x.columns()
                    && part.out.len() == tokens * rows
                    && part.bias.is_none_or(|bias| bias.len() == rows),
                "shapes must fit"
            );
            let first = pieces;
            pieces += part.matrix.groups().div_ceil(stride) * chunks;
            (
                first,
                stride,
                part.matrix,
                part.bias,
                Shared::new(part.out),
                part.mode,
            )
        })
        .collect();
    pool.run(pieces, &|piece| {
        let Some((first, stride, matrix, bias, out, mode)) =
            plans.iter().rev().find(|(first, ..)| *first <= piece)
        else {
            return;
        };
        let (part, chunk) = ((piece - first) / chunks, (piece - first) % chunks);
        let tokens = chunk * CHUNK..((chunk + 1) * CHUNK).min(tokens);
        let mut sums = [[0.0; ROWS]; CHUNK];
        for group in part * stride..((part + 1) * stride).min(matrix.groups()) {
            let (start, count) = (group * ROWS, ROWS.min(matrix.rows() - group * ROWS));
            group_sums(matrix, group, x, tokens.clone(), &mut sums);
            for (sums, token) in sums.iter_mut().zip(tokens.clone()) {
                if let Some(bias) = bias {
                    sums.iter_mut()
                        .zip(&bias[start..])
                        .for_each(|(sum, bias)| *sum += bias);
                }
                // SAFETY: no other piece has these rows of these tokens.
                let out = unsafe { out.slice(token * matrix.rows() + start, count) };
                match mode {
                    Mode::Set => out.copy_from_slice(&sums[..count]),
                    Mode::Add => out.iter_mut().zip(&*sums).for_each(|(out, sum)| *out += sum),
                }
            }
        }
    });
}

/// The first half of a feed-forward layer, ready to be multiplied by the second; `out` must have been reset to the
/// tokens of `x` and the rows of `up`.
///
/// # Panics
/// When shapes do not fit.
pub fn feed(pool: &mut Pool, x: &Activations, layer: &Feed<'_>, out: &mut Activations) {
    let (tokens, rows) = (x.tokens(), layer.up.rows());
    assert!(
        layer.up.columns() == x.columns()
            && (out.tokens(), out.columns()) == (tokens, rows)
            && layer
                .gate
                .is_none_or(|gate| (gate.rows(), gate.columns()) == (rows, x.columns()))
            && layer.bias.is_none_or(|bias| bias.len() == rows),
        "shapes must fit"
    );
    let chunks = tokens.div_ceil(CHUNK);
    // Two groups are a block of the next multiply's columns.
    let blocks = rows.div_ceil(COLS);
    let stride = stride(blocks, pool.threads());
    let writer = out.rows();
    pool.run(blocks.div_ceil(stride) * chunks, &|piece| {
        let (part, chunk) = (piece / chunks, piece % chunks);
        let tokens = chunk * CHUNK..((chunk + 1) * CHUNK).min(tokens);
        let (mut ups, mut gates) = ([[0.0; ROWS]; CHUNK], [[0.0; ROWS]; CHUNK]);
        for block in part * stride..((part + 1) * stride).min(blocks) {
            for group in block * 2..(block * 2 + 2).min(layer.up.groups()) {
                let (start, count) = (group * ROWS, ROWS.min(rows - group * ROWS));
                group_sums(layer.up, group, x, tokens.clone(), &mut ups);
                if let Some(gate) = layer.gate {
                    group_sums(gate, group, x, tokens.clone(), &mut gates);
                }
                for (at, token) in tokens.clone().enumerate() {
                    let (up, gate) = (&mut ups[at], &mut gates[at]);
                    if let Some(bias) = layer.bias {
                        up.iter_mut()
                            .zip(&bias[start..])
                            .for_each(|(up, bias)| *up += bias);
                    }
                    let result = if layer.gate.is_some() {
                        layer.activation.apply(gate);
                        gate.iter_mut().zip(&*up).for_each(|(gate, up)| *gate *= up);
                        gate
                    } else {
                        layer.activation.apply(up);
                        up
                    };
                    // SAFETY: no other piece has these columns of these tokens.
                    let out = unsafe { writer.floats.slice(token * rows + start, count) };
                    out.copy_from_slice(&result[..count]);
                }
            }
            for token in tokens.clone() {
                // SAFETY: as above.
                unsafe { writer.round(token, block * COLS, COLS) };
            }
        }
    });
}

fn group_sums(matrix: &Matrix, group: usize, x: &Activations, tokens: Range<usize>, out: &mut Sums) {
    group_sums_in(
        Isa::current(),
        (matrix.layout, matrix.group(group)),
        x,
        tokens,
        out,
    );
}

fn group_sums_in(isa: Isa, tiles: (Layout, &[u8]), x: &Activations, tokens: Range<usize>, out: &mut Sums) {
    dispatch!(isa, sums_of_group(tiles: (Layout, &[u8]), x: &Activations, tokens: Range<usize>, out: &mut Sums))
}

#[inline(always)]
unsafe fn sums_of_group<L: Lanes>(
    (layout, tiles): (Layout, &[u8]),
    x: &Activations,
    tokens: Range<usize>,
    out: &mut Sums,
) {
    let mut done = 0;
    while done < tokens.len() {
        let left = (tokens.len() - done).min(L::BATCH);
        let first = tokens.start + done;
        let out = &mut out[done..];
        // Token counts as constants keep every sum in a register.
        // SAFETY: the caller's promise; each call checks its slices.
        done += unsafe {
            match left {
                8.. => sums_of_tokens::<L, 8>(layout, tiles, x, first, out),
                4..8 => sums_of_tokens::<L, 4>(layout, tiles, x, first, out),
                2..4 => sums_of_tokens::<L, 2>(layout, tiles, x, first, out),
                _ => sums_of_tokens::<L, 1>(layout, tiles, x, first, out),
            }
        };
    }
}

#[inline(always)]
unsafe fn sums_of_tokens<L: Lanes, const N: usize>(
    layout: Layout,
    tiles: &[u8],
    x: &Activations,
    first: usize,
    out: &mut [[f32; ROWS]],
) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        let sums = match layout {
            Layout::W4 => blocks::<L, 4, N>(tiles, x, first),
            Layout::W5 => blocks::<L, 5, N>(tiles, x, first),
            Layout::W6 => blocks::<L, 6, N>(tiles, x, first),
            Layout::W8 => blocks::<L, 8, N>(tiles, x, first),
            Layout::F16 => columns::<L, N>(tiles, x, first, |at, index| {
                L::load_f16(at.cast::<u16>().add(index))
            }),
            Layout::Bf16 => columns::<L, N>(tiles, x, first, |at, index| {
                L::load_bf16(at.cast::<u16>().add(index))
            }),
            Layout::F32 => columns::<L, N>(tiles, x, first, |at, index| L::load(at.cast::<f32>().add(index))),
        };
        for (out, sum) in out[..N].iter_mut().zip(sums) {
            L::store(out.as_mut_ptr(), sum);
        }
    }
    N
}

/// Columns 4·`part` and following, and the same 16 later.
#[inline(always)]
unsafe fn unpack<L: Lanes, const BITS: u32, const PART: usize>(tile: *const u8) -> (L::B, L::B) {
    // SAFETY: the caller's promise: a whole tile lies there.
    unsafe {
        L::prefetch(tile.wrapping_add(AHEAD + PART * 64));
        let packed = L::load_bytes(tile.add(PART * 64));
        if BITS == 8 {
            L::prefetch(tile.wrapping_add(AHEAD + PART * 64 + 256));
            return (packed, L::load_bytes(tile.add(PART * 64 + 256)));
        }
        let (low, high) = (L::left::<0>(packed, 15), L::right::<4>(packed, 15));
        if BITS == 5 {
            let bits = L::load_bytes(tile.add(256));
            let (first, second) = match PART {
                0 => (L::left::<4>(bits, 16), L::left::<0>(bits, 16)),
                1 => (L::left::<3>(bits, 16), L::right::<1>(bits, 16)),
                2 => (L::left::<2>(bits, 16), L::right::<2>(bits, 16)),
                _ => (L::left::<1>(bits, 16), L::right::<3>(bits, 16)),
            };
            return (L::or(low, first), L::or(high, second));
        }
        if BITS == 6 {
            let bits = L::load_bytes(tile.add(256 + PART / 2 * 64));
            let (first, second) = match PART % 2 {
                0 => (L::left::<4>(bits, 48), L::left::<2>(bits, 48)),
                _ => (L::left::<0>(bits, 48), L::right::<2>(bits, 48)),
            };
            return (L::or(low, first), L::or(high, second));
        }
        (low, high)
    }
}

/// One part of a tile times the same columns of N tokens.
#[inline(always)]
unsafe fn part<L: Lanes, const BITS: u32, const PART: usize, const N: usize>(
    tile: *const u8,
    (bytes, columns): (*const i8, usize),
    dots: &mut [[L::I; N]; 2],
) {
    // SAFETY: the caller's promise: a tile, and 32 bytes for each token.
    unsafe {
        let (low, high) = unpack::<L, BITS, PART>(tile);
        for token in 0..N {
            let at = bytes.add(token * columns + PART * 4).cast::<i32>();
            let (first, second) = (at.read_unaligned(), at.add(4).read_unaligned());
            if BITS == 6 {
                dots[0][token] = L::dot(dots[0][token], low, first);
                dots[1][token] = L::dot(dots[1][token], high, second);
            } else if BITS == 8 {
                dots[0][token] = L::dot_wide(dots[0][token], low, first);
                dots[0][token] = L::dot_wide(dots[0][token], high, second);
            } else {
                dots[0][token] = L::dot(dots[0][token], low, first);
                dots[0][token] = L::dot(dots[0][token], high, second);
            }
        }
    }
}

/// 16 rows of tiles times N tokens from `first` on.
#[inline(always)]
unsafe fn blocks<L: Lanes, const BITS: u32, const N: usize>(
    tiles: &[u8],
    x: &Activations,
    first: usize,
) -> [L::F; N] {
    let (size, after) = match BITS {
        4 => (320, 256),
        5 => (384, 320),
        6 => (448, 384),
        _ => (544, 512),
    };
    let (columns, count) = (x.columns(), x.columns() / COLS);
    assert!(
        tiles.len() == count * size && (first + N) * columns <= x.bytes.len(),
        "tiles and tokens must be there"
    );
    // SAFETY: just checked; scales, sums and offsets are as many as blocks of bytes. The rest is the caller's promise.
    unsafe {
        let bytes = x.bytes.as_ptr().add(first * columns);
        let scales = x.scales.as_ptr().add(first * count);
        let minimums = x.sums.as_ptr().add(first * count);
        let offsets = x.offsets.as_ptr().add(first * count);
        let mut sums = [L::splat(0.0); N];
        for block in 0..count {
            let tile = tiles.as_ptr().add(block * size);
            let mut dots = [[L::splat_int(0); N]; 2];
            if BITS == 6 || BITS == 8 && L::WIDE_ZERO != 0 {
                for token in 0..N {
                    let offset = &*offsets.add(token * count + block);
                    dots[0][token] = L::splat_int(if BITS == 8 { offset[2] } else { offset[0] });
                    dots[1][token] = L::splat_int(offset[1]);
                }
            }
            let here = (bytes.add(block * COLS), columns);
            part::<L, BITS, 0, N>(tile, here, &mut dots);
            part::<L, BITS, 1, N>(tile, here, &mut dots);
            part::<L, BITS, 2, N>(tile, here, &mut dots);
            part::<L, BITS, 3, N>(tile, here, &mut dots);
            L::prefetch(tile.wrapping_add(AHEAD + after));
            let scale = L::load_f16(tile.add(after).cast());
            for token in 0..N {
                let scaled = L::mul(scale, L::splat(*scales.add(token * count + block)));
                sums[token] = L::fma(scaled, L::to_float(dots[0][token]), sums[token]);
            }
            if BITS == 8 {
                continue;
            }
            let second = L::load_f16(tile.add(after + 32).cast());
            for token in 0..N {
                let at = token * count + block;
                sums[token] = if BITS == 6 {
                    let scaled = L::mul(second, L::splat(*scales.add(at)));
                    L::fma(scaled, L::to_float(dots[1][token]), sums[token])
                } else {
                    L::fma(second, L::splat(*minimums.add(at)), sums[token])
                };
            }
        }
        sums
    }
}

/// 16 rows of float weights times N tokens from `first` on; even and odd columns are summed apart.
#[inline(always)]
unsafe fn columns<L: Lanes, const N: usize>(
    tiles: &[u8],
    x: &Activations,
    first: usize,
    load: impl Fn(*const u8, usize) -> L::F,
) -> [L::F; N] {
    let columns = x.columns();
    assert!((first + N) * columns <= x.floats.len(), "tokens must be there");
    // SAFETY: just checked; a group of rows has 16 weights for each column. The rest is the caller's promise.
    unsafe {
        let floats = x.floats.as_ptr().add(first * columns);
        let mut sums = [[L::splat(0.0); N]; 2];
        for column in 0..columns {
            let weights = load(tiles.as_ptr(), column * ROWS);
            for token in 0..N {
                let value = L::splat(*floats.add(token * columns + column));
                let sum = &mut sums[column % 2][token];
                *sum = L::fma(weights, value, *sum);
            }
        }
        std::array::from_fn(|token| L::add(sums[0][token], sums[1][token]))
    }
}
