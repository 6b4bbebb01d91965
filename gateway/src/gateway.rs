//! What every exchange shares, and the pingora application around the pipeline.

use crate::batch::Batch;
use crate::client::Client;
use crate::config::Config;
use crate::limits::RateLimits;
use crate::memory::Memory;
use crate::records::Records;
use crate::rules::Rulebook;
use crate::serve;
use crate::telemetry::Meters;
use async_trait::async_trait;
use ledger::{Ledger, Outcome};
use pingora_core::apps::{HttpPersistentSettings, HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v2::server::H2Options;
use pingora_core::server::ShutdownWatch;
use router_policies::predict::Predictor;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// The gateway.
pub(crate) struct Gateway {
    pub(crate) config: Config,
    pub(crate) rules: Rulebook,
    pub(crate) memory: Memory,
    pub(crate) records: Records,
    /// Asked where a policy says so.
    pub(crate) predictor: Predictor,
    /// Outcomes told by headers, on their way to the ledger.
    pub(crate) told: mpsc::Sender<Vec<Outcome>>,
    pub(crate) ledger: Ledger,
    pub(crate) batch: Batch,
    pub(crate) limits: Arc<RateLimits>,
    pub(crate) meters: Meters,
    pub(crate) options: HttpServerOptions,
    /// Becomes true when running streams must end.
    pub(crate) cut: watch::Receiver<bool>,
    /// Counts running exchanges: every one holds a clone.
    pub(crate) running: Arc<()>,
}

impl Gateway {
    pub(crate) fn server_options() -> HttpServerOptions {
        let mut options = HttpServerOptions::default();
        options.h2c = true;
        options.h2_idle_timeout = Some(Duration::from_secs(120));
        options
    }

    /// Resolves when running streams must end.
    pub(crate) async fn cut(&self) {
        if self.cut.clone().wait_for(|cut| *cut).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What decisions depend on is kept, in a file or in the ledger.
    pub(crate) fn keeps_decisions(&self) -> bool {
        self.config.keeps_decisions || self.records.wanted()
    }

    /// Exchanges running now.
    pub(crate) fn in_flight(&self) -> usize {
        Arc::strong_count(&self.running) - 1
    }
}

/// HTTP/2 settings: windows that let a large body in without waiting, streams enough for an agent fleet.
pub(crate) fn h2_options() -> H2Options {
    let mut options = pingora_core::protocols::http::v2::server::default_h2_options();
    options.initial_window_size(1 << 20);
    options.initial_connection_window_size(8 << 20);
    options.max_concurrent_streams(1000);
    options
}

/// Reads the head of a request, unless the process is to stop before one comes. `None`: there is nothing to answer.
pub(crate) async fn read_head(
    mut session: ServerSession,
    shutdown: &ShutdownWatch,
    keepalive: Duration,
) -> Option<ServerSession> {
    let mut stop = shutdown.clone();
    let read = tokio::select! {
        biased;
        read = session.read_request() => read,
        _ = stop.wait_for(|stop| *stop) => return None,
    };
    match read {
        Ok(true) => {}
        Ok(false) => return None,
        Err(_) => {
            let _ = session.respond_error(400).await;
            return None;
        }
    }
    session.set_keepalive(if *shutdown.borrow() {
        None
    } else {
        Some(keepalive.as_secs())
    });
    session.set_pipelining_enabled(true);
    Some(session)
}

/// Hands the connection back for its next request.
pub(crate) async fn reuse(session: ServerSession) -> Option<ReusedHttpStream> {
    let settings = HttpPersistentSettings::for_session(&session);
    let reusable = session.finish().await.ok().flatten()?;
    Some(ReusedHttpStream::from_reusable_stream(reusable, settings))
}

#[async_trait]
impl HttpServerApp for Gateway {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let mut session = read_head(session, shutdown, self.config.limits.keepalive).await?;
        session.set_write_timeout(Some(self.config.limits.write_timeout));
        let _running = self.running.clone();
        let mut client = Client::new(session);
        serve::serve(self, &mut client).await;
        if client.reusable {
            reuse(client.session).await
        } else {
            None
        }
    }

    fn h2_options(&self) -> Option<H2Options> {
        Some(h2_options())
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }
}
