//! What this node may spend and has spent, in memory: two-phase transfers against slices of budgets. No IO, no clock.
//!
//! A transfer is *pending* while its [`Transfer`] lives: its money is held in every hard budget on its path, in the window
//! in which it was admitted, whatever the calendar says later. It is *posted* with what was really spent, *voided* with
//! nothing, or *expired* when this node is given up by the others ([`Books::lapse`]): then its share of the budgets has
//! been written off, it gives nothing back here, and what it still posts is late. A transfer is consumed by its end, so
//! that it cannot end twice; across crashes the store takes each request once.
//!
//! Invariant: in every cell `spent + reserved ≤ granted` after a grant, where `granted` is the slice that the store gave
//! this node; the store keeps the sum of slices and spend within the limit. Only a provider that bills more than was held,
//! or money let out while the store is away, can exceed it.

use crate::budget::{Budget, Enforcement, Target};
use crate::settlement::{CellName, Post};
use crate::store::{LeaseAsk, LeaseState};
use crate::window::Window;
use exchange::{AccountPath, Money};
use smallvec::SmallVec;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

mod escrow;
mod lease;
#[cfg(test)]
mod tests;

pub(crate) use lease::Round;
use lease::{Sizing, Standing};

/// A window is remembered for so long after its end, should the clock go back.
const KEPT_US: i64 = 600_000_000;

/// One budget as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balance {
    pub budget: Arc<Budget>,
    pub limit: Money,
    /// By all nodes, as far as this one knows.
    pub spent: Money,
    /// Held by running requests of this node.
    pub reserved: Money,
    /// With other nodes.
    pub elsewhere: Money,
    /// When the window ends; `i64::MAX` for a total.
    pub resets_unix_us: i64,
}

impl Balance {
    pub fn remaining(&self) -> Money {
        self.limit
            .minus(self.spent)
            .minus(self.reserved)
            .minus(self.elsewhere)
    }

    /// Who is refused `needed` now starves: it would fit into what nobody has spent, and less than nine tenths of the
    /// limit are spent.
    pub(crate) fn starves(&self, needed: Money) -> bool {
        let (spent, limit) = (i128::from(self.spent.nanos()), i128::from(self.limit.nanos()));
        spent * 10 < limit * 9 && needed <= self.limit.minus(self.spent)
    }
}

/// The budgets that a request meets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Path {
    /// Wherever it goes.
    common: SmallVec<[usize; 4]>,
    /// Depending on where it goes.
    scoped: SmallVec<[usize; 2]>,
}

/// A budget in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct CellRef {
    budget: usize,
    starts_us: i64,
}

/// Of what is left no request takes a larger part than this to begin with, if it can begin with less.
const MODEST: i64 = 4;

/// How much to hold.
#[derive(Clone, Copy, Debug)]
struct Amount {
    want: Money,
    /// Below this it is of no use.
    least: Money,
    /// Beyond this no more is taken than a part of what is left.
    modest: Money,
}

/// Money held for one request.
#[derive(Debug)]
pub(crate) struct Transfer {
    path: Path,
    cells: SmallVec<[CellRef; 4]>,
    /// How many of the cells are there wherever it goes.
    common: usize,
    admitted_us: i64,
    held: Money,
    epoch: u32,
}

impl Transfer {
    pub(crate) const fn held(&self) -> Money {
        self.held
    }
}

/// What a posted transfer means for the store.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) posts: SmallVec<[Post; 4]>,
    pub(crate) late: bool,
}

/// Where an attempt went and what it cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost<'a> {
    pub(crate) target: Target<'a>,
    pub(crate) amount: Money,
}

/// There is not enough in this node's slice.
#[derive(Debug)]
pub(crate) struct Short {
    pub(crate) balance: Balance,
    /// It will not fit however long one waits: the rest is spent.
    pub(crate) hopeless: bool,
    /// It may fit without the store: requests that run here hold what it needs.
    pub(crate) is_held_here: bool,
    /// Told when money comes back or in.
    pub(crate) released: Arc<Notify>,
    /// Resolves when that is told the next time.
    pub(crate) told: OwnedNotified,
}

