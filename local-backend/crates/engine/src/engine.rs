//! The engine, as seen from outside: requests go in, events come out, and leaving ends a request.
//!
//! One thread (`worker`) owns model, cache and sequences. Before every step it takes what was submitted and drops what
//! was left; then it asks the scheduler for a plan, runs it, samples and hands out the text. Invariants: a request whose
//! ticket is dropped is out of the queue at once and gone before the next step begins, and a step in which nobody is left
//! stops between two layers; an event is handed out at most once and in order; queues have bounds.

mod board;
mod lookup;
mod metrics;
mod output;
mod sequence;
mod worker;

pub use metrics::{BOUNDS, Histogram, Metrics};

use crate::backend::{AllocateError, BLOCK_TOKENS, Backend};
use crate::grammar::Grammar;
use crate::sample::Sampling;
use crate::scheduler::{Class, Limits, Share};
use crate::text::Tokenizer;
use crate::think::{Channel, Thinking};
use board::Board;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Whose a request is and when it should run.
#[derive(Clone, Debug)]
pub struct Order {
    /// Shares, and the prefix cache, are each tenant's own.
    pub tenant: Arc<str>,
    /// The tenant's share relative to others'.
    pub weight: u32,
    pub class: Class,
    /// Of a tenant's requests, the smaller goes first.
    pub priority: i32,
    /// From now on; among equals, the nearer goes first. Nothing is dropped for being late.
    pub deadline: Option<Duration>,
}

impl Default for Order {
    fn default() -> Self {
        Self {
            tenant: "default".into(),
            weight: 1,
            class: Class::Foreground,
            priority: 0,
            deadline: None,
        }
    }
}

/// What is asked of the engine.
#[derive(Debug, Default)]
pub struct Request {
    /// The prompt: at least one token, fewer than [`Engine::context_tokens`].
    pub tokens: Vec<u32>,
    pub max_tokens: usize,
    pub sampling: Sampling,
    /// The answer ends before any of these.
    pub stop: Vec<String>,
    /// Go on after an end-of-answer token.
    pub ignore_eos: bool,
    /// Special tokens that are shown as text: the markers of thinking and of tools.
    pub shown: Arc<[u32]>,
    pub thinking: Option<Thinking>,
    /// The form of the answer; it begins after thinking.
    pub grammar: Option<Grammar>,
    pub order: Order,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    Stop,
    /// The stop string of this index came.
    Sequence(usize),
    /// It is as long as it may be.
    Length,
}

/// How much there was of what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub prompt: usize,
    /// Of the prompt, found in the cache.
    pub cached: usize,
    pub output: usize,
    /// Of the output, thinking.
    pub reasoning: usize,
}

/// How long things took, in milliseconds. Names as llama.cpp's server has them, and a few more.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Timings {
    pub cache_n: usize,
    /// Prompt tokens that were computed.
    pub prompt_n: usize,
    pub prompt_ms: f64,
    pub prompt_per_second: f64,
    pub predicted_n: usize,
    pub predicted_ms: f64,
    pub predicted_per_token_ms: f64,
    pub predicted_per_second: f64,
    pub queue_ms: f64,
    pub first_token_ms: f64,
    /// The request's share of the time that the machine was busy.
    pub busy_ms: f64,
    /// Tokens guessed ahead, and those that were right.
    pub draft_n: usize,
    pub draft_n_accepted: usize,
}

/// A token's likelihood, for those who asked.
#[derive(Clone, Debug)]
pub struct TokenLogprob {
    pub bytes: Vec<u8>,
    pub logprob: f32,
    pub top: Vec<(Vec<u8>, f32)>,
}

/// What comes of a request, in order.
#[derive(Clone, Debug)]
pub enum Event {
    /// Text that is certain; may be empty where only likelihoods are told.
    Text {
        channel: Channel,
        text: String,
        logprobs: Vec<TokenLogprob>,
    },
    Finished {
        finish: Finish,
        counts: Counts,
        timings: Timings,
    },
    /// The answer cannot go on.
    Failed(String),
}

/// Takes events; false says that nobody listens any more.
pub type Sink = Box<dyn FnMut(Event) -> bool + Send>;

