//! What a step works in on the device, at addresses that stay, so that graphs can be recorded.

use super::super::arch::Config;
use crate::backend::{BLOCK_TOKENS, ModelInfo};
use kernels::KvKind;
use kernels::cuda::{
    Activations, Batch, Buffer, CudaError, HeadShape, KvPages, Limits, Ops, Precision, Sampling, Scratch,
    Workspace,
};

/// What there is to be room for on a device.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Tokens of a step; longer ones are cut.
    pub tokens: usize,
    /// Sequences of a step.
    pub sequences: usize,
    /// How keys and values are kept: f16 or int8.
    pub kv: KvKind,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            tokens: 1024,
            sequences: 256,
            kv: KvKind::F16,
        }
    }
}

pub(super) struct Room {
    pub(super) batch: Batch,
    /// One per layer.
    pub(super) caches: Vec<KvPages>,
    pub(super) work: Workspace,
    /// Positions by pairs: of layers that see everything, and of those that see a window.
    pub(super) angles: [Buffer<[f32; 2]>; 2],
    /// Tokens by width: the residual.
    pub(super) x: Buffer<f32>,
    pub(super) input: Activations,
    pub(super) hidden: Activations,
    pub(super) qkv: Buffer<f32>,
    pub(super) attended: Buffer<f32>,
    pub(super) gate_up: Buffer<f32>,
    pub(super) result: Buffer<f32>,
    pub(super) logits: Buffer<f32>,
    pub(super) sampling: Sampling,
    /// Tokens drawn, one for each row of logits.
    pub(super) chosen: Buffer<u32>,
    pub(super) scratch: Scratch,
}

/// Bytes that the parts of split attention may take.
const PARTS: usize = 1 << 30;

/// Of what was asked, as many sequences as the parts of their attention have room for at the longest context.
pub(super) fn fitted(asked: Capacity, config: &Config, blocks: usize) -> Capacity {
    let positions = config.context.min(blocks * BLOCK_TOKENS);
    let per = 4 * config.heads * config.head_dim * (positions / 128 + 1).next_power_of_two();
    Capacity {
        sequences: asked.sequences.min(PARTS / per.max(1)).max(1),
        ..asked
    }
}

pub(super) fn heads(config: &Config) -> HeadShape {
    HeadShape {
        heads: config.heads,
        kv_heads: config.kv_heads,
        dim: config.head_dim,
    }
}

impl Room {
    /// Room for `blocks` blocks of the cache, and one more for padding.
    pub(super) fn new(
        ops: &Ops,
        (config, info): (&Config, &ModelInfo),
        blocks: usize,
        (frequencies, capacity): (&[Vec<f32>; 2], &Capacity),
    ) -> Result<Self, CudaError> {
        let (driver, shape) = (ops.driver(), heads(config));
        let positions = config.context.min(blocks * BLOCK_TOKENS).max(BLOCK_TOKENS);
        let limits = Limits {
            tokens: capacity.tokens.max(capacity.sequences),
            sequences: capacity.sequences,
            table: positions.div_ceil(BLOCK_TOKENS),
            blocks: blocks + 1,
            vocabulary: info.vocabulary,
            positions,
        };
        let singles = match ops.precision() {
            Precision::Fast => limits.sequences,
            Precision::Invariant => limits.tokens,
        };
        let (tokens, width) = (limits.tokens, config.width);
        let inner = shape.heads * shape.dim;
        let angles = |frequencies: &[f32]| {
            let turned = (0..positions).flat_map(|position| {
                frequencies.iter().map(move |frequency| {
                    let (sine, cosine) = (position as f32 * frequency).sin_cos();
                    [cosine, sine]
                })
            });
            Buffer::from_slice(driver, &turned.collect::<Vec<_>>())
        };
        let largest = (inner.max(config.feed) * width)
            .max(info.vocabulary * width)
            .max(2 * config.feed * width);
        Ok(Self {
            batch: Batch::new(driver, limits)?,
            caches: (0..config.layers)
                .map(|_| KvPages::new(driver, (shape, capacity.kv), limits.blocks))
                .collect::<Result<_, _>>()?,
            work: Workspace::new(driver, shape, (tokens, singles), positions)?,
            angles: [angles(&frequencies[0])?, angles(&frequencies[1])?],
            x: Buffer::new(driver, tokens * width)?,
            input: Activations::new(driver, tokens * width.max(inner))?,
            hidden: Activations::new(driver, tokens * config.feed)?,
            qkv: Buffer::new(driver, tokens * shape.qkv())?,
            attended: Buffer::new(driver, tokens * inner)?,
            gate_up: Buffer::new(driver, tokens * 2 * config.feed)?,
            result: Buffer::new(driver, tokens * width)?,
            logits: Buffer::new(driver, limits.sequences * info.vocabulary)?,
            sampling: Sampling::new(driver, limits.sequences, info.vocabulary)?,
            chosen: Buffer::new(driver, limits.sequences)?,
            scratch: Scratch::new(ops, largest)?,
        })
    }

    /// About what everything beside the cache takes, in bytes, with a context's worth of splits.
    pub(super) fn bytes(config: &Config, vocabulary: usize, capacity: &Capacity) -> usize {
        let inner = config.heads * config.head_dim;
        let per_token =
            4 * (3 * config.width + 3 * inner + 3 * config.feed) + 3 * (config.width + inner + config.feed);
        let splits = (config.context / 128 + 1).next_power_of_two();
        capacity.tokens * per_token
            + capacity.sequences * (4 * vocabulary + 4 * inner * splits)
            + 2 * vocabulary.max(2 * config.feed) * config.width
            + 8 * config.context * config.head_dim
    }
}
