//! How weights lie in files: the block formats of GGUF, and plain floats.
//!
//! Owns: reading a block of 32 weights of any format. Refuses to know: containers, and how the kernels want weights.
//! Layouts as in ggml's `ggml-common.h` and `dequantize_row_*`.

use half::{bf16, f16};

/// Weights that share a scale.
pub(crate) const COLS: usize = 32;

/// A weight format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// f16 scale, 16 bytes of nibbles: `scale · (q − 8)`.
    Q4_0,
    /// f16 scale, f16 minimum, 16 bytes of nibbles: `scale · q + minimum`.
    Q4_1,
    /// f16 scale, 32 fifth bits, 16 bytes of nibbles: `scale · (q − 16)`.
    Q5_0,
    /// f16 scale, f16 minimum, 32 fifth bits, 16 bytes of nibbles: `scale · q + minimum`.
    Q5_1,
    /// f16 scale, 32 signed bytes: `scale · q`.
    Q8_0,
    /// 256 weights: f16 scale and f16 scale of minimums, eight 6-bit pairs of them, nibbles.
    Q4K,
    /// As [`Format::Q4K`], with fifth bits before the nibbles.
    Q5K,
    /// 256 weights: nibbles, pairs of high bits, sixteen signed scales, f16 scale: `scale · s · (q − 32)`.
    Q6K,
    F16,
    Bf16,
    F32,
}

/// 32 weights: `scale · (quant − zero) + minimum`, with a scale for each half.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Block {
    pub(crate) quants: [u8; COLS],
    pub(crate) zero: u8,
    pub(crate) scales: [f32; 2],
    pub(crate) minimum: f32,
}

fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

impl Format {
    const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Bf16,
    ];

    /// GGUF's number of the tensor type.
    #[must_use]
    pub const fn gguf(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Bf16 => 30,
        }
    }

    /// The one that has this number in GGUF, if it is one of these.
    #[must_use]
    pub fn of_gguf(kind: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.gguf() == kind)
    }

    /// Weights of one block of the file.
    #[must_use]
    pub const fn block_weights(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 | Self::F32 => 1,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
            _ => COLS,
        }
    }

    /// Bytes of one block of the file.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Whether weights are integers with scales.
    #[must_use]
    pub const fn is_quantized(self) -> bool {
        self.block_weights() > 1
    }

    /// Bytes of a row of so many weights.
    #[must_use]
    pub const fn row_bytes(self, columns: usize) -> usize {
        columns / self.block_weights() * self.block_bytes()
    }

    /// The weights of one row as floats; `out` has as many places as the row has weights.
    pub fn dequantize(self, row: &[u8], out: &mut [f32]) {
        if self.is_quantized() {
            for (index, out) in out.chunks_exact_mut(COLS).enumerate() {
                let block = self.block(row, index);
                for (column, value) in out.iter_mut().enumerate() {
                    let quant = f32::from(i16::from(block.quants[column]) - i16::from(block.zero));
                    *value = block.scales[column / 16] * quant + block.minimum;
                }
            }
            return;
        }
        for (value, bytes) in out.iter_mut().zip(row.chunks_exact(self.block_bytes())) {
            *value = match self {
                Self::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
                Self::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
                _ => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            };
        }
    }

    /// The 32 weights at `index` of a row.
    pub(crate) fn block(self, row: &[u8], index: usize) -> Block {
        let (per, size) = (self.block_weights() / COLS, self.block_bytes());
        let start = index / per * size;
        let bytes = &row[start..start + size];
        match self {
            Self::Q4_0 => Block {
                quants: nibbles(&bytes[2..], 0),
                minimum: -8.0 * half(bytes, 0),
                scales: [half(bytes, 0); 2],
                zero: 0,
            },
            Self::Q4_1 => Block {
                quants: nibbles(&bytes[4..], 0),
                minimum: half(bytes, 2),
                scales: [half(bytes, 0); 2],
                zero: 0,
            },
            Self::Q5_0 => Block {
                quants: nibbles(&bytes[6..], fifth(&bytes[2..])),
                minimum: -16.0 * half(bytes, 0),
                scales: [half(bytes, 0); 2],
                zero: 0,
            },
            Self::Q5_1 => Block {
                quants: nibbles(&bytes[8..], fifth(&bytes[4..])),
                minimum: half(bytes, 2),
                scales: [half(bytes, 0); 2],
                zero: 0,
            },
            Self::Q8_0 => Block {
                quants: std::array::from_fn(|at| bytes[2 + at] ^ 0x80),
                zero: 128,
                scales: [half(bytes, 0); 2],
                minimum: 0.0,
            },
            Self::Q4K => k_block(bytes, &[], index % per),
            Self::Q5K => k_block(bytes, &bytes[16..48], index % per),
            Self::Q6K => q6_block(bytes, index % per),
            // Floats have no blocks; the matrix takes them another way.
            Self::F16 | Self::Bf16 | Self::F32 => Block::default(),
        }
    }
}

fn fifth(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// The first 16 weights are the low nibbles, the others the high ones; `fifth` has a bit for each of the 32.
fn nibbles(bytes: &[u8], fifth: u32) -> [u8; COLS] {
    std::array::from_fn(|at| {
        let nibble = if at < 16 {
            bytes[at] & 15
        } else {
            bytes[at - 16] >> 4
        };
        nibble | ((fifth >> at & 1) << 4) as u8
    })
}

/// Scale and minimum of the eighth `index` of a block of 256, six bits each, as twelve bytes pack them.
fn k_scale(packed: &[u8], index: usize) -> (u8, u8) {
    if index < 4 {
        return (packed[index] & 63, packed[index + 4] & 63);
    }
    let scale = packed[index + 4] & 15 | (packed[index - 4] >> 6) << 4;
    let minimum = packed[index + 4] >> 4 | (packed[index] >> 6) << 4;
    (scale, minimum)
}

fn k_block(bytes: &[u8], high: &[u8], index: usize) -> Block {
    let (scale, minimum) = k_scale(&bytes[4..16], index);
    let quants = &bytes[16 + high.len() + index / 2 * 32..];
    Block {
        quants: std::array::from_fn(|at| {
            let nibble = quants[at] >> (index % 2 * 4) & 15;
            nibble | high.get(at).map_or(0, |bits| (bits >> index & 1) << 4)
        }),
        zero: 0,
        scales: [half(bytes, 0) * f32::from(scale); 2],
        minimum: -half(bytes, 2) * f32::from(minimum),
    }
}

fn q6_block(bytes: &[u8], index: usize) -> Block {
    // Each half of 128 has 64 bytes of nibbles and 32 bytes of high bits, for four runs of 32.
    let (part, run) = (index / 4, index % 4);
    let low = &bytes[part * 64 + run % 2 * 32..];
    let high = &bytes[128 + part * 32..];
    let scale = |at: usize| half(bytes, 208) * f32::from(bytes[192 + index * 2 + at].cast_signed());
    Block {
        quants: std::array::from_fn(|at| (low[at] >> (run / 2 * 4) & 15) | (high[at] >> (run * 2) & 3) << 4),
        zero: 32,
        scales: [scale(0), scale(1)],
        minimum: 0.0,
    }
}
