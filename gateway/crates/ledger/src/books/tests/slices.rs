//! How large slices are, who gives them back and when, and what is let out without them.

use super::*;

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
