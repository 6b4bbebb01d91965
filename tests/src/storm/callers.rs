//! Callers: each request is a connection of its own, to a node that is up, and may be dropped at any moment.

use super::key;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

/// Longer than any scripted answer and any wait for a budget.
const SILENCE: Duration = Duration::from_secs(90);

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    pub key: usize,
    pub model: &'static str,
    pub stream: bool,
    /// When the caller leaves, whatever has come.
    pub leaves_after: Option<Duration>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Nobody listened.
    Unreachable,
    /// The connection ended before the answer did.
    Broken,
    /// The caller left.
    Left,
    Answered {
        status: u16,
        body: String,
        took: Duration,
        /// What the answer says of when to ask again.
        retry_after: Option<Duration>,
    },
}

fn bytes(request: &Request) -> Vec<u8> {
    // Prose enough that it is not counted as fewer tokens than the model says it read.
    let padding = "The quick brown fox jumps over the lazy dog and runs away. ".repeat(9);
    let body = format!(
        r#"{{"model":"{}","stream":{},"messages":[{{"role":"user","content":"key={}; {padding}"}}]}}"#,
        request.model, request.stream, request.key
    );
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        key(request.key),
        body.len()
    );
    [head.into_bytes(), body.into_bytes()].concat()
}

/// Sends a request and reads what comes, until it ends or the caller leaves.
pub async fn call(node: SocketAddr, request: &Request) -> Outcome {
    let started = Instant::now();
    let Ok(mut stream) = TcpStream::connect(node).await else {
        return Outcome::Unreachable;
    };
    let exchange = async {
        stream.write_all(&bytes(request)).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let patience = request.leaves_after.unwrap_or(SILENCE);
    match timeout(patience, exchange).await {
        Err(_) if request.leaves_after.is_some() => Outcome::Left,
        Err(_) | Ok(Err(_)) => Outcome::Broken,
        Ok(Ok(answer)) => read(&answer, started.elapsed()),
    }
}

fn read(answer: &[u8], took: Duration) -> Outcome {
    let text = String::from_utf8_lossy(answer);
    let status = text
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3)?.parse().ok());
    match (status, text.split_once("\r\n\r\n")) {
        (Some(status), Some((head, body))) => {
            let lower = head.to_ascii_lowercase();
            let whole = match lower.split_once("content-length: ") {
                Some((_, rest)) => {
                    let length = rest
                        .split("\r\n")
                        .next()
                        .and_then(|length| length.trim().parse().ok());
                    length == Some(body.len())
                }
                None => body.ends_with("0\r\n\r\n"),
            };
            if whole {
                let after = lower.split_once("retry-after: ").map(|(_, rest)| rest);
                let after = after.and_then(|rest| rest.split("\r\n").next()?.parse().ok());
                Outcome::Answered {
                    status,
                    body: body.to_owned(),
                    took,
                    retry_after: after.map(Duration::from_secs),
                }
            } else {
                Outcome::Broken
            }
        }
        _ => Outcome::Broken,
    }
}
