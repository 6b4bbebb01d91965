//! Weights on the device, and the ways to multiply by them.

use super::activations::{Activations, Form};
use super::buffer::Buffer;
use super::driver::Gemm;
use super::tiles::{COLS, Kind, Packed, ROWS, pack, weight_block};
use super::{Args, Batch, CudaError, Driver, Ops, Precision, check};
use crate::Rows;
use std::sync::Arc;

/// From so many tokens on, tiles are unpacked to bf16 for the library's GEMM. Guessed from the peak rates of an H100, where the
/// tiles' own multiply reaches perhaps a third of the library's; to be measured.
const UNPACK_FROM: usize = 256;
/// From so many tokens on, the library multiplies bf16 weights. Guessed: below, reading the weights is what it costs.
const LIBRARY_FROM: usize = 9;

#[derive(Debug)]
pub(super) enum Weights {
    Tiles {
        kind: Kind,
        tiles: Buffer<u8>,
        scales: Buffer<u32>,
    },
    /// By rows.
    Bf16(Buffer<u16>),
}

/// A matrix of rows (outputs) by columns (inputs).
#[derive(Debug)]
pub struct Matrix {
    rows: usize,
    columns: usize,
    pub(super) weights: Weights,
}

impl Matrix {
    /// # Errors
    /// There is not so much memory.
    pub fn from_packed(driver: &Arc<dyn Driver>, packed: &Packed) -> Result<Self, CudaError> {
        let tiles = packed.rows / ROWS * (packed.columns / COLS);
        check(
            packed.tiles.len() == tiles * packed.kind.tile_bytes() && packed.scales.len() == tiles * ROWS,
            || format!("{} by {} weights are not all there", packed.rows, packed.columns),
        )?;
        Ok(Self {
            rows: packed.rows,
            columns: packed.columns,
            weights: Weights::Tiles {
                kind: packed.kind,
                tiles: Buffer::from_slice(driver, &packed.tiles)?,
                scales: Buffer::from_slice(driver, &packed.scales)?,
            },
        })
    }

    /// From bf16 bits by rows.
    ///
    /// # Errors
    /// The sizes are not multiples of 8, or there is not so much memory.
    pub fn from_bf16(
        driver: &Arc<dyn Driver>,
        (rows, columns): (usize, usize),
        bits: &[u16],
    ) -> Result<Self, CudaError> {
        check(
            rows.is_multiple_of(8) && columns.is_multiple_of(COLS) && bits.len() == rows * columns,
            || format!("{} bf16 weights are no matrix of {rows} by {columns}", bits.len()),
        )?;
        Ok(Self {
            rows,
            columns,
            weights: Weights::Bf16(Buffer::from_slice(driver, bits)?),
        })
    }

    /// A matrix as a file holds it, or several, one under the other, of the same columns and formats that lie alike (see
    /// [`Matrix::joins`]). Floats become bf16.
    ///
    /// # Errors
    /// The sizes do not divide into tiles, or there is not so much memory.
    pub fn from_rows(driver: &Arc<dyn Driver>, parts: &[Rows<'_>]) -> Result<Self, CudaError> {
        let Some(first) = parts.first() else {
            return Err(CudaError::Shape("a matrix of nothing".into()));
        };
        let columns = first.columns;
        check(
            parts.windows(2).all(|pair| Self::joins(&pair[0], &pair[1])),
            || "matrices that do not lie alike".into(),
        )?;
        for part in parts {
            check(
                part.data.len() == part.rows * part.format.row_bytes(columns),
                || {
                    format!(
                        "{} bytes are no {} by {columns} weights",
                        part.data.len(),
                        part.rows
                    )
                },
            )?;
        }
        let rows = parts.iter().map(|part| part.rows).sum();
        let Some(kind) = Kind::of(first.format) else {
            let mut bits = Vec::with_capacity(rows * columns);
            let mut floats = vec![0.0; columns];
            for part in parts {
                for row in part.data.chunks_exact(part.format.row_bytes(columns)) {
                    part.format.dequantize(row, &mut floats);
                    bits.extend(floats.iter().map(|value| half::bf16::from_f32(*value).to_bits()));
                }
            }
            return Self::from_bf16(driver, (rows, columns), &bits);
        };
        let packed = pack(kind, (rows, columns), &|row, block| {
            let mut row = row;
            for part in parts {
                if row < part.rows {
                    return weight_block(part, row, block);
                }
                row -= part.rows;
            }
            weight_block(first, 0, block)
        })?;
        Self::from_packed(driver, &packed)
    }

    /// Whether two matrices may be made one.
    #[must_use]
    pub fn joins(a: &Rows<'_>, b: &Rows<'_>) -> bool {
        a.columns == b.columns && Kind::of(a.format) == Kind::of(b.format)
    }

    /// Made-up weights, for measuring speed: `None` is bf16.
    ///
    /// # Errors
    /// The sizes do not divide, or there is not so much memory.
    pub fn synthetic(
        ops: &Ops,
        (rows, columns): (usize, usize),
        kind: Option<Kind>,
        seed: u32,
    ) -> Result<Self, CudaError> {
        check(
            rows.is_multiple_of(ROWS) && columns.is_multiple_of(COLS) && rows * columns > 0,
            || format!("{rows} by {columns} weights do not divide into tiles of 16 by 32"),
        )?;
        let driver = ops.driver();
        let amplitude = 1.0 / (columns as f32).sqrt();
        let weights = match kind {
            None => {
                let bits = Buffer::<u16>::new(driver, rows * columns)?;
                ops.fill(&bits, Fill::Bf16(amplitude), seed)?;
                Weights::Bf16(bits)
            }
            Some(kind) => {
                let count = rows / ROWS * (columns / COLS);
                let tiles = Buffer::<u8>::new(driver, count * kind.tile_bytes())?;
                let scales = Buffer::<u32>::new(driver, count * ROWS)?;
                ops.fill(&tiles, Fill::Any, seed)?;
                let (most, zero) = if kind == Kind::W4 {
                    (8.0, -8.0)
                } else {
                    (128.0, 0.0)
                };
                let scale = amplitude / most;
                let second = if kind == Kind::W8x16 { scale } else { zero * scale };
                let bits = |value: f32| u32::from(half::f16::from_f32(value).to_bits());
                ops.fill(&scales, Fill::Same(bits(scale) | bits(second) << 16), seed)?;
                Weights::Tiles { kind, tiles, scales }
            }
        };
        Ok(Self {
            rows,
            columns,
            weights,
        })
    }

    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes on the device.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.weights {
            Weights::Tiles { tiles, scales, .. } => tiles.len() + scales.len() * 4,
            Weights::Bf16(bits) => bits.len() * 2,
        }
    }

