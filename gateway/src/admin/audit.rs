//! The audit trail: who changed what, when and why.

use super::form::{Moment, Page, PageQuery, one_more, rows};
use super::route::{Answer, Call};
use ledger::AuditEntry;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

/// A change that was made.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "AuditEntry")]
pub(super) struct EntryView {
    id: i64,
    at: Moment,
    actor: String,
    reason: String,
    /// What was changed, such as `budget acme/search month`.
    subject: String,
    /// Whom it concerns; empty: the whole installation.
    account: String,
    /// Null: it was not there.
    before: Value,
    /// Null: it is no longer there.
    after: Value,
}

fn view(entry: AuditEntry) -> EntryView {
    let document = |text: Option<String>| {
        text.map_or(Value::Null, |text| {
            serde_json::from_str(&text).unwrap_or(Value::String(text))
        })
    };
    EntryView {
        id: entry.id,
        at: Moment(entry.at_us),
        actor: entry.actor,
        reason: entry.reason,
        subject: entry.subject,
        account: entry.account,
        before: document(entry.before),
        after: document(entry.after),
    }
}

pub(super) async fn list(call: Call, query: PageQuery) -> Answer<Page<EntryView>> {
    let (rows, within) = (rows(query.limit)?, query.within(&call)?);
    let before = query.after(|cursor| cursor.parse().ok())?.unwrap_or(i64::MAX);
    let found = call.ledger().audit(&within, before, one_more(rows)).await?;
    Ok(Page::of(found, rows, |entry| entry.id.to_string(), view))
}
