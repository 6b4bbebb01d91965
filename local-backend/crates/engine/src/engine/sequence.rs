//! One request as the engine thread sees it: from logits to text. Owns its sampler, its form, its thinking and its
//! clocks; refuses to know blocks and other sequences.

use super::lookup::Lookup;
use super::metrics::{Metrics, add};
use super::output::Output;
use super::{Counts, Event, Finish, Order, Sink, Slot, Submission, Timings, TokenLogprob};
use crate::backend::Want;
use crate::grammar::Grammar;
use crate::sample::{Choice, Sampler};
use crate::text::{Tokenizer, Utf8Stream};
use crate::think::{Channel, Thinker};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a sequence must know of its model.
pub(super) struct Model<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) eos: &'a [u32],
    pub(super) context: usize,
}

#[derive(Clone, Copy)]
struct Clocks {
    submitted: Instant,
    admitted: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

/// What a step gave for a row.
pub(super) enum Given<'a> {
    Logits(&'a mut [f32]),
    Token(u32),
}

/// What a step brought.
pub(super) struct Advance {
    pub(super) token: u32,
    pub(super) is_over: bool,
}

pub(super) struct Sequence {
    pub(super) id: u64,
    pub(super) order: Order,
    pub(super) lookup: Lookup,
    /// Nobody listens any more.
    pub(super) abandoned: bool,
    /// Its share of the time in steps.
    pub(super) busy: Duration,
    pub(super) guessed: (usize, usize),
    counts: Counts,
    max_tokens: usize,
    ignore_eos: bool,
    wants_logprobs: bool,
    shown: Arc<[u32]>,
    sampler: Sampler,
    grammar: Option<Grammar>,
    thinker: Option<Thinker>,
    characters: Utf8Stream,
    output: Output,
    sink: Sink,
    clocks: Clocks,
}

impl Sequence {
    /// The sequence, and its prompt's tokens.
    pub(super) fn new(submission: Submission) -> (Self, Vec<u32>) {
        let Submission {
            id,
            request,
            sink,
            submitted,
        } = submission;
        let sequence = Self {
            id,
            order: request.order,
            lookup: Lookup::default(),
            abandoned: false,
            busy: Duration::ZERO,
            guessed: (0, 0),
            counts: Counts {
                prompt: request.tokens.len(),
                ..Counts::default()
            },
            max_tokens: request.max_tokens.max(1),
            ignore_eos: request.ignore_eos,
            wants_logprobs: request.sampling.logprobs.is_some(),
            shown: request.shown,
            sampler: Sampler::new(request.sampling, &request.tokens),
            grammar: request.grammar,
            thinker: request.thinking.map(Thinker::new),
            characters: Utf8Stream::default(),
            output: Output::new(request.stop),
            sink,
            clocks: Clocks {
                submitted,
                admitted: None,
                first_token: None,
                last_token: None,
            },
        };
        (sequence, request.tokens)
    }

    /// It runs from now on, with so many tokens found in the cache. True: for the first time.
    pub(super) fn admitted(&mut self, cached: usize, metrics: &Metrics) -> bool {
        if self.clocks.admitted.is_some() {
            return false;
        }
        let now = Instant::now();
        self.clocks.admitted = Some(now);
        self.counts.cached = cached;
        metrics.queue.observe(now - self.clocks.submitted);
        add(&metrics.prefix_queries, self.counts.prompt);
        add(&metrics.prefix_hits, cached);
        true
    }

    pub(super) fn phase(&self) -> &'static str {
        match (self.clocks.admitted, self.clocks.first_token) {
            (None, _) => "queued",
            (Some(_), None) => "prefill",
            (Some(_), Some(_)) => "decode",
        }
    }

    /// Tokens that may still be produced, after `tokens` in all.
    pub(super) fn room(&self, tokens: usize, context: usize) -> usize {
        let wanted = self.max_tokens.saturating_sub(self.counts.output);
        wanted.min(context.saturating_sub(tokens))
    }

