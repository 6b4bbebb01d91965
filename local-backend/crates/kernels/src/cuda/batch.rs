//! What a step computes, on the device: token ids, positions, block tables. The one place where indices from outside become
//! indices that kernels follow; each is checked against [`Limits`] first.

use super::buffer::Buffer;
use super::sampling::Sampling;
use super::{Args, CudaError, Driver, Ops, check};
use std::sync::Arc;

/// Positions in a block of the cache.
pub(super) const BLOCK: usize = 16;
/// Queries that one tile of the prefill kernel takes.
pub(super) const TILE: usize = 64;

/// What indices must stay below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens in a step.
    pub tokens: usize,
    /// Sequences in a step.
    pub sequences: usize,
    /// Blocks of one sequence.
    pub table: usize,
    /// Blocks of the cache.
    pub blocks: usize,
    pub vocabulary: usize,
    /// Positions whose angles are known.
    pub positions: usize,
}

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug)]
pub struct Steps<'a> {
    pub tokens: &'a [u32],
    /// Position of the first.
    pub first: usize,
    /// The cache's blocks, in order of positions.
    pub blocks: &'a [u32],
    pub wants_logits: bool,
}

/// A step's indices on the device, at fixed addresses.
///
/// Single tokens come first, so that the two kinds of attention each take a run. Invariants: `tokens` are below the limit's
/// vocabulary, `positions` below its positions and inside their table, `tables` below its blocks, `last` below `count`.
#[derive(Debug)]
pub struct Batch {
    limits: Limits,
    pub(super) tokens: Buffer<u32>,
    pub(super) positions: Buffer<u32>,
    pub(super) sequences: Buffer<u32>,
    pub(super) tables: Buffer<u32>,
    pub(super) tiles: Buffer<[u32; 4]>,
    pub(super) last: Buffer<u32>,
    count: usize,
    singles: usize,
    tile_count: usize,
    wanted: usize,
    /// The largest position of single tokens.
    longest: usize,
    /// The first position that a table does not cover, over all sequences the smallest room left.
    room: usize,
}

/// Host copies, written at once.
#[derive(Default)]
struct Host {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    sequences: Vec<u32>,
    tables: Vec<u32>,
    tiles: Vec<[u32; 4]>,
    last: Vec<u32>,
}

#[repr(C)]
struct AdvanceArgs {
    positions: u64,
    draws: u64,
    count: u32,
    pad: u32,
}
// SAFETY: two addresses and two numbers of four bytes.
unsafe impl Args for AdvanceArgs {}

