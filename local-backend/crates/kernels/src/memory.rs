//! Memory from the kernel: a file as read-only bytes, and large buffers in large pages.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

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
