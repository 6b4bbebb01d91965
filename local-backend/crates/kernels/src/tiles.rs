//! Weights re-laid for the multiply: tiles of 16 rows by 32 columns, for quantized ones, and columns of 16 rows, for floats.
//!
//! A tile keeps, for every four columns, the four weights of each of its 16 rows side by side, which is what one VNNI
//! instruction takes.
//!
//! | layout | bytes of a tile | weights | after them | serves |
//! | --- | --- | --- | --- | --- |
//! | W4 | 320 | nibbles: the low ones are columns 0 to 15 | 16 scales, 16 minimums in f16 | Q4_0, Q4_1, Q4_K |
//! | W5 | 384 | nibbles, then fifth bits | the same | Q5_0, Q5_1, Q5_K |
//! | W6 | 448 | nibbles, then pairs of high bits, less 32 | 16 scales of each half in f16 | Q6_K |
//! | W8 | 544 | bytes, less 128 | 16 scales in f16 | Q8_0 |
//!
//! W4, W5 and W8 hold exactly what the file holds, but for Q4_K and Q5_K, whose 6-bit scales are multiplied out into f16;
//! so are Q6_K's.

use crate::formats::{Block, COLS, Format};
use crate::memory::Buffer;
use crate::pool::Pool;
use half::f16;

/// Rows of a tile.
pub(crate) const ROWS: usize = 16;

/// Rows or columns of the largest matrix: products of two sizes and the bytes of a weight stay far within 64 bits.
const LARGEST: usize = 1 << 24;

/// How a matrix is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    W4,
    W5,
    W6,
    W8,
    F16,
    Bf16,
    F32,
}

impl Layout {
    fn of(format: Format) -> Self {
        match format {
            Format::Q4_0 | Format::Q4_1 | Format::Q4K => Self::W4,
            Format::Q5_0 | Format::Q5_1 | Format::Q5K => Self::W5,
            Format::Q6K => Self::W6,
            Format::Q8_0 => Self::W8,
            Format::F16 => Self::F16,
            Format::Bf16 => Self::Bf16,
            Format::F32 => Self::F32,
        }
    }

    /// Bytes of 16 rows by `columns`.
    fn group_bytes(self, columns: usize) -> usize {
        match self {
            Self::W4 => columns / COLS * 320,
            Self::W5 => columns / COLS * 384,
            Self::W6 => columns / COLS * 448,
            Self::W8 => columns / COLS * 544,
            Self::F16 | Self::Bf16 => columns * ROWS * 2,
            Self::F32 => columns * ROWS * 4,
        }
    }
}

/// What a matrix multiplies: activations rounded to eight bits, or as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    Int8,
    Float,
}

/// Weights as a file holds them, row by row.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    pub format: Format,
    pub data: &'a [u8],
    pub rows: usize,
    pub columns: usize,
}

/// A weight matrix of rows (outputs) by columns (inputs).
#[derive(Debug)]
pub struct Matrix {
    rows: usize,
    columns: usize,
    pub(crate) layout: Layout,
    tiles: Buffer,
}

