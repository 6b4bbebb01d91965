//! Alerts: thresholds of budgets that were passed, and whether the webhook has been told.

use super::form::{Moment, Page, PageQuery, Path, dollars, one_more, rows};
use super::route::{Answer, Call};
use ledger::StoredAlert;
use schemars::JsonSchema;
use serde::Serialize;

/// A threshold that was passed, once per budget and window.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Alert")]
pub(super) struct AlertView {
    budget: String,
    account: Path,
    /// Percent of the limit.
    threshold_percent: u16,
    /// Absent for a budget without windows.
    #[serde(skip_serializing_if = "Option::is_none")]
    window_starts_at: Option<Moment>,
    spent_dollars: String,
    limit_dollars: String,
    raised_at: Moment,
    /// When the webhook took it; absent: not yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    delivered_at: Option<Moment>,
    /// How often it was sent.
    tries: i64,
}

fn view(stored: StoredAlert) -> AlertView {
    let starts_us = stored.alert.window_starts_us;
    AlertView {
        budget: stored.alert.budget,
        account: Path(stored.account),
        threshold_percent: stored.alert.threshold,
        window_starts_at: (starts_us > 0).then_some(Moment(starts_us)),
        spent_dollars: dollars(stored.alert.spent),
        limit_dollars: dollars(stored.alert.limit),
        raised_at: Moment(stored.raised_us),
        delivered_at: stored.delivered_us.map(Moment),
        tries: stored.tries,
    }
}

/// An alert as the admin API shows it.
///
/// # Errors
/// It cannot be written as JSON.
pub(crate) fn alert_document(stored: StoredAlert) -> serde_json::Result<serde_json::Value> {
    serde_json::to_value(view(stored))
}

pub(super) async fn list(call: Call, query: PageQuery) -> Answer<Page<AlertView>> {
    let (rows, within) = (rows(query.limit)?, query.within(&call)?);
    let after = query.after(|cursor| {
        let (raised, named) = cursor.split_once(' ')?;
        let (threshold, budget) = named.split_once(' ')?;
        Some((raised.parse().ok()?, threshold.parse().ok()?, budget.to_owned()))
    })?;
    let found = call.ledger().raised(&within, after, one_more(rows)).await?;
    let cursor = |stored: &StoredAlert| {
        let alert = &stored.alert;
        format!("{} {} {}", stored.raised_us, alert.threshold, alert.budget)
    };
    Ok(Page::of(found, rows, cursor, view))
}