/// Sizes of an engine.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Tokens that the cache of keys and values holds, over all requests.
    pub kv_tokens: usize,
    pub limits: Limits,
    /// Requests that may wait; beyond it the engine is full.
    pub queue: usize,
    /// Guess at next tokens from what has been before.
    pub speculation: Speculation,
}

/// Whether next tokens are guessed. Answers are the same either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speculation {
    PromptLookup,
    Off,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            kv_tokens: 32_768,
            limits: Limits::default(),
            queue: 1024,
            speculation: Speculation::PromptLookup,
        }
    }
}

/// A request as it stands.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Slot {
    pub id: u64,
    pub tenant: Arc<str>,
    pub class: Class,
    /// `queued`, `prefill` or `decode`.
    pub phase: &'static str,
    pub prompt_tokens: usize,
    pub computed_tokens: usize,
    pub cached_tokens: usize,
    pub output_tokens: usize,
    pub age_ms: u64,
    pub busy_ms: f64,
}

/// Every request, and what every tenant was served.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Standing {
    pub slots: Vec<Slot>,
    pub tenants: Vec<Share>,
}

/// How much there is to do.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Load {
    pub running: usize,
    pub waiting: usize,
    pub slots: usize,
    pub queue_limit: usize,
    /// How long a request that comes now will wait, guessed from what requests took so far.
    pub expected_wait_ms: u64,
    pub blocks_used: usize,
    pub blocks_total: usize,
}

struct Shared {
    metrics: Metrics,
    started: Instant,
    board: Board,
    next_id: AtomicU64,
}

struct Submission {
    id: u64,
    request: Request,
    sink: Sink,
    submitted: Instant,
}

/// What came of sequences that were to be embedded: a vector for each. `None`: the model does not embed.
pub type Embedded = Option<Vec<Vec<f32>>>;

struct Embedding {
    id: u64,
    sequences: Vec<Vec<u32>>,
    tell: Box<dyn FnOnce(Embedded) + Send>,
}

enum Command {
    Submit(Box<Submission>),
    Embed(Embedding),
    Standing(Box<dyn FnOnce(Standing) + Send>),
}

/// The engine. Dropping it stops the running step, ends all requests and joins the thread.
pub struct Engine {
    commands: Option<SyncSender<Command>>,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    settings: Settings,
    /// The longest sequence, prompt and answer together.
    pub context_tokens: usize,
}

/// A running request; dropping it cancels what is left of it.
pub struct Ticket {
    id: u64,
    shared: Arc<Shared>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.shared.board.left(self.id) {
            metrics::add(&self.shared.metrics.cancelled_queued, 1);
            self.shared.metrics.cancel.observe(Duration::ZERO);
        }
    }
}

/// The engine did not take a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Try again later.
    #[error("the queue is full")]
    Full,
    /// It will not come back.
    #[error("the engine has stopped")]
    Stopped,
    /// Nothing to begin with, or more than fits.
    #[error("the prompt has {tokens} tokens; from 1 to {most} are possible")]
    Length {
        /// Of the prompt.
        tokens: usize,
        /// Allowed.
        most: usize,
    },
}

impl Engine {
    /// Starts the thread.
    ///
    /// # Errors
    /// The cache does not fit into memory.
    pub fn start(
        mut backend: Box<dyn Backend>,
        tokenizer: Arc<Tokenizer>,
        settings: Settings,
    ) -> Result<Self, AllocateError> {
        let blocks = settings.kv_tokens.div_ceil(BLOCK_TOKENS).max(2);
        backend.allocate(blocks)?;
        let context_tokens = backend.info().context_tokens.min(blocks * BLOCK_TOKENS);
        let shared = Arc::new(Shared {
            metrics: Metrics::default(),
            started: Instant::now(),
            board: Board::default(),
            next_id: AtomicU64::new(1),
        });
        shared
            .metrics
            .blocks_total
            .store(blocks as u64, Ordering::Relaxed);
        // A caller that finds it full has been counted against the queue already.
        let (commands, receiver) = sync_channel(settings.queue + 64);
        let worker = worker::Worker::new((backend, tokenizer), shared.clone(), receiver, settings);
        let thread = std::thread::Builder::new().name("engine".into());
        let thread = thread.spawn(move || worker.run(context_tokens)).ok();
        Ok(Self {
            commands: Some(commands),
            shared,
            thread: Mutex::new(thread),
            settings,
            context_tokens,
        })
    }

