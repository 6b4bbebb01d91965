//! A file as read-only memory.

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
