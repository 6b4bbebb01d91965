//! The one engine thread: it takes requests, plans a step, runs it, samples, and hands the text out.
//!
//! There are no phases. A step has a budget of tokens: running sequences get one each first, the rest goes to prompts in
//! order of arrival, in chunks. A cancelled sequence is gone before the next step; if it is alone in a step, the step
//! itself is stopped. When blocks run out, the youngest sequence gives its own back and starts over later.

mod output;
mod sequence;

use crate::backend::{BLOCK_TOKENS, Backend, Row, StepEnd};
use crate::kv::Blocks;
use crate::sample::Sampling;
use crate::text::Tokenizer;
use sequence::Sequence;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Requests that may wait to be looked at; beyond it the engine is full.
const QUEUE: usize = 1024;
/// The longest a step with a running answer in it should take.
const STEP: Duration = Duration::from_millis(50);
/// Prompt tokens in a step: at least, at most, and where nobody waits for a next token.
const BUDGET: std::ops::RangeInclusive<usize> = 16..=256;
/// How often an idle engine shows that it lives.
const HEARTBEAT: Duration = Duration::from_millis(200);

/// What is asked of the engine.
#[derive(Clone, Debug)]
pub struct Request {
    pub tokens: Vec<u32>,
    pub max_tokens: usize,
    pub sampling: Sampling,
    /// The answer ends before any of these.
    pub stop: Vec<String>,
    /// Go on after an end-of-answer token.
    pub ignore_eos: bool,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    Stop,
    Length,
}

/// How long things took, in milliseconds.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Timings {
    pub queue_ms: f64,
    pub prefill_ms: f64,
    pub first_token_ms: f64,
    pub decode_ms: f64,
    pub per_token_ms: f64,
    pub cached_tokens: usize,
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
        text: String,
        logprobs: Vec<TokenLogprob>,
    },
    Finished {
        finish: Finish,
        prompt_tokens: usize,
        output_tokens: usize,
        timings: Timings,
    },
    Failed(String),
}

/// Takes events; false says that nobody listens any more.
pub type Sink = Box<dyn FnMut(Event) -> bool + Send>;

/// Counters and gauges, as they are now.
#[derive(Debug, Default)]
pub struct Metrics {
    pub running: AtomicU64,
    pub waiting: AtomicU64,
    pub blocks_used: AtomicU64,
    pub blocks_total: AtomicU64,
    pub prompt_tokens: AtomicU64,
    pub cached_tokens: AtomicU64,
    pub output_tokens: AtomicU64,
    pub finished: AtomicU64,
    pub cancelled: AtomicU64,
    pub preempted: AtomicU64,
    pub steps: AtomicU64,
    pub step_us: AtomicU64,
    /// Milliseconds since the engine started, at its last sign of life.
    pub heartbeat_ms: AtomicU64,
}

struct Shared {
    metrics: Metrics,
    started: Instant,
    /// Stops a running step.
    abort: AtomicBool,
    /// The request that is alone in the running step; 0 where there is none.
    alone: AtomicU64,
    next_id: AtomicU64,
}

enum Command {
    Submit {
        id: u64,
        request: Request,
        sink: Sink,
        cancelled: Arc<AtomicBool>,
        submitted: Instant,
    },
}

/// The engine, as seen from outside. Dropping it ends the thread after the running step.
pub struct Engine {
    commands: Option<SyncSender<Command>>,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    pub context_tokens: usize,
}

/// A running request; dropping it cancels what is left of it.
pub struct Ticket {
    id: u64,
    cancelled: Arc<AtomicBool>,
    shared: Arc<Shared>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Release);
        if self.shared.alone.load(Ordering::Acquire) == self.id {
            self.shared.abort.store(true, Ordering::Release);
        }
    }
}

/// The engine did not take a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    #[error("the engine is full; retry shortly")]
    Full,
    #[error("the engine has stopped")]
    Stopped,
}

impl Engine {
    /// Starts the thread over a cache of `kv_tokens` tokens.
    ///
    /// # Errors
    /// The cache does not fit into memory.
    pub fn start(
        mut backend: Box<dyn Backend>,
        tokenizer: Arc<Tokenizer>,
        kv_tokens: usize,
    ) -> Result<Self, crate::backend::AllocateError> {
        let blocks = kv_tokens.div_ceil(BLOCK_TOKENS).max(2);
        backend.allocate(blocks)?;
        let context_tokens = backend.info().context_tokens.min(blocks * BLOCK_TOKENS);
        let shared = Arc::new(Shared {
            metrics: Metrics::default(),
            started: Instant::now(),
            abort: AtomicBool::new(false),
            alone: AtomicU64::new(0),
            next_id: AtomicU64::new(1),
        });
        shared
            .metrics
            .blocks_total
            .store(blocks as u64, Ordering::Relaxed);
        let (commands, receiver) = sync_channel(QUEUE);
        let worker = Worker {
            backend,
            tokenizer,
            shared: shared.clone(),
            commands: receiver,
            blocks: Blocks::new(blocks),
            waiting: Vec::new(),
            running: Vec::new(),
            budget: *BUDGET.start() * 2,
            logits: Vec::new(),
        };
        let thread = std::thread::spawn(move || worker.run());
        Ok(Self {
            commands: Some(commands),
            shared,
            thread: Mutex::new(Some(thread)),
            context_tokens,
        })
    }

