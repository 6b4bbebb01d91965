//! What files say of their tokenizers, in one form for all of them.

/// How text becomes tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Byte-pair encoding over bytes written as printable characters.
    ByteLevel,
    /// SentencePiece: pairs joined by score or rank over characters, bytes where a character is unknown.
    Pairs,
    /// SentencePiece: the likeliest cut.
    Unigram,
    /// BERT's longest-match-first, continuations marked by `##`.
    WordPiece,
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    Normal,
    Unknown,
    /// Only meant by text that may hold special tokens.
    Control,
    /// Always a whole token in text.
    User,
    /// A byte, written `<0x0A>`.
    Byte,
}

/// A tokenizer's data.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    pub scheme: Scheme,
    /// The name of the pre-tokenizer, of [`Scheme::ByteLevel`].
    pub pre: String,
    pub tokens: Vec<String>,
    pub kinds: Vec<TokenKind>,
    /// Of SentencePiece; empty where pairs have ranks.
    pub scores: Vec<f32>,
    /// Pairs in order of rank.
    pub merges: Vec<(String, String)>,
    /// Whether a space goes before a text that does not begin a line of tokens already.
    pub adds_space: bool,
    /// Whether text is lower-cased and rid of accents first.
    pub lowers: bool,
    pub unknown: Option<u32>,
    /// What stands before and after a text that is to be embedded.
    pub frame: (Option<u32>, Option<u32>),
}

impl Vocabulary {
    /// A vocabulary with nothing but its tokens.
    #[must_use]
    pub fn new(scheme: Scheme, tokens: Vec<String>) -> Self {
        Self {
            scheme,
            pre: String::new(),
            kinds: vec![TokenKind::Normal; tokens.len()],
            tokens,
            scores: Vec::new(),
            merges: Vec::new(),
            adds_space: false,
            lowers: false,
            unknown: None,
            frame: (None, None),
        }
    }
}
