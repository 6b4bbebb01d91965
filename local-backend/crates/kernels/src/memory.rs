//! Memory from the kernel: a file as read-only bytes, and large buffers in large pages.

use crate::lanes::{Isa, Lanes, dispatch};
use crate::pool::Pool;
use std::fs::File;
use std::ops::Deref;
use std::path::Path;
use std::time::Instant;

/// A mapped file. Whoever changes the file while it is mapped changes the bytes seen here; model files are written
/// once, under another name, and moved into place.
#[derive(Debug)]
pub struct Mapped(memmap2::Mmap);

impl Mapped {
    /// # Errors
    /// The file cannot be opened or mapped.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the mapping is read-only and private to this value; the note above says what is asked of others.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self(map))
    }
}

impl Deref for Mapped {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Zeroed memory at the start of a page, taken when it is first written to. Weights are read from one end to the other
/// for every token: with pages of 2 MiB the processor looks up their addresses 500 times less often.
#[derive(Debug)]
pub(crate) struct Buffer(memmap2::MmapMut);

impl Buffer {
    /// # Errors
    /// The memory is not there.
    pub(crate) fn new(bytes: usize) -> std::io::Result<Self> {
        let map = memmap2::MmapMut::map_anon(bytes.max(1))?;
        #[cfg(target_os = "linux")]
        // Only a wish: small pages work as well.
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self(map))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn base(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }
}

/// Bytes per second that all threads of a pool read together, the best of three times over a quarter of a GiB: what a
/// token that has to read every weight cannot be faster than.
///
/// # Errors
/// The memory is not there.
pub fn read_bandwidth(pool: &mut Pool) -> std::io::Result<f64> {
    const PIECE: usize = 1 << 20;
    const PIECES: usize = 256;
    let mut buffer = Buffer::new(PIECE * PIECES)?;
    // SAFETY: the buffer has so many bytes.
    unsafe { buffer.base().write_bytes(1, PIECE * PIECES) };
    let bytes = buffer.bytes();
    let mut best = 0.0f64;
    for _ in 0..3 {
        let started = Instant::now();
        pool.run(PIECES, &|piece| {
            let bytes = &bytes[piece * PIECE..(piece + 1) * PIECE];
            dispatch!(Isa::current(), read(bytes: &[u8]));
        });
        best = best.max((PIECE * PIECES) as f64 / started.elapsed().as_secs_f64());
    }
    Ok(best)
}

#[inline(always)]
unsafe fn read<L: Lanes>(bytes: &[u8]) {
    // SAFETY: the caller's promise; four times 64 bytes lie in each chunk.
    unsafe {
        let mut sums = [L::load_bytes(bytes.as_ptr()); 4];
        for chunk in bytes.chunks_exact(256) {
            for (at, sum) in sums.iter_mut().enumerate() {
                *sum = L::or(*sum, L::load_bytes(chunk.as_ptr().add(at * 64)));
            }
        }
        std::hint::black_box(sums);
    }
}