impl Batch {
    /// # Errors
    /// There is not so much memory.
    pub fn new(driver: &Arc<dyn Driver>, limits: Limits) -> Result<Self, CudaError> {
        Ok(Self {
            limits,
            tokens: Buffer::new(driver, limits.tokens)?,
            positions: Buffer::new(driver, limits.tokens)?,
            sequences: Buffer::new(driver, limits.tokens)?,
            tables: Buffer::new(driver, limits.sequences * limits.table)?,
            tiles: Buffer::new(driver, limits.tokens.div_ceil(TILE) + limits.sequences)?,
            last: Buffer::new(driver, limits.sequences.max(1))?,
            count: 0,
            singles: 0,
            tile_count: 0,
            wanted: 0,
            longest: 0,
            room: 0,
        })
    }

    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Tokens of the step.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Sequences whose logits are wanted.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.wanted
    }

    /// Sequences with one token.
    #[must_use]
    pub fn singles(&self) -> usize {
        self.singles
    }

    /// The first `count` token ids as they are on the device now: after a sampling, those chosen.
    ///
    /// # Errors
    /// There are not so many, or the device refuses.
    pub fn chosen(&self, count: usize) -> Result<Vec<u32>, CudaError> {
        self.tokens.read(count)
    }

    pub(super) fn tile_count(&self) -> usize {
        self.tile_count
    }

    /// The largest position of single tokens.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Writes a step. With `singles` every token is computed as a single one, whatever its company: the same numbers, to the
    /// bit, however a prompt is cut.
    ///
    /// # Errors
    /// An index is out of range, the step too large, or the device refuses.
    pub fn write(&mut self, steps: &[Steps<'_>], singles: Singles) -> Result<(), CudaError> {
        self.check(steps)?;
        let is_single = |step: &Steps<'_>| step.tokens.len() == 1 || singles == Singles::All;
        let mut host = Host::default();
        let mut ends = vec![0u32; steps.len()];
        let (mut longest, mut room) = (0, usize::MAX);
        for is_turn_of_singles in [true, false] {
            for (sequence, step) in steps.iter().enumerate() {
                if is_single(step) != is_turn_of_singles {
                    continue;
                }
                let start = host.tokens.len();
                host.tokens.extend(step.tokens);
                let positions = step.first..step.first + step.tokens.len();
                host.positions
                    .extend(positions.clone().map(|position| position as u32));
                host.sequences.extend(step.tokens.iter().map(|_| sequence as u32));
                ends[sequence] = (host.tokens.len() - 1) as u32;
                if is_turn_of_singles {
                    longest = longest.max(positions.end - 1);
                    room = room.min(step.blocks.len() * BLOCK - positions.end);
                } else {
                    host.tiles.extend(tiles(start, step, sequence));
                }
            }
            if is_turn_of_singles {
                self.singles = host.tokens.len();
            }
        }
        for step in steps {
            host.tables.extend(step.blocks);
            let row = host.tables.len().next_multiple_of(self.limits.table);
            host.tables.resize(row, 0);
        }
        let wanted = steps.iter().zip(&ends).filter(|(step, _)| step.wants_logits);
        host.last.extend(wanted.map(|(_, end)| *end));
        (self.longest, self.room) = (longest, room);
        self.upload(&host)
    }

    fn check(&self, steps: &[Steps<'_>]) -> Result<(), CudaError> {
        let limits = &self.limits;
        let count: usize = steps.iter().map(|step| step.tokens.len()).sum();
        check(count <= limits.tokens && steps.len() <= limits.sequences, || {
            format!(
                "{count} tokens of {} sequences; room is for {} of {}",
                steps.len(),
                limits.tokens,
                limits.sequences
            )
        })?;
        for step in steps {
            let end = step.first + step.tokens.len();
            check(!step.tokens.is_empty() && !step.blocks.is_empty(), || {
                "a sequence without tokens or blocks".into()
            })?;
            check(
                step.blocks.len() <= limits.table && end <= step.blocks.len() * BLOCK,
                || {
                    format!(
                        "{end} positions in {} blocks (at most {})",
                        step.blocks.len(),
                        limits.table
                    )
                },
            )?;
            check(end <= limits.positions, || {
                format!("position {end} of {}", limits.positions)
            })?;
            let is_known = |ids: &[u32], limit: usize| ids.iter().all(|id| (*id as usize) < limit);
            check(is_known(step.tokens, limits.vocabulary), || {
                format!("a token id beyond {}", limits.vocabulary)
            })?;
            check(is_known(step.blocks, limits.blocks), || {
                format!("a block beyond {}", limits.blocks)
            })?;
        }
        Ok(())
    }

    fn upload(&mut self, host: &Host) -> Result<(), CudaError> {
        self.tokens.write(&host.tokens)?;
        self.positions.write(&host.positions)?;
        self.sequences.write(&host.sequences)?;
        self.tables.write(&host.tables)?;
        self.tiles.write(&host.tiles)?;
        self.last.write(&host.last)?;
        self.count = host.tokens.len();
        self.tile_count = host.tiles.len();
        self.wanted = host.last.len();
        Ok(())
    }
}

/// Which tokens are computed as single ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Singles {
    /// Those that are alone of their sequence.
    Lone,
    All,
}

/// The prefill kernel's tiles of one sequence: first token, number, position of the first, sequence. Cut by count from the
/// first token: a query's sums do not depend on its place in a tile.
fn tiles(start: usize, step: &Steps<'_>, sequence: usize) -> impl Iterator<Item = [u32; 4]> {
    let (count, first) = (step.tokens.len(), step.first);
    (0..count).step_by(TILE).map(move |at| {
        let length = TILE.min(count - at);
        [start + at, length, first + at, sequence].map(|number| number as u32)
    })
}

impl Ops {
    /// After a sampling of single tokens: the tokens chosen are the next step's, each one position further.
    ///
    /// # Errors
    /// The batch has other than single tokens, or no room for one position more.
    pub fn advance(&self, batch: &mut Batch, sampling: &mut Sampling) -> Result<(), CudaError> {
        check(
            batch.singles == batch.count && batch.wanted == batch.count && sampling.rows() >= batch.count,
            || "only single tokens, each of them sampled, can go on by themselves".into(),
        )?;
        check(
            batch.room > 0 && batch.longest + 1 < batch.limits.positions,
            || "no room for one position more".into(),
        )?;
        let args = AdvanceArgs {
            positions: batch.positions.at(),
            draws: sampling.draws_at(),
            count: batch.count as u32,
            pad: 0,
        };
        // SAFETY: `count` is at most the length of both; the next position was just found to be inside of its table.
        unsafe { self.launch("advance", [batch.count.div_ceil(256), 1, 1], (256, 0), &args) }?;
        batch.room -= 1;
        batch.longest += 1;
        Ok(())
    }
}
