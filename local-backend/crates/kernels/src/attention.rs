//! Attention over blocks of keys and values, with a softmax taken as it goes.
//!
//! Positions are taken 64 at a time, from multiples of 64 on, whatever a step holds: what a query yields depends on its
//! position and on what the cache holds before it, bit for bit. A piece of work is one key head and the queries of some
//! tokens that share it; all arithmetic is in f32.

#![expect(
    clippy::needless_range_loop,
    reason = "arrays of registers are indexed in step, which the compiler takes apart"
)]

use crate::activations::Activations;
use crate::cache::{BLOCK, KvCache, KvKind};
use crate::lanes::{Isa, Lanes, dispatch, exp};
use crate::pool::Pool;

/// Positions taken at a time.
const SPAN: usize = 64;
const SPAN_BLOCKS: usize = SPAN / BLOCK;
/// Below any score; the largest score of a query that has seen nothing yet.
const LOWEST: f32 = -1e30;

/// A sequence's queries.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// The sequence's blocks, from position 0 on.
    pub blocks: &'a [u32],
    /// Position of the first query.
    pub first: usize,
    /// Number of queries, one per token.
    pub count: usize,
    /// Which row of the query matrix the first one is.
    pub start: usize,
}

/// What a query may look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Itself and all before it.
    Before,
    /// Itself and so many less one before it.
    Window(usize),
    /// Every position of its sequence.
    All,
}

/// How heads attend.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Query heads; a multiple of the key heads.
    pub count: usize,
    /// What the products of queries and keys are multiplied by.
    pub scale: f32,
    pub reach: Reach,
}

/// Some tokens of a row, for one key head.
struct Piece<'a> {
    row: &'a Queries<'a>,
    head: usize,
    /// The first token, within the row.
    token: usize,
    tokens: usize,
}

/// Everything a piece needs beside its place.
struct Call<'a> {
    cache: &'a KvCache,
    heads: &'a Heads,
    /// Tokens by heads by elements.
    query: &'a [f32],
}

