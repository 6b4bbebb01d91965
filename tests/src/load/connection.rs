//! One HTTP/1.1 connection with a blocking socket: writes a request in one piece, reads its answer to the end.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Longer than any scripted answer.
const SILENCE: Duration = Duration::from_secs(20);

/// A kept-alive connection.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// What came back.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// When the first generated token was read, if the answer has one.
    pub first_token: Option<Instant>,
    pub ended: Instant,
}

impl Connection {
    pub fn open(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        Ok(Self {
            stream,
            buffer: vec![0; 256 << 10],
        })
    }

    /// One request and its whole answer.
    ///
    /// # Errors
    /// The connection broke, or the answer is a refusal, which is then the error's text.
    pub fn call(&mut self, request: &[u8]) -> std::io::Result<Answer> {
        self.stream.write_all(request)?;
        let mut length = 0;
        let mut first_token = None;
        loop {
            let read = self.stream.read(&mut self.buffer[length..])?;
            if read == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            length += read;
            let bytes = &self.buffer[..length];
            if first_token.is_none() && memchr::memmem::find(bytes, b"tok0").is_some() {
                first_token = Some(Instant::now());
            }
            if let Some(status) = whole(bytes)? {
                if status != 200 {
                    return Err(std::io::Error::other(String::from_utf8_lossy(bytes).into_owned()));
                }
                return Ok(Answer {
                    first_token,
                    ended: Instant::now(),
                });
            }
        }
    }
}

/// The status, once the answer is whole.
fn whole(bytes: &[u8]) -> std::io::Result<Option<u16>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    let parsed = head.parse(bytes).map_err(std::io::Error::other)?;
    let httparse::Status::Complete(body) = parsed else {
        return Ok(None);
    };
    let status = head.code.unwrap_or(0);
    let length = head
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let is_whole = match length {
        Some(length) => {
            let length: usize = std::str::from_utf8(length.value).unwrap().parse().unwrap();
            bytes.len() == body + length
        }
        None => bytes.ends_with(b"0\r\n\r\n"),
    };
    Ok(is_whole.then_some(status))
}
