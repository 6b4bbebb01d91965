//! Interactive callers and a batch on one engine: what the batch costs the callers, and what it makes of what they leave.
//!
//! Work is counted as the engine counts it for shares: a prompt token that was computed once, a token of output twice.
//! *Capacity* is the interactive work of a second when callers never pause; *what is left* is capacity less the interactive
//! work of the turn itself. Requests of both kinds are alike, so that their work is worth the same. A round is a turn with
//! and one without the batch, of the same arrivals and lengths (but other words, or the second would find the first one's in
//! the cache). Capacity is found before and after each round, and a round is judged by its own: machines that others share
//! change their speed by half within minutes. The median of the rounds is what counts.

mod calls;
mod stack;

use calls::{Arrivals, closed, open};
use serde::{Deserialize, Serialize};
use stack::{Stack, Work};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Before anything is measured: the model's pages, connections, learned rates.
const WARM: Duration = Duration::from_secs(3);
/// Over which capacity is measured, between rounds.
const SATURATED: Duration = Duration::from_secs(5);

/// How to measure.
pub struct Plan {
    pub rounds: u32,
    /// Of each turn.
    pub seconds: u64,
    /// Of capacity, from 0 to 1.
    pub load: f64,
    pub callers: u32,
    pub seed: u64,
    pub model: PathBuf,
    pub keep: Option<PathBuf>,
}

/// A turn's figures. Rates are per second.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Turn {
    with_batch: bool,
    /// The mean of before and after its round.
    capacity: f64,
    interactive: f64,
    background: f64,
    /// Shares of the time in which the engine computed.
    busy: [f64; 2],
    /// Milliseconds from the moment a request was due to its first token.
    first_token: Vec<f64>,
    /// Milliseconds between tokens, the mean of each answer.
    gap: Vec<f64>,
}

/// All turns.
pub struct Outcome(Vec<Turn>);

/// Measures.
///
/// # Errors
/// A process does not start, or an interactive request is not answered.
pub fn run(plan: &Plan) -> anyhow::Result<Outcome> {
    let stack = Stack::start(&plan.model)?;
    closed(&stack, plan.callers, (plan.seed, WARM))?;
    let mut turns = Vec::new();
    let mut before = saturated(&stack, plan, 0)?;
    for round in 0..plan.rounds {
        let seed = plan.seed * 1000 + u64::from(round);
        let lasting = Duration::from_secs(plan.seconds);
        let rate = before.requests * plan.load;
        // Which comes first changes, so that neither profits from what the other left.
        let order = [round % 2 == 1, round % 2 == 0];
        let both: anyhow::Result<Vec<Turn>> = order
            .into_iter()
            .map(|with_batch| turn(&stack, &Arrivals::new(seed, rate, lasting), with_batch))
            .collect();
        let after = saturated(&stack, plan, u64::from(round) + 1)?;
        for mut turn in both? {
            turn.capacity = before.work.midpoint(after.work);
            println!("{}", turn.line());
            turns.push(turn);
        }
        before = after;
    }
    if let Some(path) = &plan.keep {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
        for turn in &turns {
            writeln!(file, "{}", serde_json::to_string(turn)?)?;
        }
        let text = std::fs::read_to_string(path)?;
        let kept: Result<Vec<Turn>, _> = text.lines().map(serde_json::from_str).collect();
        turns = kept?;
    }
    Ok(Outcome(turns))
}

/// What the engine does in a second when callers never pause.
struct Capacity {
    work: f64,
    requests: f64,
}

fn saturated(stack: &Stack, plan: &Plan, turn: u64) -> anyhow::Result<Capacity> {
    let before = stack.work()?;
    let began = Instant::now();
    let calls = closed(stack, plan.callers, (plan.seed + 77 + turn, SATURATED))?;
    let seconds = began.elapsed().as_secs_f64();
    let work = stack.work()?.since(&before);
    let capacity = Capacity {
        work: work.interactive / seconds,
        requests: calls as f64 / seconds,
    };
    println!(
        "capacity: {:.0} work/s, {:.2} requests/s with {} callers",
        capacity.work, capacity.requests, plan.callers
    );
    Ok(capacity)
}