    /// Hands a request over. Events come through `sink`; dropping the ticket cancels.
    ///
    /// # Errors
    /// The engine is full or has stopped, or the prompt does not fit.
    pub fn submit(&self, request: Request, sink: Sink) -> Result<Ticket, SubmitError> {
        let (tokens, most) = (request.tokens.len(), self.context_tokens - 1);
        if tokens == 0 || tokens > most {
            return Err(SubmitError::Length { tokens, most });
        }
        let (id, class) = (
            self.shared.next_id.fetch_add(1, Ordering::Relaxed),
            request.order.class,
        );
        if !self.shared.board.queue(id, self.settings.queue) {
            return Err(SubmitError::Full);
        }
        let submission = Submission {
            id,
            request,
            sink,
            submitted: Instant::now(),
        };
        if let Err(error) = self.send(Command::Submit(Box::new(submission))) {
            self.shared.board.unqueue(id);
            return Err(error);
        }
        self.shared.board.came(class);
        let shared = self.shared.clone();
        Ok(Ticket { id, shared })
    }

    /// Has sequences embedded, between two steps; the vectors come through `tell`, which is dropped unused when the ticket
    /// is dropped first.
    ///
    /// # Errors
    /// The engine is full or has stopped, or a sequence is empty or too long.
    pub fn embed(
        &self,
        sequences: Vec<Vec<u32>>,
        tell: Box<dyn FnOnce(Embedded) + Send>,
    ) -> Result<Ticket, SubmitError> {
        let most = self.context_tokens;
        let is_unfit = |length: &usize| *length == 0 || *length > most;
        if let Some(tokens) = sequences.iter().map(Vec::len).find(is_unfit) {
            return Err(SubmitError::Length { tokens, most });
        }
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        self.send(Command::Embed(Embedding { id, sequences, tell }))?;
        let shared = self.shared.clone();
        Ok(Ticket { id, shared })
    }

    fn send(&self, command: Command) -> Result<(), SubmitError> {
        let commands = self.commands.as_ref().ok_or(SubmitError::Stopped)?;
        commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => SubmitError::Full,
            TrySendError::Disconnected(_) => SubmitError::Stopped,
        })
    }

    /// Asks what every request is at; the answer comes before the next step, through `tell`.
    ///
    /// # Errors
    /// The engine is full or has stopped.
    pub fn standing(&self, tell: Box<dyn FnOnce(Standing) + Send>) -> Result<(), SubmitError> {
        self.send(Command::Standing(tell))
    }

    /// Counters and histograms.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// How long ago it was started.
    pub fn uptime(&self) -> Duration {
        self.shared.started.elapsed()
    }

    /// How much there is to do.
    pub fn load(&self) -> Load {
        let metrics = &self.shared.metrics;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let waiting = self.shared.board.queued();
        let running = read(&metrics.running) as usize;
        let finished = read(&metrics.finished_stop) + read(&metrics.finished_length);
        let each_us = read(&metrics.busy_us) / finished.max(1);
        let is_full = running >= self.settings.limits.running || waiting > 0;
        Load {
            running,
            waiting,
            slots: self.settings.limits.running,
            queue_limit: self.settings.queue,
            expected_wait_ms: if is_full {
                (waiting as u64 + 1) * each_us / 1000
            } else {
                0
            },
            blocks_used: read(&metrics.blocks_used) as usize,
            blocks_total: read(&metrics.blocks_total) as usize,
        }
    }

    /// Whether no request is there at all.
    pub fn is_idle(&self) -> bool {
        self.shared.board.queued() == 0 && self.shared.metrics.running.load(Ordering::Acquire) == 0
    }

    /// How long ago the loop last moved.
    pub fn since_heartbeat(&self) -> Duration {
        let last = Duration::from_millis(self.shared.metrics.heartbeat_ms.load(Ordering::Relaxed));
        self.shared.started.elapsed().saturating_sub(last)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.commands = None;
        self.shared.board.stop();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}