#[derive(Debug)]
struct Cell {
    window: Window,
    /// The slice: all that the store granted for this window, less what was given back.
    granted: Money,
    spent: Money,
    reserved: Money,
    view: Option<View>,
    sizing: Sizing,
}

/// What the store last said.
#[derive(Clone, Copy, Debug)]
struct View {
    limit: Money,
    spent_elsewhere: Money,
    leased_elsewhere: Money,
}

impl Cell {
    fn available(&self) -> Money {
        self.granted.minus(self.spent).minus(self.reserved)
    }

    /// With what may be let out on credit, up to `credit` since the store last answered.
    fn within(&self, credit: Money) -> Money {
        let room = credit.minus(self.sizing.advanced).max(Money::ZERO);
        self.available().plus(room)
    }

    fn hold(&mut self, amount: Money) {
        self.reserved = self.reserved.plus(amount);
        let over = Money::ZERO.minus(self.available());
        // Never without credit: what is held was there.
        if over > Money::ZERO && !amount.is_zero() {
            self.granted = self.granted.plus(over);
            self.sizing.advanced = self.sizing.advanced.plus(over);
            self.sizing.stale = true;
        }
    }
}

#[derive(Debug)]
struct State {
    budget: Arc<Budget>,
    retired: bool,
    /// The present window, and earlier ones in which something is still held or leased.
    cells: SmallVec<[Cell; 1]>,
    released: Arc<Notify>,
}

impl State {
    fn cell(&mut self, starts_us: i64) -> Option<&mut Cell> {
        self.cells
            .iter_mut()
            .find(|cell| cell.window.starts_us == starts_us)
    }

    /// The window of a moment, begun if need be.
    fn at(&mut self, now_us: i64) -> usize {
        if let Some(at) = self.cells.iter().position(|cell| cell.window.holds(now_us)) {
            return at;
        }
        self.begin(now_us, Sizing::default());
        self.cells.len() - 1
    }

    fn begin(&mut self, at_us: i64, sizing: Sizing) {
        let window = self.budget.spec.period.window(&self.budget.spec.zone, at_us);
        self.cells.push(Cell {
            window,
            granted: Money::ZERO,
            spent: Money::ZERO,
            reserved: Money::ZERO,
            view: None,
            sizing,
        });
    }

    /// A window is begun so long before the one in use ends that the store may be away in between.
    fn look_ahead(&mut self, now_us: i64, ahead_us: i64) {
        let ends = |cell: &&Cell| {
            let left_us = cell.window.ends_us.saturating_sub(now_us);
            left_us > 0 && left_us < ahead_us && cell.sizing.is_in_use()
        };
        let Some(ending) = self.cells.iter().find(ends) else {
            return;
        };
        let next_us = ending.window.ends_us;
        if !self.cells.iter().any(|cell| cell.window.holds(next_us)) {
            let sizing = ending.sizing.next(next_us);
            self.begin(next_us, sizing);
        }
    }

    fn is_hard(&self) -> bool {
        self.budget.spec.enforcement == Enforcement::Hard
    }

