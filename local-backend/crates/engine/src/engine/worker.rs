//! The one engine thread: word from callers, a plan, a step, its tokens; over and over.

use super::board::{Board, Left};
use super::metrics::add;
use super::sequence::{Given, Model, Sequence};
use super::{Command, Embedding, Settings, Shared, Speculation, Standing, Submission};
use crate::backend::{Backend, Output, Row, StepEnd, Want};
use crate::scheduler::{Class, Job, Part, Plan, Scheduler};
use crate::text::Tokenizer;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

/// How often an idle engine shows that it lives.
const HEARTBEAT: Duration = Duration::from_millis(200);
/// How long to wait where requests are there and none can run.
const STUCK: Duration = Duration::from_millis(1);

pub(super) struct Worker {
    backend: Box<dyn Backend>,
    tokenizer: Arc<Tokenizer>,
    shared: Arc<Shared>,
    commands: Receiver<Command>,
    settings: Settings,
    scheduler: Scheduler,
    sequences: HashMap<u64, Sequence>,
    /// In order of arrival; one of them is done between two steps.
    embeddings: VecDeque<Embedding>,
    /// Left before they were taken from the channel, where they are.
    left_early: HashSet<u64>,
    output: Output,
}

impl Worker {
    pub(super) fn new(
        (backend, tokenizer): (Box<dyn Backend>, Arc<Tokenizer>),
        shared: Arc<Shared>,
        commands: Receiver<Command>,
        settings: Settings,
    ) -> Self {
        let blocks = shared.metrics.blocks_total.load(Ordering::Relaxed) as usize;
        Self {
            backend,
            tokenizer,
            shared,
            commands,
            settings,
            scheduler: Scheduler::new(blocks, settings.limits),
            sequences: HashMap::new(),
            embeddings: VecDeque::new(),
            left_early: HashSet::new(),
            output: Output::default(),
        }
    }

    pub(super) fn run(mut self, context: usize) {
        while self.receive() {
            self.drop_left();
            self.embed();
            let plan = self.scheduler.plan();
            self.note(&plan);
            if !plan.parts.is_empty() {
                self.step(plan, context);
            } else if !self.sequences.is_empty() {
                std::thread::sleep(STUCK);
            }
            self.show();
        }
    }