    /// In which form it takes the activations of so many tokens.
    #[must_use]
    pub fn form(&self, ops: &Ops, tokens: usize) -> Form {
        let by_library = ops.facts.has_gemm && ops.precision == Precision::Fast;
        match self.weights {
            Weights::Bf16(_) => Form::Bf16,
            Weights::Tiles { .. } if ops.multiplies_on_hopper(self.columns, tokens) => Form::Bf16,
            Weights::Tiles { .. } if by_library && tokens >= UNPACK_FROM => Form::Bf16,
            Weights::Tiles { .. } => Form::Q8,
        }
    }
}

/// Where products go: `rows` floats from `offset` on in each token's `stride`.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub offset: usize,
    pub stride: usize,
    /// Added to what is there, instead of written over it.
    pub then: Then,
}

/// What is done with what was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    Replace,
    Add,
}

/// Room to unpack a matrix into.
#[derive(Debug)]
pub struct Scratch(Buffer<u16>);

impl Scratch {
    /// For matrices of up to so many weights; none where nothing is unpacked.
    ///
    /// # Errors
    /// There is not so much memory.
    pub fn new(ops: &Ops, weights: usize) -> Result<Self, CudaError> {
        let is_used = ops.facts.has_gemm && ops.precision == Precision::Fast;
        Buffer::new(ops.driver(), if is_used { weights } else { 0 }).map(Self)
    }
}

#[repr(C)]
struct MatmulArgs {
    tiles: u64,
    scales: u64,
    x: u64,
    x_scales: u64,
    out: u64,
    rows: u32,
    columns: u32,
    tokens: u32,
    stride: u32,
    adds: u32,
    pad: u32,
}
// SAFETY: five addresses and six numbers of four bytes.
unsafe impl Args for MatmulArgs {}

#[repr(C)]
struct Bf16Args {
    weights: u64,
    x: u64,
    out: u64,
    rows: u32,
    columns: u32,
    tokens: u32,
    stride: u32,
    adds: u32,
    pad: u32,
}
// SAFETY: three addresses and six numbers of four bytes.
unsafe impl Args for Bf16Args {}

#[repr(C)]
struct UnpackArgs {
    tiles: u64,
    scales: u64,
    out: u64,
    columns: u32,
    count: u32,
}
// SAFETY: three addresses and two numbers of four bytes.
unsafe impl Args for UnpackArgs {}

#[repr(C)]
struct EmbedArgs {
    weights: u64,
    scales: u64,
    tokens: u64,
    out: u64,
    columns: u32,
    factor: f32,
}
// SAFETY: four addresses and two numbers of four bytes.
unsafe impl Args for EmbedArgs {}

#[repr(C)]
struct FillArgs {
    out: u64,
    count: u64,
    seed: u32,
    mode: u32,
    bits: u32,
    amplitude: f32,
}
// SAFETY: two numbers of eight bytes and four of four.
unsafe impl Args for FillArgs {}

