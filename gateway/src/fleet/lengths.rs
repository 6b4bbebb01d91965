//! How long answers are: the money held before a stream starts pays for most of them, and no more.
//!
//! By deployment and by the model asked for, which is what is known of a route before the decision. An estimate is a quantile that
//! follows the answers: each that is longer lifts it by a little, each that is shorter lowers it by a third of that, so that
//! it rests where a quarter is longer, and old answers are forgotten. Invariant: between [`LEAST`] and [`MOST`] tokens.

use exchange::Facts;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock};

/// Output tokens held before a stream starts while nothing is known; more is held as they pass.
pub(super) const LEAST: u64 = 256;
const MOST: u64 = 4096;
/// Names of models that are told apart at a deployment; callers may make up more.
const NAMES: usize = 64;
/// The estimate is kept in so many parts of a token.
const PARTS: u32 = 1024;
/// An answer moves the estimate by this part of it at most.
const STEP: u32 = 16;

/// The estimate for one name.
#[derive(Debug)]
struct Quantile(AtomicU32);

impl Quantile {
    const fn new() -> Self {
        Self(AtomicU32::new(LEAST as u32 * PARTS))
    }

    fn add(&self, tokens: u64) {
        let before = self.0.load(Ordering::Relaxed);
        let after = if tokens > u64::from(before / PARTS) {
            before + before / STEP * 3 / 4
        } else {
            before - before / STEP / 4
        };
        let bounded = after.clamp(LEAST as u32 * PARTS, MOST as u32 * PARTS);
        // Two at once: one of them is lost, which an estimate does not feel.
        self.0.store(bounded, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        u64::from(self.0.load(Ordering::Relaxed) / PARTS)
    }
}

/// What a deployment's answers have taught.
#[derive(Debug, Default)]
pub(crate) struct Lengths(RwLock<HashMap<Box<str>, Quantile>>);

impl Lengths {
    /// An answer to such a request came to its end.
    pub(crate) fn answered(&self, facts: &Facts, output_tokens: u64) {
        if let Some(known) = self.read().get(&*facts.model) {
            return known.add(output_tokens);
        }
        let mut names = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if names.len() < NAMES {
            let learned = names.entry(facts.model.clone()).or_insert_with(Quantile::new);
            learned.add(output_tokens);
        }
    }

    /// The tokens to hold money for before starting: no more than the caller lets the model produce.
    pub(crate) fn first_slice(&self, facts: &Facts) -> u64 {
        let learned = self.read().get(&*facts.model).map_or(LEAST, Quantile::get);
        facts
            .max_output_tokens
            .map_or(learned, |limit| limit.min(learned))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<Box<str>, Quantile>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(model: &str, max_output_tokens: Option<u64>) -> Facts {
        let body = format!(r#"{{"model": "{model}", "messages": [{{"role": "user", "content": "hi"}}]}}"#);
        let request = dialect::read_request(exchange::Dialect::OpenaiChat, body.into());
        let mut facts = request.unwrap().facts;
        facts.max_output_tokens = max_output_tokens;
        facts
    }

    #[test]
    fn three_answers_of_four_fit_the_slice_that_was_learned() {
        let lengths = Lengths::default();
        let auto = facts("auto", None);
        assert_eq!(lengths.first_slice(&auto), 256);
        // Evenly between 0 and 2,000, in no order.
        let length = |number: u64| number * 7_919 % 2_000;
        (0..4_000).for_each(|number| lengths.answered(&auto, length(number)));
        let learned: Vec<u64> = (0..2_000)
            .map(|number| {
                lengths.answered(&auto, length(number));
                lengths.first_slice(&auto)
            })
            .collect();
        let fits = learned
            .iter()
            .zip(1..)
            .filter(|(slice, number)| length(*number) <= **slice);
        let share = fits.count() * 100 / learned.len();
        assert!((65..=85).contains(&share), "{share} %");
    }

    #[test]
    fn each_name_learns_alone_follows_a_change_and_is_bounded() {
        let lengths = Lengths::default();
        let (long, short) = (facts("writer", None), facts("classifier", None));
        for _ in 0..200 {
            lengths.answered(&long, 1_000_000);
            lengths.answered(&short, 3);
        }
        assert_eq!(
            (lengths.first_slice(&long), lengths.first_slice(&short)),
            (MOST, LEAST)
        );
        assert_eq!(lengths.first_slice(&facts("writer", Some(40))), 40);
        (0..400).for_each(|_| lengths.answered(&long, 10));
        assert_eq!(lengths.first_slice(&long), LEAST);
        (0..1_000).for_each(|number| lengths.answered(&facts(&format!("m{number}"), None), 9_000));
        assert_eq!(lengths.read().len(), NAMES);
        assert_eq!(lengths.first_slice(&facts("m999", None)), LEAST);
    }
}
