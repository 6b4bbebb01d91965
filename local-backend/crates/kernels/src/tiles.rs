//! Quantized weights re-laid for the multiply: tiles of 16 rows by 32 columns.
//!
//! A tile keeps, for every four columns, the four weights of each of its 16 rows side by side, which is what one
//! VNNI instruction takes. W4: 256 bytes of nibbles (the low ones are columns 0 to 15, the high ones 16 to 31), then 16
//! scales and 16 minimums in f16. W8: 512 bytes, each weight plus 128, then 16 scales in f16.

use crate::pool::Pool;
use crate::scalar;
use half::f16;

pub(crate) const ROWS: usize = 16;
pub(crate) const COLS: usize = 32;
pub(crate) const W4_TILE: usize = 256 + 64;
pub(crate) const W8_TILE: usize = 512 + 32;
/// Tokens multiplied by a tile while it is in registers.
pub(crate) const TOKENS: usize = 8;

/// How weights lie in a GGUF file, in blocks of 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// f16 scale, 16 bytes of nibbles: `scale · (q − 8)`.
    Q4_0,
    /// f16 scale, f16 minimum, 16 bytes of nibbles: `scale · q + minimum`.
    Q4_1,
    /// f16 scale, 32 signed bytes: `scale · q`.
    Q8_0,
}

impl Format {
    /// Bytes of a block of 32 weights.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
        }
    }

    /// The weights of one row as floats.
    pub fn dequantize(self, row: &[u8], out: &mut [f32]) {
        for (block, out) in row
            .chunks_exact(self.block_bytes())
            .zip(out.chunks_exact_mut(COLS))
        {
            let (scale, minimum, quants) = self.parts(block);
            for (column, value) in out.iter_mut().enumerate() {
                *value = scale.to_f32() * f32::from(self.quant(quants, column)) + minimum.to_f32();
            }
        }
    }

    fn parts(self, block: &[u8]) -> (f16, f16, &[u8]) {
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]);
        match self {
            Self::Q4_0 => (half(0), f16::from_f32(-8.0 * half(0).to_f32()), &block[2..]),
            Self::Q4_1 => (half(0), half(2), &block[4..]),
            Self::Q8_0 => (half(0), f16::ZERO, &block[2..]),
        }
    }

    fn quant(self, quants: &[u8], column: usize) -> i16 {
        match self {
            Self::Q8_0 => i16::from(quants[column].cast_signed()),
            _ if column < 16 => i16::from(quants[column] & 15),
            _ => i16::from(quants[column - 16] >> 4),
        }
    }
}

/// Activations of several tokens as int8, in blocks of 32 columns.
#[derive(Clone, Debug, Default)]
pub struct Quantized {
    pub(crate) columns: usize,
    pub(crate) values: Vec<i8>,
    /// One per block.
    pub(crate) scales: Vec<f32>,
    /// Scale times the sum of the block's values: what a minimum is multiplied by.
    pub(crate) sums: Vec<f32>,
}

impl Quantized {
    /// Quantizes `x`, tokens by columns; columns must be a multiple of 32.
    pub fn new(x: &[f32], columns: usize) -> Self {
        assert!(
            columns.is_multiple_of(COLS) && x.len().is_multiple_of(columns),
            "blocks of 32 columns"
        );
        let mut out = Self {
            columns,
            values: Vec::with_capacity(x.len()),
            scales: Vec::with_capacity(x.len() / COLS),
            sums: Vec::with_capacity(x.len() / COLS),
        };
        for block in x.chunks_exact(COLS) {
            let largest = block
                .iter()
                .fold(0.0f32, |largest, value| largest.max(value.abs()));
            let scale = largest / 127.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            let mut sum = 0i32;
            for value in block {
                let quant = (value * inverse).round_ties_even() as i8;
                sum += i32::from(quant);
                out.values.push(quant);
            }
            out.scales.push(scale);
            out.sums.push(scale * sum as f32);
        }
        out
    }

    pub fn tokens(&self) -> usize {
        self.values.len() / self.columns
    }
}

/// A weight matrix of rows (outputs) by columns (inputs).
#[derive(Debug)]
pub struct Matrix {
    rows: usize,
    columns: usize,
    pub(crate) wide: bool,
    tiles: Vec<u8>,
}

