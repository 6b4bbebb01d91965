//! Answers in a prescribed form: which tokens may come next. Owns the bridge between a vocabulary and llguidance; refuses
//! to know sampling. Invariant: a token that the form does not allow has a likelihood of zero.

use crate::text::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use std::sync::Arc;

/// Makes grammars for one model's vocabulary.
pub struct Grammars {
    factory: ParserFactory,
}

/// The form of one answer, and how far the answer has come.
pub struct Grammar {
    matcher: Matcher,
}

/// The form cannot be held to.
#[derive(Debug, thiserror::Error)]
pub enum GrammarError {
    /// What was asked for is no form, or one that cannot be expressed.
    #[error("{0}")]
    Unusable(String),
}

struct Environment {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
}

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.tokenizer.encode(text, false),
            Err(_) => self.trie.greedy_tokenize(bytes),
        }
    }
}

/// The schema with white space fixed, so that a small model cannot fill its answer with blanks: one after each comma and
/// colon, as most JSON that models have read.
#[must_use]
pub fn tight(schema: &serde_json::Value) -> serde_json::Value {
    let mut schema = schema.clone();
    if let Some(fields) = schema.as_object_mut() {
        let fixed = serde_json::json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " });
        fields.entry("x-guidance").or_insert(fixed);
    }
    schema
}

fn unusable(error: impl std::fmt::Display) -> GrammarError {
    GrammarError::Unusable(error.to_string())
}

impl Grammars {
    /// For a tokenizer whose answers end with one of `eos`.
    ///
    /// # Errors
    /// The vocabulary has no end, or cannot be indexed.
    pub fn new(tokenizer: Arc<Tokenizer>, eos: &[u32]) -> Result<Self, GrammarError> {
        let count = tokenizer.vocabulary() as u32;
        let word = |id: u32| match tokenizer.is_special(id) {
            false => tokenizer.decode_token(id).to_vec(),
            // Marked, so that no text is mistaken for it.
            true => [&[TokTrie::SPECIAL_TOKEN_MARKER], tokenizer.decode_token(id)].concat(),
        };
        let words: Vec<Vec<u8>> = (0..count).map(word).collect();
        let first = eos
            .first()
            .ok_or_else(|| unusable("this model has no token that ends an answer"))?;
        let info = TokRxInfo::new(count, *first);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(eos);
        let environment: TokEnv = Arc::new(Environment { trie, tokenizer });
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices);
        let mut factory = factory.map_err(unusable)?;
        factory.quiet();
        Ok(Self { factory })
    }

    /// JSON that satisfies a schema.
    ///
    /// # Errors
    /// It is no schema, or one with parts that cannot be held to.
    pub fn json(&self, schema: &serde_json::Value) -> Result<Grammar, GrammarError> {
        self.make(TopLevelGrammar::from_json_schema(tight(schema)))
    }

    /// A context-free grammar in llguidance's Lark.
    ///
    /// # Errors
    /// It is none.
    pub fn lark(&self, grammar: String) -> Result<Grammar, GrammarError> {
        self.make(TopLevelGrammar::from_lark(grammar))
    }

    fn make(&self, grammar: TopLevelGrammar) -> Result<Grammar, GrammarError> {
        let parser = self.factory.create_parser(grammar).map_err(unusable)?;
        let matcher = Matcher::new(Ok(parser));
        match matcher.get_error() {
            Some(error) => Err(unusable(error)),
            None => Ok(Grammar { matcher }),
        }
    }
}

impl Grammar {
    /// Leaves only what may come next.
    ///
    /// # Errors
    /// Nothing may, or the form became too complex to follow.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<(), GrammarError> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(unusable)?;
        for (id, logit) in logits.iter_mut().enumerate() {
            if id >= allowed.len() || !allowed.is_allowed(id as u32) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// A token was chosen.
    ///
    /// # Errors
    /// It was not allowed.
    pub fn accept(&mut self, token: u32) -> Result<(), GrammarError> {
        self.matcher.consume_token(token).map_err(unusable)
    }

    /// Nothing can follow any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.matcher.is_stopped()
    }

    /// The same form from where this one is, for another answer.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self {
            matcher: self.matcher.deep_clone(),
        }
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Grammar")
    }
}
