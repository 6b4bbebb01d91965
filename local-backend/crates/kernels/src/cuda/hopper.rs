//! The kernels for Hopper alone (wgmma and tensor maps): how they are launched, and when they may be.
//!
//! Invariant: none is launched unless [`Ways`] says so, which [`super::choose`] fills only after they have agreed with the plain
//! kernels on the very card.

use super::activations::Activations;
use super::attention::{KvPages, Span, Workspace};
use super::batch::{BLOCK, Batch, TILE};
use super::buffer::Buffer;
use super::driver::{ELEMENT, TensorMap, TensorShape};
use super::matrix::{Matrix, Place, Then, Weights};
use super::tiles::COLS;
use super::{Args, CudaError, Ops, Precision, check};

/// Which kernels one kind of work takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    #[default]
    Plain,
    Hopper,
}

/// Which kernels large multiplies and prompts' attention take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    pub multiply: Way,
    pub attend: Way,
}

/// From so many tokens on. Guessed: a block takes 128, fewer leave its tensor cores idle; to be measured.
const FROM: usize = 128;
/// Columns of a stage, rows of a block, stages; as in `gemm.cu`.
const DEPTH: usize = 64;
const BLOCK_ROWS: usize = 128;
const STAGES: usize = 4;
/// For alignment, and for barriers.
const EXTRA: usize = 2 * 1024;
const THREADS: u32 = 384;

/// What `gemm.cu` takes.
#[repr(C, align(128))]
struct GemmArgs {
    x: TensorMap,
    weights: TensorMap,
    tiles: u64,
    scales: u64,
    out: u64,
    rows: u32,
    columns: u32,
    tokens: u32,
    stride: u32,
    adds: u32,
    pad: [u32; 21],
}
// SAFETY: maps and addresses, then numbers of four bytes up to the end.
unsafe impl Args for GemmArgs {}
const _: () = assert!(size_of::<GemmArgs>() == 384);

/// What `attention.cu` takes.
#[repr(C, align(128))]
struct PrefillArgs {
    queries: TensorMap,
    keys: TensorMap,
    values: TensorMap,
    tiles: u64,
    tables: u64,
    out: u64,
    heads: u32,
    kv_heads: u32,
    table_stride: u32,
    window: u32,
    scale: f32,
    pad: [u32; 21],
}
// SAFETY: as above.
unsafe impl Args for PrefillArgs {}
const _: () = assert!(size_of::<PrefillArgs>() == 512);

/// A matrix of 16-bit values by rows, read in boxes of 64 columns.
fn by_rows(at: u64, (rows, columns): (usize, usize), box_rows: usize) -> TensorShape {
    TensorShape {
        at,
        sizes: vec![columns as u64, rows as u64],
        strides: vec![columns as u64 * ELEMENT],
        extent: vec![DEPTH as u32, box_rows as u32],
    }
}

impl Ops {
    /// Whether so many tokens are multiplied by a matrix of so many columns on Hopper's kernels.
    pub(super) fn multiplies_on_hopper(&self, columns: usize, tokens: usize) -> bool {
        let is_chosen = self.ways.multiply == Way::Hopper && self.precision == Precision::Fast;
        is_chosen && tokens >= FROM && columns >= DEPTH
    }

    /// Tokens of a block: the larger tile where every multiprocessor has one.
    fn hopper_tokens(&self, matrix: &Matrix, tokens: usize) -> usize {
        let blocks = matrix.rows().div_ceil(BLOCK_ROWS) * tokens.div_ceil(256);
        if matches!(matrix.weights, Weights::Bf16(_)) && blocks >= self.facts.processors as usize {
            256
        } else {
            128
        }
    }

