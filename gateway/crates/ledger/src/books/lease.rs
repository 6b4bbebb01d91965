//! How much of a budget a node keeps to itself: enough not to ask often, little enough not to starve the others.
//!
//! The first slice is a few times what the first request wants. A slice that is used up soon after it came doubles, so
//! that a busy budget asks the store less and less; one that lies idle is given back whole. The store gives at most a
//! share of what is free, so slices shrink as the limit nears; and a node that sees little free keeps only what it needs
//! for the moment, so that several nodes can spend a budget to its end.

use exchange::Money;

/// The first slice, in requests like the one that asked.
const FIRST: i64 = 16;
/// A slice that lasts less than this is doubled: it is what a node can spend while the store is away.
const BUSY_US: i64 = 60_000_000;
/// A slice that nobody touches for so long is given back.
const IDLE_US: i64 = 2_000_000;

/// A moment at which the books are looked through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    pub(crate) now_us: i64,
    /// Every cell, or only those that want something.
    pub(crate) whole: bool,
    /// This node is the only one.
    pub(crate) exclusive: bool,
}

/// The sizing of one slice.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sizing {
    /// What to ask for next.
    slice: Money,
    /// The largest single request lately.
    largest: Money,
    /// What someone needed and did not get.
    short: Money,
    /// Less than half is left of the slice.
    low: bool,
    touched: bool,
    touched_us: i64,
    filled_us: i64,
    /// Let out while the store was away.
    advanced: Money,
    /// The store has been asked and said all there is.
    settled: bool,
    /// The budget was changed: the store's view is old.
    pub(crate) stale: bool,
}

impl Sizing {
    /// Money was held; true if more should be asked for ahead of need.
    pub(super) fn hold(&mut self, held: Money, left: Money) -> bool {
        self.touched = true;
        self.settled = false;
        self.largest = self.largest.max(held);
        let low = left.nanos() < self.slice.nanos() / 2;
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

    /// What to give back, to take and to take at least; nothing if all is well. `free`: what nobody has, as last seen.
    pub(super) fn ask(
        &mut self,
        round: Round,
        (available, is_over): (Money, bool),
        free: Option<Money>,
    ) -> Option<(Money, Money, Money)> {
        if std::mem::take(&mut self.touched) {
            self.touched_us = round.now_us;
        }
        let spare = available.max(Money::ZERO);
        if is_over {
            if self.settled || !round.whole {
                return None;
            }
            return Some((spare, Money::ZERO, Money::ZERO));
        }
        let unseen = free.is_none() || self.stale;
        if round.exclusive {
            let wants = unseen || !self.short.is_zero() && free.is_some_and(|free| free > Money::ZERO);
            let give = if self.stale { spare } else { Money::ZERO };
            return wants.then_some((give, Money::MAX, Money::ZERO));
        }
        if !self.short.is_zero() || self.low || unseen {
            if round.now_us - self.filled_us < BUSY_US {
                self.slice = self.slice.plus(self.slice);
            }
            let first = Money::from_nanos(self.largest.nanos().saturating_mul(FIRST));
            self.slice = self.slice.max(first).min(Money::from_nanos(i64::MAX / 8));
            // Too little is of no use here, but may be elsewhere: it goes back unless there is enough more.
            let is_short = !self.short.is_zero();
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
                self.slice
            };
            return Some((give, want, least));
        }
        if !round.whole || spare.is_zero() {
            return None;
        }
        if round.now_us - self.touched_us > IDLE_US {
            self.slice = Money::ZERO;
            return (!self.settled).then_some((spare, Money::ZERO, Money::ZERO));
        }
        let tight = free.is_some_and(|free| free < self.slice);
        if tight {
            let keep = Money::from_nanos(self.slice.nanos() / 2).max(self.largest);
            self.slice = keep;
            return Some((spare.minus(keep).max(Money::ZERO), Money::ZERO, Money::ZERO));
        }
        None
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

    /// What to let out on credit for what someone needed.
    pub(super) fn advance(&mut self, allowance: Money) -> Money {
        let room = allowance.minus(self.advanced).max(Money::ZERO);
        let more = if self.short.is_zero() {
            Money::ZERO
        } else {
            room.min(self.short.max(self.largest))
        };
        self.advanced = self.advanced.plus(more);
        if !more.is_zero() {
            self.short = Money::ZERO;
        }
        more
    }
}
