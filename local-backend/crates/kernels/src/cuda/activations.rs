//! What the multiplies take, and the small kernels that make it: norms and the gated activation.

use super::buffer::Buffer;
use super::driver::Launch;
use super::{Args, CudaError, Driver, Ops, check};
use std::sync::Arc;

/// In which form activations are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// int8 in blocks of 32 columns.
    Q8,
    Bf16,
}

/// Room for the activations of some tokens, in either form.
#[derive(Debug)]
pub struct Activations {
    pub(super) quants: Buffer<i8>,
    pub(super) scales: Buffer<[f32; 2]>,
    pub(super) halves: Buffer<u16>,
    pub(super) columns: usize,
    pub(super) tokens: usize,
}

impl Activations {
    /// Room for `elements` in all.
    ///
    /// # Errors
    /// There is not so much memory.
    pub fn new(driver: &Arc<dyn Driver>, elements: usize) -> Result<Self, CudaError> {
        Ok(Self {
            quants: Buffer::new(driver, elements)?,
            scales: Buffer::new(driver, elements.div_ceil(32))?,
            halves: Buffer::new(driver, elements)?,
            columns: 0,
            tokens: 0,
        })
    }

    /// int8 values, and scale and scale times sum of each block, as they lie on the device.
    ///
    /// # Errors
    /// The device refuses.
    pub fn read_q8(&self) -> Result<(Vec<i8>, Vec<[f32; 2]>), CudaError> {
        let count = self.tokens * self.columns;
        Ok((self.quants.read(count)?, self.scales.read(count / 32)?))
    }

    /// bf16 values as they lie on the device.
    ///
    /// # Errors
    /// The device refuses.
    pub fn read_bf16(&self) -> Result<Vec<u16>, CudaError> {
        self.halves.read(self.tokens * self.columns)
    }

    fn shape(&mut self, tokens: usize, columns: usize) -> Result<(), CudaError> {
        check(
            columns.is_multiple_of(32) && columns > 0 && tokens * columns <= self.quants.len(),
            || {
                format!(
                    "{tokens} tokens of {columns} columns do not fit into {}",
                    self.quants.len()
                )
            },
        )?;
        (self.tokens, self.columns) = (tokens, columns);
        Ok(())
    }
}

/// A norm over rows of `x`.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    pub x: &'a Buffer<f32>,
    /// None: no norm, the values as they are.
    pub weight: Option<&'a Buffer<f32>>,
    pub columns: usize,
    /// Rows made.
    pub tokens: usize,
    pub epsilon: f32,
}

/// Which rows of `x` are taken.
#[derive(Clone, Copy, Debug)]
pub enum Emit<'a> {
    /// All, in order.
    All,
    /// Those that a batch wants logits of.
    Wanted(&'a super::Batch),
}

#[repr(C)]
struct NormArgs {
    x: u64,
    weight: u64,
    rows: u64,
    out: u64,
    scales: u64,
    columns: u32,
    epsilon: f32,
}
// SAFETY: five addresses and two numbers of four bytes.
unsafe impl Args for NormArgs {}

/// The gated activation between the halves of a feed-forward layer.
#[derive(Clone, Copy, Debug)]
pub struct Glu<'a> {
    /// Tokens by (gate, up) by columns.
    pub gate_up: &'a Buffer<f32>,
    pub columns: usize,
    pub tokens: usize,
    pub gate: Gate,
}

/// The activation of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    Silu,
    /// Gelu by its approximation with tanh.
    GeluTanh,
}

#[repr(C)]
struct GluArgs {
    gate_up: u64,
    out: u64,
    scales: u64,
    columns: u32,
    gelu: u32,
}
// SAFETY: three addresses and two numbers of four bytes.
unsafe impl Args for GluArgs {}

impl Ops {
    /// Normed rows in the form that a multiply takes.
    ///
    /// # Errors
    /// Something is shorter than the sizes say, or the device refuses.
    pub fn norm(
        &self,
        norm: &Norm<'_>,
        emit: Emit<'_>,
        form: Form,
        out: &mut Activations,
    ) -> Result<(), CudaError> {
        out.shape(norm.tokens, norm.columns)?;
        let (kernel, to) = match form {
            Form::Q8 => ("norm_q8", out.quants.at()),
            Form::Bf16 => ("norm_bf16", out.halves.at()),
        };
        self.norm_launch(kernel, norm, emit, (to, out.scales.at()))
    }

