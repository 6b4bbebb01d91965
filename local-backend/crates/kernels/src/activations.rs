//! What a matrix is multiplied by: several tokens' activations, as floats or rounded to eight bits in blocks of 32.

use crate::formats::COLS;
use crate::lanes::{Isa, Lanes, dispatch};
use crate::pool::{Pool, Shared};
use crate::tiles::Precision;

/// Activations of some tokens, all of one width.
#[derive(Clone, Debug, Default)]
pub struct Activations {
    tokens: usize,
    columns: usize,
    is_rounded: bool,
    /// Tokens by columns.
    pub(crate) floats: Vec<f32>,
    /// Tokens by columns, between −127 and 127.
    pub(crate) bytes: Vec<i8>,
    /// One per block.
    pub(crate) scales: Vec<f32>,
    /// Scale times the sum of the block's bytes: what a minimum is multiplied by.
    pub(crate) sums: Vec<f32>,
    /// What to add where weights mean themselves less 32, for each half, and where they mean themselves less 128.
    pub(crate) offsets: Vec<[i32; 3]>,
}

impl Activations {
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The floats, tokens by columns.
    #[must_use]
    pub fn floats(&self) -> &[f32] {
        &self.floats
    }

    /// Makes room for `tokens` rows of `columns` for matrices of `precision`; what was there is lost.
    ///
    /// # Panics
    /// When columns do not divide into blocks where blocks are asked for.
    pub fn reset(&mut self, tokens: usize, columns: usize, precision: Precision) {
        self.tokens = tokens;
        self.columns = columns;
        self.is_rounded = precision == Precision::Int8;
        self.floats.resize(tokens * columns, 0.0);
        if self.is_rounded {
            assert!(columns.is_multiple_of(COLS), "blocks of 32 columns");
            self.bytes.resize(tokens * columns, 0);
            self.scales.resize(tokens * columns / COLS, 0.0);
            self.sums.resize(tokens * columns / COLS, 0.0);
            self.offsets.resize(tokens * columns / COLS, [0; 3]);
        }
    }

    /// Lets `body` write each token's floats, and rounds them if that is asked for.
    pub fn fill(&mut self, pool: &mut Pool, body: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        let (columns, tokens) = (self.columns, self.tokens);
        let rows = self.rows();
        // A few tokens take less time than another thread takes to come.
        let at_once = (8192 / columns.max(1)).clamp(1, 16);
        pool.run(tokens.div_ceil(at_once), &|part| {
            for token in part * at_once..((part + 1) * at_once).min(tokens) {
                // SAFETY: each token is in one part.
                let row = unsafe { rows.floats.slice(token * columns, columns) };
                body(token, row);
                // SAFETY: as above.
                unsafe { rows.round(token, 0, columns) };
            }
        });
    }

    pub(crate) fn rows(&mut self) -> Writer {
        Writer {
            columns: self.columns,
            is_rounded: self.is_rounded,
            floats: Shared::new(&mut self.floats),
            bytes: Shared::new(&mut self.bytes),
            scales: Shared::new(&mut self.scales),
            sums: Shared::new(&mut self.sums),
            offsets: Shared::new(&mut self.offsets),
        }
    }
}

/// Writes parts of activations from several threads.
pub(crate) struct Writer {
    columns: usize,
    is_rounded: bool,
    pub(crate) floats: Shared<f32>,
    bytes: Shared<i8>,
    scales: Shared<f32>,
    sums: Shared<f32>,
    offsets: Shared<[i32; 3]>,
}

impl Writer {
    /// Rounds columns `start..start + count` of a token, whole blocks, if rounding is asked for.
    ///
    /// # Safety
    /// No other thread may be at these columns of the token.
    pub(crate) unsafe fn round(&self, token: usize, start: usize, count: usize) {
        if !self.is_rounded {
            return;
        }
        let at = token * self.columns + start;
        // SAFETY: the caller's promise; blocks are as many as columns over 32.
        let out = unsafe {
            Rounded {
                bytes: self.bytes.slice(at, count),
                scales: self.scales.slice(at / COLS, count / COLS),
                sums: self.sums.slice(at / COLS, count / COLS),
                offsets: self.offsets.slice(at / COLS, count / COLS),
            }
        };
        // SAFETY: as above.
        let floats: &[f32] = unsafe { self.floats.slice(at, count) };
        dispatch!(Isa::current(), round(floats: &[f32], out: Rounded<'_>));
    }
}

struct Rounded<'a> {
    bytes: &'a mut [i8],
    scales: &'a mut [f32],
    sums: &'a mut [f32],
    offsets: &'a mut [[i32; 3]],
}

#[inline(always)]
unsafe fn round<L: Lanes>(floats: &[f32], out: Rounded<'_>) {
    let blocks = floats.chunks_exact(COLS).zip(out.bytes.chunks_exact_mut(COLS));
    for (block, (floats, bytes)) in blocks.enumerate() {
        // SAFETY: both slices have 32 elements; the rest is the caller's promise.
        unsafe {
            let (low, high) = (L::load(floats.as_ptr()), L::load(floats.as_ptr().add(16)));
            let negative = L::splat(-1.0);
            let size = |x: L::F| L::max(x, L::mul(x, negative));
            let largest = L::largest(L::max(size(low), size(high)));
            let scale = largest / 127.0;
            let inverse = L::splat(if scale > 0.0 { 1.0 / scale } else { 0.0 });
            let limit = |x: L::F| L::min(L::max(x, L::splat(-127.0)), L::splat(127.0));
            let low = limit(L::round(L::mul(low, inverse)));
            let high = limit(L::round(L::mul(high, inverse)));
            L::store_bytes(bytes.as_mut_ptr(), low);
            L::store_bytes(bytes.as_mut_ptr().add(16), high);
            let (low, high) = (L::sum(low), L::sum(high));
            out.scales[block] = scale;
            out.sums[block] = scale * (low + high);
            let (low, high) = (low as i32, high as i32);
            out.offsets[block] = [-32 * low, -32 * high, -128 * (low + high)];
        }
    }
}
