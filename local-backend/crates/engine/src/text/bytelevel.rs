//! Byte-pair encoding as GPT-2 does it, and the ways in which its descendants cut text first.

use super::merge::{Symbol, merge};
use super::vocabulary::Vocabulary;
use regex::Regex;
use std::collections::HashMap;

/// Known pre-tokenizers, by the names that GGUF files give them.
#[derive(Debug)]
enum Cut {
    /// Words, numbers, runs of others.
    Gpt2,
    /// The same after each digit has been set apart.
    Digits,
    /// A pattern; white space that no alternative of it takes is cut before its last character.
    Pattern(Regex),
}

const QWEN: &str =
    r"\A(?:(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+)";
const LLAMA: &str = r"\A(?:(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+)";
const GPT2: &str = r"\A(?:'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)";

#[derive(Debug)]
pub(super) struct ByteLevel {
    cut: Cut,
    words: Regex,
    /// Whether a piece that is a token is that token, whatever pairs say.
    takes_whole: bool,
    by_text: HashMap<String, u32>,
    characters: [char; 256],
    /// Some vocabularies have no token for bytes that text hardly ever holds; those are left out.
    of_byte: [Option<u32>; 256],
    /// What two tokens become, and the rank of that.
    merges: HashMap<(u32, u32), (i64, u32)>,
}

/// GPT-2 writes bytes as printable characters: those that are printable as themselves, the rest from U+0100 on.
fn byte_characters() -> [char; 256] {
    let mut out = ['\0'; 256];
    let mut next = 256;
    for byte in 0..=255u8 {
        let is_printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        out[usize::from(byte)] = if is_printable {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
        };
    }
    out
}

impl ByteLevel {
    pub(super) fn new(vocabulary: &Vocabulary) -> Result<Self, String> {
        let pattern = |pattern: &str| Regex::new(pattern).map_err(|error| error.to_string());
        let cut = match vocabulary.pre.as_str() {
            "smollm" => Cut::Digits,
            "gpt-2" | "default" => Cut::Gpt2,
            "qwen2" | "deepseek-r1-qwen" => Cut::Pattern(pattern(QWEN)?),
            "llama-bpe" | "llama3" | "llama-v3" => Cut::Pattern(pattern(LLAMA)?),
            other => {
                return Err(format!(
                    "its pre-tokenizer is `{other}`; this build knows gpt-2, smollm, qwen2 and llama-bpe"
                ));
            }
        };
        let characters = byte_characters();
        let by_text: HashMap<String, u32> = (0..)
            .zip(&vocabulary.tokens)
            .map(|(id, text)| (text.clone(), id))
            .collect();
        let id = |text: &str| {
            by_text
                .get(text)
                .copied()
                .ok_or_else(|| format!("the token `{text}` is missing"))
        };
        let mut of_byte = [None; 256];
        for (byte, slot) in of_byte.iter_mut().enumerate() {
            *slot = id(characters[byte].to_string().as_str()).ok();
        }
        let mut merges = HashMap::with_capacity(vocabulary.merges.len());
        for (rank, (left, right)) in (0..).zip(&vocabulary.merges) {
            let joined = id(&format!("{left}{right}"))?;
            merges.entry((id(left)?, id(right)?)).or_insert((rank, joined));
        }
        Ok(Self {
            takes_whole: vocabulary.pre.starts_with("llama"),
            cut,
            words: pattern(GPT2)?,
            by_text,
            characters,
            of_byte,
            merges,
        })
    }

    /// What gives the bytes that a token stands for.
    pub(super) fn decoder() -> impl Fn(&str) -> Vec<u8> {
        let of: HashMap<char, u8> = byte_characters().into_iter().zip(0..=255u8).collect();
        move |text: &str| {
            let bytes = |c: char| {
                of.get(&c)
                    .map_or_else(|| c.to_string().into_bytes(), |byte| vec![*byte])
            };
            text.chars().flat_map(bytes).collect()
        }
    }