    fn balance(&self, cell: &Cell, now_us: i64) -> Balance {
        let view = cell.view.unwrap_or(View {
            limit: self.budget.limit(now_us),
            spent_elsewhere: Money::ZERO,
            leased_elsewhere: Money::ZERO,
        });
        Balance {
            budget: self.budget.clone(),
            limit: view.limit,
            spent: view.spent_elsewhere.plus(cell.spent),
            reserved: cell.reserved,
            elsewhere: view.leased_elsewhere,
            resets_unix_us: cell.window.ends_us,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Books {
    budgets: Vec<State>,
    by_account: HashMap<AccountPath, SmallVec<[usize; 2]>>,
    by_id: HashMap<Arc<str>, usize>,
    /// Grows when this node is given up: transfers of an earlier epoch have expired.
    epoch: u32,
    /// Cells that want more from the store than they have.
    wanting: bool,
    /// What each budget window may let out beyond its slice; nothing unless the store is away.
    credit: Money,
    /// Of which windows another node is short.
    needed_elsewhere: Vec<CellRef>,
}

impl Books {
    /// Takes over what has changed: budgets, and whether they are retired. Those who wait for a retired one may start.
    pub(crate) fn amend(&mut self, changed: Vec<(Budget, bool)>) {
        for (budget, retired) in changed {
            let budget = Arc::new(budget);
            if let Some(position) = self.by_id.get(&budget.id) {
                let state = &mut self.budgets[*position];
                if retired && !state.retired {
                    state.released.notify_waiters();
                }
                state.retired = retired;
                if state.budget != budget {
                    state.budget = budget;
                    // What the store says of the limit, and this node's slice, are to be looked at again.
                    state.cells.iter_mut().for_each(|cell| cell.sizing.stale = true);
                    self.wanting = true;
                }
                continue;
            }
            let position = self.budgets.len();
            self.by_id.insert(budget.id.clone(), position);
            self.by_account
                .entry(budget.account.clone())
                .or_default()
                .push(position);
            self.budgets.push(State {
                budget,
                retired,
                cells: SmallVec::new(),
                released: Arc::new(Notify::new()),
            });
        }
    }

    pub(crate) fn definition(&self, id: &str) -> Option<Arc<Budget>> {
        self.by_id
            .get(id)
            .map(|position| self.budgets[*position].budget.clone())
    }

    /// The budgets above and on an account, and on the workflow that its request belongs to.
    pub(crate) fn path(
        &self,
        account: &AccountPath,
        workflow: Option<&Arc<str>>,
        labels: &[(Box<str>, Box<str>)],
    ) -> Path {
        let mut path = Path::default();
        if self.budgets.is_empty() {
            return path;
        }
        let mut levels = account.ancestry();
        if let Some(workflow) = workflow.filter(|name| account.workflow.as_ref() != Some(*name)) {
            levels.push(AccountPath {
                workflow: Some(workflow.clone()),
                key: None,
                ..account.clone()
            });
        }
        for position in levels
            .iter()
            .filter_map(|level| self.by_account.get(level))
            .flatten()
        {
            let state = &self.budgets[*position];
            if state.retired || !state.budget.spec.scope.matches_labels(labels) {
                continue;
            }
            if state.budget.spec.scope.needs_target() {
                path.scoped.push(*position);
            } else {
                path.common.push(*position);
            }
        }
        path
    }

    /// Holds between `least` and `want` in every budget that counts wherever the request goes.
    pub(crate) fn reserve(
        &mut self,
        path: Path,
        (want, least): (Money, Money),
        now_us: i64,
    ) -> Result<(Transfer, Money), Short> {
        let common = path.common.clone();
        let modest = least;
        let (granted, left) = self.hold(&common, Amount { want, least, modest }, now_us)?;
        let cells: SmallVec<[CellRef; 4]> = common
            .iter()
            .map(|budget| self.cell_at(*budget, now_us))
            .collect();
        let transfer = Transfer {
            path,
            common: cells.len(),
            cells,
            admitted_us: now_us,
            held: granted,
            epoch: self.epoch,
        };
        Ok((transfer, left))
    }

    /// Holds what the transfer has in the budgets that count where it goes now, and no longer in those where it went before.
    /// The workflow may have been told from the request after its money was held: its budgets join here.
    pub(crate) fn aim(
        &mut self,
        transfer: &mut Transfer,
        target: Target<'_>,
        account: &AccountPath,
    ) -> Result<(), Short> {
        if account.workflow.is_some() {
            self.join(&mut transfer.path, account);
        }
        if transfer.path.scoped.is_empty() {
            return Ok(());
        }
        let (held, now_us) = (transfer.held, transfer.admitted_us);
        for cell in transfer.cells.drain(transfer.common..).collect::<Vec<_>>() {
            if transfer.epoch == self.epoch {
                self.give_back(cell, held);
            }
        }
        let matching: SmallVec<[usize; 4]> = transfer
            .path
            .scoped
            .iter()
            .copied()
            .filter(|position| self.budgets[*position].budget.spec.scope.matches_target(target))
            .collect();
        let all = Amount {
            want: held,
            least: held,
            modest: held,
        };
        self.hold(&matching, all, now_us)?;
        for position in matching {
            let cell = self.cell_at(position, now_us);
            transfer.cells.push(cell);
        }
        Ok(())
    }

    fn join(&self, path: &mut Path, account: &AccountPath) {
        let level = AccountPath {
            key: None,
            ..account.clone()
        };
        for position in self.by_account.get(&level).into_iter().flatten() {
            let state = &self.budgets[*position];
            let known = path.common.contains(position) || path.scoped.contains(position);
            // Labels were looked at when the money was held.
            if !known && !state.retired && state.budget.spec.scope.tags.is_empty() {
                path.scoped.push(*position);
            }
        }
    }

    /// Holds up to `more` beyond what is held; returns how much, and what is left beyond that.
    ///
    /// # Errors
    /// There is nothing now; nothing to wait for either where none is told.
    pub(crate) fn extend(
        &mut self,
        transfer: &mut Transfer,
        more: Money,
    ) -> Result<(Money, Money), Option<Short>> {
        if transfer.epoch != self.epoch {
            return Err(None);
        }
        let one = Money::from_nanos(1);
        let positions: SmallVec<[usize; 4]> = transfer.cells.iter().map(|cell| cell.budget).collect();
        let amount = Amount {
            want: more,
            least: one.min(more),
            modest: more,
        };
        match self.hold(&positions, amount, transfer.admitted_us) {
            Ok((granted, left)) => {
                transfer.held = transfer.held.plus(granted);
                Ok((granted, left))
            }
            Err(short) => Err(Some(short).filter(|short| !short.hopeless)),
        }
    }

    /// The journal did not take an extension: it is undone.
    pub(crate) fn unextend(&mut self, transfer: &mut Transfer, granted: Money) {
        if transfer.epoch == self.epoch {
            for cell in &transfer.cells {
                self.give_back(*cell, granted);
            }
        }
        transfer.held = transfer.held.minus(granted);
    }

    /// Posts what was spent, and gives the rest back.
    pub(crate) fn post(&mut self, transfer: &Transfer, costs: &[Cost<'_>]) -> Settled {
        let late = transfer.epoch != self.epoch;
        if !late {
            for cell in &transfer.cells {
                self.give_back(*cell, transfer.held);
            }
        }
        let mut posts = SmallVec::new();
        for position in transfer.path.common.iter().chain(&transfer.path.scoped) {
            let state = &mut self.budgets[*position];
            let scope = &state.budget.spec.scope;
            let counts = |cost: &&Cost<'_>| !scope.needs_target() || scope.matches_target(cost.target);
            let amount: Money = costs.iter().filter(counts).map(|cost| cost.amount).sum();
            if amount.is_zero() {
                continue;
            }
            let at = state.at(transfer.admitted_us);
            let cell = &mut state.cells[at];
            if !late {
                cell.spent = cell.spent.plus(amount);
            }
            posts.push(Post {
                cell: CellName {
                    budget: state.budget.id.clone(),
                    window: cell.window,
                },
                amount,
            });
        }
        Settled { posts, late }
    }

    /// Ends a transfer that spent nothing.
    pub(crate) fn void(&mut self, transfer: &Transfer) {
        self.post(transfer, &[]);
    }

    /// The budget windows in which a transfer holds money, for the journal.
    pub(crate) fn names(&self, transfer: &Transfer) -> SmallVec<[CellName; 4]> {
        let name = |cell: &CellRef| {
            let state = &self.budgets[cell.budget];
            let found = state
                .cells
                .iter()
                .find(|known| known.window.starts_us == cell.starts_us)?;
            Some(CellName {
                budget: state.budget.id.clone(),
                window: found.window,
            })
        };
        transfer.cells.iter().filter_map(name).collect()
    }

    /// The budgets on a path as they stand.
    pub(crate) fn balances(&mut self, path: &Path, now_us: i64) -> Vec<Balance> {
        let positions: Vec<usize> = path.common.iter().chain(&path.scoped).copied().collect();
        self.balances_of(&positions, now_us)
    }

    /// Every budget as it stands.
    pub(crate) fn all(&mut self, now_us: i64) -> Vec<Balance> {
        let positions: Vec<usize> = (0..self.budgets.len())
            .filter(|position| !self.budgets[*position].retired)
            .collect();
        self.balances_of(&positions, now_us)
    }

    /// One budget as it stands; `None` where it is not known or retired.
    pub(crate) fn balance(&mut self, id: &str, now_us: i64) -> Option<Balance> {
        let position = *self.by_id.get(id)?;
        if self.budgets[position].retired {
            return None;
        }
        self.balances_of(&[position], now_us).pop()
    }

    fn balances_of(&mut self, positions: &[usize], now_us: i64) -> Vec<Balance> {
        let of = |position: &usize| {
            let state = &mut self.budgets[*position];
            let at = state.at(now_us);
            state.balance(&state.cells[at], now_us)
        };
        positions.iter().map(of).collect()
    }

    fn cell_at(&mut self, budget: usize, now_us: i64) -> CellRef {
        let state = &mut self.budgets[budget];
        let at = state.at(now_us);
        CellRef {
            budget,
            starts_us: state.cells[at].window.starts_us,
        }
    }

    /// Holds the same amount in each of these budgets, or nothing: then the tightest is told. Returns what was granted
    /// and what the tightest has left beyond it.
    fn hold(
        &mut self,
        budgets: &[usize],
        Amount { want, least, modest }: Amount,
        now_us: i64,
    ) -> Result<(Money, Money), Short> {
        let mut left = Money::MAX;
        let mut tightest = None;
        for position in budgets {
            let state = &mut self.budgets[*position];
            let at = state.at(now_us);
            let available = state.cells[at].within(self.credit);
            if state.is_hard() && available < left {
                left = available;
                tightest = Some((*position, at));
            }
        }
        let modest = Money::from_nanos(left.nanos() / MODEST).max(modest);
        let granted = want.min(left).min(modest).max(Money::ZERO);
        if let Some((position, at)) = tightest
            && left < want
        {
            let one = Money::from_nanos(1);
            let credit = self.credit;
            let state = &mut self.budgets[position];
            let balance = state.balance(&state.cells[at], now_us);
            let reserved = state.cells[at].reserved;
            let is_held_here = !reserved.is_zero() && state.cells[at].within(credit).plus(reserved) >= least;
            let known = state.cells[at].view.is_some();
            let hopeless = known && balance.spent.plus(least.max(one)) > balance.limit;
            if !hopeless {
                self.wanting = true;
                state.cells[at].sizing.miss(least.minus(left).max(one), want);
            }
            if granted < least {
                return Err(Short {
                    hopeless,
                    is_held_here,
                    balance,
                    released: state.released.clone(),
                    told: state.released.clone().notified_owned(),
                });
            }
        }
        for position in budgets {
            let state = &mut self.budgets[*position];
            let (at, hard) = (state.at(now_us), state.is_hard());
            let cell = &mut state.cells[at];
            self.wanting |= cell.view.is_none();
            if hard {
                cell.hold(granted);
                self.wanting |= cell.sizing.hold(granted, cell.available());
            } else {
                cell.reserved = cell.reserved.plus(granted);
            }
        }
        Ok((granted, left.minus(granted)))
    }

    fn give_back(&mut self, cell: CellRef, held: Money) {
        let state = &mut self.budgets[cell.budget];
        let Some(cell) = state.cell(cell.starts_us) else {
            return;
        };
        cell.reserved = cell.reserved.minus(held);
        assert!(
            cell.reserved >= Money::ZERO,
            "more was given back than was held for {}",
            state.budget.id
        );
        state.released.notify_one();
    }
}

/// What to ask of the store, and what its answers mean.
impl Books {
    /// Something is wanted of the store.
    pub(crate) const fn is_wanting(&self) -> bool {
        self.wanting
    }

    /// What to ask of the store now. `whole`: look at every cell, for those that are idle or over; else only for what is
    /// wanted. What is to be given back can no longer be spent from here on.
    pub(crate) fn asks(&mut self, round: Round) -> Vec<LeaseAsk> {
        self.wanting = false;
        let mut asks = Vec::new();
        for state in &mut self.budgets {
            let hard = state.is_hard() && !state.retired;
            let limit = state.budget.limit(round.now_us);
            if hard && round.whole {
                state.look_ahead(round.now_us, round.outage_us);
            }
            for cell in &mut state.cells {
                let is_over = cell.window.ends_us <= round.now_us || !hard;
                // A temporary increase that has ended.
                cell.sizing.stale |= !is_over && cell.view.is_some_and(|view| view.limit != limit);
                let free = cell.view.map(|view| {
                    let all = view
                        .limit
                        .minus(view.spent_elsewhere)
                        .minus(view.leased_elsewhere);
                    all.minus(cell.granted)
                });
                let standing = Standing {
                    available: cell.available(),
                    used: cell.spent.plus(cell.reserved),
                    is_over,
                    free,
                };
                let Some((give_back, want, least)) = cell.sizing.ask(round, standing) else {
                    continue;
                };
                cell.granted = cell.granted.minus(give_back);
                asks.push(LeaseAsk {
                    cell: CellName {
                        budget: state.budget.id.clone(),
                        window: cell.window,
                    },
                    give_back,
                    want,
                    least,
                });
            }
            state.cells.retain(|cell| {
                let is_over = cell.window.ends_us.saturating_add(KEPT_US) <= round.now_us;
                !(is_over && cell.reserved.is_zero() && cell.sizing.is_settled())
            });
        }
        asks.sort_unstable_by(|a, b| a.cell.cmp(&b.cell));
        asks
    }

    /// What the store said.
    pub(crate) fn leased(&mut self, states: &[LeaseState]) {
        for said in states {
            let Some(position) = self.by_id.get(&said.cell.budget) else {
                continue;
            };
            let state = &mut self.budgets[*position];
            let released = state.released.clone();
            let Some(cell) = state.cell(said.cell.window.starts_us) else {
                continue;
            };
            let more = said.taken > cell.granted;
            cell.granted = said.taken;
            let left = said.taken.minus(said.used).max(Money::ZERO);
            cell.view = Some(View {
                limit: said.limit,
                spent_elsewhere: said.spent.minus(said.used),
                leased_elsewhere: said.leased.minus(left),
            });
            cell.sizing.told(more);
            // Those who wait may start, or know now that they never will.
            released.notify_waiters();
        }
    }

    /// The store did not do it: what was to be given back is here still.
    pub(crate) fn undone(&mut self, asks: &[LeaseAsk]) {
        for ask in asks.iter().filter(|ask| !ask.give_back.is_zero()) {
            if let Some(position) = self.by_id.get(&ask.cell.budget)
                && let Some(cell) = self.budgets[*position].cell(ask.cell.window.starts_us)
            {
                cell.granted = cell.granted.plus(ask.give_back);
            }
        }
        self.unheard();
    }

    /// The store did not answer: what was wanted is wanted still, and those who wait may want to know. What was to be given
    /// back may have been; the next answer tells.
    pub(crate) fn unheard(&mut self) {
        self.wanting = true;
        self.budgets
            .iter()
            .for_each(|state| state.released.notify_waiters());
    }

    /// The store is away: each budget window may let out so much beyond its slice, on the node's own account.
    pub(crate) fn lend(&mut self, credit: Money) {
        self.credit = credit;
    }

    /// Which budget windows another node is short of.
    pub(crate) fn need_elsewhere(&mut self, cells: &[(String, i64)]) {
        for CellRef { budget, starts_us } in std::mem::take(&mut self.needed_elsewhere) {
            if let Some(cell) = self.budgets[budget].cell(starts_us) {
                cell.sizing.needed_elsewhere = false;
            }
        }
        for (id, starts_us) in cells {
            if let Some(budget) = self.by_id.get(id.as_str()).copied()
                && let Some(cell) = self.budgets[budget].cell(*starts_us)
            {
                cell.sizing.needed_elsewhere = true;
                let starts_us = *starts_us;
                self.needed_elsewhere.push(CellRef { budget, starts_us });
            }
        }
    }

    /// The others gave this node up: what it had is written off, what is running has expired.
    pub(crate) fn lapse(&mut self) {
        self.epoch += 1;
        for state in &mut self.budgets {
            state.cells.clear();
        }
        self.wanting = true;
    }
}
