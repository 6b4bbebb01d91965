//! The day itself: events in order of time, each answered by the core.

use super::future::{CALL_US, CANCEL_US, Dice, Future, PARALLEL, price};
use super::traffic::{Model, Request, requests};
use super::{HOUR, MINUTE, Setup, oracle};
use batch::{
    Caps, Completions, Event, Flight, FlushRules, Offer, Pending, Rescue, State, Summary, Verdict, Way,
};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::fmt::Write;

const RULES: FlushRules = FlushRules {
    items: 20_000,
    bytes: 150_000_000,
    age_us: 5 * MINUTE,
    slack_part: 30,
};
const RESCUE: Rescue = Rescue {
    call_us: CALL_US,
    parallel: PARALLEL,
    margin_us: 30 * batch::SECOND,
};
/// Waiting for a batch whose chance is less than this is given up early.
const LEVEL: f64 = 0.01;
const FLEX_AGAIN: i64 = MINUTE;

/// What a request costs one way, nano-dollars.
pub(super) fn cost(request: &Request, way: Way) -> i64 {
    price(request.model, way) * request.tokens / 1000
}

/// How the day went.
#[derive(Debug, Default)]
pub struct Day {
    pub requests: usize,
    pub deferrable: usize,
    pub missed: usize,
    pub rescued: usize,
    pub batches: usize,
    pub singletons: usize,
    pub cancelled: usize,
    tokens: BTreeMap<&'static str, (i64, i64)>,
    standard_cost: i64,
    cost: i64,
    oracle_cost: i64,
    least_slack_us: i64,
}

impl Day {
    /// Of the deferrable tokens, the part that was had below the standard price.
    pub fn discounted(&self) -> f64 {
        let all: i64 = self.tokens.values().map(|(tokens, _)| tokens).sum();
        let full = self.tokens.get("standard").map_or(0, |(tokens, _)| *tokens);
        1.0 - full as f64 / all.max(1) as f64
    }

    /// Of what the deferrable requests would have cost at once.
    pub fn saving(&self) -> f64 {
        1.0 - self.cost as f64 / self.standard_cost.max(1) as f64
    }

    pub fn oracle_saving(&self) -> f64 {
        1.0 - self.oracle_cost as f64 / self.standard_cost.max(1) as f64
    }

    pub fn table(&self) -> String {
        let mut out = String::new();
        let dollars = |nanos: i64| nanos as f64 / 1e9;
        let _ = writeln!(
            out,
            "requests {}, deferrable {}, batches {} ({} of one item), cancelled {}, rescued items {}",
            self.requests, self.deferrable, self.batches, self.singletons, self.cancelled, self.rescued
        );
        let _ = writeln!(
            out,
            "{:<12} {:>14} {:>8} {:>12}",
            "way", "tokens", "share", "cost $"
        );
        let all: i64 = self.tokens.values().map(|(tokens, _)| tokens).sum();
        for (way, (tokens, cost)) in &self.tokens {
            let share = 100.0 * *tokens as f64 / all.max(1) as f64;
            let _ = writeln!(
                out,
                "{way:<12} {tokens:>14} {share:>7.2}% {:>12.2}",
                dollars(*cost)
            );
        }
        let _ = writeln!(
            out,
            "deferrable tokens at a discount {:>7.2} %",
            100.0 * self.discounted()
        );
        let _ = writeln!(
            out,
            "deadlines missed {}, least time left {:.0} s",
            self.missed,
            self.least_slack_us as f64 / 1e6
        );
        let _ = writeln!(
            out,
            "cost {:.2} $, all at once {:.2} $, oracle {:.2} $",
            dollars(self.cost),
            dollars(self.standard_cost),
            dollars(self.oracle_cost)
        );
        let _ = writeln!(
            out,
            "saving {:.2} %, oracle {:.2} %, gap {:.2} points",
            100.0 * self.saving(),
            100.0 * self.oracle_saving(),
            100.0 * (self.oracle_saving() - self.saving())
        );
        out
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Pools,
    PackEnds(usize),
    PackCancelled(usize),
    Look(usize),
    FlexTry(usize),
    Answer(usize, Way),
}

struct Pack {
    model: Model,
    items: Vec<usize>,
    submitted_us: i64,
    ends_us: i64,
    /// How far each item was when it would be answered, of the pack's whole time.
    done_at: Vec<f64>,
    cancelling: bool,
    over: bool,
}

struct Sim<'a> {
    future: Future,
    requests: &'a [Request],
    states: Vec<State>,
    pools: HashMap<(Model, u8), Vec<(usize, i64)>>,
    packs: Vec<Pack>,
    times: [Completions; 3],
    flex_room: f64,
    local_free: i64,
    heap: BinaryHeap<Reverse<(i64, Due)>>,
    dice: Dice,
    day: Day,
}