/// What made-up memory holds.
#[derive(Clone, Copy, Debug)]
enum Fill {
    Any,
    /// bf16 within so much of zero.
    Bf16(f32),
    Same(u32),
}

/// How many tokens a launch of the small multiply takes at once.
fn few(tokens: usize) -> usize {
    tokens.next_power_of_two().min(8)
}

/// Rows of `out` that lie in `Place`, checked.
fn check_place(matrix: &Matrix, x: &Activations, out: &Buffer<f32>, place: &Place) -> Result<(), CudaError> {
    check(x.columns == matrix.columns, || {
        format!(
            "activations of {} columns for a matrix of {}",
            x.columns, matrix.columns
        )
    })?;
    let fits = place.offset + matrix.rows <= place.stride && x.tokens * place.stride <= out.len();
    check(fits, || {
        format!(
            "{} rows at {} of {} for {} tokens in {} floats",
            matrix.rows,
            place.offset,
            place.stride,
            x.tokens,
            out.len()
        )
    })
}

impl Ops {
    /// `x` times the matrix, into `out`. `x` must be in the form that [`Matrix::form`] says for its tokens.
    ///
    /// # Errors
    /// Something is shorter than the sizes say, or the device refuses.
    pub fn multiply(
        &self,
        matrix: &Matrix,
        x: &Activations,
        (out, place): (&mut Buffer<f32>, Place),
        scratch: &mut Scratch,
    ) -> Result<(), CudaError> {
        check_place(matrix, x, out, &place)?;
        if x.tokens == 0 {
            return Ok(());
        }
        let to = out.at() + 4 * place.offset as u64;
        match &matrix.weights {
            Weights::Tiles { kind, tiles, scales } if matrix.form(self, x.tokens) == Form::Q8 => {
                let args = MatmulArgs {
                    tiles: tiles.at(),
                    scales: scales.at(),
                    x: x.quants.at(),
                    x_scales: x.scales.at(),
                    out: to,
                    rows: matrix.rows as u32,
                    columns: matrix.columns as u32,
                    tokens: x.tokens as u32,
                    stride: place.stride as u32,
                    adds: u32::from(place.then == Then::Add),
                    pad: 0,
                };
                self.multiply_tiles(*kind, &args)
            }
            Weights::Tiles { .. } if self.multiplies_on_hopper(matrix.columns, x.tokens) => {
                self.by_hopper(matrix, x, (to, place))
            }
            Weights::Tiles { kind, tiles, scales } => {
                self.unpack(*kind, (tiles, scales), matrix, &mut scratch.0)?;
                let done = self.by_library(scratch.0.at(), matrix, x, (to, place))?;
                check(done, || "the GEMM library has gone".into())
            }
            Weights::Bf16(bits) => {
                let many = x.tokens >= LIBRARY_FROM && self.precision == Precision::Fast;
                if many && self.by_library(bits.at(), matrix, x, (to, place))? {
                    return Ok(());
                }
                if self.multiplies_on_hopper(matrix.columns, x.tokens) {
                    return self.by_hopper(matrix, x, (to, place));
                }
                self.multiply_bf16(bits.at(), matrix, x, (to, place))
            }
        }
    }

    /// A bf16 matrix by the kernel that every card runs, whatever the tokens.
    ///
    /// # Errors
    /// It is not bf16, something is shorter than the sizes say, or the device refuses.
    pub(super) fn multiply_plainly(
        &self,
        matrix: &Matrix,
        x: &Activations,
        (out, place): (&mut Buffer<f32>, Place),
    ) -> Result<(), CudaError> {
        check_place(matrix, x, out, &place)?;
        let Weights::Bf16(bits) = &matrix.weights else {
            return Err(CudaError::Shape("no plain multiply takes tiles and bf16".into()));
        };
        self.multiply_bf16(bits.at(), matrix, x, (out.at() + 4 * place.offset as u64, place))
    }

    fn multiply_tiles(&self, kind: Kind, args: &MatmulArgs) -> Result<(), CudaError> {
        let (tokens, rows, word) = (args.tokens as usize, args.rows as usize, kind.word());
        let (width, grid, shared) = if tokens <= 8 || self.precision == Precision::Invariant {
            let width = few(tokens);
            (width, [rows / ROWS, tokens.div_ceil(width), 1], 512 * width)
        } else {
            let width = tokens.next_power_of_two().clamp(16, 64);
            // Two stages of a token's 36 words and 4 pairs of scales.
            (
                width,
                [rows.div_ceil(128), tokens.div_ceil(width), 1],
                2 * width * (36 * 4 + 4 * 8),
            )
        };
        // SAFETY: `multiply` has checked the places; tiles and scales are as long as rows and columns say, see `Matrix`.
        unsafe { self.launch(&format!("matmul_{word}_{width}"), grid, (256, shared), args) }
    }

