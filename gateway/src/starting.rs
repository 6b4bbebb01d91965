//! A start while the store is away: the listeners are open, whoever calls is told to come again, and the store is tried.
//!
//! Owns: the answers until the ledger is open. Refuses to know: keys, budgets, models: nobody can be told apart without the
//! store, so that nothing is served. Invariants: a store that answers costs one connection; one that refuses this gateway for
//! good (a wrong password, a database that is not there) ends the start with what it said.

use crate::accept::{Endpoint, dialect_of};
use crate::admin::Problem;
use crate::boot::Doors;
use crate::client::Client;
use crate::clock;
use crate::gateway::{Gateway, h2_options, read_head};
use crate::refuse::refuse;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use exchange::{Refusal, RefusalKind};
use futures_util::future::join_all;
use ledger::Database;
use pingora_core::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v2::server::H2Options;
use pingora_core::server::ShutdownWatch;
use pingora_http::ResponseHeader;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::sleep;

/// Between two tries, at first and in the end.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// What callers are told to wait.
const AGAIN: Duration = Duration::from_secs(5);
/// Tries between two lines of the log, once the pause is at its longest: a minute.
const SAY_EVERY: u32 = 12;

/// Waits until the store can be reached. `stop` ends the wait, and the answer is then false.
///
/// # Errors
/// The store refuses this gateway for good.
pub(crate) async fn until_reached(
    doors: &Doors,
    (database, bookkeeping): (&Database, &Handle),
    stop: impl Future<Output = ()>,
) -> anyhow::Result<bool> {
    let reach = || bookkeeping.spawn(ledger::reach(database.clone()));
    let problem = match reach().await? {
        Ok(()) => return Ok(true),
        Err(error) if error.is_away() => error.to_string(),
        Err(error) => return Err(error.into()),
    };
    tracing::warn!(%problem, "the gateway waits for its store; until it answers every call is refused with 503");
    let problem = Arc::new(ArcSwap::from_pointee(problem));
    doors.announce();
    let (open, opened) = watch::channel(false);
    let closed = doors.turn_away(
        [Side::Callers, Side::Operators].map(|side| Arc::new(Starting::new(side, problem.clone()))),
        opened,
    );
    let tries = async {
        let mut pause = FIRST_PAUSE;
        for number in 1u32.. {
            sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
            match reach().await? {
                Ok(()) => break,
                Err(error) if error.is_away() => {
                    if number % SAY_EVERY == 0 {
                        tracing::warn!(problem = %error, "the gateway still waits for its store");
                    }
                    problem.store(Arc::new(error.to_string()));
                }
                Err(error) => return Err(error.into()),
            }
        }
        tracing::info!("the store answers");
        Ok(true)
    };
    let reached = async {
        let reached = tokio::select! {
            reached = tries => reached,
            () = stop => Ok(false),
        };
        let _ = open.send(true);
        reached
    };
    tokio::join!(closed, reached).1
}

/// Whose listener it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Callers,
    Operators,
}

/// Answers without a ledger.
pub(crate) struct Starting {
    side: Side,
    problem: Arc<ArcSwap<String>>,
    options: HttpServerOptions,
}

impl Starting {
    fn new(side: Side, problem: Arc<ArcSwap<String>>) -> Self {
        Self {
            side,
            problem,
            options: Gateway::server_options(),
        }
    }

    async fn answer(&self, client: &mut Client) {
        match (self.side, client.path()) {
            // The process is alive; it is not ready.
            (Side::Operators, "/health") => {
                send(
                    client,
                    (200, "application/json"),
                    &json!({ "status": "starting" }),
                )
                .await
            }
            (Side::Operators, "/health/readiness") => {
                let body = json!({ "status": "not ready", "ledger": **self.problem.load() });
                send(client, (503, "application/json"), &body).await;
            }
            (Side::Operators, _) => {
                let problem = Problem::new(503, "store_unavailable", "the gateway waits for its store")
                    .hint("/health/readiness says why; try again");
                send(client, (503, "application/problem+json"), &json!(problem)).await;
            }
            (Side::Callers, _) => match Endpoint::of(client) {
                Ok(Endpoint::Health) => {
                    send(
                        client,
                        (503, "application/json"),
                        &json!({ "status": "starting" }),
                    )
                    .await;
                }
                Ok(_) | Err(_) => {
                    let refusal = Refusal::new(
                        RefusalKind::StoreUnavailable,
                        "the gateway is starting and waits for its store",
                    )
                    .hint("retry in a moment")
                    .retry_after(Some(AGAIN));
                    let (id, _) = clock::new_request(clock::unix_us());
                    refuse(client, dialect_of(client), &refusal, id).await;
                }
            },
        }
    }
}

async fn send(client: &mut Client, (status, kind): (u16, &'static str), body: &Value) {
    let Ok(mut head) = ResponseHeader::build(status, Some(4)) else {
        return;
    };
    let is_told = head.insert_header("content-type", kind).is_ok()
        && (status != 503 || head.insert_header("retry-after", AGAIN.as_secs()).is_ok());
    if is_told {
        let _ = client.answer(head, Bytes::from(body.to_string())).await;
    }
}

#[async_trait]
impl HttpServerApp for Starting {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let mut session = read_head(session, shutdown, Duration::ZERO).await?;
        // The next request is the gateway's own.
        session.set_keepalive(None);
        self.answer(&mut Client::new(session)).await;
        None
    }

    fn h2_options(&self) -> Option<H2Options> {
        Some(h2_options())
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }
}

impl Doors {
    /// Answers at all listeners until `opened` is true and what was begun is over.
    async fn turn_away(&self, [callers, operators]: [Arc<Starting>; 2], opened: watch::Receiver<bool>) {
        let mut held: Vec<_> = self
            .listeners
            .iter()
            .map(|listener| listener.accept(callers.clone(), opened.clone()))
            .collect();
        held.push(self.admin.accept(operators, opened));
        join_all(held).await;
    }
}
