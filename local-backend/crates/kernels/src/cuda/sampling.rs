//! Choosing tokens on the device, so that only ids come back. The rules are those of the engine's sampler.

use super::buffer::Buffer;
use super::{Args, Batch, CudaError, Driver, Ops, check};
use std::sync::Arc;

/// How one row is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cuts {
    /// 0 takes the likeliest token.
    pub temperature: f32,
    pub top_p: f32,
    pub min_p: f32,
    /// 0 is no limit.
    pub top_k: u32,
    pub seed: u64,
    /// How many tokens were drawn with the seed before.
    pub draws: u64,
}

impl Default for Cuts {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            min_p: 0.0,
            top_k: 0,
            seed: 0,
            draws: 0,
        }
    }
}

/// The choices of a step's rows, and their scratch.
#[derive(Debug)]
pub struct Sampling {
    weights: Buffer<f32>,
    seeds: Buffer<u64>,
    pub(super) draws: Buffer<u64>,
    cuts: Buffer<[f32; 4]>,
    rows: usize,
    vocabulary: usize,
}

impl Sampling {
    /// For up to `rows` rows.
    ///
    /// # Errors
    /// There is not so much memory.
    pub fn new(driver: &Arc<dyn Driver>, rows: usize, vocabulary: usize) -> Result<Self, CudaError> {
        Ok(Self {
            weights: Buffer::new(driver, rows * vocabulary)?,
            seeds: Buffer::new(driver, rows)?,
            draws: Buffer::new(driver, rows)?,
            cuts: Buffer::new(driver, rows)?,
            rows: 0,
            vocabulary,
        })
    }

    /// Sets how each row is chosen.
    ///
    /// # Errors
    /// More rows than there is room for, a number that makes no sense, or the device refuses.
    pub fn set(&mut self, rows: &[Cuts]) -> Result<(), CudaError> {
        for row in rows {
            let is_sound = row.temperature >= 0.0 && row.top_p > 0.0 && (0.0..=1.0).contains(&row.min_p);
            check(is_sound, || format!("{row:?} makes no sense"))?;
        }
        let all = |row: &Cuts| [row.temperature, row.top_p, row.min_p, row.top_k as f32];
        self.seeds
            .write(&rows.iter().map(|row| row.seed).collect::<Vec<_>>())?;
        self.draws
            .write(&rows.iter().map(|row| row.draws).collect::<Vec<_>>())?;
        self.cuts.write(&rows.iter().map(all).collect::<Vec<_>>())?;
        self.rows = rows.len();
        Ok(())
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }
}

#[repr(C)]
struct SampleArgs {
    logits: u64,
    weights: u64,
    tokens: u64,
    seeds: u64,
    draws: u64,
    cuts: u64,
    vocabulary: u32,
    pad: u32,
}
// SAFETY: six addresses and two numbers of four bytes.
unsafe impl Args for SampleArgs {}

impl Ops {
    /// Chooses a token of each row of `logits`.
    ///
    /// # Errors
    /// Something is shorter than the sizes say, or the device refuses.
    pub fn sample(
        &self,
        logits: &Buffer<f32>,
        sampling: &mut Sampling,
        tokens: &mut Buffer<u32>,
    ) -> Result<(), CudaError> {
        let (rows, vocabulary) = (sampling.rows, sampling.vocabulary);
        check(logits.len() >= rows * vocabulary && tokens.len() >= rows, || {
            format!("{rows} rows of {vocabulary} in {} logits", logits.len())
        })?;
        let args = SampleArgs {
            logits: logits.at(),
            weights: sampling.weights.at(),
            tokens: tokens.at(),
            seeds: sampling.seeds.at(),
            draws: sampling.draws.at(),
            cuts: sampling.cuts.at(),
            vocabulary: vocabulary as u32,
            pad: 0,
        };
        // SAFETY: lengths were just checked.
        unsafe { self.launch("sample", [rows, 1, 1], (512, 4 * (512 + 2)), &args) }
    }

    /// Chooses the batch's next tokens, into the batch: they are computed next, after [`Ops::advance`].
    ///
    /// # Errors
    /// The batch has other rows than the sampling, or the device refuses.
    pub fn sample_next(
        &self,
        logits: &Buffer<f32>,
        sampling: &mut Sampling,
        batch: &mut Batch,
    ) -> Result<(), CudaError> {
        check(
            sampling.rows == batch.count() && sampling.vocabulary <= batch.limits().vocabulary,
            || "the sampling is of another batch".into(),
        )?;
        self.sample(logits, sampling, &mut batch.tokens)
    }
}
