//! Budget windows: the stretch of calendar that a moment belongs to, in a time zone.

use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, Zoned};
use serde::{Deserialize, Serialize};

/// How often a budget starts afresh, at midnight in its zone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    #[default]
    Day,
    /// From Monday.
    Week,
    /// From the first of the month.
    Month,
    /// From the first of January, April, July and October.
    Quarter,
    /// Never: one amount for good.
    #[serde(alias = "lifetime")]
    Total,
}

impl Period {
    pub const ALL: [Period; 5] = [Self::Day, Self::Week, Self::Month, Self::Quarter, Self::Total];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Quarter => "quarter",
            Self::Total => "total",
        }
    }

    /// Reads what [`Period::as_str`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|period| period.as_str() == text)
    }

    /// The window that holds `unix_us`, microseconds since the epoch.
    pub fn window(self, zone: &Zone, unix_us: i64) -> Window {
        let whole = Window {
            starts_us: 0,
            ends_us: i64::MAX,
        };
        let Ok(now) = Timestamp::from_microsecond(unix_us) else {
            return whole;
        };
        let today = now.to_zoned(zone.0.clone()).date();
        let bounds = match self {
            Self::Day => Some((today, today.checked_add(1.day()))),
            Self::Week => {
                let monday = today.checked_sub(i64::from(since_monday(today)).days());
                monday.ok().map(|monday| (monday, monday.checked_add(1.week())))
            }
            Self::Month => Some((
                today.first_of_month(),
                today.first_of_month().checked_add(1.month()),
            )),
            Self::Quarter => {
                let first = today.first_of_month();
                let first = first.checked_sub(i64::from((first.month() - 1) % 3).months());
                first.ok().map(|first| (first, first.checked_add(3.months())))
            }
            Self::Total => None,
        };
        let midnight = |date: Date| date.to_zoned(zone.0.clone()).ok().map(micros);
        let window = bounds.and_then(|(first, next)| {
            Some(Window {
                starts_us: midnight(first)?,
                ends_us: midnight(next.ok()?)?,
            })
        });
        window.unwrap_or(whole)
    }
}

fn since_monday(date: Date) -> i8 {
    date.weekday().since(Weekday::Monday)
}

fn micros(moment: Zoned) -> i64 {
    moment.timestamp().as_microsecond()
}

/// From `starts_us` up to, not including, `ends_us`: microseconds since the epoch, `i64::MAX` for no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Window {
    pub starts_us: i64,
    pub ends_us: i64,
}

impl Window {
    pub const fn holds(&self, unix_us: i64) -> bool {
        self.starts_us <= unix_us && unix_us < self.ends_us
    }
}

/// A time zone by its IANA name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone(TimeZone);

impl Default for Zone {
    fn default() -> Self {
        Self(TimeZone::UTC)
    }
}

impl Zone {
    /// # Errors
    /// A name that is not in the time zone database.
    pub fn parse(name: &str) -> Result<Self, String> {
        TimeZone::get(name).map(Self).map_err(|_| {
            format!("`{name}` is not a time zone; use an IANA name such as `Europe/Berlin` or `UTC`")
        })
    }

    pub fn name(&self) -> &str {
        self.0.iana_name().unwrap_or("UTC")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_microsecond()
    }

    #[test]
    fn windows_follow_the_calendar_of_their_zone() {
        let check = |period: Period, zone: &str, at: &str, from: &str, to: &str| {
            let window = period.window(&Zone::parse(zone).unwrap(), moment(at));
            assert_eq!(
                (window.starts_us, window.ends_us),
                (moment(from), moment(to)),
                "{period:?} of {at} in {zone}"
            );
        };
        let tuesday = "2026-11-24T15:00:00Z";
        check(
            Period::Day,
            "UTC",
            tuesday,
            "2026-11-24T00:00:00Z",
            "2026-11-25T00:00:00Z",
        );
        check(
            Period::Week,
            "UTC",
            tuesday,
            "2026-11-23T00:00:00Z",
            "2026-11-30T00:00:00Z",
        );
        check(
            Period::Month,
            "UTC",
            tuesday,
            "2026-11-01T00:00:00Z",
            "2026-12-01T00:00:00Z",
        );
        check(
            Period::Quarter,
            "UTC",
            tuesday,
            "2026-10-01T00:00:00Z",
            "2027-01-01T00:00:00Z",
        );
        let late = "2026-11-24T23:30:00Z";
        check(
            Period::Day,
            "Europe/Berlin",
            late,
            "2026-11-24T23:00:00Z",
            "2026-11-25T23:00:00Z",
        );
        // The day on which the clocks go back has 25 hours, and the month has one more than its days.
        check(
            Period::Day,
            "Europe/Berlin",
            "2026-10-25T12:00:00Z",
            "2026-10-24T22:00:00Z",
            "2026-10-25T23:00:00Z",
        );
        check(
            Period::Month,
            "Asia/Kathmandu",
            "2026-12-31T18:15:00Z",
            "2026-12-31T18:15:00Z",
            "2027-01-31T18:15:00Z",
        );
    }

    #[test]
    fn a_total_has_no_end_and_windows_touch() {
        let zone = Zone::parse("America/New_York").unwrap();
        assert_eq!(
            Period::Total
                .window(&zone, moment("2026-11-24T15:00:00Z"))
                .ends_us,
            i64::MAX
        );
        for period in [Period::Day, Period::Week, Period::Month, Period::Quarter] {
            let mut window = period.window(&zone, moment("2026-01-01T00:00:00Z"));
            for _ in 0..400 {
                let next = period.window(&zone, window.ends_us);
                assert_eq!(next.starts_us, window.ends_us);
                assert!(window.holds(window.starts_us) && !window.holds(window.ends_us));
                window = next;
            }
        }
        assert!(Zone::parse("Mars/Olympus").unwrap_err().contains("IANA"));
    }
}
