//! The append-only journal: what was about to happen and what came of it, on disk before anyone relies on it.
//!
//! An entry is a length, a CRC-32 of the payload and the payload as JSON, appended by a single write, so that a killed
//! process loses at most an entry that nobody was told of. Power loss is another matter: the kernel's buffers are not
//! forced out for each entry. Segments are numbered; one is deleted when everything in it has reached the store.

use crate::reservation::Intent;
use exchange::{Money, Record, RequestId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A segment this long is closed and the next begun.
const SEGMENT_BYTES: u64 = 64 << 20;
/// No entry is longer; a length above it means that the file is not a journal.
const ENTRY_BYTES: usize = 16 << 20;

/// Why the journal could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("the journal {path} cannot be {action}: {source}; check the disk's space and permissions")]
    Io {
        path: PathBuf,
        action: &'static str,
        source: std::io::Error,
    },
    #[error(
        "the journal folder {path} is in use by another process; give every gateway a journal of its own"
    )]
    Locked { path: PathBuf },
    #[error(
        "the journal {path} is damaged at byte {offset}; its entries before that were read. Move the file aside to start, \
         and keep it: it may hold charges that never reached the store"
    )]
    Damaged { path: PathBuf, offset: usize },
}

/// One line of the journal.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Entry<'a> {
    /// An upstream attempt is about to start, under so much held money.
    Began {
        request: RequestId,
        held: Money,
        intent: Shared<'a, Intent>,
    },
    /// More money is held for a request.
    Extended { request: RequestId, held: Money },
    /// A request is over.
    Settled { record: Shared<'a, Record> },
}

/// Borrowed when written, owned when read.
#[derive(Debug)]
pub(crate) enum Shared<'a, T> {
    Borrowed(&'a T),
    Owned(Box<T>),
}

impl<T> Shared<'_, T> {
    pub(crate) fn into_owned(self) -> T
    where
        T: Clone,
    {
        match self {
            Self::Borrowed(value) => value.clone(),
            Self::Owned(value) => *value,
        }
    }
}

impl<T: Serialize> Serialize for Shared<'_, T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Borrowed(value) => value.serialize(serializer),
            Self::Owned(value) => value.serialize(serializer),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Shared<'_, T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(|value| Self::Owned(Box::new(value)))
    }
}

/// The journal as it is written.
#[derive(Debug)]
pub(crate) struct Journal {
    folder: PathBuf,
    file: File,
    segment: u64,
    length: u64,
    /// Entries of each segment that must stay until the store has what they say.
    owed: BTreeMap<u64, usize>,
    buffer: Vec<u8>,
    /// Held for as long as the journal is open.
    _lock: File,
}

impl Journal {
    /// Locks the folder, reads what an earlier process left and begins a new segment.
    pub(crate) fn open(folder: &Path) -> Result<(Self, Vec<Entry<'static>>, Vec<PathBuf>), JournalError> {
        let io = |action| {
            move |source| JournalError::Io {
                path: folder.to_owned(),
                action,
                source,
            }
        };
        std::fs::create_dir_all(folder).map_err(io("created"))?;
        let lock = File::create(folder.join("lock")).map_err(io("locked"))?;
        if lock.try_lock().is_err() {
            return Err(JournalError::Locked {
                path: folder.to_owned(),
            });
        }
        let found = segments(folder).map_err(io("listed"))?;
        let mut entries = Vec::new();
        for path in found.values() {
            read_segment(path, &mut entries)?;
        }
        let segment = found.last_key_value().map_or(1, |(number, _)| number + 1);
        let file = create(folder, segment)?;
        let journal = Self {
            folder: folder.to_owned(),
            file,
            segment,
            length: 0,
            owed: BTreeMap::new(),
            buffer: Vec::with_capacity(4096),
            _lock: lock,
        };
        Ok((journal, entries, found.into_values().collect()))
    }

    /// Appends an entry; returns the segment it is in, which is kept until [`Journal::forget`].
    pub(crate) fn append(&mut self, entry: &Entry<'_>) -> Result<u64, JournalError> {
        let damaged = |source| JournalError::Io {
            path: self.folder.clone(),
            action: "written",
            source,
        };
        if self.length >= SEGMENT_BYTES {
            self.file = create(&self.folder, self.segment + 1)?;
            self.segment += 1;
            self.length = 0;
        }
        self.buffer.clear();
        self.buffer.extend_from_slice(&[0; 8]);
        serde_json::to_writer(&mut self.buffer, entry).map_err(|error| damaged(error.into()))?;
        let (crc, length) = (crc32fast::hash(&self.buffer[8..]), (self.buffer.len() - 8) as u32);
        self.buffer[..4].copy_from_slice(&length.to_le_bytes());
        self.buffer[4..8].copy_from_slice(&crc.to_le_bytes());
        if let Err(source) = self.file.write_all(&self.buffer) {
            // A half-written entry must not stand before the next one.
            let _ = self.file.set_len(self.length);
            return Err(JournalError::Io {
                path: self.folder.clone(),
                action: "written",
                source,
            });
        }
        self.length += self.buffer.len() as u64;
        *self.owed.entry(self.segment).or_default() += 1;
        Ok(self.segment)
    }

    /// The store has what these entries say; a closed segment that nothing needs any more is deleted.
    pub(crate) fn forget(&mut self, segments: impl Iterator<Item = u64>) {
        for segment in segments {
            let Some(owed) = self.owed.get_mut(&segment) else {
                continue;
            };
            *owed = owed.saturating_sub(1);
            if *owed == 0 && segment != self.segment {
                self.owed.remove(&segment);
                if let Err(error) = std::fs::remove_file(name(&self.folder, segment)) {
                    tracing::warn!(segment, %error, "a finished journal segment could not be deleted");
                }
            }
        }
    }
}

fn name(folder: &Path, segment: u64) -> PathBuf {
    folder.join(format!("{segment:012}.journal"))
}

fn create(folder: &Path, segment: u64) -> Result<File, JournalError> {
    let path = name(folder, segment);
    OpenOptions::new()
        .append(true)
        .create_new(true)
        .open(&path)
        .map_err(|source| JournalError::Io {
            path,
            action: "created",
            source,
        })
}

fn segments(folder: &Path) -> std::io::Result<BTreeMap<u64, PathBuf>> {
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

/// A segment that ends inside an entry is what a kill leaves behind; damage before its end is not.
fn read_segment(path: &Path, entries: &mut Vec<Entry<'static>>) -> Result<(), JournalError> {
    let bytes = std::fs::read(path).map_err(|source| JournalError::Io {
        path: path.to_owned(),
        action: "read",
        source,
    })?;
    let mut offset = 0;
    while bytes.len() - offset >= 8 {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (length, crc) = (word(offset) as usize, word(offset + 4));
        let damaged = || JournalError::Damaged {
            path: path.to_owned(),
            offset,
        };
        if length > ENTRY_BYTES {
            return Err(damaged());
        }
        let Some(payload) = bytes.get(offset + 8..offset + 8 + length) else {
            break;
        };
        if crc32fast::hash(payload) != crc {
            return Err(damaged());
        }
        entries.push(serde_json::from_slice(payload).map_err(|_| damaged())?);
        offset += 8 + length;
    }
    Ok(())
}
