//! Exact money. The only file that multiplies a price: integers, one rounding, upwards, at the end.
//!
//! Units: [`Money`] counts nano-dollars (10⁻⁹ $) in an `i64`, enough for ±9.2 billion dollars; [`Rate`] counts
//! pico-dollars (10⁻¹² $) per token, so that $0.000001 per million tokens is still a whole number.

use serde::{Deserialize, Serialize};

const NANOS_PER_DOLLAR: i64 = 1_000_000_000;
const PICOS_PER_NANO: u128 = 1_000;

/// An amount in nano-dollars. Arithmetic saturates: a wrong sign or a wrap-around is worse than a clamp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Money(i64);

impl Money {
    pub const ZERO: Money = Money(0);
    pub const MAX: Money = Money(i64::MAX);

    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    pub const fn from_dollars(dollars: i64) -> Self {
        Self(dollars.saturating_mul(NANOS_PER_DOLLAR))
    }

    pub const fn nanos(self) -> i64 {
        self.0
    }

    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    pub const fn plus(self, other: Money) -> Money {
        Money(self.0.saturating_add(other.0))
    }

    pub const fn minus(self, other: Money) -> Money {
        Money(self.0.saturating_sub(other.0))
    }

    /// Reads a decimal amount of dollars such as `12`, `12.50` or `0.000000001`; at most nine decimals.
    pub fn parse_dollars(text: &str) -> Result<Money, MoneyParseError> {
        let malformed = || MoneyParseError::Malformed(text.to_owned());
        let (sign, digits) = match text.trim().strip_prefix('-') {
            Some(rest) => (-1, rest),
            None => (1, text.trim()),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() && fraction.is_empty() || !all_digits(whole) || !all_digits(fraction) {
            return Err(malformed());
        }
        if fraction.len() > 9 {
            return Err(MoneyParseError::TooPrecise(text.to_owned()));
        }
        let whole: i64 = if whole.is_empty() {
            0
        } else {
            whole.parse().map_err(|_| malformed())?
        };
        let fraction: i64 = format!("{fraction:0<9}").parse().map_err(|_| malformed())?;
        let nanos = whole
            .checked_mul(NANOS_PER_DOLLAR)
            .and_then(|nanos| nanos.checked_add(fraction));
        nanos.map(|nanos| Money(sign * nanos)).ok_or_else(malformed)
    }
}

impl std::ops::Add for Money {
    type Output = Money;
    fn add(self, other: Money) -> Money {
        self.plus(other)
    }
}

impl std::ops::Sub for Money {
    type Output = Money;
    fn sub(self, other: Money) -> Money {
        self.minus(other)
    }
}

impl std::iter::Sum for Money {
    fn sum<I: Iterator<Item = Money>>(amounts: I) -> Money {
        amounts.fold(Money::ZERO, Money::plus)
    }
}

/// `$12.50`, `$0.000041`: at least two decimals, at most nine, no trailing zeros beyond cents.
impl std::fmt::Display for Money {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nanos = self.0.unsigned_abs();
        let (whole, fraction) = (nanos / NANOS_PER_DOLLAR as u64, nanos % NANOS_PER_DOLLAR as u64);
        let fraction = format!("{fraction:09}");
        let shown = fraction.trim_end_matches('0').len().max(2);
        write!(
            f,
            "{}${whole}.{}",
            if self.0 < 0 { "-" } else { "" },
            &fraction[..shown]
        )
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoneyParseError {
    #[error("`{0}` is not a decimal amount of dollars such as 12.50")]
    Malformed(String),
    #[error("`{0}` has more than nine decimals; money is kept in nano-dollars")]
    TooPrecise(String),
}

/// A price in pico-dollars per token, or per piece of what is billed by the piece. One dollar per million tokens is
/// `Rate(1_000_000)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rate(pub u64);

impl Rate {
    pub const ZERO: Rate = Rate(0);

    /// The price of `tokens` alone, rounded up to a nano-dollar.
    pub fn price(self, tokens: u64) -> Money {
        let mut bill = Bill::default();
        bill.add(self, tokens);
        bill.total()
    }

    /// How many whole tokens `money` pays for; `u64::MAX` where the rate is zero.
    pub fn affordable(self, money: Money) -> u64 {
        Bill::default().affordable(self, money)
    }
}

/// A running exact sum in pico-dollars; rounded once, upwards, by [`Bill::total`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Bill {
    picos: u128,
}

impl Bill {
    pub fn add(&mut self, rate: Rate, tokens: u64) {
        self.picos = self.picos.saturating_add(u128::from(rate.0) * u128::from(tokens));
    }

    pub fn total(self) -> Money {
        Money(i64::try_from(self.picos.div_ceil(PICOS_PER_NANO)).unwrap_or(i64::MAX))
    }

    /// How many more tokens at `rate` fit on this bill before its total is more than `money`; `u64::MAX` where they
    /// cost nothing. 0 where the bill alone is too much already.
    pub fn affordable(self, rate: Rate, money: Money) -> u64 {
        let picos = u128::from(money.nanos().max(0).unsigned_abs()) * PICOS_PER_NANO;
        let Some(left) = picos.checked_sub(self.picos) else {
            return 0;
        };
        left.checked_div(u128::from(rate.0))
            .map_or(u64::MAX, |tokens| u64::try_from(tokens).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dollars_read_and_print() {
        for (text, nanos, shown) in [
            ("12", 12_000_000_000, "$12.00"),
            ("0.5", 500_000_000, "$0.50"),
            ("0.000000001", 1, "$0.000000001"),
            ("-3.25", -3_250_000_000, "-$3.25"),
            (".75", 750_000_000, "$0.75"),
        ] {
            let money = Money::parse_dollars(text).unwrap();
            assert_eq!((money.nanos(), money.to_string().as_str()), (nanos, shown));
        }
        for bad in ["", "-", "1e3", "1,5", "abc", "99999999999", "1.2.3", "+1"] {
            assert!(
                matches!(Money::parse_dollars(bad), Err(MoneyParseError::Malformed(_))),
                "{bad}"
            );
        }
        assert!(matches!(
            Money::parse_dollars("0.0000000001"),
            Err(MoneyParseError::TooPrecise(_))
        ));
    }

    #[test]
    fn a_bill_rounds_once() {
        let mut bill = Bill::default();
        for _ in 0..1_000 {
            bill.add(Rate(1), 1);
        }
        assert_eq!(bill.total(), Money::from_nanos(1));
        assert_eq!(
            Rate(2_500_000).price(1_000_000),
            Money::parse_dollars("2.50").unwrap()
        );
    }

    proptest! {
        #[test]
        fn what_is_affordable_is_never_dearer_than_the_money(nanos in 0i64..i64::MAX / 2, rate in 1u64..u64::MAX) {
            let money = Money::from_nanos(nanos);
            prop_assert!(Rate(rate).price(Rate(rate).affordable(money)) <= money);
        }

        #[test]
        fn a_bill_takes_exactly_what_is_affordable(nanos in 0i64..1 << 50, first in 0u64..1 << 40, rate in 1u64..1 << 40) {
            let money = Money::from_nanos(nanos);
            let mut bill = Bill::default();
            bill.add(Rate(first), 1);
            let fits = bill.affordable(Rate(rate), money);
            let with = |tokens: u64| {
                let mut bill = bill;
                bill.add(Rate(rate), tokens);
                bill.total()
            };
            prop_assert!(bill.total() > money || with(fits) <= money);
            prop_assert!(with(fits + 1) > money);
        }
    }
}
