//! Words of a prompt as hashed buckets: a sparse vector of unit length, weighted by how rare each bucket is.
//!
//! Owns: tokens, hashing, term weights. Refuses to know: which word fell into which bucket (hashing cannot be turned
//! back), models, outcomes. Invariants: the same text gives the same vector on every machine; entries are in order of
//! bucket, each bucket once.

use std::collections::HashMap;

/// Buckets of the vector. A power of two.
pub const BUCKETS: usize = 1 << 15;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    Word,
    Number,
    Symbol,
}

#[derive(Clone, Copy, Debug)]
pub struct Token<'t> {
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
    text.bytes().fold(SEED, |hash, byte| step(hash, byte.to_ascii_lowercase()))
}

/// FNV leaves the low bits weak; this spreads them.
fn spread(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ (hash >> 32)
}

/// Words (letters, digits after a letter, underscores), numbers (with inner dots and commas), single symbols.
pub fn tokens(text: &str) -> impl Iterator<Item = Token<'_>> {
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
        Some(Token { kind, text, hash: hash(text) })
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

/// How often each bucket occurs in a text, in order of bucket: words, their first five letters, pairs of neighbours.
/// Numbers count by their number of digits alone.
pub fn buckets(text: &str) -> Vec<(u32, u32)> {
    let mut found: Vec<u32> = Vec::with_capacity(text.len() / 2);
    let mut push = |hash: u64| found.push((spread(hash) % BUCKETS as u64) as u32);
    let mut before = SEED;
    for token in tokens(text) {
        let own = match token.kind {
            TokenKind::Word => token.hash,
            TokenKind::Number => step(step(SEED, b'#'), token.text.len().min(6) as u8),
            TokenKind::Symbol => token.hash,
        };
        push(own);
        push(step(own, b' ') ^ before.rotate_left(17));
        if token.kind == TokenKind::Word && token.text.len() > 5 {
            let stem = &token.text[..token.text.floor_char_boundary(5)];
            push(step(hash(stem), b'~'));
        }
        before = own;
    }
    found.sort_unstable();
    found
        .chunk_by(|a, b| a == b)
        .filter_map(|run| Some((*run.first()?, run.len() as u32)))
        .collect()
}

/// Inverse document frequencies, learned from the training prompts. 0 where a bucket is too rare to mean anything.
pub fn rarity<'t>(texts: impl Iterator<Item = &'t str>) -> Vec<f32> {
    let mut frequency: HashMap<u32, u32> = HashMap::new();
    let mut count = 0_u32;
    for text in texts {
        count += 1;
        for (bucket, _) in buckets(text) {
            *frequency.entry(bucket).or_default() += 1;
        }
    }
    let mut rarity = vec![0.0; BUCKETS];
    for (bucket, documents) in frequency {
        if documents >= 2 {
            rarity[bucket as usize] = 1.0 + ((1.0 + count as f32) / (1.0 + documents as f32)).ln();
        }
    }
    rarity
}

/// The weighted vector of one prompt and the share of its tokens' mass that training had seen, 0 … 1.
pub struct Sparse {
    pub entries: Vec<(u32, f32)>,
}

impl Sparse {
    /// `(1 + ln count) · rarity`, scaled to unit length.
    pub fn of(text: &str, rarity: &[f32]) -> Self {
        let mut entries: Vec<(u32, f32)> = buckets(text)
            .into_iter()
            .filter_map(|(bucket, count)| {
                let weight = rarity.get(bucket as usize).copied().unwrap_or_default();
                (weight > 0.0).then(|| (bucket, (1.0 + (count as f32).ln()) * weight))
            })
            .collect();
        let length = entries.iter().map(|(_, weight)| weight * weight).sum::<f32>().sqrt();
        if length > 0.0 {
            entries.iter_mut().for_each(|(_, weight)| *weight /= length);
        }
        Self { entries }
    }
}