    /// Normed rows added to `out`.
    ///
    /// # Errors
    /// Something is shorter than the sizes say, or the device refuses.
    pub fn norm_add(&self, norm: &Norm<'_>, out: &mut Buffer<f32>) -> Result<(), CudaError> {
        check(out.len() >= norm.tokens * norm.columns, || {
            format!("{} floats for {} by {}", out.len(), norm.tokens, norm.columns)
        })?;
        self.norm_launch("norm_add", norm, Emit::All, (out.at(), 0))
    }

    fn norm_launch(
        &self,
        kernel: &str,
        norm: &Norm<'_>,
        emit: Emit<'_>,
        to: (u64, u64),
    ) -> Result<(), CudaError> {
        let (rows, from) = match emit {
            Emit::All => (0, norm.tokens),
            Emit::Wanted(batch) => {
                check(norm.tokens <= batch.wanted(), || {
                    "more rows than are wanted".into()
                })?;
                (batch.last.at(), batch.count())
            }
        };
        check(
            norm.columns.is_multiple_of(32) && from * norm.columns <= norm.x.len(),
            || format!("{from} rows of {} in {} floats", norm.columns, norm.x.len()),
        )?;
        check(
            norm.weight.is_none_or(|weight| weight.len() >= norm.columns),
            || format!("a norm's weights are fewer than {}", norm.columns),
        )?;
        if norm.tokens == 0 {
            return Ok(());
        }
        let args = NormArgs {
            x: norm.x.at(),
            weight: norm.weight.map_or(0, Buffer::at),
            rows,
            out: to.0,
            scales: to.1,
            columns: norm.columns as u32,
            epsilon: norm.epsilon,
        };
        // SAFETY: lengths were checked here and by the callers; a batch's rows are below its count, see `Batch`.
        unsafe { self.launch(kernel, [norm.tokens, 1, 1], (256, 128), &args) }
    }

    /// act(gate) · up, in the form that a multiply takes.
    ///
    /// # Errors
    /// Something is shorter than the sizes say, or the device refuses.
    pub fn glu(&self, glu: &Glu<'_>, form: Form, out: &mut Activations) -> Result<(), CudaError> {
        out.shape(glu.tokens, glu.columns)?;
        check(glu.gate_up.len() >= 2 * glu.tokens * glu.columns, || {
            format!(
                "{} floats for gates of {} by {}",
                glu.gate_up.len(),
                glu.tokens,
                glu.columns
            )
        })?;
        let (kernel, to) = match form {
            Form::Q8 => ("glu_q8", out.quants.at()),
            Form::Bf16 => ("glu_bf16", out.halves.at()),
        };
        let args = GluArgs {
            gate_up: glu.gate_up.at(),
            out: to,
            scales: out.scales.at(),
            columns: glu.columns as u32,
            gelu: u32::from(glu.gate == Gate::GeluTanh),
        };
        // SAFETY: lengths were just checked.
        unsafe {
            self.launch(
                kernel,
                [glu.tokens, glu.columns.div_ceil(256), 1],
                (256, 0),
                &args,
            )
        }
    }

    /// # Safety
    /// `args` is the kernel's argument, and every address in it has the bytes that the kernel touches.
    pub(super) unsafe fn launch(
        &self,
        kernel: &str,
        grid: [usize; 3],
        (threads, shared): (u32, usize),
        args: &impl Args,
    ) -> Result<(), CudaError> {
        if grid.contains(&0) {
            return Ok(());
        }
        check(grid[1] <= 65_535 && grid[2] <= 65_535, || {
            format!("{kernel}: a grid of {grid:?} is more than a card takes")
        })?;
        let launch = Launch {
            kernel,
            grid: grid.map(|size| size as u32),
            threads,
            shared: shared as u32,
            args: args.bytes(),
        };
        // SAFETY: the caller's promise.
        unsafe { self.driver.launch(&launch) }
    }
}
