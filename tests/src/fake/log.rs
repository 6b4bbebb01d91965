//! What a fake provider saw: one entry per request with the instants that matter, and running counters.
//!
//! Instants are microseconds of the realtime clock, so that they compare with those of other processes on the machine.
//! An entry ends exactly once: `finished` when the last byte was handed to the connection, `cancelled` the moment the
//! connection or stream was dropped before that.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

/// Bodies longer than this are logged by hash and length only.
const LOGGED_BODY_BYTES: usize = 64 * 1024;

/// Now, in microseconds since the epoch.
pub fn unix_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Nanoseconds since the epoch.
pub fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    Finished,
    Cancelled,
    /// The fake cut the connection itself, as scripted.
    Cut,
}

/// One request as the provider saw it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    pub id: u64,
    pub path: String,
    pub http: String,
    pub model: String,
    pub stream: bool,
    pub headers: BTreeMap<String, String>,
    /// As text, when short enough to keep.
    pub body: Option<String>,
    pub body_bytes: usize,
    pub body_sha256: String,
    pub status: u16,
    /// When the request head had been read.
    pub started_us: i64,
    /// When the body had been read.
    pub body_read_us: Option<i64>,
    /// When the first byte of the answer was handed over.
    pub first_byte_us: Option<i64>,
    pub ended_us: Option<i64>,
    pub ended: Option<Ended>,
    /// Tokens generated, thinking included; a deaf model counts on after the hang-up.
    pub tokens: u32,
}

/// Counters since the start or the last reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    pub started: u64,
    pub finished: u64,
    pub cancelled: u64,
    pub cut: u64,
    pub running: u64,
}

/// Everything seen so far.
#[derive(Default)]
pub struct Log {
    started: AtomicU64,
    finished: AtomicU64,
    cancelled: AtomicU64,
    cut: AtomicU64,
    entries: Mutex<Vec<Arc<Mutex<Entry>>>>,
    /// Requests seen per model name, for `failfirst`.
    seen: Mutex<HashMap<String, u32>>,
    pub batches: super::batch::Batches,
    /// Keep counters only: for load runs.
    quiet: bool,
}

impl Log {
    pub fn new(quiet: bool) -> Self {
        Self {
            quiet,
            ..Self::default()
        }
    }

    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    pub fn stats(&self) -> Stats {
        let [started, finished, cancelled, cut] =
            [&self.started, &self.finished, &self.cancelled, &self.cut].map(|n| n.load(Ordering::SeqCst));
        let running = started.saturating_sub(finished + cancelled + cut);
        Stats {
            started,
            finished,
            cancelled,
            cut,
            running,
        }
    }

    /// All entries, in the order they arrived.
    pub fn entries(&self) -> Vec<Entry> {
        self.entries
            .lock()
            .unwrap()
            .iter()
            .map(|entry| entry.lock().unwrap().clone())
            .collect()
    }

    /// Forgets everything. Requests still running end without being counted again.
    pub fn reset(&self) {
        self.entries.lock().unwrap().clear();
        self.seen.lock().unwrap().clear();
        self.batches.reset();
        for counter in [&self.started, &self.finished, &self.cancelled, &self.cut] {
            counter.store(0, Ordering::SeqCst);
        }
    }

    /// How many requests for `model` came before this one.
    pub fn count_model(&self, model: &str) -> u32 {
        let mut seen = self.seen.lock().unwrap();
        let count = seen.entry(model.to_owned()).or_default();
        *count += 1;
        *count - 1
    }

    /// Opens an entry; the ticket closes it.
    pub fn open(self: &Arc<Self>, path: &str, http: String) -> Ticket {
        let id = self.started.fetch_add(1, Ordering::SeqCst) + 1;
        let entry = Arc::new(Mutex::new(Entry {
            id,
            path: path.to_owned(),
            http,
            model: String::new(),
            stream: false,
            headers: BTreeMap::new(),
            body: None,
            body_bytes: 0,
            body_sha256: String::new(),
            status: 0,
            started_us: unix_us(),
            body_read_us: None,
            first_byte_us: None,
            ended_us: None,
            ended: None,
            tokens: 0,
        }));
        if !self.quiet {
            self.entries.lock().unwrap().push(entry.clone());
        }
        Ticket {
            log: self.clone(),
            entry,
            ended: false,
        }
    }
}

/// One open entry. Dropping it unfinished is the hang-up.
pub struct Ticket {
    log: Arc<Log>,
    entry: Arc<Mutex<Entry>>,
    ended: bool,
}

impl Ticket {
    pub fn update(&self, change: impl FnOnce(&mut Entry)) {
        change(&mut self.entry.lock().unwrap());
    }

    /// Records what arrived.
    pub fn body_read(&self, body: &[u8], model: &str, stream: bool) {
        let sha = if self.log.quiet {
            String::new()
        } else {
            super::sha256_hex(body)
        };
        self.update(|entry| {
            entry.body_read_us = Some(unix_us());
            entry.body_bytes = body.len();
            entry.body_sha256 = sha;
            entry.model = model.to_owned();
            entry.stream = stream;
            if body.len() <= LOGGED_BODY_BYTES {
                entry.body = std::str::from_utf8(body).ok().map(str::to_owned);
            }
        });
    }

    pub fn first_byte(&self, status: u16) {
        self.update(|entry| {
            entry.status = status;
            entry.first_byte_us.get_or_insert_with(unix_us);
        });
    }

    pub fn token(&self) {
        self.update(|entry| entry.tokens += 1);
    }

    /// A handle that goes on counting tokens after the ticket is gone.
    pub fn shared(&self) -> Arc<Mutex<Entry>> {
        self.entry.clone()
    }

    pub fn end(&mut self, how: Ended) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.update(|entry| {
            entry.ended_us = Some(unix_us());
            entry.ended = Some(how);
        });
        let counter = match how {
            Ended::Finished => &self.log.finished,
            Ended::Cancelled => &self.log.cancelled,
            Ended::Cut => &self.log.cut,
        };
        counter.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.end(Ended::Cancelled);
    }
}
