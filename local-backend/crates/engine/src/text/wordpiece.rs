//! BERT's tokenizer: words and punctuation apart, each cut into the longest tokens from its beginning on.

use super::vocabulary::Vocabulary;
use std::collections::HashMap;
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// Longer words are unknown, as in BERT.
const LONGEST_WORD: usize = 100;

#[derive(Debug)]
pub(super) struct WordPiece {
    by_text: HashMap<String, u32>,
    unknown: u32,
    lowers: bool,
}

/// Ideographs stand alone.
fn is_ideograph(c: char) -> bool {
    matches!(u32::from(c), 0x4e00..=0x9fff | 0x3400..=0x4dbf | 0x20000..=0x2a6df | 0x2a700..=0x2ceaf | 0xf900..=0xfaff | 0x2f800..=0x2fa1f)
}

fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation()
        || matches!(u32::from(c), 0xa1 | 0xa7 | 0xab | 0xb6 | 0xb7 | 0xbb | 0xbf | 0x2010..=0x2027 | 0x2030..=0x205e | 0x3001..=0x3003 | 0x3008..=0x3011 | 0x3014..=0x301f | 0xff01..=0xff0f | 0xff1a..=0xff20 | 0xff3b..=0xff3d | 0xff5b..=0xff65)
}

impl WordPiece {
    pub(super) fn new(vocabulary: &Vocabulary) -> Result<Self, String> {
        let by_text: HashMap<String, u32> = (0..)
            .zip(&vocabulary.tokens)
            .map(|(id, text)| (text.clone(), id))
            .collect();
        let unknown = vocabulary.unknown.or_else(|| by_text.get("[UNK]").copied());
        Ok(Self {
            unknown: unknown.ok_or("its vocabulary has no token for unknown words")?,
            by_text,
            lowers: vocabulary.lowers,
        })
    }

    /// The bytes that a token stands for, a space before those that begin a word.
    pub(super) fn bytes(text: &str) -> Vec<u8> {
        text.strip_prefix("##")
            .map_or_else(|| format!(" {text}"), str::to_owned)
            .into_bytes()
    }

    pub(super) fn encode(&self, text: &str, out: &mut Vec<u32>) {
        let is_kept = |c: &char| *c != '\0' && *c != '\u{fffd}' && (c.is_whitespace() || !c.is_control());
        let mut clean: String = text.chars().filter(is_kept).collect();
        if self.lowers {
            clean = clean
                .to_lowercase()
                .nfd()
                .filter(|c| !is_combining_mark(*c))
                .collect();
        }
        let mut word = String::new();
        for c in clean.chars() {
            if c.is_whitespace() {
                self.word(&word, out);
                word.clear();
            } else if is_punctuation(c) || is_ideograph(c) {
                self.word(&word, out);
                word.clear();
                self.word(c.encode_utf8(&mut [0; 4]), out);
            } else {
                word.push(c);
            }
        }
        self.word(&word, out);
    }

    fn word(&self, word: &str, out: &mut Vec<u32>) {
        if word.is_empty() {
            return;
        }
        let (start, mut rest) = (out.len(), word);
        let is_long = word.chars().count() > LONGEST_WORD;
        while !rest.is_empty() {
            let mark = if rest.len() == word.len() { "" } else { "##" };
            let ends = rest
                .char_indices()
                .map(|(at, c)| at + c.len_utf8())
                .collect::<Vec<_>>();
            let found = ends.iter().rev().find_map(|end| {
                let id = self.by_text.get(&format!("{mark}{}", &rest[..*end]))?;
                Some((*end, *id))
            });
            let Some((end, id)) = found.filter(|_| !is_long) else {
                out.truncate(start);
                return out.push(self.unknown);
            };
            out.push(id);
            rest = &rest[end..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::vocabulary::Scheme;

    #[test]
    fn words_are_cut_into_their_longest_beginnings() {
        let tokens = ["[UNK]", "play", "##ing", "##s", "cafe", "!", "中"];
        let mut vocabulary = Vocabulary::new(Scheme::WordPiece, tokens.map(str::to_owned).to_vec());
        vocabulary.lowers = true;
        let tokenizer = WordPiece::new(&vocabulary).unwrap();
        let mut out = Vec::new();
        tokenizer.encode("Playing plays Café! 中中 xyz", &mut out);
        assert_eq!(out, [1, 2, 1, 3, 4, 5, 6, 6, 0]);
    }
}
