//! A provider as a place to connect to: addresses, credentials, pooled connections, one request.

use crate::config::Provider;
use bytes::Bytes;
use dialect::Encoded;
use exchange::Dialect;
use pingora_core::connectors::ConnectorOptions;
use pingora_core::connectors::http::Connector;
use pingora_core::protocols::http::client::HttpSession;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_http::RequestHeader;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// How long a resolved address is used; providers move slowly.
const RESOLVED_FOR_MS: u64 = 30_000;
const POOL_SIZE: usize = 4096;
const POOL_IDLE: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("its name could not be resolved: {0}")]
    Resolve(std::io::Error),
    #[error("it could not be connected to: {0}")]
    Connect(pingora_error::BError),
    #[error("it broke off before answering: {0}")]
    Exchange(pingora_error::BError),
    #[error("it did not answer in time")]
    FirstByteTimeout,
}

/// A connection that has answered with its head.
pub(crate) struct Opened {
    pub(crate) session: HttpSession,
    peer: Arc<HttpPeer>,
}

/// A provider.
pub(crate) struct Upstream {
    pub(crate) settings: Provider,
    connector: Connector,
    /// Everything that every request to it has in common.
    template: RequestHeader,
    resolved: Mutex<Option<(Arc<HttpPeer>, u64)>>,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Upstream {
    /// # Errors
    /// A header of the configuration that is not a valid header.
    pub(crate) fn new(settings: Provider) -> anyhow::Result<Self> {
        let mut options = ConnectorOptions::new(POOL_SIZE);
        options.ca_file = settings.ca_file.as_ref().map(|path| path.display().to_string());
        let mut template = RequestHeader::build("POST", b"/", Some(16))?;
        let port = match (settings.base.tls, settings.base.port) {
            (true, 443) | (false, 80) => String::new(),
            (_, port) => format!(":{port}"),
        };
        template.insert_header("host", format!("{}{port}", settings.base.host))?;
        template.insert_header("content-type", "application/json")?;
        template.insert_header("accept-encoding", "identity")?;
        template.insert_header("user-agent", concat!("tollgate/", env!("CARGO_PKG_VERSION")))?;
        if let Some(credential) = &settings.credential {
            match settings.dialect {
                Dialect::Anthropic => template.insert_header("x-api-key", credential.expose())?,
                _ => template.insert_header("authorization", format!("Bearer {}", credential.expose()))?,
            }
        }
        if settings.dialect == Dialect::Anthropic {
            template.insert_header("anthropic-version", "2023-06-01")?;
        }
        for (name, value) in &settings.headers {
            template.insert_header(name.clone(), value.as_str())?;
        }
        Ok(Self {
            settings,
            connector: Connector::new(Some(options)),
            template,
            resolved: Mutex::new(None),
        })
    }

    /// Sends a request and waits for the head of the answer. Dropping the future closes the connection or resets the
    /// stream at once.
    pub(crate) async fn open(
        &self,
        encoded: &Encoded,
        passed_on: &[(&'static str, Bytes)],
    ) -> Result<Opened, OpenError> {
        let peer = self.peer().await?;
        // A pooled connection may have been closed by the other side; that is found out by using it.
        for _ in 0..3 {
            let connected = self.connector.get_http_session(&*peer).await;
            let (mut session, reused) = connected.map_err(OpenError::Connect)?;
            let head = self.head(encoded, passed_on).map_err(OpenError::Exchange)?;
            let exchanged = exchange(&mut session, head, encoded.body.clone());
            match timeout(self.settings.first_byte_timeout, exchanged).await {
                Err(_) => return Err(OpenError::FirstByteTimeout),
                Ok(Ok(())) => return Ok(Opened { session, peer }),
                Ok(Err(_)) if reused => {}
                Ok(Err(error)) => return Err(OpenError::Exchange(error)),
            }
        }
        let stale = "every pooled connection was stale";
        Err(OpenError::Connect(pingora_error::Error::explain(
            pingora_error::ErrorType::ConnectionClosed,
            stale,
        )))
    }

    /// Puts a connection whose answer was read to the end back into the pool.
    pub(crate) async fn release(&self, opened: Opened) {
        self.connector
            .release_http_session(opened.session, &*opened.peer, Some(POOL_IDLE))
            .await;
    }

    fn head(
        &self,
        encoded: &Encoded,
        passed_on: &[(&'static str, Bytes)],
    ) -> pingora_error::Result<Box<RequestHeader>> {
        let mut head = Box::new(self.template.clone());
        let path = format!("{}{}", self.settings.base.path, encoded.path);
        head.set_raw_path(path.as_bytes())?;
        for (name, value) in passed_on {
            head.insert_header(*name, &value[..])?;
        }
        head.insert_header("content-length", encoded.body.len())?;
        Ok(head)
    }

    async fn peer(&self) -> Result<Arc<HttpPeer>, OpenError> {
        let now = crate::clock::monotonic_ms();
        if let Some((peer, until)) = &*self.resolved.lock().unwrap_or_else(PoisonError::into_inner)
            && *until > now
        {
            return Ok(peer.clone());
        }
        let base = &self.settings.base;
        let found = tokio::net::lookup_host((base.host.as_str(), base.port)).await;
        let address = found.map_err(OpenError::Resolve)?.next();
        let address = address.ok_or_else(|| OpenError::Resolve(std::io::ErrorKind::NotFound.into()))?;
        let mut peer = HttpPeer::new(address, base.tls, base.host.clone());
        let options = &mut peer.options;
        options.connection_timeout = Some(self.settings.connect_timeout);
        options.total_connection_timeout = Some(self.settings.connect_timeout);
        options.write_timeout = Some(self.settings.first_byte_timeout);
        options.max_h2_streams = 100;
        options.h2_ping_interval = Some(Duration::from_secs(20));
        match (self.settings.http2, base.tls) {
            (true, true) => options.set_http_version(2, 1),
            (true, false) => options.set_http_version(2, 2),
            (false, _) => options.set_http_version(1, 1),
        }
        let peer = Arc::new(peer);
        let entry = Some((peer.clone(), now + RESOLVED_FOR_MS));
        *self.resolved.lock().unwrap_or_else(PoisonError::into_inner) = entry;
        Ok(peer)
    }
}

async fn exchange(
    session: &mut HttpSession,
    head: Box<RequestHeader>,
    body: Bytes,
) -> pingora_error::Result<()> {
    session.write_request_header(head).await?;
    session.write_request_body(body, true).await?;
    session.finish_request_body().await?;
    loop {
        session.read_response_header().await?;
        // Informational heads come before the answer's own.
        if session
            .response_header()
            .is_some_and(|head| head.status.as_u16() >= 200)
        {
            return Ok(());
        }
    }
}

impl Opened {
    pub(crate) fn status(&self) -> u16 {
        self.session
            .response_header()
            .map_or(0, |head| head.status.as_u16())
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.session.response_header()?.headers.get(name)?.to_str().ok()
    }

    pub(crate) fn is_event_stream(&self) -> bool {
        self.header("content-type")
            .is_some_and(|kind| kind.starts_with("text/event-stream"))
    }

    /// How long the provider asks to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.header("retry-after")?
            .trim()
            .parse::<f64>()
            .ok()
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    }

    /// The whole body, up to `limit` bytes.
    pub(crate) async fn read_all(&mut self, limit: usize) -> pingora_error::Result<Bytes> {
        let Some(first) = self.session.read_response_body().await? else {
            return Ok(Bytes::new());
        };
        let mut whole = Vec::new();
        let mut next = Some(first);
        while let Some(chunk) = next {
            if whole.len() + chunk.len() > limit {
                let problem = "the answer is larger than any answer should be";
                return pingora_error::Error::e_explain(pingora_error::ErrorType::InternalError, problem);
            }
            whole.extend_from_slice(&chunk);
            next = self.session.read_response_body().await?;
        }
        Ok(whole.into())
    }
}
