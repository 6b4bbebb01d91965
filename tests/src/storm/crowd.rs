//! Everyone who calls: so many at once, or so many a second, and what they saw.

use super::Mix;
use super::callers::{Outcome, Request, call};
use super::dice::Dice;
use super::nodes::Node;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

/// How often a caller asks again.
const RETRIES: usize = 4;

/// How requests come.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// So many at once; the next when one is over.
    AtOnce(usize),
    /// So many a second, however long each takes.
    EverySecond(u32),
}

/// Who calls, and whom.
pub struct Crowd {
    pub nodes: Arc<Vec<Node>>,
    pub count: usize,
    pub pace: Pace,
    pub keys: usize,
    /// Of each team, in nano-dollars.
    pub limit: i64,
    pub mix: Mix,
    /// They ask again when the store is away.
    pub insists: bool,
    pub seed: u64,
    pub done: Arc<AtomicUsize>,
    /// What is going on; requests are counted by it.
    pub phase: Arc<AtomicUsize>,
}

/// What the requests that began in one phase came to.
#[derive(Clone, Debug, Default)]
pub struct Fate {
    pub requests: usize,
    /// Anything but a whole answer with 200.
    pub failed: usize,
    pub first_failure: Option<String>,
    /// Milliseconds of each answer.
    pub took_ms: Vec<u64>,
}

/// What callers saw.
#[derive(Debug, Default)]
pub struct Tally {
    pub by_status: BTreeMap<u16, usize>,
    pub left: usize,
    pub broken: usize,
    pub unreachable: usize,
    /// Answers that said to ask again, since the store was away; they were.
    pub put_off: usize,
    /// Refused by a budget of which less than nine tenths had been spent.
    pub starved: usize,
    /// What the first of them was told.
    pub starved_says: Option<String>,
    pub refused_by_budget: usize,
    pub by_phase: BTreeMap<usize, Fate>,
}

impl Crowd {
    /// Calls until all have been answered.
    pub async fn call(self) -> Tally {
        let mut dice = Dice::new(self.seed);
        let mut tally = Tally::default();
        let mut tasks: JoinSet<(usize, usize, Outcome)> = JoinSet::new();
        let mut tick = match self.pace {
            Pace::AtOnce(_) => None,
            Pace::EverySecond(rate) => Some(interval(Duration::from_secs(1) / rate.max(1))),
        };
        if let Some(tick) = &mut tick {
            tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        }
        for _ in 0..self.count {
            match (&mut tick, self.pace) {
                (Some(tick), _) => drop(tick.tick().await),
                (None, Pace::AtOnce(most)) if tasks.len() >= most => {
                    self.note(&mut tally, tasks.join_next().await.unwrap().unwrap());
                }
                (None, _) => {}
            }
            while let Some(over) = tasks.try_join_next() {
                self.note(&mut tally, over.unwrap());
            }
            let request = self.any_request(&mut dice);
            let first = dice.roll(self.nodes.len() as u64) as usize;
            let (nodes, phase) = (self.nodes.clone(), self.phase.load(Ordering::SeqCst));
            let insists = self.insists;
            tasks.spawn(async move {
                let (put_off, outcome) = if insists {
                    insist(&nodes, first, &request).await
                } else {
                    (0, reach(&nodes, first, &request).await)
                };
                (phase, put_off, outcome)
            });
        }
        while let Some(over) = tasks.join_next().await {
            self.note(&mut tally, over.unwrap());
        }
        tally
    }

    fn any_request(&self, dice: &mut Dice) -> Request {
        let mut at = dice.roll(100) as u32;
        let found = self.mix.iter().find(|(_, share)| {
            let here = at < *share;
            at = at.saturating_sub(*share);
            here
        });
        let even = self.mix.len() == 1;
        let leaves = !even && dice.roll(100) < 8;
        Request {
            key: dice.roll(self.keys as u64) as usize,
            model: found.map_or(self.mix[0].0, |(model, _)| model),
            stream: dice.roll(2) == 0,
            leaves_after: leaves.then(|| Duration::from_millis(dice.roll(300))),
        }
    }

    fn note(&self, tally: &mut Tally, (phase, put_off, outcome): (usize, usize, Outcome)) {
        self.done.fetch_add(1, Ordering::SeqCst);
        tally.put_off += put_off;
        let fate = tally.by_phase.entry(phase).or_default();
        fate.requests += 1;
        let mut failed = |how: &dyn Fn() -> String| {
            fate.failed += 1;
            fate.first_failure.get_or_insert_with(how);
        };
        match outcome {
            Outcome::Unreachable => {
                tally.unreachable += 1;
                failed(&|| "nobody listened".into());
            }
            Outcome::Broken => {
                tally.broken += 1;
                failed(&|| "the connection ended before the answer did".into());
            }
            Outcome::Left => tally.left += 1,
            Outcome::Answered {
                status, body, took, ..
            } => {
                *tally.by_status.entry(status).or_default() += 1;
                if status == 200 {
                    fate.took_ms.push(took.as_millis() as u64);
                } else {
                    failed(&|| format!("{status} {body}"));
                }
                if status == 429 && body.contains("budget") {
                    tally.refused_by_budget += 1;
                    if spent(&body).unwrap_or(0) < self.limit / 10 * 9 {
                        tally.starved += 1;
                        tally.starved_says.get_or_insert(body);
                    }
                }
            }
        }
    }
}

/// As SDKs do: asks again, when told to, while the gateway says that its store is away.
async fn insist(nodes: &[Node], first: usize, request: &Request) -> (usize, Outcome) {
    let mut put_off = 0;
    loop {
        match reach(nodes, first + put_off, request).await {
            Outcome::Answered {
                status: 503,
                retry_after: Some(after),
                ..
            } if put_off < RETRIES => {
                put_off += 1;
                sleep(after).await;
            }
            outcome => return (put_off, outcome),
        }
    }
}

/// The node of choice, or the next that is up.
async fn reach(nodes: &[Node], first: usize, request: &Request) -> Outcome {
    for attempt in 0..400 {
        let node = &nodes[(first + attempt) % nodes.len()];
        if let Some(address) = node.address() {
            match call(address, request).await {
                Outcome::Unreachable => {}
                outcome => return outcome,
            }
        }
        sleep(Duration::from_millis(25)).await;
    }
    Outcome::Unreachable
}

/// What a refusal says has been spent: `$0.10 of $0.20 spent`, in nano-dollars.
fn spent(body: &str) -> Option<i64> {
    let (before, _) = body.split_once(" of $")?;
    let (_, dollars) = before.rsplit_once('$')?;
    let (whole, fraction) = dollars.split_once('.')?;
    Some(whole.parse::<i64>().ok()? * 1_000_000_000 + format!("{fraction:0<9}").parse::<i64>().ok()?)
}
