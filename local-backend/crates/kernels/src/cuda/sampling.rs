//! Choosing tokens on the device, so that only ids come back. The rules are those of [`Draw`], to the bit.

use super::buffer::{Buffer, Plain};
use super::{Args, Batch, CudaError, Driver, Ops, check};
use crate::draw::{Draw, THREADS};
use std::sync::Arc;

/// A draw as the kernel has it.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Packed {
    inverse: f32,
    top_p: f32,
    least: f32,
    top_k: f32,
    seed: u64,
    index: u64,
}
// SAFETY: four numbers of four bytes and two of eight, without holes.
unsafe impl Plain for Packed {}

impl From<&Draw> for Packed {
    fn from(draw: &Draw) -> Self {
        Self {
            inverse: draw.inverse(),
            top_p: draw.top_p,
            least: draw.least(),
            top_k: draw.top_k as f32,
            seed: draw.seed,
            index: draw.index,
        }
    }
}

/// How a step's rows are drawn.
#[derive(Debug)]
pub struct Sampling {
    draws: Buffer<Packed>,
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
            draws: Buffer::new(driver, rows)?,
            rows: 0,
            vocabulary,
        })
    }

    /// Sets how each row is drawn.
    ///
    /// # Errors
    /// More rows than there is room for, a number that makes no sense, or the device refuses.
    pub fn set(&mut self, rows: &[Draw]) -> Result<(), CudaError> {
        for row in rows {
            let is_sound = row.temperature >= 0.0 && row.top_p >= 0.0 && (0.0..=1.0).contains(&row.min_p);
            check(is_sound, || format!("{row:?} makes no sense"))?;
        }
        self.draws
            .write(&rows.iter().map(Packed::from).collect::<Vec<_>>())?;
        self.rows = rows.len();
        Ok(())
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn draws_at(&self) -> u64 {
        self.draws.at()
    }
}

#[repr(C)]
struct SampleArgs {
    logits: u64,
    tokens: u64,
    draws: u64,
    vocabulary: u32,
    pad: u32,
}
// SAFETY: three addresses and two numbers of four bytes.
unsafe impl Args for SampleArgs {}

impl Ops {
    /// Chooses a token of each row of `logits`. Rows of which the likeliest is taken stay as they are; the others are lost.
    ///
    /// # Errors
    /// Something is shorter than the sizes say, or the device refuses.
    pub fn sample(
        &self,
        logits: &mut Buffer<f32>,
        sampling: &Sampling,
        tokens: &mut Buffer<u32>,
    ) -> Result<(), CudaError> {
        let (rows, vocabulary) = (sampling.rows, sampling.vocabulary);
        check(logits.len() >= rows * vocabulary && tokens.len() >= rows, || {
            format!("{rows} rows of {vocabulary} in {} logits", logits.len())
        })?;
        let args = SampleArgs {
            logits: logits.at(),
            tokens: tokens.at(),
            draws: sampling.draws_at(),
            vocabulary: vocabulary as u32,
            pad: 0,
        };
        // SAFETY: lengths were just checked.
        unsafe { self.launch("sample", [rows, 1, 1], (THREADS as u32, 4 * (THREADS + 2)), &args) }
    }

    /// Chooses the batch's next tokens, into the batch: they are computed next, after [`Ops::advance`].
    ///
    /// # Errors
    /// The batch has other rows than the sampling, or the device refuses.
    pub fn sample_next(
        &self,
        logits: &mut Buffer<f32>,
        sampling: &Sampling,
        batch: &mut Batch,
    ) -> Result<(), CudaError> {
        check(
            sampling.rows == batch.count() && sampling.vocabulary <= batch.limits().vocabulary,
            || "the sampling is of another batch".into(),
        )?;
        self.sample(logits, sampling, &mut batch.tokens)
    }
}
