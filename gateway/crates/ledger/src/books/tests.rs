//! Nodes, their crashes and their store, in any order: the books are run against a model of the store's contract.

use super::*;
use crate::budget::{BudgetSpec, Scope};
use crate::window::Period;
use exchange::BackendClass;
use proptest::prelude::*;
use std::collections::BTreeSet;

const NOW: i64 = 1_795_532_400_000_000;
const LIMIT: i64 = 10_000;

fn money(nanos: i64) -> Money {
    Money::from_nanos(nanos)
}

fn account(key: &str) -> AccountPath {
    AccountPath {
        org: "acme".into(),
        team: Some("search".into()),
        workflow: None,
        key: Some(key.into()),
    }
}

fn definitions() -> Vec<Budget> {
    let spec = |limit, scope| BudgetSpec {
        limit: money(limit),
        period: Period::Month,
        scope,
        ..BudgetSpec::default()
    };
    let team = AccountPath {
        key: None,
        ..account("-")
    };
    let frontier = Scope {
        classes: vec![BackendClass::Frontier],
        ..Scope::default()
    };
    vec![
        Budget::new(team.clone(), spec(LIMIT, Scope::default())),
        Budget::new(team, spec(LIMIT / 2, frontier)),
        Budget::new(account("ci"), spec(LIMIT / 3, Scope::default())),
    ]
}

const fn target(class: BackendClass) -> Target<'static> {
    Target {
        model: "m",
        model_asked: "auto",
        class,
    }
}

#[derive(Clone, Copy, Default)]
struct Lease {
    taken: i64,
    used: i64,
    written_off: i64,
}

impl Lease {
    fn left(self) -> i64 {
        (self.taken - self.used).max(0)
    }
}

#[derive(Default)]
struct WindowRow {
    limit: i64,
    needed_us: i64,
    spent: i64,
    leased: i64,
    leases: HashMap<usize, Lease>,
}

/// What the store promises, without SQL.
#[derive(Default)]
struct StoreModel {
    windows: HashMap<CellName, WindowRow>,
    limits: HashMap<Arc<str>, i64>,
    posted: BTreeSet<u64>,
    charged: i64,
    /// What providers billed beyond what was held.
    excess: i64,
    lapsed: BTreeSet<usize>,
}

impl StoreModel {
    fn row(&mut self, cell: &CellName) -> &mut WindowRow {
        let limit = self.limits[&cell.budget];
        self.windows.entry(cell.clone()).or_insert_with(|| WindowRow {
            limit,
            ..WindowRow::default()
        })
    }

    fn lease(&mut self, node: usize, asks: &[LeaseAsk], (nodes, now_us): (i64, i64)) -> Vec<LeaseState> {
        let one = |ask: &LeaseAsk| {
            let row = self.row(&ask.cell);
            let lease = row.leases.entry(node).or_default();
            lease.taken = lease.taken.max(lease.used);
            let back = ask.give_back.nanos().min(lease.taken - lease.used).max(0);
            let free = row.limit - row.spent - row.leased + back;
            let (want, least) = (ask.want.nanos().max(ask.least.nanos()), ask.least.nanos());
            let grant = if want == 0 || free < least {
                0
            } else {
                want.min(least.max(free / (2 * nodes))).max(0)
            };
            if least > 0 && grant == 0 && row.leased > back {
                row.needed_us = now_us;
            }
            lease.taken += grant - back;
            row.leased += grant - back;
            LeaseState {
                cell: ask.cell.clone(),
                taken: money(lease.taken),
                used: money(lease.used),
                limit: money(row.limit),
                spent: money(row.spent),
                leased: money(row.leased),
            }
        };
        asks.iter().map(one).collect()
    }

    fn needed(&self, now_us: i64) -> Vec<(String, i64)> {
        let lately = |(_, row): &(&CellName, &WindowRow)| row.needed_us > now_us - 3_000_000;
        let name = |(cell, _): (&CellName, &WindowRow)| (cell.budget.to_string(), cell.window.starts_us);
        self.windows.iter().filter(lately).map(name).collect()
    }

