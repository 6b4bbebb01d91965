//! Spend and tokens, for finance.

use super::form::{Moment, Path, dollars};
use super::problem::Problem;
use super::requests::range;
use super::route::{Answer, Call};
use ledger::{Dimension, UsageQuery, UsageRow};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// How far it looks back where nobody says: thirty days.
const BACK_US: i64 = 30 * 86_400_000_000;
/// Sums at most.
const MOST: i64 = 10_000;

/// Which usage.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Asked {
    /// Of this account and of all below it. Left out: all that the key may see.
    account: Option<Path>,
    /// Of hours from then on. Left out: 30 days before `to`.
    from: Option<Moment>,
    /// Of hours before. Left out: now.
    to: Option<Moment>,
    /// What to sum by, with commas: `org`, `team`, `workflow`, `key`, `provider`, `model`, `class`, `origin`, `tier`, `value`,
    /// `day`, `hour`. Left out: one sum.
    by: Option<String>,
}

/// Sums of what arrived in a stretch of time, the dearest first.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Usage")]
pub(super) struct UsageView {
    from: Moment,
    to: Moment,
    data: Vec<Sum>,
    /// There is more than is shown: ask for less.
    cut: bool,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "UsageSum")]
struct Sum {
    /// What was summed by, each with its value.
    of: Map<String, Value>,
    requests: i64,
    refused: i64,
    attempts: i64,
    charge_dollars: String,
    /// The part of it that cancelled attempts cost.
    cancelled_dollars: String,
    /// The part of it that failed attempts cost.
    failed_dollars: String,
    input_tokens: i64,
    cached_tokens: i64,
    output_tokens: i64,
    reasoning_tokens: i64,
}

fn sum(row: UsageRow, by: &[Dimension]) -> Answer<Sum> {
    let mut of = Map::new();
    for (dimension, value) in by.iter().zip(row.of) {
        let value = match dimension {
            Dimension::Day | Dimension::Hour => serde_json::to_value(Moment(value.parse().unwrap_or(0))),
            _ => Ok(Value::String(value)),
        };
        let value = value.map_err(|error| Problem::new(500, "internal_error", error.to_string()))?;
        of.insert(dimension.as_str().to_owned(), value);
    }
    Ok(Sum {
        of,
        requests: row.requests,
        refused: row.refused,
        attempts: row.attempts,
        charge_dollars: dollars(row.charge),
        cancelled_dollars: dollars(row.cancelled_charge),
        failed_dollars: dollars(row.failed_charge),
        input_tokens: row.input_tokens,
        cached_tokens: row.cached_tokens,
        output_tokens: row.output_tokens,
        reasoning_tokens: row.reasoning_tokens,
    })
}

fn dimensions(text: &str) -> Answer<Vec<Dimension>> {
    let mut by = Vec::new();
    for name in text.split(',').filter(|name| !name.is_empty()) {
        let known = Dimension::parse(name).ok_or_else(|| {
            let all: Vec<&str> = Dimension::ALL.iter().map(|known| known.as_str()).collect();
            Problem::invalid(format!("`by`: there is no `{name}`"))
                .hint(format!("it is of {}", all.join(", ")))
        })?;
        if by.contains(&known) {
            return Err(Problem::invalid(format!("`by` has `{name}` twice")));
        }
        by.push(known);
    }
    Ok(by)
}

pub(super) async fn read(call: Call, asked: Asked) -> Answer<UsageView> {
    let within = call.who.sees(asked.account.as_ref().map(|path| &path.0))?;
    let range = range(&call, (asked.from, asked.to), BACK_US)?;
    let by = dimensions(asked.by.as_deref().unwrap_or(""))?;
    call.ledger().flush().await;
    let query = UsageQuery {
        within: &within,
        range,
        by: &by,
        limit: MOST + 1,
    };
    let mut rows = call.ledger().usage(query).await?;
    let most = usize::try_from(MOST).unwrap_or(usize::MAX);
    let cut = rows.len() > most;
    rows.truncate(most);
    Ok(UsageView {
        from: Moment(range.from_us),
        to: Moment(range.to_us),
        data: rows.into_iter().map(|row| sum(row, &by)).collect::<Answer<_>>()?,
        cut,
    })
}