/// Attention of every query of `rows`; `out` must have been reset to the tokens and the width of `query`.
///
/// # Panics
/// When shapes do not fit, or a row's blocks do not cover its positions.
pub fn attend(
    pool: &mut Pool,
    cache: &KvCache,
    rows: &[Queries<'_>],
    (heads, query): (&Heads, &[f32]),
    out: &mut Activations,
) {
    let shape = cache.shape();
    let (group, width) = (heads.count / shape.heads, heads.count * shape.dim);
    assert!(
        group * shape.heads == heads.count && out.columns() == width && query.len() == out.tokens() * width,
        "shapes must fit"
    );
    let queries = if shape.dim > 128 { 16 } else { 32 };
    let at_once = (queries / group).max(1);
    let mut pieces = Vec::new();
    for row in rows {
        let end = row.first + row.count;
        let covers = row.blocks.len() * BLOCK >= end && row.start + row.count <= out.tokens();
        assert!(covers, "blocks must cover a row");
        // The longest pieces first, so that threads end together.
        for token in (0..row.count).step_by(at_once).rev() {
            let tokens = at_once.min(row.count - token);
            pieces.extend((0..shape.heads).map(|head| Piece {
                row,
                head,
                token,
                tokens,
            }));
        }
    }
    let writer = out.rows();
    let is_whole = shape.dim.is_multiple_of(crate::formats::COLS);
    let call = Call { cache, heads, query };
    pool.run(pieces.len(), &|index| {
        let piece = &pieces[index];
        let mut scratch = Scratch::new(piece, &call);
        let (call, scratch) = (&call, &mut scratch);
        dispatch!(Isa::current(), attend_piece(piece: &Piece<'_>, call: &Call<'_>, scratch: &mut Scratch));
        for token in 0..piece.tokens {
            let place = piece.row.start + piece.token + token;
            let start = piece.head * group * shape.dim;
            for head in 0..group {
                let column = start + head * shape.dim;
                // SAFETY: no other piece has these heads of this token.
                let out = unsafe { writer.floats.slice(place * width + column, shape.dim) };
                scratch.take(token * group + head, out);
            }
            if is_whole {
                // SAFETY: as above.
                unsafe { writer.round(place, start, group * shape.dim) };
            }
        }
    });
    if !is_whole {
        let tokens = out.tokens();
        pool.run(tokens, &|token| {
            // SAFETY: each token has one call, and the pieces are done.
            unsafe { writer.round(token, 0, width) };
        });
    }
}

/// What a piece keeps while it goes over the positions.
struct Scratch {
    queries: usize,
    padded: usize,
    /// Query blocks of up to eight, each element by element.
    packed: Vec<f32>,
    /// Queries by positions of a span: scores, then weights.
    scores: Vec<f32>,
    /// Queries by elements: weighted sums of values.
    sums: Vec<f32>,
    largest: Vec<f32>,
    totals: Vec<f32>,
    /// What to multiply a query's sums by before a span is added.
    shrink: Vec<f32>,
}

/// How many queries the next block has: as many as there are registers for, the last block filled up with zeros.
fn packing(left: usize, batch: usize) -> usize {
    match left.min(if batch >= 8 { 8 } else { 4 }) {
        5.. => 8,
        3 | 4 => 4,
        few => few,
    }
}

impl Scratch {
    fn new(piece: &Piece<'_>, call: &Call<'_>) -> Self {
        let shape = call.cache.shape();
        let queries = piece.tokens * (call.heads.count / shape.heads);
        let (room, padded) = (queries.next_multiple_of(8), shape.padded());
        Self {
            queries,
            padded,
            packed: vec![0.0; room * padded],
            scores: vec![0.0; room * SPAN],
            sums: vec![0.0; room * padded],
            largest: vec![LOWEST; queries],
            totals: vec![0.0; queries],
            shrink: vec![0.0; queries],
        }
    }

    /// Lays the queries out for the products with keys.
    fn pack(&mut self, piece: &Piece<'_>, call: &Call<'_>, batch: usize) {
        let (dim, heads) = (call.cache.shape().dim, call.heads.count);
        let group = heads / call.cache.shape().heads;
        let mut first = 0;
        while first < self.queries {
            let count = packing(self.queries - first, batch);
            for lane in 0..count.min(self.queries - first) {
                let (token, head) = ((first + lane) / group, (first + lane) % group);
                let place = piece.row.start + piece.token + token;
                let start = (place * heads + piece.head * group + head) * dim;
                let base = first * self.padded + lane;
                for (element, value) in call.query[start..start + dim].iter().enumerate() {
                    self.packed[base + element * count] = value * call.heads.scale;
                }
            }
            first += count;
        }
    }

    /// One query's result.
    fn take(&self, query: usize, out: &mut [f32]) {
        let sums = &self.sums[query * self.padded..];
        let total = 1.0 / self.totals[query];
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum * total);
    }
}

#[inline(always)]
unsafe fn attend_piece<L: Lanes>(piece: &Piece<'_>, call: &Call<'_>, scratch: &mut Scratch) {
    // SAFETY: the caller's promise.
    unsafe {
        match call.cache.shape().kind {
            KvKind::F16 => spans::<L, 0>(piece, call, scratch),
            KvKind::Bf16 => spans::<L, 1>(piece, call, scratch),
            KvKind::F32 => spans::<L, 2>(piece, call, scratch),
            KvKind::Int8 => spans::<L, INT8>(piece, call, scratch),
        }
    }
}

/// The kind whose positions have scales.
const INT8: u8 = 3;

/// Sixteen elements of the cache, without their scales.
#[inline(always)]
unsafe fn load<L: Lanes, const KIND: u8>(at: *const u8, index: usize) -> L::F {
    // SAFETY: the caller's promise.
    unsafe {
        match KIND {
            0 => L::load_f16(at.cast::<u16>().add(index)),
            1 => L::load_bf16(at.cast::<u16>().add(index)),
            INT8 => L::load_i8(at.cast::<i8>().add(index)),
            _ => L::load(at.cast::<f32>().add(index)),
        }
    }
}

/// The positions that a query at `position` looks at.
fn reach(reach: Reach, position: usize, end: usize) -> (usize, usize) {
    match reach {
        Reach::Before => (0, position + 1),
        Reach::Window(size) => ((position + 1).saturating_sub(size), position + 1),
        Reach::All => (0, end),
    }
}