    /// What is to be asked of a device that draws, for the token after `ahead` more: logits only where they must be looked at.
    pub(super) fn wants(&self, ahead: usize) -> Want {
        match (&self.grammar, self.sampler.draw_alone(ahead)) {
            (None, Some(draw)) => Want::Token(draw),
            _ => Want::Logits,
        }
    }

    /// Chooses the next token and hands out its text.
    pub(super) fn advance(&mut self, given: Given<'_>, model: &Model<'_>, metrics: &Metrics) -> Advance {
        let choice = match self.choose(given) {
            Ok(choice) => choice,
            Err(problem) => {
                self.emit(Event::Failed(problem));
                add(&metrics.failed, 1);
                return Advance {
                    token: 0,
                    is_over: true,
                };
            }
        };
        self.clock(metrics);
        self.counts.output += 1;
        let is_end = model.eos.contains(&choice.token) && !self.ignore_eos;
        let is_form_over = self.grammar.as_ref().is_some_and(Grammar::is_over);
        let stopped = self.text(&choice, is_end, model.tokenizer);
        let room = self.room(self.counts.prompt + self.counts.output, model.context);
        let finish = match (stopped, is_end || is_form_over, room == 0) {
            (Some(index), ..) => Some(Finish::Sequence(index)),
            (None, true, _) => Some(Finish::Stop),
            (None, false, true) => Some(Finish::Length),
            (None, false, false) => None,
        };
        if let Some(finish) = finish {
            self.finish(finish, metrics);
        }
        Advance {
            token: choice.token,
            is_over: finish.is_some() || self.abandoned,
        }
    }

    fn choose(&mut self, given: Given<'_>) -> Result<Choice, String> {
        let forced = self.thinker.as_ref().and_then(Thinker::forced);
        let answers = self.thinker.as_ref().is_none_or(Thinker::is_over);
        let logits = match (given, forced) {
            (Given::Token(drawn), _) => return Ok(self.sampler.take(forced.unwrap_or(drawn), &[])),
            (Given::Logits(logits), Some(token)) => return Ok(self.sampler.take(token, logits)),
            (Given::Logits(logits), None) => logits,
        };
        let Some(grammar) = self.grammar.as_mut().filter(|_| answers) else {
            return Ok(self.sampler.choose(logits));
        };
        grammar.mask(logits).map_err(|error| error.to_string())?;
        let choice = self.sampler.choose(logits);
        grammar.accept(choice.token).map_err(|error| error.to_string())?;
        Ok(choice)
    }

    /// Hands out what is certain with this token. With the stop string that came.
    fn text(&mut self, choice: &Choice, is_end: bool, tokenizer: &Tokenizer) -> Option<usize> {
        let is_hidden = tokenizer.is_special(choice.token) && !self.shown.contains(&choice.token);
        let text = match is_hidden {
            true => String::new(),
            false => self.characters.push(tokenizer.decode_token(choice.token)),
        };
        let pieces = match &mut self.thinker {
            Some(thinker) => {
                let pieces = thinker.push(choice.token, &text);
                self.counts.reasoning = thinker.spent();
                pieces
            }
            None => vec![(Channel::Content, text)],
        };
        let mut logprobs = match self.wants_logprobs && !is_end {
            true => vec![logprob(choice, tokenizer)],
            false => Vec::new(),
        };
        for (channel, text) in pieces {
            let (text, stopped) = match channel {
                Channel::Reasoning => (text, None),
                Channel::Content => self.output.push(&text),
            };
            self.emit_text(channel, text, std::mem::take(&mut logprobs));
            if stopped.is_some() {
                return stopped;
            }
        }
        self.emit_text(Channel::Content, String::new(), logprobs);
        None
    }

    fn emit_text(&mut self, channel: Channel, text: String, logprobs: Vec<TokenLogprob>) {
        if !text.is_empty() || !logprobs.is_empty() {
            self.emit(Event::Text {
                channel,
                text,
                logprobs,
            });
        }
    }

