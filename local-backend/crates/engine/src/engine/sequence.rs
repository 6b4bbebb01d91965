//! One request as the engine thread sees it.

use super::output::Output;
use super::{Event, Finish, Request, Sink, Timings, TokenLogprob};
use crate::sample::{Choice, Sampler};
use crate::text::{Tokenizer, Utf8Stream};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

pub(super) struct Sequence {
    pub(super) id: u64,
    /// The prompt and what was produced.
    pub(super) tokens: Vec<u32>,
    /// Length of the prompt.
    pub(super) prompt: usize,
    /// Tokens whose keys and values are in the cache.
    pub(super) computed: usize,
    pub(super) blocks: Vec<u32>,
    pub(super) cancelled: Arc<AtomicBool>,
    /// Nobody listens any more.
    pub(super) abandoned: bool,
    max_tokens: usize,
    ignore_eos: bool,
    wants_logprobs: bool,
    sampler: Sampler,
    characters: Utf8Stream,
    output: Output,
    sink: Sink,
    submitted: Instant,
    admitted: Option<Instant>,
    first_token: Option<Instant>,
    cached_tokens: usize,
}

impl Sequence {
    pub(super) fn new(
        id: u64,
        request: Request,
        sink: Sink,
        cancelled: Arc<AtomicBool>,
        submitted: Instant,
    ) -> Self {
        Self {
            id,
            prompt: request.tokens.len(),
            tokens: request.tokens,
            computed: 0,
            blocks: Vec::new(),
            cancelled,
            abandoned: false,
            max_tokens: request.max_tokens,
            ignore_eos: request.ignore_eos,
            wants_logprobs: request.sampling.logprobs.is_some(),
            sampler: Sampler::new(request.sampling),
            characters: Utf8Stream::default(),
            output: Output::new(request.stop),
            sink,
            submitted,
            admitted: None,
            first_token: None,
            cached_tokens: 0,
        }
    }

    /// Tokens produced.
    pub(super) fn output(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    /// It runs from now on, with so many tokens found in the cache.
    pub(super) fn admitted(&mut self, cached: usize) {
        if self.admitted.is_none() {
            self.admitted = Some(Instant::now());
            self.cached_tokens = cached;
        }
    }

    /// Takes the next token; true when the sequence is over.
    pub(super) fn advance(
        &mut self,
        logits: &mut [f32],
        tokenizer: &Tokenizer,
        (eos, context): (&[u32], usize),
    ) -> bool {
        let choice = self.sampler.choose(logits);
        self.first_token.get_or_insert_with(Instant::now);
        let is_end = eos.contains(&choice.token) && !self.ignore_eos;
        self.tokens.push(choice.token);
        let text = if tokenizer.is_special(choice.token) {
            String::new()
        } else {
            self.characters.push(tokenizer.decode_token(choice.token))
        };
        let (mut text, stopped) = self.output.push(&text);
        let is_full = self.output() >= self.max_tokens || self.tokens.len() >= context;
        let finish = match (is_end || stopped, is_full) {
            (true, _) => Some(Finish::Stop),
            (false, true) => Some(Finish::Length),
            (false, false) => None,
        };
        if finish.is_some() && !stopped {
            text.push_str(&self.output.finish());
            text.push_str(&self.characters.finish());
        }
        let logprobs = if self.wants_logprobs && !is_end {
            vec![logprob(&choice, tokenizer)]
        } else {
            Vec::new()
        };
        if !text.is_empty() || !logprobs.is_empty() {
            self.emit(Event::Text { text, logprobs });
        }
        if let Some(finish) = finish {
            let (prompt_tokens, output_tokens, timings) = (self.prompt, self.output(), self.timings());
            self.emit(Event::Finished {
                finish,
                prompt_tokens,
                output_tokens,
                timings,
            });
        }
        finish.is_some() || self.abandoned
    }

    fn emit(&mut self, event: Event) {
        if !self.abandoned && !(self.sink)(event) {
            self.abandoned = true;
        }
    }

    fn timings(&self) -> Timings {
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from).as_secs_f64() * 1e3,
            _ => 0.0,
        };
        let decode_ms = between(self.first_token, Some(Instant::now()));
        Timings {
            queue_ms: between(Some(self.submitted), self.admitted),
            prefill_ms: between(self.admitted, self.first_token),
            first_token_ms: between(Some(self.submitted), self.first_token),
            decode_ms,
            per_token_ms: decode_ms / self.output().saturating_sub(1).max(1) as f64,
            cached_tokens: self.cached_tokens,
        }
    }
}

fn logprob(choice: &Choice, tokenizer: &Tokenizer) -> TokenLogprob {
    let bytes = |id: u32| tokenizer.decode_token(id).to_vec();
    let top = choice
        .top
        .iter()
        .map(|(id, logprob)| (bytes(*id), *logprob))
        .collect();
    TokenLogprob {
        bytes: bytes(choice.token),
        logprob: choice.logprob,
        top,
    }
}
