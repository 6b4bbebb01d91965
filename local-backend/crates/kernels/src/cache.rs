//! Keys and values of one layer, in blocks of 16 positions.
//!
//! A block holds, for each head, its keys dimension by dimension (16 positions side by side, so that one register is the
//! same element of 16 keys) and its values position by position. Heads are padded to 16 dimensions.

use crate::memory::Buffer;
use crate::pool::Pool;
use half::{bf16, f16};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

/// Positions of a block.
pub const BLOCK: usize = 16;

/// How an element is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvKind {
    F16,
    Bf16,
    F32,
}

impl KvKind {
    /// Bytes of an element.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
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
        BLOCK * self.heads * self.padded() * self.kind.bytes()
    }
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
        let size = BLOCK * self.shape.padded() * self.shape.kind.bytes();
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
        let put = |base: &Base, index: usize, value: f32| {
            // SAFETY: below, `index` is within the buffer, which is aligned to a page.
            unsafe {
                let half = |bits| {
                    AtomicU16::from_ptr(base.0.cast::<u16>().add(index)).store(bits, Ordering::Relaxed);
                };
                match kind {
                    KvKind::F16 => half(f16::from_f32(value).to_bits()),
                    KvKind::Bf16 => half(bf16::from_f32(value).to_bits()),
                    KvKind::F32 => AtomicU32::from_ptr(base.0.cast::<u32>().add(index))
                        .store(value.to_bits(), Ordering::Relaxed),
                }
            }
        };
        let at_once = (8192 / width.max(1)).clamp(1, 16);
        pool.run(slots.len().div_ceil(at_once), &|part| {
            let first = part * at_once;
            for (slot, token) in slots[first..].iter().take(at_once).zip(first..) {
                let (block, offset) = (slot.block as usize, slot.offset as usize);
                for head in 0..heads {
                    let start = (block * heads + head) * BLOCK * padded;
                    let fresh = token * width + head * dim;
                    for (element, value) in keys[fresh..fresh + dim].iter().enumerate() {
                        put(key_base, start + element * BLOCK + offset, *value);
                    }
                    for (element, value) in values[fresh..fresh + dim].iter().enumerate() {
                        put(value_base, start + offset * padded + element, *value);
                    }
                }
            }
        });
    }
}
