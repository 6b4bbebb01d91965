//! SentencePiece: text whose spaces are written `▁`, joined by pairs or cut in the likeliest way.

use super::merge::{Symbol, merge};
use super::vocabulary::{Scheme, TokenKind, Vocabulary};
use std::collections::HashMap;

/// How a space is written.
const SPACE: &str = "▁";

#[derive(Debug)]
pub(super) struct SentencePiece {
    scheme: Scheme,
    by_text: HashMap<String, u32>,
    scores: Vec<f32>,
    /// Ranks of pairs, where the file has them instead of scores.
    merges: HashMap<(u32, u32), (i64, u32)>,
    of_byte: [Option<u32>; 256],
    unknown: Option<u32>,
    adds_space: bool,
    /// Length of the longest token, in bytes.
    longest: usize,
}

/// The byte that `<0x0A>` stands for.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok()
}

impl SentencePiece {
    pub(super) fn new(vocabulary: &Vocabulary) -> Result<Self, String> {
        let mut of_byte = [None; 256];
        let mut by_text = HashMap::with_capacity(vocabulary.tokens.len());
        for ((id, text), kind) in (0..).zip(&vocabulary.tokens).zip(&vocabulary.kinds) {
            match kind {
                TokenKind::Byte => {
                    if let Some(byte) = byte_of(text) {
                        of_byte[usize::from(byte)] = Some(id);
                    }
                }
                TokenKind::Control | TokenKind::Unknown => {}
                TokenKind::Normal | TokenKind::User => {
                    by_text.entry(text.clone()).or_insert(id);
                }
            }
        }
        let mut merges = HashMap::with_capacity(vocabulary.merges.len());
        for (rank, (left, right)) in (0..).zip(&vocabulary.merges) {
            let id = |text: &str| by_text.get(text).copied();
            if let (Some(left_id), Some(right_id), Some(joined)) =
                (id(left), id(right), id(&format!("{left}{right}")))
            {
                merges.entry((left_id, right_id)).or_insert((rank, joined));
            }
        }
        if vocabulary.scores.len() != vocabulary.tokens.len() && merges.is_empty() {
            return Err("its vocabulary has neither scores nor pairs".into());
        }
        Ok(Self {
            scheme: vocabulary.scheme,
            longest: by_text.keys().map(String::len).max().unwrap_or(0),
            by_text,
            scores: vocabulary.scores.clone(),
            merges,
            of_byte,
            unknown: vocabulary.unknown,
            adds_space: vocabulary.adds_space,
        })
    }

    /// The bytes that a token stands for.
    pub(super) fn bytes(text: &str, kind: TokenKind) -> Vec<u8> {
        match (kind, byte_of(text)) {
            (TokenKind::Byte, Some(byte)) => vec![byte],
            _ => text.replace(SPACE, " ").into_bytes(),
        }
    }

    /// `is_first`: nothing but special tokens stand before the text.
    pub(super) fn encode(&self, text: &str, out: &mut Vec<u32>) {
        let mut written = text.replace(' ', SPACE);
        if self.adds_space && !written.is_empty() {
            written.insert_str(0, SPACE);
        }
        if self.scheme == Scheme::Unigram {
            return self.likeliest(&written, out);
        }
        let symbols = written.char_indices().map(|(at, c)| {
            let range = at..at + c.len_utf8();
            let id = self.by_text.get(&written[range.clone()]).copied();
            Symbol { range, id }
        });
        let joined = merge(symbols.collect(), |left, right| {
            if !self.merges.is_empty() {
                let (rank, id) = self.merges.get(&(left.id?, right.id?))?;
                return Some((*rank, Some(*id)));
            }
            let range = left.range.start..right.range.end;
            if range.len() > self.longest {
                return None;
            }
            let id = *self.by_text.get(&written[range])?;
            Some((order(self.scores[id as usize]), Some(id)))
        });
        for symbol in joined {
            self.push(symbol.id, &written[symbol.range], out);
        }
    }

