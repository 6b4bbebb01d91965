//! A pool of threads that share the indices of a loop. An embedded engine shares its cores by nature, so nobody waits for
//! a thread that has not begun: threads join a loop if they come in time, and the loop ends when the indices are done.
//! Who waits spins for a moment and then sleeps, which lets the system move a thread that lost its core to this one.

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a thread without work spins before it sleeps: longer than what lies between two loops of a step.
const IDLE_SPIN: Duration = Duration::from_micros(60);
/// How long the loop's owner spins for the others' last indices before it sleeps.
const END_SPIN: Duration = Duration::from_micros(30);

/// The loop body, with its lifetime taken away; see [`Pool::run`].
type Body = *const (dyn Fn(usize) + Sync);

/// `gate`: the number of the loop, whether it is open, and how many workers are in it.
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;

struct Job {
    body: Body,
    count: usize,
}

struct State {
    gate: AtomicU64,
    /// The next index nobody has taken.
    next: AtomicUsize,
    /// Written while the gate is closed and nobody is inside.
    job: UnsafeCell<Option<Job>>,
    /// The owner sleeps until nobody is inside.
    owner_sleeps: AtomicBool,
    owner: Mutex<Option<Thread>>,
    /// Per worker: whether it sleeps.
    asleep: Vec<AtomicBool>,
    failed: AtomicBool,
    stop: AtomicBool,
}

// SAFETY: `job` is written by the owner while the gate is closed and nobody is inside, and read only by workers inside;
// entering and leaving order the two. The body it points to outlives the loop: `Pool::run` waits for all inside.
unsafe impl Sync for State {}
// SAFETY: as above.
unsafe impl Send for State {}

