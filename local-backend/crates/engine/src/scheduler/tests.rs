//! The scheduler against a machine that computes nothing: random arrivals, cancels and cache sizes.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

/// What a request still wants.
#[derive(Debug)]
struct Wish {
    job: Job,
    output: usize,
}

/// Runs plans and keeps count.
struct Machine {
    scheduler: Scheduler,
    left: HashMap<u64, usize>,
    produced: HashMap<u64, Vec<u32>>,
    served: HashMap<Arc<str>, usize>,
    finished: Vec<u64>,
    computed: usize,
    preempted: usize,
    /// Seconds per token of the machine, and per step.
    rates: (f64, f64),
    longest: f64,
    /// Every so many background steps is suspended; 0: none.
    suspends: usize,
    /// The rows of the step that was suspended last: tokens, first, blocks.
    suspended: Vec<(Vec<u32>, usize, Vec<u32>)>,
    /// Steps that were resumed.
    resumed: usize,
}

impl Machine {
    fn new(blocks: usize, running: usize) -> Self {
        let limits = Limits {
            running,
            ..Limits::default()
        };
        Self {
            scheduler: Scheduler::new(blocks, limits),
            left: HashMap::new(),
            produced: HashMap::new(),
            served: HashMap::new(),
            finished: Vec::new(),
            computed: 0,
            preempted: 0,
            rates: (0.001, 0.004),
            longest: 0.0,
            suspends: 0,
            suspended: Vec::new(),
            resumed: 0,
        }
    }

    fn rows(&self, plan: &Plan) -> Vec<(Vec<u32>, usize, Vec<u32>)> {
        let row = |part: &Part| {
            let (tokens, first, blocks) = self.scheduler.row(part, 0).expect("a planned row");
            (tokens.to_vec(), first, blocks.to_vec())
        };
        plan.parts.iter().map(row).collect()
    }

    /// Suspends the step if it is its turn to be. What is resumed is as it was.
    fn suspend(&mut self, plan: &Plan) -> bool {
        let rows = self.rows(plan);
        if plan.suspended.is_some() {
            assert_eq!(rows, self.suspended);
            self.resumed += 1;
        }
        let is_suspended = plan.class == Class::Background
            && self.computed.checked_rem(self.suspends) == Some(0)
            && plan.suspended.unwrap_or_default() < Duration::from_millis(9);
        if is_suspended {
            self.suspended = rows;
            self.scheduler.suspended(plan.clone(), Duration::from_millis(3));
        }
        is_suspended
    }

    fn submit(&mut self, wish: Wish) {
        self.left.insert(wish.job.id, wish.output);
        self.produced.insert(wish.job.id, wish.job.tokens.clone());
        self.scheduler.submit(wish.job);
    }

    fn cancel(&mut self, id: u64) {
        if self.left.remove(&id).is_some() {
            assert!(self.scheduler.remove(id));
        }
    }

    /// One step; false when there was nothing to do.
    fn step(&mut self) -> bool {
        let plan = self.scheduler.plan();
        self.preempted += plan.preempted;
        if plan.parts.is_empty() {
            let (running, waiting) = self.scheduler.counts();
            assert_eq!(
                (running, waiting),
                (0, 0),
                "an empty step while requests are there"
            );
            return false;
        }
        if self.suspend(&plan) {
            return true;
        }
        let took = self.rates.1 + self.rates.0 * plan.work().tokens as f64;
        self.longest = self.longest.max(took);
        let shares = self.scheduler.ran(&plan, Duration::from_secs_f64(took));
        let sum: Duration = shares.iter().sum();
        let before = plan.suspended.unwrap_or_default();
        assert!((sum.saturating_sub(before).as_secs_f64() - took).abs() < 1e-6);
        for part in &plan.parts {
            self.part(part);
        }
        true
    }