#[inline(always)]
unsafe fn spans<L: Lanes, const KIND: u8>(piece: &Piece<'_>, call: &Call<'_>, scratch: &mut Scratch) {
    let row = piece.row;
    let group = scratch.queries / piece.tokens;
    let (first, sequence_end) = (row.first + piece.token, row.first + row.count);
    let (start, _) = reach(call.heads.reach, first, sequence_end);
    let (_, end) = reach(call.heads.reach, first + piece.tokens - 1, sequence_end);
    scratch.pack(piece, call, L::BATCH);
    for span in start / SPAN..end.div_ceil(SPAN) {
        let base = span * SPAN;
        let count = SPAN.min(end - base);
        let heads: [_; SPAN_BLOCKS] = std::array::from_fn(|at| {
            // Past the end no position is looked at.
            let block = row.blocks[(base / BLOCK + at).min((end - 1) / BLOCK)];
            call.cache.head(block as usize, piece.head)
        });
        // SAFETY: the caller's promise; heads are whole, and the scratch has room for a multiple of eight queries.
        unsafe {
            span_scores::<L, KIND>(&heads, count, scratch);
            for query in 0..scratch.queries {
                let (from, to) = reach(call.heads.reach, first + query / group, sequence_end);
                let inside = (from.saturating_sub(base), to.saturating_sub(base).min(SPAN));
                weigh::<L, KIND>(&heads, scratch, query, inside);
            }
            span_sums::<L, KIND>(&heads, count, scratch);
        }
    }
}

type HeadBlocks = [(*const u8, *const u8); SPAN_BLOCKS];

#[inline(always)]
unsafe fn span_scores<L: Lanes, const KIND: u8>(heads: &HeadBlocks, count: usize, scratch: &mut Scratch) {
    let blocks = count.div_ceil(BLOCK);
    let mut first = 0;
    while first < scratch.queries {
        let lanes = packing(scratch.queries - first, L::BATCH);
        // SAFETY: the caller's promise.
        unsafe {
            let packed = scratch.packed.as_ptr().add(first * scratch.padded);
            let out = scratch.scores.as_mut_ptr().add(first * SPAN);
            let place = (packed, scratch.padded, out);
            match (lanes, L::BATCH >= 8) {
                (8, _) => products::<L, KIND, 8, 2>(heads, blocks, place),
                (4, true) => products::<L, KIND, 4, 4>(heads, blocks, place),
                (4, false) => products::<L, KIND, 4, 1>(heads, blocks, place),
                (2, true) => products::<L, KIND, 2, 4>(heads, blocks, place),
                (2, false) => products::<L, KIND, 2, 2>(heads, blocks, place),
                _ => products::<L, KIND, 1, 4>(heads, blocks, place),
            }
        }
        first += lanes;
    }
}

/// N queries times the keys of some blocks, B of them at a time.
#[inline(always)]
unsafe fn products<L: Lanes, const KIND: u8, const N: usize, const B: usize>(
    heads: &HeadBlocks,
    blocks: usize,
    (packed, elements, out): (*const f32, usize, *mut f32),
) {
    for first in (0..blocks).step_by(B) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[L::splat(0.0); B]; N];
            for element in 0..elements {
                let keys: [L::F; B] =
                    std::array::from_fn(|at| load::<L, KIND>(heads[first + at].0, element * BLOCK));
                for lane in 0..N {
                    let query = L::splat(*packed.add(element * N + lane));
                    for at in 0..B {
                        sums[lane][at] = L::fma(keys[at], query, sums[lane][at]);
                    }
                }
            }
            if KIND == INT8 {
                for at in 0..B {
                    let scales = L::load(heads[first + at].0.add(elements * BLOCK).cast());
                    for lane in 0..N {
                        sums[lane][at] = L::mul(sums[lane][at], scales);
                    }
                }
            }
            for lane in 0..N {
                for at in 0..B {
                    L::store(out.add(lane * SPAN + (first + at) * BLOCK), sums[lane][at]);
                }
            }
        }
    }
}

