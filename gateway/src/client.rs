//! The caller's side of an exchange: its head, its body, its disappearance, the bytes it is sent.

use crate::accept::dialect_of;
use crate::settle::Settled;
use crate::{clock, limits};
use ::limits::Standing;
use bytes::{Bytes, BytesMut};
use exchange::{Origin, Refusal, RefusalKind, RequestId};
use ledger::Principal;
use pingora_core::protocols::http::ServerSession;
use pingora_http::ResponseHeader;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long the rest of a refused body is read, so that the refusal is not lost with the connection.
const DRAIN: Duration = Duration::from_secs(2);

/// The caller has gone, or cannot be written to, which is the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gone;

/// One request's connection, or one stream of it.
pub(crate) struct Client {
    pub(crate) session: ServerSession,
    /// Nothing more of the request will come: a byte now is the next request, an end is a hang-up.
    body_read: bool,
    /// The connection can carry another request.
    pub(crate) reusable: bool,
    /// Whether the head of an answer was sent.
    pub(crate) answered: bool,
    /// What is left to the caller of its rates, told in the head of the answer.
    pub(crate) standing: Standing,
    /// Set where a job calls and nobody's connection is behind it.
    pub(crate) errand: Option<Errand>,
}

/// On whose behalf a job calls, and what came of it.
pub(crate) struct Errand {
    pub(crate) who: Arc<Principal>,
    /// It may wait behind everything else at a backend that can tell.
    pub(crate) background: bool,
    /// As its job was declared.
    pub(crate) labels: ledger::Labels,
    pub(crate) settled: Option<Settled>,
    pub(crate) request: Option<RequestId>,
}

impl Client {
    pub(crate) fn new(session: ServerSession) -> Self {
        Self {
            session,
            body_read: false,
            reusable: true,
            answered: false,
            standing: Standing::default(),
            errand: None,
        }
    }

    /// Where the traffic comes from.
    pub(crate) fn origin(&self) -> Origin {
        if self.errand.is_some() {
            Origin::Batch
        } else {
            Origin::Live
        }
    }

    /// The next piece of a body that is too large to be held whole.
    ///
    /// # Errors
    /// The caller has gone.
    pub(crate) async fn next_piece(&mut self) -> Result<Option<Bytes>, Gone> {
        let piece = self.session.read_request_body().await.map_err(|_| Gone)?;
        self.body_read |= piece.is_none();
        Ok(piece)
    }

    /// Lets a caller that asks first send its body.
    pub(crate) async fn invite(&mut self) -> Result<(), Gone> {
        let asks = |expect: &str| expect.eq_ignore_ascii_case("100-continue");
        if self.header("expect").is_some_and(asks) {
            self.session.write_continue_response().await.map_err(|_| Gone)?;
        }
        Ok(())
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.session.req_header().headers.get(name)?.to_str().ok()
    }

    /// Whom the caller believes to speak to.
    pub(crate) fn host(&self) -> Option<&str> {
        let authority = self.session.req_header().uri.authority();
        self.header("host")
            .or(authority.map(http::uri::Authority::as_str))
    }

    /// TLS came from the caller up to here.
    pub(crate) fn is_secure(&self) -> bool {
        self.session
            .digest()
            .is_some_and(|digest| digest.ssl_digest.is_some())
    }

    pub(crate) fn path(&self) -> &str {
        self.session.req_header().uri.path()
    }

    /// Resolves when the caller hangs up, and never before. Cancel-safe.
    pub(crate) async fn gone(&mut self) -> Gone {
        loop {
            match self.session.read_body_or_idle(true).await {
                Ok(_) if !self.session.is_http2() => std::future::pending().await,
                Ok(_) => {}
                Err(_) => return Gone,
            }
        }
    }

