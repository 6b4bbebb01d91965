//! How much of a budget a node keeps to itself: enough to go on without the store for a while, little enough not to
//! starve the others.
//!
//! The first slice is a few times what the first request wants. After that a slice is what this node has lately used in
//! the time for which it is to last ([`Round::outage_us`]), and is filled up before it falls below that. The store gives at
//! most a share of what is free, so slices shrink as the limit nears; a node gives back what is more than twice what is
//! free; one that is told that another is short keeps what it needs for the moment, and nothing if it needs nothing.

use exchange::Money;

/// The first slice, in requests like the largest lately.
const FIRST: i64 = 16;
/// A slice that was filled so recently and is nearly used up doubles: its rate is not known yet.
const HASTE_US: i64 = 1_000_000;
/// A slice that another node needs is given back when nobody has touched it for so long.
const IDLE_US: i64 = 2_000_000;
/// A slice that cannot be filled is asked for again after so long, for what others have given back.
const AGAIN_US: i64 = 2_000_000;
/// What is kept where another node is short: this node's use in so many microseconds.
const SHARING_US: i64 = 1_000_000;
const SECOND_US: i64 = 1_000_000;

/// A moment at which the books are looked through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    pub(crate) now_us: i64,
    /// Every cell, or only those that want something.
    pub(crate) whole: bool,
    /// This node is the only one.
    pub(crate) exclusive: bool,
    /// How many share what is free.
    pub(crate) nodes: u32,
    /// For how long a slice is to last while the store is away.
    pub(crate) outage_us: i64,
}

/// How a slice stands at that moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    /// Neither spent nor held.
    pub(super) available: Money,
    /// Spent and held.
    pub(super) used: Money,
    /// Its window has ended, or its budget has.
    pub(super) is_over: bool,
    /// What nobody has, as last seen; `None` if the store was never asked.
    pub(super) free: Option<Money>,
}

/// The sizing of one slice.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sizing {
    /// What it is to hold when it is full.
    slice: Money,
    /// Used up lately, in nano-dollars a second.
    rate: i64,
    /// The largest single request lately.
    largest: Money,
    /// What someone needed and did not get.
    short: Money,
    /// Less than two thirds are left.
    low: bool,
    touched: bool,
    touched_us: i64,
    filled_us: i64,
    asked_us: i64,
    /// What was used when the rate was last looked at, and when that was.
    measured: Option<(Money, i64)>,
    /// Let out while the store was away.
    pub(super) advanced: Money,
    /// Another node is short of it.
    pub(super) needed_elsewhere: bool,
    /// The store has been asked and said all there is.
    settled: bool,
    /// The budget was changed: the store's view is old.
    pub(crate) stale: bool,
}

impl Sizing {
    /// For the window after one that is in use.
    pub(super) fn next(&self, starts_us: i64) -> Self {
        Self {
            slice: self.slice,
            rate: self.rate,
            largest: self.largest,
            touched_us: starts_us,
            ..Self::default()
        }
    }

    pub(super) const fn is_in_use(&self) -> bool {
        self.rate > 0
    }

    /// Money was held; true if more should be asked for ahead of need.
    pub(super) fn hold(&mut self, held: Money, left: Money) -> bool {
        self.touched = true;
        self.settled = false;
        self.largest = self.largest.max(held);
        let low = left < self.floor();
        let newly = low && !self.low;
        self.low = low;
        newly
    }

    /// Money was wanted that is not there.
    pub(super) fn miss(&mut self, short: Money, want: Money) {
        self.touched = true;
        self.settled = false;
        self.largest = self.largest.max(want);
        self.short = self.short.max(short);
    }

    /// What to give back, to take and to take at least; nothing if all is well.
    pub(super) fn ask(&mut self, round: Round, standing: Standing) -> Option<(Money, Money, Money)> {
        if std::mem::take(&mut self.touched) {
            self.touched_us = self.touched_us.max(round.now_us);
        }
        let Standing { is_over, free, .. } = standing;
        let spare = standing.available.max(Money::ZERO);
        if is_over {
            let is_left = round.whole && !(self.settled && spare.is_zero());
            return is_left.then_some((spare, Money::ZERO, Money::ZERO));
        }
        let unseen = free.is_none() || self.stale;
        let is_short = !self.short.is_zero();
        if round.exclusive {
            let wants = unseen || is_short && free.is_some_and(|free| free > Money::ZERO);
            let give = if self.stale { spare } else { Money::ZERO };
            return wants.then_some((give, Money::MAX, Money::ZERO));
        }
        if round.whole {
            self.measure(round, standing.used);
        }
        if is_short || unseen || self.wants_more(round, spare, free) {
            self.asked_us = round.now_us;
            return Some(self.refill(round, spare));
        }
        if !round.whole || spare.is_zero() {
            return None;
        }
        let give = spare.minus(self.keep(round, spare, free)).max(Money::ZERO);
        (!give.is_zero()).then_some((give, Money::ZERO, Money::ZERO))
    }

