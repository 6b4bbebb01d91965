//! Words and letters of a prompt as hashed buckets: sparse vectors of unit length, weighted by how rare a bucket is.
//!
//! Owns: tokens, hashing, term weights. Refuses to know: which word fell into which bucket (hashing cannot be turned
//! back), models, outcomes. Invariants: the same text gives the same vector on every machine; each bucket comes once.

/// Buckets of the vector. A power of two.
pub(super) const BUCKETS: usize = 1 << 15;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    Word,
    Number,
    Symbol,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'t> {
    pub kind: TokenKind,
    pub text: &'t str,
    /// Of the text in lower case.
    pub hash: u64,
}

const SEED: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, which is fixed for ever, unlike the standard library's hasher.
fn step(hash: u64, byte: u8) -> u64 {
    (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
}

fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(SEED, |hash, byte| step(hash, byte.to_ascii_lowercase()))
}

/// FNV leaves the low bits weak; this spreads them.
fn spread(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ (hash >> 32)
}

/// Words (letters, digits after a letter, underscores), numbers (with inner dots and commas), single symbols.
pub(super) fn tokens(text: &str) -> impl Iterator<Item = Token<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        let first = rest.chars().next()?;
        let (kind, end) = if first.is_alphabetic() || first == '_' {
            let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_'));
            (TokenKind::Word, end.unwrap_or(rest.len()))
        } else if first.is_ascii_digit() {
            (TokenKind::Number, number_end(rest.as_bytes()))
        } else {
            (TokenKind::Symbol, first.len_utf8())
        };
        let (text, after) = rest.split_at(end);
        rest = after;
        Some(Token {
            kind,
            text,
            hash: hash(text),
        })
    })
}

fn number_end(bytes: &[u8]) -> usize {
    let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let mut end = 0;
    while digit(end) || (matches!(bytes.get(end), Some(b'.' | b',')) && digit(end + 1)) {
        end += 1;
    }
    end
}

/// Occurrences by bucket, in order of first occurrence.
struct Tally {
    counts: Vec<u16>,
    seen: Vec<u32>,
}

impl Tally {
    fn new() -> Self {
        Self {
            counts: vec![0; BUCKETS],
            seen: Vec::new(),
        }
    }

    fn add(&mut self, hash: u64) {
        let bucket = (spread(hash) % BUCKETS as u64) as u32;
        if let Some(count) = self.counts.get_mut(bucket as usize) {
            if *count == 0 {
                self.seen.push(bucket);
            }
            *count = count.saturating_add(1);
        }
    }

    fn entries(self) -> Vec<(u32, u16)> {
        let Self { counts, seen } = self;
        let count = |bucket: &u32| counts.get(*bucket as usize).copied().unwrap_or_default();
        seen.iter().map(|bucket| (*bucket, count(bucket))).collect()
    }
}

/// A word in this share of the training prompts, or more, is a common one.
const COMMON_SHARE: f32 = 0.02;

/// The share of a text's words that were common in the training prompts, 0 … 1; none where it has no words. English has
/// many such words in whatever it is about, and another language hardly one.
pub(super) fn common_words(text: &str, rarity: &[f32]) -> Option<f32> {
    let most = 1.0 - COMMON_SHARE.ln();
    let (mut common, mut words) = (0_u32, 0_u32);
    for token in tokens(text).filter(|token| token.kind == TokenKind::Word) {
        let bucket = (spread(token.hash) % BUCKETS as u64) as usize;
        let own = rarity.get(bucket).copied().unwrap_or_default();
        words += 1;
        common += u32::from(own > 0.0 && own <= most);
    }
    (words > 0).then(|| common as f32 / words as f32)
}

/// What is counted in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grain {
    /// Words, their first five letters, pairs of neighbours. Numbers count by their number of digits alone.
    Words,
    /// Runs of two to four bytes in lower case, white space as one space.
    Letters,
}

impl Grain {
    fn buckets(self, text: &str) -> Vec<(u32, u16)> {
        match self {
            Self::Words => words(text),
            Self::Letters => letters(text),
        }
    }
}

fn words(text: &str) -> Vec<(u32, u16)> {
    let mut tally = Tally::new();
    let mut before = SEED;
    for token in tokens(text) {
        let own = match token.kind {
            TokenKind::Number => step(step(SEED, b'#'), token.text.len().min(6) as u8),
            TokenKind::Word | TokenKind::Symbol => token.hash,
        };
        tally.add(own);
        tally.add(step(own, b' ') ^ before.rotate_left(17));
        if token.kind == TokenKind::Word && token.text.len() > 5 {
            let stem = &token.text[..token.text.floor_char_boundary(5)];
            tally.add(step(hash(stem), b'~'));
        }
        before = own;
    }
    tally.entries()
}