    /// The whole request body.
    ///
    /// # Errors
    /// `Some`: what to tell the caller. `None`: the caller has gone.
    pub(crate) async fn read_body(
        &mut self,
        limit: usize,
        within: Duration,
    ) -> Result<Bytes, Option<Refusal>> {
        let declared = self
            .header("content-length")
            .and_then(|length| length.parse::<usize>().ok());
        if declared.is_some_and(|length| length > limit) {
            return Err(Some(too_large(limit)));
        }
        self.invite().await.map_err(|Gone| None)?;
        let read = async {
            let mut first = match self.session.read_request_body().await.map_err(|_| None)? {
                None => return Ok(Bytes::new()),
                Some(first) => first,
            };
            if declared == Some(first.len()) {
                // The end is still to be seen, so that the watch for a hang-up starts after it.
                if self
                    .session
                    .read_request_body()
                    .await
                    .map_err(|_| None)?
                    .is_none()
                {
                    return Ok(first);
                }
                return Err(Some(Refusal::new(
                    RefusalKind::InvalidRequest,
                    "the body is longer than it says",
                )));
            }
            let mut whole = BytesMut::with_capacity(declared.unwrap_or(2 * first.len()).min(limit));
            loop {
                if whole.len() + first.len() > limit {
                    return Err(Some(too_large(limit)));
                }
                whole.extend_from_slice(&first);
                match self.session.read_request_body().await.map_err(|_| None)? {
                    None => return Ok(whole.freeze()),
                    Some(next) => first = next,
                }
            }
        };
        let whole = timeout(within, read).await.unwrap_or_else(|_| {
            let message = format!("the request body did not arrive within {} s", within.as_secs());
            Err(Some(Refusal::new(RefusalKind::RequestTimeout, message)))
        })?;
        self.body_read = true;
        Ok(whole)
    }

    fn tell_standing(&self, head: &mut ResponseHeader) {
        if !self.standing.is_empty() {
            limits::write(head, &self.standing, dialect_of(self), clock::unix_us());
        }
    }

    /// Sends a whole answer.
    pub(crate) async fn answer(&mut self, mut head: ResponseHeader, body: Bytes) -> Result<(), Gone> {
        if !self.body_read && !self.session.is_body_done() {
            // The connection cannot be used again: part of this request is still on its way.
            self.session.set_keepalive(None);
            self.reusable = false;
        }
        self.tell_standing(&mut head);
        head.insert_header("content-length", body.len())
            .map_err(|_| Gone)?;
        self.answered = true;
        self.session
            .write_response_header(Box::new(head))
            .await
            .map_err(|_| Gone)?;
        self.session
            .write_response_body(body, true)
            .await
            .map_err(|_| Gone)?;
        if !self.reusable {
            self.session.set_total_drain_timeout(Some(DRAIN));
            let _ = timeout(DRAIN, self.session.drain_request_body()).await;
        }
        Ok(())
    }

    /// Sends the head of a streamed answer.
    pub(crate) async fn begin(&mut self, mut head: ResponseHeader) -> Result<(), Gone> {
        self.tell_standing(&mut head);
        if !self.session.is_http2() {
            head.insert_header("transfer-encoding", "chunked")
                .map_err(|_| Gone)?;
        }
        self.answered = true;
        self.session
            .write_response_header(Box::new(head))
            .await
            .map_err(|_| Gone)
    }

    pub(crate) async fn write(&mut self, bytes: Bytes) -> Result<(), Gone> {
        self.session
            .write_response_body(bytes, false)
            .await
            .map_err(|_| Gone)
    }

    /// Ends a streamed answer as it should end.
    pub(crate) async fn end(&mut self, tail: Bytes) -> Result<(), Gone> {
        self.session
            .write_response_body(tail, true)
            .await
            .map_err(|_| Gone)
    }

    /// Ends a streamed answer so that no reader takes it for complete.
    pub(crate) async fn break_off(&mut self, last: Bytes) {
        self.reusable = false;
        if !last.is_empty() {
            let _ = self.write(last).await;
        }
        self.session.shutdown().await;
    }
}

fn too_large(limit: usize) -> Refusal {
    Refusal::new(
        RefusalKind::RequestTooLarge,
        format!("the request body is larger than {} MiB", limit >> 20),
    )
    .hint("the limit is `limits.body_mib` of the gateway's configuration")
}