    /// Takes what there is; waits a moment where there is nothing to do. False when the engine was dropped.
    fn receive(&mut self) -> bool {
        self.shared.board.look();
        if self.sequences.is_empty() && self.embeddings.is_empty() {
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
        match command {
            Command::Submit(submission) => self.submit(*submission),
            Command::Embed(embedding) => self.embeddings.push_back(embedding),
            Command::Standing(tell) => {
                // Who has left while a step ran is no part of it.
                self.drop_left();
                let mut slots: Vec<_> = self
                    .sequences
                    .values()
                    .map(|sequence| sequence.slot(self.scheduler.computed_tokens(sequence.id)))
                    .collect();
                slots.sort_by_key(|slot| slot.id);
                tell(Standing {
                    slots,
                    tenants: self.scheduler.shares(),
                });
            }
        }
    }

    fn submit(&mut self, submission: Submission) {
        if self.left_early.remove(&submission.id) {
            return;
        }
        let (sequence, tokens) = Sequence::new(submission);
        let now = self.shared.started.elapsed();
        let order = &sequence.order;
        self.scheduler.submit(Job {
            id: sequence.id,
            tenant: order.tenant.clone(),
            weight: order.weight,
            class: order.class,
            priority: order.priority,
            deadline: order.deadline.map(|left| now + left),
            tokens,
        });
        self.sequences.insert(sequence.id, sequence);
        // Seen as soon as it is here, so that whoever asks whether the engine is idle is told the truth.
        self.show();
    }

    fn embed(&mut self) {
        let Some(Embedding { id, sequences, tell }) = self.embeddings.pop_front() else {
            return;
        };
        let board: &Board = &self.shared.board;
        if !board.begin(std::iter::once(id), Class::Foreground) {
            self.embeddings.push_front(Embedding { id, sequences, tell });
            return;
        }
        let (started, mut out) = (Instant::now(), Vec::new());
        let given: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let ended = self.backend.embed(&given, board.abort(), &mut out);
        board.end();
        let metrics = &self.shared.metrics;
        add(&metrics.busy_us, started.elapsed().as_micros() as usize);
        add(
            &metrics.prompt_tokens,
            given.iter().map(|tokens| tokens.len()).sum(),
        );
        let width = out.len() / given.len().max(1);
        match ended {
            None => tell(None),
            Some(StepEnd::Done) => tell(Some(out.chunks(width.max(1)).map(<[f32]>::to_vec).collect())),
            // Nobody waits for it.
            Some(StepEnd::Aborted | StepEnd::Suspended) => {}
        }
    }

    fn drop_left(&mut self) {
        for Left { id, when, was_queued } in self.shared.board.take_left() {
            self.embeddings.retain(|embedding| embedding.id != id);
            let Some(sequence) = self.sequences.get(&id) else {
                // Nobody queues but on the way here; all others are done.
                if was_queued {
                    self.left_early.insert(id);
                }
                continue;
            };
            if !was_queued {
                let metrics = &self.shared.metrics;
                match sequence.phase() {
                    "decode" => add(&metrics.cancelled_decode, 1),
                    _ => add(&metrics.cancelled_prefill, 1),
                }
                metrics.cancel.observe(when.elapsed());
            }
            self.forget(id);
        }
    }

    fn forget(&mut self, id: u64) {
        self.scheduler.remove(id);
        self.sequences.remove(&id);
        self.shared.board.unqueue(id);
    }

    fn note(&mut self, plan: &Plan) {
        // First among the running, then out of the queue: at no moment is a request in neither.
        self.show();
        let metrics = &self.shared.metrics;
        add(&metrics.preempted, plan.preempted);
        for (id, cached) in &plan.admitted {
            // One whose caller has just left never runs: the step does not begin before it is dropped.
            if let Some(sequence) = self.sequences.get_mut(id)
                && sequence.admitted(*cached, metrics)
            {
                self.shared.board.unqueue(*id);
            }
        }
    }

    fn step(&mut self, plan: Plan, context: usize) {
        let mut rows: Vec<Row<'_>> = Vec::with_capacity(plan.parts.len());
        for part in &plan.parts {
            for at in 0..=part.guesses {
                let Some((tokens, first, blocks)) = self.scheduler.row(part, at) else {
                    continue;
                };
                rows.push(Row {
                    tokens,
                    first,
                    blocks,
                    wants: self.wants(part, at),
                });
            }
        }
        let wants: Vec<Want> = rows.iter().map(|row| row.wants).collect();
        let board: &Board = &self.shared.board;
        if !board.begin(plan.parts.iter().map(|part| part.id), plan.class) {
            self.scheduler.not_begun(plan);
            return;
        }
        let started = Instant::now();
        let ended = match plan.suspended {
            None => self.backend.step(&rows, board.abort(), &mut self.output),
            Some(_) => self.backend.resume(&rows, board.abort(), &mut self.output),
        };
        board.end();
        let took = started.elapsed();
        let metrics = &self.shared.metrics;
        add(&metrics.busy_us, took.as_micros() as usize);
        if ended != StepEnd::Done {
            if plan.class == Class::Background {
                add(&metrics.background_us, took.as_micros() as usize);
            }
            add(&metrics.aborted_steps, 1);
            if ended == StepEnd::Suspended {
                self.scheduler.suspended(plan, took);
            }
            return;
        }
        add(&metrics.steps, 1);
        metrics.step.observe(took);
        metrics
            .longest_step_us
            .fetch_max(took.as_micros() as u64, Ordering::Relaxed);
        let shares = self.scheduler.ran(&plan, took);
        let pairs = plan.parts.iter().zip(&shares);
        let background: Duration = pairs
            .filter(|(part, _)| part.class == Class::Background)
            .map(|(_, share)| *share)
            .sum();
        // What it took before it was suspended is counted.
        let background = background.saturating_sub(plan.suspended.unwrap_or_default());
        add(&metrics.background_us, background.as_micros() as usize);
        let mut output = std::mem::take(&mut self.output);
        let mut logits = output.logits.chunks_exact_mut(self.backend.info().vocabulary);
        let mut tokens = output.tokens.iter();
        let mut given = wants.iter().filter_map(|want| match want {
            Want::Nothing => None,
            Want::Logits => logits.next().map(Given::Logits),
            Want::Token(_) => tokens.next().map(|token| Given::Token(*token)),
        });
        for (part, share) in plan.parts.iter().zip(shares) {
            let rows = if part.is_last { 1 + part.guesses } else { 0 };
            let mine = given.by_ref().take(rows).collect();
            self.part(part, share, mine, context);
        }
        self.output = output;
    }

    /// What is wanted of a part's row.
    fn wants(&self, part: &Part, at: usize) -> Want {
        match self.sequences.get(&part.id) {
            _ if !part.is_last => Want::Nothing,
            Some(sequence) if self.backend.info().draws => sequence.wants(at),
            _ => Want::Logits,
        }
    }

    /// Chooses a part's next tokens: one, and one more for each guess that was right.
    fn part(&mut self, part: &Part, share: Duration, given: Vec<Given<'_>>, context: usize) {
        let Some(sequence) = self.sequences.get_mut(&part.id) else {
            return;
        };
        sequence.busy += share;
        let info = self.backend.info();
        let model = Model {
            tokenizer: &self.tokenizer,
            eos: &info.eos,
            context,
        };
        let (mut chosen, mut is_over) = (Vec::new(), false);
        for (at, given) in given.into_iter().enumerate() {
            let advance = sequence.advance(given, &model, &self.shared.metrics);
            chosen.push(advance.token);
            is_over = advance.is_over;
            let next = self.scheduler.row(part, at + 1).map(|(tokens, ..)| tokens[0]);
            if is_over || next != Some(advance.token) {
                break;
            }
        }
        self.scheduler.computed(part, &chosen);
        if !chosen.is_empty() {
            let right = chosen.len() - 1;
            sequence.lookup.learn(part.guesses, right);
            sequence.guessed = (sequence.guessed.0 + part.guesses, sequence.guessed.1 + right);
            add(&self.shared.metrics.guessed, part.guesses);
            add(&self.shared.metrics.guessed_right, right);
        }
        if is_over {
            if sequence.abandoned {
                add(&self.shared.metrics.cancelled_decode, 1);
            }
            self.forget(part.id);
        } else if part.is_last && self.settings.speculation == Speculation::PromptLookup {
            let tokens = self.scheduler.tokens(part.id);
            // The token after the guesses is chosen too.
            let room = sequence.room(tokens.len(), context).saturating_sub(1);
            let guesses = sequence.lookup.guess(tokens, room);
            self.scheduler.guess(part.id, guesses);
        }
    }

    fn show(&self) {
        let metrics = &self.shared.metrics;
        let ((running, _), blocks) = (self.scheduler.counts(), self.scheduler.blocks());
        metrics.running.store(running as u64, Ordering::Release);
        let used = (blocks.total() - blocks.free()) as u64;
        metrics.blocks_used.store(used, Ordering::Relaxed);
        let alive = self.shared.started.elapsed().as_millis() as u64;
        metrics.heartbeat_ms.store(alive, Ordering::Relaxed);
    }
}
