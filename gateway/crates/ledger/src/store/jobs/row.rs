//! Rows read back.

use crate::jobs::{Job, JobKind, Pack, Pool, StoredItem};
use crate::store::sql::Row;
use exchange::{AccountPath, Money};
use std::sync::Arc;

pub(super) const JOB: &str = "id, kind, org, team, workflow, key, key_hash, dialect, endpoint, state, input, name, metadata, \
    webhook, idempotency, total, bytes, created_us, deadline_us, cancelled_us, ended_us, expires_us, problem, read_us, labels";
pub(super) const ITEM: &str = "job, number, custom_id, state, way, rescue, deployment, request, held, charge, saved, tries, \
    deadline_us, status, problem, ended_us, input, output, decision";
pub(super) const PACK: &str = "id, provider, deployment, model, endpoint, backend, state, file, remote, items, cancelling, \
    tries, created_us, submitted_us, ended_us, deadline_us, problem, {now}";

pub(super) fn job(row: &Row) -> sqlx::Result<Job> {
    let level = |at: usize| -> sqlx::Result<Option<Arc<str>>> {
        Ok(Some(row.text(at)?).filter(|text| !text.is_empty()).map(Arc::from))
    };
    Ok(Job {
        id: row.text(0)?,
        kind: JobKind::parse(&row.text(1)?),
        account: AccountPath {
            org: row.text(2)?.into(),
            team: level(3)?,
            workflow: level(4)?,
            key: level(5)?,
        },
        key_hash: row.text(6)?,
        dialect: row.text(7)?,
        endpoint: row.text(8)?,
        state: row.text(9)?,
        input: row.text(10)?,
        name: row.text(11)?,
        metadata: row.text(12)?,
        webhook: row.text(13)?,
        idempotency: row.text(14)?,
        total: row.int(15)?,
        bytes: row.int(16)?,
        created_us: row.int(17)?,
        deadline_us: row.int(18)?,
        cancelled_us: row.int(19)?,
        ended_us: row.int(20)?,
        expires_us: row.int(21)?,
        problem: row.text(22)?,
        read_us: row.int(23)?,
        labels: serde_json::from_str(&row.text(24)?).unwrap_or_default(),
    })
}

pub(super) fn item(row: &Row) -> sqlx::Result<StoredItem> {
    Ok(StoredItem {
        job: row.text(0)?,
        number: row.int(1)?,
        custom_id: row.text(2)?,
        state: row.text(3)?,
        way: row.text(4)?,
        rescue: row.flag(5)?,
        deployment: row.text(6)?,
        request: row.text(7)?,
        held: Money::from_nanos(row.int(8)?),
        charge: Money::from_nanos(row.int(9)?),
        saved: Money::from_nanos(row.int(10)?),
        tries: row.int(11)?,
        deadline_us: row.int(12)?,
        status: row.int(13)?,
        problem: row.text(14)?,
        ended_us: row.int(15)?,
        input: row.bytes(16)?,
        output: row.bytes(17)?,
        decision: row.maybe(18)?,
    })
}

pub(super) fn pack(row: &Row) -> sqlx::Result<Pack> {
    Ok(Pack {
        id: row.text(0)?,
        provider: row.text(1)?,
        deployment: row.text(2)?,
        model: row.text(3)?,
        endpoint: row.text(4)?,
        backend: row.text(5)?,
        state: row.text(6)?,
        file: row.text(7)?,
        remote: row.text(8)?,
        items: row.int(9)?,
        cancelling: row.flag(10)?,
        tries: row.int(11)?,
        created_us: row.int(12)?,
        submitted_us: row.int(13)?,
        ended_us: row.int(14)?,
        deadline_us: row.int(15)?,
        problem: row.text(16)?,
        now_us: row.int(17)?,
    })
}

pub(super) fn pool(row: &Row) -> sqlx::Result<Pool> {
    Ok(Pool {
        name: row.text(0)?,
        slack: row.int(1)?,
        items: row.int(2)?,
        bytes: row.int(3)?,
        oldest_us: row.int(4)?,
        deadline_us: row.int(5)?,
        provider: row.text(6)?,
        deployment: row.text(7)?,
        model: row.text(8)?,
        now_us: row.int(9)?,
    })
}
