//! Connections, from the first to the last: the listener, loading at start, and an end that lets answers finish. Owns
//! sockets; what is asked is `routes`' affair. Invariant: after SIGTERM nothing new is taken, and the process ends within
//! `drain_s` and a moment.

use crate::caller::Callers;
use crate::registry::Registry;
use crate::routes::Service;
use crate::settings::{Settings, nanodollars_per_hour};
use anyhow::Context;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// For a request's head to arrive.
const HEAD: Duration = Duration::from_secs(30);
/// For answers to say that they end, once they must.
const FAREWELL: Duration = Duration::from_secs(1);
/// How often idle models are looked for.
const LOOK: Duration = Duration::from_millis(500);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// The settings make no sense, the address is taken, or the first model cannot be loaded.
pub(crate) async fn run(settings: Settings) -> anyhow::Result<()> {
    settings.check()?;
    let listener = TcpListener::bind(settings.listen)
        .await
        .with_context(|| format!("cannot listen on {}", settings.listen))?;
    let (end, ending) = watch::channel(false);
    let (drain, draining) = watch::channel(false);
    let registry = Arc::new(Registry::new(settings.clone())?);
    let service = Arc::new(Service {
        callers: Callers::new(&settings.tenants)?,
        registry: registry.clone(),
        nanodollars_per_hour: nanodollars_per_hour(&settings.dollars_per_hour)?,
        max_body_bytes: settings.max_body_bytes,
        ending,
        draining: draining.clone(),
        next: 1.into(),
    });
    let mut out = std::io::stdout();
    writeln!(out, "listening on http://{}", listener.local_addr()?)?;
    out.flush()?;
    let mut loads = JoinSet::new();
    for name in registry.preloaded() {
        let registry = registry.clone();
        loads.spawn(async move { registry.get(Some(&name)).await.map(drop) });
    }
    let mut housekeeping = JoinSet::new();
    housekeeping.spawn(unload(registry.clone()));
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                connections.spawn(connection(stream, service.clone(), draining.clone()));
            },
            Some(loaded) = loads.join_next() => loaded??,
            Some(_) = connections.join_next() => {}
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    drop(listener);
    // Connections close as soon as they have nothing to answer.
    let _ = drain.send(true);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(Duration::from_secs(settings.drain_s), all)
        .await
        .is_err()
    {
        let _ = end.send(true);
        let rest = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(FAREWELL, rest).await;
    }
    Ok(())
}

async fn unload(registry: Arc<Registry>) {
    let mut clock = tokio::time::interval(LOOK);
    loop {
        clock.tick().await;
        let registry = registry.clone();
        let _ = tokio::task::spawn_blocking(move || registry.unload_idle()).await;
    }
}

/// A connection that breaks is its caller's affair.
async fn connection(stream: TcpStream, service: Arc<Service>, mut draining: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(service.serve(request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
    builder.http2().timer(TokioTimer::new());
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = draining.wait_for(|draining| *draining) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}