    /// Hands a request over. Events come through `sink`; dropping the ticket cancels.
    ///
    /// # Errors
    /// The engine is full or has stopped.
    pub fn submit(&self, request: Request, sink: Sink) -> Result<Ticket, SubmitError> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let cancelled = Arc::new(AtomicBool::new(false));
        let ticket = Ticket {
            id,
            cancelled: cancelled.clone(),
            shared: self.shared.clone(),
        };
        let command = Command::Submit {
            id,
            request,
            sink,
            cancelled,
            submitted: Instant::now(),
        };
        let sent = self
            .commands
            .as_ref()
            .ok_or(SubmitError::Stopped)?
            .try_send(command);
        sent.map(|()| ticket).map_err(|error| match error {
            TrySendError::Full(_) => SubmitError::Full,
            TrySendError::Disconnected(_) => SubmitError::Stopped,
        })
    }

    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
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
        self.shared.abort.store(true, Ordering::Release);
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    backend: Box<dyn Backend>,
    tokenizer: Arc<Tokenizer>,
    shared: Arc<Shared>,
    commands: Receiver<Command>,
    blocks: Blocks,
    /// In order of arrival.
    waiting: Vec<Sequence>,
    /// In order of admission.
    running: Vec<Sequence>,
    /// Prompt tokens per step while answers run.
    budget: usize,
    logits: Vec<f32>,
}

/// A sequence's part of a step.
struct Part {
    sequence: usize,
    count: usize,
}

impl Worker {
    fn run(mut self) {
        while self.receive() {
            self.drop_cancelled();
            self.admit();
            let parts = self.plan();
            if !parts.is_empty() {
                self.step(&parts);
            }
            self.show();
        }
    }

