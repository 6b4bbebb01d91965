//! How far loading a model has come, for whoever watches from another thread.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts layers, and what lies around them as one more.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicUsize,
    all: AtomicUsize,
}

impl Progress {
    /// So many parts are to be loaded.
    pub(super) fn begin(&self, parts: usize) {
        self.done.store(0, Ordering::Relaxed);
        self.all.store(parts, Ordering::Relaxed);
    }

    /// One of them is.
    pub(super) fn step(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    /// All are.
    pub(super) fn end(&self) {
        self.all.fetch_max(1, Ordering::Relaxed);
        self.done
            .store(self.all.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// From 0 to 1, which is reached when the model is there.
    #[must_use]
    pub fn share(&self) -> f64 {
        let all = self.all.load(Ordering::Relaxed).max(1);
        self.done.load(Ordering::Relaxed) as f64 / all as f64
    }
}
