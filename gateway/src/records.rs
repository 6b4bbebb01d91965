//! What decisions depended on, kept as lines of JSON for `policy replay`.
//!
//! Owns: the file and the queue in front of it. Refuses to know: prompt text: facts are numbers and declared names.
//! Invariants: an exchange never waits for the disk; what does not fit the queue is dropped and counted in the log.

use anyhow::Context;
use router_policies::Recorded;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

const QUEUE: usize = 8192;
/// How long a line may wait in memory.
const FLUSH: Duration = Duration::from_millis(500);

/// The writer's end of the queue; `None` where the configuration names no file.
#[derive(Default)]
pub(crate) struct Records {
    queue: Option<SyncSender<Box<Recorded>>>,
    dropped: AtomicU64,
}

impl Records {
    /// # Errors
    /// The file cannot be opened.
    pub(crate) fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        let file = append(path.to_owned())?;
        let (queue, lines) = sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("records".into())
            .spawn(move || write(&lines, file))?;
        Ok(Self {
            queue: Some(queue),
            dropped: AtomicU64::new(0),
        })
    }

    pub(crate) fn wanted(&self) -> bool {
        self.queue.is_some()
    }

    pub(crate) fn decision(&self, record: Box<Recorded>) {
        let Some(queue) = &self.queue else { return };
        if queue.try_send(record).is_err() {
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if dropped.is_power_of_two() {
                tracing::warn!(
                    dropped,
                    "records come faster than the disk takes them, and some are left out"
                );
            }
        }
    }
}

fn append(path: PathBuf) -> anyhow::Result<BufWriter<File>> {
    let file = OpenOptions::new().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("the records file {} cannot be opened", path.display()))?;
    Ok(BufWriter::new(file))
}

fn write(lines: &Receiver<Box<Recorded>>, mut file: BufWriter<File>) {
    use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
    loop {
        let written = match lines.recv_timeout(FLUSH) {
            Ok(record) => line(&mut file, &record),
            Err(Timeout) => file.flush(),
            Err(Disconnected) => return,
        };
        if let Err(error) = written {
            tracing::error!("the records cannot be written: {error}");
        }
    }
}

fn line(file: &mut BufWriter<File>, value: &impl serde::Serialize) -> std::io::Result<()> {
    serde_json::to_writer(&mut *file, value)?;
    file.write_all(b"\n")
}
