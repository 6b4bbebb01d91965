//! A segment: one file of the journal, as it is named, begun and read back.
//!
//! A header of eight bytes (a mark and the format's version), then entries: a length, a CRC-32 of the payload, the
//! payload. Everything is little-endian; a payload is `postcard`, which has no field names, so that any change to what
//! an entry holds is a new version.

use super::{Entry, JournalError};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The mark, and the version of the format in the last byte.
pub(super) const HEADER: [u8; 8] = *b"TGJRNL\0\x03";
/// Length and checksum, before each payload.
pub(super) const FRAME_BYTES: usize = 8;
/// No entry is longer; a length above it means that the file is not a journal.
const ENTRY_BYTES: usize = 16 << 20;

/// Where segment number `segment` is.
pub(super) fn name(folder: &Path, segment: u64) -> PathBuf {
    folder.join(format!("{segment:012}.journal"))
}

/// Begins a segment; a number is used once.
pub(super) fn create(folder: &Path, segment: u64) -> Result<File, JournalError> {
    let path = name(folder, segment);
    let created = OpenOptions::new().append(true).create_new(true).open(&path);
    let begun = created.and_then(|mut file| file.write_all(&HEADER).map(|()| file));
    begun.map_err(|source| JournalError::Io {
        path,
        action: "created",
        source,
    })
}

/// The segments in a folder, by number.
pub(super) fn list(folder: &Path) -> std::io::Result<BTreeMap<u64, PathBuf>> {
    let mut found = BTreeMap::new();
    for item in std::fs::read_dir(folder)? {
        let path = item?.path();
        let number = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .and_then(|stem| stem.parse().ok());
        if let (Some(number), true) = (number, path.extension().is_some_and(|kind| kind == "journal")) {
            found.insert(number, path);
        }
    }
    Ok(found)
}

/// Puts length and checksum before a payload that was written after [`FRAME_BYTES`] of room.
pub(super) fn seal(entry: &mut [u8]) {
    let (frame, payload) = entry.split_at_mut(FRAME_BYTES);
    let crc = crc32fast::hash(payload);
    frame[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    frame[4..].copy_from_slice(&crc.to_le_bytes());
}

/// Reads a segment. One that ends inside an entry, or in zeros that a power failure left, is what a crash leaves
/// behind; damage before its end is not.
pub(super) fn read(path: &Path, entries: &mut Vec<Entry<'static>>) -> Result<(), JournalError> {
    let bytes = std::fs::read(path).map_err(|source| JournalError::Io {
        path: path.to_owned(),
        action: "read",
        source,
    })?;
    if bytes.len() < HEADER.len() {
        return Ok(());
    }
    let (header, body) = bytes.split_at(HEADER.len());
    if header != HEADER {
        return Err(JournalError::Version {
            path: path.to_owned(),
        });
    }
    let mut rest = body;
    while let Some((frame, tail)) = rest.split_at_checked(FRAME_BYTES) {
        let word = |at: usize| u32::from_le_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
        let (length, crc) = (word(0) as usize, word(4));
        let damaged = || JournalError::Damaged {
            path: path.to_owned(),
            offset: bytes.len() - rest.len(),
        };
        if length == 0 && rest.iter().all(|byte| *byte == 0) {
            break;
        }
        if length == 0 || length > ENTRY_BYTES {
            return Err(damaged());
        }
        let Some((payload, next)) = tail.split_at_checked(length) else {
            break;
        };
        if crc32fast::hash(payload) != crc {
            return Err(damaged());
        }
        entries.push(postcard::from_bytes(payload).map_err(|_| damaged())?);
        rest = next;
    }
    Ok(())
}
