//! Guesses at what comes next, from what has been before: code that is edited and texts that are quoted repeat
//! themselves. Guesses are checked against the model's own choices, so that they change the speed and nothing else.

/// The longest and the shortest run of tokens that is looked for.
const RUN: std::ops::RangeInclusive<usize> = 2..=4;
/// Guesses at a time, at most.
const MOST: usize = 7;
/// Tokens that pass unguessed after guesses went wrong, at most.
const PAUSE: usize = 64;

/// One answer's guesses and how they fared.
#[derive(Clone, Debug)]
pub(super) struct Lookup {
    next: usize,
    pause: usize,
    /// How long to pause when the next guess is wrong.
    penalty: usize,
}

impl Default for Lookup {
    fn default() -> Self {
        Self {
            next: 2,
            pause: 0,
            penalty: 1,
        }
    }
}

impl Lookup {
    /// What followed the last time that the end of `tokens` was seen; at most `most` tokens.
    pub(super) fn guess(&mut self, tokens: &[u32], most: usize) -> Vec<u32> {
        if self.pause > 0 {
            self.pause -= 1;
            return Vec::new();
        }
        let count = self.next.min(most);
        for length in RUN.rev() {
            let Some(start) = tokens.len().checked_sub(length) else {
                continue;
            };
            let (before, end) = (&tokens[..tokens.len() - 1], &tokens[start..]);
            let Some(at) = before.windows(length).rposition(|run| run == end) else {
                continue;
            };
            let follows = at + length;
            return tokens[follows..tokens.len().min(follows + count)].to_vec();
        }
        Vec::new()
    }

    /// So many guesses were made, and so many of them were right.
    pub(super) fn learn(&mut self, guessed: usize, right: usize) {
        if guessed == 0 {
            return;
        }
        if right == 0 {
            self.pause = self.penalty;
            (self.penalty, self.next) = ((self.penalty * 2).min(PAUSE), 2);
        } else {
            self.penalty = 1;
            self.next = if right == guessed {
                (self.next + 2).min(MOST)
            } else {
                right.max(2)
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_last_time_is_guessed() {
        let tokens = [1, 2, 3, 4, 5, 9, 9, 2, 3];
        assert_eq!(Lookup::default().guess(&tokens, 8), [4, 5]);
        assert_eq!(Lookup::default().guess(&tokens, 1), [4]);
        assert!(Lookup::default().guess(&[1, 2, 3], 8).is_empty());
        assert!(Lookup::default().guess(&[1], 8).is_empty());
    }

    #[test]
    fn wrong_guesses_make_it_pause_and_right_ones_make_it_bold() {
        let (mut lookup, tokens) = (Lookup::default(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3]);
        lookup.learn(2, 2);
        assert_eq!(lookup.guess(&tokens, 8), [4, 5, 6, 7]);
        lookup.learn(4, 0);
        assert!(lookup.guess(&tokens, 8).is_empty());
        assert_eq!(lookup.guess(&tokens, 8), [4, 5]);
        lookup.learn(2, 0);
        assert!(lookup.guess(&tokens, 8).is_empty() && lookup.guess(&tokens, 8).is_empty());
    }
}