    fn part(&mut self, part: &Part) {
        self.computed += part.count;
        let (tokens, first, blocks) = self.scheduler.row(part, 0).expect("a planned row");
        // A request's tokens are computed in order, as they were produced, into blocks of its own.
        assert_eq!(tokens, &self.produced[&part.id][first..first + part.count]);
        assert!(blocks.len() * BLOCK_TOKENS >= first + part.count + part.guesses);
        if self.scheduler.suspended.is_some() {
            let written = &blocks[first / BLOCK_TOKENS..(first + part.count).div_ceil(BLOCK_TOKENS)];
            let mut kept = self.suspended.iter().flat_map(|(_, _, blocks)| blocks);
            assert!(kept.all(|block| !written.contains(block)), "it is to be resumed");
        }
        if !part.is_last {
            self.scheduler.computed(part, &[]);
            return;
        }
        let token = (part.id as u32).wrapping_mul(31) + self.produced[&part.id].len() as u32;
        self.scheduler.computed(part, &[token]);
        let left = self.left.get_mut(&part.id).expect("a live request");
        *left -= 1;
        let tenant = self
            .scheduler
            .running(part.id)
            .expect("it runs")
            .job
            .tenant
            .clone();
        *self.served.entry(tenant).or_default() += 1;
        self.produced.get_mut(&part.id).expect("known").push(token);
        if *left == 0 {
            self.left.remove(&part.id);
            self.finished.push(part.id);
            assert!(self.scheduler.remove(part.id));
        }
    }

    fn run(&mut self) {
        let mut steps = 0;
        while self.step() {
            steps += 1;
            assert!(steps < 200_000, "it does not end");
        }
    }

    /// Nothing is left behind.
    fn is_clean(&self) -> bool {
        let blocks = self.scheduler.blocks();
        self.scheduler.counts() == (0, 0) && blocks.free() == blocks.total()
    }
}

fn job(id: u64, tenant: &str, tokens: std::ops::Range<u32>) -> Job {
    Job {
        id,
        tenant: tenant.into(),
        weight: 1,
        class: Class::Foreground,
        priority: 0,
        deadline: None,
        tokens: tokens.collect(),
    }
}

fn wish(job: Job, output: usize) -> Wish {
    Wish { job, output }
}