    fn push(&self, id: Option<u32>, text: &str, out: &mut Vec<u32>) {
        if let Some(id) = id {
            return out.push(id);
        }
        let bytes: Option<Vec<u32>> = text.bytes().map(|byte| self.of_byte[usize::from(byte)]).collect();
        out.extend(bytes.unwrap_or_else(|| self.unknown.into_iter().collect()));
    }

    /// The cut whose tokens' scores have the largest sum; characters without a token cost ten less than the least.
    fn likeliest(&self, text: &str, out: &mut Vec<u32>) {
        let least = self.scores.iter().copied().fold(0.0f32, f32::min) - 10.0;
        // For each end: the best sum, where its last token begins, and what it is.
        let mut best: Vec<Option<(f32, usize, Option<u32>)>> = vec![None; text.len() + 1];
        best[0] = Some((0.0, 0, None));
        for (start, c) in text.char_indices() {
            let Some((sum, ..)) = best[start] else { continue };
            let mut offer = |end: usize, score: f32, id: Option<u32>| {
                if best[end].is_none_or(|(known, ..)| sum + score > known) {
                    best[end] = Some((sum + score, start, id));
                }
            };
            offer(start + c.len_utf8(), least, None);
            let rest = &text[start..];
            for (at, c) in rest.char_indices().take_while(|(at, _)| *at < self.longest) {
                let end = at + c.len_utf8();
                if let Some(id) = self.by_text.get(&rest[..end]) {
                    offer(start + end, self.scores[*id as usize], Some(*id));
                }
            }
        }
        let (mut cuts, mut end) = (Vec::new(), text.len());
        while let Some((_, start, id)) = best[end].filter(|_| end > 0) {
            cuts.push((start..end, id));
            end = start;
        }
        let mut was_unknown = false;
        for (range, id) in cuts.into_iter().rev() {
            let is_unknown = id.is_none() && self.of_byte[0].is_none();
            // A run of unknown characters is one token.
            if !(is_unknown && was_unknown) {
                self.push(id, &text[range], out);
            }
            was_unknown = is_unknown;
        }
    }
}

/// An integer that is less the larger the score.
fn order(score: f32) -> i64 {
    let bits = i64::from(score.to_bits().cast_signed());
    let ordered = if bits < 0 { -(bits & 0x7fff_ffff) } else { bits };
    -ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary(scheme: Scheme) -> Vocabulary {
        let tokens = ["<unk>", "▁", "a", "b", "ab", "▁ab", "ba", "<0xC3>", "<0xA9>"];
        let mut out = Vocabulary::new(scheme, tokens.map(str::to_owned).to_vec());
        out.scores = vec![0.0, -5.0, -5.0, -5.0, -2.0, -1.0, -3.0, 0.0, 0.0];
        (out.kinds[0], out.unknown) = (TokenKind::Unknown, Some(0));
        (out.kinds[7], out.kinds[8]) = (TokenKind::Byte, TokenKind::Byte);
        out
    }

    fn encode(vocabulary: &Vocabulary, text: &str) -> Vec<u32> {
        let mut out = Vec::new();
        SentencePiece::new(vocabulary).unwrap().encode(text, &mut out);
        out
    }

    #[test]
    fn the_best_pair_is_joined_first_and_unknown_characters_become_bytes() {
        let mut known = vocabulary(Scheme::Pairs);
        assert_eq!(encode(&known, "aba"), [4, 2]);
        assert_eq!(encode(&known, "ab ab"), [4, 5]);
        assert_eq!(encode(&known, "é"), [7, 8]);
        assert_eq!(encode(&known, "a~"), [2, 0]);
        known.adds_space = true;
        assert_eq!(encode(&known, "ab"), [5]);
        // Ranks instead of scores.
        known.merges = vec![("b".into(), "a".into()), ("a".into(), "b".into())];
        known.adds_space = false;
        assert_eq!(encode(&known, "aba"), [2, 6]);
    }

    #[test]
    fn the_likeliest_cut_wins() {
        let known = vocabulary(Scheme::Unigram);
        assert_eq!(encode(&known, "aba"), [4, 2]);
        assert_eq!(encode(&known, "bab"), [3, 4]);
        assert_eq!(encode(&known, "a~~b"), [2, 0, 3]);
    }
}