    /// The caller has checked the places.
    pub(super) fn by_hopper(
        &self,
        matrix: &Matrix,
        x: &Activations,
        (out, place): (u64, Place),
    ) -> Result<(), CudaError> {
        let (rows, columns, width) = (
            matrix.rows(),
            matrix.columns(),
            self.hopper_tokens(matrix, x.tokens),
        );
        let x_map = self
            .driver
            .tensor_map(&by_rows(x.halves.at(), (x.tokens, columns), width))?;
        let mut args = GemmArgs {
            x: x_map,
            weights: TensorMap::default(),
            tiles: 0,
            scales: 0,
            out,
            rows: rows as u32,
            columns: columns as u32,
            tokens: x.tokens as u32,
            stride: place.stride as u32,
            adds: u32::from(place.then == Then::Add),
            pad: [0; 21],
        };
        let (word, stage) = match &matrix.weights {
            Weights::Bf16(bits) => {
                let shape = by_rows(bits.at(), (rows, columns), BLOCK_ROWS);
                args.weights = self.driver.tensor_map(&shape)?;
                ("bf16", BLOCK_ROWS * DEPTH * 2)
            }
            Weights::Tiles { kind, tiles, scales } => {
                (args.tiles, args.scales) = (tiles.at(), scales.at());
                let tiles = BLOCK_ROWS / super::tiles::ROWS * (DEPTH / COLS);
                (kind.word(), tiles * (kind.tile_bytes() + 64))
            }
        };
        let shared = EXTRA + STAGES * (stage + width * DEPTH * 2);
        let grid = [x.tokens.div_ceil(width), rows.div_ceil(BLOCK_ROWS), 1];
        // SAFETY: the caller has checked the places; maps end where their matrices do; tiles and scales are as long as rows and
        // columns say, see `Matrix`.
        unsafe { self.launch(&format!("gemm_{word}_{width}"), grid, (THREADS, shared), &args) }
    }

    /// The caller has checked lengths.
    pub(super) fn attend_on_hopper(
        &self,
        batch: &Batch,
        span: &Span,
        (pages, work): (&KvPages, &Workspace),
        out: &Buffer<f32>,
    ) -> Result<(), CudaError> {
        let shape = pages.shape;
        let (dim, heads, kv_heads) = (shape.dim as u64, shape.heads as u64, shape.kv_heads as u64);
        let queries = TensorShape {
            at: work.queries.at(),
            sizes: vec![dim, heads, batch.count() as u64],
            strides: vec![dim * ELEMENT, heads * dim * ELEMENT],
            extent: vec![DEPTH as u32, 1, TILE as u32],
        };
        let page = |at: u64| TensorShape {
            at,
            sizes: vec![dim, BLOCK as u64, kv_heads, pages.blocks as u64],
            strides: [1, BLOCK as u64, BLOCK as u64 * kv_heads]
                .map(|rows| rows * dim * ELEMENT)
                .to_vec(),
            extent: vec![DEPTH as u32, BLOCK as u32, 1, 1],
        };
        check(batch.tile_count() == 0 || batch.count() > 0, || {
            "tiles without tokens".into()
        })?;
        if batch.tile_count() == 0 {
            return Ok(());
        }
        let args = PrefillArgs {
            queries: self.driver.tensor_map(&queries)?,
            keys: self.driver.tensor_map(&page(pages.keys.at()))?,
            values: self.driver.tensor_map(&page(pages.values.at()))?,
            tiles: batch.tiles.at(),
            tables: batch.tables.at(),
            out: out.at(),
            heads: shape.heads as u32,
            kv_heads: shape.kv_heads as u32,
            table_stride: batch.limits().table as u32,
            window: span.window as u32,
            scale: span.scale,
            pad: [0; 21],
        };
        let keys = if shape.dim == 256 { 64 } else { 128 };
        // Queries of two heads, and two stages of keys and of values.
        let shared = EXTRA + 2 * (2 * TILE * shape.dim + 4 * keys * shape.dim);
        let pairs = (shape.heads / shape.kv_heads).div_ceil(2);
        let grid = [batch.tile_count(), shape.kv_heads * pairs, 1];
        // SAFETY: the caller has checked lengths; tiles lie within the batch and blocks within the cache, see `Batch`.
        unsafe {
            self.launch(
                &format!("hopper_prefill_{}", shape.dim),
                grid,
                (THREADS, shared),
                &args,
            )
        }
    }
}
