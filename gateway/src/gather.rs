//! A connection that gathers small writes until it is flushed, so that the head and the body of an answer leave together.
//!
//! pingora's own write buffer holds 1,460 bytes and cannot be made larger from outside, so that an ordinary answer took
//! two writes; each is the kernel's whole way to the other side.

use async_trait::async_trait;
use pingora_core::protocols::{ALPN, SocketDigest, raw_connect::ProxyDigest, tls::SslDigest};
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, IO, Peek, Shutdown, Ssl, TimingDigest, UniqueID,
    UniqueIDType,
};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is gathered at most; larger writes go straight on.
const ROOM: usize = 16 << 10;

/// A connection with a larger write buffer, which takes memory only while there is something in it.
#[derive(Debug)]
pub(crate) struct Gather<S> {
    inner: S,
    waiting: Vec<u8>,
    /// Of `waiting`, the bytes that the connection has taken.
    taken: usize,
}

impl<S> Gather<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self {
            inner,
            waiting: Vec::new(),
            taken: 0,
        }
    }

    fn fits(&self, more: usize) -> bool {
        self.taken == 0 && self.waiting.len() + more <= ROOM
    }
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.taken < self.waiting.len() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.waiting[self.taken..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.taken += written;
        }
        self.waiting.clear();
        self.taken = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.fits(bytes.len()) {
            self.waiting.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        ready!(self.poll_waiting(cx))?;
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = pieces.iter().map(|piece| piece.len()).sum();
        if self.fits(length) {
            for piece in pieces {
                self.waiting.extend_from_slice(piece);
            }
            return Poll::Ready(Ok(length));
        }
        ready!(self.poll_waiting(cx))?;
        Pin::new(&mut self.inner).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_waiting(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_waiting(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[async_trait]
impl<S: IO> Shutdown for Gather<S> {
    async fn shutdown(&mut self) {
        let _ = std::future::poll_fn(|cx| self.poll_waiting(cx)).await;
        Shutdown::shutdown(&mut self.inner).await;
    }
}

impl<S: IO> UniqueID for Gather<S> {
    fn id(&self) -> UniqueIDType {
        self.inner.id()
    }
}

impl<S: IO> Ssl for Gather<S> {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.inner.selected_alpn_proto()
    }
}

impl<S: IO> GetTimingDigest for Gather<S> {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.inner.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.inner.get_write_pending_time()
    }
}

impl<S: IO> GetProxyDigest for Gather<S> {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner.get_proxy_digest()
    }
}

impl<S: IO> GetSocketDigest for Gather<S> {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_socket_digest()
    }
}

#[async_trait]
impl<S: IO> Peek for Gather<S> {
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        self.inner.try_peek(buf).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Small writes arrive together and whole, large ones in order after them, however little the other side takes.
    #[tokio::test]
    async fn what_is_written_arrives_in_order_after_a_flush() {
        let (ours, mut theirs) = tokio::io::duplex(1000);
        let mut gather = Gather::new(ours);
        gather.write_all(b"head").await.unwrap();
        let mut nothing = [0];
        let early = tokio::time::timeout(Duration::from_millis(20), theirs.read(&mut nothing)).await;
        assert!(early.is_err(), "nothing leaves before the flush");
        let large = vec![b'x'; 3 * ROOM];
        let expected = [b"head", &large[..], b"tail"].concat();
        let writer = async {
            gather.write_all(&large).await.unwrap();
            gather.write_all(b"tail").await.unwrap();
            gather.flush().await.unwrap();
            gather.waiting.len()
        };
        let mut read = vec![0; expected.len()];
        let (left, _) = tokio::join!(writer, theirs.read_exact(&mut read));
        assert_eq!((left, read), (0, expected));
    }
}
