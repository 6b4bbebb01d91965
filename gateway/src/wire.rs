//! A TCP connection as pingora wants it, on either side of the gateway.
//!
//! pingora's own holds a zeroed read buffer of 64 KiB for as long as it is open, which at a thousand streams is most of
//! the memory, and a write buffer that is too small for the head and the body of an ordinary answer, so that each took
//! two writes, and every write is the kernel's whole way to the other side. Here reads go straight to their reader, and
//! writes gather until they are flushed.

use async_trait::async_trait;
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest,
    UniqueID, UniqueIDType, raw_connect::ProxyDigest,
};
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

/// What is gathered at most; larger writes go straight on.
const ROOM: usize = 16 << 10;
/// Between two looks at a connection whose first bytes have not all come.
const PEEK_AGAIN: Duration = Duration::from_millis(2);

/// A connection with a write buffer that takes memory only while there is something in it.
#[derive(Debug)]
pub(crate) struct Wire {
    socket: TcpStream,
    waiting: Vec<u8>,
    /// Of `waiting`, the bytes that the socket has taken.
    taken: usize,
}

impl Wire {
    /// # Errors
    /// The socket is closed already.
    pub(crate) fn new(socket: TcpStream) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        Ok(Self {
            socket,
            waiting: Vec::new(),
            taken: 0,
        })
    }

    fn fits(&self, more: usize) -> bool {
        self.taken == 0 && self.waiting.len() + more <= ROOM
    }

    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.taken < self.waiting.len() {
            let written = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.waiting[self.taken..]))?;
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

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.fits(bytes.len()) {
            self.waiting.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        ready!(self.poll_waiting(cx))?;
        Pin::new(&mut self.socket).poll_write(cx, bytes)
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
        Pin::new(&mut self.socket).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_waiting(cx))?;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_waiting(cx))?;
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for Wire {
    async fn shutdown(&mut self) {
        // An error here means that the other side was faster.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for Wire {
    fn id(&self) -> UniqueIDType {
        self.socket.as_raw_fd()
    }
}

impl Ssl for Wire {}

impl GetTimingDigest for Wire {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Wire {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Wire {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::new(SocketDigest::from_raw_fd(self.socket.as_raw_fd())))
    }
}

#[async_trait]
impl Peek for Wire {
    /// Fills `buf` with the first bytes of what will be read. Bytes that do not begin as HTTP/2 does need not be whole: a
    /// request of HTTP/1.1 can be shorter than HTTP/2's preface.
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        loop {
            let seen = self.socket.peek(buf).await?;
            if seen == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if seen == buf.len() || !HTTP2.starts_with(&buf[..seen]) {
                return Ok(true);
            }
            // The socket is readable, so that waiting for that would not wait.
            tokio::time::sleep(PEEK_AGAIN).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    async fn pair() -> (Wire, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, connected) = tokio::join!(listener.accept(), TcpStream::connect(address));
        (Wire::new(accepted.unwrap().0).unwrap(), connected.unwrap())
    }

    #[tokio::test]
    async fn what_is_written_arrives_in_order_after_a_flush() {
        let (mut wire, mut theirs) = pair().await;
        wire.write_all(b"head").await.unwrap();
        let early = theirs.try_read(&mut [0; 8]).unwrap_err();
        assert_eq!(
            early.kind(),
            io::ErrorKind::WouldBlock,
            "nothing leaves before the flush"
        );
        let large = vec![b'x'; 8 << 20];
        let expected = [b"head", &large[..], b"tail"].concat();
        let writer = async {
            wire.write_all(&large).await.unwrap();
            wire.write_all(b"tail").await.unwrap();
            wire.flush().await.unwrap();
            wire.waiting.len()
        };
        let mut read = vec![0; expected.len()];
        let (left, _) = tokio::join!(writer, theirs.read_exact(&mut read));
        assert_eq!((left, read == expected), (0, true));
    }

    #[tokio::test]
    async fn a_peek_waits_for_the_preface_but_not_for_more_of_a_short_request() {
        let (mut wire, mut theirs) = pair().await;
        let mut seen = [0; 24];
        theirs.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert!(wire.try_peek(&mut seen).await.unwrap());
        assert!(seen.starts_with(b"GET /"));
        let (mut wire, mut theirs) = pair().await;
        theirs.write_all(b"PRI * HTT").await.unwrap();
        let rest = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            theirs.write_all(b"P/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        };
        let (peeked, ()) = tokio::join!(wire.try_peek(&mut seen), rest);
        assert!(peeked.unwrap());
        assert!(seen.ends_with(b"SM\r\n\r\n"));
    }
}
