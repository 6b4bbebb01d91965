//! Requests as the ledger has them.

use super::form::{Moment, Nothing, Page, Path, after, dollars, one_more, rows};
use super::problem::Problem;
use super::route::{Answer, Call};
use exchange::{AccountPath, RequestId};
use ledger::{Range, StoredAttempt, StoredRequest, Summary};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// How far a list looks back where nobody says: a day.
const BACK_US: i64 = 86_400_000_000;

/// Which requests.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RequestQuery {
    /// Of this account and of all below it. Left out: all that the key may see.
    account: Option<Path>,
    /// That arrived from then on. Left out: a day before `to`.
    from: Option<Moment>,
    /// That arrived before. Left out: now.
    to: Option<Moment>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Rows, 1 to 500. Left out: 100.
    #[schemars(range(min = 1, max = 500))]
    limit: Option<u32>,
}

/// A request in a list.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "RequestSummary")]
pub(super) struct SummaryView {
    id: String,
    /// Absent: nobody knows whose it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<Path>,
    model_asked: String,
    ending: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<String>,
    status: i64,
    started_at: Moment,
    total_ms: i64,
    charge_dollars: String,
}

/// A request and its attempts.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Request")]
pub(super) struct RequestView {
    id: String,
    account: String,
    model_asked: String,
    ending: String,
    status: i64,
    /// What its answer is worth.
    value: String,
    /// How soon it was needed.
    latency: String,
    started_at: Moment,
    total_ms: i64,
    charge_dollars: String,
    /// What was held for it when it ended.
    held_dollars: String,
    /// It was settled after its hold had expired.
    late: bool,
    attempts: Vec<AttemptView>,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Attempt")]
struct AttemptView {
    number: i64,
    deployment: String,
    model: String,
    outcome: String,
    /// `reported` by the provider, `counted` by the gateway, or `estimated`.
    usage_source: String,
    input_tokens: i64,
    output_tokens: i64,
    charge_dollars: String,
}

fn summary(summary: Summary) -> SummaryView {
    SummaryView {
        id: summary.id.to_string(),
        account: summary.account.map(Path),
        model_asked: summary.model_asked,
        ending: summary.ending,
        refusal: summary.refusal,
        status: summary.status,
        started_at: Moment(summary.started_us),
        total_ms: summary.total_us / 1000,
        charge_dollars: dollars(summary.charge),
    }
}

fn attempt(attempt: StoredAttempt) -> AttemptView {
    AttemptView {
        number: attempt.number,
        deployment: attempt.deployment,
        model: attempt.model,
        outcome: attempt.outcome,
        usage_source: attempt.usage_source,
        input_tokens: attempt.input_tokens,
        output_tokens: attempt.output_tokens,
        charge_dollars: attempt.charge.replace('$', ""),
    }
}

fn whole(request: StoredRequest) -> RequestView {
    RequestView {
        id: request.id,
        account: request.account,
        model_asked: request.model_asked,
        ending: request.ending,
        status: request.status,
        value: request.value,
        latency: request.latency,
        started_at: Moment(request.started_us),
        total_ms: request.total_us / 1000,
        charge_dollars: request.total.replace('$', ""),
        held_dollars: request.held.replace('$', ""),
        late: request.late,
        attempts: request.attempts.into_iter().map(attempt).collect(),
    }
}

/// # Errors
/// It ends before it begins.
pub(super) fn range(
    call: &Call,
    (from, to): (Option<Moment>, Option<Moment>),
    back_us: i64,
) -> Answer<Range> {
    let to_us = to.map_or(call.now_us, |to| to.0);
    let from_us = from.map_or(to_us.saturating_sub(back_us), |from| from.0);
    if from_us >= to_us {
        return Err(Problem::invalid("`from` is not before `to`"));
    }
    Ok(Range { from_us, to_us })
}

pub(super) async fn list(call: Call, query: RequestQuery) -> Answer<Page<SummaryView>> {
    let rows = rows(query.limit)?;
    let within = call.who.sees(query.account.as_ref().map(|path| &path.0))?;
    let range = range(&call, (query.from, query.to), BACK_US)?;
    let before = after(query.cursor.as_deref(), |cursor| Uuid::parse_str(cursor).ok())?;
    call.ledger().flush().await;
    let page = (before.map(RequestId), one_more(rows));
    let found = call.ledger().requests(&within, range, page).await?;
    Ok(Page::of(found, rows, |request| request.id.to_string(), summary))
}

pub(super) async fn read(call: Call, _: Nothing) -> Answer<RequestView> {
    let text = call.parameter("id");
    let missing = || Problem::missing(format!("request {text}")).hint("rows end after `store.keep_days`");
    let id = Uuid::parse_str(text).map_err(|_| missing())?;
    call.ledger().flush().await;
    let found = call.ledger().request(RequestId(id)).await?;
    let found = found.ok_or_else(missing)?;
    // Nobody knows whose a request without an account was.
    let own = match found.account.trim_end_matches("/-").parse::<AccountPath>() {
        Ok(path) => call.who.must_own(&path),
        Err(_) => call.who.must_see_everything(),
    };
    own.map_err(|_| missing())?;
    Ok(whole(found))
}