    fn post(&mut self, node: usize, posting: &Pending) {
        if !self.posted.insert(posting.request) {
            return;
        }
        self.charged += posting.charge;
        for post in &posting.posts {
            let amount = post.amount.nanos();
            let row = self.row(&post.cell);
            let lease = row.leases.entry(node).or_default();
            let due = if posting.late { 0 } else { amount };
            let leased = due.min(lease.left());
            let off = (due - leased + amount - due).min(lease.written_off).max(0);
            lease.used += due - off.min(due - leased);
            lease.written_off -= off;
            row.leased -= leased;
            row.spent += amount - off;
        }
    }

    /// Everything the node ever began is posted: its leases end.
    fn release(&mut self, node: usize) {
        self.lapsed.remove(&node);
        for row in self.windows.values_mut() {
            if let Some(lease) = row.leases.remove(&node) {
                row.leased -= lease.left();
                row.spent -= lease.written_off;
            }
        }
    }

    fn lapse(&mut self, node: usize) {
        if !self.lapsed.insert(node) {
            return;
        }
        for row in self.windows.values_mut() {
            if let Some(lease) = row.leases.get_mut(&node) {
                let left = lease.left();
                row.leased -= left;
                row.spent += left;
                *lease = Lease {
                    taken: 0,
                    used: 0,
                    written_off: lease.written_off + left,
                };
            }
        }
    }

    fn check(&self) {
        for (cell, row) in &self.windows {
            let leases: i64 = row.leases.values().map(|lease| lease.left()).sum();
            assert_eq!(leases, row.leased, "{cell:?}");
            assert!(
                row.spent + row.leased <= row.limit + self.excess,
                "{cell:?}: {} + {}",
                row.spent,
                row.leased
            );
        }
    }
}

/// On its way to the store, and in the journal.
#[derive(Clone)]
struct Pending {
    request: u64,
    charge: i64,
    late: bool,
    posts: SmallVec<[Post; 4]>,
}

/// A running request, as the journal knows it.
struct Running {
    request: u64,
    transfer: Transfer,
    /// Where its money is held, as its intent says.
    names: SmallVec<[CellName; 4]>,
    class: BackendClass,
}

struct Node {
    books: Books,
    running: Vec<Running>,
    queue: Vec<Pending>,
}

impl Books {
    fn define(&mut self, budgets: Vec<Budget>) {
        self.amend(budgets.into_iter().map(|budget| (budget, false)).collect());
    }
}

fn node() -> Node {
    let mut books = Books::default();
    books.define(definitions());
    books.all(NOW);
    Node {
        books,
        running: Vec::new(),
        queue: Vec::new(),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Reserve {
        want: i64,
        least: i64,
        frontier: bool,
        ci: bool,
    },
    Extend {
        which: usize,
        more: i64,
    },
    Post {
        which: usize,
        permille: i64,
    },
    Void {
        which: usize,
    },
    /// The keeper asks; the answer may be lost.
    Round {
        whole: bool,
        lost: bool,
    },
    /// The writer posts; the answer may be lost, so that it is sent again.
    Write {
        lost: bool,
    },
    /// `kill -9`, and a start with the journal.
    Crash,
    /// The store is away for this node, which may let out so much on its own account until it hears of it again.
    Lend {
        credit: i64,
    },
    /// The others give this node up, while it lives.
    Lapse,
    /// It hears of that.
    Hear,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1i64..900, 1i64..900, any::<bool>(), any::<bool>()).prop_map(|(want, least, frontier, ci)| Step::Reserve {
            want: want.max(least), least, frontier, ci
        }),
        3 => (any::<usize>(), 1i64..400).prop_map(|(which, more)| Step::Extend { which, more }),
        5 => (any::<usize>(), prop_oneof![4 => 0i64..=1000, 1 => 1000i64..3000]).prop_map(|(which, permille)| Step::Post { which, permille }),
        1 => any::<usize>().prop_map(|which| Step::Void { which }),
        5 => (any::<bool>(), prop::bool::weighted(0.2)).prop_map(|(whole, lost)| Step::Round { whole, lost }),
        3 => prop::bool::weighted(0.2).prop_map(|lost| Step::Write { lost }),
        1 => Just(Step::Crash),
        1 => (0i64..500).prop_map(|credit| Step::Lend { credit }),
        1 => Just(Step::Lapse),
        1 => Just(Step::Hear),
    ]
}

