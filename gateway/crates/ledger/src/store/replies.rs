//! Answers that are given again when the same request of the admin API comes again.

use super::sql::{Sql, Value};
use super::{Store, StoreError, unread, written};
use std::sync::LazyLock;

/// What is known of a request that came before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing: it is the caller's to answer now.
    Claimed,
    /// It is being answered by somebody.
    Running,
    /// Another request came under the same key.
    Different,
    Known {
        status: u16,
        body: String,
    },
}

static CLAIM: LazyLock<Sql> = LazyLock::new(|| {
    Sql::new(
        "INSERT INTO replies (id, fingerprint, status, body, at_us) VALUES ($1, $2, 0, '', $3) \
         ON CONFLICT (id) DO UPDATE SET fingerprint = excluded.fingerprint, status = 0, body = '', at_us = excluded.at_us \
         WHERE replies.at_us < $4 OR (replies.status = 0 AND replies.at_us < $5) RETURNING id",
    )
});
static KNOWN: LazyLock<Sql> =
    LazyLock::new(|| Sql::new("SELECT fingerprint, status, body FROM replies WHERE id = $1"));
static ANSWER: LazyLock<Sql> =
    LazyLock::new(|| Sql::new("UPDATE replies SET status = $2, body = $3 WHERE id = $1"));
static FORGET: LazyLock<Sql> = LazyLock::new(|| Sql::new("DELETE FROM replies WHERE id = $1 AND status = 0"));
pub(super) static PURGE: LazyLock<Sql> = LazyLock::new(|| Sql::new("DELETE FROM replies WHERE at_us < $1"));

/// For how long answers are kept.
pub(super) const KEPT_US: i64 = 86_400_000_000;
/// Whoever has not answered by then has ended without an answer.
const ABANDONED_US: i64 = 60_000_000;

impl Store {
    /// Takes a request to answer it, or tells what was answered.
    pub(crate) async fn claim_reply(
        &self,
        (id, fingerprint): (&str, &str),
        now_us: i64,
    ) -> Result<Reply, StoreError> {
        let values = [
            Value::Text(id),
            Value::Text(fingerprint),
            Value::Int(now_us),
            Value::Int(now_us - KEPT_US),
            Value::Int(now_us - ABANDONED_US),
        ];
        if !self
            .pool
            .fetch(&CLAIM, &values)
            .await
            .map_err(written)?
            .is_empty()
        {
            return Ok(Reply::Claimed);
        }
        let rows = self
            .pool
            .fetch(&KNOWN, &[Value::Text(id)])
            .await
            .map_err(unread)?;
        let Some(row) = rows.first() else {
            return Ok(Reply::Running);
        };
        let status = row.int(1).map_err(unread)?;
        if row.text(0).map_err(unread)? != fingerprint {
            return Ok(Reply::Different);
        }
        if status == 0 {
            return Ok(Reply::Running);
        }
        Ok(Reply::Known {
            status: u16::try_from(status).unwrap_or(500),
            body: row.text(2).map_err(unread)?,
        })
    }

    /// Keeps the answer to a claimed request; `None`: it had none, and may be tried again.
    pub(crate) async fn keep_reply(&self, id: &str, answer: Option<(u16, &str)>) -> Result<(), StoreError> {
        let kept = match answer {
            Some((status, body)) => {
                let values = [Value::Text(id), Value::Int(i64::from(status)), Value::Text(body)];
                self.pool.fetch(&ANSWER, &values).await
            }
            None => self.pool.fetch(&FORGET, &[Value::Text(id)]).await,
        };
        kept.map(drop).map_err(written)
    }
}
