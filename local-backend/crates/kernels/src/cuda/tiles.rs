//! Quantized weights as the kernels take them; the layout is told in `cuda/prelude.cuh`.

use super::CudaError;
use crate::{Format, Rows};
use half::f16;

pub(super) const ROWS: usize = 16;
pub(super) const COLS: usize = 32;

/// A layout of tiles of 16 rows by 32 columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Four bits; scale and minimum for each row of a tile.
    W4,
    /// Eight bits; scale and minimum for each row of a tile.
    W8,
    /// Eight bits; a scale for each half of a row of a tile.
    W8x16,
}

impl Kind {
    /// Bytes of a tile's weights, without scales.
    #[must_use]
    pub const fn tile_bytes(self) -> usize {
        match self {
            Self::W4 => 256,
            Self::W8 | Self::W8x16 => 512,
        }
    }

    /// The layout that holds a format's weights, if it is a quantized one.
    #[must_use]
    pub const fn of(format: Format) -> Option<Self> {
        match format {
            Format::Q4_0 | Format::Q4_1 | Format::Q4K => Some(Self::W4),
            Format::Q5_0 | Format::Q5_1 | Format::Q5K | Format::Q8_0 => Some(Self::W8),
            Format::Q6K => Some(Self::W8x16),
            Format::F16 | Format::Bf16 | Format::F32 => None,
        }
    }

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::W4 => "w4",
            Self::W8 => "w8",
            Self::W8x16 => "w8x16",
        }
    }
}

/// 32 weights of a row: `scales[column / 16] · quant + minimum`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightBlock {
    pub quants: [i16; COLS],
    pub scales: [f32; 2],
    pub minimum: f32,
}

/// The 32 weights at block `block` of row `row`.
pub(super) fn weight_block(rows: &Rows<'_>, row: usize, block: usize) -> WeightBlock {
    let bytes = rows.format.row_bytes(rows.columns);
    let block = rows
        .format
        .block(&rows.data[row * bytes..(row + 1) * bytes], block);
    WeightBlock {
        quants: block.quants.map(|quant| i16::from(quant) - i16::from(block.zero)),
        scales: block.scales,
        minimum: block.minimum,
    }
}

/// A packed matrix, still on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    pub kind: Kind,
    pub rows: usize,
    pub columns: usize,
    pub tiles: Vec<u8>,
    /// Two f16 for each row of each tile.
    pub scales: Vec<u32>,
}

/// Lays out `rows` by `columns` weights; `block` gives 32 of them by row and block of columns. All cores take part.
///
/// # Errors
/// The sizes do not divide into tiles, or a block does not fit the kind.
pub fn pack(
    kind: Kind,
    (rows, columns): (usize, usize),
    block: &(dyn Fn(usize, usize) -> WeightBlock + Sync),
) -> Result<Packed, CudaError> {
    if rows == 0 || columns == 0 || !rows.is_multiple_of(ROWS) || !columns.is_multiple_of(COLS) {
        return Err(CudaError::Shape(format!(
            "{rows} by {columns} weights do not divide into tiles of 16 by 32"
        )));
    }
    let (groups, blocks) = (rows / ROWS, columns / COLS);
    let mut tiles = vec![0u8; groups * blocks * kind.tile_bytes()];
    let mut scales = vec![0u32; groups * blocks * ROWS];
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let share = groups.div_ceil(threads);
    let misfit = std::sync::Mutex::new(None);
    std::thread::scope(|scope| {
        let tiles = tiles.chunks_mut(share * blocks * kind.tile_bytes());
        let scales = scales.chunks_mut(share * blocks * ROWS);
        for (part, (tiles, scales)) in tiles.zip(scales).enumerate() {
            let misfit = &misfit;
            scope.spawn(move || {
                let of_tile = tiles
                    .chunks_exact_mut(kind.tile_bytes())
                    .zip(scales.chunks_exact_mut(ROWS));
                for (index, (tile, scales)) in of_tile.enumerate() {
                    let (group, column) = (part * share + index / blocks, index % blocks);
                    for (row, scale) in scales.iter_mut().enumerate() {
                        let weights = block(group * ROWS + row, column);
                        match place(kind, &weights, row, tile) {
                            Some(pair) => *scale = pair,
                            None => {
                                *misfit.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                                    Some((group * ROWS + row, column));
                            }
                        }
                    }
                }
            });
        }
    });
    let misfit = misfit
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some((row, column)) = misfit {
        return Err(CudaError::Shape(format!(
            "block {column} of row {row} does not fit {kind:?}"
        )));
    }
    Ok(Packed {
        kind,
        rows,
        columns,
        tiles,
        scales,
    })
}

/// Puts one row of a tile where the lanes look for it; its pair of scales, or none if it does not fit.
fn place(kind: Kind, block: &WeightBlock, row: usize, tile: &mut [u8]) -> Option<u32> {
    let range = if kind == Kind::W4 { 0..=15 } else { -128..=127 };
    let has_two = block.scales[0] != block.scales[1];
    let is_fit = block.quants.iter().all(|quant| range.contains(quant))
        && if kind == Kind::W8x16 {
            block.minimum == 0.0
        } else {
            !has_two
        };
    if !is_fit {
        return None;
    }
    let lower = row / 8;
    for (column, quant) in block.quants.iter().enumerate() {
        let (late, byte) = (column / 16, column % 4);
        let lane = row % 8 * 4 + column % 16 / 4;
        if kind == Kind::W4 {
            tile[lane * 8 + lower * 4 + byte] |= (*quant as u8) << (4 * late);
        } else {
            tile[lane * 16 + late * 8 + lower * 4 + byte] = *quant as u8;
        }
    }
    let second = if kind == Kind::W8x16 {
        block.scales[1]
    } else {
        block.minimum
    };
    let bits = |value: f32| u32::from(f16::from_f32(value).to_bits());
    Some(bits(block.scales[0]) | bits(second) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_told() {
        let block = |quant: i16, scales: [f32; 2], minimum: f32| {
            move |_: usize, _: usize| WeightBlock {
                quants: [quant; COLS],
                scales,
                minimum,
            }
        };
        let message = |kind, block: &(dyn Fn(usize, usize) -> WeightBlock + Sync)| {
            pack(kind, (16, 64), block).unwrap_err().to_string()
        };
        assert!(message(Kind::W4, &block(16, [1.0; 2], 0.0)).contains("does not fit W4"));
        assert!(message(Kind::W8, &block(1, [1.0, 2.0], 0.0)).contains("does not fit W8"));
        assert!(message(Kind::W8x16, &block(1, [1.0, 2.0], 0.5)).contains("does not fit W8x16"));
        let ragged = pack(Kind::W4, (20, 64), &block(1, [1.0; 2], 0.0));
        assert!(ragged.unwrap_err().to_string().contains("tiles of 16 by 32"));
    }
}