/// A random request: of one of three tenants, some with a beginning in common.
fn wishes(count: usize) -> impl Strategy<Value = Vec<(Wish, usize, bool)>> {
    let one = (
        1u32..400,
        1usize..40,
        0usize..3,
        0usize..4,
        any::<(bool, bool, bool)>(),
    );
    let many = proptest::collection::vec(one, 1..count);
    many.prop_map(|drawn| {
        let make = |(at, (length, output, tenant, pause, flags)): (usize, _)| {
            let (is_background, is_common, is_cancelled): (bool, bool, bool) = flags;
            let start = if is_common { 0 } else { at as u32 * 1000 };
            let mut job = job(at as u64 + 1, ["a", "b", "c"][tenant], start..start + length);
            if is_background {
                job.class = Class::Background;
            }
            (wish(job, output), pause, is_cancelled)
        };
        drawn.into_iter().enumerate().map(make).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever comes and goes, everybody who stays gets all tokens, nobody waits for ever, and nothing is left behind.
    #[test]
    fn every_request_is_served_and_leaves_nothing(wishes in wishes(40), blocks in 30usize..80, running in 1usize..9, suspends in 0usize..4) {
        let mut machine = Machine::new(blocks, running);
        machine.suspends = suspends;
        let mut stayed = Vec::new();
        for (wish, pause, is_cancelled) in wishes {
            let id = wish.job.id;
            machine.submit(wish);
            (0..pause).for_each(|_| { machine.step(); });
            if is_cancelled {
                machine.cancel(id / 2 + 1);
                machine.cancel(id);
            }
            stayed.push(id);
        }
        stayed.retain(|id| machine.left.contains_key(id) || machine.finished.contains(id));
        machine.run();
        machine.finished.sort_unstable();
        prop_assert_eq!(machine.finished.clone(), stayed);
        prop_assert!(machine.is_clean());
    }

    /// Background parts are in a step only beside answers that go on, after them, and only while it stays short; a prompt
    /// is read, and a request let in, without them.
    #[test]
    fn background_takes_nothing_from_others(wishes in wishes(30)) {
        let mut machine = Machine::new(60, 4);
        let mut background = Vec::new();
        for (wish, pause, _) in wishes {
            if wish.job.class == Class::Background {
                background.push(wish.job.id);
            }
            machine.submit(wish);
            for _ in 0..pause {
                let plan = machine.scheduler.plan();
                let is_background = |part: &&Part| background.contains(&part.id);
                let others: Vec<u64> = machine.left.keys().copied().filter(|id| !background.contains(id)).collect();
                let riders: Vec<&Part> = plan.parts.iter().filter(is_background).collect();
                prop_assert!(riders.iter().all(|part| part.class == Class::Background));
                if !others.is_empty() && !riders.is_empty() {
                    prop_assert_eq!(plan.class, Class::Foreground);
                    let first = plan.parts.iter().filter(|part| !background.contains(&part.id));
                    prop_assert!(first.clone().all(|part| part.count == 1 && part.is_last), "{plan:?}");
                    prop_assert_eq!(first.count(), others.len(), "somebody else waits: {:?}", plan);
                    let work = |of: &[&Part]| of.iter().fold(Work::default(), |sum, part| sum.plus(part.work()));
                    let own: Vec<&Part> = plan.parts.iter().filter(|part| !background.contains(&part.id)).collect();
                    let pace = machine.scheduler.pace();
                    prop_assert!(pace.expected(plan.work()) <= pace.expected(work(&own)) * 1.051, "{plan:?}");
                }
                machine.step();
            }
        }
    }
}

#[test]
fn five_hundred_random_cancels_leave_no_block_and_no_slot() {
    let mut machine = Machine::new(64, 8);
    let mut random = 7u64;
    let mut next = move |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % below
    };
    let mut alive = Vec::new();
    let (mut cancelled, mut id) = (0, 0);
    while cancelled < 500 {
        id += 1;
        let start = next(3) as u32 * 100;
        machine.submit(wish(
            job(id, "a", start..start + 1 + next(300) as u32),
            1 + next(30) as usize,
        ));
        alive.push(id);
        (0..next(3)).for_each(|_| {
            machine.step();
        });
        alive.retain(|id| machine.left.contains_key(id));
        if !alive.is_empty() && next(10) > 0 {
            let at = next(alive.len() as u64) as usize;
            machine.cancel(alive.remove(at));
            cancelled += 1;
        }
    }
    alive.into_iter().for_each(|id| machine.cancel(id));
    assert!(machine.is_clean());
    assert_eq!(machine.scheduler.blocks().free(), 64);
}

#[test]
fn shares_follow_weights() {
    let mut machine = Machine::new(2000, 8);
    let mut id = 0;
    let mut random = 1u64;
    // Both always have requests waiting; those of the lighter one are longer.
    let mut refill = |machine: &mut Machine| {
        for (tenant, weight, longest) in [("light", 1, 60), ("heavy", 3, 20)] {
            let waits = machine
                .scheduler
                .waiting
                .iter()
                .filter(|entry| &*entry.job.tenant == tenant);
            for _ in waits.count()..4 {
                id += 1;
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let output = 1 + (random >> 33) as usize % longest;
                let start = id as u32 * 100;
                let job = Job {
                    weight,
                    ..job(id, tenant, start..start + 40)
                };
                machine.submit(wish(job, output));
            }
        }
    };
    for _ in 0..20_000 {
        refill(&mut machine);
        machine.step();
    }
    let counted = |tenant: &str| {
        machine
            .scheduler
            .tenants
            .counter(Class::Foreground, &tenant.into()) as f64
    };
    // Counters are service over weight: equal counters are shares of one to three.
    let ratio = counted("heavy") / counted("light");
    assert!((ratio - 1.0).abs() < 0.01, "{ratio}");
    assert!(machine.served["heavy"] > machine.served["light"]);
}

#[test]
fn who_was_idle_saves_nothing_up_and_owes_nothing() {
    let mut machine = Machine::new(500, 2);
    for id in 1..20 {
        machine.submit(wish(job(id, "busy", id as u32 * 100..id as u32 * 100 + 20), 20));
    }
    (0..100).for_each(|_| {
        machine.step();
    });
    for id in 101..120 {
        machine.submit(wish(job(id, "late", id as u32 * 100..id as u32 * 100 + 20), 20));
    }
    machine.served.clear();
    (0..200).for_each(|_| {
        machine.step();
    });
    let (busy, late) = (machine.served["busy"] as f64, machine.served["late"] as f64);
    assert!((late / busy - 1.0).abs() < 0.25, "{late} to {busy}");
}

#[test]
fn priority_then_deadline_then_arrival() {
    let mut machine = Machine::new(100, 1);
    let second = Duration::from_secs(1);
    for (id, priority, deadline) in [
        (1, 0, None),
        (2, 0, Some(9 * second)),
        (3, 0, Some(second)),
        (4, -1, None),
    ] {
        let start = id as u32 * 100;
        let job = Job {
            priority,
            deadline,
            ..job(id, "a", start..start + 5)
        };
        machine.submit(wish(job, 3));
    }
    machine.run();
    assert_eq!(machine.finished, [4, 3, 2, 1]);
}

#[test]
fn an_arrival_pushes_background_aside_within_a_step_and_it_goes_on_later() {
    let mut machine = Machine::new(12, 8);
    let background = Job {
        class: Class::Background,
        ..job(1, "a", 0..100)
    };
    machine.submit(wish(background, 50));
    (0..8).for_each(|_| {
        machine.step();
    });
    // It takes blocks that the background request holds.
    machine.submit(wish(job(2, "b", 1000..1150), 4));
    let plan = machine.scheduler.plan();
    assert!(plan.parts.iter().all(|part| part.id == 2), "{plan:?}");
    assert_eq!((plan.class, plan.preempted), (Class::Foreground, 1));
    machine.run();
    assert_eq!(machine.finished, [2, 1]);
    assert!(machine.is_clean());
}

#[test]
fn a_common_beginning_is_computed_once_even_when_all_come_at_once() {
    let mut machine = Machine::new(500, 32);
    for id in 1..=8 {
        let mut job = job(id, "a", 0..640);
        job.tokens.push(1000 + id as u32);
        machine.submit(wish(job, 2));
    }
    machine.run();
    assert_eq!(machine.finished.len(), 8);
    assert!(
        machine.computed < 640 + 8 * 20,
        "{} tokens computed",
        machine.computed
    );
}

#[test]
fn with_too_few_blocks_the_oldest_get_on_and_all_end() {
    let mut machine = Machine::new(20, 8);
    for id in 1..=6 {
        machine.submit(wish(job(id, "a", id as u32 * 1000..id as u32 * 1000 + 30), 120));
    }
    machine.run();
    assert!(machine.preempted > 0);
    assert_eq!(machine.finished.len(), 6);
    assert_eq!(machine.finished[0], 1);
    assert!(machine.is_clean());
}

#[test]
fn decodes_come_first_and_prompts_share_what_time_is_left() {
    let mut machine = Machine::new(1000, 32);
    for id in 1..=4 {
        machine.submit(wish(job(id, "a", id as u32 * 100..id as u32 * 100 + 20), 1000));
    }
    (0..60).for_each(|_| {
        machine.step();
    });
    machine.submit(wish(job(9, "b", 10_000..13_400), 1));
    machine.longest = 0.0;
    while machine.left.contains_key(&9) {
        let plan = machine.scheduler.plan();
        let decodes = plan.parts.iter().filter(|part| part.id < 9).count();
        assert_eq!(decodes, 4, "answers go on in every step");
        machine.step();
    }
    assert!(machine.longest <= 0.050, "{} s", machine.longest);
}

#[test]
fn right_guesses_are_kept_and_wrong_ones_cost_nothing_else() {
    let mut scheduler = Scheduler::new(10, Limits::default());
    scheduler.submit(job(1, "a", 0..15));
    let plan = scheduler.plan();
    scheduler.computed(&plan.parts[0], &[15]);
    scheduler.guess(1, vec![16, 17, 18]);
    let plan = scheduler.plan();
    let part = plan.parts[0];
    assert_eq!((part.first, part.count, part.guesses), (15, 1, 3));
    assert_eq!(
        scheduler.row(&part, 2).map(|row| (row.0.to_vec(), row.1)),
        Some((vec![17], 17))
    );
    // The first guess was right, the second was not: 16 was, then 99 came.
    scheduler.computed(&part, &[16, 99]);
    assert_eq!(scheduler.tokens(1)[14..], [14, 15, 16, 99]);
    let part = scheduler.plan().parts[0];
    assert_eq!((part.first, part.count, part.guesses), (17, 1, 0));
    assert!(scheduler.remove(1));
    assert_eq!(scheduler.blocks().free(), 10);
}

fn background(id: u64, tokens: std::ops::Range<u32>) -> Job {
    Job {
        class: Class::Background,
        ..job(id, "night", tokens)
    }
}

#[test]
fn background_rides_where_rows_are_cheap_and_never_with_a_prompt() {
    let mut machine = Machine::new(4000, 64);
    // A card: 5 ms to read the weights, a hundredth of a millisecond for a row.
    machine.rates = (0.000_01, 0.005);
    for id in 10..30 {
        machine.submit(wish(
            background(id, id as u32 * 1000..id as u32 * 1000 + 100),
            400,
        ));
    }
    (0..100).for_each(|_| assert!(machine.step()));
    machine.submit(wish(job(1, "day", 0..20), 300));
    (0..10).for_each(|_| assert!(machine.step()));
    let before = machine.served[&Arc::from("night")];
    machine.longest = 0.0;
    (0..50).for_each(|_| assert!(machine.step()));
    let rode = machine.served[&Arc::from("night")] - before;
    assert!(rode >= 50 * 15, "{rode} tokens rode along");
    assert!(machine.longest <= 0.0055, "{} s", machine.longest);
    machine.submit(wish(job(2, "day", 500_000..500_400), 10));
    while machine.produced[&2].len() == 400 {
        let plan = machine.scheduler.plan();
        assert!(
            plan.parts.iter().all(|part| part.class == Class::Foreground),
            "{plan:?}"
        );
        machine.step();
    }
    machine.run();
    assert!(machine.is_clean());
}

#[test]
fn a_suspended_step_goes_on_after_others_unless_who_is_in_it_is_not_as_it_was() {
    let mut machine = Machine::new(100, 8);
    machine.submit(wish(background(1, 0..400), 4));
    machine.submit(wish(background(2, 1000..1400), 4));
    let suspend = |machine: &mut Machine| {
        let plan = machine.scheduler.plan();
        machine
            .scheduler
            .suspended(plan.clone(), Duration::from_millis(7));
        plan
    };
    let plan = suspend(&mut machine);
    machine.submit(wish(job(3, "day", 2000..2020), 3));
    while machine.finished.is_empty() {
        assert!(machine.step());
    }
    assert_eq!(suspend(&mut machine).parts, plan.parts);
    let resumed = machine.scheduler.plan();
    assert_eq!(
        (&resumed.parts, resumed.suspended, resumed.admitted.len()),
        (&plan.parts, Some(Duration::from_millis(14)), 0)
    );
    machine.scheduler.not_begun(resumed);
    assert_eq!(
        machine.scheduler.plan().suspended,
        Some(Duration::from_millis(14))
    );
    // It was taken and came to nothing; then somebody of it leaves.
    suspend(&mut machine);
    machine.cancel(1);
    assert_eq!(machine.scheduler.plan().suspended, None);
    // The same where its blocks go to somebody else.
    suspend(&mut machine);
    machine.submit(wish(job(4, "day", 3000..4580), 3));
    machine.step();
    assert_eq!(machine.preempted, 1);
    machine.run();
    assert_eq!(machine.finished, [3, 4, 2]);
    assert!(machine.is_clean());
}
