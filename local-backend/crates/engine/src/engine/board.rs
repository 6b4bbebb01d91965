//! Where callers and the engine thread leave word for each other without waiting: who has left, and who is in the running
//! step, so that a step nobody wants any more is stopped between two layers.

use crate::scheduler::Class;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

#[derive(Debug, Default)]
struct Notes {
    /// Requests whose callers have left, and when.
    left: Vec<(u64, Instant)>,
    /// Requests of the running step whose callers have not.
    step: Vec<u64>,
    class: Class,
}

#[derive(Debug, Default)]
pub(super) struct Board {
    notes: Mutex<Notes>,
    abort: AtomicBool,
}

impl Board {
    fn notes(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A caller has left.
    pub(super) fn left(&self, id: u64) {
        let mut notes = self.notes();
        notes.left.push((id, Instant::now()));
        let count = notes.step.len();
        notes.step.retain(|other| *other != id);
        if count > 0 && notes.step.is_empty() {
            self.abort.store(true, Ordering::Release);
        }
    }

    /// A request has come; a background step makes way for it.
    pub(super) fn came(&self, class: Class) {
        let notes = self.notes();
        if class == Class::Foreground && notes.class == Class::Background && !notes.step.is_empty() {
            self.abort.store(true, Ordering::Release);
        }
    }

    /// Stops whatever runs.
    pub(super) fn stop(&self) {
        self.abort.store(true, Ordering::Release);
    }

    /// Those who have left since the last call.
    pub(super) fn take_left(&self) -> Vec<(u64, Instant)> {
        std::mem::take(&mut self.notes().left)
    }

    /// A step begins, unless somebody has left since the last look. True: it may run.
    pub(super) fn begin(&self, ids: impl Iterator<Item = u64>, class: Class) -> bool {
        let mut notes = self.notes();
        if !notes.left.is_empty() {
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
    fn only_a_background_step_makes_way() {
        let board = Board::default();
        assert!(board.begin([1].into_iter(), Class::Foreground));
        board.came(Class::Foreground);
        assert!(!is_aborted(&board));
        assert!(board.begin([1].into_iter(), Class::Background));
        board.came(Class::Background);
        assert!(!is_aborted(&board));
        board.came(Class::Foreground);
        assert!(is_aborted(&board));
        board.end();
        assert!(board.begin([1].into_iter(), Class::Foreground));
        board.end();
        board.came(Class::Foreground);
        assert!(!is_aborted(&board), "no step runs");
    }
}
