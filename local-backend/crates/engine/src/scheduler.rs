//! Who computes what in the next step. Owns the order of requests, their blocks and the fair shares of tenants; refuses to
//! know models, sampling, threads and clocks: it is told what there is and how long steps took, and answers with plans.
//!
//! There are no phases. A request has so many tokens and so many of them computed; a step brings it forward. In each step:
//!
//! 1. Waiting requests are let in while there are slots and blocks, on top of what the cache holds of them. The next one
//!    is of the better class; within a class, of the tenant that has been served least for its weight (virtual token
//!    counters: input counts once at admission, each token of output twice, and a tenant that returns from idleness begins
//!    where the others are); of a tenant's own, by priority, deadline, arrival. A priority never buys a share of others.
//! 2. Every running request that has only its last token to compute gets that one first.
//! 3. What is left of the step's *time* goes to prompts, in the same order, in chunks.
//!
//! The background class has steps of its own when there is no other request at all; one that arrives pushes it aside between
//! two layers of its step, which goes on from there later. Beside others it rides only where all of them wait for their next
//! tokens and hardly notice (see `background`). It keeps its blocks until others need them. When blocks run out, the youngest
//! request gives its own back and is computed again later. A request that begins as another one that is being read waits for
//! that one's blocks.
//!
//! Invariants: every block that is not free belongs to a running request; the oldest request of the best class always
//! gets on; removing a request, in any state, leaves nothing of it.

mod background;
mod pace;
mod tenants;

pub use pace::{Pace, Work};
pub use tenants::Share;

use crate::backend::BLOCK_TOKENS;
use crate::kv::{Blocks, Table};
use std::sync::Arc;
use std::time::Duration;
use tenants::Tenants;

/// What a token of output counts to a tenant's share; one of input counts 1.
const OUTPUT_COUNTS: u64 = 2;
/// Prompt tokens of a step: at least, so that slow machines get on; at most, since larger steps are no more efficient.
const CHUNK: (usize, usize) = (16, 512);
/// Guesses are checked only in steps of so few answers: with more of them the machine has no idle arithmetic to spend.
const SPECULATING: usize = 4;

/// How soon a request is served. Smaller is sooner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    #[default]
    Foreground,
    /// Only in steps that would otherwise be idle.
    Background,
}

/// A request, as far as scheduling is concerned.
#[derive(Clone, Debug)]
pub struct Job {
    /// Never used twice.
    pub id: u64,
    /// Whose share it counts to, and whose cache it may use.
    pub tenant: Arc<str>,
    /// The tenant's share relative to others', at least 1.
    pub weight: u32,
    pub class: Class,
    /// Of one tenant's requests, the smaller goes first.
    pub priority: i32,
    /// On any clock, as long as all jobs use the same.
    pub deadline: Option<Duration>,
    /// The prompt, at least one token.
    pub tokens: Vec<u32>,
}

/// Sizes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests that run at once.
    pub running: usize,
    /// How long a step should take at most.
    pub step: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            running: 64,
            step: Duration::from_millis(50),
        }
    }
}

/// A request's part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub id: u64,
    pub class: Class,
    /// Tokens computed before.
    pub first: usize,
    /// Tokens that are known and computed in this step.
    pub count: usize,
    /// Guessed tokens after them that are computed too, to be kept where the guess was right.
    pub guesses: usize,
    /// Whether what it has is then all computed, so that a next token can be chosen.
    pub is_last: bool,
}

impl Part {
    fn work(&self) -> Work {
        Work::of(self.first, self.count + self.guesses)
    }
}

/// A step.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub parts: Vec<Part>,
    /// Of all of its parts; foreground where background requests ride in it.
    pub class: Class,
    /// Those let in, with the tokens found in the cache.
    pub admitted: Vec<(u64, usize)>,
    /// Requests that gave their blocks back.
    pub preempted: usize,
    /// It was begun before, and suspended after so long: it goes on where it was.
    pub suspended: Option<Duration>,
}

