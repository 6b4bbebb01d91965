//! The paged cache of keys and values on the device, and attention over it.

use super::batch::{BLOCK, Batch, TILE};
use super::buffer::Buffer;
use super::{Args, CudaError, Driver, Ops, Precision, Way, check};
use crate::{KvKind, Pairs};
use std::sync::Arc;

/// Positions of a split; as in `attention_decode.cu`.
const SPLIT: usize = 128;

/// Heads of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    pub heads: usize,
    pub kv_heads: usize,
    /// 64, 128 or 256.
    pub dim: usize,
}

impl HeadShape {
    /// # Errors
    /// No kernel is made for it.
    pub fn check(&self) -> Result<(), CudaError> {
        check(matches!(self.dim, 64 | 128 | 256), || {
            format!("heads of {}; the kernels take 64, 128 and 256", self.dim)
        })?;
        check(
            self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads),
            || format!("{} heads on {} key heads", self.heads, self.kv_heads),
        )
    }

    /// Floats that the multiplies give for a token: queries, keys, values.
    #[must_use]
    pub fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.dim
    }
}

/// Keys and values of one layer, in f16, or in bytes with a scale for each position of each head.
#[derive(Debug)]
pub struct KvPages {
    /// f16, or two bytes in each.
    pub(super) keys: Buffer<u16>,
    pub(super) values: Buffer<u16>,
    /// Of keys and of values, where these are bytes.
    scales: Option<[Buffer<f32>; 2]>,
    pub(super) shape: HeadShape,
    pub(super) blocks: usize,
}

/// What a layer's pages hold: elements by blocks, key heads, 16 positions and heads, and where these are bytes the scales, by
/// blocks, key heads and 16 positions.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// Bytes of the elements: f16 bits, or signed bytes.
    pub elements: Vec<u8>,
    pub scales: Vec<f32>,
}

impl KvPages {
    /// # Errors
    /// No kernel is made for the heads or the kind, or there is not so much memory.
    pub fn new(
        driver: &Arc<dyn Driver>,
        (shape, kind): (HeadShape, KvKind),
        blocks: usize,
    ) -> Result<Self, CudaError> {
        shape.check()?;
        check(matches!(kind, KvKind::F16 | KvKind::Int8), || {
            "a card keeps keys and values as f16 or int8".into()
        })?;
        let rows = blocks * BLOCK * shape.kv_heads;
        let words = rows * shape.dim * kind.bytes() / 2;
        let scales =
            || -> Result<_, CudaError> { Ok([Buffer::new(driver, rows)?, Buffer::new(driver, rows)?]) };
        Ok(Self {
            keys: Buffer::new(driver, words)?,
            values: Buffer::new(driver, words)?,
            scales: (kind == KvKind::Int8).then(scales).transpose()?,
            shape,
            blocks,
        })
    }

    /// Where the scales of keys and of values are; 0 where there are none.
    fn scales_at(&self) -> [u64; 2] {
        self.scales
            .as_ref()
            .map_or([0; 2], |scales| scales.each_ref().map(Buffer::at))
    }

    /// What names of kernels end with before the sizes.
    fn suffix(&self) -> &'static str {
        if self.scales.is_some() { "_int8" } else { "" }
    }

    pub(super) fn is_f16(&self) -> bool {
        self.scales.is_none()
    }

    /// Keys, then values.
    ///
    /// # Errors
    /// The device refuses.
    pub fn read(&self) -> Result<[Kept; 2], CudaError> {
        let kept = |words: &Buffer<u16>, scales: Option<&Buffer<f32>>| {
            let words = words.read(words.len())?;
            Ok(Kept {
                elements: words.iter().flat_map(|word| word.to_le_bytes()).collect(),
                scales: scales.map_or(Ok(Vec::new()), |scales| scales.read(scales.len()))?,
            })
        };
        let [keys, values] = match &self.scales {
            Some([keys, values]) => [Some(keys), Some(values)],
            None => [None; 2],
        };
        Ok([kept(&self.keys, keys)?, kept(&self.values, values)?])
    }
}

/// What happens to queries and keys before they are used.
#[derive(Clone, Copy, Debug)]
pub struct QkvExtras<'a> {
    /// Of all heads.
    pub bias: Option<&'a Buffer<f32>>,
    pub q_norm: Option<&'a Buffer<f32>>,
    pub k_norm: Option<&'a Buffer<f32>>,
    /// Positions by half a head: cosine and sine.
    pub angles: &'a Buffer<[f32; 2]>,
    pub pairs: Pairs,
    pub epsilon: f32,
}

/// What a query sees.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// The last so many positions, its own among them; 0: all before it.
    pub window: usize,
    pub scale: f32,
}

/// What attention works in.
#[derive(Debug)]
pub struct Workspace {
    pub(super) queries: Buffer<u16>,
    partial: Buffer<f32>,
    sums: Buffer<[f32; 2]>,
    /// Splits that fit.
    splits: usize,
    tokens: usize,
    singles: usize,
    shape: HeadShape,
}