struct World {
    nodes: Vec<Node>,
    store: StoreModel,
    next: u64,
    /// What each begun request must be charged, once.
    owed: HashMap<u64, i64>,
    clock: i64,
}

impl World {
    fn new(nodes: usize) -> Self {
        let limits = definitions()
            .into_iter()
            .map(|budget| (budget.id, budget.spec.limit.nanos()));
        let store = StoreModel {
            limits: limits.collect(),
            ..StoreModel::default()
        };
        Self {
            nodes: (0..nodes).map(|_| node()).collect(),
            store,
            next: 0,
            owed: HashMap::new(),
            clock: NOW,
        }
    }

    fn settle(node: &mut Node, running: &Running, charge: i64) -> Pending {
        let cost = Cost {
            target: target(running.class),
            amount: money(charge),
        };
        let settled = node.books.post(&running.transfer, &[cost]);
        Pending {
            request: running.request,
            charge,
            late: settled.late,
            posts: settled.posts,
        }
    }

    fn round(&mut self, at: usize, whole: bool, lost: bool) {
        self.clock += 700_000;
        let count = self.nodes.len() as i64;
        let node = &mut self.nodes[at];
        if whole {
            node.books.need_elsewhere(&self.store.needed(self.clock));
        }
        let asks = node.books.asks(Round {
            now_us: self.clock,
            whole,
            exclusive: false,
            nodes: count as u32,
            outage_us: 60_000_000,
        });
        if self.store.lapsed.contains(&at) {
            return node.books.undone(&asks);
        }
        let states = self.store.lease(at, &asks, (count, self.clock));
        if lost {
            node.books.unheard();
        } else {
            node.books.lend(Money::ZERO);
            node.books.leased(&states);
        }
    }

    fn crash(&mut self, at: usize) {
        let mut old = std::mem::replace(&mut self.nodes[at], node());
        let was_lapsed = self.store.lapsed.contains(&at);
        for pending in &mut old.queue {
            pending.late |= was_lapsed;
        }
        for running in std::mem::take(&mut old.running) {
            // What the journal says: held, in these windows.
            let (held, names) = (running.transfer.held(), running.names);
            let posts = names
                .into_iter()
                .map(|cell| Post { cell, amount: held })
                .collect();
            self.owed.insert(running.request, held.nanos());
            old.queue.push(Pending {
                request: running.request,
                charge: held.nanos(),
                late: was_lapsed,
                posts,
            });
        }
        for pending in &old.queue {
            self.store.post(at, pending);
        }
        self.store.release(at);
    }