    pub(super) fn encode(&self, text: &str, out: &mut Vec<u32>) {
        for piece in self.pieces(text) {
            if self.takes_whole {
                let written: String = piece
                    .bytes()
                    .map(|byte| self.characters[usize::from(byte)])
                    .collect();
                if let Some(id) = self.by_text.get(&written) {
                    out.push(*id);
                    continue;
                }
            }
            let symbols = piece.bytes().enumerate().filter_map(|(at, byte)| {
                Some(Symbol {
                    range: at..at + 1,
                    id: Some(self.of_byte[usize::from(byte)]?),
                })
            });
            let joined = merge(symbols.collect(), |left, right| {
                let (rank, id) = self.merges.get(&(left.id?, right.id?))?;
                Some((*rank, Some(*id)))
            });
            out.extend(joined.iter().filter_map(|symbol| symbol.id));
        }
    }

    fn pieces<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let mut out = Vec::new();
        match &self.cut {
            Cut::Pattern(pattern) => cut(pattern, text, &mut out),
            Cut::Gpt2 => cut(&self.words, text, &mut out),
            Cut::Digits => {
                // Every digit is a piece; what stands between digits is cut on its own.
                let mut start = 0;
                for (at, c) in text.char_indices().filter(|(_, c)| c.is_numeric()) {
                    cut(&self.words, &text[start..at], &mut out);
                    start = at + c.len_utf8();
                    out.push(&text[at..start]);
                }
                cut(&self.words, &text[start..], &mut out);
            }
        }
        out
    }
}

fn cut<'a>(pattern: &Regex, text: &'a str, out: &mut Vec<&'a str>) {
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let found = pattern.find(rest).map(|found| found.end()).filter(|end| *end > 0);
        let (piece, after) = rest.split_at(found.unwrap_or_else(|| space(rest, first)));
        out.push(piece);
        rest = after;
    }
}

/// `\s+(?!\S)|\s+`: a run of white space; its last character goes with the word that follows.
fn space(text: &str, first: char) -> usize {
    let run = text.find(|c: char| !c.is_whitespace());
    match run {
        None => text.len(),
        Some(end) => {
            let last = text[..end].chars().next_back().map_or(0, char::len_utf8);
            if end > last { end - last } else { first.len_utf8() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::vocabulary::Scheme;

    fn pieces(pre: &str, text: &str) -> Vec<String> {
        let mut vocabulary = Vocabulary::new(Scheme::ByteLevel, Vec::new());
        vocabulary.pre = pre.into();
        let cutter = ByteLevel::new(&vocabulary).unwrap();
        cutter.pieces(text).into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn texts_are_cut_as_the_pre_tokenizers_cut_them() {
        assert_eq!(
            pieces("smollm", "Hello world's  2024!\n\n x"),
            [
                "Hello", " world", "'s", "  ", "2", "0", "2", "4", "!", "\n\n", " x"
            ]
        );
        assert_eq!(pieces("smollm", "a   b"), ["a", "  ", " b"]);
        assert_eq!(pieces("smollm", "x ... y"), ["x", " ...", " y"]);
        assert_eq!(pieces("smollm", "tab\tend \n"), ["tab", "\t", "end", " \n"]);
        assert_eq!(
            pieces("qwen2", "Don'T  say\n\n (12345) x:\r\n  y"),
            [
                "Don", "'T", " ", " say", "\n\n", " (", "1", "2", "3", "4", "5", ")", " x", ":\r\n", " ",
                " y"
            ]
        );
        assert_eq!(pieces("llama-bpe", "a 12345,b"), ["a", " ", "123", "45", ",b"]);
    }

    #[test]
    fn a_long_piece_takes_no_long_time() {
        let tokens: Vec<String> = (1..8).map(|power| "a".repeat(1 << power >> 1)).collect();
        let merges = tokens
            .windows(2)
            .map(|pair| (pair[0].clone(), pair[0].clone()))
            .collect();
        let mut vocabulary = Vocabulary::new(Scheme::ByteLevel, tokens);
        (vocabulary.pre, vocabulary.merges) = ("gpt-2".into(), merges);
        let tokenizer = ByteLevel::new(&vocabulary).unwrap();
        let (mut out, started) = (Vec::new(), std::time::Instant::now());
        tokenizer.encode(&"a".repeat(300_000), &mut out);
        assert_eq!(out.len(), 300_000 / 64 + 1);
        assert!(started.elapsed().as_secs() < 5);
    }
}
