//! Forms that several routes share: moments, accounts, pages.

use super::problem::Problem;
use super::route::{Answer, Call};
use exchange::{AccountPath, Money};
use ledger::Subtree;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Rows of a page where nobody says how many.
const ROWS: u32 = 100;
/// The most rows of a page.
const MOST: u32 = 500;

/// A moment as RFC 3339 has it, in UTC; microseconds since the epoch within.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment(pub(super) i64);

impl Moment {
    /// 9999, the last year that RFC 3339 can write.
    const LAST: i64 = 253_402_300_799_999_999;
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let nanos = i128::from(self.0.clamp(0, Self::LAST)) * 1000;
        let moment = OffsetDateTime::from_unix_timestamp_nanos(nanos).map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(&moment.format(&Rfc3339).map_err(serde::ser::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let moment = OffsetDateTime::parse(&text, &Rfc3339).map_err(|_| {
            serde::de::Error::custom(format!("`{text}` is no moment: write it as 2026-11-24T15:00:00Z"))
        })?;
        let us = i64::try_from(moment.unix_timestamp_nanos() / 1000);
        us.map(Self).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Moment {
    fn schema_name() -> Cow<'static, str> {
        "Moment".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string", "format": "date-time", "description": "RFC 3339, in UTC.",
        })
    }
}

/// The path of an account as text, `org/team/workflow/key`, with `-` for a level in between that is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(super) struct Path(#[serde(serialize_with = "shown")] pub(super) AccountPath);

fn shown<S: Serializer>(path: &AccountPath, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(path)
}

impl<'de> Deserialize<'de> for Path {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Path {
    fn schema_name() -> Cow<'static, str> {
        "AccountPath".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string", "pattern": "^[^/]+(/[^/]+){0,3}$", "examples": ["acme", "acme/search", "acme/search/nightly", "acme/search/-/ci"],
            "description": "org/team/workflow/key, with `-` for a level in between that is absent.",
        })
    }
}

/// Backend classes, for the schema.
#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "it is there for its schema alone")]
pub(super) enum Class {
    Frontier,
    Cheap,
    Local,
    Batch,
}

/// Dollars as decimal text, without a sign for the currency.
pub(super) fn dollars(money: Money) -> String {
    money.to_string().replace('$', "")
}

/// Which page of which account.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PageQuery {
    /// This account and all below it. Left out: all that the key may see.
    pub(super) account: Option<Path>,
    /// `next_cursor` of the page before.
    pub(super) cursor: Option<String>,
    /// Rows, 1 to 500. Left out: 100.
    #[schemars(range(min = 1, max = 500))]
    pub(super) limit: Option<u32>,
}

impl PageQuery {
    /// # Errors
    /// The account is not the visitor's.
    pub(super) fn within(&self, call: &Call) -> Answer<Subtree> {
        call.who.sees(self.account.as_ref().map(|path| &path.0))
    }

    /// Empty: from the first row on.
    pub(super) fn cursor(&self) -> &str {
        self.cursor.as_deref().unwrap_or("")
    }

    /// `None`: from the first row on.
    ///
    /// # Errors
    /// It is not one of this list.
    pub(super) fn after<T>(&self, read: impl FnOnce(&str) -> Option<T>) -> Answer<Option<T>> {
        after(self.cursor.as_deref(), read)
    }
}

/// What a cursor stands for; `None`: from the first row on.
///
/// # Errors
/// It is not one of this list.
pub(super) fn after<T>(cursor: Option<&str>, read: impl FnOnce(&str) -> Option<T>) -> Answer<Option<T>> {
    match cursor {
        None | Some("") => Ok(None),
        Some(cursor) => match read(cursor) {
            Some(after) => Ok(Some(after)),
            None => Err(Problem::invalid("that is no cursor of this list")),
        },
    }
}

/// How many rows are wanted.
///
/// # Errors
/// None, or too many.
pub(super) fn rows(limit: Option<u32>) -> Answer<usize> {
    match limit.unwrap_or(ROWS) {
        rows @ 1..=MOST => Ok(rows as usize),
        rows => Err(Problem::invalid(format!("`limit` of {rows}: it is 1 to {MOST}"))),
    }
}

/// Asking for one row more than is shown tells whether there is another page.
pub(super) fn one_more(rows: usize) -> i64 {
    i64::try_from(rows).map_or(i64::MAX, |rows| rows + 1)
}

/// A part of a list.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(super) struct Page<T> {
    pub(super) data: Vec<T>,
    /// What to ask for next; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_cursor: Option<String>,
}

impl<T> Page<T> {
    /// Of what was found, one row more than wanted if there is more.
    pub(super) fn of<S>(
        mut found: Vec<S>,
        rows: usize,
        cursor: impl Fn(&S) -> String,
        view: impl FnMut(S) -> T,
    ) -> Self {
        let is_more = found.len() > rows;
        found.truncate(rows);
        let next_cursor = found.last().filter(|_| is_more).map(cursor);
        Self {
            data: found.into_iter().map(view).collect(),
            next_cursor,
        }
    }
}

/// Why something is changed.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Why {
    /// For the audit trail.
    pub(super) reason: Option<String>,
}

/// Nothing to say.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// What is there, even if it is `null`.
pub(super) fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_as_they_are_shown() {
        let moment = Moment(1_795_532_400_123_456);
        let text = serde_json::to_string(&moment).unwrap();
        assert_eq!(text, "\"2026-11-24T15:00:00.123456Z\"");
        assert_eq!(serde_json::from_str::<Moment>(&text).unwrap(), moment);
        assert!(serde_json::to_string(&Moment(i64::MAX)).is_ok());
        assert!(serde_json::from_str::<Moment>("\"tomorrow\"").is_err());
    }

    #[test]
    fn a_page_tells_whether_there_is_another() {
        let page = |found: Vec<i32>| Page::of(found, 2, i32::to_string, |one| one);
        assert_eq!(page(vec![1, 2, 3]).next_cursor.as_deref(), Some("2"));
        assert_eq!(page(vec![1, 2]).next_cursor, None);
        assert!(rows(Some(0)).is_err() && rows(Some(501)).is_err());
    }
}