    fn take(&mut self, at: usize, step: Step) {
        let node = &mut self.nodes[at];
        match step {
            Step::Reserve {
                want,
                least,
                frontier,
                ci,
            } => {
                let who = account(if ci { "ci" } else { "other" });
                let path = node.books.path(&who, None, &[]);
                let class = if frontier {
                    BackendClass::Frontier
                } else {
                    BackendClass::Cheap
                };
                let Ok((mut transfer, _)) = node.books.reserve(path, (money(want), money(least)), NOW) else {
                    return;
                };
                let held = transfer.held();
                assert!(held >= money(least) && held <= money(want));
                if node.books.aim(&mut transfer, target(class), &who).is_err() {
                    node.books.void(&transfer);
                    return;
                }
                self.next += 1;
                let names = node.books.names(&transfer);
                node.running.push(Running {
                    request: self.next,
                    transfer,
                    names,
                    class,
                });
            }
            Step::Extend { which, more } => {
                let count = node.running.len().max(1);
                if let Some(running) = node.running.get_mut(which % count) {
                    let before = running.transfer.held();
                    let extended = node.books.extend(&mut running.transfer, money(more));
                    let granted = extended.map_or(Money::ZERO, |(granted, _)| granted);
                    assert!(granted <= money(more) && running.transfer.held() == before.plus(granted));
                }
            }
            Step::Post { which, permille } => {
                if node.running.is_empty() {
                    return;
                }
                let running = node.running.swap_remove(which % node.running.len());
                let charge = running.transfer.held().nanos() * permille / 1000;
                self.store.excess += (charge - running.transfer.held().nanos()).max(0);
                let pending = Self::settle(node, &running, charge);
                self.owed.insert(pending.request, charge);
                node.queue.push(pending);
            }
            Step::Void { which } => {
                if !node.running.is_empty() {
                    let running = node.running.swap_remove(which % node.running.len());
                    node.books.void(&running.transfer);
                }
            }
            Step::Round { whole, lost } => self.round(at, whole, lost),
            Step::Write { lost } => {
                for pending in &node.queue {
                    self.store.post(at, pending);
                }
                if !lost {
                    node.queue.clear();
                }
            }
            Step::Crash => self.crash(at),
            Step::Lend { credit } => {
                self.store.excess += credit;
                node.books.lend(money(credit));
            }
            Step::Lapse => self.store.lapse(at),
            Step::Hear => {
                if self.store.lapsed.remove(&at) {
                    node.books.lapse();
                    node.queue.iter_mut().for_each(|pending| pending.late = true);
                }
            }
        }
    }