impl Matrix {
    /// Lays out a matrix.
    ///
    /// # Errors
    /// The shape does not fit the data or the format, or there is no memory.
    pub fn new(pool: &mut Pool, source: Rows<'_>) -> Result<Self, String> {
        let Rows {
            format,
            data,
            rows,
            columns,
        } = source;
        if rows > LARGEST || columns > LARGEST {
            return Err(format!("{rows} by {columns} is more than a matrix can have here"));
        }
        if columns == 0 || !columns.is_multiple_of(format.block_weights()) {
            return Err(format!(
                "rows of {columns} weights do not divide into blocks of {format:?}"
            ));
        }
        if data.len() != rows * format.row_bytes(columns) {
            return Err(format!(
                "{} bytes are not {rows} rows of {columns} weights in {format:?}",
                data.len()
            ));
        }
        let layout = Layout::of(format);
        let (groups, bytes) = (rows.div_ceil(ROWS), layout.group_bytes(columns));
        let mut tiles = Buffer::new(groups * bytes)
            .map_err(|error| format!("no memory for {} bytes of weights: {error}", groups * bytes))?;
        struct Base(*mut u8);
        // SAFETY: every group is written by the one call that has its index.
        unsafe impl Sync for Base {}
        let base = &Base(tiles.base());
        pool.run(groups, &|group| {
            // SAFETY: the buffer has `groups` times `bytes` bytes, and no other call has this group.
            let out = unsafe { std::slice::from_raw_parts_mut(base.0.add(group * bytes), bytes) };
            if format.is_quantized() {
                lay_tiles(layout, source, group, out);
            } else {
                lay_columns(source, group, out);
            }
        });
        Ok(Self {
            rows,
            columns,
            layout,
            tiles,
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

    /// Bytes that a multiply reads.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.tiles.bytes().len()
    }

    /// What it multiplies.
    #[must_use]
    pub fn precision(&self) -> Precision {
        match self.layout {
            Layout::W4 | Layout::W5 | Layout::W6 | Layout::W8 => Precision::Int8,
            Layout::F16 | Layout::Bf16 | Layout::F32 => Precision::Float,
        }
    }

    pub(crate) fn groups(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    /// The tiles of 16 rows.
    pub(crate) fn group(&self, group: usize) -> &[u8] {
        let bytes = self.layout.group_bytes(self.columns);
        &self.tiles.bytes()[group * bytes..(group + 1) * bytes]
    }
}

/// Rows past the end are left zero: scales of zero give sums of zero.
fn lay_tiles(layout: Layout, source: Rows<'_>, group: usize, out: &mut [u8]) {
    let row_bytes = source.format.row_bytes(source.columns);
    for row in 0..ROWS.min(source.rows - group * ROWS) {
        let start = (group * ROWS + row) * row_bytes;
        let data = &source.data[start..start + row_bytes];
        for (index, tile) in out.chunks_exact_mut(layout.group_bytes(COLS)).enumerate() {
            lay_row(layout, tile, row, &source.format.block(data, index));
        }
    }
}

fn lay_row(layout: Layout, tile: &mut [u8], row: usize, block: &Block) {
    let place = row * 4;
    if layout == Layout::W8 {
        for (part, four) in block.quants.chunks_exact(4).enumerate() {
            tile[part * 64 + place..][..4].copy_from_slice(four);
        }
    } else {
        for at in 0..16 {
            let (low, high) = (block.quants[at], block.quants[at + 16]);
            let (part, lane) = (at / 4, place + at % 4);
            tile[part * 64 + lane] = low & 15 | high << 4;
            match layout {
                Layout::W5 => tile[256 + lane] |= (low >> 4) << part | (high >> 4) << (part + 4),
                Layout::W6 => {
                    let bits = low >> 4 | (high >> 4) << 2;
                    tile[256 + part / 2 * 64 + lane] |= bits << (part % 2 * 4);
                }
                _ => {}
            }
        }
    }
    let (after, second) = match layout {
        Layout::W4 => (256, block.minimum),
        Layout::W5 => (320, block.minimum),
        Layout::W6 => (384, block.scales[1]),
        _ => (512, 0.0),
    };
    tile[after + row * 2..][..2].copy_from_slice(&f16::from_f32(block.scales[0]).to_le_bytes());
    if layout != Layout::W8 {
        tile[after + 32 + row * 2..][..2].copy_from_slice(&f16::from_f32(second).to_le_bytes());
    }
}

fn lay_columns(source: Rows<'_>, group: usize, out: &mut [u8]) {
    let size = source.format.block_bytes();
    for row in 0..ROWS.min(source.rows - group * ROWS) {
        let start = (group * ROWS + row) * source.columns * size;
        let data = &source.data[start..start + source.columns * size];
        for (column, weight) in data.chunks_exact(size).enumerate() {
            out[(column * ROWS + row) * size..][..size].copy_from_slice(weight);
        }
    }
}
