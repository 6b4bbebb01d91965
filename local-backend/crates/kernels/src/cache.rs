//! Keys and values of one layer, in blocks of 16 positions.
//!
//! A block holds, for each head, its keys dimension by dimension (16 positions side by side, so that one register is the
//! same element of 16 keys) and its values position by position. Heads are padded to 16 dimensions. Where elements are
//! bytes, a scale for each of the 16 positions follows; it is of that position's head alone, so that what is kept of a token
//! does not depend on its company.

use crate::lanes::{Isa, Lanes, dispatch};
use crate::memory::Buffer;
use crate::pool::{Pool, SMALL};
use half::bf16;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering};

/// Positions of a block.
pub const BLOCK: usize = 16;

/// How an element is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvKind {
    F16,
    Bf16,
    F32,
    /// Between −127 and 127, times a scale: half of 16 bits and a sixteenth, for a loss that can be measured.
    Int8,
}

impl KvKind {
    /// Bytes of an element.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::Int8 => 1,
        }
    }

    /// Bytes of a position of a head beside its elements.
    #[must_use]
    pub const fn scale_bytes(self) -> usize {
        match self {
            Self::Int8 => 4,
            _ => 0,
        }
    }
}

impl std::str::FromStr for KvKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            "f32" => Ok(Self::F32),
            "int8" => Ok(Self::Int8),
            other => Err(format!(
                "`{other}` is no kind of cache; there are f16, bf16, f32 and int8"
            )),
        }
    }
}

/// The size of a layer's keys, and of its values.
#[derive(Clone, Copy, Debug)]
pub struct KvShape {
    pub kind: KvKind,
    pub heads: usize,
    /// Elements of a head.
    pub dim: usize,
}

impl KvShape {
    /// Elements of a head with padding.
    pub(crate) const fn padded(self) -> usize {
        self.dim.next_multiple_of(16)
    }

    /// Bytes of a block, keys and values.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        2 * self.half_block()
    }

    const fn half_block(self) -> usize {
        self.heads * self.head_block()
    }

    /// Bytes of a head's keys in a block.
    const fn head_block(self) -> usize {
        BLOCK * (self.padded() * self.kind.bytes() + self.kind.scale_bytes())
    }

    /// Where a head's scales begin within its block.
    pub(crate) const fn scales(self) -> usize {
        BLOCK * self.padded() * self.kind.bytes()
    }
}

/// What a head is to be divided by so that it fits into bytes.
fn scale_of(head: &[f32]) -> f32 {
    head.iter()
        .fold(0.0f32, |largest, value| largest.max(value.abs()))
        / 127.0
}

/// Up to sixteen floats as they are kept; `inverse` of their scale matters where there is one.
fn bits(kind: KvKind, floats: &[f32], inverse: f32) -> [u32; 16] {
    let mut whole = [0.0f32; 16];
    whole[..floats.len()].copy_from_slice(floats);
    match kind {
        KvKind::F16 => {
            let mut halves = [0u16; 16];
            let (from, to) = (&whole, &mut halves);
            dispatch!(Isa::current(), narrow(from: &[f32; 16], to: &mut [u16; 16]));
            halves.map(u32::from)
        }
        KvKind::Bf16 => whole.map(|value| u32::from(bf16::from_f32(value).to_bits())),
        KvKind::F32 => whole.map(f32::to_bits),
        KvKind::Int8 => whole.map(|value| {
            let rounded = (value * inverse).round_ties_even().clamp(-127.0, 127.0);
            u32::from((rounded as i8).cast_unsigned())
        }),
    }
}

#[inline(always)]
unsafe fn narrow<L: Lanes>(from: &[f32; 16], to: &mut [u16; 16]) {
    // SAFETY: both have 16 elements; the rest is the caller's promise.
    unsafe { L::store_f16(to.as_mut_ptr(), L::load(from.as_ptr())) }
}

/// Keys and values of one layer.
#[derive(Debug)]
pub struct KvCache {
    shape: KvShape,
    blocks: usize,
    keys: Buffer,
    values: Buffer,
}

