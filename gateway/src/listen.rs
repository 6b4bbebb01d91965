//! Listening sockets: bound before anything else starts, accepting until the process is to stop.
//!
//! The accept loop is our own, since pingora's panics when it cannot bind and does not tell the port it was given.

use crate::config::{Listen, TlsFiles};
use crate::wire::Wire;
use anyhow::Context;
use arc_swap::ArcSwap;
use pingora_core::apps::ServerApp;
use pingora_core::listeners::tls::Acceptor;
use pingora_core::protocols::Stream;
use pingora_core::server::ShutdownWatch;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// The longest a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A pause after a failed accept, such as for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// A bound socket.
pub(crate) struct Listener {
    socket: TcpListener,
    pub(crate) address: SocketAddr,
    tls: Option<Arc<Acceptor>>,
    pub(crate) certificate: Option<Arc<Certificate>>,
}

/// A certificate that can be exchanged while connections run.
#[derive(Debug)]
pub(crate) struct Certificate {
    files: TlsFiles,
    current: ArcSwap<CertifiedKey>,
}

impl Certificate {
    fn load(files: &TlsFiles) -> anyhow::Result<CertifiedKey> {
        let (certificate, key) = (
            files.certificate.display().to_string(),
            files.key.display().to_string(),
        );
        let loaded = pingora_rustls::load_certs_and_key_files(&certificate, &key)
            .map_err(|error| anyhow::anyhow!("{error}"))
            .with_context(|| format!("the certificate {certificate} or its key {key} cannot be read"))?;
        let (chain, key) =
            loaded.with_context(|| format!("{certificate} or {key} holds no PEM certificate or key"))?;
        let key = rustls::crypto::ring::sign::any_supported_type(&key)
            .context("the private key is of no known kind")?;
        Ok(CertifiedKey::new(chain, key))
    }

    /// Reads the files again; connections made from now on get what is in them.
    pub(crate) fn reload(&self) -> anyhow::Result<()> {
        self.current.store(Arc::new(Self::load(&self.files)?));
        Ok(())
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl Listener {
    /// # Errors
    /// The address is in use or not ours, or the certificate cannot be used.
    pub(crate) async fn bind(settings: &Listen) -> anyhow::Result<Self> {
        let socket = TcpListener::bind(settings.address).await.with_context(|| {
            format!(
                "cannot listen on {}; is another gateway running?",
                settings.address
            )
        })?;
        let address = socket.local_addr()?;
        let (mut tls, mut certificate) = (None, None);
        if let Some(files) = &settings.tls {
            let current = ArcSwap::from_pointee(Certificate::load(files)?);
            let resolver = Arc::new(Certificate {
                files: files.clone(),
                current,
            });
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let mut config = ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()?
                .with_no_client_auth()
                .with_cert_resolver(resolver.clone());
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            tls = Some(Arc::new(Acceptor::from_server_config(Arc::new(config))));
            certificate = Some(resolver);
        }
        Ok(Self {
            socket,
            address,
            tls,
            certificate,
        })
    }

    pub(crate) fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Accepts until `shutdown` is true; then the socket closes, and connections end as their requests do.
    pub(crate) async fn run<A>(self, app: Arc<A>, shutdown: ShutdownWatch)
    where
        A: ServerApp + Send + Sync + 'static,
    {
        let mut connections = self.gather(app, shutdown).await;
        drop(self.socket);
        while connections.join_next().await.is_some() {}
    }

    /// The same, with the socket left open for whoever accepts next.
    pub(crate) async fn accept<A>(&self, app: Arc<A>, shutdown: ShutdownWatch)
    where
        A: ServerApp + Send + Sync + 'static,
    {
        let mut connections = self.gather(app, shutdown).await;
        while connections.join_next().await.is_some() {}
    }

    /// Accepts until `shutdown` is true. Returns the connections that there still are.
    async fn gather<A>(&self, app: Arc<A>, mut shutdown: ShutdownWatch) -> JoinSet<()>
    where
        A: ServerApp + Send + Sync + 'static,
    {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                biased;
                _ = shutdown.wait_for(|stop| *stop) => break,
                accepted = self.socket.accept() => accepted,
            };
            while connections.try_join_next().is_some() {}
            match accepted {
                Ok((stream, _)) => {
                    let (app, shutdown, tls) = (app.clone(), shutdown.clone(), self.tls.clone());
                    connections.spawn(async move {
                        if let Some(stream) = open(stream, tls.as_deref()).await {
                            app.process_new(stream, &shutdown).await;
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        connections
    }
}

async fn open(stream: TcpStream, tls: Option<&Acceptor>) -> Option<Stream> {
    let stream = Wire::new(stream).ok()?;
    match tls {
        None => Some(Box::new(stream)),
        Some(tls) => match timeout(HANDSHAKE, tls.tls_handshake(stream)).await {
            Ok(Ok(stream)) => Some(Box::new(stream)),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a TLS handshake failed");
                None
            }
            Err(_) => None,
        },
    }
}
