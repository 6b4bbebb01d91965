//! Spend and tokens, summed from the hours: what finance reads without raw rows.

use super::accounts::{Subtree, levels};
use super::read::Range;
use super::sql::{Row, Sql, Value};
use super::{Store, StoreError, unread};
use exchange::Money;

/// By what sums are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dimension {
    Org,
    Team,
    Workflow,
    Key,
    Provider,
    Model,
    Class,
    Origin,
    Tier,
    Value,
    /// UTC.
    Day,
    Hour,
}

impl Dimension {
    pub const ALL: [Self; 12] = [
        Self::Org,
        Self::Team,
        Self::Workflow,
        Self::Key,
        Self::Provider,
        Self::Model,
        Self::Class,
        Self::Origin,
        Self::Tier,
        Self::Value,
        Self::Day,
        Self::Hour,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Org => "org",
            Self::Team => "team",
            Self::Workflow => "workflow",
            Self::Key => "key",
            Self::Provider => "provider",
            Self::Model => "model",
            Self::Class => "class",
            Self::Origin => "origin",
            Self::Tier => "tier",
            Self::Value => "value",
            Self::Day => "day",
            Self::Hour => "hour",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == text)
    }

    /// As text. Times are microseconds since the epoch.
    fn sql(self) -> &'static str {
        match self {
            Self::Day => "CAST(hour_us - hour_us % 86400000000 AS TEXT)",
            Self::Hour => "CAST(hour_us AS TEXT)",
            column => column.as_str(),
        }
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct UsageQuery<'a> {
    pub within: &'a Subtree,
    pub range: Range,
    /// Each at most once.
    pub by: &'a [Dimension],
    /// So many rows at most, the dearest first.
    pub limit: i64,
}

/// A sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageRow {
    /// In the order in which the dimensions were asked for.
    pub of: Vec<String>,
    pub requests: i64,
    pub refused: i64,
    pub attempts: i64,
    pub charge: Money,
    pub cancelled_charge: Money,
    pub failed_charge: Money,
    pub input_tokens: i64,
    pub cached_tokens: i64,
    pub output_tokens: i64,
    pub reasoning_tokens: i64,
}

const SUMS: [&str; 10] = [
    "requests",
    "refused",
    "attempts",
    "charge",
    "cancelled_charge",
    "failed_charge",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "reasoning_tokens",
];

impl Store {
    pub(crate) async fn usage(&self, asked: UsageQuery<'_>) -> Result<Vec<UsageRow>, StoreError> {
        let by: Vec<&str> = asked.by.iter().map(|dimension| dimension.sql()).collect();
        let sums: Vec<String> = SUMS
            .iter()
            .map(|column| format!("CAST(coalesce(sum({column}), 0) AS {{big}})"))
            .collect();
        let columns: Vec<&str> = by.iter().copied().chain(sums.iter().map(|sum| &**sum)).collect();
        let places: Vec<String> = (1..=by.len()).map(|place| place.to_string()).collect();
        let group = if by.is_empty() {
            String::new()
        } else {
            format!("GROUP BY {}", places.join(", "))
        };
        let sql = Sql::new(&format!(
            "SELECT {} FROM hourly WHERE hour_us >= $1 AND hour_us < $2 AND ($3 = '' OR org = $3) AND ($4 = '' OR team = $4) \
             AND ($5 = '' OR workflow = $5) {group} ORDER BY {} DESC LIMIT $6",
            columns.join(", "),
            by.len() + 4
        ));
        let [org, team, workflow, _] = levels(asked.within.root());
        let values = [
            Value::Int(asked.range.from_us),
            Value::Int(asked.range.to_us),
            Value::Text(org),
            Value::Text(team),
            Value::Text(workflow),
            Value::Int(asked.limit),
        ];
        let rows = self.pool.fetch(&sql, &values).await.map_err(unread)?;
        let sums = |row: &Row| {
            let first = by.len();
            let money = |at: usize| row.int(first + at).map(Money::from_nanos);
            Ok(UsageRow {
                of: (0..first).map(|at| row.text(at)).collect::<sqlx::Result<_>>()?,
                requests: row.int(first)?,
                refused: row.int(first + 1)?,
                attempts: row.int(first + 2)?,
                charge: money(3)?,
                cancelled_charge: money(4)?,
                failed_charge: money(5)?,
                input_tokens: row.int(first + 6)?,
                cached_tokens: row.int(first + 7)?,
                output_tokens: row.int(first + 8)?,
                reasoning_tokens: row.int(first + 9)?,
            })
        };
        rows.iter().map(sums).collect::<sqlx::Result<_>>().map_err(unread)
    }
}