fn turn(stack: &Stack, arrivals: &Arrivals, with_batch: bool) -> anyhow::Result<Turn> {
    stack.settle()?;
    let batch = with_batch.then(|| stack.batch()).transpose()?;
    let (before, began) = (stack.work()?, Instant::now());
    let seen = open(stack, arrivals)?;
    let seconds = began.elapsed().as_secs_f64();
    let Work {
        interactive,
        background,
        busy,
    } = stack.work()?.since(&before);
    if let Some(batch) = batch {
        stack.cancel(&batch)?;
    }
    Ok(Turn {
        with_batch,
        capacity: 0.0,
        interactive: interactive / seconds,
        background: background / seconds,
        busy: busy.map(|busy| busy / seconds),
        first_token: seen.iter().map(|answer| answer.first_token * 1e3).collect(),
        gap: seen.iter().map(|answer| answer.gap * 1e3).collect(),
    })
}

impl Turn {
    fn line(&self) -> String {
        format!(
            "{:>7} batch: {} answers, ttft p50 {:6.1} ms, p99 {:6.1} ms, gap p50 {:5.1} ms, interactive {:5.0} + background {:5.0} of {:5.0} work/s; busy {:.2} + {:.2}",
            if self.with_batch { "with" } else { "without" },
            self.first_token.len(),
            quantile(&self.first_token, 0.5),
            quantile(&self.first_token, 0.99),
            quantile(&self.gap, 0.5),
            self.interactive,
            self.background,
            self.capacity,
            self.busy[0],
            self.busy[1],
        )
    }
}

impl Outcome {
    fn of(&self, with_batch: bool) -> impl Iterator<Item = &Turn> {
        self.0.iter().filter(move |turn| turn.with_batch == with_batch)
    }

    /// A quantile over all answers of turns with, or without, the batch, in milliseconds.
    fn first_token(&self, with_batch: bool, share: f64) -> f64 {
        let all: Vec<f64> = self
            .of(with_batch)
            .flat_map(|turn| turn.first_token.clone())
            .collect();
        quantile(&all, share)
    }

    fn gap(&self, with_batch: bool) -> f64 {
        let all: Vec<f64> = self.of(with_batch).flat_map(|turn| turn.gap.clone()).collect();
        quantile(&all, 0.5)
    }

    /// By how much the median time to the first token rises, as a share; the median of the rounds.
    pub fn rise(&self) -> f64 {
        let p50 = |turn: &Turn| quantile(&turn.first_token, 0.5);
        let pairs = self.of(true).zip(self.of(false));
        let rises: Vec<f64> = pairs.map(|(on, off)| p50(on) / p50(off) - 1.0).collect();
        quantile(&rises, 0.5)
    }

    /// Background work as a share of what is left; the median of the rounds.
    pub fn used(&self) -> f64 {
        let used = |turn: &Turn| turn.background / (turn.capacity - turn.interactive);
        quantile(&self.of(true).map(used).collect::<Vec<f64>>(), 0.5)
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "                   without      with");
        for (name, share) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)] {
            let (off, on) = (self.first_token(false, share), self.first_token(true, share));
            let _ = writeln!(
                out,
                "ttft {name}        {off:8.1} {on:8.1} ms   {:+.1} %",
                100.0 * (on / off - 1.0)
            );
        }
        let (off, on) = (self.gap(false), self.gap(true));
        let _ = writeln!(
            out,
            "gap p50         {off:8.1} {on:8.1} ms   {:+.1} %",
            100.0 * (on / off - 1.0)
        );
        let mean = |of: &dyn Fn(&Turn) -> f64| {
            self.of(true).map(of).sum::<f64>() / self.of(true).count().max(1) as f64
        };
        let (capacity, interactive) = (mean(&|turn| turn.capacity), mean(&|turn| turn.interactive));
        let answers = self.of(true).map(|turn| turn.first_token.len()).sum::<usize>();
        let _ = writeln!(
            out,
            "capacity {capacity:.0} work/s; interactive {interactive:.0} ({:.0} %), left {:.0}, background {:.0}; {answers} answers each way",
            100.0 * interactive / capacity,
            capacity - interactive,
            mean(&|turn| turn.background),
        );
        let _ = writeln!(
            out,
            "medians of {} rounds: ttft p50 {:+.1} %, background {:.0} % of what is left",
            self.of(true).count(),
            100.0 * self.rise(),
            100.0 * self.used(),
        );
        let _ = writeln!(
            out,
            "the engine's time with the batch: interactive {:.1} %, background {:.1} %, idle {:.1} %",
            100.0 * mean(&|turn| turn.busy[0]),
            100.0 * mean(&|turn| turn.busy[1]),
            100.0 * mean(&|turn| 1.0 - turn.busy[0] - turn.busy[1]),
        );
        out
    }
}

fn quantile(values: &[f64], share: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    let at = (values.len() as f64 * share) as usize;
    values
        .get(at.min(values.len().saturating_sub(1)))
        .copied()
        .unwrap_or(0.0)
}
