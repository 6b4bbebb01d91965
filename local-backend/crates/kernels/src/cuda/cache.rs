//! Compiled kernels on disk, so that only the first start on a card compiles.
//!
//! A file's name is the sum of everything that decides its content: source, options, architecture and the compiler's version. It
//! carries a sum of its content as well; one that does not fit is compiled again.

use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The SHA-256 of the parts with their lengths, in hexadecimal.
pub(super) fn sum(parts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hex(&hasher.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A folder of compiled kernels.
#[derive(Clone, Debug)]
pub(super) struct DiskCache {
    folder: PathBuf,
}

impl DiskCache {
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    fn file(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.cubin"))
    }

    /// What was stored under `key`, if it is there and whole.
    pub(super) fn load(&self, key: &str) -> Option<Vec<u8>> {
        let mut bytes = std::fs::read(self.file(key)).ok()?;
        let content = bytes.len().checked_sub(32)?;
        let is_whole = Sha256::digest(&bytes[..content]).as_slice() == &bytes[content..];
        bytes.truncate(content);
        is_whole.then_some(bytes)
    }

    /// Stores under `key`. A cache that cannot be written only costs time at the next start, so nothing is told of it.
    pub(super) fn store(&self, key: &str, content: &[u8]) {
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(&self.folder)?;
            let part = self.folder.join(format!("{key}.{}.part", std::process::id()));
            let mut file = std::fs::File::create(&part)?;
            file.write_all(content)?;
            file.write_all(&Sha256::digest(content))?;
            std::fs::rename(&part, self.file(key))
        };
        let _ = write();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_comes_back_and_damage_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let cache = DiskCache::new(&folder.path().join("deep"));
        let key = sum(&["source", "sm_90a"]);
        assert_eq!(cache.load(&key), None);
        cache.store(&key, b"machine code");
        assert_eq!(cache.load(&key).as_deref(), Some(&b"machine code"[..]));
        let file = cache.file(&key);
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[3] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        assert_eq!(cache.load(&key), None);
        std::fs::write(&file, b"short").unwrap();
        assert_eq!(cache.load(&key), None);
    }

    #[test]
    fn a_sum_tells_where_parts_end() {
        assert_ne!(sum(&["ab", "c"]), sum(&["a", "bc"]));
        assert_eq!(sum(&["ab", "c"]), sum(&["ab", "c"]));
    }
}
