//! What nodes share through Redis: the rates and running requests of accounts, and how many nodes there are.
//!
//! Owns: the connection, the script and its arguments. Refuses to know: who an account is, what happens when Redis is away.
//! Invariants: an admission is one round trip, many of which travel together on one connection; the server's clock decides,
//! so that nodes' own need not agree; no wait is longer than the timeout of the configuration.

use crate::config::Redis;
use arc_swap::ArcSwapOption;
use limits::{Dimension, Left, Rule};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Script};
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// A node that has said nothing for so long is not counted any more, nor are its requests.
const STALE_MS: u64 = 15_000;

/// Redis cannot be asked now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Away {
    #[error("it did not answer in time")]
    Timeout,
    #[error(transparent)]
    Failed(#[from] redis::RedisError),
    #[error("its answer makes no sense: {0:?}")]
    Nonsense(Vec<i64>),
}

/// A subject and what is to be taken of it.
#[derive(Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) name: &'a str,
    pub(crate) rule: Rule,
    pub(crate) requests: u32,
    /// Below zero: given back.
    pub(crate) tokens: i64,
    /// Requests of this node that run there, the one that asks included.
    pub(crate) running: u32,
}

/// What is left of a subject's two rates.
pub(crate) type Lefts = (Option<Left>, Option<Left>);

/// What was decided.
#[derive(Debug)]
pub(crate) enum Ruling {
    /// By subject.
    Admitted(Vec<Lefts>),
    Refused {
        /// Of the subject.
        index: usize,
        dimension: Dimension,
        wait_us: u64,
    },
}

pub(crate) struct Share {
    client: Client,
    settings: Redis,
    connection: ArcSwapOption<MultiplexedConnection>,
    /// Held by whoever connects: a crowd makes one connection.
    connecting: Mutex<()>,
    script: Script,
    node: String,
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Share")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Share {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// The address makes no sense.
    pub(crate) fn new(settings: Redis, node: String) -> anyhow::Result<Self> {
        Ok(Self {
            client: Client::open(settings.url.expose())
                .map_err(|_| anyhow::anyhow!("`redis.url` is not a redis:// URL"))?,
            settings,
            connection: ArcSwapOption::empty(),
            connecting: Mutex::default(),
            script: Script::new(include_str!("share/limits.lua")),
            node,
        })
    }

    /// One request against all its subjects.
    pub(crate) async fn admit(&self, asks: &[Ask<'_>]) -> Result<Ruling, Away> {
        let answer = self.run("admit", asks).await?;
        match answer.as_slice() {
            [1, lefts @ ..] if lefts.len() == 4 * asks.len() => {
                let left = |rate: Option<u32>, told: &[i64]| {
                    let whole = |number: i64| u64::try_from(number).unwrap_or(0);
                    rate.map(|limit| Left {
                        limit,
                        remaining: whole(told[0]),
                        reset_us: whole(told[1]) * 1_000,
                    })
                };
                let subjects = asks.iter().zip(lefts.chunks_exact(4));
                let lefts = subjects.map(|(ask, told)| {
                    let requests = left(ask.rule.requests_per_minute, &told[..2]);
                    (requests, left(ask.rule.tokens_per_minute, &told[2..]))
                });
                Ok(Ruling::Admitted(lefts.collect()))
            }
            [0, subject, what, wait_ms] => {
                let index = usize::try_from(*subject - 1)
                    .ok()
                    .filter(|index| *index < asks.len());
                let dimension = usize::try_from(*what - 1)
                    .ok()
                    .and_then(|what| Dimension::ALL.get(what));
                match (index, dimension) {
                    (Some(index), Some(dimension)) => Ok(Ruling::Refused {
                        index,
                        dimension: *dimension,
                        wait_us: u64::try_from(*wait_ms).unwrap_or(0) * 1_000,
                    }),
                    _ => Err(Away::Nonsense(answer)),
                }
            }
            _ => Err(Away::Nonsense(answer)),
        }
    }

    /// What requests used beyond what was held for them, or did not use, and how many still run.
    pub(crate) async fn settle(&self, asks: &[Ask<'_>]) -> Result<(), Away> {
        self.run("settle", asks).await.map(drop)
    }

    /// Says that this node lives. Returns how many do.
    pub(crate) async fn heartbeat(&self) -> Result<u32, Away> {
        let nodes = format!("{}:nodes", self.settings.prefix);
        let script = "local time = redis.call('TIME') local now = time[1] * 1000 + math.floor(time[2] / 1000) \
             redis.call('ZADD', KEYS[1], now, ARGV[1]) \
             redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2]) \
             redis.call('PEXPIRE', KEYS[1], 2 * ARGV[2]) return redis.call('ZCARD', KEYS[1])";
        let mut call = redis::cmd("EVAL");
        call.arg(script).arg(1).arg(nodes).arg(&self.node).arg(STALE_MS);
        let mut connection = self.connection().await?;
        let counted = timeout(self.settings.timeout, call.query_async(&mut connection)).await;
        self.checked(counted)
    }

    async fn run(&self, mode: &str, asks: &[Ask<'_>]) -> Result<Vec<i64>, Away> {
        let mut call = self.script.prepare_invoke();
        call.arg(mode).arg(&self.node).arg(STALE_MS);
        for ask in asks {
            let rule = &ask.rule;
            call.key(format!("{}:{}", self.settings.prefix, ask.name));
            call.arg(rule.requests_per_minute.unwrap_or(0))
                .arg(rule.tokens_per_minute.unwrap_or(0));
            call.arg(rule.concurrency.unwrap_or(0))
                .arg(ask.requests)
                .arg(ask.tokens)
                .arg(ask.running);
        }
        let mut connection = self.connection().await?;
        let answer = timeout(self.settings.timeout, call.invoke_async(&mut connection)).await;
        self.checked(answer)
    }

    /// A connection that failed is not used again.
    fn checked<T>(
        &self,
        answer: Result<redis::RedisResult<T>, tokio::time::error::Elapsed>,
    ) -> Result<T, Away> {
        let away = match answer {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => Away::Failed(error),
            Err(_) => Away::Timeout,
        };
        self.connection.store(None);
        Err(away)
    }

    async fn connection(&self) -> Result<MultiplexedConnection, Away> {
        let made = || self.connection.load().as_deref().cloned();
        if let Some(connection) = made() {
            return Ok(connection);
        }
        let _connecting = self.connecting.lock().await;
        if let Some(connection) = made() {
            return Ok(connection);
        }
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.settings.timeout))
            .set_response_timeout(Some(self.settings.timeout));
        let connecting = self
            .client
            .get_multiplexed_async_connection_with_config(&settings);
        let mut connection = timeout(self.settings.timeout, connecting)
            .await
            .map_err(|_| Away::Timeout)??;
        let loading = self.script.load_async(&mut connection);
        timeout(self.settings.timeout, loading)
            .await
            .map_err(|_| Away::Timeout)??;
        self.connection.store(Some(Arc::new(connection.clone())));
        Ok(connection)
    }
}

#[cfg(test)]
#[path = "share/tests.rs"]
mod tests;