impl Plan {
    fn has(&self, id: u64) -> bool {
        self.parts.iter().any(|part| part.id == id)
    }

    /// All of its work.
    #[must_use]
    pub fn work(&self) -> Work {
        self.parts
            .iter()
            .fold(Work::default(), |work, part| work.plus(part.work()))
    }
}

#[derive(Debug)]
struct Entry {
    job: Job,
    /// The prompt, and what was produced.
    tokens: Vec<u32>,
    guesses: Vec<u32>,
    computed: usize,
    table: Table,
    /// Order of arrival.
    arrival: u64,
    was_admitted: bool,
}

impl Entry {
    /// Only the last token is to be computed.
    fn is_decoding(&self) -> bool {
        self.computed + 1 == self.tokens.len()
    }

    /// The smallest goes last when blocks run out.
    fn seniority(&self) -> (Class, u64) {
        (self.job.class, self.arrival)
    }
}

/// The queues and the cache.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    blocks: Blocks,
    pace: Pace,
    tenants: Tenants,
    waiting: Vec<Entry>,
    running: Vec<Entry>,
    arrivals: u64,
    /// The last step that was suspended, as long as all of its requests are as they were then.
    suspended: Option<Plan>,
}

/// What a step has for one class.
#[derive(Clone, Copy)]
struct Room {
    class: Class,
    /// What the step should take at most.
    limit: Duration,
    /// Prompt tokens that are read whatever they take.
    least: usize,
}

impl Scheduler {
    /// Over a cache of `blocks` blocks.
    #[must_use]
    pub fn new(blocks: usize, limits: Limits) -> Self {
        Self {
            limits,
            blocks: Blocks::new(blocks),
            pace: Pace::default(),
            tenants: Tenants::default(),
            waiting: Vec::new(),
            running: Vec::new(),
            arrivals: 0,
            suspended: None,
        }
    }

