//! Jobs of everyone, for operators; and the workload audit: what could have waited.

use super::form::{Nothing, dollars};
use super::problem::Problem;
use super::route::{Answer, Call};
use crate::fleet::Price;
use exchange::{Money, ServiceTier, TokenClass, Usage, UsageSource};
use ledger::{Job, Tally, Waitable};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const DAY_US: i64 = 86_400_000_000;

/// Which jobs.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct JobsQuery {
    /// `next_cursor` of the page before.
    cursor: Option<i64>,
    /// Rows, 1 to 500. Left out: 100.
    #[schemars(range(min = 1, max = 500))]
    limit: Option<i64>,
}

/// How far the workload audit looks back.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AuditQuery {
    /// In days. Left out: 30.
    days: Option<i64>,
}

/// A job as operators see it: nothing of its contents.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Job")]
pub(super) struct JobView {
    id: String,
    /// batch, messages or request.
    kind: &'static str,
    account: String,
    state: String,
    /// What it was declared to be.
    labels: BTreeMap<String, String>,
    items: i64,
    /// Items that have ended.
    done: i64,
    /// Items by state.
    by_state: Value,
    rescued: i64,
    /// Items that came after their deadline.
    missed: i64,
    charge_dollars: String,
    saved_dollars: String,
    held_dollars: String,
    created_us: i64,
    deadline_us: i64,
    ended_us: i64,
    #[serde(skip_serializing_if = "String::is_empty")]
    problem: String,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(super) struct JobsPage {
    data: Vec<JobView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<i64>,
}

fn view(job: &Job, tally: &Tally) -> JobView {
    let open = job.ended_us == 0;
    JobView {
        id: job.id.clone(),
        kind: job.kind.as_str(),
        account: job.account.to_string(),
        state: job.state.clone(),
        labels: job
            .labels
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect(),
        items: job.total,
        done: tally.by_state.values().sum::<i64>() - tally.open(),
        by_state: json!(tally.by_state),
        rescued: tally.rescued,
        missed: tally.late,
        charge_dollars: dollars(tally.charge),
        saved_dollars: dollars(tally.saved),
        held_dollars: dollars(if open { tally.held } else { Money::ZERO }),
        created_us: job.created_us,
        deadline_us: job.deadline_us,
        ended_us: job.ended_us,
        problem: job.problem.clone(),
    }
}

pub(super) async fn list(call: Call, query: JobsQuery) -> Answer<JobsPage> {
    call.who.must_see_everything()?;
    let limit = query.limit.unwrap_or(100);
    if !(1..=500).contains(&limit) {
        return Err(Problem::invalid("`limit` is from 1 to 500"));
    }
    let jobs = &call.gateway.batch.jobs;
    let found = jobs.all(query.cursor.unwrap_or(i64::MAX), limit).await?;
    let mut data = Vec::with_capacity(found.len());
    for job in &found {
        data.push(view(job, &jobs.tally(&job.id).await?));
    }
    let full = i64::try_from(found.len()).unwrap_or(0) == limit;
    let next_cursor = found.last().filter(|_| full).map(|job| job.created_us);
    Ok(JobsPage { data, next_cursor })
}

async fn found(call: &Call) -> Answer<Job> {
    call.who.must_see_everything()?;
    let id = call.parameter("id");
    let job = call.gateway.batch.jobs.job(id).await?;
    job.ok_or_else(|| Problem::missing(format!("job `{id}`")))
}

pub(super) async fn read(call: Call, _: Nothing) -> Answer<JobView> {
    let job = found(&call).await?;
    let tally = call.gateway.batch.jobs.tally(&job.id).await?;
    Ok(view(&job, &tally))
}

pub(super) async fn cancel(call: Call, _: Nothing) -> Answer<JobView> {
    let job = found(&call).await?;
    if !call.gateway.batch.jobs.cancel(&job.id).await? && job.state != "cancelling" {
        return Err(Problem::new(
            409,
            "ended",
            format!("the job is {} already", job.state),
        ));
    }
    call.gateway.batch.wake();
    read(call, Nothing {}).await
}

/// What waits for a batch, or is in one, is answered by the synchronous tier instead. What a provider answers of it all the
/// same is charged too.
pub(super) async fn rescue(call: Call, _: Nothing) -> Answer<JobView> {
    let job = found(&call).await?;
    if job.ended_us > 0 || job.state != "running" {
        let message = format!("the job is {}: nothing of it waits", job.state);
        return Err(Problem::new(409, "ended", message));
    }
    let jobs = &call.gateway.batch.jobs;
    jobs.rescue(&job.id, "it was rescued by hand").await?;
    call.gateway.batch.wake();
    read(call, Nothing {}).await
}

/// Answers that lie for so long before they are read could have waited as long.
const LAY_US: i64 = 600_000_000;

/// Work that ran at once and could have waited.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(super) struct WaitableView {
    account: String,
    provider: String,
    model: String,
    /// `declared`: its latency tier says so. `schedule`: it comes in few hours of the day, and is not streamed.
    /// `first_read`: a job's answers lay for long before anybody read them.
    evidence: &'static str,
    requests: i64,
    charge_dollars: String,
    /// What the same tokens would have cost less as a batch.
    left_dollars: String,
    /// How long an answer takes now.
    latency_ms: i64,
    /// How long a batch of this model takes, where any has been seen.
    batch_ms: Option<i64>,
    /// How long answers lay before they were first read, on average; known of jobs only.
    first_read_ms: Option<i64>,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(super) struct AuditView {
    days: i64,
    left_dollars: String,
    data: Vec<WaitableView>,
}

pub(super) async fn audit(call: Call, query: AuditQuery) -> Answer<AuditView> {
    call.who.must_see_everything()?;
    let days = query.days.unwrap_or(30).clamp(1, 3650);
    let found = call.gateway.batch.jobs.waitable(days * DAY_US).await?;
    let (mut total, mut data) = (Money::ZERO, Vec::with_capacity(found.len()));
    for one in found {
        let left = left(&call, &one);
        if left <= Money::ZERO {
            continue;
        }
        total = total.plus(left);
        data.push(WaitableView {
            account: path([&one.org, &one.team, &one.workflow]),
            evidence: if matches!(one.latency.as_str(), "deferred" | "batch") {
                "declared"
            } else {
                "schedule"
            },
            requests: one.requests,
            charge_dollars: dollars(one.charge),
            left_dollars: dollars(left),
            latency_ms: one.latency_us / 1000,
            batch_ms: one.batch_us.map(|us| us / 1000),
            first_read_ms: None,
            provider: one.provider,
            model: one.model,
        });
    }
    for one in call.gateway.batch.jobs.first_reads(days * DAY_US).await? {
        if one.lay_us < LAY_US {
            continue;
        }
        total = total.plus(one.left);
        data.push(WaitableView {
            account: path([&one.org, &one.team, &one.workflow]),
            evidence: "first_read",
            requests: one.items,
            charge_dollars: dollars(one.charge),
            left_dollars: dollars(one.left),
            latency_ms: one.answer_us / 1000,
            batch_ms: None,
            first_read_ms: Some(one.lay_us / 1000),
            provider: one.provider,
            model: one.model,
        });
    }
    Ok(AuditView {
        days,
        left_dollars: dollars(total),
        data,
    })
}

fn path(parts: [&str; 3]) -> String {
    let shown = parts.map(|part| if part.is_empty() { "-" } else { part });
    shown.join("/").trim_end_matches("/-").to_owned()
}

/// By the prices in force: the part of the charge that the batch tier takes off.
fn left(call: &Call, one: &Waitable) -> Money {
    let rules = call.gateway.rules.now();
    let mut fleet = rules.fleet.iter();
    let found =
        fleet.find(|known| *known.upstream.settings.name == *one.provider && *known.model == *one.model);
    let Some(deployment) = found else {
        return Money::ZERO;
    };
    let price = deployment.price.load();
    if !matches!(&**price, Price::Known(_)) {
        return Money::ZERO;
    }
    let usage = Usage::new(UsageSource::Reported)
        .with(TokenClass::Input, one.input_tokens.unsigned_abs())
        .with(TokenClass::Output, one.output_tokens.unsigned_abs());
    let cost = |tier| price.charge(&usage, tier).total;
    let (standard, batch) = (cost(ServiceTier::Standard), cost(ServiceTier::Batch));
    // Caches made it cheaper than the list says: so is what would have been saved.
    let part = i128::from(standard.minus(batch).nanos()) * i128::from(one.charge.nanos());
    Money::from_nanos(i64::try_from(part / i128::from(standard.nanos().max(1))).unwrap_or(0))
}