    /// Follows the rate: quickly when it rises, slowly when it falls.
    fn measure(&mut self, round: Round, used: Money) {
        let (before, since_us) = self
            .measured
            .replace((used, round.now_us))
            .unwrap_or((used, round.now_us));
        let passed_us = i128::from(round.now_us - since_us);
        if passed_us > 0 {
            let used = i128::from(used.minus(before).nanos()) * i128::from(SECOND_US) / passed_us;
            let change = used - i128::from(self.rate);
            let rate = i128::from(self.rate) + if change > 0 { change / 8 } else { change / 32 };
            self.rate = i64::try_from(rate.max(0)).unwrap_or(i64::MAX);
        }
        self.largest = self.largest.minus(Money::from_nanos(self.largest.nanos() / 64));
        let least = Money::from_nanos(self.largest.nanos().saturating_mul(FIRST));
        self.slice = if self.needed_elsewhere {
            self.sharing().plus(self.sharing())
        } else {
            let shrunk = self.slice.minus(Money::from_nanos(self.slice.nanos() / 8));
            self.lasting(round.outage_us, 3).max(least).max(shrunk)
        };
    }

    /// What is used in so long, times so many halves.
    fn lasting(&self, time_us: i64, halves: i64) -> Money {
        let used =
            i128::from(self.rate) * i128::from(time_us) / i128::from(SECOND_US) * i128::from(halves) / 2;
        Money::from_nanos(i64::try_from(used).unwrap_or(i64::MAX).min(i64::MAX / 8))
    }

    /// For the moment.
    fn sharing(&self) -> Money {
        self.lasting(SHARING_US, 2).max(self.largest)
    }

    /// Below this a slice is filled up: it is what lasts for as long as it should.
    fn floor(&self) -> Money {
        Money::from_nanos(self.slice.nanos() / 3 * 2)
    }

    fn wants_more(&self, round: Round, spare: Money, free: Option<Money>) -> bool {
        let is_below = round.whole && self.is_in_use() && spare < self.floor();
        if !self.low && !is_below {
            return false;
        }
        // Near the limit a share of what is free may be too little to ask for.
        let share = free.map_or(i64::MAX, |free| {
            free.nanos() / (2 * i64::from(round.nodes.max(1)))
        });
        let worth = share >= (self.slice.nanos() / 8).min(self.largest.nanos().saturating_mul(FIRST));
        worth || round.now_us - self.asked_us > AGAIN_US
    }

    fn refill(&mut self, round: Round, spare: Money) -> (Money, Money, Money) {
        let used_up = spare.nanos() < self.slice.nanos() / 4;
        if used_up && round.now_us - self.filled_us < HASTE_US && !self.needed_elsewhere {
            self.slice = self.slice.plus(self.slice);
        }
        let first = if self.needed_elsewhere { 1 } else { FIRST };
        let first = Money::from_nanos(self.largest.nanos().saturating_mul(first));
        self.slice = self.slice.max(first).min(Money::from_nanos(i64::MAX / 8));
        let is_short = !self.short.is_zero();
        // Too little is of no use here, but may be elsewhere: it goes back unless there is enough more.
        let give = if self.stale || is_short {
            spare
        } else {
            Money::ZERO
        };
        let least = if is_short {
            self.short.plus(spare)
        } else {
            Money::ZERO
        };
        let want = if self.largest.is_zero() {
            Money::ZERO
        } else {
            self.slice.minus(spare).plus(give).max(Money::ZERO)
        };
        (give, want, least)
    }

    /// How much of what is there stays.
    fn keep(&mut self, round: Round, spare: Money, free: Option<Money>) -> Money {
        let idle_us = round.now_us - self.touched_us;
        if self.needed_elsewhere {
            return if idle_us > IDLE_US {
                Money::ZERO
            } else {
                self.slice
            };
        }
        if idle_us > round.outage_us.max(IDLE_US) {
            self.slice = Money::ZERO;
            return Money::ZERO;
        }
        let free = free.unwrap_or(Money::ZERO).max(Money::ZERO);
        if spare > free.plus(free) {
            let even = Money::from_nanos(spare.plus(free).nanos() / 2);
            return even.max(self.largest);
        }
        spare
    }

    /// The store answered; `more`: it gave something.
    pub(super) fn told(&mut self, more: bool) {
        self.short = Money::ZERO;
        self.advanced = Money::ZERO;
        self.stale = false;
        self.settled = true;
        if more {
            self.low = false;
            self.filled_us = self.touched_us;
        }
    }

    /// Nothing is left to tell the store.
    pub(super) const fn is_settled(&self) -> bool {
        self.settled
    }
}