/// Spins until `done` or the time is over; says whether `done`.
fn spin(limit: Duration, done: impl Fn() -> bool) -> bool {
    let started = Instant::now();
    loop {
        for _ in 0..32 {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        if started.elapsed() > limit {
            return done();
        }
    }
}

impl State {
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

    /// Whether there is a loop that this worker, which was last in loop `seen`, may join, or the end.
    fn calls(&self, seen: u64) -> bool {
        let gate = self.gate.load(Ordering::Acquire);
        gate & OPEN != 0 && gate >> 32 != seen || self.stop.load(Ordering::Relaxed)
    }

    fn serve(&self, worker: usize) {
        let mut seen = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if !spin(IDLE_SPIN, || self.calls(seen)) {
                self.asleep[worker].store(true, Ordering::Relaxed);
                // Either the owner sees this worker asleep, or the worker sees the owner's loop.
                fence(Ordering::SeqCst);
                while self.asleep[worker].load(Ordering::Acquire) && !self.calls(seen) {
                    std::thread::park();
                }
                self.asleep[worker].store(false, Ordering::Relaxed);
            }
            let gate = self.gate.load(Ordering::Acquire);
            let entered = gate & OPEN != 0
                && gate >> 32 != seen
                && self
                    .gate
                    .compare_exchange(gate, gate + 1, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok();
            if !entered {
                continue;
            }
            seen = gate >> 32;
            // SAFETY: inside the gate the job is there, and its body is borrowed until the last one has left.
            if let Some(job) = unsafe { &*self.job.get() } {
                // SAFETY: as above.
                self.work(unsafe { &*job.body }, job.count);
            }
            let left = self.gate.fetch_sub(1, Ordering::SeqCst) - 1;
            if left & (OPEN | INSIDE) == 0 && self.owner_sleeps.load(Ordering::SeqCst) {
                let owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(owner) = &*owner {
                    owner.unpark();
                }
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.gate.load(Ordering::Acquire) & INSIDE == 0
    }

    /// Waits until nobody is inside the closed gate.
    fn wait(&self) {
        if spin(END_SPIN, || self.is_empty()) {
            return;
        }
        *self.owner.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
        self.owner_sleeps.store(true, Ordering::SeqCst);
        while self.gate.load(Ordering::SeqCst) & INSIDE != 0 {
            std::thread::park();
        }
        self.owner_sleeps.store(false, Ordering::Relaxed);
    }
}

/// The pool; the calling thread is one of its threads.
pub struct Pool {
    state: Arc<State>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool of `threads`, the caller's among them. Where a thread cannot be started the pool is smaller.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        let state = Arc::new(State {
            gate: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            owner_sleeps: AtomicBool::new(false),
            owner: Mutex::new(None),
            asleep: (1..threads).map(|_| AtomicBool::new(false)).collect(),
            failed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let spawn = |worker: usize| {
            let state = state.clone();
            std::thread::Builder::new()
                .name(format!("kernels-{worker}"))
                .spawn(move || state.serve(worker))
                .ok()
        };
        let workers = (0..threads.saturating_sub(1)).map_while(spawn).collect();
        Self { state, workers }
    }

    #[must_use]
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
        let state = &self.state;
        let number = (state.gate.load(Ordering::Relaxed) >> 32) + 1;
        // SAFETY: only the lifetime changes. The gate is closed and nobody is inside; nobody keeps the body beyond being
        // inside, which is awaited below before the borrow ends. `&mut self` keeps a second loop from starting.
        unsafe {
            let body = std::mem::transmute::<&(dyn Fn(usize) + Sync), Body>(body);
            *state.job.get() = Some(Job { body, count });
        }
        state.next.store(0, Ordering::Relaxed);
        // Numbers stay below 2³¹ so that the gate never carries over; 0 is nobody's.
        let number = if number >= 1 << 31 { 1 } else { number };
        state.gate.store(number << 32 | OPEN, Ordering::Release);
        fence(Ordering::SeqCst);
        for (asleep, worker) in state.asleep.iter().zip(&self.workers) {
            if asleep.load(Ordering::Relaxed) && asleep.swap(false, Ordering::AcqRel) {
                worker.thread().unpark();
            }
        }
        state.work(body, count);
        state.gate.fetch_and(!OPEN, Ordering::SeqCst);
        state.wait();
        assert!(
            !state.failed.swap(false, Ordering::Relaxed),
            "a thread of the pool panicked"
        );
    }
}

impl Pool {
    /// Calls `body` with the index and the contents of each row of `data`, `width` floats each.
    pub fn rows(&mut self, data: &mut [f32], width: usize, body: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        let (rows, data) = (data.len() / width.max(1), Shared::new(data));
        // A few rows take less time than another thread takes to come.
        let at_once = (8192 / width.max(1)).clamp(1, 16);
        self.run(rows.div_ceil(at_once), &|part| {
            for row in part * at_once..((part + 1) * at_once).min(rows) {
                // SAFETY: each row is in one part.
                body(row, unsafe { data.slice(row * width, width) });
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            let _ = worker.join();
        }
    }
}

/// A slice of which threads of a loop take parts that do not overlap.
pub(crate) struct Shared<T> {
    base: *mut T,
    length: usize,
    owner: PhantomData<T>,
}

// SAFETY: parts are only taken through `slice`, whose callers promise that parts do not overlap.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Callers must not use `data` in another way while parts are in use.
    pub(crate) fn new(data: &mut [T]) -> Self {
        Self {
            base: data.as_mut_ptr(),
            length: data.len(),
            owner: PhantomData,
        }
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// The slice must still be borrowed, and no other part in use may overlap with this one.
    #[expect(clippy::mut_from_ref, reason = "parts do not overlap, as callers promise")]
    pub(crate) unsafe fn slice(&self, start: usize, count: usize) -> &mut [T] {
        assert!(
            start.checked_add(count).is_some_and(|end| end <= self.length),
            "a part must lie within its slice"
        );
        // SAFETY: within the slice; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(start), count) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_runs_once() {
        let mut pool = Pool::new(3);
        for count in [0, 1, 2, 7, 1000] {
            for _ in 0..50 {
                let counts: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                pool.run(count, &|index| {
                    counts[index].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn workers_that_sleep_are_called() {
        let mut pool = Pool::new(2);
        for round in 0..200u64 {
            std::thread::sleep(Duration::from_micros(round));
            let threads = Mutex::new(std::collections::HashSet::new());
            pool.run(2, &|_| {
                threads.lock().unwrap().insert(std::thread::current().id());
                // Long enough for the other to come, on a machine that has the time.
                std::thread::sleep(Duration::from_millis(u64::from(round == 199) * 300));
            });
            if round == 199 {
                assert_eq!(threads.lock().unwrap().len(), 2, "the worker slept on");
            }
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