    fn multiply_bf16(
        &self,
        bits: u64,
        matrix: &Matrix,
        x: &Activations,
        (to, place): (u64, Place),
    ) -> Result<(), CudaError> {
        let width = few(x.tokens);
        let args = Bf16Args {
            weights: bits,
            x: x.halves.at(),
            out: to,
            rows: matrix.rows as u32,
            columns: matrix.columns as u32,
            tokens: x.tokens as u32,
            stride: place.stride as u32,
            adds: u32::from(place.then == Then::Add),
            pad: 0,
        };
        let grid = [matrix.rows.div_ceil(8), x.tokens.div_ceil(width), 1];
        // SAFETY: as above.
        unsafe { self.launch(&format!("matmul_bf16_{width}"), grid, (256, 0), &args) }
    }

    fn by_library(
        &self,
        weights: u64,
        matrix: &Matrix,
        x: &Activations,
        (to, place): (u64, Place),
    ) -> Result<bool, CudaError> {
        let gemm = Gemm {
            weights,
            x: x.halves.at(),
            out: to,
            rows: matrix.rows,
            columns: matrix.columns,
            tokens: x.tokens,
            stride: place.stride,
            adds: place.then == Then::Add,
        };
        // SAFETY: as above.
        unsafe { self.driver.gemm(&gemm) }
    }

    fn unpack(
        &self,
        kind: Kind,
        (tiles, scales): (&Buffer<u8>, &Buffer<u32>),
        matrix: &Matrix,
        out: &mut Buffer<u16>,
    ) -> Result<(), CudaError> {
        check(out.len() >= matrix.rows * matrix.columns, || {
            format!("no room to unpack {} by {}", matrix.rows, matrix.columns)
        })?;
        let count = matrix.rows / ROWS * (matrix.columns / COLS);
        let args = UnpackArgs {
            tiles: tiles.at(),
            scales: scales.at(),
            out: out.at(),
            columns: matrix.columns as u32,
            count: count as u32,
        };
        // SAFETY: the room was just checked.
        unsafe {
            self.launch(
                &format!("unpack_{}", kind.word()),
                [count.div_ceil(8), 1, 1],
                (256, 0),
                &args,
            )
        }
    }

    /// A tiled matrix as bf16 by rows, as the library would be given it.
    ///
    /// # Errors
    /// The matrix is not tiled, or the device refuses.
    pub fn unpacked(&self, matrix: &Matrix) -> Result<Vec<u16>, CudaError> {
        let Weights::Tiles { kind, tiles, scales } = &matrix.weights else {
            return Err(CudaError::Shape("only tiles are unpacked".into()));
        };
        let count = matrix.rows * matrix.columns;
        let mut out = Buffer::new(self.driver(), count)?;
        self.unpack(*kind, (tiles, scales), matrix, &mut out)?;
        out.read(count)
    }

    /// The rows of an embedding that a batch's tokens name, times `factor`.
    ///
    /// # Errors
    /// Something is shorter than the sizes say, or the device refuses.
    pub fn embed(
        &self,
        matrix: &Matrix,
        batch: &Batch,
        factor: f32,
        out: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        let count = batch.count();
        check(
            batch.limits().vocabulary <= matrix.rows && count * matrix.columns <= out.len(),
            || format!("{count} embeddings of {} in {} floats", matrix.columns, out.len()),
        )?;
        let (kernel, weights, scales) = match &matrix.weights {
            Weights::Tiles { kind, tiles, scales } => {
                (format!("embed_{}", kind.word()), tiles.at(), scales.at())
            }
            Weights::Bf16(bits) => ("embed_bf16".to_owned(), bits.at(), 0),
        };
        let args = EmbedArgs {
            weights,
            scales,
            tokens: batch.tokens.at(),
            out: out.at(),
            columns: matrix.columns as u32,
            factor,
        };
        // SAFETY: a batch's tokens are below its vocabulary, see `Batch`.
        unsafe { self.launch(&kernel, [count, 1, 1], (256, 0), &args) }
    }

    fn fill<T: super::Plain>(&self, out: &Buffer<T>, fill: Fill, seed: u32) -> Result<(), CudaError> {
        let words = out.len() * size_of::<T>() / 4;
        let (mode, bits, amplitude) = match fill {
            Fill::Any => (0, 0, 0.0),
            Fill::Bf16(amplitude) => (1, 0, amplitude),
            Fill::Same(bits) => (2, bits, 0.0),
        };
        let args = FillArgs {
            out: out.at(),
            count: words as u64,
            seed,
            mode,
            bits,
            amplitude,
        };
        // SAFETY: so many whole words lie in the buffer.
        unsafe { self.launch("fill", [words.div_ceil(256).min(4096), 1, 1], (256, 0), &args) }
    }
}
