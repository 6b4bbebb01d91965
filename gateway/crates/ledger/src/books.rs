//! The balances in memory: what is spent and held in every budget window, changed under one short lock.
//!
//! A window that ends drops what was spent in it and keeps what is held: money held across midnight counts against
//! the new window until it is settled there.

use crate::window::{Period, start_of};
use exchange::Money;
use std::collections::HashMap;
use std::sync::Arc;

/// One budget as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balance {
    pub account: Arc<str>,
    pub period: Period,
    pub limit: Money,
    pub spent: Money,
    pub reserved: Money,
    /// When the window ends; `i64::MAX` for a lifetime budget.
    pub resets_unix_us: i64,
}

impl Balance {
    pub fn remaining(&self) -> Money {
        self.limit.minus(self.spent).minus(self.reserved)
    }
}

/// Positions of the accounts on a path that have budgets.
pub(crate) type Path = Arc<[usize]>;

#[derive(Debug, Default)]
pub(crate) struct Books {
    accounts: Vec<Vec<Balance>>,
    by_name: HashMap<Arc<str>, usize>,
}

impl Books {
    pub(crate) fn add(&mut self, balance: Balance) {
        let next = self.accounts.len();
        let position = *self.by_name.entry(balance.account.clone()).or_insert(next);
        if position == next {
            self.accounts.push(Vec::new());
        }
        self.accounts[position].push(balance);
    }

    pub(crate) fn path<'a>(&self, names: impl Iterator<Item = &'a str>) -> Path {
        names.filter_map(|name| self.by_name.get(name).copied()).collect()
    }

    fn budgets<'a>(
        &'a mut self,
        path: &'a [usize],
        now_unix_us: i64,
    ) -> impl Iterator<Item = &'a mut Balance> {
        for position in path {
            for balance in &mut self.accounts[*position] {
                if now_unix_us >= balance.resets_unix_us {
                    balance.spent = Money::ZERO;
                    balance.resets_unix_us = start_of(balance.period.days(now_unix_us).1);
                }
            }
        }
        let on_path = move |(position, _): &(usize, &mut Vec<Balance>)| path.contains(position);
        self.accounts
            .iter_mut()
            .enumerate()
            .filter(on_path)
            .flat_map(|(_, budgets)| budgets)
    }

    /// Holds between `least` and `want` in every budget of the path, or nothing: then the tightest budget is told.
    pub(crate) fn hold(
        &mut self,
        path: &[usize],
        want: Money,
        least: Money,
        now: i64,
    ) -> Result<Held, Balance> {
        let mut left = Money::MAX;
        let mut tightest = None;
        for balance in self.budgets(path, now) {
            if balance.remaining() < left {
                left = balance.remaining();
                tightest = Some(balance.clone());
            }
        }
        let granted = want.min(left).max(Money::ZERO);
        match tightest {
            Some(balance) if granted < least => return Err(balance),
            _ => {}
        }
        for balance in self.budgets(path, now) {
            balance.reserved = balance.reserved.plus(granted);
        }
        Ok(Held {
            granted,
            remaining: left.minus(granted),
        })
    }

    /// Gives back what was held and posts what was spent.
    pub(crate) fn settle(&mut self, path: &[usize], held: Money, spent: Money, now: i64) {
        for balance in self.budgets(path, now) {
            balance.reserved = balance.reserved.minus(held);
            assert!(
                balance.reserved >= Money::ZERO,
                "more was given back than was held for {}",
                balance.account
            );
            balance.spent = balance.spent.plus(spent);
        }
    }

    pub(crate) fn balances(&mut self, path: &[usize], now: i64) -> Vec<Balance> {
        self.budgets(path, now).map(|balance| balance.clone()).collect()
    }

    pub(crate) fn all(&mut self, now: i64) -> Vec<Balance> {
        let everything: Vec<usize> = (0..self.accounts.len()).collect();
        self.balances(&everything, now)
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) granted: Money,
    pub(crate) remaining: Money,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: i64 = 86_400_000_000;

    fn books(limits: &[i64]) -> (Books, Path) {
        let mut books = Books::default();
        for (level, limit) in limits.iter().enumerate() {
            books.add(Balance {
                account: format!("account-{level}").into(),
                period: Period::Day,
                limit: Money::from_nanos(*limit),
                spent: Money::ZERO,
                reserved: Money::ZERO,
                resets_unix_us: DAY,
            });
        }
        let names: Vec<String> = (0..limits.len())
            .map(|level| format!("account-{level}"))
            .collect();
        let path = books.path(names.iter().map(String::as_str));
        (books, path)
    }

    #[test]
    fn a_new_day_forgets_what_was_spent_but_not_what_is_held() {
        let (mut books, path) = books(&[100]);
        let ten = Money::from_nanos(10);
        assert_eq!(books.hold(&path, ten, ten, 0).unwrap().granted, ten);
        books.settle(&path, Money::ZERO, Money::from_nanos(50), 0);
        let tomorrow = books.all(DAY);
        assert_eq!((tomorrow[0].spent, tomorrow[0].reserved), (Money::ZERO, ten));
    }

    proptest! {
        /// Whatever is held, settled at or below its hold, or given back: no budget ever exceeds its limit.
        #[test]
        fn no_sequence_of_grants_overspends(limits in prop::collection::vec(0i64..1000, 1..4),
                                            steps in prop::collection::vec((0i64..300, 0i64..300, 0u8..3), 1..60)) {
            let (mut books, path) = books(&limits);
            let mut running: Vec<Money> = Vec::new();
            for (want, least, action) in steps {
                match action {
                    0 | 1 => {
                        let (want, least) = (Money::from_nanos(want), Money::from_nanos(least.min(want)));
                        if let Ok(held) = books.hold(&path, want, least, 0) {
                            prop_assert!(held.granted >= least && held.granted <= want);
                            running.push(held.granted);
                        }
                    }
                    _ => if let Some(held) = running.pop() {
                        books.settle(&path, held, held.min(Money::from_nanos(want)), 0);
                    }
                }
                for balance in books.all(0) {
                    prop_assert!(balance.spent.plus(balance.reserved) <= balance.limit);
                }
            }
        }
    }
}