impl Matrix {
    /// Lays out a matrix from its GGUF bytes. Rows must be a multiple of 16, columns of 32.
    pub fn new(format: Format, data: &[u8], rows: usize, columns: usize) -> Self {
        assert!(
            rows.is_multiple_of(ROWS) && columns.is_multiple_of(COLS),
            "tiles of 16 rows by 32 columns"
        );
        let (blocks, bytes) = (columns / COLS, format.block_bytes());
        assert!(
            data.len() == rows * blocks * bytes,
            "the data must be {rows} rows of {columns} weights"
        );
        let wide = format == Format::Q8_0;
        let tile_bytes = if wide { W8_TILE } else { W4_TILE };
        let mut tiles = vec![0u8; rows / ROWS * blocks * tile_bytes];
        for (index, tile) in tiles.chunks_exact_mut(tile_bytes).enumerate() {
            let (group, block) = (index / blocks, index % blocks);
            for row in 0..ROWS {
                let start = ((group * ROWS + row) * blocks + block) * bytes;
                let (scale, minimum, quants) = format.parts(&data[start..start + bytes]);
                for column in 0..COLS {
                    let quant = format.quant(quants, column);
                    if wide {
                        tile[column / 4 * 64 + row * 4 + column % 4] = (quant + 128) as u8;
                    } else {
                        let place = (column % 16) / 4 * 64 + row * 4 + column % 4;
                        tile[place] |= (quant as u8) << if column < 16 { 0 } else { 4 };
                    }
                }
                let scales = if wide { 512 } else { 256 };
                tile[scales + row * 2..][..2].copy_from_slice(&scale.to_le_bytes());
                if !wide {
                    tile[scales + 32 + row * 2..][..2].copy_from_slice(&minimum.to_le_bytes());
                }
            }
        }
        Self {
            rows,
            columns,
            wide,
            tiles,
        }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    #[cfg(test)]
    pub(crate) fn tiles(&self) -> &[u8] {
        &self.tiles
    }

    pub fn bytes(&self) -> usize {
        self.tiles.len()
    }

    /// `out` = tokens by rows.
    pub fn multiply(&self, pool: &mut Pool, x: &Quantized, out: &mut [f32]) {
        assert!(
            x.columns == self.columns && out.len() == x.tokens() * self.rows,
            "shapes must fit"
        );
        struct Out(*mut f32);
        // SAFETY: every group of rows writes to places that no other group writes to.
        unsafe impl Sync for Out {}
        let target = &Out(out.as_mut_ptr());
        let group_bytes = self.columns / COLS * if self.wide { W8_TILE } else { W4_TILE };
        let (groups, tokens) = (self.rows / ROWS, x.tokens());
        // Enough groups at a time that taking one costs little beside doing it.
        let stride = (groups / (pool.threads() * 8)).clamp(1, 16);
        pool.run(groups.div_ceil(stride), &|part| {
            for group in part * stride..((part + 1) * stride).min(groups) {
                let tiles = &self.tiles[group * group_bytes..(group + 1) * group_bytes];
                let mut sums = [[0.0f32; ROWS]; TOKENS];
                for first in (0..tokens).step_by(TOKENS) {
                    let count = TOKENS.min(tokens - first);
                    self.group(tiles, x, first..first + count, &mut sums);
                    for (token, sums) in sums.iter().enumerate().take(count) {
                        let place = (first + token) * self.rows + group * ROWS;
                        // SAFETY: token and group are in range, so the 16 floats lie in `out`; see `Out`.
                        unsafe { std::ptr::copy_nonoverlapping(sums.as_ptr(), target.0.add(place), ROWS) };
                    }
                }
            }
        });
    }

    fn group(
        &self,
        tiles: &[u8],
        x: &Quantized,
        tokens: std::ops::Range<usize>,
        out: &mut [[f32; ROWS]; TOKENS],
    ) {
        #[cfg(target_arch = "x86_64")]
        if crate::avx512::available() {
            // SAFETY: the features were just found present.
            unsafe { crate::avx512::group(self.wide, tiles, x, tokens, out) };
            return;
        }
        scalar::group(self.wide, tiles, x, tokens, out);
    }
}
