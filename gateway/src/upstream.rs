//! A provider as a place to connect to: addresses, credentials, pooled connections, one request.
//!
//! Over HTTP/1.1 head and body leave in one write, since every write costs the kernel's whole way to the other side.

pub(crate) mod control;
mod idle;

use crate::clock;
use crate::config::Provider;
use crate::wire::Wire;
use bytes::{Buf, Bytes};
use dialect::Encoded;
use exchange::Dialect;
use idle::Idle;
use pingora_core::connectors::http::Connector;
use pingora_core::connectors::{ConnectorOptions, TransportConnector};
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::client::HttpSession;
use pingora_core::protocols::http::v1::client::HttpSession as Http1Session;
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_http::RequestHeader;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a resolved address is used; providers move slowly.
const RESOLVED_FOR_MS: u64 = 30_000;
const POOL_SIZE: usize = 4096;
/// Pooled connections that may turn out stale before a new one is made.
const STALE: usize = 3;
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
    connector: Transport,
    /// Everything that every request to it has in common.
    template: RequestHeader,
    resolved: Mutex<Option<(Arc<HttpPeer>, u64)>>,
}

enum Transport {
    Http1(Box<Http1>),
    Http2(Box<Connector>),
}

/// One request at a time on each connection.
struct Http1 {
    connector: TransportConnector,
    idle: Idle,
    /// The fields of the head that never change, as they go over the wire.
    fields: Vec<u8>,
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
        let connector = if settings.http2 {
            Transport::Http2(Box::new(Connector::new(Some(options))))
        } else {
            let mut fields = Vec::new();
            for (name, value) in &template.headers {
                write_field(&mut fields, name.as_str(), value.as_bytes());
            }
            Transport::Http1(Box::new(Http1 {
                connector: TransportConnector::new(Some(options)),
                idle: Idle::default(),
                fields,
            }))
        };
        Ok(Self {
            settings,
            connector,
            template,
            resolved: Mutex::new(None),
        })
    }

    /// Sends a request and waits up to `patience` for the head of the answer. Dropping the future closes the connection or
    /// resets the stream at once.
    pub(crate) async fn open(
        &self,
        encoded: &Encoded,
        passed_on: &[(&'static str, Bytes)],
        patience: Duration,
    ) -> Result<Opened, OpenError> {
        let peer = self.peer().await?;
        // A pooled connection may have been closed by the other side; that is found out by using it.
        for _ in 0..=STALE {
            let opened = match &self.connector {
                Transport::Http1(http1) => {
                    let (stream, reused) = match http1.idle.take() {
                        Some(stream) => (stream, true),
                        None => (self.connect(&http1.connector, &peer).await?, false),
                    };
                    let head = self.head_bytes(&http1.fields, encoded, passed_on);
                    let exchanged = exchange_http1(stream, head, encoded.body.clone());
                    (timeout(patience, exchanged).await, reused)
                }
                Transport::Http2(connector) => {
                    let connected = connector.get_http_session(&*peer).await;
                    let (session, reused) = connected.map_err(OpenError::Connect)?;
                    let head = self.head(encoded, passed_on).map_err(OpenError::Exchange)?;
                    let exchanged = exchange(session, head, encoded.body.clone());
                    (timeout(patience, exchanged).await, reused)
                }
            };
            match opened {
                (Err(_), _) => return Err(OpenError::FirstByteTimeout),
                (Ok(Ok(session)), _) => return Ok(Opened { session, peer }),
                (Ok(Err(_)), true) => {}
                (Ok(Err(error)), false) => return Err(OpenError::Exchange(error)),
            }
        }
        let stale = "every pooled connection was stale";
        Err(OpenError::Connect(pingora_error::Error::explain(
            pingora_error::ErrorType::ConnectionClosed,
            stale,
        )))
    }

    /// A new connection. Without TLS it is our own kind, which takes less memory than pingora's.
    async fn connect(&self, connector: &TransportConnector, peer: &HttpPeer) -> Result<Stream, OpenError> {
        let SocketAddr::Inet(address) = peer._address else {
            return connector.new_stream(peer).await.map_err(OpenError::Connect);
        };
        if self.settings.base.tls {
            return connector.new_stream(peer).await.map_err(OpenError::Connect);
        }
        let failed = |error: std::io::Error| {
            let kind = pingora_error::ErrorType::ConnectError;
            OpenError::Connect(pingora_error::Error::because(
                kind,
                format!("connecting to {address}"),
                error,
            ))
        };
        let connected = timeout(self.settings.connect_timeout, TcpStream::connect(address)).await;
        let socket = connected
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(failed)?;
        Ok(Box::new(Wire::new(socket).map_err(failed)?))
    }

    /// Puts a connection whose answer was read to the end back into the pool.
    pub(crate) async fn release(&self, opened: Opened) {
        match (&self.connector, opened.session) {
            (Transport::Http1(http1), HttpSession::H1(mut session)) => {
                session.respect_keepalive();
                if let Some(stream) = session.reuse().await {
                    http1.idle.put(stream, clock::monotonic_ms());
                }
            }
            (Transport::Http2(connector), session) => {
                connector
                    .release_http_session(session, &*opened.peer, Some(POOL_IDLE))
                    .await;
            }
            (Transport::Http1(_), _) => {}
        }
    }

    /// Closes connections that nobody needs any more.
    pub(crate) fn sweep(&self) {
        if let Transport::Http1(http1) = &self.connector {
            http1.idle.sweep(clock::monotonic_ms());
        }
    }

    /// The head of an HTTP/1.1 request.
    fn head_bytes(&self, fields: &[u8], encoded: &Encoded, passed_on: &[(&'static str, Bytes)]) -> Vec<u8> {
        let mut head = Vec::with_capacity(fields.len() + 256);
        head.extend_from_slice(b"POST ");
        head.extend_from_slice(self.settings.base.path.as_bytes());
        head.extend_from_slice(encoded.path.as_bytes());
        head.extend_from_slice(b" HTTP/1.1\r\n");
        head.extend_from_slice(fields);
        for (name, value) in passed_on {
            write_field(&mut head, name, value);
        }
        let mut digits = itoa::Buffer::new();
        write_field(
            &mut head,
            "content-length",
            digits.format(encoded.body.len()).as_bytes(),
        );
        head.extend_from_slice(b"\r\n");
        head
    }

    /// The head of an HTTP/2 request.
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
        let now = clock::monotonic_ms();
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
        let before = std::mem::replace(
            &mut *self.resolved.lock().unwrap_or_else(PoisonError::into_inner),
            entry,
        );
        if let (Some((before, _)), Transport::Http1(http1)) = (before, &self.connector)
            && before._address != peer._address
        {
            http1.idle.clear();
        }
        Ok(peer)
    }
}

fn write_field(head: &mut Vec<u8>, name: &str, value: &[u8]) {
    head.extend_from_slice(name.as_bytes());
    head.extend_from_slice(b": ");
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}

/// Sends a request in one piece and reads the head of its answer.
pub(crate) async fn exchange_http1(
    mut stream: Stream,
    head: Vec<u8>,
    body: Bytes,
) -> pingora_error::Result<HttpSession> {
    let failed =
        |error| pingora_error::Error::because(pingora_error::ErrorType::WriteError, "sending", error);
    stream
        .write_all_buf(&mut head.as_slice().chain(body))
        .await
        .map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    let mut session = Http1Session::new(stream);
    loop {
        session.read_response().await?;
        // Informational heads come before the answer's own.
        if session.get_status().is_some_and(|status| status.as_u16() >= 200) {
            return Ok(HttpSession::H1(session));
        }
    }
}

async fn exchange(
    mut session: HttpSession,
    head: Box<RequestHeader>,
    body: Bytes,
) -> pingora_error::Result<HttpSession> {
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
            return Ok(session);
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