    fn finish(&mut self, finish: Finish, metrics: &Metrics) {
        if !matches!(finish, Finish::Sequence(_)) {
            let rest = self.characters.finish();
            let mut pieces = match &mut self.thinker {
                Some(thinker) => thinker.push(u32::MAX, &rest),
                None => vec![(Channel::Content, rest)],
            };
            pieces.extend(self.thinker.as_mut().and_then(Thinker::finish));
            for (channel, text) in pieces {
                let text = match channel {
                    Channel::Reasoning => text,
                    Channel::Content => self.output.push(&text).0,
                };
                self.emit_text(channel, text, Vec::new());
            }
            let held = self.output.finish();
            self.emit_text(Channel::Content, held, Vec::new());
        }
        let (counts, timings) = (self.counts, self.timings());
        self.emit(Event::Finished {
            finish,
            counts,
            timings,
        });
        if self.abandoned {
            return;
        }
        let now = Instant::now();
        match finish {
            Finish::Stop | Finish::Sequence(_) => add(&metrics.finished_stop, 1),
            Finish::Length => add(&metrics.finished_length, 1),
        }
        metrics.end_to_end.observe(now - self.clocks.submitted);
        if let Some(first) = self.clocks.first_token {
            metrics.decode.observe(now - first);
        }
    }

    fn clock(&mut self, metrics: &Metrics) {
        let now = Instant::now();
        match self.clocks.last_token {
            Some(last) => metrics.between_tokens.observe(now - last),
            None => {
                self.clocks.first_token = Some(now);
                metrics.first_token.observe(now - self.clocks.submitted);
                metrics.prefill.observe(now - self.clocks.admitted.unwrap_or(now));
                add(&metrics.prompt_tokens, self.counts.prompt);
            }
        }
        self.clocks.last_token = Some(now);
        add(&metrics.output_tokens, 1);
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
        let Clocks {
            submitted,
            admitted,
            first_token,
            last_token,
        } = self.clocks;
        let (prompt_ms, predicted_ms) = (between(admitted, first_token), between(first_token, last_token));
        let (read, after_first) = (
            self.counts.prompt - self.counts.cached,
            self.counts.output.saturating_sub(1),
        );
        let per_second = |count: usize, ms: f64| if ms > 0.0 { count as f64 / ms * 1e3 } else { 0.0 };
        Timings {
            cache_n: self.counts.cached,
            prompt_n: read,
            prompt_ms,
            prompt_per_second: per_second(read, prompt_ms),
            predicted_n: self.counts.output,
            predicted_ms,
            predicted_per_token_ms: predicted_ms / after_first.max(1) as f64,
            predicted_per_second: per_second(after_first, predicted_ms),
            queue_ms: between(Some(submitted), admitted),
            first_token_ms: between(Some(submitted), first_token),
            busy_ms: self.busy.as_secs_f64() * 1e3,
            draft_n: self.guessed.0,
            draft_n_accepted: self.guessed.1,
        }
    }

    /// As it stands, with so many tokens computed.
    pub(super) fn slot(&self, computed: usize) -> Slot {
        Slot {
            id: self.id,
            tenant: self.order.tenant.clone(),
            class: self.order.class,
            phase: self.phase(),
            prompt_tokens: self.counts.prompt,
            computed_tokens: computed,
            cached_tokens: self.counts.cached,
            output_tokens: self.counts.output,
            age_ms: self.clocks.submitted.elapsed().as_millis() as u64,
            busy_ms: self.busy.as_secs_f64() * 1e3,
        }
    }
}

fn logprob(choice: &Choice, tokenizer: &Tokenizer) -> TokenLogprob {
    let bytes = |id: u32| tokenizer.decode_token(id).to_vec();
    let top = choice.top.iter().map(|(id, logprob)| (bytes(*id), *logprob));
    TokenLogprob {
        bytes: bytes(choice.token),
        logprob: choice.logprob,
        top: top.collect(),
    }
}
