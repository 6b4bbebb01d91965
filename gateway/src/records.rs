//! What decisions depended on, kept as lines of JSON for `policy replay`, and what callers said of answers.
//!
//! Owns: the files and the queue in front of them. Refuses to know: prompt text: facts are numbers and declared names.
//! Invariants: an exchange never waits for the disk; what does not fit the queue is dropped and counted in the log.

use crate::memory::{Memory, Told};
use anyhow::Context;
use router_policies::Recorded;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

const QUEUE: usize = 8192;
/// How long a line may wait in memory.
const FLUSH: Duration = Duration::from_millis(500);

enum Line {
    Decision(Box<Recorded>),
    Outcome(Told),
}

/// The writer's end of the queue; `None` where the configuration names no file.
#[derive(Default)]
pub(crate) struct Records {
    queue: Option<SyncSender<Line>>,
    dropped: AtomicU64,
}

impl Records {
    /// Opens the files and lets `memory` recall the outcomes in them.
    ///
    /// # Errors
    /// The files cannot be opened.
    pub(crate) fn open(path: Option<&Path>, memory: &Memory) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        let outcomes = path.with_extension("outcomes.jsonl");
        recall(&outcomes, memory);
        let files = (append(path.to_owned())?, append(outcomes)?);
        let (queue, lines) = sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("records".into())
            .spawn(move || write(&lines, files))?;
        Ok(Self {
            queue: Some(queue),
            dropped: AtomicU64::new(0),
        })
    }

    pub(crate) fn wanted(&self) -> bool {
        self.queue.is_some()
    }

    pub(crate) fn decision(&self, record: Box<Recorded>) {
        self.put(Line::Decision(record));
    }

    /// One that was told before is not kept again.
    pub(crate) fn outcome(&self, told: Told) {
        if told.is_new {
            self.put(Line::Outcome(told));
        }
    }

    fn put(&self, line: Line) {
        let Some(queue) = &self.queue else { return };
        if queue.try_send(line).is_err() {
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

/// A line that cannot be read, such as the half one of a process that was killed, is passed over.
fn recall(path: &Path, memory: &Memory) {
    let Ok(file) = File::open(path) else { return };
    for line in BufReader::new(file).lines().map_while(Result::ok) {
        if let Ok(told) = serde_json::from_str(&line) {
            memory.recall(&told);
        }
    }
}

fn append(path: PathBuf) -> anyhow::Result<BufWriter<File>> {
    let file = OpenOptions::new().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("the records file {} cannot be opened", path.display()))?;
    Ok(BufWriter::new(file))
}

fn write(lines: &Receiver<Line>, (mut decisions, mut outcomes): (BufWriter<File>, BufWriter<File>)) {
    use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
    loop {
        let written = match lines.recv_timeout(FLUSH) {
            Ok(Line::Decision(record)) => line(&mut decisions, &record),
            Ok(Line::Outcome(outcome)) => line(&mut outcomes, &outcome),
            Err(Timeout) => decisions.flush().and_then(|()| outcomes.flush()),
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