/// Turns a query's scores within `from..to` of the span into weights, all others into 0; values' scales go into the weights.
#[inline(always)]
unsafe fn weigh<L: Lanes, const KIND: u8>(
    heads: &HeadBlocks,
    scratch: &mut Scratch,
    query: usize,
    (from, to): (usize, usize),
) {
    let before = scratch.largest[query];
    // SAFETY: the caller's promise; a query has 64 scores.
    unsafe {
        let scores = scratch.scores.as_mut_ptr().add(query * SPAN);
        let mut parts: [L::F; SPAN_BLOCKS] = std::array::from_fn(|at| L::load(scores.add(at * BLOCK)));
        if from > 0 || to < SPAN {
            for (at, part) in parts.iter_mut().enumerate() {
                let start = (at * BLOCK) as i32;
                *part = L::only(*part, from as i32 - start, to as i32 - start);
            }
        }
        let [a, b, c, d] = parts;
        let largest = before.max(L::largest(L::max(L::max(a, b), L::max(c, d))));
        for (at, part) in parts.iter_mut().enumerate() {
            *part = exp::<L>(L::add(*part, L::splat(-largest)));
            let mut weight = *part;
            if KIND == INT8 {
                weight = L::mul(weight, L::load(heads[at].1.add(scratch.padded * BLOCK).cast()));
            }
            L::store(scores.add(at * BLOCK), weight);
        }
        let [a, b, c, d] = parts;
        let total = L::sum(L::add(L::add(a, b), L::add(c, d)));
        let shrink = if largest > before {
            (before - largest).exp()
        } else {
            1.0
        };
        scratch.totals[query] = scratch.totals[query] * shrink + total;
        scratch.shrink[query] = shrink;
        scratch.largest[query] = largest;
    }
}

#[inline(always)]
unsafe fn span_sums<L: Lanes, const KIND: u8>(heads: &HeadBlocks, count: usize, scratch: &mut Scratch) {
    let mut query = 0;
    while query < scratch.queries {
        let left = scratch.queries - query;
        // SAFETY: the caller's promise.
        query += unsafe {
            match (left, L::BATCH >= 8) {
                (4.., true) => elements::<L, KIND, 4>(heads, count, (scratch, query)),
                (2.., _) => elements::<L, KIND, 2>(heads, count, (scratch, query)),
                _ => elements::<L, KIND, 1>(heads, count, (scratch, query)),
            }
        };
    }
}

#[inline(always)]
unsafe fn elements<L: Lanes, const KIND: u8, const N: usize>(
    heads: &HeadBlocks,
    count: usize,
    (scratch, query): (&mut Scratch, usize),
) -> usize {
    let mut first = 0;
    while first < scratch.padded {
        let left = (scratch.padded - first) / 16;
        // SAFETY: the caller's promise.
        first += 16
            * unsafe {
                match (left, L::BATCH >= 8) {
                    (4.., true) => weighted::<L, KIND, N, 4>(heads, count, (scratch, query, first)),
                    (2.., _) => weighted::<L, KIND, N, 2>(heads, count, (scratch, query, first)),
                    _ => weighted::<L, KIND, N, 1>(heads, count, (scratch, query, first)),
                }
            };
    }
    N
}

/// Adds to 16·D elements of N queries their weighted sums of the span's values.
#[inline(always)]
unsafe fn weighted<L: Lanes, const KIND: u8, const N: usize, const D: usize>(
    heads: &HeadBlocks,
    count: usize,
    (scratch, query, first): (&mut Scratch, usize, usize),
) -> usize {
    let padded = scratch.padded;
    // SAFETY: the caller's promise.
    unsafe {
        let base = scratch.sums.as_mut_ptr().add(query * padded + first);
        let weights = scratch.scores.as_ptr().add(query * SPAN);
        let mut sums = [[L::splat(0.0); D]; N];
        for lane in 0..N {
            let shrink = L::splat(scratch.shrink[query + lane]);
            for at in 0..D {
                sums[lane][at] = L::mul(L::load(base.add(lane * padded + at * 16)), shrink);
            }
        }
        for (block, (_, values)) in heads.iter().enumerate().take(count.div_ceil(BLOCK)) {
            for position in 0..BLOCK.min(count - block * BLOCK) {
                let values: [L::F; D] =
                    std::array::from_fn(|at| load::<L, KIND>(*values, position * padded + first + at * 16));
                for lane in 0..N {
                    let weight = L::splat(*weights.add(lane * SPAN + block * BLOCK + position));
                    for at in 0..D {
                        sums[lane][at] = L::fma(values[at], weight, sums[lane][at]);
                    }
                }
            }
        }
        for lane in 0..N {
            for at in 0..D {
                L::store(base.add(lane * padded + at * 16), sums[lane][at]);
            }
        }
    }
    D
}