    /// Takes what there is; waits a moment where there is nothing to do. False when the engine was dropped.
    fn receive(&mut self) -> bool {
        if self.running.is_empty() && self.waiting.is_empty() {
            use std::sync::mpsc::RecvTimeoutError;
            match self.commands.recv_timeout(HEARTBEAT) {
                Ok(command) => self.take(command),
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.take(command),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn take(&mut self, command: Command) {
        let Command::Submit {
            id,
            request,
            sink,
            cancelled,
            submitted,
        } = command;
        self.waiting
            .push(Sequence::new(id, request, sink, cancelled, submitted));
    }

    fn drop_cancelled(&mut self) {
        let (blocks, metrics) = (&mut self.blocks, &self.shared.metrics);
        for list in [&mut self.running, &mut self.waiting] {
            list.retain_mut(|sequence| {
                let is_wanted = !sequence.cancelled.load(Ordering::Acquire);
                if !is_wanted {
                    blocks.release(&std::mem::take(&mut sequence.blocks));
                    metrics.cancelled.fetch_add(1, Ordering::Relaxed);
                }
                is_wanted
            });
        }
    }

    /// Lets waiting sequences in while their prompts fit, each on top of what the cache already holds of it.
    fn admit(&mut self) {
        while let Some(next) = self.waiting.first() {
            let needed = next.tokens.len().div_ceil(BLOCK_TOKENS) + 1;
            if needed > self.blocks.free() && !self.running.is_empty() {
                return;
            }
            let mut next = self.waiting.remove(0);
            next.blocks = self.blocks.share(&next.tokens);
            next.computed = next.blocks.len() * BLOCK_TOKENS;
            next.admitted(next.computed);
            self.shared
                .metrics
                .cached_tokens
                .fetch_add(next.computed as u64, Ordering::Relaxed);
            self.running.push(next);
        }
    }

    /// Who computes how much in the next step.
    fn plan(&mut self) -> Vec<Part> {
        let is_decoding = |sequence: &Sequence| sequence.computed + 1 == sequence.tokens.len();
        let decoding = self
            .running
            .iter()
            .filter(|sequence| is_decoding(sequence))
            .count();
        let mut budget = if decoding == 0 { *BUDGET.end() } else { self.budget };
        let mut parts = Vec::new();
        let order: Vec<u64> = self.running.iter().map(|sequence| sequence.id).collect();
        // Those who decode first, then prompts.
        for decodes in [true, false] {
            for id in &order {
                let Some(at) = self.running.iter().position(|sequence| sequence.id == *id) else {
                    continue;
                };
                if is_decoding(&self.running[at]) != decodes {
                    continue;
                }
                let left = self.running[at].tokens.len() - self.running[at].computed;
                let count = if decodes { 1 } else { left.min(budget) };
                if count == 0 || !self.grow(*id, count, &parts) {
                    continue;
                }
                if !decodes {
                    budget -= count;
                }
                parts.push((*id, count));
            }
        }
        let place = |id: u64| self.running.iter().position(|sequence| sequence.id == id);
        parts
            .into_iter()
            .filter_map(|(id, count)| {
                Some(Part {
                    sequence: place(id)?,
                    count,
                })
            })
            .collect()
    }

    /// Blocks for `count` more tokens of a sequence, taken from the youngest where none are free. False: not in this step.
    fn grow(&mut self, id: u64, count: usize, planned: &[(u64, usize)]) -> bool {
        loop {
            let Some(at) = self.running.iter().position(|sequence| sequence.id == id) else {
                return false;
            };
            let sequence = &mut self.running[at];
            let needed = (sequence.computed + count).div_ceil(BLOCK_TOKENS);
            while sequence.blocks.len() < needed {
                let Some(block) = self.blocks.take() else { break };
                sequence.blocks.push(block);
            }
            if sequence.blocks.len() >= needed {
                return true;
            }
            let youngest = self.running.len() - 1;
            let victim = &self.running[youngest];
            if youngest == at || planned.iter().any(|(planned, _)| *planned == victim.id) {
                return false;
            }
            let mut victim = self.running.remove(youngest);
            self.blocks.release(&std::mem::take(&mut victim.blocks));
            victim.computed = 0;
            self.shared.metrics.preempted.fetch_add(1, Ordering::Relaxed);
            self.waiting.insert(0, victim);
        }
    }

    fn step(&mut self, parts: &[Part]) {
        let rows: Vec<Row<'_>> = parts
            .iter()
            .map(|part| {
                let sequence = &self.running[part.sequence];
                let end = sequence.computed + part.count;
                Row {
                    tokens: &sequence.tokens[sequence.computed..end],
                    first: sequence.computed,
                    blocks: &sequence.blocks,
                    wants_logits: end == sequence.tokens.len(),
                }
            })
            .collect();
        let alone = if let [only] = parts {
            self.running[only.sequence].id
        } else {
            0
        };
        self.shared.abort.store(false, Ordering::Release);
        self.shared.alone.store(alone, Ordering::Release);
        // A cancel between the last look and the line above has not seen that its request is alone.
        if alone != 0 && self.running[parts[0].sequence].cancelled.load(Ordering::Acquire) {
            self.shared.alone.store(0, Ordering::Release);
            return;
        }
        let started = Instant::now();
        let ended = self.backend.step(&rows, &self.shared.abort, &mut self.logits);
        self.shared.alone.store(0, Ordering::Release);
        let took = started.elapsed();
        if ended == StepEnd::Aborted {
            return;
        }
        self.pace(parts, took);
        self.sample(parts);
    }

    /// Keeps steps short while answers run.
    fn pace(&mut self, parts: &[Part], took: Duration) {
        let metrics = &self.shared.metrics;
        metrics.steps.fetch_add(1, Ordering::Relaxed);
        metrics
            .step_us
            .fetch_add(took.as_micros() as u64, Ordering::Relaxed);
        if parts.len() > 1 && parts.iter().any(|part| part.count > 1) {
            if took > STEP {
                self.budget = (self.budget * 2 / 3).max(*BUDGET.start());
            } else if took < STEP / 2 {
                self.budget = (self.budget * 3 / 2).min(*BUDGET.end());
            }
        }
    }

    fn sample(&mut self, parts: &[Part]) {
        let vocabulary = self.backend.info().vocabulary;
        let mut logits = self.logits.chunks_exact_mut(vocabulary);
        let metrics = &self.shared.metrics;
        let mut done = Vec::new();
        for part in parts {
            let sequence = &mut self.running[part.sequence];
            sequence.computed += part.count;
            self.blocks
                .publish(&sequence.tokens, &sequence.blocks, sequence.computed);
            if sequence.computed < sequence.tokens.len() {
                continue;
            }
            let Some(logits) = logits.next() else { continue };
            if sequence.output() == 0 {
                metrics
                    .prompt_tokens
                    .fetch_add(sequence.prompt as u64, Ordering::Relaxed);
            }
            metrics.output_tokens.fetch_add(1, Ordering::Relaxed);
            let context = self
                .backend
                .info()
                .context_tokens
                .min(self.blocks.total() * BLOCK_TOKENS);
            if sequence.advance(logits, &self.tokenizer, (&self.backend.info().eos, context)) {
                done.push(sequence.id);
            }
        }
        for id in done {
            let Some(at) = self.running.iter().position(|sequence| sequence.id == id) else {
                continue;
            };
            let sequence = self.running.remove(at);
            self.blocks.release(&sequence.blocks);
            let ended = if sequence.abandoned {
                &metrics.cancelled
            } else {
                &metrics.finished
            };
            ended.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn show(&self) {
        let metrics = &self.shared.metrics;
        metrics
            .running
            .store(self.running.len() as u64, Ordering::Relaxed);
        metrics
            .waiting
            .store(self.waiting.len() as u64, Ordering::Relaxed);
        metrics.blocks_used.store(
            (self.blocks.total() - self.blocks.free()) as u64,
            Ordering::Relaxed,
        );
        metrics.heartbeat_ms.store(
            self.shared.started.elapsed().as_millis() as u64,
            Ordering::Relaxed,
        );
    }
}
