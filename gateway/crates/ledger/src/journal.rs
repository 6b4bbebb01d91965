//! The append-only journal: what was about to happen and what came of it, kept on this machine before anyone relies
//! on it.
//!
//! Two promises, and they differ. An *intent* (an attempt that is about to start, more money held) is with the kernel
//! before the call returns: a killed process loses none. A *settlement* waits in memory for the next intent or the
//! next [`Journal::flush`], milliseconds later, and goes out in the same `write`: a process killed in between has the
//! attempt charged at what was held for it instead of at what it cost, once, as if it had been killed a moment
//! earlier. A killed process is not a power failure; what reaches the disk itself, and when, is [`Fsync`]'s business.
//!
//! Segments are numbered; one is deleted when everything in it has reached the store.

mod segment;

use crate::reservation::Intent;
use crate::settlement::{CellName, Settlement};
use exchange::{Money, RequestId};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// A segment this long is closed and the next begun.
const SEGMENT_BYTES: u64 = 64 << 20;
/// Settlements that may wait for the kernel. The store gets them whether or not the journal does.
const PENDING_BYTES: usize = 8 << 20;

/// When the kernel is told to put the journal on the disk itself, which only matters if power fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fsync {
    /// Never: the kernel does so within about 30 s. Costs nothing.
    #[default]
    Never,
    /// From time to time, off the request's path: a power failure loses at most so much.
    Every(Duration),
    /// Before each upstream call: nothing is lost, and every request waits for the disk (0.1 to 10 ms; requests that
    /// arrive together share one wait).
    Each,
}

/// Why the journal could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("the journal {path} cannot be {action}: {source}; check the disk's space and permissions")]
    Io {
        path: PathBuf,
        action: &'static str,
        source: std::io::Error,
    },
    #[error("an entry for the journal cannot be encoded: {source}")]
    Encode { source: postcard::Error },
    #[error(
        "the journal folder {path} is in use by another process; give every gateway a journal of its own"
    )]
    Locked { path: PathBuf },
    #[error(
        "the journal {path} was written by another version; start that version once, so that it empties its journal, \
         or move the file aside and keep it: it may hold charges that never reached the store"
    )]
    Version { path: PathBuf },
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
        /// Where it is held.
        cells: SmallVec<[CellName; 4]>,
        intent: Shared<'a, Intent>,
    },
    /// More money is held for a request.
    Extended { request: RequestId, held: Money },
    /// A request is over.
    Settled { settlement: Shared<'a, Settlement> },
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

/// The journal as it is written. Shared: entries are encoded outside the lock.
#[derive(Debug)]
pub(crate) struct Journal {
    folder: PathBuf,
    fsync: Fsync,
    tail: Mutex<Tail>,
    /// Bytes that are on the disk, counted as [`Tail::written`] is. Its lock is held during the wait for the disk.
    synced: Mutex<u64>,
    /// Names this journal for good, and so the node that writes it.
    node: Arc<str>,
    /// Something waits for the kernel.
    pub(crate) waiting: Notify,
    /// Held for as long as the journal is open.
    _lock: File,
}

/// The end of the last segment.
#[derive(Debug)]
struct Tail {
    file: Arc<File>,
    segment: u64,
    /// Bytes in the segment's file.
    length: u64,
    /// Bytes with the kernel since the journal was opened, over all segments.
    written: u64,
    /// Whole entries that the kernel does not have yet.
    pending: Vec<u8>,
    /// Entries of each segment that must stay until the store has what they say.
    owed: BTreeMap<u64, usize>,
}

/// What an earlier process left.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) entries: Vec<Entry<'static>>,
    pub(crate) segments: Vec<PathBuf>,
}