fn letters(text: &str) -> Vec<(u32, u16)> {
    let mut tally = Tally::new();
    let (mut window, mut length) = (0_u32, 0_u32);
    for byte in text.bytes() {
        let byte = if byte.is_ascii_whitespace() {
            b' '
        } else {
            byte.to_ascii_lowercase()
        };
        if byte == b' ' && window & 0xff == u32::from(b' ') {
            continue;
        }
        window = (window << 8) | u32::from(byte);
        length += 1;
        for run in 2..=length.min(4) {
            let own = window & (u32::MAX >> (32 - 8 * run));
            tally.add((u64::from(run) << 32 | u64::from(own)).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
    }
    tally.entries()
}

/// Inverse document frequencies, learned from the training prompts. 0 where a bucket is too rare to mean anything.
pub(super) fn rarity<'t>(grain: Grain, texts: impl Iterator<Item = &'t str>) -> Vec<f32> {
    let mut frequency = vec![0_u32; BUCKETS];
    let mut count = 0_u32;
    for text in texts {
        count += 1;
        for (bucket, _) in grain.buckets(text) {
            frequency[bucket as usize] += 1;
        }
    }
    let rarity = |documents: u32| match documents {
        0 | 1 => 0.0,
        _ => 1.0 + ((1.0 + count as f32) / (1.0 + documents as f32)).ln(),
    };
    frequency.into_iter().map(rarity).collect()
}

/// A vector of unit length, `(1 + ln count) · rarity` in each bucket.
#[derive(Clone, Debug)]
pub struct Sparse {
    pub entries: Vec<(u32, f32)>,
}

/// `1 + ln count` of the counts that nearly always occur.
static DAMPED: std::sync::LazyLock<[f32; 64]> =
    std::sync::LazyLock::new(|| std::array::from_fn(|count| 1.0 + (count.max(1) as f32).ln()));

impl Sparse {
    pub fn of(grain: Grain, text: &str, rarity: &[f32]) -> Self {
        let damped = |count: u16| {
            let known = DAMPED.get(usize::from(count)).copied();
            known.unwrap_or_else(|| 1.0 + f32::from(count).ln())
        };
        let mut entries: Vec<(u32, f32)> = grain
            .buckets(text)
            .into_iter()
            .filter_map(|(bucket, count)| {
                let weight = rarity.get(bucket as usize).copied().unwrap_or_default();
                (weight > 0.0).then(|| (bucket, damped(count) * weight))
            })
            .collect();
        let length = entries
            .iter()
            .map(|(_, weight)| weight * weight)
            .sum::<f32>()
            .sqrt();
        if length > 0.0 {
            entries.iter_mut().for_each(|(_, weight)| *weight /= length);
        }
        Self { entries }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kinds(text: &str) -> Vec<(TokenKind, &str)> {
        tokens(text).map(|token| (token.kind, token.text)).collect()
    }

    #[test]
    fn tokens_are_words_numbers_and_symbols() {
        use TokenKind::{Number, Symbol, Word};
        let expected = [
            (Word, "x_1"),
            (Symbol, "="),
            (Number, "1,250.5"),
            (Symbol, "."),
            (Word, "Größe"),
            (Symbol, "€"),
        ];
        assert_eq!(kinds("x_1 = 1,250.5. Größe €"), expected);
    }

    #[test]
    fn case_and_the_value_of_a_number_do_not_matter_to_words() {
        assert_eq!(words("Has 12 Apples"), words("has 37 apples"));
        assert_ne!(words("has 12 apples"), words("has 1200 apples"));
        assert_eq!(letters("a  b\n\nc"), letters("A b c"));
    }

    proptest! {
        #[test]
        fn vectors_have_unit_length_and_each_bucket_once(text in any::<String>()) {
            for grain in [Grain::Words, Grain::Letters] {
                let rarity = rarity(grain, [text.as_str(), text.as_str()].into_iter());
                let entries = Sparse::of(grain, &text, &rarity).entries;
                let length: f32 = entries.iter().map(|(_, weight)| weight * weight).sum();
                prop_assert!(entries.is_empty() || (length - 1.0).abs() < 1e-3);
                let mut seen: Vec<u32> = entries.iter().map(|(bucket, _)| *bucket).collect();
                seen.sort_unstable();
                seen.dedup();
                prop_assert_eq!(seen.len(), entries.len());
            }
        }
    }
}