    /// The cache's blocks.
    #[must_use]
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// What was learned of steps' times.
    #[must_use]
    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    /// Requests that run, and that wait.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.running.len(), self.waiting.len())
    }

    /// What each tenant was served.
    #[must_use]
    pub fn shares(&self) -> Vec<Share> {
        self.tenants.shares()
    }

    /// Puts a request into the queue.
    pub fn submit(&mut self, job: Job) {
        self.tenants.arrived(job.class, &job.tenant, job.weight);
        self.arrivals += 1;
        self.waiting.push(Entry {
            tokens: job.tokens.clone(),
            guesses: Vec::new(),
            computed: 0,
            table: Table::default(),
            arrival: self.arrivals,
            was_admitted: false,
            job,
        });
    }

    /// Forgets a request, whatever its state. False: there was none.
    pub fn remove(&mut self, id: u64) -> bool {
        for list in [&mut self.running, &mut self.waiting] {
            if let Some(at) = list.iter().position(|entry| entry.job.id == id) {
                let entry = list.remove(at);
                self.blocks.release(entry.table);
                self.suspended.take_if(|plan| plan.has(id));
                self.tenants.left(entry.job.class, &entry.job.tenant);
                return true;
            }
        }
        false
    }

    /// The next step; empty when there is nothing to do.
    pub fn plan(&mut self) -> Plan {
        let is_foreground = |entry: &Entry| entry.job.class == Class::Foreground;
        let class = match self.running.iter().chain(&self.waiting).any(is_foreground) {
            true => Class::Foreground,
            false => Class::Background,
        };
        if let Some(plan) = self.suspended.take_if(|plan| plan.class == class) {
            return plan;
        }
        let mut plan = Plan {
            class,
            ..Plan::default()
        };
        let room = Room {
            class,
            limit: self.limits.step,
            least: CHUNK.0,
        };
        self.fill(room, &mut plan);
        if class == Class::Foreground
            && let Some(limit) = self.riding(&plan)
        {
            let room = Room {
                class: Class::Background,
                limit,
                least: 0,
            };
            self.fill(room, &mut plan);
        }
        plan
    }

    /// Brings requests of a class into the step.
    fn fill(&mut self, room: Room, plan: &mut Plan) {
        self.admit(room.class, plan);
        let mut order: Vec<usize> = (0..self.running.len()).collect();
        let is_suspended = |id| self.suspended.as_ref().is_some_and(|plan| plan.has(id));
        order.retain(|at| {
            let job = &self.running[*at].job;
            job.class == room.class && !is_suspended(job.id)
        });
        order.sort_by_cached_key(|at| self.rank(&self.running[*at]));
        let order: Vec<u64> = order.iter().map(|at| self.running[*at].job.id).collect();
        let decoding = |scheduler: &Self, id| scheduler.running(id).is_some_and(Entry::is_decoding);
        let (decodes, prompts): (Vec<u64>, Vec<u64>) = order.iter().partition(|id| decoding(self, **id));
        let rows = plan.parts.len() + decodes.len();
        for id in decodes {
            self.place_decode((id, rows), room, plan);
        }
        for id in prompts {
            self.place_prompt(id, room, plan);
        }
    }

    /// The tokens of a part's row `at`: row 0 has those that are known, each further one has one guess. With the place
    /// of its first token and the blocks.
    #[must_use]
    pub fn row(&self, part: &Part, at: usize) -> Option<(&[u32], usize, &[u32])> {
        let entry = self.running(part.id)?;
        let (tokens, first) = match at.checked_sub(1) {
            None => (entry.tokens.get(part.first..part.first + part.count)?, part.first),
            Some(guess) => (entry.guesses.get(guess..=guess)?, part.first + part.count + guess),
        };
        Some((tokens, first, entry.table.blocks()))
    }

    /// How many of a request's tokens are computed.
    #[must_use]
    pub fn computed_tokens(&self, id: u64) -> usize {
        self.running(id).map_or(0, |entry| entry.computed)
    }

    /// A request's tokens, prompt and output.
    #[must_use]
    pub fn tokens(&self, id: u64) -> &[u32] {
        self.running(id).map_or(&[], |entry| &entry.tokens)
    }

    /// What may follow a request's tokens, to be checked in its next step.
    pub fn guess(&mut self, id: u64, guesses: Vec<u32>) {
        if let Some(entry) = self.running_mut(id) {
            entry.guesses = guesses;
        }
    }

    /// A step was suspended after so long. It is the next of its class, unless one of its requests leaves or loses its blocks.
    pub fn suspended(&mut self, plan: Plan, took: Duration) {
        self.suspended = Some(Plan {
            suspended: Some(plan.suspended.unwrap_or_default() + took),
            admitted: Vec::new(),
            preempted: 0,
            ..plan
        });
    }

    /// A step was not begun after all.
    pub fn not_begun(&mut self, plan: Plan) {
        if plan.suspended.is_some() {
            self.suspended(plan, Duration::ZERO);
        }
    }

    /// A step took so long since it was begun, or since it was resumed. Answers with each part's share of the time that it
    /// took in all.
    pub fn ran(&mut self, plan: &Plan, took: Duration) -> Vec<Duration> {
        let count = plan.parts.len();
        let took = plan.suspended.unwrap_or_default() + took;
        let shares: Vec<f64> = plan
            .parts
            .iter()
            .map(|part| self.pace.share(part.work(), count))
            .collect();
        let sum: f64 = shares.iter().sum();
        self.pace.learn(plan.work(), took);
        let part = |share: &f64| match sum > 0.0 {
            true => took.mul_f64(share / sum),
            false => took / count.max(1) as u32,
        };
        shares.iter().map(part).collect()
    }

    /// A part was computed, and these tokens were chosen after it: none in the middle of a prompt, one after its end, and
    /// one more for each guess that was right.
    pub fn computed(&mut self, part: &Part, chosen: &[u32]) {
        let Some(at) = self.running.iter().position(|entry| entry.job.id == part.id) else {
            return;
        };
        let entry = &mut self.running[at];
        entry.computed = part.first + part.count + chosen.len().saturating_sub(1);
        entry.tokens.extend_from_slice(chosen);
        entry.guesses.clear();
        let (class, tenant) = (entry.job.class, &entry.job.tenant);
        self.blocks
            .publish(&mut entry.table, tenant, &entry.tokens, entry.computed);
        let served = chosen.len() as u64 * OUTPUT_COUNTS;
        self.tenants.served(class, tenant, served);
    }

    fn running(&self, id: u64) -> Option<&Entry> {
        self.running.iter().find(|entry| entry.job.id == id)
    }

    fn running_mut(&mut self, id: u64) -> Option<&mut Entry> {
        self.running.iter_mut().find(|entry| entry.job.id == id)
    }

    /// The smallest goes first.
    fn rank(&self, entry: &Entry) -> (u64, i32, Duration, u64) {
        let job = &entry.job;
        (
            self.tenants.counter(job.class, &job.tenant),
            job.priority,
            job.deadline.unwrap_or(Duration::MAX),
            entry.arrival,
        )
    }

    /// Lets requests in while there are slots and blocks.
    fn admit(&mut self, class: Class, plan: &mut Plan) {
        let mut later: Vec<u64> = Vec::new();
        loop {
            let running = self.of_class(class);
            if running >= self.limits.running {
                return;
            }
            let candidates = self
                .waiting
                .iter()
                .enumerate()
                .filter(|(_, entry)| entry.job.class == class && !later.contains(&entry.job.id));
            let Some((at, _)) = candidates.min_by_key(|(_, entry)| self.rank(entry)) else {
                return;
            };
            if self.has_twin(&self.waiting[at]) {
                later.push(self.waiting[at].job.id);
                continue;
            }
            let entry = &self.waiting[at];
            let cached = self.blocks.cached_tokens(&entry.job.tenant, &entry.tokens);
            // A block more for its answer, and one for each that runs.
            let needed = (entry.tokens.len() - cached).div_ceil(BLOCK_TOKENS) + 1 + running;
            while needed > self.blocks.free() && self.push_aside_background(class, plan) {}
            // The first one gets on in any case, but not where it would only ride.
            if needed > self.blocks.free() && (running > 0 || class != plan.class) {
                return;
            }
            let mut entry = self.waiting.remove(at);
            entry.table = self.blocks.open(&entry.job.tenant, &entry.tokens);
            entry.computed = entry.table.blocks().len() * BLOCK_TOKENS;
            if !std::mem::replace(&mut entry.was_admitted, true) {
                let read = (entry.tokens.len() - entry.computed) as u64;
                self.tenants.served(entry.job.class, &entry.job.tenant, read);
            }
            plan.admitted.push((entry.job.id, entry.computed));
            self.running.push(entry);
        }
    }

    fn of_class(&self, class: Class) -> usize {
        let is_of = |entry: &&Entry| entry.job.class == class;
        self.running.iter().filter(is_of).count()
    }

    /// Whether a running request is about to compute blocks that this one could use.
    fn has_twin(&self, entry: &Entry) -> bool {
        let usable = (entry.tokens.len() - 1) / BLOCK_TOKENS * BLOCK_TOKENS;
        let reads = |other: &&Entry| {
            !other.is_decoding() && other.job.class == entry.job.class && other.job.tenant == entry.job.tenant
        };
        let common = |other: &Entry| {
            let pairs = other.tokens.iter().zip(&entry.tokens[..usable]);
            let same = pairs.take_while(|(one, two)| one == two).count();
            (same / BLOCK_TOKENS * BLOCK_TOKENS, other.computed)
        };
        self.running
            .iter()
            .filter(reads)
            .map(common)
            .any(|(common, computed)| common > computed / BLOCK_TOKENS * BLOCK_TOKENS)
    }

    /// Takes the blocks of a background request, for the sake of others. False: there is none.
    fn push_aside_background(&mut self, class: Class, plan: &mut Plan) -> bool {
        if class == Class::Background {
            return false;
        }
        let victim = self
            .running
            .iter()
            .rposition(|entry| entry.job.class == Class::Background);
        victim.is_some_and(|at| {
            self.preempt(at, plan);
            true
        })
    }

    fn preempt(&mut self, at: usize, plan: &mut Plan) {
        let mut entry = self.running.remove(at);
        self.blocks.release(std::mem::take(&mut entry.table));
        entry.computed = 0;
        entry.guesses.clear();
        plan.admitted.retain(|(id, _)| *id != entry.job.id);
        plan.preempted += 1;
        self.suspended.take_if(|plan| plan.has(entry.job.id));
        self.waiting.push(entry);
    }

    /// Blocks for the first `tokens` of a request, taken from younger ones where none are free. False: not in this step.
    fn make_room(&mut self, id: u64, tokens: usize, plan: &mut Plan) -> bool {
        loop {
            let Some(at) = self.running.iter().position(|entry| entry.job.id == id) else {
                return false;
            };
            let entry = &mut self.running[at];
            if self.blocks.grow(&mut entry.table, tokens) {
                return true;
            }
            let seniority = entry.seniority();
            let younger = |entry: &&Entry| {
                entry.seniority() > seniority && !plan.has(entry.job.id) && !entry.table.blocks().is_empty()
            };
            let victim = self
                .running
                .iter()
                .filter(younger)
                .max_by_key(|entry| entry.seniority());
            let Some(victim) = victim.map(|entry| entry.job.id) else {
                return false;
            };
            let Some(at) = self.running.iter().position(|entry| entry.job.id == victim) else {
                return false;
            };
            self.preempt(at, plan);
        }
    }

    /// A request's next token. `rows`: how many requests get one in this step.
    fn place_decode(&mut self, (id, rows): (u64, usize), room: Room, plan: &mut Plan) {
        let Some(tokens) = self.running(id).map(|entry| entry.tokens.len()) else {
            return;
        };
        let fits = || {
            self.pace
                .fits(plan.work().plus(Work::of(tokens - 1, 1)), room.limit)
        };
        if room.class == Class::Background && !plan.parts.is_empty() && !fits() {
            return;
        }
        if !self.make_room(id, tokens, plan) {
            return;
        }
        let Some(at) = self.running.iter().position(|entry| entry.job.id == id) else {
            return;
        };
        let entry = &mut self.running[at];
        let guesses = entry.guesses.len();
        // For a guess nobody loses blocks.
        if rows > SPECULATING || !self.blocks.grow(&mut entry.table, tokens + guesses) {
            entry.guesses.clear();
        }
        plan.parts.push(Part {
            id,
            class: room.class,
            first: entry.computed,
            count: 1,
            guesses: entry.guesses.len(),
            is_last: true,
        });
    }

    fn place_prompt(&mut self, id: u64, room: Room, plan: &mut Plan) {
        let Some((first, all)) = self.running(id).map(|entry| (entry.computed, entry.tokens.len())) else {
            return;
        };
        let is_first = plan.parts.iter().all(|part| part.count == 1);
        let least = if is_first { room.least } else { 0 };
        let read: usize = plan
            .parts
            .iter()
            .map(|part| part.count)
            .filter(|count| *count > 1)
            .sum();
        let most = CHUNK.1.saturating_sub(read).max(least);
        let chunk = self.pace.chunk(plan.work(), first, (least, most), room.limit);
        let count = chunk.min(all - first);
        if count == 0 || !self.make_room(id, first + count, plan) {
            return;
        }
        plan.parts.push(Part {
            id,
            class: room.class,
            first,
            count,
            guesses: 0,
            is_last: first + count == all,
        });
    }
}

#[cfg(test)]
mod tests;