thread_local! {
    /// Entries are encoded here before the lock is taken.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Journal {
    /// Locks the folder, reads what an earlier process left and begins a new segment.
    pub(crate) fn open(folder: &Path, fsync: Fsync) -> Result<(Self, Left), JournalError> {
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
        let node = name_of(folder).map_err(io("named"))?;
        let found = segment::list(folder).map_err(io("listed"))?;
        let mut entries = Vec::new();
        for path in found.values() {
            segment::read(path, &mut entries)?;
        }
        let segment = found.last_key_value().map_or(1, |(number, _)| number + 1);
        let tail = Tail {
            file: Arc::new(segment::create(folder, segment)?),
            segment,
            length: segment::HEADER.len() as u64,
            written: 0,
            pending: Vec::with_capacity(64 << 10),
            owed: BTreeMap::new(),
        };
        let journal = Self {
            folder: folder.to_owned(),
            fsync,
            tail: Mutex::new(tail),
            synced: Mutex::new(0),
            node,
            waiting: Notify::new(),
            _lock: lock,
        };
        let segments = found.into_values().collect();
        Ok((journal, Left { entries, segments }))
    }

    /// Whose journal this is.
    pub(crate) const fn node(&self) -> &Arc<str> {
        &self.node
    }

    pub(crate) const fn fsync(&self) -> Fsync {
        self.fsync
    }

    /// Appends an entry and whatever was waiting; the kernel has all of it on return, and under [`Fsync::Each`] the
    /// disk too. Returns the segment, which is kept until [`Journal::forget`].
    pub(crate) fn append(&self, entry: &Entry<'_>) -> Result<u64, JournalError> {
        let (segment, written) = self.encoded(entry, |bytes| {
            let mut tail = self.tail();
            self.make_room(&mut tail, bytes.len())?;
            let waiting = tail.pending.len();
            tail.pending.extend_from_slice(bytes);
            if let Err(source) = tail.write() {
                // The attempt will not be made: its intent must not be found.
                tail.pending.truncate(waiting);
                return Err(self.unwritten(source));
            }
            Ok((tail.owe(), tail.written))
        })?;
        if self.fsync == Fsync::Each {
            self.sync_up_to(written)?;
        }
        Ok(segment)
    }

    /// Appends an entry that may wait for the next [`Journal::append`] or [`Journal::flush`].
    pub(crate) fn append_soon(&self, entry: &Entry<'_>) -> Result<u64, JournalError> {
        let (segment, is_first) = self.encoded(entry, |bytes| {
            let mut tail = self.tail();
            self.make_room(&mut tail, bytes.len())?;
            if tail.pending.len() + bytes.len() > PENDING_BYTES {
                tail.write().map_err(|source| self.unwritten(source))?;
            }
            let is_first = tail.pending.is_empty();
            tail.pending.extend_from_slice(bytes);
            Ok((tail.owe(), is_first))
        })?;
        if is_first {
            self.waiting.notify_one();
        }
        Ok(segment)
    }

    /// Hands the kernel what is waiting.
    pub(crate) fn flush(&self) -> Result<(), JournalError> {
        self.tail().write().map_err(|source| self.unwritten(source))
    }

    /// Puts what the kernel has on the disk.
    pub(crate) fn sync(&self) -> Result<(), JournalError> {
        let written = self.tail().written;
        self.sync_up_to(written)
    }

    /// The store has what these entries say; a closed segment that nothing needs any more is deleted.
    pub(crate) fn forget(&self, segments: impl Iterator<Item = u64>) {
        let mut tail = self.tail();
        for segment in segments {
            let Some(owed) = tail.owed.get_mut(&segment) else {
                continue;
            };
            *owed = owed.saturating_sub(1);
            if *owed == 0 && segment != tail.segment {
                tail.owed.remove(&segment);
                if let Err(error) = std::fs::remove_file(segment::name(&self.folder, segment)) {
                    tracing::warn!(segment, %error, "a finished journal segment could not be deleted");
                }
            }
        }
    }

    fn encoded<T>(
        &self,
        entry: &Entry<'_>,
        then: impl FnOnce(&[u8]) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.clear();
            scratch.resize(segment::FRAME_BYTES, 0);
            let encoded = postcard::to_extend(entry, std::mem::take(scratch));
            *scratch = encoded.map_err(|source| JournalError::Encode { source })?;
            segment::seal(scratch);
            then(scratch)
        })
    }

    /// Begins the next segment if this one is full.
    fn make_room(&self, tail: &mut Tail, bytes: usize) -> Result<(), JournalError> {
        if tail.length + (tail.pending.len() + bytes) as u64 <= SEGMENT_BYTES {
            return Ok(());
        }
        tail.write().map_err(|source| self.unwritten(source))?;
        if self.fsync != Fsync::Never {
            // Later waits for the disk are for the new file alone.
            tail.file.sync_data().map_err(|source| self.unwritten(source))?;
        }
        tail.file = Arc::new(segment::create(&self.folder, tail.segment + 1)?);
        tail.segment += 1;
        tail.length = segment::HEADER.len() as u64;
        Ok(())
    }

    /// One wait for the disk serves everyone whose bytes the kernel had when it began.
    fn sync_up_to(&self, position: u64) -> Result<(), JournalError> {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        if *synced >= position {
            return Ok(());
        }
        let (file, written) = {
            let tail = self.tail();
            (tail.file.clone(), tail.written)
        };
        file.sync_data().map_err(|source| self.unwritten(source))?;
        *synced = written;
        Ok(())
    }

    fn unwritten(&self, source: std::io::Error) -> JournalError {
        JournalError::Io {
            path: self.folder.clone(),
            action: "written",
            source,
        }
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name in the folder's `node` file, made up the first time.
fn name_of(folder: &Path) -> std::io::Result<Arc<str>> {
    let path = folder.join("node");
    match std::fs::read_to_string(&path) {
        Ok(name) if !name.trim().is_empty() => Ok(name.trim().into()),
        Ok(_) | Err(_) => {
            let name = uuid::Uuid::new_v4().simple().to_string();
            std::fs::write(&path, &name)?;
            Ok(name.into())
        }
    }
}

impl Tail {
    /// Hands the kernel what is pending, or leaves it pending.
    fn write(&mut self) -> std::io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        if let Err(error) = (&*self.file).write_all(&self.pending) {
            // A half-written entry must not stand before the next one.
            let _ = self.file.set_len(self.length);
            return Err(error);
        }
        self.length += self.pending.len() as u64;
        self.written += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    fn owe(&mut self) -> u64 {
        *self.owed.entry(self.segment).or_default() += 1;
        self.segment
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extended(number: u64, held: i64) -> Entry<'static> {
        Entry::Extended {
            request: RequestId::new(number, [0; 10]),
            held: Money::from_nanos(held),
        }
    }

    /// What a process that is killed now would leave: a copy of the folder, opened by another.
    fn found(folder: &Path) -> Vec<i64> {
        let copy = tempfile::tempdir().unwrap();
        for path in segment::list(folder).unwrap().values() {
            std::fs::copy(path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
        let (_, left) = Journal::open(copy.path(), Fsync::Never).unwrap();
        let held = left.entries.iter().map(|entry| match entry {
            Entry::Extended { held, .. } => held.nanos(),
            other => panic!("{other:?}"),
        });
        held.collect()
    }

    #[test]
    fn an_intent_takes_what_waits_with_it_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(folder.path(), Fsync::Each).unwrap();
        journal.append_soon(&extended(1, 1)).unwrap();
        assert_eq!(found(folder.path()), [] as [i64; 0]);
        journal.append(&extended(2, 2)).unwrap();
        assert_eq!(found(folder.path()), [1, 2]);
        journal.append_soon(&extended(3, 3)).unwrap();
        journal.flush().unwrap();
        assert_eq!(found(folder.path()), [1, 2, 3]);
    }

    #[test]
    fn a_segment_cut_anywhere_keeps_its_whole_entries_and_damage_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(folder.path(), Fsync::Never).unwrap();
        for number in 0..5 {
            journal.append(&extended(number, number as i64)).unwrap();
        }
        drop(journal);
        let path = segment::name(folder.path(), 1);
        let whole = std::fs::read(&path).unwrap();
        let entry = (whole.len() - segment::HEADER.len()) / 5;
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let expected = cut.saturating_sub(segment::HEADER.len()) / entry;
            assert_eq!(found(folder.path()).len(), expected, "cut at {cut}");
        }
        std::fs::write(&path, [&whole[..], &[0; 4096]].concat()).unwrap();
        assert_eq!(found(folder.path()).len(), 5);
        for at in segment::HEADER.len()..whole.len() - entry {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x40;
            std::fs::write(&path, &flipped).unwrap();
            let read = segment::read(&path, &mut Vec::new());
            let told = matches!(read, Err(JournalError::Damaged { .. }));
            // A length that now reaches beyond the end cannot be told from a cut.
            let is_length = (at - segment::HEADER.len()) % entry < 4;
            assert!(told || is_length && read.is_ok(), "byte {at}");
        }
        std::fs::write(&path, b"{\"Began\":1}").unwrap();
        assert!(matches!(
            segment::read(&path, &mut Vec::new()),
            Err(JournalError::Version { .. })
        ));
    }

    #[test]
    fn a_finished_segment_is_deleted_once_it_is_closed_and_nothing_is_owed() {
        let folder = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(folder.path(), Fsync::Never).unwrap();
        let first = journal.append(&extended(1, 1)).unwrap();
        journal.tail().length = SEGMENT_BYTES;
        let second = journal.append(&extended(2, 2)).unwrap();
        assert_eq!((first, second), (1, 2));
        journal.forget([first].into_iter());
        assert_eq!(
            segment::list(folder.path())
                .unwrap()
                .into_keys()
                .collect::<Vec<_>>(),
            [2]
        );
    }
}