impl Workspace {
    /// For `tokens` in a step, of which up to `singles` at a time are single ones seeing up to `positions`.
    ///
    /// # Errors
    /// There is not so much memory.
    pub fn new(
        driver: &Arc<dyn Driver>,
        shape: HeadShape,
        (tokens, singles): (usize, usize),
        positions: usize,
    ) -> Result<Self, CudaError> {
        let splits = splits(positions.saturating_sub(1));
        let parts = singles * shape.heads * splits;
        Ok(Self {
            queries: Buffer::new(driver, tokens * shape.heads * shape.dim)?,
            partial: Buffer::new(driver, parts * shape.dim)?,
            sums: Buffer::new(driver, parts)?,
            splits,
            tokens,
            singles,
            shape,
        })
    }
}

/// Splits launched for a largest position: a power of two, so that few kinds of graphs are needed.
fn splits(longest: usize) -> usize {
    (longest / SPLIT + 1).next_power_of_two()
}

impl Batch {
    /// Splits that its single queries are launched with.
    #[must_use]
    pub fn splits(&self) -> usize {
        splits(self.longest())
    }
}

#[repr(C)]
struct RopeArgs {
    qkv: u64,
    bias: u64,
    q_norm: u64,
    k_norm: u64,
    angles: u64,
    positions: u64,
    sequences: u64,
    tables: u64,
    queries: u64,
    keys: u64,
    values: u64,
    key_scales: u64,
    value_scales: u64,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    table_stride: u32,
    neighbours: u32,
    epsilon: f32,
}
// SAFETY: thirteen addresses and six numbers of four bytes.
unsafe impl Args for RopeArgs {}

#[repr(C)]
struct DecodeArgs {
    queries: u64,
    keys: u64,
    values: u64,
    key_scales: u64,
    value_scales: u64,
    positions: u64,
    sequences: u64,
    tables: u64,
    partial: u64,
    sums: u64,
    heads: u32,
    kv_heads: u32,
    table_stride: u32,
    splits: u32,
    window: u32,
    scale: f32,
}
// SAFETY: ten addresses and six numbers of four bytes.
unsafe impl Args for DecodeArgs {}

#[repr(C)]
struct JoinArgs {
    partial: u64,
    sums: u64,
    positions: u64,
    out: u64,
    heads: u32,
    head_dim: u32,
    splits: u32,
    window: u32,
}
// SAFETY: four addresses and four numbers of four bytes.
unsafe impl Args for JoinArgs {}

#[repr(C)]
struct PrefillArgs {
    queries: u64,
    keys: u64,
    values: u64,
    key_scales: u64,
    value_scales: u64,
    tiles: u64,
    tables: u64,
    out: u64,
    heads: u32,
    kv_heads: u32,
    table_stride: u32,
    window: u32,
    scale: f32,
    pad: u32,
}
// SAFETY: eight addresses and six numbers of four bytes.
unsafe impl Args for PrefillArgs {}

impl Ops {
    /// Queries into the workspace, keys and values of the batch into the cache.
    ///
    /// # Errors
    /// Something is shorter than the sizes say, or the device refuses.
    pub fn rope_store(
        &self,
        qkv: &Buffer<f32>,
        extras: &QkvExtras<'_>,
        batch: &Batch,
        (pages, work): (&mut KvPages, &mut Workspace),
    ) -> Result<(), CudaError> {
        let (shape, count) = (pages.shape, batch.count());
        check(
            qkv.len() >= count * shape.qkv() && work.tokens >= count && work.shape == shape,
            || format!("{count} tokens of {shape:?} in {} floats", qkv.len()),
        )?;
        check_cache(batch, pages)?;
        let is_long =
            |buffer: Option<&Buffer<f32>>, len| buffer.is_none_or(|buffer: &Buffer<f32>| buffer.len() >= len);
        check(
            is_long(extras.bias, shape.qkv())
                && is_long(extras.q_norm, shape.dim)
                && is_long(extras.k_norm, shape.dim)
                && extras.angles.len() >= batch.limits().positions * shape.dim / 2,
            || "a bias, a norm or the angles are too short".into(),
        )?;
        let [key_scales, value_scales] = pages.scales_at();
        let args = RopeArgs {
            qkv: qkv.at(),
            bias: extras.bias.map_or(0, Buffer::at),
            q_norm: extras.q_norm.map_or(0, Buffer::at),
            k_norm: extras.k_norm.map_or(0, Buffer::at),
            angles: extras.angles.at(),
            positions: batch.positions.at(),
            sequences: batch.sequences.at(),
            tables: batch.tables.at(),
            queries: work.queries.at(),
            keys: pages.keys.at(),
            values: pages.values.at(),
            key_scales,
            value_scales,
            heads: shape.heads as u32,
            kv_heads: shape.kv_heads as u32,
            head_dim: shape.dim as u32,
            table_stride: batch.limits().table as u32,
            neighbours: u32::from(extras.pairs == Pairs::Neighbours),
            epsilon: extras.epsilon,
        };
        let heads = shape.heads + 2 * shape.kv_heads;
        // SAFETY: lengths were just checked; positions, sequences and blocks are in range, see `Batch`.
        unsafe { self.launch("rope_store", [count, heads.div_ceil(8), 1], (256, 0), &args) }
    }