    fn check(&self) {
        self.store.check();
        for node in &self.nodes {
            for cell in node.books.budgets.iter().flat_map(|state| &state.cells) {
                assert!(
                    cell.spent.plus(cell.reserved) <= cell.granted.plus(money(self.store.excess)),
                    "{cell:?}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever happens in whatever order: no window is ever promised or spent beyond its limit, and in the end each
    /// request that began is charged once, and nothing is held any more.
    #[test]
    fn no_interleaving_overspends_or_loses(steps in prop::collection::vec((0usize..3, step()), 1..150)) {
        let mut world = World::new(3);
        for (at, step) in steps {
            world.take(at, step);
            world.check();
        }
        for at in 0..3 {
            world.crash(at);
        }
        world.check();
        prop_assert_eq!(world.store.posted.len(), world.owed.len());
        prop_assert_eq!(world.store.charged, world.owed.values().sum::<i64>());
        let team = world.store.windows.iter().find(|(cell, _)| &*cell.budget == "acme/search month");
        if let Some((_, row)) = team {
            prop_assert_eq!((row.spent, row.leased), (world.store.charged, 0));
        }
    }
}

/// Nodes that go on asking spend a budget to its last cent.
#[test]
fn several_nodes_drain_a_budget() {
    let mut world = World::new(3);
    let mut idle = 0;
    while idle < 200 {
        let before = world.next;
        for at in 0..3 {
            world.take(
                at,
                Step::Reserve {
                    want: 10,
                    least: 10,
                    frontier: false,
                    ci: false,
                },
            );
            world.round(at, true, false);
            world.take(
                at,
                Step::Post {
                    which: 0,
                    permille: 1000,
                },
            );
            world.take(at, Step::Write { lost: false });
            world.check();
        }
        idle = if world.next == before { idle + 1 } else { 0 };
    }
    assert_eq!(world.store.charged, LIMIT);
}

#[test]
fn a_request_stays_in_the_window_in_which_it_was_admitted() {
    let mut world = World::new(1);
    world.round(0, true, false);
    let take = |world: &mut World, now| {
        let node = &mut world.nodes[0];
        let path = node.books.path(&account("other"), None, &[]);
        node.books.reserve(path, (money(100), money(100)), now)
    };
    let short = take(&mut world, NOW).unwrap_err();
    assert!(!short.hopeless);
    world.round(0, false, false);
    let (transfer, _) = take(&mut world, NOW).unwrap();
    let december = NOW + 10 * 86_400_000_000;
    assert_eq!(world.nodes[0].books.all(december)[0].spent, Money::ZERO);
    let running = Running {
        request: 1,
        transfer,
        names: SmallVec::new(),
        class: BackendClass::Cheap,
    };
    let pending = World::settle(&mut world.nodes[0], &running, 60);
    assert_eq!(
        pending.posts[0].cell.window,
        Period::Month.window(&crate::window::Zone::default(), NOW)
    );
    assert_eq!(world.nodes[0].books.all(NOW)[0].spent, money(60));
    assert_eq!(world.nodes[0].books.all(december)[0].spent, Money::ZERO);
}

#[test]
fn who_is_refused_what_nobody_has_spent_starves() {
    let mut balance = team_balance();
    balance.spent = money(LIMIT / 2);
    assert!(balance.starves(money(LIMIT / 2)));
    assert!(!balance.starves(money(LIMIT / 2 + 1)));
    balance.spent = money(LIMIT / 10 * 9);
    assert!(!balance.starves(money(1)));
}

fn team_balance() -> Balance {
    node().books.all(NOW).remove(0)
}

#[test]
fn a_request_begins_with_a_part_of_what_is_left() {
    let mut world = World::new(1);
    world.round(0, true, false);
    let reserve = |world: &mut World, amounts: (i64, i64)| {
        let node = &mut world.nodes[0];
        let path = node.books.path(&account("other"), None, &[]);
        let (transfer, _) = node
            .books
            .reserve(path, (money(amounts.0), money(amounts.1)), NOW)
            .ok()?;
        Some(transfer.held().nanos())
    };
    assert_eq!(reserve(&mut world, (LIMIT / 2, LIMIT / 2)), None);
    world.round(0, false, false);
    assert_eq!(reserve(&mut world, (LIMIT, 100)), Some(LIMIT / 8));
    assert_eq!(reserve(&mut world, (1_000, 100)), Some(LIMIT * 3 / 8 / 4));
    assert_eq!(reserve(&mut world, (1_000, 1_000)), Some(1_000));
}

#[test]
fn what_is_spent_is_hopeless_and_what_is_held_is_not() {
    let mut world = World::new(1);
    let reserve = |world: &mut World, amount| {
        let node = &mut world.nodes[0];
        let path = node.books.path(&account("other"), None, &[]);
        node.books.reserve(path, (money(amount), money(amount)), NOW)
    };
    world.round(0, true, false);
    assert!(reserve(&mut world, LIMIT).is_err());
    world.round(0, false, false);
    let (transfer, _) = reserve(&mut world, LIMIT).unwrap();
    assert!(!reserve(&mut world, 1).unwrap_err().hopeless);
    let running = Running {
        request: 1,
        transfer,
        names: SmallVec::new(),
        class: BackendClass::Cheap,
    };
    World::settle(&mut world.nodes[0], &running, LIMIT);
    assert!(reserve(&mut world, 1).unwrap_err().hopeless);
}

#[test]
fn a_workflow_that_is_told_late_is_charged_too() {
    let nightly = AccountPath {
        workflow: Some("nightly".into()),
        key: None,
        ..account("-")
    };
    let mut books = Books::default();
    let mut all = definitions();
    let spec = BudgetSpec {
        limit: money(50),
        ..BudgetSpec::default()
    };
    all.push(Budget::new(nightly.clone(), spec));
    books.define(all);
    let position = books.by_id["acme/search/nightly day"];
    let cell = books.budgets[position].at(NOW);
    books.budgets[position].cells[cell].granted = money(50);
    let reserve = |books: &mut Books| {
        books
            .reserve(Path::default(), (money(30), money(30)), NOW)
            .unwrap()
            .0
    };
    let mut transfer = reserve(&mut books);
    let caller = AccountPath {
        key: Some("ci".into()),
        ..nightly
    };
    books
        .aim(&mut transfer, target(BackendClass::Cheap), &caller)
        .unwrap();
    assert_eq!(books.budgets[position].cells[cell].reserved, money(30));
    let mut second = reserve(&mut books);
    assert!(
        books
            .aim(&mut second, target(BackendClass::Cheap), &caller)
            .is_err()
    );
    let cost = Cost {
        target: target(BackendClass::Cheap),
        amount: money(20),
    };
    assert_eq!(books.post(&transfer, &[cost]).posts[0].amount, money(20));
    let cell = &books.budgets[position].cells[cell];
    assert_eq!((cell.reserved, cell.spent), (Money::ZERO, money(20)));
}

/// A busy budget far from its limit: `each` is spent in every round of 700 ms, for so many rounds.
fn spend(world: &mut World, at: usize, (each, rounds): (i64, usize)) {
    for _ in 0..rounds {
        let reserve = Step::Reserve {
            want: each,
            least: each,
            frontier: false,
            ci: false,
        };
        world.take(at, reserve.clone());
        if world.nodes[at].running.is_empty() {
            world.round(at, false, false);
            world.take(at, reserve);
        }
        world.take(
            at,
            Step::Post {
                which: 0,
                permille: 1000,
            },
        );
        world.take(at, Step::Write { lost: false });
        world.round(at, true, false);
        world.check();
    }
}

fn team_cell(node: &mut Node) -> &mut Cell {
    let position = node.books.by_id["acme/search month"];
    let state = &mut node.books.budgets[position];
    let at = state.at(NOW);
    &mut state.cells[at]
}

fn rich(nodes: usize) -> World {
    let mut world = World::new(nodes);
    let mut all = definitions();
    for budget in &mut all {
        budget.spec.limit = money(1_000_000_000);
        world.store.limits.insert(budget.id.clone(), 1_000_000_000);
    }
    for node in &mut world.nodes {
        node.books.define(all.clone());
    }
    world
}

#[test]
fn a_slice_lasts_for_as_long_as_the_store_may_be_away() {
    let mut world = rich(3);
    // 700 in 700 ms.
    spend(&mut world, 0, (700, 60));
    let left = team_cell(&mut world.nodes[0]).available().nanos();
    assert!((60_000..130_000).contains(&left), "{left}");
    // The store is away, and more than a minute of the same passes.
    let node = &mut world.nodes[0];
    for _ in 0..86 {
        let path = node.books.path(&account("other"), None, &[]);
        let (transfer, _) = node.books.reserve(path, (money(700), money(700)), NOW).unwrap();
        let cost = Cost {
            target: target(BackendClass::Cheap),
            amount: money(700),
        };
        node.books.post(&transfer, &[cost]);
    }
    // A slice that is not used shrinks no sooner than that, and then goes back whole.
    let mut world = rich(3);
    spend(&mut world, 0, (700, 60));
    for _ in 0..80 {
        world.round(0, true, false);
    }
    assert!(team_cell(&mut world.nodes[0]).available().nanos() > 50_000);
    for _ in 0..10 {
        world.round(0, true, false);
    }
    assert_eq!(team_cell(&mut world.nodes[0]).available(), Money::ZERO);
}

#[test]
fn what_another_node_needs_is_given_back_at_the_next_beat() {
    let mut world = rich(2);
    spend(&mut world, 0, (700, 60));
    spend(&mut world, 1, (10, 1));
    let held = team_cell(&mut world.nodes[0]).available().nanos();
    let name = world
        .store
        .windows
        .keys()
        .find(|cell| &*cell.budget == "acme/search month")
        .cloned()
        .unwrap();
    let row = world.store.windows.get_mut(&name).unwrap();
    let held_by_second = row.leases[&1].left();
    // What the first holds is all that is left but for a little.
    row.limit = row.spent + row.leased + 100;
    let needed = held_by_second + held / 2;
    let reserve = Step::Reserve {
        want: needed,
        least: needed,
        frontier: false,
        ci: false,
    };
    world.take(1, reserve.clone());
    world.round(1, false, false);
    world.take(1, reserve.clone());
    assert!(world.nodes[1].running.is_empty());
    // The first is in use still.
    let path = world.nodes[0].books.path(&account("other"), None, &[]);
    let used = world.nodes[0]
        .books
        .reserve(path, (money(700), money(700)), NOW)
        .unwrap()
        .0;
    world.nodes[0].books.void(&used);
    world.round(0, true, false);
    let kept = team_cell(&mut world.nodes[0]).available().nanos();
    assert!((1_000..5_000).contains(&kept), "{kept} of {held}");
    world.round(1, false, false);
    world.take(1, reserve);
    assert_eq!(world.nodes[1].running.len(), 1);
    world.check();
    // In a while all is forgotten, but for what is free being little.
    for _ in 0..5 {
        world.round(0, true, false);
    }
    assert!(!team_cell(&mut world.nodes[0]).sizing.needed_elsewhere);
}

#[test]
fn the_window_after_is_leased_before_it_begins() {
    let mut world = rich(3);
    spend(&mut world, 0, (700, 60));
    let node = &mut world.nodes[0];
    let cell = team_cell(node);
    let (ends_us, ahead_us) = (cell.window.ends_us, 60_000_000);
    let round = Round {
        now_us: ends_us - ahead_us / 2,
        whole: true,
        exclusive: false,
        nodes: 3,
        outage_us: ahead_us,
    };
    let asks = node.books.asks(round);
    let next = asks
        .iter()
        .find(|ask| ask.cell.window.starts_us == ends_us && &*ask.cell.budget == "acme/search month");
    assert!(next.unwrap().want.nanos() > 50_000);
    let states = world.store.lease(0, &asks, (3, ends_us));
    world.nodes[0].books.leased(&states);
    let path = world.nodes[0].books.path(&account("other"), None, &[]);
    let reserved = world.nodes[0]
        .books
        .reserve(path, (money(40_000), money(40_000)), ends_us);
    assert_eq!(reserved.unwrap().1.nanos() + 40_000, next_slice(&states, ends_us));
}

fn next_slice(states: &[LeaseState], starts_us: i64) -> i64 {
    let of = |said: &&LeaseState| {
        said.cell.window.starts_us == starts_us && &*said.cell.budget == "acme/search month"
    };
    states.iter().find(of).unwrap().taken.nanos()
}

#[test]
fn credit_is_let_out_once_and_not_kept() {
    let mut world = World::new(1);
    spend(&mut world, 0, (10, 2));
    let node = &mut world.nodes[0];
    let slice = team_cell(node).available().nanos();
    node.books.lend(money(500));
    let reserve = |node: &mut Node, amount| {
        let path = node.books.path(&account("other"), None, &[]);
        node.books.reserve(path, (money(amount), money(amount)), NOW)
    };
    assert!(reserve(node, slice + 501).is_err());
    let (transfer, left) = reserve(node, slice + 400).unwrap();
    assert_eq!(left, money(100));
    let short = reserve(node, 200).unwrap_err();
    assert!(short.is_held_here && !short.hopeless);
    node.books.void(&transfer);
    let again = reserve(node, slice + 450).unwrap().0;
    assert!(!reserve(node, slice + 600).unwrap_err().is_held_here);
    node.books.void(&again);
    world.store.excess += 500;
    world.round(0, false, false);
    world.check();
    let said = world.store.windows.values().map(|row| row.leased).max().unwrap();
    assert!(team_cell(&mut world.nodes[0]).available().nanos() <= said);
}