/// Simulates the day and the one after it, in which the last deadlines fall.
pub fn run(setup: &Setup) -> Day {
    let requests = requests(setup);
    let mut sim = Sim {
        future: Future::new(setup),
        requests: &requests,
        states: vec![State::Queued; requests.len()],
        pools: HashMap::new(),
        packs: Vec::new(),
        times: std::array::from_fn(|_| Completions::new(2 * HOUR)),
        flex_room: 0.5,
        local_free: 0,
        heap: BinaryHeap::new(),
        dice: Dice::new(setup.seed, 2),
        day: Day {
            requests: requests.len(),
            least_slack_us: i64::MAX,
            ..Day::default()
        },
    };
    sim.play();
    let mut day = sim.day;
    let deferrable = || requests.iter().filter(|request| request.deadline_us.is_some());
    day.deferrable = deferrable().count();
    day.standard_cost = deferrable().map(|request| cost(request, Way::Standard)).sum();
    day.oracle_cost = oracle::cheapest(&Future::new(setup), &requests);
    day
}

impl Sim<'_> {
    fn play(&mut self) {
        let mut next = 0;
        self.at(0, Due::Pools);
        loop {
            let arrives = self.requests.get(next).map_or(i64::MAX, |request| request.at_us);
            let due = self.heap.peek().map_or(i64::MAX, |Reverse((at, _))| *at);
            if arrives == i64::MAX && due > 49 * HOUR {
                return;
            }
            if arrives <= due {
                if self.requests[next].deadline_us.is_some() {
                    self.place(next, arrives);
                }
                next += 1;
            } else if let Some(Reverse((now, due))) = self.heap.pop() {
                self.happen(now, due);
            }
        }
    }

    fn at(&mut self, at: i64, due: Due) {
        self.heap.push(Reverse((at, due)));
    }

    fn happen(&mut self, now: i64, due: Due) {
        match due {
            Due::Pools => {
                self.flush(now);
                self.at(now + 10 * batch::SECOND, Due::Pools);
            }
            Due::PackEnds(pack) => self.end(pack, now, 1.0),
            Due::PackCancelled(pack) => {
                let (from, ends) = (self.packs[pack].submitted_us, self.packs[pack].ends_us);
                let part = (now - from) as f64 / (ends - from).max(1) as f64;
                self.end(pack, now, part.min(1.0));
            }
            Due::Look(pack) => self.look(pack, now),
            Due::FlexTry(item) => self.flex(item, now),
            Due::Answer(item, way) => self.answered(item, way, now),
        }
    }

    fn deadline(&self, item: usize) -> i64 {
        self.requests[item].deadline_us.unwrap_or(i64::MAX)
    }

    /// The core chooses the way.
    fn place(&mut self, item: usize, now: i64) {
        let request = &self.requests[item];
        let slack = self.deadline(item) - now;
        let need = RESCUE.needs_us(1);
        let offer = |way, in_time, leave_us| Offer {
            way,
            price: cost(request, way),
            in_time,
            leave_us,
        };
        let room = slack - need - CANCEL_US;
        let running = self.running(request.model);
        let in_time = self.times[request.model as usize].within(&running, 0, room);
        let mut offers = vec![
            offer(Way::Standard, 1.0, 0),
            offer(Way::Batch, in_time, CANCEL_US),
        ];
        match request.model {
            Model::Openai => {
                let window = if slack > 9 * HOUR { 1.0 } else { 0.0 };
                let tries = ((slack - need) / (5 * MINUTE)).clamp(0, 40);
                let room = 1.0 - (1.0 - self.flex_room).powi(i32::try_from(tries).unwrap_or(40));
                offers.push(offer(Way::Flex, room, 5 * MINUTE));
                offers.push(offer(Way::Background, window, CANCEL_US));
            }
            Model::Anthropic => {}
            Model::Open => {
                let ends = self.future.local_ends(self.local_free.max(now), request.tokens);
                let fits = ends <= self.deadline(item) - need;
                offers.push(offer(Way::Local, if fits { 0.99 } else { 0.0 }, 0));
            }
        }
        match batch::choose(&offers, slack, need).way {
            Way::Batch => {
                let class = batch::slack_class(slack);
                self.pools
                    .entry((request.model, class))
                    .or_default()
                    .push((item, now));
            }
            Way::Flex => self.flex(item, now),
            Way::Local => {
                self.submit(item);
                self.local_free = self.future.local_ends(self.local_free.max(now), request.tokens);
                self.at(self.local_free, Due::Answer(item, Way::Local));
            }
            Way::Background | Way::Standard => self.standard(item, now),
        }
    }

    fn submit(&mut self, item: usize) {
        if let Ok(state) = self.states[item].after(Event::Submit) {
            self.states[item] = state;
        }
    }

    fn standard(&mut self, item: usize, now: i64) {
        self.submit(item);
        let took = self.future.standard(self.requests[item].model, item);
        self.at(now + took, Due::Answer(item, Way::Standard));
    }

    /// Flex, again and again while the synchronous tier would still be in time.
    fn flex(&mut self, item: usize, now: i64) {
        self.submit(item);
        let last = self.deadline(item) - RESCUE.needs_us(1);
        let answer = self.future.flex(now).filter(|took| now + took <= last);
        let room = if self.future.flex(now).is_some() { 1.0 } else { 0.0 };
        self.flex_room = 0.95 * self.flex_room + 0.05 * room;
        match answer {
            Some(took) => self.at(now + took, Due::Answer(item, Way::Flex)),
            None if now + FLEX_AGAIN < last => self.at(now + FLEX_AGAIN, Due::FlexTry(item)),
            None => self.standard(item, now),
        }
    }

    fn running(&self, model: Model) -> Vec<i64> {
        let ages = self.packs.iter().rev().take(200);
        let newest = self.packs.last().map_or(0, |pack| pack.submitted_us);
        ages.filter(|pack| !pack.over && pack.model == model)
            .map(|pack| newest - pack.submitted_us)
            .collect()
    }

    fn flush(&mut self, now: i64) {
        let keys: Vec<(Model, u8)> = self.pools.keys().copied().collect();
        for key in keys {
            let pool = &self.pools[&key];
            let summary = Summary {
                items: pool.len() as u64,
                bytes: pool
                    .iter()
                    .map(|(item, _)| self.requests[*item].tokens as u64 * 4)
                    .sum(),
                oldest_us: pool.iter().map(|(_, since)| *since).min().unwrap_or(now),
                earliest_deadline_us: pool
                    .iter()
                    .map(|(item, _)| self.deadline(*item))
                    .min()
                    .unwrap_or(i64::MAX),
            };
            if batch::flush(&summary, &RULES, now).is_none() {
                continue;
            }
            let pool = self.pools.remove(&key).unwrap_or_default();
            let pending: Vec<Pending> = pool
                .iter()
                .map(|(item, _)| Pending {
                    bytes: self.requests[*item].tokens as u64 * 4,
                    deadline_us: self.deadline(*item),
                    prefix: self.requests[*item].prefix,
                })
                .collect();
            for positions in batch::cut(&pending, Caps::OPENAI) {
                let items = positions.iter().map(|position| pool[*position].0).collect();
                self.send(key.0, items, now);
            }
        }
    }

    fn send(&mut self, model: Model, items: Vec<usize>, now: i64) {
        for item in &items {
            for event in [Event::Pack, Event::Submit] {
                if let Ok(state) = self.states[*item].after(event) {
                    self.states[*item] = state;
                }
            }
        }
        let ends_us = self.future.batch_ends(model, now);
        let done_at = items.iter().map(|_| 0.4 + 0.6 * self.dice.unit()).collect();
        self.day.batches += 1;
        self.day.singletons += usize::from(items.len() == 1);
        self.packs.push(Pack {
            model,
            items,
            submitted_us: now,
            ends_us,
            done_at,
            cancelling: false,
            over: false,
        });
        let pack = self.packs.len() - 1;
        self.at(ends_us, Due::PackEnds(pack));
        self.look(pack, now);
    }

    /// The guard judges.
    fn look(&mut self, pack: usize, now: i64) {
        if self.packs[pack].over {
            return;
        }
        let running: Vec<i64> = self
            .packs
            .iter()
            .filter(|other| !other.over && other.model == self.packs[pack].model)
            .map(|other| now - other.submitted_us)
            .collect();
        let flown = &self.packs[pack];
        let flight = Flight {
            submitted_us: flown.submitted_us,
            deadline_us: flown
                .items
                .iter()
                .map(|item| self.deadline(*item))
                .min()
                .unwrap_or(i64::MAX),
            open: flown.items.len(),
            cancel_us: CANCEL_US,
            cancelling: flown.cancelling,
        };
        let times = (&self.times[flown.model as usize], &running[..]);
        match batch::watch(&flight, times, &RESCUE, LEVEL, now) {
            Verdict::Wait { until_us } => self.at(until_us.min(now + 5 * MINUTE), Due::Look(pack)),
            Verdict::Cancel => {
                self.packs[pack].cancelling = true;
                self.day.cancelled += 1;
                self.at(now + CANCEL_US - batch::SECOND, Due::PackCancelled(pack));
            }
            Verdict::Rescue => self.end(pack, now, 0.0),
        }
    }

    /// The pack is over; what was answered by then counts, the rest goes on its way again or is rescued.
    fn end(&mut self, pack: usize, now: i64, part: f64) {
        if std::mem::replace(&mut self.packs[pack].over, true) {
            return;
        }
        let (model, submitted) = (self.packs[pack].model, self.packs[pack].submitted_us);
        if part >= 1.0 {
            self.times[model as usize].ended(now - submitted);
        }
        let items = std::mem::take(&mut self.packs[pack].items);
        let done_at = std::mem::take(&mut self.packs[pack].done_at);
        for (item, done_at) in items.into_iter().zip(done_at) {
            if done_at <= part {
                self.answered(item, Way::Batch, now);
            } else if let Ok(state) = self.states[item].after(Event::Retry) {
                self.states[item] = state;
                self.day.rescued += 1;
                self.place(item, now);
            }
        }
    }

    fn answered(&mut self, item: usize, way: Way, now: i64) {
        let Ok(state) = self.states[item].after(Event::Succeed) else {
            return;
        };
        self.states[item] = state;
        let request = &self.requests[item];
        let left = self.deadline(item) - now;
        self.day.least_slack_us = self.day.least_slack_us.min(left);
        self.day.missed += usize::from(left < 0);
        let cost = cost(request, way);
        self.day.cost += cost;
        let sums = self.day.tokens.entry(way.as_str()).or_default();
        sums.0 += request.tokens;
        sums.1 += cost;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batchday::Stall;

    #[test]
    fn a_small_day_answers_everything_once_and_in_time() {
        let day = run(&Setup {
            requests: 4_000,
            seed: 3,
            stall: Stall::Openai,
        });
        assert_eq!(day.missed, 0);
        let answered: i64 = day.tokens.values().map(|(tokens, _)| tokens).sum();
        let asked: i64 = requests(&Setup {
            requests: 4_000,
            seed: 3,
            stall: Stall::None,
        })
        .iter()
        .filter(|request| request.deadline_us.is_some())
        .map(|request| request.tokens)
        .sum();
        assert_eq!(answered, asked);
        assert!(day.saving() <= day.oracle_saving());
    }
}