    /// What every query of the batch sees, weighted: tokens by heads by head.
    ///
    /// # Errors
    /// Something is shorter than the sizes say, or the device refuses.
    pub fn attend(
        &self,
        batch: &Batch,
        span: &Span,
        (pages, work): (&KvPages, &mut Workspace),
        out: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        let (shape, singles) = (pages.shape, batch.singles());
        check(
            out.len() >= batch.count() * shape.heads * shape.dim && work.tokens >= batch.count(),
            || format!("no room for the attention of {} tokens", batch.count()),
        )?;
        check_cache(batch, pages)?;
        check(work.shape == shape, || "a workspace of other heads".into())?;
        if singles > 0 {
            self.decode(batch, span, (pages, work), out)?;
        }
        // Hopper's kernel copies what it multiplies as it lies in memory.
        let is_on_hopper = self.ways.attend == Way::Hopper && self.precision == Precision::Fast;
        if is_on_hopper && pages.is_f16() {
            return self.attend_on_hopper(batch, span, (pages, work), out);
        }
        let [key_scales, value_scales] = pages.scales_at();
        let args = PrefillArgs {
            queries: work.queries.at(),
            keys: pages.keys.at(),
            values: pages.values.at(),
            key_scales,
            value_scales,
            tiles: batch.tiles.at(),
            tables: batch.tables.at(),
            out: out.at(),
            heads: shape.heads as u32,
            kv_heads: shape.kv_heads as u32,
            table_stride: batch.limits().table as u32,
            window: span.window as u32,
            scale: span.scale,
            pad: 0,
        };
        let keys = if shape.dim == 256 { TILE / 2 } else { TILE };
        let shared = 2 * keys * (shape.dim + 8) * 2;
        let grid = [batch.tile_count(), shape.heads, 1];
        let kernel = format!("prefill{}_{}", pages.suffix(), shape.dim);
        // SAFETY: lengths were just checked; tiles lie within the batch, see `Batch`.
        unsafe { self.launch(&kernel, grid, (128, shared), &args) }
    }

    fn decode(
        &self,
        batch: &Batch,
        span: &Span,
        (pages, work): (&KvPages, &mut Workspace),
        out: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        let (shape, splits) = (pages.shape, splits(batch.longest()));
        check(splits <= work.splits && batch.singles() <= work.singles, || {
            format!(
                "{} single tokens up to position {}; room is for {} of {} splits",
                batch.singles(),
                batch.longest(),
                work.singles,
                work.splits
            )
        })?;
        let [key_scales, value_scales] = pages.scales_at();
        let args = DecodeArgs {
            queries: work.queries.at(),
            keys: pages.keys.at(),
            values: pages.values.at(),
            key_scales,
            value_scales,
            positions: batch.positions.at(),
            sequences: batch.sequences.at(),
            tables: batch.tables.at(),
            partial: work.partial.at(),
            sums: work.sums.at(),
            heads: shape.heads as u32,
            kv_heads: shape.kv_heads as u32,
            table_stride: batch.limits().table as u32,
            splits: splits as u32,
            window: span.window as u32,
            scale: span.scale,
        };
        let shared_by = shape.heads / shape.kv_heads;
        let group = if shared_by <= 4 { 4 } else { 8 };
        let grid = [
            splits,
            shape.kv_heads * shared_by.div_ceil(group),
            batch.singles(),
        ];
        let shared = 4 * (group * shape.dim + group * SPLIT + 1024 * group);
        let kernel = format!("decode{}_{}_{group}", pages.suffix(), shape.dim);
        // SAFETY: lengths were just checked; positions and blocks are in range, see `Batch`.
        unsafe { self.launch(&kernel, grid, (128, shared), &args) }?;
        let args = JoinArgs {
            partial: work.partial.at(),
            sums: work.sums.at(),
            positions: batch.positions.at(),
            out: out.at(),
            heads: shape.heads as u32,
            head_dim: shape.dim as u32,
            splits: splits as u32,
            window: span.window as u32,
        };
        let grid = [shape.heads, batch.singles(), 1];
        // SAFETY: as above.
        unsafe { self.launch("decode_join", grid, (shape.dim as u32, 0), &args) }
    }
}

/// A batch's tables name blocks of this cache.
fn check_cache(batch: &Batch, pages: &KvPages) -> Result<(), CudaError> {
    check(batch.limits().blocks <= pages.blocks, || {
        format!(
            "a batch of {} blocks for a cache of {}",
            batch.limits().blocks,
            pages.blocks
        )
    })
}
