//! The rate at which a deployment is called, so that its provider need not refuse.
//!
//! A node has its part of the rate; it asks nobody. Invariant: tokens are held before a call and trued up after it, and a call
//! that came to nothing gives back what was held for it.

use crate::clock;
use limits::{Book, Path, Rule};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A deployment's rate; without one, nothing is ever in the way.
#[derive(Debug)]
pub(crate) struct Pace(Option<Arc<Paced>>);

#[derive(Debug)]
struct Paced {
    book: Mutex<Book>,
    path: Path,
}

/// What is held for a call. Dropping it gives the tokens back; what was used is said by [`Pace::used`].
#[derive(Debug)]
pub(super) struct Held(Option<(Arc<Paced>, u64)>);

impl Drop for Held {
    fn drop(&mut self) {
        if let Some((paced, tokens)) = self.0.take() {
            paced.with(|book| book.leave(&paced.path, tokens, 0));
        }
    }
}

impl Paced {
    fn with<T>(&self, action: impl FnOnce(&mut Book) -> T) -> T {
        action(&mut self.book.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Pace {
    pub(super) fn new(name: &Arc<str>, rule: Rule) -> Self {
        if rule.is_empty() {
            return Self(None);
        }
        let mut book = Book::default();
        let path = std::iter::once(book.add(name.clone(), rule, clock::monotonic_us())).collect();
        Self(Some(Arc::new(Paced {
            book: Mutex::new(book),
            path,
        })))
    }

    /// Room for a call that is expected to use `tokens`.
    ///
    /// # Errors
    /// How long until there is.
    pub(super) fn take(&self, tokens: u64) -> Result<Held, Duration> {
        let Some(paced) = &self.0 else {
            return Ok(Held(None));
        };
        let admitted = paced.with(|book| book.admit(&paced.path, tokens, clock::monotonic_us()));
        match admitted {
            Ok(_) => Ok(Held(Some((paced.clone(), tokens)))),
            Err(exceeded) => Err(Duration::from_micros(exceeded.wait_us)),
        }
    }

    /// A call whose hold was given back has used so much.
    pub(crate) fn used(&self, tokens: u64) {
        if let Some(paced) = &self.0 {
            paced.with(|book| book.leave(&paced.path, 0, tokens));
        }
    }

    pub(super) fn share_among(&self, nodes: u32) {
        if let Some(paced) = &self.0 {
            paced.with(|book| book.share_among(nodes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(requests: Option<u32>, tokens: Option<u32>) -> Pace {
        let rule = Rule {
            requests_per_minute: requests,
            tokens_per_minute: tokens,
            concurrency: None,
        };
        Pace::new(&"d".into(), rule)
    }

    #[test]
    fn a_call_that_came_to_nothing_gives_its_tokens_back_but_was_a_call() {
        let pace = pace(Some(3), Some(1_000));
        let held = pace.take(900).unwrap();
        assert!(pace.take(900).unwrap_err() > Duration::from_secs(40));
        drop(held);
        drop(pace.take(900).unwrap());
        drop(pace.take(900).unwrap());
        assert!(
            pace.take(1).unwrap_err() > Duration::from_secs(15),
            "three calls a minute"
        );
    }

    #[test]
    fn what_was_used_counts_and_nodes_have_a_part_each() {
        let unlimited = pace(None, None);
        assert!((0..1_000).all(|_| unlimited.take(u64::MAX).is_ok()));
        let paced = pace(None, Some(1_000));
        drop(paced.take(10).unwrap());
        paced.used(1_500);
        assert!(
            paced.take(10).unwrap_err() > Duration::from_secs(29),
            "500 are owed"
        );
        let shared = pace(Some(10), None);
        shared.share_among(5);
        let held: Vec<_> = (0..10).map_while(|_| shared.take(1).ok()).collect();
        assert_eq!(held.len(), 2);
    }
}