/// Where a token's key and value belong.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    pub block: u32,
    /// Position within the block.
    pub offset: u32,
}

impl KvCache {
    /// # Errors
    /// The memory is not there.
    pub fn new(shape: KvShape, blocks: usize) -> std::io::Result<Self> {
        Ok(Self {
            shape,
            blocks,
            keys: Buffer::new(blocks * shape.half_block())?,
            values: Buffer::new(blocks * shape.half_block())?,
        })
    }

    #[must_use]
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Where a head's keys, and its values, of a block begin.
    pub(crate) fn head(&self, block: usize, head: usize) -> (*const u8, *const u8) {
        assert!(
            block < self.blocks && head < self.shape.heads,
            "a block of the cache"
        );
        let size = self.shape.head_block();
        let start = (block * self.shape.heads + head) * size;
        (
            self.keys.bytes()[start..start + size].as_ptr(),
            self.values.bytes()[start..start + size].as_ptr(),
        )
    }

    /// Puts each token's keys and values, heads one after the other, where `slots` says.
    ///
    /// # Panics
    /// When a slot is outside the cache or shapes do not fit.
    pub fn store(&mut self, pool: &mut Pool, slots: &[Slot], (keys, values): (&[f32], &[f32])) {
        let KvShape { kind, heads, dim } = self.shape;
        let (width, padded) = (heads * dim, self.shape.padded());
        assert!(
            keys.len() == slots.len() * width && values.len() == keys.len(),
            "shapes must fit"
        );
        let fits = |slot: &Slot| (slot.block as usize) < self.blocks && (slot.offset as usize) < BLOCK;
        assert!(slots.iter().all(fits), "a slot of the cache");
        struct Base(*mut u8);
        // SAFETY: writes are atomic, so that even two tokens in one slot are no race.
        unsafe impl Sync for Base {}
        let (key_base, value_base) = (&Base(self.keys.base()), &Base(self.values.base()));
        let put = |base: &Base, at: usize, bits: u32, bytes: usize| {
            // SAFETY: below, `at` is within the buffer, which is aligned to a page, and a multiple of `bytes`.
            unsafe {
                let at = base.0.add(at);
                match bytes {
                    4 => AtomicU32::from_ptr(at.cast()).store(bits, Ordering::Relaxed),
                    2 => AtomicU16::from_ptr(at.cast()).store(bits as u16, Ordering::Relaxed),
                    _ => AtomicU8::from_ptr(at).store(bits as u8, Ordering::Relaxed),
                }
            }
        };
        let (bytes, scales) = (kind.bytes(), self.shape.scales());
        let at_once = (SMALL / width.max(1)).clamp(1, 16);
        pool.run(slots.len().div_ceil(at_once), &|part| {
            let first = part * at_once;
            for (slot, token) in slots[first..].iter().take(at_once).zip(first..) {
                let (block, offset) = (slot.block as usize, slot.offset as usize);
                for head in 0..heads {
                    let start = (block * heads + head) * self.shape.head_block();
                    let fresh = token * width + head * dim;
                    let mut inverses = [1.0; 2];
                    if kind.scale_bytes() > 0 {
                        let halves = [(key_base, keys), (value_base, values)];
                        for ((base, floats), inverse) in halves.into_iter().zip(&mut inverses) {
                            let scale = scale_of(&floats[fresh..fresh + dim]);
                            put(base, start + scales + offset * 4, scale.to_bits(), 4);
                            *inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                        }
                    }
                    for first in (0..dim).step_by(16) {
                        let range = fresh + first..fresh + dim.min(first + 16);
                        let key = bits(kind, &keys[range.clone()], inverses[0]);
                        let value = bits(kind, &values[range.clone()], inverses[1]);
                        for element in first..first + range.len() {
                            let key_at = (element * BLOCK + offset) * bytes;
                            let value_at = (offset * padded + element) * bytes;
                            put(key_base, start + key_at, key[element - first], bytes);
                            put(value_base, start + value_at, value[element - first], bytes);
                        }
                    }
                }
            }
        });
    }
}
