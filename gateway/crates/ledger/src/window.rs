//! Budget windows: which run of UTC days a moment belongs to.

use serde::{Deserialize, Serialize};

const DAY_US: i64 = 86_400_000_000;

/// How often a budget starts afresh, at midnight UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    Day,
    /// From Monday.
    Week,
    /// From the first of the month.
    Month,
    /// Never.
    Lifetime,
}

impl Period {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Lifetime => "lifetime",
        }
    }

    /// The window that holds `unix_us`: its first day and the day after its last, counted from the epoch.
    pub(crate) fn days(self, unix_us: i64) -> (i64, i64) {
        let day = day_of(unix_us);
        match self {
            Self::Day => (day, day + 1),
            Self::Week => {
                // Day 0 was a Thursday.
                let monday = day - (day + 3).rem_euclid(7);
                (monday, monday + 7)
            }
            Self::Month => month(day),
            Self::Lifetime => (i64::MIN, i64::MAX),
        }
    }
}

pub(crate) fn day_of(unix_us: i64) -> i64 {
    unix_us.div_euclid(DAY_US)
}

/// The moment a day begins; saturates for the ends of a lifetime.
pub(crate) fn start_of(day: i64) -> i64 {
    day.saturating_mul(DAY_US)
}

fn month(day: i64) -> (i64, i64) {
    let epoch = time::Date::from_calendar_date(1970, time::Month::January, 1).unwrap_or(time::Date::MIN);
    let Some(date) = epoch.checked_add(time::Duration::days(day)) else {
        return (day, day + 1);
    };
    let first = day - i64::from(date.day()) + 1;
    (first, first + i64::from(date.month().length(date.year())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_aligned_to_the_calendar() {
        // Tuesday, 24 November 2026, 15:00 UTC.
        let moment = 1_795_532_400_000_000;
        assert_eq!(day_of(moment), 20_781);
        assert_eq!(Period::Day.days(moment), (20_781, 20_782));
        assert_eq!(Period::Week.days(moment), (20_780, 20_787));
        assert_eq!(Period::Month.days(moment), (20_758, 20_788));
        assert_eq!(start_of(Period::Lifetime.days(moment).1), i64::MAX);
    }
}
