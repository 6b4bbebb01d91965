//! A pool of threads that share the indices of a loop. Waiting threads spin for a moment and then sleep: an embedded
//! engine shares its cores by nature, and threads that only spin take them from whoever has work.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread spins before it sleeps.
const SPIN: Duration = Duration::from_micros(20);

/// The loop body, with its lifetime taken away; see [`Pool::run`].
type Body = *const (dyn Fn(usize) + Sync);

struct Job {
    body: Body,
    count: usize,
}

#[derive(Default)]
struct Shared {
    /// Rises with every job.
    epoch: AtomicUsize,
    /// The next index nobody has taken.
    next: AtomicUsize,
    /// Workers that have not finished the job.
    busy: AtomicUsize,
    failed: AtomicBool,
    stop: AtomicBool,
    job: Mutex<Option<Job>>,
    wake: Condvar,
}

// SAFETY: the pointer in `job` is only used between `run`'s start and its return, while what it points to is borrowed.
unsafe impl Send for Job {}

impl Shared {
    fn work(&self, body: &(dyn Fn(usize) + Sync), count: usize) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            if catch_unwind(AssertUnwindSafe(|| body(index))).is_err() {
                self.failed.store(true, Ordering::Relaxed);
            }
        }
    }

    fn serve(&self) {
        let mut seen = 0;
        loop {
            let started = Instant::now();
            while self.epoch.load(Ordering::Acquire) == seen && started.elapsed() < SPIN {
                std::hint::spin_loop();
            }
            let mut job = self.job.lock().unwrap_or_else(PoisonError::into_inner);
            while self.epoch.load(Ordering::Acquire) == seen {
                job = self.wake.wait(job).unwrap_or_else(PoisonError::into_inner);
            }
            seen = self.epoch.load(Ordering::Acquire);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let current = job.as_ref().map(|job| (job.body, job.count));
            drop(job);
            if let Some((body, count)) = current {
                // SAFETY: `run` does not return before `busy` is zero, so the body is still borrowed there.
                self.work(unsafe { &*body }, count);
            }
            self.busy.fetch_sub(1, Ordering::Release);
        }
    }
}

/// The pool; the calling thread is one of its threads.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

impl Pool {
    /// A pool of `threads` threads, at least one.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let workers = (1..threads.max(1))
            .map(|_| {
                let shared = shared.clone();
                std::thread::spawn(move || shared.serve())
            })
            .collect();
        Self { shared, workers }
    }

    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `body` once for every index below `count`, on all threads, and returns when all calls have.
    ///
    /// # Panics
    /// When a call panicked.
    pub fn run(&mut self, count: usize, body: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() || count <= 1 {
            (0..count).for_each(body);
            return;
        }
        let shared = &self.shared;
        {
            let mut job = shared.job.lock().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: only the lifetime changes. No worker uses the pointer after `busy` is zero, which is awaited
            // below before the borrow ends; `&mut self` keeps a second job from starting meanwhile.
            let body = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Body>(body) };
            *job = Some(Job { body, count });
            shared.next.store(0, Ordering::Relaxed);
            shared.busy.store(self.workers.len(), Ordering::Relaxed);
            shared.epoch.fetch_add(1, Ordering::Release);
        }
        shared.wake.notify_all();
        shared.work(body, count);
        let started = Instant::now();
        while shared.busy.load(Ordering::Acquire) > 0 {
            if started.elapsed() < SPIN {
                std::hint::spin_loop()
            } else {
                std::thread::yield_now()
            }
        }
        assert!(
            !shared.failed.swap(false, Ordering::Relaxed),
            "a thread of the pool panicked"
        );
    }

    /// Calls `body` with the index and the contents of each chunk of `data`.
    pub fn chunks(&mut self, data: &mut [f32], length: usize, body: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        struct Base(*mut f32);
        // SAFETY: every index gets a part of the slice that no other index gets.
        unsafe impl Sync for Base {}
        let (base, total) = (Base(data.as_mut_ptr()), data.len());
        let base = &base;
        self.run(total.div_ceil(length), &|index| {
            let start = index * length;
            // SAFETY: `start` is below `total` since `index` is below its quotient; chunks do not overlap.
            let chunk =
                unsafe { std::slice::from_raw_parts_mut(base.0.add(start), length.min(total - start)) };
            body(index, chunk);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        {
            let _job = self.shared.job.lock().unwrap_or_else(PoisonError::into_inner);
            self.shared.epoch.fetch_add(1, Ordering::Release);
        }
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_runs_once() {
        let mut pool = Pool::new(3);
        for count in [0, 1, 2, 7, 1000] {
            let mut data = vec![0.0; count * 3];
            pool.chunks(&mut data, 3, &|index, chunk| {
                chunk.iter_mut().for_each(|value| *value += index as f32 + 1.0)
            });
            assert!(
                data.iter()
                    .enumerate()
                    .all(|(at, value)| *value == (at / 3) as f32 + 1.0)
            );
        }
    }

    #[test]
    fn a_panic_is_passed_on_and_the_pool_lives() {
        let mut pool = Pool::new(2);
        let broken = catch_unwind(AssertUnwindSafe(|| pool.run(10, &|index| assert!(index != 5))));
        assert!(broken.is_err());
        pool.run(10, &|_| {});
    }
}
