//! Where callers and the engine thread leave word for each other without waiting: who waits for a first step, who has left,
//! and who is in the running step, so that a step nobody wants any more is stopped between two layers. Invariant: who leaves
//! the queue is out of its count at that moment, whatever the engine thread is at.

use crate::scheduler::Class;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// A request whose caller has left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left {
    pub(super) id: u64,
    pub(super) when: Instant,
    /// It had not begun, and is out of the queue already.
    pub(super) was_queued: bool,
}

#[derive(Debug, Default)]
struct Notes {
    left: Vec<Left>,
    /// Requests that have not begun and whose callers have not left.
    queued: HashSet<u64>,
    /// Requests of the running step whose callers have not.
    step: Vec<u64>,
    class: Class,
    /// A request has come since the engine last looked, for which background steps make way.
    has_come: bool,
}

#[derive(Debug, Default)]
pub(super) struct Board {
    notes: Mutex<Notes>,
    /// How many are queued; read without the lock.
    queued: AtomicUsize,
    abort: AtomicBool,
}

impl Board {
    fn notes(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request comes into the queue, unless so many are there. False: it is full.
    pub(super) fn queue(&self, id: u64, most: usize) -> bool {
        let mut notes = self.notes();
        let has_room = notes.queued.len() < most;
        if has_room {
            notes.queued.insert(id);
            self.queued.store(notes.queued.len(), Ordering::Release);
        }
        has_room
    }

    /// A request is no longer queued: it begins, or could not be handed over. False: its caller had left.
    pub(super) fn unqueue(&self, id: u64) -> bool {
        let mut notes = self.notes();
        let was_there = notes.queued.remove(&id);
        self.queued.store(notes.queued.len(), Ordering::Release);
        was_there
    }

    /// Requests that have not begun.
    pub(super) fn queued(&self) -> usize {
        self.queued.load(Ordering::Acquire)
    }

    /// A caller has left. True: its request had not begun, and is out of the queue from now on.
    pub(super) fn left(&self, id: u64) -> bool {
        let mut notes = self.notes();
        let was_queued = notes.queued.remove(&id);
        self.queued.store(notes.queued.len(), Ordering::Release);
        let when = Instant::now();
        notes.left.push(Left { id, when, was_queued });
        let count = notes.step.len();
        notes.step.retain(|other| *other != id);
        if count > 0 && notes.step.is_empty() {
            self.abort.store(true, Ordering::Release);
        }
        was_queued
    }

    /// A request has come, and can be taken; a background step makes way for it.
    pub(super) fn came(&self, class: Class) {
        let mut notes = self.notes();
        if class == Class::Foreground {
            notes.has_come = true;
            if notes.class == Class::Background && !notes.step.is_empty() {
                self.abort.store(true, Ordering::Release);
            }
        }
    }

    /// The engine takes all requests that have come.
    pub(super) fn look(&self) {
        self.notes().has_come = false;
    }

    /// Stops whatever runs.
    pub(super) fn stop(&self) {
        self.abort.store(true, Ordering::Release);
    }

    /// Those who have left since the last call.
    pub(super) fn take_left(&self) -> Vec<Left> {
        std::mem::take(&mut self.notes().left)
    }

    /// A step begins, unless somebody has left, or has come for whom it makes way, since the last look. True: it may run.
    pub(super) fn begin(&self, ids: impl Iterator<Item = u64>, class: Class) -> bool {
        let mut notes = self.notes();
        if !notes.left.is_empty() || class == Class::Background && notes.has_come {
            return false;
        }
        notes.step = ids.collect();
        notes.class = class;
        self.abort.store(false, Ordering::Release);
        true
    }

    pub(super) fn end(&self) {
        self.notes().step.clear();
    }

    /// Read between layers.
    pub(super) fn abort(&self) -> &AtomicBool {
        &self.abort
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_aborted(board: &Board) -> bool {
        board.abort().load(Ordering::Acquire)
    }

    #[test]
    fn a_step_is_stopped_when_the_last_of_its_callers_has_left() {
        let board = Board::default();
        assert!(board.begin([1, 2].into_iter(), Class::Foreground));
        board.left(1);
        assert!(!is_aborted(&board));
        board.left(7);
        assert!(!is_aborted(&board));
        board.left(2);
        assert!(is_aborted(&board));
        board.end();
        assert!(
            !board.begin([3].into_iter(), Class::Foreground),
            "somebody has left"
        );
        assert_eq!(board.take_left().len(), 3);
        assert!(board.begin([3].into_iter(), Class::Foreground) && !is_aborted(&board));
    }

    #[test]
    fn who_leaves_the_queue_makes_room_at_once() {
        let board = Board::default();
        assert!(board.begin([1].into_iter(), Class::Foreground));
        assert!(board.queue(2, 2) && board.queue(3, 2) && !board.queue(4, 2));
        assert!(board.left(2), "while a step runs");
        assert!(board.queued() == 1 && board.queue(4, 2) && !is_aborted(&board));
        assert!(!board.unqueue(2) && board.unqueue(3), "one left, one begins");
        assert!(!board.left(3), "it has begun");
        let told: Vec<_> = board
            .take_left()
            .iter()
            .map(|left| (left.id, left.was_queued))
            .collect();
        assert_eq!(told, [(2, true), (3, false)]);
        assert_eq!(board.queued(), 1);
    }

    #[test]
    fn only_a_background_step_makes_way() {
        let board = Board::default();
        assert!(board.begin([1].into_iter(), Class::Foreground));
        board.came(Class::Foreground);
        assert!(!is_aborted(&board));
        board.look();
        assert!(board.begin([1].into_iter(), Class::Background));
        board.came(Class::Background);
        assert!(!is_aborted(&board));
        board.came(Class::Foreground);
        assert!(is_aborted(&board));
        board.end();
        assert!(
            !board.begin([1].into_iter(), Class::Background),
            "who came is taken first"
        );
        board.look();
        assert!(board.begin([1].into_iter(), Class::Background));
        board.end();
        assert!(board.begin([1].into_iter(), Class::Foreground));
        board.end();
        board.came(Class::Foreground);
        assert!(!is_aborted(&board), "no step runs");
    }
}
