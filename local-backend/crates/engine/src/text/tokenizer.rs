//! The tokenizer of a model: special tokens first, and what lies between them by the model's own scheme.

use super::bytelevel::ByteLevel;
use super::sentencepiece::SentencePiece;
use super::vocabulary::{Scheme, TokenKind, Vocabulary};
use super::wordpiece::WordPiece;
use std::collections::HashMap;

#[derive(Debug)]
enum Plain {
    ByteLevel(Box<ByteLevel>),
    SentencePiece(Box<SentencePiece>),
    WordPiece(Box<WordPiece>),
}

/// The tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    /// The bytes of each token.
    tokens: Vec<Vec<u8>>,
    kinds: Vec<TokenKind>,
    /// Tokens that are whole in text, by their first byte, the longest first.
    special: Vec<Vec<(String, u32)>>,
    by_text: HashMap<String, u32>,
    frame: (Option<u32>, Option<u32>),
    plain: Plain,
}

impl Tokenizer {
    /// # Errors
    /// The vocabulary contradicts itself or needs something not known here.
    pub fn new(vocabulary: Vocabulary) -> Result<Self, String> {
        let plain = match vocabulary.scheme {
            Scheme::ByteLevel => Plain::ByteLevel(Box::new(ByteLevel::new(&vocabulary)?)),
            Scheme::Pairs | Scheme::Unigram => {
                Plain::SentencePiece(Box::new(SentencePiece::new(&vocabulary)?))
            }
            Scheme::WordPiece => Plain::WordPiece(Box::new(WordPiece::new(&vocabulary)?)),
        };
        let Vocabulary {
            tokens: texts,
            kinds,
            frame,
            scheme,
            ..
        } = vocabulary;
        let (mut special, mut by_text) = (vec![Vec::new(); 256], HashMap::new());
        for ((id, text), kind) in (0..).zip(&texts).zip(&kinds) {
            if let (TokenKind::Control | TokenKind::User, Some(first)) = (kind, text.bytes().next()) {
                special[usize::from(first)].push((text.clone(), id));
                by_text.insert(text.clone(), id);
            }
        }
        for list in &mut special {
            list.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        }
        let decode = ByteLevel::decoder();
        let bytes = |(text, kind): (&String, &TokenKind)| match (kind, scheme) {
            (TokenKind::Control | TokenKind::User | TokenKind::Unknown, _) => text.clone().into_bytes(),
            (kind, Scheme::Pairs | Scheme::Unigram) => SentencePiece::bytes(text, *kind),
            (_, Scheme::WordPiece) => WordPiece::bytes(text),
            (_, Scheme::ByteLevel) => decode(text),
        };
        let tokens = texts.iter().zip(&kinds).map(bytes).collect();
        Ok(Self {
            tokens,
            kinds,
            special,
            by_text,
            frame,
            plain,
        })
    }

    /// The tokens of a text; with `parse_special`, control tokens written in it are those tokens.
    pub fn encode(&self, text: &str, parse_special: bool) -> Vec<u32> {
        let mut out = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let found = self.next_special(rest, parse_special);
            let (plain, special) = found.map_or((rest, None), |(at, id, length)| {
                (&rest[..at], Some((id, at + length)))
            });
            if !plain.is_empty() {
                match &self.plain {
                    Plain::ByteLevel(scheme) => scheme.encode(plain, &mut out),
                    Plain::SentencePiece(scheme) => scheme.encode(plain, &mut out),
                    Plain::WordPiece(scheme) => scheme.encode(plain, &mut out),
                }
            }
            let Some((id, end)) = special else { break };
            out.push(id);
            rest = &rest[end..];
        }
        out
    }

    /// The tokens of a text to be embedded, at most `limit` of them: framed as the model was trained to see it.
    pub fn encode_framed(&self, text: &str, limit: usize) -> Vec<u32> {
        let (first, last) = self.frame;
        let mut out: Vec<u32> = first.into_iter().collect();
        out.extend(self.encode(text, false));
        out.truncate(limit.saturating_sub(usize::from(last.is_some())));
        out.extend(last);
        out
    }

    /// The first special token; where two begin together, the longer.
    fn next_special(&self, text: &str, parse_special: bool) -> Option<(usize, u32, usize)> {
        text.bytes().enumerate().find_map(|(at, byte)| {
            let known = self.special[usize::from(byte)].iter();
            let meant = known.filter(|(_, id)| parse_special || self.kinds[*id as usize] == TokenKind::User);
            let mut here = meant.filter(|(special, _)| text.as_bytes()[at..].starts_with(special.as_bytes()));
            here.next().map(|(special, id)| (at, *id, special.len()))
        })
    }

    /// The bytes of a token; a part of a character is possible.
    pub fn decode_token(&self, id: u32) -> &[u8] {
        self.tokens.get(id as usize).map_or(&[], Vec::as_slice)
    }

    /// Whether a token is not text: its bytes are its name.
    pub fn is_special(&self, id: u32) -> bool {
        let kind = self.kinds.get(id as usize);
        matches!(kind, Some(TokenKind::Control | TokenKind::Unknown))
    }

    /// A control or user-defined token by its text.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.by_text.get(text).copied()
    }

    pub fn vocabulary(&self) -> usize {
        self.tokens.len()
    }
}
